//! Statistics over runs: counts, the share that fell back, percentiles of each stage, and alerts.
//!
//! Beside the way of a run: fed with the events of a live router, with outcomes, or with a log that was written before
//! ([`Reading`]). One run is one closing event ([`EventType::closes_run`]) that has the outcome's id, verdict and timings.
//! Memory is bounded, whatever the number of runs: percentiles come from histograms and are within 0.1 %.

mod prometheus;
mod reading;

use std::collections::{BTreeMap, HashMap};

use hdrhistogram::Histogram;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::Alerts;
use crate::event::{Event, EventType};
use crate::outcome::{Backend, Outcome, Timings, Verdict};

pub use reading::{Error, Malformed, Reading};

/// The stages of a run, in its order; the last is the sum of the others.
pub const STAGES: [&str; 6] = ["check", "queue", "setup", "run", "teardown", "whole"];

/// No stage lasts longer, in milliseconds (31 years): what says so is wrong.
const LONGEST_MS: f64 = 1e12;
/// Nanoseconds in a millisecond: the histograms' unit.
const NS: f64 = 1e6;
/// How many durations wait for a histogram: one takes 100 KB, which a router of one run has no use for.
const FEW: usize = 32;

/// Figures of runs, growing run by run.
///
/// ```
/// use nsbox::config::Alerts;
/// use nsbox::outcome::{Backend, Outcome, Verdict};
/// use nsbox::stats::Statistics;
///
/// let mut statistics = Statistics::default();
/// let mut outcome = Outcome::new("01J", Verdict::Ok);
/// outcome.backend = Some(Backend::Namespace);
/// outcome.timings.run_ms = 12.5;
/// statistics.add_outcome(&outcome);
///
/// let report = statistics.report(&Alerts::default());
/// assert_eq!((report.runs, report.verdicts["ok"], report.backends["namespace"]), (1, 1, 1));
/// assert!((report.stages["run"].p95_ms - 12.5).abs() < 0.0125);
/// assert!(report.alerts.is_empty());
/// ```
#[derive(Debug, Clone, Default)]
pub struct Statistics {
    counts: HashMap<(Option<Backend>, Verdict), u64>,
    fallbacks: u64,
    /// When the first and the last run ended.
    span: Option<(Timestamp, Timestamp)>,
    stages: [Durations; STAGES.len()],
}

/// What one closing event or outcome says of a run.
struct Run {
    ended: Timestamp,
    backend: Option<Backend>,
    verdict: Verdict,
    timings: Timings,
    fell_back: bool,
}

impl Statistics {
    /// Counts the run that this event closes; any other event is none of its business.
    pub fn add(&mut self, event: &Event) {
        let timings = event.facts.get("timings").and_then(|value| Timings::deserialize(value).ok());
        if let (true, Some(_), Some(verdict), Some(timings)) =
            (event.event_type.closes_run(), &event.id, event.verdict, timings)
        {
            let attempts = event.facts.get("attempts").and_then(|value| value.as_array());
            self.count(&Run {
                ended: event.timestamp,
                backend: event.mode,
                verdict,
                timings,
                fell_back: fell_back(event.event_type, attempts.map_or(0, Vec::len)),
            });
        }
    }

    /// Counts a run that ended this moment.
    pub fn add_outcome(&mut self, outcome: &Outcome) {
        self.count(&Run {
            ended: Timestamp::now(),
            backend: outcome.backend,
            verdict: outcome.verdict,
            timings: outcome.timings,
            fell_back: !outcome.attempts.is_empty(),
        });
    }

    /// Counts a run that was recorded before; when it ended is not known.
    pub(crate) fn add_recorded(
        &mut self,
        backend: Option<Backend>,
        verdict: Verdict,
        timings: Timings,
        fell_back: bool,
    ) {
        self.count_figures(backend, verdict, timings, fell_back);
    }

    fn count(&mut self, run: &Run) {
        let (first, last) = self.span.unwrap_or((run.ended, run.ended));
        self.span = Some((first.min(run.ended), last.max(run.ended)));
        self.count_figures(run.backend, run.verdict, run.timings, run.fell_back);
    }

    fn count_figures(&mut self, backend: Option<Backend>, verdict: Verdict, timings: Timings, fell_back: bool) {
        *self.counts.entry((backend, verdict)).or_default() += 1;
        self.fallbacks += u64::from(fell_back);
        // Where nothing ran, the stages were not gone through, and their zeros would pass for speed.
        if backend.is_some() {
            for (durations, ms) in self.stages.iter_mut().zip(stages_of(timings)) {
                durations.add(ms);
            }
        }
    }

    /// Adds the runs of another.
    pub fn merge(&mut self, other: &Self) {
        for (key, count) in &other.counts {
            *self.counts.entry(*key).or_default() += count;
        }
        self.fallbacks += other.fallbacks;
        self.span = match (self.span, other.span) {
            (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
            (a, b) => a.or(b),
        };
        for (durations, more) in self.stages.iter_mut().zip(&other.stages) {
            durations.merge(more);
        }
    }

    /// The figures as they stand, judged by these thresholds.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts of runs are far below 2^52")]
    pub fn report(&self, alerts: &Alerts) -> Report {
        let counts = self.counts.iter().map(|((backend, verdict), runs)| Count {
            backend: backend.map_or_else(|| "none".to_owned(), |backend| word(&backend)),
            verdict: word(verdict),
            runs: *runs,
        });
        let mut counts: Vec<Count> = counts.collect();
        counts.sort_by(|a, b| (&a.backend, &a.verdict).cmp(&(&b.backend, &b.verdict)));
        let (mut backends, mut verdicts) = (BTreeMap::new(), BTreeMap::new());
        for Count { backend, verdict, runs } in &counts {
            *backends.entry(backend.clone()).or_default() += runs;
            *verdicts.entry(verdict.clone()).or_default() += runs;
        }
        let runs: u64 = self.counts.values().sum();
        let stages =
            STAGES.into_iter().zip(&self.stages).filter_map(|(name, durations)| Some((name, durations.stage()?)));
        let mut report = Report {
            runs,
            since: self.span.map(|(first, _)| first),
            until: self.span.map(|(_, last)| last),
            backends,
            verdicts,
            fallbacks: self.fallbacks,
            fallback_rate: self.fallbacks as f64 / runs.max(1) as f64,
            stages: stages.collect(),
            alerts: Vec::new(),
            log: None,
            counts,
        };
        report.judge(alerts);
        report
    }
}

/// Whether a run ended on another backend than the first that was tried.
fn fell_back(closing: EventType, attempts: usize) -> bool {
    attempts > 0 || closing == EventType::DirectFallbackSuccess
}

/// The milliseconds of each of [`STAGES`].
fn stages_of(timings: Timings) -> [f64; STAGES.len()] {
    let Timings { check_ms, queue_ms, setup_ms, run_ms, teardown_ms } = timings;
    let whole = check_ms + queue_ms + setup_ms + run_ms + teardown_ms;
    [check_ms, queue_ms, setup_ms, run_ms, teardown_ms, whole]
}

/// Whether these can be the timings of a run.
fn plausible(timings: Timings) -> bool {
    stages_of(timings).iter().all(|ms| (0.0..=LONGEST_MS).contains(ms))
}

/// The durations of one stage.
#[derive(Debug, Clone, Default)]
struct Durations {
    /// In nanoseconds, not yet in the histogram; fewer than [`FEW`].
    few: Vec<u64>,
    /// In nanoseconds, to three digits.
    histogram: Option<Histogram<u64>>,
    /// In milliseconds, exact.
    sum: f64,
}

impl Durations {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "held within the range")]
    fn add(&mut self, ms: f64) {
        let ms = if ms.is_nan() { 0.0 } else { ms.clamp(0.0, LONGEST_MS) };
        self.sum += ms;
        self.few.push((ms * NS) as u64);
        if self.few.len() == FEW {
            self.pour();
        }
    }

    /// Moves the few into the histogram.
    fn pour(&mut self) {
        if self.histogram.is_none() && !self.few.is_empty() {
            self.histogram = Histogram::new(3).ok();
        }
        if let Some(histogram) = &mut self.histogram {
            for ns in self.few.drain(..) {
                // It grows to hold the value; only one that no address space has room for would fail.
                histogram.record(ns).unwrap_or_default();
            }
        }
    }

    fn merge(&mut self, other: &Self) {
        self.pour();
        self.sum += other.sum;
        match (&mut self.histogram, &other.histogram) {
            // It fails where a value is out of the range of one that cannot grow; these can.
            (Some(mine), Some(more)) => mine.add(more).unwrap_or_default(),
            (mine @ None, more) => mine.clone_from(more),
            (Some(_), None) => {}
        }
        self.few.extend(&other.few);
        self.pour();
    }

    #[expect(clippy::cast_precision_loss, reason = "three digits are kept")]
    fn stage(&self) -> Option<Stage> {
        let mut all = self.clone();
        all.pour();
        let histogram = all.histogram?;
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / NS;
        Some(Stage {
            count: histogram.len(),
            mean_ms: self.sum / histogram.len() as f64,
            p50_ms: at(0.5),
            p95_ms: at(0.95),
            p99_ms: at(0.99),
            max_ms: at(1.0),
            sum_ms: self.sum,
        })
    }
}

/// What statistics say: the JSON of `nsbox stats --json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Runs.
    pub runs: u64,
    /// When the first of them ended; null where no time is known.
    pub since: Option<Timestamp>,
    /// When the last of them ended.
    pub until: Option<Timestamp>,
    /// Runs by the backend that they ended on; `none` where nothing ran.
    pub backends: BTreeMap<String, u64>,
    /// Runs by verdict.
    pub verdicts: BTreeMap<String, u64>,
    /// Runs for which a backend was tried before the one that they ended on.
    pub fallbacks: u64,
    /// Their share of all runs, from 0 to 1.
    pub fallback_rate: f64,
    /// The figures of each of [`STAGES`], over the runs that a backend ran; empty where there are none.
    pub stages: BTreeMap<&'static str, Stage>,
    /// The thresholds that were passed.
    pub alerts: Vec<Alert>,
    /// The log that was read, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<Reading>,
    /// Runs by backend and verdict together, for Prometheus.
    #[serde(skip)]
    counts: Vec<Count>,
}

#[derive(Debug, Clone, PartialEq)]
struct Count {
    backend: String,
    verdict: String,
    runs: u64,
}

/// The durations of one stage, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Stage {
    /// Runs that went through it.
    pub count: u64,
    /// The mean, exact.
    pub mean_ms: f64,
    /// The median; it and those below are within 0.1 %.
    pub p50_ms: f64,
    /// The 95th percentile.
    pub p95_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
    /// All together.
    #[serde(skip)]
    sum_ms: f64,
}

/// A threshold that was passed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Alert {
    /// The configuration's key below `alerts`: `fallback_rate` or `p95`.
    pub alert: &'static str,
    /// What was found: a share, or seconds.
    pub value: f64,
    /// What was allowed, in the same unit.
    pub threshold: f64,
    /// Both in words.
    pub message: String,
}

/// The names of all alerts.
const ALERTS: [&str; 2] = ["fallback_rate", "p95"];

impl Report {
    fn judge(&mut self, thresholds: &Alerts) {
        let (rate, most) = (self.fallback_rate, thresholds.fallback_rate);
        if rate > most {
            self.alerts.push(Alert {
                alert: ALERTS[0],
                value: rate,
                threshold: most,
                message: format!(
                    "{:.1} % of the runs fell back to another backend, over {:.1} % (alerts.fallback_rate)",
                    rate * 100.0,
                    most * 100.0
                ),
            });
        }
        let p95 = self.stages.get("whole").map_or(0.0, |whole| whole.p95_ms / 1000.0);
        let most = thresholds.p95.as_secs_f64();
        if p95 > most {
            self.alerts.push(Alert {
                alert: ALERTS[1],
                value: p95,
                threshold: most,
                message: format!(
                    "the 95th percentile of a run's whole time is {p95:.3} s, over {most:.3} s (alerts.p95)"
                ),
            });
        }
    }
}

/// A choice as JSON spells it.
pub(crate) fn word(choice: &impl Serialize) -> String {
    serde_json::to_value(choice).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}
