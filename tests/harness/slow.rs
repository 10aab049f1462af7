//! `NSBOX_TEST_SLOW=N` says that this machine is about N times as slow as one of its own; `tests/vm/run` sets it, for it
//! emulates one. It stretches how long a test waits for what must come to pass, how long a busy script is looked at, and the
//! limits of time in whose way nothing may come: never how far a run may go over its limit.

use std::env;
use std::time::Duration;

/// So long on a machine of its own; N times as long here.
pub fn patiently(duration: Duration) -> Duration {
    let factor = env::var("NSBOX_TEST_SLOW")
        .map_or(1, |text| text.parse().unwrap_or_else(|e| panic!("NSBOX_TEST_SLOW={text}: {e}")));
    duration * factor
}
