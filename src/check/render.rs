//! Reports as text for people, JSON for programs and SARIF 2.1.0 for code hosts.

use serde_json::{Value, json};

use super::{Finding, Report, Rule};

const SARIF_SCHEMA: &str = "https://json.schemastore.org/sarif-2.1.0.json";

/// One line per finding, as a linter writes it, with the hint indented below.
#[must_use]
pub fn render_text(reports: &[Report]) -> String {
    let mut out = String::new();
    for report in reports {
        let name = visible(&report.filename);
        for Finding { rule, line, column, message, hint, .. } in &report.findings {
            out += &format!("{name}:{line}:{column} {} {message}\n", rule.code());
            if let Some(hint) = hint {
                out += &format!("    {hint}\n");
            }
        }
        if report.truncated {
            out += &format!("{name}: further findings are left out\n");
        }
    }
    out
}

/// A file name that cannot write to a terminal's controls.
fn visible(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// A JSON array of reports.
#[must_use]
pub fn render_json(reports: &[Report]) -> String {
    let mut text = format!("{:#}", json!(reports));
    text.push('\n');
    text
}

/// A SARIF 2.1.0 log with one run; columns count characters (`unicodeCodePoints`).
#[must_use]
pub fn render_sarif(reports: &[Report]) -> String {
    let rules: Vec<Value> = Rule::ALL
        .iter()
        .map(|rule| json!({ "id": rule.code(), "shortDescription": { "text": rule.title() } }))
        .collect();
    let results: Vec<Value> = reports.iter().flat_map(sarif_results).collect();
    let log = json!({
        "$schema": SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "nsbox",
                "version": env!("CARGO_PKG_VERSION"),
                "informationUri": env!("CARGO_PKG_REPOSITORY"),
                "rules": rules,
            } },
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    });
    format!("{log:#}\n")
}

fn sarif_results(report: &Report) -> impl Iterator<Item = Value> {
    report.findings.iter().map(|finding| {
        let text = match &finding.hint {
            Some(hint) => format!("{}. {hint}", finding.message),
            None => finding.message.clone(),
        };
        json!({
            "ruleId": finding.rule.code(),
            "level": "error",
            "message": { "text": text },
            "locations": [{ "physicalLocation": {
                "artifactLocation": { "uri": uri(&report.filename) },
                "region": {
                    "startLine": finding.line,
                    "startColumn": finding.column,
                    "endLine": finding.end_line,
                    "endColumn": finding.end_column,
                },
            } }],
        })
    })
}

/// The file name as a URI reference: all but unreserved characters and `/` percent-encoded.
fn uri(filename: &str) -> String {
    let mut out = String::with_capacity(filename.len());
    for byte in filename.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out += &format!("%{byte:02X}");
        }
    }
    out
}
