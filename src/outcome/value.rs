//! The values that a guest hands back or is given, and their form in JSON.
//!
//! Between [`decode`](super::decode) and whoever reads the [`Outcome`](super::Outcome). Floats stay floats here; only JSON,
//! which has no NaN and no infinities, loses them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value as Json;

use super::array::Array;
use super::table::Table;

/// What one value may cost in JSON, in bytes of memory, roughly: a guest can name one long text a million times.
const JSON_BUDGET: usize = 256 << 20;
/// What a cell of an array or a table costs at least.
const CELL: usize = 64;

/// A value collected from the guest.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(with = "Json")]
pub enum Value {
    /// `None`, `NaT`, `pandas.NA`.
    Null,
    /// A truth value.
    Bool(bool),
    /// An integer of at most 127 bits.
    Int(i128),
    /// A longer integer, in decimal digits.
    BigInt(String),
    /// A float, NaN and the infinities among them.
    Float(f64),
    /// Text; also dates, times and decimals, which Python writes exactly.
    Str(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A list, tuple or set.
    List(Vec<Value>),
    /// A dict, in its own order, keys as text and each once.
    Dict(Vec<(String, Value)>),
    /// A numpy array.
    Array(Box<Array>),
    /// A pandas object.
    Table(Box<Table>),
    /// An object that has no value outside Python.
    Opaque {
        /// Its class.
        kind: String,
        /// What Python prints for it, or its class again.
        text: String,
    },
}

impl Value {
    /// The value in JSON: tables in pandas' split orientation, arrays as nested lists, bytes in base64, integers beyond
    /// 64 bits as text. What JSON cannot say is null, and a sentence in `notes`.
    #[must_use]
    pub fn to_json(&self, notes: &mut Vec<String>) -> Json {
        let mut writer = JsonWriter { budget: JSON_BUDGET, not_finite: 0, long_integers: 0 };
        let json = writer.value(self).unwrap_or_else(|TooLarge| {
            notes.push("the value is too large for JSON and null there".to_owned());
            Json::Null
        });
        if writer.not_finite > 0 {
            notes.push(format!(
                "{} that JSON cannot hold (NaN, infinities) are null",
                count(writer.not_finite, "number")
            ));
        }
        if writer.long_integers > 0 {
            notes.push(format!("{} beyond 64 bits are text", count(writer.long_integers, "integer")));
        }
        json
    }
}

impl Value {
    /// How many numbers in it are NaN or infinite, without writing any JSON.
    #[must_use]
    pub fn count_not_finite(&self) -> usize {
        match self {
            Self::Float(number) => usize::from(!number.is_finite()),
            Self::List(items) => items.iter().map(Self::count_not_finite).sum(),
            Self::Dict(entries) => entries.iter().map(|(_, item)| item.count_not_finite()).sum(),
            Self::Array(array) => array.count_not_finite(),
            Self::Table(table) => table.count_not_finite(),
            _ => 0,
        }
    }
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json(&mut Vec::new()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Value {
    /// Reads the JSON form back, in which an array is a list and a table a dict.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Json::deserialize(deserializer).map(Self::from)
    }
}

impl From<Json> for Value {
    fn from(json: Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(truth) => Self::Bool(truth),
            Json::Number(number) => match number.as_i128() {
                Some(integer) => Self::Int(integer),
                None => number.as_f64().map_or(Self::Null, Self::Float),
            },
            Json::String(text) => Self::Str(text),
            Json::Array(items) => Self::List(items.into_iter().map(Self::from).collect()),
            Json::Object(entries) => Self::Dict(entries.into_iter().map(|(key, item)| (key, item.into())).collect()),
        }
    }
}

macro_rules! from {
    ($($type:ty => $value:expr),* $(,)?) => {
        $(impl From<$type> for Value {
            fn from(value: $type) -> Self {
                $value(value)
            }
        })*
    };
}

from! {
    bool => Self::Bool,
    i32 => |number: i32| Self::Int(number.into()),
    i64 => |number: i64| Self::Int(number.into()),
    u32 => |number: u32| Self::Int(number.into()),
    u64 => |number: u64| Self::Int(number.into()),
    f64 => Self::Float,
    &str => |text: &str| Self::Str(text.to_owned()),
    String => Self::Str,
    Vec<Value> => Self::List,
    Vec<(String, Value)> => Self::Dict,
    Array => |array| Self::Array(Box::new(array)),
    Table => |table| Self::Table(Box::new(table)),
}

/// The value would cost more than [`JSON_BUDGET`].
pub(super) struct TooLarge;

/// Turns values into JSON under a budget, and counts what JSON cannot say.
pub(super) struct JsonWriter {
    budget: usize,
    not_finite: usize,
    long_integers: usize,
}

impl JsonWriter {
    /// Takes the cost of `cells` values from the budget.
    pub(super) fn spend(&mut self, cells: usize) -> Result<(), TooLarge> {
        self.spend_bytes(cells.checked_mul(CELL).ok_or(TooLarge)?)
    }

    fn spend_bytes(&mut self, bytes: usize) -> Result<(), TooLarge> {
        self.budget = self.budget.checked_sub(bytes).ok_or(TooLarge)?;
        Ok(())
    }

    pub(super) fn float(&mut self, number: f64) -> Json {
        serde_json::Number::from_f64(number).map_or_else(
            || {
                self.not_finite += 1;
                Json::Null
            },
            Json::Number,
        )
    }

    pub(super) fn text(&mut self, text: &str) -> Result<Json, TooLarge> {
        self.spend_bytes(text.len())?;
        Ok(Json::from(text))
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<Json, TooLarge> {
        self.spend_bytes(bytes.len().saturating_mul(2))?;
        Ok(Json::from(BASE64.encode(bytes)))
    }

    pub(super) fn integer(&mut self, number: i128) -> Json {
        serde_json::Number::from_i128(number).map_or_else(
            || {
                self.long_integers += 1;
                Json::from(number.to_string())
            },
            Json::Number,
        )
    }

    pub(super) fn value(&mut self, value: &Value) -> Result<Json, TooLarge> {
        self.spend(1)?;
        Ok(match value {
            Value::Null => Json::Null,
            Value::Bool(truth) => Json::from(*truth),
            Value::Int(number) => self.integer(*number),
            Value::BigInt(digits) => {
                self.long_integers += 1;
                self.text(digits)?
            }
            Value::Float(number) => self.float(*number),
            Value::Str(text) => self.text(text)?,
            Value::Bytes(bytes) => self.bytes(bytes)?,
            Value::List(items) => Json::Array(self.values(items)?),
            Value::Dict(entries) => {
                let mut object = serde_json::Map::new();
                for (key, item) in entries {
                    self.spend_bytes(key.len())?;
                    object.insert(key.clone(), self.value(item)?);
                }
                Json::Object(object)
            }
            Value::Array(array) => array.to_json(self)?,
            Value::Table(table) => table.to_json(self)?,
            Value::Opaque { text, .. } => self.text(text)?,
        })
    }

    /// A copy of what has been written before.
    pub(super) fn copy(&mut self, written: &Json) -> Result<Json, TooLarge> {
        match written {
            Json::String(text) => self.text(text),
            Json::Array(items) => {
                self.spend(items.len())?;
                items.iter().map(|item| self.copy(item)).collect()
            }
            Json::Object(entries) => {
                self.spend(entries.len())?;
                entries.iter().map(|(key, item)| Ok((key.clone(), self.copy(item)?))).collect()
            }
            plain => Ok(plain.clone()),
        }
    }

    pub(super) fn values(&mut self, values: &[Value]) -> Result<Vec<Json>, TooLarge> {
        values.iter().map(|item| self.value(item)).collect()
    }
}
