//! A progress bar on a terminal, a line for each stage elsewhere; nothing with `--quiet`.

use std::io::{self, IsTerminal};
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::image::Progress;

/// Shows how far an import or a build is, on stderr.
pub(super) struct Bar {
    quiet: bool,
    bar: Mutex<ProgressBar>,
}

impl Bar {
    pub(super) fn new(quiet: bool) -> Self {
        Self { quiet, bar: Mutex::new(ProgressBar::hidden()) }
    }

    /// Takes the bar away.
    pub(super) fn clear(&self) {
        if let Ok(bar) = self.bar.lock() {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Bar {
    fn begin(&self, what: &str, total: Option<u64>) {
        if self.quiet {
            return;
        }
        if !io::stderr().is_terminal() {
            super::complain(what);
            return;
        }
        let template = match total {
            Some(_) => "{spinner} {msg} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec}",
            None => "{spinner} {msg} {decimal_bytes} {elapsed}",
        };
        let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new).with_message(what.to_owned());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        if let Ok(mut shown) = self.bar.lock() {
            shown.finish_and_clear();
            *shown = bar;
        }
    }

    fn advance(&self, bytes: u64) {
        if let Ok(bar) = self.bar.lock() {
            bar.inc(bytes);
        }
    }
}
