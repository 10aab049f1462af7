//! Whatever is resolved can be shown and loads again as it was; whatever is loaded ends in a configuration or a placed error.

use std::path::PathBuf;
use std::time::Duration;

use nsbox::config::{Alerts, BackendChoice, Config, Docker, Limits, Resolved, Resolver, Slots};
use nsbox::outcome::{Backend, Verdict};
use proptest::prelude::*;

use super::{chain, resolve};

/// The configurations that `resolve` can give, every field of them at work.
fn any_config() -> impl Strategy<Value = Config> {
    let text =
        || r"[ -~]{1,12}|\$\{A:b\}|\$?\$\{|true|0x1f|null|~|\.nan|1e3|\PC{1,6}|[\u{1}-\u{a0}\u{2028}\u{feff}]{1,4}";
    let name = || "[a-zA-Z_:][a-zA-Z0-9_.:-]{0,8}|true|null|1";
    let path = || proptest::option::of(r"/[ -~]{1,9}|/\PC{1,5}").prop_map(|path| path.map(|p| format!("{p}x")));
    let millis = || (1_u64..31_536_000_000).prop_map(Duration::from_millis);
    let size = || 0_u64..=i64::MAX as u64;
    let words = || {
        let fallback = proptest::sample::subsequence(vec![Backend::Docker, Backend::AstOnly], 0..=2);
        let on = proptest::sample::subsequence(vec![Verdict::Unavailable, Verdict::Timeout, Verdict::Lost], 0..=3);
        let backend = proptest::sample::select(vec![BackendChoice::Auto, BackendChoice::Only(Backend::Namespace)]);
        (fallback, on, backend)
    };
    let limits = (
        (
            16_u64 << 20..=i64::MAX as u64,
            0.01..4096.0,
            1_u32..=4_194_304,
            65_536_u64..=i64::MAX as u64,
            16..=i64::MAX as u64,
        ),
        (millis(), millis(), proptest::option::of(millis()), 16_u64..=1 << 20, proptest::option::of(size())),
        (size(), any::<bool>(), size(), size()),
    )
        .prop_map(|(a, b, c)| Limits {
            memory: a.0,
            cpus: a.1,
            pids: a.2,
            disk: a.3,
            inodes: a.4,
            timeout: b.0,
            setup_timeout: b.1,
            cpu_time: b.2,
            open_files: b.3,
            file_size: b.4,
            output: c.0,
            output_kill: c.1,
            result: c.2,
            artifacts: c.3,
        });
    let env = proptest::collection::btree_map("[A-Za-z_][A-Za-z0-9_]{0,4}", text(), 0..4);
    let preload = proptest::collection::vec(r"[a-z_]{1,6}(\.[a-z]{1,4})?", 0..3);
    let alerts = (0.0..=1.0, millis()).prop_map(|(fallback_rate, p95)| Alerts { fallback_rate, p95 });
    let rotation = (proptest::option::of(64_u64 << 10..=i64::MAX as u64), 1_u32..=999);
    let flags = any::<(bool, bool, bool, bool, bool)>();
    (
        (words(), flags, name(), name(), (path(), path(), path())),
        (limits, env, proptest::option::of(0..=u64::from(u32::MAX)), preload, (text(), name()), alerts, rotation),
    )
        .prop_map(
            |(
                (words, flags, image, seccomp, paths),
                (limits, env, seed, preload, (docker, warm_up), alerts, rotation),
            )| Config {
                enabled: flags.0,
                backend: words.2,
                fallback: words.0,
                fallback_on: words.1,
                image,
                python: paths.0.map(PathBuf::from),
                check: flags.1,
                policy: paths.1.map(PathBuf::from),
                seccomp,
                allow_degraded: flags.2,
                limits,
                env,
                seed,
                warm: flags.3,
                preload,
                warm_up,
                slots: if flags.4 { Slots::Restored } else { Slots::OneShot },
                event_log: paths.2.map(PathBuf::from),
                event_log_max: rotation.0,
                event_log_keep: rotation.1,
                docker: Docker { image: docker },
                alerts,
            },
        )
}

proptest! {
    #[test]
    fn render_and_json_round_trip(config in any_config()) {
        let mut resolved = Resolver::new().resolve().unwrap();
        resolved.config = config;
        // The path that is shown is the one that the kernel would take: without `.` and doubled `/`.
        for path in [&mut resolved.config.python, &mut resolved.config.policy, &mut resolved.config.event_log] {
            *path = path.take().map(|path| std::path::absolute(path).unwrap());
        }
        let yaml = resolved.render();
        prop_assert_eq!(&reloaded(&yaml)?, &resolved.config, "{}", yaml);
        let json = serde_json::to_value(&resolved).unwrap()["config"].to_string();
        // JSON is YAML but for characters that YAML wants escaped.
        if json.chars().all(|c| matches!(c, ' '..='~')) {
            prop_assert_eq!(&reloaded(&json)?, &resolved.config, "{}", json);
        }
    }

    #[test]
    fn arbitrary_text_never_panics(text in r"(\PC|\n){0,200}") {
        _ = resolve(&text, &[]).map(|resolved| resolved.render());
    }

    #[test]
    fn arbitrary_keys_and_values_never_panic_and_always_have_a_place(
        text in proptest::collection::vec((r"( {0,4})(sandbox|limits|docker|env|enabled|fallback|memory|cpus|image|[a-z_]{1,8})",
            r"(|&a |\*a|!t )(true|~|5|1e9|\.inf|512m|host|\[a, b\]|\{a: b\}|'x'|\$\{A\}|\$\{B:1\}|-|\| |>-)?"), 0..12)
    ) {
        let text: String = text.iter().map(|(key, value)| format!("{key}: {value}\n")).collect();
        match resolve(&text, &[("A", "1")]) {
            Ok(resolved) => {
                let again = resolve(&resolved.render(), &[]).map_err(|e| TestCaseError::fail(chain(&e)))?;
                let shown = |resolved: &Resolved| serde_json::to_value(resolved).unwrap()["config"].take();
                prop_assert_eq!(shown(&again), shown(&resolved));
            }
            Err(error) => prop_assert!(chain(&error).starts_with("nsbox.yaml:"), "{}", error),
        }
    }
}

fn reloaded(text: &str) -> Result<Config, TestCaseError> {
    resolve(text, &[])
        .map(|resolved| resolved.config)
        .map_err(|error| TestCaseError::fail(format!("{}\n{text}", chain(&error))))
}
