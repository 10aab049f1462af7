//! Inputs that are values, on every backend: what a script finds, that it may write to it, that nobody else sees that, what
//! it costs, and what is refused.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../harness/engine.rs"]
mod engine;
#[path = "../harness/mod.rs"]
mod harness;
#[path = "../harness/python.rs"]
mod python;
#[path = "../harness/strategies.rs"]
mod strategies;

mod backends;
mod cost;
mod docker;
mod hidden;
mod plain;
mod refused;
mod tables;

use std::path::{Path, PathBuf};

use nsbox::config::{Config, Resolver};
use nsbox::event::Log;
use nsbox::outcome::{Backend, Outcome, Value, Verdict};
use nsbox::pool::Pool;
use nsbox::router::Router;
use nsbox::sandbox::{Sandbox, Script, Watch};

/// An interpreter without numpy.
const BARE: &str = "/usr/bin/python3";

fn config(python: &Path, keys: &[(&str, &str)]) -> Config {
    let resolver = Resolver::new().flag("python", python.display().to_string(), "--python");
    let resolver = keys.iter().fold(resolver, |resolver, (key, value)| resolver.flag(*key, *value, *key));
    resolver.resolve().unwrap().config
}

/// A way to run a script.
enum Way {
    Cold(Box<Sandbox>),
    Warm(Pool),
    Routed(Backend, Box<Router>),
    /// `ast-only` on an interpreter that every user may read, which is shown this folder of packages.
    AstOnly(Box<Router>, Option<PathBuf>),
}

impl Way {
    fn cold(python: &Path, keys: &[(&str, &str)]) -> Self {
        Self::Cold(Box::new(Sandbox::new(config(python, keys)).unwrap()))
    }

    fn warm(python: &Path, preload: &str, keys: &[(&str, &str)]) -> Self {
        let keys = [&[("preload", preload)], keys].concat();
        Self::Warm(Pool::builder(config(python, &keys)).slots(2).build().unwrap())
    }

    /// All but Docker, which has an interpreter of its own: of this interpreter, with these packages.
    fn all(python: &Path, packages: Option<&Path>, keys: &[(&str, &str)]) -> Vec<Self> {
        let router = |python, own: &[(&str, &str)]| {
            let config = config(python, &[own, keys].concat());
            Box::new(Router::new(config, Log::off()))
        };
        let path = packages.map_or_else(|| "A=B".to_owned(), |packages| format!("PYTHONPATH={}", packages.display()));
        let ast_only = router(BARE.as_ref(), &[("backend", "ast-only"), ("env", &path)]);
        vec![
            Self::cold(python, keys),
            Self::warm(python, if packages.is_some() { "pandas,numpy" } else { "json" }, keys),
            Self::AstOnly(ast_only, packages.map(Path::to_owned)),
            Self::Routed(Backend::Direct, router(python, &[("enabled", "false")])),
        ]
    }

    fn backend(&self) -> Backend {
        match self {
            Self::Cold(_) | Self::Warm(_) => Backend::Namespace,
            Self::Routed(backend, _) => *backend,
            Self::AstOnly(..) => Backend::AstOnly,
        }
    }

    fn run(&self, script: Script) -> Outcome {
        match self {
            Self::Cold(sandbox) => sandbox.run(script),
            Self::Warm(pool) => pool.run(script, Watch::default()),
            Self::Routed(_, router) => router.run(script, Watch::default()),
            Self::AstOnly(router, packages) => {
                let script = packages.iter().fold(script, |script, packages| script.input("libs", packages));
                router.run(script, Watch::default())
            }
        }
    }

    /// The result of a script that must end well here.
    #[track_caller]
    fn result(&self, script: Script) -> Value {
        let outcome = self.run(script);
        assert_eq!((outcome.verdict, outcome.backend), (Verdict::Ok, Some(self.backend())), "{outcome:#?}");
        outcome.result.unwrap_or(Value::Null)
    }
}

/// A value, as Python's own text of it would be read.
fn text(text: &str) -> Value {
    Value::from(text)
}

fn list(items: impl IntoIterator<Item = Value>) -> Value {
    Value::List(items.into_iter().collect())
}
