//! Sizes, durations and counts as people write them: `512m`, `300s`, `16k`.
//!
//! Used by the configuration's keys and by the command's flags, so both read and refuse the same words. A unit is never
//! guessed: a bare number is refused, but for 0.

use std::time::Duration;

/// Units of size, largest first; binary, as `tmpfs` and Docker read them.
const SIZES: [(&str, u64); 5] = [("t", 1 << 40), ("g", 1 << 30), ("m", 1 << 20), ("k", 1 << 10), ("b", 1)];

/// Units of time in milliseconds, largest first.
const TIMES: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Multiples of a count, largest first; `k` is 1024, as in the kernel's `nr_inodes=16k`.
const COUNTS: [(&str, u64); 3] = [("m", 1 << 20), ("k", 1 << 10), ("", 1)];

/// Why a size, a duration or a count could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnitError {
    /// The text does not start with a whole number.
    #[error("`{text}` does not start with a whole number; write it like `{example}`")]
    Number {
        /// What was given.
        text: String,
        /// A value that would do.
        example: &'static str,
    },
    /// A number with no unit.
    #[error("`{text}` has no unit; units are {units}, as in `{example}`")]
    Missing {
        /// What was given.
        text: String,
        /// The units that exist.
        units: &'static str,
        /// A value that would do.
        example: &'static str,
    },
    /// A unit that does not exist.
    #[error("`{text}` has an unknown unit; units are {units}, as in `{example}`")]
    Unknown {
        /// What was given.
        text: String,
        /// The units that exist.
        units: &'static str,
        /// A value that would do.
        example: &'static str,
    },
    /// More than 64 bits can hold.
    #[error("`{text}` is too large")]
    Overflow {
        /// What was given.
        text: String,
    },
}

impl UnitError {
    /// A stable name of the error, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Number { .. } => "config.unit.number",
            Self::Missing { .. } => "config.unit.missing",
            Self::Unknown { .. } => "config.unit.unknown",
            Self::Overflow { .. } => "config.unit.overflow",
        }
    }
}

/// Reads a size in bytes: `512m`, `2g`, `1048576b`, `0`. Units are binary, in either case.
///
/// # Errors
/// [`UnitError`] when the number or its unit is missing, unknown or too large.
///
/// ```
/// assert_eq!(nsbox::config::parse_size("512m"), Ok(512 << 20));
/// assert!(nsbox::config::parse_size("512").is_err());
/// ```
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    parse(text, &SIZES, "b, k, m, g and t", "512m")
}

/// Reads a duration: `300s`, `500ms`, `5m`, `2h`, `0`.
///
/// # Errors
/// [`UnitError`] when the number or its unit is missing, unknown or too large.
///
/// ```
/// # use std::time::Duration;
/// assert_eq!(nsbox::config::parse_duration("500ms"), Ok(Duration::from_millis(500)));
/// assert!(nsbox::config::parse_duration("300").is_err());
/// ```
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    parse(text, &TIMES, "ms, s, m and h", "300s").map(Duration::from_millis)
}

/// Reads a count, which needs no unit: `64`, `16k` (16,384), `1m` (1,048,576).
///
/// # Errors
/// [`UnitError`] when the number is missing or too large, or its multiple unknown.
///
/// ```
/// assert_eq!(nsbox::config::parse_count("16k"), Ok(16_384));
/// ```
pub fn parse_count(text: &str) -> Result<u64, UnitError> {
    parse(text, &COUNTS, "k and m, or none", "16k")
}

/// A size in the largest unit that holds it whole: `2g`, `1536m`, `1b`.
pub(crate) fn size_text(bytes: u64) -> String {
    text(bytes, &SIZES)
}

/// A duration in the largest unit that holds it whole, cut to milliseconds: `5m` is `300s` for its reader's sake.
pub(crate) fn duration_text(time: Duration) -> String {
    // Seconds are what the old system and most people count limits in, so minutes and hours are not written.
    text(u64::try_from(time.as_millis()).unwrap_or(u64::MAX), &TIMES[2..])
}

fn parse(text: &str, table: &[(&str, u64)], units: &'static str, example: &'static str) -> Result<u64, UnitError> {
    let owned = || text.to_owned();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    if digits.is_empty() || unit.starts_with(['.', ',', '_']) {
        return Err(UnitError::Number { text: owned(), example });
    }
    let number: u64 = digits.parse().map_err(|_| UnitError::Overflow { text: owned() })?;
    match table.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) {
        Some((_, factor)) => number.checked_mul(*factor).ok_or_else(|| UnitError::Overflow { text: owned() }),
        None if !unit.is_empty() => Err(UnitError::Unknown { text: owned(), units, example }),
        // Nothing is nothing in every unit.
        None if number == 0 => Ok(0),
        None => Err(UnitError::Missing { text: owned(), units, example }),
    }
}

fn text(value: u64, table: &[(&str, u64)]) -> String {
    let whole = table.iter().find(|(_, factor)| value >= *factor && value.is_multiple_of(*factor));
    let (unit, factor) = whole.or(table.last()).copied().unwrap_or(("", 1));
    format!("{}{unit}", value / factor)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn size_reads_every_unit_in_either_case() {
        for (text, bytes) in [
            ("0", 0),
            ("0m", 0),
            ("1b", 1),
            ("1048576b", 1 << 20),
            ("16k", 16 << 10),
            ("512m", 512 << 20),
            ("512M", 512 << 20),
            ("2g", 2 << 30),
            ("1t", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn size_refuses_what_it_would_have_to_guess() {
        for (text, code) in [
            ("512", "config.unit.missing"),
            ("512mb", "config.unit.unknown"),
            ("512MiB", "config.unit.unknown"),
            ("512 m", "config.unit.unknown"),
            ("512m ", "config.unit.unknown"),
            ("1.5g", "config.unit.number"),
            ("1_000k", "config.unit.number"),
            ("-1m", "config.unit.number"),
            ("+1m", "config.unit.number"),
            ("m", "config.unit.number"),
            ("", "config.unit.number"),
            ("١m", "config.unit.number"),
            ("99999999999999999999b", "config.unit.overflow"),
            ("16777216t", "config.unit.overflow"),
        ] {
            assert_eq!(parse_size(text).map_err(|e| e.code()), Err(code), "{text}");
        }
    }

    #[test]
    fn size_error_names_the_units_and_an_example() {
        let message = parse_size("512").unwrap_err().to_string();
        assert_eq!(message, "`512` has no unit; units are b, k, m, g and t, as in `512m`");
    }

    #[test]
    fn duration_reads_every_unit() {
        for (text, ms) in [("0", 0), ("500ms", 500), ("300s", 300_000), ("5m", 300_000), ("2h", 7_200_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["300", "1.5s", "3 s", "1d", "1us", "s", ""] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn count_reads_multiples_and_bare_numbers() {
        assert_eq!(parse_count("64"), Ok(64));
        assert_eq!(parse_count("16k"), Ok(16_384));
        assert_eq!(parse_count("16g").map_err(|e| e.code()), Err("config.unit.unknown"));
    }

    proptest! {
        #[test]
        fn size_text_reads_back(bytes: u64) {
            prop_assert_eq!(parse_size(&size_text(bytes)), Ok(bytes));
        }

        #[test]
        fn duration_text_reads_back(ms: u64) {
            let time = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&duration_text(time)), Ok(time));
        }

        #[test]
        fn unit_parsers_never_panic(text: String) {
            let outcomes = (parse_size(&text), parse_duration(&text), parse_count(&text));
            prop_assert!(text.starts_with(|c: char| c.is_ascii_digit()) || outcomes.0.is_err());
        }
    }
}
