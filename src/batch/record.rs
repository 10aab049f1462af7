//! The record of one iteration: a line of the results, and what a table needs of it.

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::outcome::{Backend, Outcome, Timings, Usage, Verdict};

/// Numbers that are taken from one script's `metrics`: it may hand back millions.
const MAX_METRICS: usize = 256;
/// The longest name of one, in bytes.
const MAX_NAME: usize = 128;

/// One iteration: a line of the results.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Record {
    /// Its number, from 0.
    pub iteration: u64,
    /// The path of its strategy, as it was given.
    pub strategy: String,
    /// How it ended.
    pub outcome: Outcome,
}

impl Record {
    /// The record as a line of JSON, with its newline.
    ///
    /// # Errors
    /// Never: everything in an outcome has a form in JSON.
    pub fn to_line(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        Ok(line)
    }
}

/// What is kept of a record: it does not grow with what the script printed and left.
///
/// It is always read from the record's line, so that a loop that was resumed knows no more and no less of its earlier records than of
/// its own: numbers that are NaN or infinite are not in JSON, so not here.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The iteration, from 0.
    pub iteration: u64,
    /// The path of its strategy.
    pub strategy: String,
    /// The outcome's id.
    pub id: String,
    /// The outcome's verdict.
    pub verdict: Verdict,
    /// The backend that it ended on.
    pub backend: Option<Backend>,
    /// Whether it ran with less around it than promised.
    pub degraded: bool,
    /// Whether another backend was tried before.
    pub fell_back: bool,
    /// What it used.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
    /// The numbers among the script's `metrics`, those in dicts as `outer.inner`; the first 256 of them.
    pub metrics: Vec<(String, f64)>,
}

impl Row {
    /// Reads a line of the results.
    ///
    /// # Errors
    /// When it is no record.
    pub fn read(line: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Line {
            iteration: u64,
            strategy: String,
            outcome: Part,
        }
        #[derive(Deserialize)]
        struct Part {
            id: String,
            verdict: Verdict,
            backend: Option<Backend>,
            degraded: bool,
            usage: Usage,
            timings: Timings,
            attempts: Vec<IgnoredAny>,
            metrics: Option<Json>,
        }
        let Line { iteration, strategy, outcome } = serde_json::from_slice(line)?;
        let mut metrics = Vec::new();
        if let Some(Json::Object(entries)) = &outcome.metrics {
            collect("", entries, &mut metrics);
        }
        Ok(Self {
            iteration,
            strategy,
            id: outcome.id,
            verdict: outcome.verdict,
            backend: outcome.backend,
            degraded: outcome.degraded,
            fell_back: !outcome.attempts.is_empty(),
            usage: outcome.usage,
            timings: outcome.timings,
            metrics,
        })
    }

    /// A metric by its name.
    #[must_use]
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.metrics.iter().find(|(other, _)| other == name).map(|(_, number)| *number)
    }
}

/// Takes the numbers of a dict, and of the dicts in it.
fn collect(prefix: &str, entries: &serde_json::Map<String, Json>, metrics: &mut Vec<(String, f64)>) {
    for (name, value) in entries {
        let name = format!("{prefix}{name}");
        if metrics.len() >= MAX_METRICS {
            return;
        }
        match value {
            _ if name.len() > MAX_NAME => {}
            Json::Object(inner) => collect(&format!("{name}."), inner, metrics),
            // A dict may hold a name that is also a way into another one: the first counts.
            Json::Number(number) if !metrics.iter().any(|(other, _)| *other == name) => {
                metrics.extend(number.as_f64().map(|number| (name, number)));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::outcome::Value;

    fn dict(entries: Vec<(&str, Value)>) -> Value {
        Value::Dict(entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    fn row(metrics: Value) -> Row {
        let mut outcome = Outcome::new("01J", Verdict::Ok);
        outcome.metrics = Some(metrics);
        let line = Record { iteration: 3, strategy: "a.py".to_owned(), outcome }.to_line().unwrap();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        Row::read(&line).unwrap()
    }

    #[test]
    fn row_has_the_numbers_of_metrics_alone() {
        let inner = dict(vec![("loss", Value::Float(-2.5)), ("name", Value::Str("x\ny".into()))]);
        let row = row(dict(vec![
            ("sharpe_ratio", Value::Float(1.5)),
            ("trades", Value::Int(7)),
            ("undefined", Value::Float(f64::NAN)),
            ("infinite", Value::Float(f64::INFINITY)),
            ("won", Value::Bool(true)),
            ("list", Value::List(vec![Value::Int(1)])),
            ("worst.loss", Value::Int(9)),
            ("worst", inner),
        ]));
        let expected = [("sharpe_ratio", 1.5), ("trades", 7.0), ("worst.loss", 9.0)];
        assert_eq!(row.metrics, expected.map(|(name, number)| (name.to_owned(), number)));
        assert_eq!((row.metric("trades"), row.metric("undefined")), (Some(7.0), None));
    }

    #[test]
    fn row_of_a_script_without_end_stays_small() {
        let many = (0..100_000).map(|i| (format!("m{i}"), Value::Int(i))).collect();
        assert_eq!(row(Value::Dict(many)).metrics.len(), MAX_METRICS);
        assert!(row(dict(vec![(&"x".repeat(1000), Value::Int(1))])).metrics.is_empty());
        assert!(row(Value::Int(1)).metrics.is_empty());
    }
}
