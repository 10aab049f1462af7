//! The configuration as its users meet it: files, environment, flags, the old system's block, and every way to be wrong.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod round_trip;

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nsbox::config::{Config, Docker, Error, Origin, Resolved, Resolver};
use nsbox::outcome::{Backend, Verdict};
use serde_json::Value;

type Vars = &'static [(&'static str, &'static str)];

fn resolve_at(folder: &Path, text: &str, vars: &[(&str, &str)]) -> Result<Resolved, Error> {
    let path = folder.join("nsbox.yaml");
    fs::write(&path, text).unwrap();
    Resolver::new().file(path).env(vars.iter().copied()).resolve()
}

fn resolve(text: &str, vars: &[(&str, &str)]) -> Result<Resolved, Error> {
    resolve_at(tempfile::tempdir().unwrap().path(), text, vars)
}

/// The configuration that a file gives, but for the event log's path, which counts from the file's folder.
fn config(text: &str, vars: &[(&str, &str)]) -> Config {
    resolve(text, vars).unwrap_or_else(|e| panic!("{}", chain(&e))).config
}

/// An error as it is printed, without the temporary folder.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    let start = text.find("/nsbox.yaml").filter(|_| text.starts_with('/')).map_or(0, |at| at + 1);
    text.split_off(start)
}

fn refusal(text: &str, vars: &[(&str, &str)]) -> (String, &'static str) {
    let error = resolve(text, vars).expect_err(text);
    (chain(&error), error.code())
}

const OLD_BLOCK: &str = r#"sandbox:
  enabled: ${SANDBOX_ENABLED:true}
  fallback_to_direct: true
  docker:
    image: "${DOCKER_IMAGE:finlab-sandbox:latest}"
    memory_limit: "${DOCKER_MEMORY_LIMIT:2g}"
    cpu_count: ${DOCKER_CPU_LIMIT:0.5}
    timeout_seconds: ${DOCKER_TIMEOUT:300}
"#;

#[test]
fn old_block_loads_unchanged() {
    let resolved = resolve(OLD_BLOCK, &[]).unwrap();
    let expected = Config {
        fallback: vec![Backend::AstOnly],
        fallback_on: vec![Verdict::Unavailable, Verdict::Timeout, Verdict::Lost],
        docker: Docker { image: "finlab-sandbox:latest".into() },
        ..Config::default()
    };
    assert_eq!(resolved.config, expected);
    assert_eq!(resolved.warnings.len(), 1);
    assert!(resolved.warnings[0].contains("may have run already is run again"), "{}", resolved.warnings[0]);
    assert!(matches!(resolved.origin("limits.timeout"), Origin::File { line: 8, .. }));
    assert!(matches!(resolved.origin("fallback_on"), Origin::File { line: 3, .. }));
}

#[test]
fn old_block_takes_its_variables() {
    let vars: Vars = &[
        ("SANDBOX_ENABLED", "False"),
        ("DOCKER_IMAGE", "other:1"),
        ("DOCKER_MEMORY_LIMIT", "512M"),
        ("DOCKER_CPU_LIMIT", "2"),
        ("DOCKER_TIMEOUT", "1.5"),
    ];
    let config = config(OLD_BLOCK, vars);
    assert!(!config.enabled);
    assert_eq!(config.docker.image, "other:1");
    assert_eq!(config.limits.memory, 512 << 20);
    assert_eq!(config.limits.cpus, 2.0);
    assert_eq!(config.limits.timeout, Duration::from_millis(1500));
}

#[test]
fn old_block_without_its_wrapper_or_quotes_loads_too() {
    let config =
        config("enabled: true\ndocker: {image: a, memory_limit: 1g, cpu_count: 1, timeout_seconds: 60}\n", &[]);
    assert_eq!((config.limits.memory, config.limits.cpus), (1 << 30, 1.0));
    assert_eq!(config.limits.timeout, Duration::from_secs(60));
}

#[test]
fn old_variables_mean_nothing_without_a_file() {
    let vars = [("SANDBOX_ENABLED", "false"), ("DOCKER_MEMORY_LIMIT", "16m")];
    assert_eq!(Resolver::new().env(vars).resolve().unwrap().config, Config::default());
}

#[test]
fn fallback_to_direct_widens_only_where_nobody_says_otherwise() {
    let on = |text: &str, vars: Vars| config(text, vars).fallback_on;
    let narrow = vec![Verdict::Unavailable];
    assert_eq!(on("sandbox: {fallback_to_direct: true, fallback_on: [unavailable]}", &[]), narrow);
    assert_eq!(on("fallback_to_direct: true", &[("NSBOX_FALLBACK_ON", "unavailable")]), narrow);
    assert_eq!(on("fallback_to_direct: true", &[("NSBOX_FALLBACK", "ast-only")]), narrow);
    assert_eq!(on("fallback: [ast-only]", &[]), narrow);
    let off = resolve("fallback_to_direct: false", &[]).unwrap();
    assert_eq!((off.config.fallback, off.config.fallback_on, off.warnings), (vec![], narrow, vec![]));
}

#[test]
fn sources_win_in_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nsbox.yaml");
    fs::write(&path, "limits:\n  memory: 100m\n  pids: 10\n  disk: 10m\n").unwrap();
    let resolved = Resolver::new()
        .env([("NSBOX_CONFIG", path.to_str().unwrap()), ("NSBOX_LIMITS_MEMORY", "200m"), ("NSBOX_LIMITS_PIDS", "20")])
        .flag("limits.memory", "300m", "--memory")
        .resolve()
        .unwrap();
    let limits = &resolved.config.limits;
    assert_eq!((limits.memory, limits.pids, limits.disk, limits.open_files), (300 << 20, 20, 10 << 20, 1024));
    assert_eq!(resolved.origin("limits.memory"), Origin::Flag { name: "--memory".into() });
    assert_eq!(resolved.origin("limits.pids"), Origin::Env { name: "NSBOX_LIMITS_PIDS".into() });
    assert_eq!(resolved.origin("limits.disk"), Origin::File { path, line: 4, column: 3 });
    assert_eq!(resolved.origin("limits.open_files"), Origin::BuiltIn);
}

#[test]
fn current_folder_gives_no_orders() {
    const INSIDE: &str = "NSBOX_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        assert_eq!(Resolver::new().env([("NSBOX_CONFIG", "")]).resolve().unwrap().config, Config::default());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for name in ["nsbox.yaml", "nsbox.yml", ".nsbox.yaml", "config/default.yaml"] {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "enabled: false").unwrap();
    }
    // In a process of its own: the current folder is shared by all threads.
    let inside = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "current_folder_gives_no_orders"])
        .current_dir(&folder)
        .env(INSIDE, "1")
        .output()
        .unwrap();
    assert!(inside.status.success() && String::from_utf8_lossy(&inside.stdout).contains("1 passed"), "{inside:?}");
}

#[test]
fn file_of_comments_sets_nothing() {
    for text in
        ["", "\n", "# a comment\n\n  # another", "{}", "limits:\n  # memory: 1g\n", "sandbox:\n", "---\n", "\u{feff}"]
    {
        assert_eq!(config(text, &[]), Config::default(), "{text:?}");
    }
}

#[test]
fn paths_count_from_the_folder_of_their_file() {
    let folder = tempfile::tempdir().unwrap();
    let text = "policy: p.yaml\nseccomp: ./s.json\nimage: roots/a\nevent_log: /var/log/x\npython: python3.12\n";
    let config = resolve_at(folder.path(), text, &[]).unwrap().config;
    let at = |name: &str| folder.path().join(name);
    assert_eq!(config.policy, Some(at("p.yaml")));
    assert_eq!(Path::new(&config.seccomp), at("./s.json"));
    assert_eq!(Path::new(&config.image), at("roots/a"));
    assert_eq!(config.event_log, Some(PathBuf::from("/var/log/x")));
    assert_eq!(config.python, Some(PathBuf::from("python3.12")));
    let flag =
        Resolver::new().flag("policy", "p.yaml", "--policy").flag("image", "sandbox", "--image").resolve().unwrap();
    assert_eq!((flag.config.policy, flag.config.image.as_str()), (Some("p.yaml".into()), "sandbox"));
}

#[test]
fn lists_and_variables_come_from_any_source() {
    let config = config(
        "fallback: [docker, ast-only]\nimage: sandbox\nenv: {TZ: Asia/Taipei, A: '${X:b}'}\npreload: []\n",
        &[("NSBOX_FALLBACK_ON", "unavailable, lost"), ("NSBOX_ENV", "B=1=2")],
    );
    assert_eq!(config.fallback, [Backend::Docker, Backend::AstOnly]);
    assert_eq!(config.fallback_on, [Verdict::Unavailable, Verdict::Lost]);
    let env = [("A", "b"), ("B", "1=2"), ("TZ", "Asia/Taipei")];
    assert_eq!(config.env, env.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    assert!(config.preload.is_empty());
    let flags = Resolver::new().flag("env", "A=1", "--env").flag("env", "B=", "--env").flag("env", "A=2", "--env");
    let env = flags.resolve().unwrap().config.env;
    assert_eq!(env, [("A", "2"), ("B", "")].map(|(k, v)| (k.to_owned(), v.to_owned())).into());
}

#[test]
fn wrong_file_is_told_with_place_key_and_way_out() {
    let cases: &[(&str, Vars, &str, &str)] = &[
        (
            "limits:\n  memroy: 1g\n",
            &[],
            "config.unknown-key",
            "nsbox.yaml:2:3: unknown key `limits.memroy`; did you mean `limits.memory`?",
        ),
        (
            "memory: 1g",
            &[],
            "config.unknown-key",
            "nsbox.yaml:1:1: unknown key `memory`; did you mean `limits.memory`?",
        ),
        (
            "sandbox:\n  docker:\n    memory: 1g",
            &[],
            "config.unknown-key",
            "nsbox.yaml:3:5: unknown key `sandbox.docker.memory`; did you mean `limits.memory`?",
        ),
        (
            "frobnicate: 1",
            &[],
            "config.unknown-key",
            "nsbox.yaml:1:1: unknown key `frobnicate`; `nsbox config show` lists every key",
        ),
        ("sandbox: {sandbox: {}}", &[], "config.unknown-key", "nsbox.yaml:1:11: unknown key `sandbox.sandbox`"),
        ("<<: {enabled: false}", &[], "config.unknown-key", "nsbox.yaml:1:1: unknown key `<<`"),
        (
            "limits:\n  memory: 512\n",
            &[],
            "config.value",
            "nsbox.yaml:2:11: `limits.memory`: `512` has no unit; units are b, k, m, g and t, as in `512m`; expected a size \
             of at least 16m with a unit, such as `512m` or `2g`",
        ),
        (
            "limits: {memory: 15m}",
            &[],
            "config.value",
            "nsbox.yaml:1:18: `limits.memory`: the text `15m` is out of range;",
        ),
        ("limits: {memory: 0}", &[], "config.value", "the number `0` is out of range;"),
        (
            "limits: {timeout: 0s}",
            &[],
            "config.value",
            "nsbox.yaml:1:19: `limits.timeout`: the text `0s` is out of range;",
        ),
        ("limits: {timeout: 300}", &[], "config.value", "`300` has no unit; units are ms, s, m and h, as in `300s`;"),
        ("limits: {timeout: 9999h}", &[], "config.value", "is out of range; expected a duration from 1ms to 8760h"),
        (
            "limits: {cpus: 0}",
            &[],
            "config.value",
            "the number `0` is out of range; expected a number of CPUs from 0.01",
        ),
        ("limits: {cpus: .nan}", &[], "config.value", "the number `NaN` is out of range"),
        ("limits: {cpus: '0.5'}", &[], "config.value", "found the text `0.5`; expected a number of CPUs"),
        ("limits: {pids: 0}", &[], "config.value", "out of range"),
        ("limits: {pids: -1}", &[], "config.value", "out of range"),
        ("limits: {inodes: 0}", &[], "config.value", "out of range"),
        ("limits: {disk: 0}", &[], "config.value", "out of range"),
        (
            "enabled: 1",
            &[],
            "config.value",
            "nsbox.yaml:1:10: `enabled`: found the number `1`; expected `true` or `false`",
        ),
        ("enabled: 'true'", &[], "config.value", "found the text `true`; expected `true` or `false`"),
        ("enabled:", &[], "config.value", "`enabled`: found nothing; expected"),
        ("image: 1.5", &[], "config.value", "found the number `1.5`, not a text (quote it);"),
        ("image: ''", &[], "config.value", "the text is empty"),
        ("image: \"a\\0b\"", &[], "config.value", "holds a NUL"),
        (
            "backend: namespce",
            &[],
            "config.value",
            "`namespce` is none of its words, did you mean `namespace`?; expected",
        ),
        ("backend: direct", &[], "config.value", "chosen by `enabled: false` alone"),
        ("fallback: docker", &[], "config.value", "found the text `docker`; expected a list"),
        ("fallback: [ast-only, ast-only]", &[], "config.value", "`ast-only` is there twice"),
        ("fallback: [direct]", &[], "config.value", "`direct` is none of its words"),
        ("fallback_on: [oom]", &[], "config.value", "`oom` is none of its words; expected a list of `unavailable`"),
        ("seed: 4294967296", &[], "config.value", "out of range; expected a whole number from 0 to 4294967295"),
        ("preload: ['os; x']", &[], "config.value", "`os; x` is no name of a Python module"),
        ("env: {A-B: x}", &[], "config.value", "`A-B` is no name of a variable"),
        ("env: {A: x, A: y}", &[], "config.value", "`A` is there twice"),
        ("env: {A: 1}", &[], "config.value", "A: found the number `1`, not a text (quote it)"),
        ("limits: 5", &[], "config.syntax", "nsbox.yaml:1:9: found `5`; expected `limits` to hold keys"),
        ("[enabled]", &[], "config.syntax", "nsbox.yaml:1:1: found a list; expected the file to hold keys"),
        (
            "enabled: !yes true",
            &[],
            "config.syntax",
            "nsbox.yaml:1:10: enabled: invalid type: enum, expected a value without a YAML tag",
        ),
        ("a: [", &[], "config.unknown-key", "nsbox.yaml:1:1"),
        ("enabled: true\nlimits: }", &[], "config.syntax", "nsbox.yaml:2:"),
        ("enabled: true\n---\nenabled: false", &[], "config.syntax", "more than one document"),
        (
            "enabled: true\nenabled: false",
            &[],
            "config.duplicate-key",
            "nsbox.yaml:2:1: `enabled` is set a second time, first as `enabled`",
        ),
        (
            "limits: {pids: 1}\nlimits: {disk: 1m}",
            &[],
            "config.duplicate-key",
            "nsbox.yaml:2:1: `limits` is set a second time",
        ),
        (
            "limits: {memory: 1g}\nsandbox:\n  docker: {memory_limit: 2g}",
            &[],
            "config.duplicate-key",
            "nsbox.yaml:3:12: `sandbox.docker.memory_limit` is set a second time, first as `limits.memory`; keep one",
        ),
        (
            "fallback: []\nsandbox: {fallback_to_direct: true}",
            &[],
            "config.duplicate-key",
            "`sandbox.fallback_to_direct` is set a second time, first as `fallback`",
        ),
        (
            "enabled: true\nimage: x-${NSBOX_TEST_UNSET}",
            &[],
            "config.expand",
            "nsbox.yaml:2:8: failed to expand the value of `image`: the variable `NSBOX_TEST_UNSET` is not set and has no default; \
             set it, or write `${NSBOX_TEST_UNSET:default}`",
        ),
        ("preload: ['${', b]", &[], "config.expand", "`${` is never closed"),
        (
            "limits: {memory: '${M:2g}'}",
            &[("M", "2gb")],
            "config.value",
            "nsbox.yaml:1:18: `limits.memory`: `2gb` has an unknown unit",
        ),
        (
            "fallback: [docker]",
            &[],
            "config.conflict",
            "nsbox.yaml:1:1: `fallback`: `docker` cannot take over from `image: host` (built in)",
        ),
        (
            "backend: ast-only\nfallback: [ast-only]",
            &[],
            "config.conflict",
            "nsbox.yaml:2:1: `fallback`: the backend itself",
        ),
        ("fallback: [namespace]", &[], "config.conflict", "`namespace` is what `backend: auto` tries anyway"),
    ];
    for (text, vars, code, expected) in cases {
        let (message, found) = refusal(text, vars);
        assert_eq!(found, *code, "{text}\n{message}");
        let placed =
            if expected.starts_with("nsbox.yaml") { message.starts_with(expected) } else { message.contains(expected) };
        assert!(placed, "{text}\n  said     {message}\n  expected {expected}");
        assert!(message.starts_with("nsbox.yaml:"), "{text}\n{message}");
    }
}

#[test]
fn wrong_variable_or_flag_is_told_by_name() {
    let of = |resolver: Resolver| {
        let error = resolver.resolve().unwrap_err();
        (chain(&error), error.code())
    };
    let (message, code) = of(Resolver::new().env([("NSBOX_MEMORY", "1g")]));
    assert_eq!(code, "config.unknown-key");
    assert_eq!(message, "NSBOX_MEMORY: unknown key `NSBOX_MEMORY`; did you mean `NSBOX_LIMITS_MEMORY`?");
    let (message, _) = of(Resolver::new().env([("NSBOX_LIMITS_PIDS", "")]));
    assert!(
        message.starts_with("NSBOX_LIMITS_PIDS: `limits.pids`: `` does not start with a whole number"),
        "{message}"
    );
    let (message, _) = of(Resolver::new().env([("NSBOX_FALLBACK_TO_DIRECT", "true")]));
    assert!(message.starts_with("NSBOX_FALLBACK_TO_DIRECT: unknown key"), "{message}");
    let (message, code) = of(Resolver::new().flag("limits.memory", "1.5g", "--memory"));
    assert_eq!(code, "config.value");
    assert!(message.starts_with("--memory: `limits.memory`: `1.5g` does not start with a whole number"), "{message}");
    let not_text = OsString::from_vec(vec![0xff]);
    let (message, _) = of(Resolver::new().env([("NSBOX_IMAGE", not_text)]));
    assert!(message.starts_with("NSBOX_IMAGE: `image`: the value is not UTF-8"), "{message}");
}

#[test]
fn file_that_cannot_be_read_is_an_error() {
    for path in ["/nonexistent/nsbox.yaml", "/", "/dev/zero"] {
        let error = Resolver::new().file(path).resolve().unwrap_err();
        assert_eq!(error.code(), "config.read");
        assert!(error.to_string().contains(path));
    }
}

#[test]
fn hostile_yaml_ends_soon_and_in_an_error() {
    let doubled = |c: char| format!(" {c}: &{c} [{}],", vec![format!("*{}", char::from(c as u8 - 1)); 9].join(","));
    let bomb = format!("env: {{a: &a [x,x,x,x,x,x,x,x,x],{}}}", ('b'..='z').map(doubled).collect::<String>());
    let deep = format!("preload: {}", "[".repeat(2_000));
    let itself = "preload: &a [*a]".to_owned();
    let long = format!("image: ${{A:{}", "${B:".repeat(200_000));
    for text in [bomb, deep, itself, long] {
        let before = std::time::Instant::now();
        assert!(resolve(&text, &[]).is_err());
        assert!(before.elapsed() < Duration::from_secs(5), "{:?}: {}", before.elapsed(), &text[..20]);
    }
}

#[test]
fn json_holds_config_origins_and_warnings() {
    let resolved = resolve("limits: {memory: 1g}\nfallback_to_direct: true", &[]).unwrap();
    let json = serde_json::to_value(&resolved).unwrap();
    assert_eq!(json["config"]["limits"]["memory"], "1g");
    assert_eq!(json["origins"]["limits.memory"]["source"], "file");
    assert_eq!(json["origins"]["limits.memory"]["line"], 1);
    assert_eq!(json["origins"]["limits.pids"]["source"], "built-in");
    assert_eq!(json["warnings"].as_array().unwrap().len(), 1);
}

#[test]
fn render_names_each_origin() {
    let text = Resolver::new().flag("limits.memory", "512m", "--memory").resolve().unwrap().render();
    assert!(text.contains("limits:\n  memory: 512m  # --memory\n  cpus: 0.5  # built in\n"), "{text}");
    assert!(text.contains("\nfallback_on: [unavailable]  # built in\n"), "{text}");
}

#[test]
fn render_of_a_path_with_newlines_stays_a_comment() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a\nenabled: false\n.yaml");
    fs::write(&path, "check: false").unwrap();
    let text = Resolver::new().file(path).resolve().unwrap().render();
    let again = config(&text, &[]);
    assert!(again.enabled && !again.check);
}

/// Each key is set by the variable of its name, to the very value that is shown of it.
#[test]
fn every_key_has_its_variable() {
    let built_in = Resolver::new().resolve().unwrap();
    let shown = serde_json::to_value(&built_in).unwrap();
    for key in built_in.origins().into_keys().filter(|key| *key != "env") {
        let value = key.split('.').fold(&shown["config"], |value, name| &value[name]);
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Null => "none".to_owned(),
            Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
            other => other.to_string(),
        };
        let name = format!("NSBOX_{}", key.replace('.', "_").to_uppercase());
        let resolved = Resolver::new().env([(&name, text)]).resolve().unwrap();
        assert_eq!(resolved.origin(key), Origin::Env { name });
        assert_eq!(serde_json::to_value(&resolved).unwrap()["config"], shown["config"], "{key}");
    }
}
