//! Reads the result document that a guest leaves behind: CBOR (RFC 8949), described in `rootfs/guest/collect.py`.
//!
//! Between the sandbox and the [`Outcome`](super::Outcome). The guest may write whatever it likes here, so each item is
//! counted and each length held against what is really there before anything is allocated for it.

use std::collections::HashSet;

use ciborium_io::Read as _;
use ciborium_ll::{Decoder, Header};
use num_bigint::{BigInt, Sign};

use super::array::{Array, DType};
use super::table::{Table, TableError, TableKind};
use super::value::Value;

/// The version of the document that this decoder reads.
const VERSION: i128 = 1;

// RFC 8949 and the registry of CBOR tags.
const TAG_POSITIVE_BIGNUM: u64 = 2;
const TAG_NEGATIVE_BIGNUM: u64 = 3;
const TAG_OBJECT: u64 = 27;
const TAG_ARRAY: u64 = 40;
const TAG_SET: u64 = 258;

/// Why a result document was not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The document is longer than its limit.
    #[error("the result document has {size} bytes, the limit is {limit}: raise the result limit or return less")]
    TooLarge {
        /// Its bytes.
        size: usize,
        /// The most allowed.
        limit: usize,
    },
    /// The document has more values than allowed.
    #[error("the result document has more than {limit} values: return an array or a table instead of a list")]
    TooManyValues {
        /// The most allowed.
        limit: usize,
    },
    /// Values are nested deeper than allowed.
    #[error("the result document is nested more than {limit} deep at byte {offset}")]
    TooDeep {
        /// The most allowed.
        limit: usize,
        /// Where.
        offset: usize,
    },
    /// It is not the CBOR that the guest's own code writes.
    #[error("the result document is malformed at byte {offset}: {what}")]
    Malformed {
        /// Where.
        offset: usize,
        /// What was expected, or found.
        what: &'static str,
    },
    /// A table inside was refused.
    #[error("failed to read the table at byte {offset} of the result document")]
    Table {
        /// Where.
        offset: usize,
        /// Why.
        #[source]
        source: TableError,
    },
}

impl Error {
    /// A stable name for the error, the same in JSON and Python.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "result-too-large",
            Self::TooManyValues { .. } => "result-too-many-values",
            Self::TooDeep { .. } => "result-too-deep",
            Self::Malformed { .. } => "result-malformed",
            Self::Table { .. } => "result-table",
        }
    }
}

/// What a result document may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the document.
    pub bytes: usize,
    /// Values in it, an array or a table counting as one.
    pub values: usize,
    /// Levels of nesting.
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        // The guest's encoder stops at 64 levels of values; a column of a table adds some more.
        Self { bytes: 16 << 20, values: 4_000_000, depth: 80 }
    }
}

/// What a guest handed back.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Document {
    /// The top-level name `result`.
    pub result: Option<Value>,
    /// The top-level name `metrics`.
    pub metrics: Option<Value>,
    /// The top-level name `signal`.
    pub signals: Option<Value>,
    /// The top-level name `report`.
    pub report: Option<Value>,
    /// What could not be written as it was, one sentence each.
    pub notes: Vec<String>,
    /// The uncaught exception.
    pub error: Option<ScriptError>,
    /// The limit that the values did not fit under, in bytes; then nothing else is set.
    pub over_limit: Option<u64>,
}

/// An uncaught exception, in the guest's own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptError {
    /// Its class, with its module unless that is `builtins` or `__main__`.
    pub kind: String,
    /// Its text.
    pub message: String,
    /// The traceback as printed.
    pub traceback: String,
}

/// Reads a result document; no bytes at all are an empty one (the script left nothing, or never came to its end).
///
/// # Errors
/// [`Error`] where the bytes are over `limits` or are not a document. Never panics, whatever the bytes.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Document, Error> {
    if bytes.is_empty() {
        return Ok(Document::default());
    }
    if bytes.len() > limits.bytes {
        return Err(Error::TooLarge { size: bytes.len(), limit: limits.bytes });
    }
    let mut reader = Reader { decoder: Decoder::from(bytes), size: bytes.len(), values: 0, limits };
    let entries = match reader.value(0)? {
        Value::Dict(entries) => entries,
        _ => return Err(reader.malformed("the document is not a map")),
    };
    if reader.remaining() != 0 {
        return Err(reader.malformed("bytes follow the document"));
    }
    document(entries).map_err(|what| reader.malformed(what))
}

/// Sorts the entries of the outermost map into a [`Document`].
fn document(entries: Vec<(String, Value)>) -> Result<Document, &'static str> {
    let mut document = Document::default();
    let mut version = None;
    for (key, value) in entries {
        match (key.as_str(), value) {
            ("v", Value::Int(number)) => version = Some(number),
            ("over_limit", Value::Int(limit)) => {
                document.over_limit = Some(u64::try_from(limit).map_err(|_| "the limit is negative")?);
            }
            ("names", Value::Dict(names)) => {
                for (name, value) in names {
                    let slot = match name.as_str() {
                        "result" => &mut document.result,
                        "metrics" => &mut document.metrics,
                        "signal" => &mut document.signals,
                        "report" => &mut document.report,
                        _ => return Err("a name is none of result, metrics, signal, report"),
                    };
                    *slot = Some(value);
                }
            }
            ("notes", Value::List(notes)) => {
                for note in notes {
                    document.notes.push(text(note).ok_or("a note is not text")?);
                }
            }
            ("error", Value::Dict(fields)) => document.error = Some(script_error(fields)?),
            _ => return Err("an entry of the document is unknown or of another type"),
        }
    }
    if version == Some(VERSION) { Ok(document) } else { Err("the document's version is missing or unknown") }
}

fn script_error(fields: Vec<(String, Value)>) -> Result<ScriptError, &'static str> {
    let mut error = ScriptError { kind: String::new(), message: String::new(), traceback: String::new() };
    for (key, value) in fields {
        let slot = match key.as_str() {
            "type" => &mut error.kind,
            "message" => &mut error.message,
            "traceback" => &mut error.traceback,
            _ => return Err("an entry of the error is unknown"),
        };
        *slot = text(value).ok_or("an entry of the error is not text")?;
    }
    Ok(error)
}

fn text(value: Value) -> Option<String> {
    if let Value::Str(text) = value { Some(text) } else { None }
}

/// Walks the bytes once, from the front.
struct Reader<'a> {
    decoder: Decoder<&'a [u8]>,
    size: usize,
    values: usize,
    limits: &'a Limits,
}

impl Reader<'_> {
    fn malformed(&mut self, what: &'static str) -> Error {
        Error::Malformed { offset: self.decoder.offset(), what }
    }

    fn remaining(&mut self) -> usize {
        self.size.saturating_sub(self.decoder.offset())
    }

    fn pull(&mut self) -> Result<Header, Error> {
        self.decoder.pull().map_err(|_| self.malformed("the bytes end early or are no CBOR"))
    }

    fn value(&mut self, depth: usize) -> Result<Value, Error> {
        self.values += 1;
        if self.values > self.limits.values {
            return Err(Error::TooManyValues { limit: self.limits.values });
        }
        if depth > self.limits.depth {
            return Err(Error::TooDeep { limit: self.limits.depth, offset: self.decoder.offset() });
        }
        Ok(match self.pull()? {
            Header::Positive(number) => Value::Int(i128::from(number)),
            Header::Negative(number) => Value::Int(-1 - i128::from(number)),
            Header::Float(number) => Value::Float(number),
            Header::Simple(20) => Value::Bool(false),
            Header::Simple(21) => Value::Bool(true),
            Header::Simple(22) => Value::Null,
            Header::Text(Some(length)) => Value::Str(self.string(length)?),
            Header::Bytes(Some(length)) => Value::Bytes(self.take(length)?),
            Header::Array(Some(length)) => Value::List(self.list(length, depth)?),
            Header::Map(Some(length)) => Value::Dict(self.map(length, depth)?),
            Header::Tag(tag) => self.tagged(tag, depth)?,
            _ => return Err(self.malformed("an item of unknown kind or without a length")),
        })
    }

    /// The next `length` bytes, allocated only once they are known to be there.
    fn take(&mut self, length: usize) -> Result<Vec<u8>, Error> {
        if length > self.remaining() {
            return Err(self.malformed("a length is greater than what follows"));
        }
        let mut bytes = vec![0; length];
        self.decoder.read_exact(&mut bytes).map_err(|_| self.malformed("the bytes end early"))?;
        Ok(bytes)
    }

    fn string(&mut self, length: usize) -> Result<String, Error> {
        let bytes = self.take(length)?;
        String::from_utf8(bytes).map_err(|_| self.malformed("text is not UTF-8"))
    }

    /// Refuses a count of items, each at least `least` bytes long, that cannot be there.
    fn counted(&mut self, length: usize, least: usize) -> Result<(), Error> {
        if length > self.remaining() / least {
            return Err(self.malformed("a count is greater than what follows"));
        }
        if length > self.limits.values - self.values {
            return Err(Error::TooManyValues { limit: self.limits.values });
        }
        Ok(())
    }

    fn list(&mut self, length: usize, depth: usize) -> Result<Vec<Value>, Error> {
        self.counted(length, 1)?;
        (0..length).map(|_| self.value(depth + 1)).collect()
    }

    fn map(&mut self, length: usize, depth: usize) -> Result<Vec<(String, Value)>, Error> {
        self.counted(length, 2)?;
        let mut seen = HashSet::new();
        let mut entries = Vec::new();
        for _ in 0..length {
            let Header::Text(Some(size)) = self.pull()? else {
                return Err(self.malformed("a key is not text"));
            };
            let key = self.string(size)?;
            if !seen.insert(key.clone()) {
                return Err(self.malformed("a key comes twice"));
            }
            entries.push((key, self.value(depth + 1)?));
        }
        Ok(entries)
    }

    fn tagged(&mut self, tag: u64, depth: usize) -> Result<Value, Error> {
        match tag {
            TAG_POSITIVE_BIGNUM | TAG_NEGATIVE_BIGNUM => self.bignum(tag == TAG_NEGATIVE_BIGNUM),
            TAG_SET => match self.value(depth + 1)? {
                Value::List(members) => Ok(Value::List(members)),
                _ => Err(self.malformed("a set is not a list")),
            },
            TAG_ARRAY => self.typed_array(),
            TAG_OBJECT => self.object(depth),
            _ => Err(self.malformed("a tag is unknown")),
        }
    }

    fn bignum(&mut self, negative: bool) -> Result<Value, Error> {
        // Decimal digits cost the square of the length; the guest's encoder stops at 14,284 bits.
        const LONGEST: usize = 1_786;
        let Header::Bytes(Some(length)) = self.pull()? else {
            return Err(self.malformed("an integer's tag is not followed by bytes"));
        };
        if length > LONGEST {
            return Err(self.malformed("an integer is too long"));
        }
        let magnitude = BigInt::from_bytes_be(Sign::Plus, &self.take(length)?);
        let number = if negative { -1 - magnitude } else { magnitude };
        Ok(match i128::try_from(&number) {
            Ok(small) => Value::Int(small),
            Err(_) => Value::BigInt(number.to_string()),
        })
    }

    /// `[shape, tag 64..86 bytes]` (RFC 8746).
    fn typed_array(&mut self) -> Result<Value, Error> {
        self.array_of(2)?;
        let shape = self.shape()?;
        let Header::Tag(tag) = self.pull()? else {
            return Err(self.malformed("an array's numbers have no type"));
        };
        let dtype = DType::from_tag(tag).ok_or_else(|| self.malformed("an array's type is unknown"))?;
        self.array_data(dtype, shape)
    }

    /// `[name, ...]`, the objects that CBOR has no tag for.
    fn object(&mut self, depth: usize) -> Result<Value, Error> {
        let Header::Array(Some(length)) = self.pull()? else {
            return Err(self.malformed("an object is not a list"));
        };
        let name = self.expect_text()?;
        match (name.as_str(), length) {
            ("array", 4) => {
                let dtype = self.expect_text()?;
                let dtype = DType::from_name(&dtype).ok_or_else(|| self.malformed("an array's type is unknown"))?;
                let shape = self.shape()?;
                self.array_data(dtype, shape)
            }
            ("arrow", 3) => {
                let kind = self.table_kind()?;
                let Header::Bytes(Some(length)) = self.pull()? else {
                    return Err(self.malformed("a table is not bytes"));
                };
                let stream = self.take(length)?;
                let offset = self.decoder.offset();
                let table = Table::from_ipc(kind, stream).map_err(|source| Error::Table { offset, source })?;
                Ok(Value::Table(Box::new(table)))
            }
            ("split", 3) => {
                let kind = self.table_kind()?;
                let content = self.value(depth + 1)?;
                let offset = self.decoder.offset();
                let table = Table::from_split(kind, content).map_err(|source| Error::Table { offset, source })?;
                Ok(Value::Table(Box::new(table)))
            }
            ("repr", 3) => Ok(Value::Opaque { kind: self.expect_text()?, text: self.expect_text()? }),
            _ => Err(self.malformed("an object is unknown")),
        }
    }

    fn array_of(&mut self, length: usize) -> Result<(), Error> {
        match self.pull()? {
            Header::Array(Some(found)) if found == length => Ok(()),
            _ => Err(self.malformed("a list of another length was expected")),
        }
    }

    fn expect_text(&mut self) -> Result<String, Error> {
        match self.pull()? {
            Header::Text(Some(length)) => self.string(length),
            _ => Err(self.malformed("text was expected")),
        }
    }

    fn table_kind(&mut self) -> Result<TableKind, Error> {
        let name = self.expect_text()?;
        TableKind::from_name(&name).ok_or_else(|| self.malformed("a table's kind is unknown"))
    }

    fn shape(&mut self) -> Result<Vec<usize>, Error> {
        // numpy stops at 64 axes.
        let axes = match self.pull()? {
            Header::Array(Some(axes)) if axes <= 64 => axes,
            _ => return Err(self.malformed("an array's shape is not a short list")),
        };
        (0..axes)
            .map(|_| match self.pull()? {
                Header::Positive(length) => usize::try_from(length).map_err(|_| self.malformed("an axis is too long")),
                _ => Err(self.malformed("an axis is not a length")),
            })
            .collect()
    }

    fn array_data(&mut self, dtype: DType, shape: Vec<usize>) -> Result<Value, Error> {
        let Header::Bytes(Some(length)) = self.pull()? else {
            return Err(self.malformed("an array is not bytes"));
        };
        let data = self.take(length)?;
        match Array::new(dtype, shape, data) {
            Some(array) => Ok(Value::Array(Box::new(array))),
            None => Err(self.malformed("an array's shape and bytes disagree")),
        }
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
