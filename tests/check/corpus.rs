//! Corpora: each file of `bypass/` names in its first line the rule that must fire; no file of `benign/` may give a finding.

use std::fs;
use std::path::{Path, PathBuf};

use nsbox::check::{Policy, check, render_text};

fn sources(folder: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/check").join(folder);
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "py"));
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let source = fs::read(&path).unwrap();
            (path, source)
        })
        .collect()
}

/// A file may hold many cases, parted by lines `# ---`: each is checked alone and must fire the rule of its `# expect:`.
#[test]
fn bypass_corpus_is_refused() {
    let mut failures = Vec::new();
    let mut cases = 0;
    for (path, source) in sources("bypass") {
        let source = String::from_utf8(source).unwrap();
        for case in source.split("# ---\n") {
            let expected = case
                .lines()
                .next()
                .unwrap()
                .strip_prefix("# expect: ")
                .unwrap_or_else(|| panic!("{}: no # expect: line: {case}", path.display()))
                .trim();
            let report = check(case.as_bytes(), "case.py", Policy::builtin());
            cases += 1;
            if !report.findings.iter().any(|finding| finding.rule.code() == expected) || report.source().is_some() {
                failures.push(format!("{}: {expected} missing\n{case}\n{}", path.display(), render_text(&[report])));
            }
        }
    }
    assert!(cases > 100, "only {cases} cases");
    assert!(failures.is_empty(), "{} of {cases} cases:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn benign_corpus_is_clean() {
    let mut failures = String::new();
    let mut cases = 0;
    for (path, source) in sources("benign") {
        let report = check(&source, path.file_name().unwrap().to_str().unwrap(), Policy::builtin());
        cases += 1;
        if report.is_clean() {
            let text = source.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&source);
            assert_eq!(report.source().unwrap().as_bytes(), text);
        }
        failures += &render_text(&[report]);
    }
    assert!(cases >= 10, "only {cases} cases");
    assert!(failures.is_empty(), "\n{failures}");
}
