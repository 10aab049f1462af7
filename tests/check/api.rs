//! Reports, renderings and policies.

use std::io::Write;

use nsbox::check::{Error, Policy, Report, Rule, check, render_json, render_sarif, render_text};

const BUILTIN: &str = include_str!("../../config/policy.yaml");

fn report(source: &str) -> Report {
    check(source.as_bytes(), "dir/strategy.py", Policy::builtin())
}

#[test]
fn text_reads_like_a_linter() {
    let text = render_text(&[report("x = 1\n\nimport os\n")]);
    assert_eq!(
        text,
        "dir/strategy.py:3:8 NSB101 import of 'os' is not allowed\n    \
         inputs are at /input/NAME; environment and processes are out of reach\n"
    );
}

#[test]
fn columns_count_characters_and_lines_every_ending() {
    let report = report("é = '價格'; eval\r\nb = 1\rexec(\n1)\n");
    let places: Vec<_> = report.findings.iter().map(|f| (f.line, f.column, f.end_line, f.end_column)).collect();
    assert_eq!(places, [(1, 11, 1, 15), (3, 1, 3, 5)]);
}

#[test]
fn multi_line_finding_ends_on_its_last_line() {
    let report = report("type('A',\n  (), {})\n");
    let finding = &report.findings[0];
    assert_eq!((finding.line, finding.column, finding.end_line, finding.end_column), (1, 1, 2, 10));
}

#[test]
fn clean_report_hands_out_the_validated_text() {
    let report = check(b"\xef\xbb\xbfx = 1\r\n", "x.py", Policy::builtin());
    assert!(report.is_clean());
    assert_eq!(report.source(), Some("x = 1\r\n"));
    assert_eq!(report.into_source().as_deref(), Some("x = 1\r\n"));
    assert_eq!(check(b"eval", "x.py", Policy::builtin()).into_source(), None);
}

#[test]
fn findings_are_sorted_unique_and_capped() {
    let report = report(&"eval; exec\n".repeat(500));
    assert!(report.truncated);
    assert_eq!(report.findings.len(), 100);
    assert!(report.findings.is_sorted_by_key(|finding| (finding.line, finding.column)));
    let report = check(b"if x: pass\nelif eval: pass", "x.py", Policy::builtin());
    assert_eq!(report.findings.len(), 1);
    assert!(!report.truncated);
}

#[test]
fn json_carries_code_place_and_hint() {
    let parsed: serde_json::Value = serde_json::from_str(&render_json(&[report("import os"), report("x")])).unwrap();
    assert_eq!(parsed[0]["filename"], "dir/strategy.py");
    assert_eq!(parsed[0]["findings"][0]["rule"], "NSB101");
    assert_eq!(parsed[0]["findings"][0]["column"], 8);
    assert!(parsed[0]["findings"][0]["hint"].is_string());
    assert_eq!(parsed[1]["findings"], serde_json::json!([]));
    assert!(parsed[0].get("source").is_none());
}

#[test]
fn sarif_has_what_its_schema_requires() {
    let report = check(b"import os\n", "a b/é.py", Policy::builtin());
    let log: serde_json::Value = serde_json::from_str(&render_sarif(&[report])).unwrap();
    assert_eq!(log["version"], "2.1.0");
    let run = &log["runs"][0];
    let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
    assert_eq!(rules.len(), Rule::ALL.len());
    let result = &run["results"][0];
    assert_eq!(result["ruleId"], "NSB101");
    assert!(rules.iter().any(|rule| rule["id"] == result["ruleId"]));
    assert!(result["message"]["text"].is_string());
    let place = &result["locations"][0]["physicalLocation"];
    assert_eq!(place["region"]["startColumn"], 8);
    assert_eq!(place["artifactLocation"]["uri"], "a%20b/%C3%A9.py");
}

#[test]
fn rule_codes_are_unique_and_rising() {
    let codes: Vec<&str> = Rule::ALL.iter().map(|rule| rule.code()).collect();
    assert!(codes.is_sorted_by(|a, b| a < b), "{codes:?}");
}

fn load(text: &str) -> Result<Policy, Error> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    Policy::load(file.path())
}

#[test]
fn builtin_policy_file_loads_and_judges_alike() {
    let policy = load(BUILTIN).unwrap();
    for source in ["import os", "eval", "x.__globals__", "import random\nrandom._os", "x = 1"] {
        assert_eq!(
            check(source.as_bytes(), "x.py", &policy).findings,
            check(source.as_bytes(), "x.py", Policy::builtin()).findings
        );
    }
}

#[test]
fn changed_policy_changes_the_verdict() {
    let policy = load(&BUILTIN.replace("__future__, abc,", "__future__, abc, sqlite3,")).unwrap();
    assert!(check(b"import sqlite3", "x.py", &policy).is_clean());
    assert!(!check(b"import sqlite3", "x.py", Policy::builtin()).is_clean());
}

#[test]
fn unknown_policy_key_names_place_and_nearest_key() {
    let Err(error) = load(&BUILTIN.replace("\n  write_roots:", "\n  write_rots:")) else { panic!("accepted") };
    let line = BUILTIN.lines().position(|line| line.starts_with("  write_roots:")).unwrap() + 1;
    let Error::Parse { line: found, column, ref suggestion, .. } = error else { panic!("{error}") };
    assert_eq!((found, column), (line, 3));
    assert_eq!(suggestion.as_deref(), Some("write_roots"));
    assert!(error.to_string().contains("did you mean `write_roots`?"), "{error}");
    assert_eq!(error.code(), "check.policy-parse");
}

#[test]
fn policy_of_the_wrong_type_or_incomplete_is_refused() {
    for (from, to) in [
        ("  tokens: 250000", "  tokens: many"),
        ("  tokens: 250000", "  tokens: -1"),
        ("  tokens: 250000\n", ""),
        ("metaclasses: [", "metaclasses: 1 #"),
        ("io: [StringIO", "io: StringIO #"),
        ("imports:\n", "imports:\nimports:\n"),
    ] {
        let changed = BUILTIN.replacen(from, to, 1);
        assert_ne!(changed, BUILTIN);
        let Err(Error::Parse { line, .. }) = load(&changed) else { panic!("accepted: {to}") };
        assert!(line >= 1);
    }
    assert!(load("").is_err());
    let missing = Policy::load("/nonexistent/policy.yaml").unwrap_err();
    assert_eq!(missing.code(), "check.policy-read");
    assert!(missing.to_string().contains("/nonexistent/policy.yaml"));
}
