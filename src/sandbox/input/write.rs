//! How a value lies in its memfd, for `rootfs/guest/inputs.py`:
//!
//! ```text
//! 16 bytes   where the tree begins, and its length, in bytes: little-endian words of 64 bits
//! segments   the bytes of arrays and Arrow streams, each at a multiple of 64
//! the tree   (VALUE, whether there are segments or tables), in the format of Python's `marshal`
//! ```
//!
//! Plain values are read by the interpreter's own C code, in microseconds. `marshal` may change between versions of Python;
//! what is used here (none of its references, only the forms below) has been read by every CPython 3. It has tuples, and a
//! [`Value`] has none, so these stand for what it lacks:
//!
//! ```text
//! ("array", DTYPE, SHAPE, OFFSET)         a numpy array, little endian, in C order
//! ("arrow", KIND, OFFSET, LENGTH)         a pandas object as an Arrow IPC stream; KIND is frame, series or index
//! ("split", KIND, COLUMNS, INDEX, DATA)   the same as names, labels and columns
//! ```

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::str::FromStr;

use num_bigint::{BigInt, Sign};

use super::InputError;
use crate::outcome::{Array, Table, Value};

/// The most bytes of the tree.
pub(super) const MOST_PLAIN: usize = 1 << 30;
/// The most levels of lists and dicts.
pub(super) const MOST_LEVELS: usize = 100;
/// Where segments begin: no instruction asks for more, and it is what Arrow recommends.
const ALIGNMENT: usize = 64;
/// What stands before the first segment.
const HEAD: usize = ALIGNMENT;

/// Writes one value into a memfd.
pub(super) struct Writer {
    file: File,
    /// Bytes written so far.
    at: usize,
    tree: Vec<u8>,
    /// Whether something in the tree is not plain.
    places: bool,
}

impl Writer {
    pub(super) fn write(file: File, value: &Value) -> Result<File, InputError> {
        let mut writer = Self { file, at: 0, tree: Vec::new(), places: false };
        writer.append(&[0; HEAD])?;
        writer.tuple(2);
        writer.value(value, 0)?;
        writer.tree.push(if writer.places { b'T' } else { b'F' });
        let tree = std::mem::take(&mut writer.tree);
        let at = writer.append(&tree)?;
        let head = [at, tree.len()].map(|word| (word as u64).to_le_bytes()).concat();
        writer.file.write_all_at(&head, 0).map_err(InputError::Memory)?;
        Ok(writer.file)
    }

    /// Writes bytes where the next segment begins; returns where that is.
    fn append(&mut self, bytes: &[u8]) -> Result<usize, InputError> {
        let begin = self.at.next_multiple_of(ALIGNMENT);
        let padding = &[0; ALIGNMENT][..begin - self.at];
        let written = self.file.write_all(padding).and_then(|()| self.file.write_all(bytes));
        written.map_err(InputError::Memory)?;
        self.at = begin + bytes.len();
        Ok(begin)
    }

    fn value(&mut self, value: &Value, level: usize) -> Result<(), InputError> {
        if level > MOST_LEVELS {
            return Err(InputError::TooDeep { place: String::new() });
        }
        match value {
            Value::Null => self.tree.push(b'N'),
            Value::Bool(truth) => self.tree.push(if *truth { b'T' } else { b'F' }),
            Value::Int(number) => self.integer(*number),
            Value::BigInt(digits) => {
                let number = BigInt::from_str(digits);
                self.long(&number.map_err(|_| InputError::NotAnInteger { place: String::new() })?);
            }
            Value::Float(number) => {
                self.tree.push(b'g');
                self.tree.extend_from_slice(&number.to_le_bytes());
            }
            Value::Str(text) => self.bytes(b'u', text.as_bytes())?,
            Value::Bytes(bytes) => self.bytes(b's', bytes)?,
            Value::List(items) => self.list(items, level)?,
            Value::Dict(entries) => {
                self.tree.push(b'{');
                for (key, item) in entries {
                    self.bytes(b'u', key.as_bytes())?;
                    self.value(item, level + 1).map_err(|error| error.at(&format!("[{key:?}]")))?;
                }
                self.tree.push(b'0');
            }
            Value::Array(array) => self.array(array)?,
            Value::Table(table) => self.table(table, level)?,
            Value::Opaque { kind, .. } => {
                return Err(InputError::Opaque { place: String::new(), kind: kind.clone() });
            }
        }
        self.check_length(0)
    }

    /// Refuses a tree that `more` bytes make too long.
    fn check_length(&self, more: usize) -> Result<(), InputError> {
        if self.tree.len().saturating_add(more) > MOST_PLAIN { Err(InputError::TooLong) } else { Ok(()) }
    }

    fn count(&mut self, count: usize) {
        // What has more items than this is longer than a tree may be.
        self.tree.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
    }

    fn tuple(&mut self, count: usize) {
        self.tree.push(b'(');
        self.count(count);
    }

    fn bytes(&mut self, kind: u8, bytes: &[u8]) -> Result<(), InputError> {
        self.check_length(bytes.len())?;
        self.tree.push(kind);
        self.count(bytes.len());
        self.tree.extend_from_slice(bytes);
        Ok(())
    }

    fn integer(&mut self, number: i128) {
        if let Ok(small) = i32::try_from(number) {
            self.tree.push(b'i');
            self.tree.extend_from_slice(&small.to_le_bytes());
        } else {
            self.long(&BigInt::from(number));
        }
    }

    /// Digits of 15 bits, the least first; the sign is that of their count.
    fn long(&mut self, number: &BigInt) {
        let (sign, magnitude) = (number.sign(), number.magnitude());
        let digits: Vec<u16> = if magnitude.bits() == 0 { Vec::new() } else { digits(&magnitude.to_bytes_le()) };
        let count = i32::try_from(digits.len()).unwrap_or(i32::MAX);
        self.tree.push(b'l');
        self.tree.extend_from_slice(&if sign == Sign::Minus { -count } else { count }.to_le_bytes());
        digits.iter().for_each(|digit| self.tree.extend_from_slice(&digit.to_le_bytes()));
    }

    fn list(&mut self, items: &[Value], level: usize) -> Result<(), InputError> {
        self.check_length(items.len())?;
        self.tree.push(b'[');
        self.count(items.len());
        for (i, item) in items.iter().enumerate() {
            self.value(item, level + 1).map_err(|error| error.at(&format!("[{i}]")))?;
        }
        Ok(())
    }

    fn array(&mut self, array: &Array) -> Result<(), InputError> {
        self.places = true;
        let offset = self.append(array.data())?;
        self.tuple(4);
        self.bytes(b'u', b"array")?;
        self.bytes(b'u', array.dtype().to_string().as_bytes())?;
        self.tuple(array.shape().len());
        array.shape().iter().for_each(|&length| self.integer(length as i128));
        self.integer(offset as i128);
        Ok(())
    }

    fn table(&mut self, table: &Table, level: usize) -> Result<(), InputError> {
        self.places = true;
        let kind = table.kind().name();
        if let Some((columns, index, data)) = table.split() {
            self.tuple(5);
            self.bytes(b'u', b"split")?;
            self.bytes(b'u', kind.as_bytes())?;
            self.list(columns, level).map_err(|error| error.at(".columns"))?;
            self.value(index, level + 1).map_err(|error| error.at(".index"))?;
            return self.list(data, level).map_err(|error| error.at(".columns"));
        }
        let stream = table.ipc().unwrap_or_default();
        let offset = self.append(stream)?;
        self.tuple(4);
        self.bytes(b'u', b"arrow")?;
        self.bytes(b'u', kind.as_bytes())?;
        self.integer(offset as i128);
        self.integer(stream.len() as i128);
        Ok(())
    }
}

/// A magnitude in bytes, the least first, as digits of 15 bits, the last of which is not 0.
fn digits(bytes: &[u8]) -> Vec<u16> {
    let (mut digits, mut rest, mut bits) = (Vec::with_capacity(bytes.len() * 8 / 15 + 1), 0_u32, 0);
    for &byte in bytes {
        rest |= u32::from(byte) << bits;
        bits += 8;
        if bits >= 15 {
            digits.push((rest & 0x7fff) as u16);
            (rest, bits) = (rest >> 15, bits - 15);
        }
    }
    digits.push((rest & 0x7fff) as u16);
    while digits.last() == Some(&0) {
        digits.pop();
    }
    digits
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::outcome::DType;
    use crate::sandbox::Input;

    fn error(value: Value) -> String {
        Input::new(value).unwrap_err().to_string()
    }

    #[test]
    fn what_has_no_value_is_refused_with_its_place() {
        let opaque = || Value::Opaque { kind: "__main__.Model".to_owned(), text: String::new() };
        let nested = Value::Dict(vec![("a".to_owned(), Value::List(vec![Value::Null, opaque()]))]);
        let said = r#"value["a"][1] is an object of the class __main__.Model, of which there is no value: give what it holds instead"#;
        assert_eq!(error(nested), said);
        assert!(error(opaque()).starts_with("value is an object"));
        for digits in ["", "1e5", "0x10", "١"] {
            assert!(error(Value::BigInt(digits.to_owned())).contains("is no integer"), "{digits}");
        }
        let deep = |levels| (0..levels).fold(Value::Null, |inner, _| Value::List(vec![inner]));
        Input::new(deep(MOST_LEVELS)).unwrap();
        assert!(error(deep(MOST_LEVELS + 1)).contains("is nested more than 100 deep"));
    }

    #[test]
    fn digits_are_of_fifteen_bits() {
        assert_eq!(digits(&[0xff, 0x7f]), [0x7fff]);
        assert_eq!(digits(&[0, 0x80]), [0, 1]);
        assert_eq!(digits(&[0, 0, 0, 0x40]), [0, 0, 1]);
    }

    #[test]
    fn segments_are_aligned() {
        let array = |length| Value::from(Array::new(DType::Int(1), vec![length], vec![7; length]).unwrap());
        let input = Input::new(Value::List(vec![array(1), array(65), array(0), array(3)])).unwrap();
        let mut content = Vec::new();
        input.copy_to(&mut content).unwrap();
        assert_eq!((content[64], content[65], &content[128..193]), (7, 0, &[7; 65][..]));
        assert_eq!(u64::from_le_bytes(content[..8].try_into().unwrap()) % 64, 0);
    }
}
