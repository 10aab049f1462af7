//! The router with real backends: what it chooses, when another takes over, what it writes down, and what it never does.
//!
//! A backend that fails is one that really does: an engine that was stopped or never was, an interpreter that lacks a module.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../harness/engine.rs"]
mod engine;
#[path = "../harness/mod.rs"]
mod harness;
#[path = "../harness/strategies.rs"]
mod strategies;

mod direct;
mod docker;
mod fallback;
mod validation;
mod warm;

use std::fs;
use std::path::PathBuf;

use nsbox::config::{Config, Resolver};
use nsbox::event::{Event, EventType, Log};
use nsbox::outcome::{Backend, Outcome, Verdict};
use nsbox::router::Router;
use nsbox::sandbox::{Script, Watch};
use tempfile::TempDir;

/// A socket that no engine listens on.
const NO_ENGINE: (&str, &str) = ("DOCKER_HOST", "unix:///nowhere/docker.sock");

/// A folder with an event log.
struct Desk {
    folder: TempDir,
}

impl Desk {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn log(&self) -> Log {
        Log::open(self.path("events.log"))
    }

    /// A router of the library, with these keys of the configuration set.
    fn router(&self, keys: &[(&str, &str)]) -> Router {
        Router::new(config(keys), self.log())
    }

    fn events(&self) -> Vec<Event> {
        let text = fs::read_to_string(self.path("events.log")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    }

    /// The events' types, in order, but for those of this backend's coming and going.
    fn story(&self) -> Vec<EventType> {
        let of_pools = [EventType::PoolStarted, EventType::PoolStopped, EventType::PoolRecycled, EventType::PoolFailed];
        self.events().into_iter().map(|event| event.event_type).filter(|kind| !of_pools.contains(kind)).collect()
    }
}

/// A configuration of the library's, whose pool every interpreter can fill.
fn config(keys: &[(&str, &str)]) -> Config {
    let resolver = Resolver::new().flag("preload", "json", "--preload");
    let resolver = keys.iter().fold(resolver, |resolver, (key, value)| resolver.flag(*key, *value, *key));
    resolver.resolve().unwrap().config
}

fn run(router: &Router, script: impl Into<Script>) -> Outcome {
    router.run(script, Watch::default())
}

/// Fails unless a run ended so, and shows all of it then.
#[track_caller]
fn expect(outcome: &Outcome, verdict: Verdict, backend: impl Into<Option<Backend>>) {
    assert_eq!((outcome.verdict, outcome.backend), (verdict, backend.into()), "{outcome:#?}");
}
