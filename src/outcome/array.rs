//! numpy arrays that a guest hands back or is given, and the types of their items.
//!
//! Part of a [`Value`](super::Value).

use std::slice::ChunksExact;

use serde_json::Value as Json;

use super::value::{JsonWriter, TooLarge};

/// The most axes that numpy has.
const MOST_AXES: usize = 64;

/// A numpy array: its bytes as numpy has them, little endian and in C order.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    dtype: DType,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl Array {
    /// An array of `shape` (the length of each axis, at most 64) of the items in `data`, little endian and in C order; `None`
    /// where the shape does not hold exactly these, or numpy has no such type.
    #[must_use]
    pub fn new(dtype: DType, shape: Vec<usize>, data: Vec<u8>) -> Option<Self> {
        if !dtype.is_known() || shape.len() > MOST_AXES {
            return None;
        }
        let size = shape.iter().try_fold(dtype.size(), |size, &length| size.checked_mul(length))?;
        (size == data.len()).then_some(Self { dtype, shape, data })
    }

    /// Nested lists, one level for each axis.
    pub(super) fn to_json(&self, json: &mut JsonWriter) -> Result<Json, TooLarge> {
        // An axis of length 0 hides what the axes before it would cost.
        let lists = self.shape.iter().try_fold(1_usize, |cells, &length| cells.checked_mul(length.max(1)));
        json.spend(lists.ok_or(TooLarge)?)?;
        let mut items = self.data.chunks_exact(self.dtype.size());
        Ok(self.axes(&self.shape, &mut items, json))
    }

    /// The nested lists of the axes that are left.
    fn axes(&self, shape: &[usize], items: &mut ChunksExact<'_, u8>, json: &mut JsonWriter) -> Json {
        match shape.split_first() {
            None => items.next().map_or(Json::Null, |item| self.dtype.item_to_json(item, json)),
            Some((&length, rest)) => (0..length).map(|_| self.axes(rest, items, json)).collect(),
        }
    }

    /// How many of its numbers are NaN or infinite.
    pub(super) fn count_not_finite(&self) -> usize {
        let size = match self.dtype {
            DType::Float(size) => usize::from(size),
            DType::Complex(size) => usize::from(size) / 2,
            _ => return 0,
        };
        self.data.chunks_exact(size).filter(|item| !float(item).is_finite()).count()
    }

    /// The type of its items.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The length of each axis; empty for a single item.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its items, little endian, in C order.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }
}

impl From<&[f64]> for Array {
    /// One axis of float64.
    fn from(numbers: &[f64]) -> Self {
        let data = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        Self { dtype: DType::Float(8), shape: vec![numbers.len()], data }
    }
}

/// The type of an array's items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DType {
    /// One byte, 0 or 1.
    Bool,
    /// A signed integer of so many bytes (1, 2, 4, 8).
    Int(u8),
    /// An unsigned integer of so many bytes (1, 2, 4, 8).
    UInt(u8),
    /// A float of so many bytes (2, 4, 8).
    Float(u8),
    /// A complex number of so many bytes (8, 16): two floats.
    Complex(u8),
    /// A point in time: so many of these since 1970 as a signed 64-bit integer, the least of which is `NaT`.
    Datetime(TimeUnit, u32),
    /// A duration, in the same form.
    Timedelta(TimeUnit, u32),
}

/// numpy's units of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is what it is called")]
pub enum TimeUnit {
    Year,
    Month,
    Week,
    Day,
    Hour,
    Minute,
    Second,
    Millisecond,
    Microsecond,
    Nanosecond,
}

impl TimeUnit {
    const ALL: [(&'static str, Self); 10] = [
        ("Y", Self::Year),
        ("M", Self::Month),
        ("W", Self::Week),
        ("D", Self::Day),
        ("h", Self::Hour),
        ("m", Self::Minute),
        ("s", Self::Second),
        ("ms", Self::Millisecond),
        ("us", Self::Microsecond),
        ("ns", Self::Nanosecond),
    ];

    fn code(self) -> &'static str {
        Self::ALL.iter().find(|(_, unit)| *unit == self).map_or("", |(code, _)| code)
    }

    /// Nanoseconds; `None` for months and years, which are not of one length.
    fn nanoseconds(self) -> Option<i128> {
        Some(match self {
            Self::Year | Self::Month => return None,
            Self::Week => 604_800_000_000_000,
            Self::Day => 86_400_000_000_000,
            Self::Hour => 3_600_000_000_000,
            Self::Minute => 60_000_000_000,
            Self::Second => 1_000_000_000,
            Self::Millisecond => 1_000_000,
            Self::Microsecond => 1_000,
            Self::Nanosecond => 1,
        })
    }
}

impl std::fmt::Display for DType {
    /// numpy's own name of the type.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let time = |f: &mut std::fmt::Formatter<'_>, name, unit: &TimeUnit, step: &u32| match step {
            1 => write!(f, "{name}[{}]", unit.code()),
            _ => write!(f, "{name}[{step}{}]", unit.code()),
        };
        match self {
            Self::Bool => f.write_str("bool"),
            Self::Int(size) => write!(f, "int{}", u32::from(*size) * 8),
            Self::UInt(size) => write!(f, "uint{}", u32::from(*size) * 8),
            Self::Float(size) => write!(f, "float{}", u32::from(*size) * 8),
            Self::Complex(size) => write!(f, "complex{}", u32::from(*size) * 8),
            Self::Datetime(unit, step) => time(f, "datetime64", unit, step),
            Self::Timedelta(unit, step) => time(f, "timedelta64", unit, step),
        }
    }
}

impl DType {
    /// Whether it is one of the sizes that numpy has.
    fn is_known(self) -> bool {
        match self {
            Self::Bool => true,
            Self::Int(size) | Self::UInt(size) => [1, 2, 4, 8].contains(&size),
            Self::Float(size) => [2, 4, 8].contains(&size),
            Self::Complex(size) => [8, 16].contains(&size),
            Self::Datetime(_, step) | Self::Timedelta(_, step) => (1..1 << 31).contains(&step),
        }
    }

    /// Bytes of one item.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::Bool => 1,
            Self::Int(size) | Self::UInt(size) | Self::Float(size) | Self::Complex(size) => usize::from(size),
            Self::Datetime(..) | Self::Timedelta(..) => 8,
        }
    }

    /// The type of a typed array of RFC 8746, little endian.
    pub(super) fn from_tag(tag: u64) -> Option<Self> {
        Some(match tag {
            64 => Self::UInt(1),
            69 => Self::UInt(2),
            70 => Self::UInt(4),
            71 => Self::UInt(8),
            72 => Self::Int(1),
            77 => Self::Int(2),
            78 => Self::Int(4),
            79 => Self::Int(8),
            84 => Self::Float(2),
            85 => Self::Float(4),
            86 => Self::Float(8),
            _ => return None,
        })
    }

    /// The types that RFC 8746 lacks, by numpy's name.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        match name {
            "bool" => return Some(Self::Bool),
            "complex64" => return Some(Self::Complex(8)),
            "complex128" => return Some(Self::Complex(16)),
            _ => {}
        }
        let (kind, unit) = name.strip_suffix(']')?.split_once('[')?;
        let letters = unit.trim_start_matches(|digit: char| digit.is_ascii_digit());
        let step = match &unit[..unit.len() - letters.len()] {
            "" => 1,
            digits => digits.parse().ok().filter(|&step| step > 0)?,
        };
        let (_, unit) = *TimeUnit::ALL.iter().find(|(code, _)| *code == letters)?;
        match kind {
            "datetime64" => Some(Self::Datetime(unit, step)),
            "timedelta64" => Some(Self::Timedelta(unit, step)),
            _ => None,
        }
    }

    /// One item in JSON; `item` has [`Self::size`] bytes.
    fn item_to_json(self, item: &[u8], json: &mut JsonWriter) -> Json {
        match self {
            Self::Bool => Json::from(item != [0]),
            Self::Int(_) => Json::from(signed(item)),
            Self::UInt(_) => Json::from(unsigned(item)),
            Self::Float(_) => json.float(float(item)),
            Self::Complex(size) => {
                let (real, imaginary) = item.split_at(usize::from(size) / 2);
                Json::Array(vec![json.float(float(real)), json.float(float(imaginary))])
            }
            Self::Datetime(unit, step) => datetime(signed(item), unit, step),
            Self::Timedelta(unit, step) => timedelta(signed(item), unit, step),
        }
    }
}

/// A little-endian integer of at most 8 bytes.
fn unsigned(item: &[u8]) -> u64 {
    item.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn signed(item: &[u8]) -> i64 {
    let unused = 64 - 8 * u32::try_from(item.len()).unwrap_or(8).clamp(1, 8);
    (unsigned(item) << unused).cast_signed() >> unused
}

fn float(item: &[u8]) -> f64 {
    match *item {
        [a, b] => half::f16::from_le_bytes([a, b]).to_f64(),
        [a, b, c, d] => f64::from(f32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => f64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => f64::NAN,
    }
}

/// A point in time in ISO 8601, as precise as its unit; null for `NaT` and for what the calendar does not reach.
fn datetime(count: i64, unit: TimeUnit, step: u32) -> Json {
    use chrono::{DateTime, Datelike, Months, NaiveDate};

    if count == i64::MIN {
        return Json::Null;
    }
    let count = i128::from(count) * i128::from(step);
    let months = match unit {
        TimeUnit::Year => count.checked_mul(12),
        TimeUnit::Month => Some(count),
        _ => None,
    };
    let date = |months: i128| {
        let size = u32::try_from(months.unsigned_abs()).ok()?;
        let epoch = NaiveDate::from_ymd_opt(1970, 1, 1)?;
        if months < 0 {
            epoch.checked_sub_months(Months::new(size))
        } else {
            epoch.checked_add_months(Months::new(size))
        }
    };
    let text = if let Some(nanoseconds) = unit.nanoseconds() {
        count.checked_mul(nanoseconds).and_then(|total| {
            let seconds = i64::try_from(total.div_euclid(1_000_000_000)).ok()?;
            let rest = u32::try_from(total.rem_euclid(1_000_000_000)).ok()?;
            let time = DateTime::from_timestamp(seconds, rest)?.naive_utc();
            Some(match unit {
                TimeUnit::Week | TimeUnit::Day => time.format("%Y-%m-%d").to_string(),
                TimeUnit::Hour => time.format("%Y-%m-%dT%H").to_string(),
                TimeUnit::Minute => time.format("%Y-%m-%dT%H:%M").to_string(),
                TimeUnit::Millisecond => time.format("%Y-%m-%dT%H:%M:%S%.3f").to_string(),
                TimeUnit::Microsecond => time.format("%Y-%m-%dT%H:%M:%S%.6f").to_string(),
                TimeUnit::Nanosecond => time.format("%Y-%m-%dT%H:%M:%S%.9f").to_string(),
                _ => time.format("%Y-%m-%dT%H:%M:%S").to_string(),
            })
        })
    } else {
        months.and_then(date).map(|date| match unit {
            TimeUnit::Year => format!("{:04}", date.year()),
            _ => date.format("%Y-%m").to_string(),
        })
    };
    text.map_or(Json::Null, Json::from)
}

/// A duration in ISO 8601, in days and seconds; null for `NaT`.
fn timedelta(count: i64, unit: TimeUnit, step: u32) -> Json {
    if count == i64::MIN {
        return Json::Null;
    }
    let count = i128::from(count) * i128::from(step);
    let sign = if count < 0 { "-" } else { "" };
    let size = count.unsigned_abs();
    let Some(nanoseconds) = unit.nanoseconds() else {
        return Json::from(format!("{sign}P{size}{}", unit.code()));
    };
    let total = size * nanoseconds.unsigned_abs();
    let (days, rest) = (total / 86_400_000_000_000, total % 86_400_000_000_000);
    let fraction = match rest % 1_000_000_000 {
        0 => String::new(),
        nanoseconds => format!(".{nanoseconds:09}").trim_end_matches('0').to_owned(),
    };
    Json::from(format!("{sign}P{days}DT{}{fraction}S", rest / 1_000_000_000))
}
