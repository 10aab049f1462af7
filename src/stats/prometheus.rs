//! Statistics in the text format of Prometheus, version 0.0.4: times in seconds, names by its conventions.

use std::fmt::{Display, Write as _};

use super::{ALERTS, Report, STAGES};

impl Report {
    /// The text that Prometheus scrapes, for a file of the node exporter's textfile collector or an endpoint.
    ///
    /// Every label's value is one of nsbox's own words, so none needs escaping.
    #[must_use]
    pub fn to_prometheus(&self) -> String {
        let mut text = Text(String::new());
        text.family("nsbox_runs_total", "counter", "Runs, by the backend that they ended on and by verdict.");
        for count in &self.counts {
            let labels = [("backend", count.backend.as_str()), ("verdict", &count.verdict)];
            text.sample("nsbox_runs_total", &labels, count.runs);
        }
        text.family("nsbox_fallbacks_total", "counter", "Runs for which another backend was tried before.");
        text.sample("nsbox_fallbacks_total", &[], self.fallbacks);
        text.family("nsbox_fallback_ratio", "gauge", "Share of the runs that fell back.");
        text.sample("nsbox_fallback_ratio", &[], self.fallback_rate);
        text.family("nsbox_stage_seconds", "summary", "Time that runs spent in each stage; whole is their sum.");
        for (name, stage) in STAGES.iter().filter_map(|name| Some((*name, self.stages.get(name)?))) {
            for (quantile, ms) in [("0.5", stage.p50_ms), ("0.95", stage.p95_ms), ("0.99", stage.p99_ms)] {
                text.sample("nsbox_stage_seconds", &[("stage", name), ("quantile", quantile)], ms / 1000.0);
            }
            text.sample("nsbox_stage_seconds_sum", &[("stage", name)], stage.sum_ms / 1000.0);
            text.sample("nsbox_stage_seconds_count", &[("stage", name)], stage.count);
        }
        text.family("nsbox_alert", "gauge", "Whether a threshold of the configuration is passed.");
        for name in ALERTS {
            let raised = self.alerts.iter().any(|alert| alert.alert == name);
            text.sample("nsbox_alert", &[("alert", name)], u8::from(raised));
        }
        if let Some(log) = &self.log {
            text.family("nsbox_log_lines_total", "counter", "Lines of the event log.");
            text.sample("nsbox_log_lines_total", &[], log.lines);
            text.family("nsbox_log_malformed_lines_total", "counter", "Lines of the event log that are no events.");
            text.sample("nsbox_log_malformed_lines_total", &[], log.malformed);
        }
        text.0
    }
}

struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing into a string cannot fail.
        _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        _ = writeln!(self.0, "{name}{labels} {value}");
    }
}
