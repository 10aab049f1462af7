//! The outcome's JSON, its schema and its exit statuses.

use std::path::Path;

use super::*;

fn full() -> Outcome {
    let mut outcome = Outcome::new("run-1", Verdict::Error);
    outcome.exit_code = Some(3);
    outcome.stdout = "héllo\n".into();
    outcome.backend = Some(Backend::AstOnly);
    outcome.image = Some("host".into());
    outcome.enforced.seccomp = Layer::applied("default");
    outcome.enforced.cgroup.memory = Layer::missing("2g", "no cgroup can be written to");
    outcome.degraded = outcome.enforced.degraded();
    outcome.violations = vec![Violation { syscall: "ptrace".into(), count: 2 }];
    outcome.artifacts = vec![Artifact { path: "a/b.csv".into(), size: 7 }];
    outcome.attempts =
        vec![Attempt { backend: Backend::Namespace, verdict: Verdict::Unavailable, why: "no user namespaces".into() }];
    outcome.usage = Usage { wall_ms: 1.5, peak_memory_bytes: Some(1 << 40), ..Usage::default() };
    outcome.ended = Ended::Exited;
    outcome.attach(Document {
        result: Some(Value::List(vec![Value::Int(1), Value::Float(f64::NAN), Value::Bytes(vec![255])])),
        metrics: Some(Value::Dict(vec![("sharpe".into(), Value::Float(1.25))])),
        notes: vec!["report: builtins.generator has no form outside Python".into()],
        error: Some(ScriptError { kind: "ValueError".into(), message: "no".into(), traceback: String::new() }),
        ..Document::default()
    });
    outcome
}

#[test]
fn outcome_json_comes_back_the_same() {
    let json = serde_json::to_value(full()).unwrap();
    let back: Outcome = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(serde_json::to_value(&back).unwrap(), json);
    assert_eq!(json["result"], serde_json::json!([1, null, "/w=="]));
    assert_eq!(json["backend"], "ast-only");
    assert_eq!(back.stdout, full().stdout);
}

#[test]
fn outcome_message_says_what_json_does_not_hold() {
    let expected = "ValueError: no; report: builtins.generator has no form outside Python; \
                    result: 1 number that is NaN or infinite is null in JSON";
    assert_eq!(full().message, expected);
}

#[test]
fn outcome_json_refuses_unknown_fields() {
    for pointer in ["", "/usage", "/timings", "/enforced", "/enforced/cgroup", "/enforced/root", "/attempts/0"] {
        let mut json = serde_json::to_value(full()).unwrap();
        json.pointer_mut(pointer).unwrap()["surprise"] = 1.into();
        assert!(serde_json::from_value::<Outcome>(json).is_err(), "{pointer}");
    }
}

#[test]
fn outcome_json_fits_its_schema() {
    let validator = jsonschema::validator_for(&Outcome::json_schema()).unwrap();
    let mut json = serde_json::to_value(full()).unwrap();
    assert!(validator.validate(&json).is_ok());
    json["verdict"] = "fine".into();
    assert!(validator.validate(&json).is_err());
}

#[test]
fn published_schema_is_the_generated_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/outcome.schema.json");
    let generated = serde_json::to_string_pretty(&Outcome::json_schema()).unwrap() + "\n";
    if std::env::var_os("NSBOX_TEST_BLESS").is_some() {
        std::fs::write(&path, &generated).unwrap();
    }
    let published = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(published == generated, "{} is out of date: run with NSBOX_TEST_BLESS=1", path.display());
}

#[test]
fn stdout_that_is_not_utf8_is_replaced_in_json_alone() {
    let mut outcome = Outcome::new("run-2", Verdict::Ok);
    outcome.stdout = vec![b'a', 0xff, b'b'];
    assert_eq!(serde_json::to_value(&outcome).unwrap()["stdout"], "a\u{fffd}b");
}

#[test]
fn exit_status_follows_the_verdict() {
    let cases = [
        (Verdict::Ok, Some(0), None, 0),
        (Verdict::Error, Some(3), None, 3),
        (Verdict::Timeout, None, Some(9), 124),
        (Verdict::Oom, None, Some(9), 137),
        (Verdict::Signal, None, Some(11), 139),
        (Verdict::Violation, None, Some(31), 159),
        (Verdict::OutputLimit, Some(0), None, 122),
        (Verdict::Rejected, None, None, 126),
        (Verdict::Unavailable, None, None, 125),
        (Verdict::Cancelled, None, Some(9), 130),
        (Verdict::Lost, None, None, 121),
    ];
    for (verdict, exit_code, signal, status) in cases {
        assert_eq!(verdict.exit_status(exit_code, signal), status, "{verdict:?}");
    }
}

/// Every layer in force.
fn complete() -> Enforced {
    let layer = || Layer::applied("yes");
    Enforced {
        namespaces: layer(),
        user_map: layer(),
        root: layer(),
        capabilities: layer(),
        no_new_privs: layer(),
        seccomp: layer(),
        landlock: layer(),
        cgroup: Cgroup { version: Some(2), memory: layer(), pids: layer(), cpu: layer() },
        rlimits: layer(),
        memfd_noexec: layer(),
    }
}

#[test]
fn degraded_follows_the_required_layers_alone() {
    let gone = || Layer::missing("yes", "not here");
    assert!(!complete().degraded());
    assert!(!Enforced { landlock: gone(), memfd_noexec: gone(), ..complete() }.degraded());
    assert!(Enforced { seccomp: gone(), ..complete() }.degraded());
    assert!(Enforced { root: Layer::default(), ..complete() }.degraded());
    assert!(Enforced { rlimits: gone(), ..complete() }.degraded());
    assert!(Enforced { cgroup: Cgroup { cpu: gone(), ..complete().cgroup }, ..complete() }.degraded());
    assert!(!Enforced { cgroup: Cgroup { cpu: Layer::default(), ..complete().cgroup }, ..complete() }.degraded());
}
