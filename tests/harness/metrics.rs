//! A strategy's figures outside of the sandbox, and that those inside are the same. Of a suite that includes it.
#![allow(dead_code, reason = "each suite uses a part of it")]

use serde_json::Value;

/// Runs the script named by its argument as plain Python does, and prints what it leaves in `metrics`.
pub const OUTSIDE: &str = r#"
import contextlib, io, json, runpy, sys
with contextlib.redirect_stdout(io.StringIO()):
    names = runpy.run_path(sys.argv[1], run_name="__main__")
print(json.dumps(names["metrics"], default=lambda number: number.item()))
"#;

/// Fails unless both are the same but for the last digits of floats.
#[track_caller]
pub fn assert_same(inside: &Value, outside: &Value, place: &str) {
    match (inside, outside) {
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            assert!((a - b).abs() <= 1e-12 * b.abs().max(1.0), "{place}: {a} inside, {b} outside");
        }
        (Value::Object(a), Value::Object(b)) => {
            assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{place}");
            a.iter().for_each(|(key, value)| assert_same(value, &b[key], &format!("{place}.{key}")));
        }
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len(), "{place}");
            a.iter().zip(b).for_each(|(a, b)| assert_same(a, b, place));
        }
        _ => assert_eq!(inside, outside, "{place}"),
    }
}
