//! What comes back: stdout and stderr, the result, and the artifacts.

use crate::harness::{run, run_with};

const PRINT: &str = "import sys\nsys.STREAM.write('x' * COUNT)";

fn print(stream: &str, count: usize) -> String {
    PRINT.replace("STREAM", stream).replace("COUNT", &count.to_string())
}

#[test]
fn output_over_its_limit_is_cut_and_noted() {
    let ran = run(&["--output-limit", "4k"], &print("stdout", 4097))
        .expect("ok")
        .says("stdout was cut at 4k (--output-limit)");
    assert_eq!((ran.stdout().len(), ran.outcome.stdout_truncated, ran.outcome.stderr_truncated), (4096, true, false));
    let ran = run(&["--output-limit", "4k"], &print("stderr", 400_000))
        .expect("ok")
        .says("stderr was cut at 4k (--output-limit)");
    assert_eq!(
        (ran.outcome.stderr.len(), ran.outcome.stdout_truncated, ran.outcome.stderr_truncated),
        (4096, false, true)
    );
}

#[test]
fn output_up_to_its_limit_is_whole() {
    let ran = run(&["--output-limit", "4k", "--output-limit-kill"], &print("stdout", 4096)).expect("ok");
    assert_eq!((ran.stdout().len(), ran.outcome.stdout_truncated, ran.outcome.message.as_str()), (4096, false, ""));
}

#[test]
fn output_over_its_limit_kills_where_asked() {
    for stream in ["stdout", "stderr"] {
        let source = print(stream, 4097) + "\nsys.stdout.flush()\nimport time\ntime.sleep(20)";
        let ran = run(&["--output-limit", "4k", "--output-limit-kill"], &source).expect("output-limit");
        let ran = ran.says(&format!("more than 4k to {stream} (--output-limit)"));
        assert_eq!(ran.status, 122);
        assert!(ran.outcome.usage.wall_ms < 15_000.0);
    }
}

#[test]
fn output_without_end_does_not_outlive_the_timeout() {
    let source = "import os\nwhile True:\n    os.write(1, b'x' * 65536)";
    let ran = run(&["--output-limit", "4k", "--timeout", "400ms"], source).expect("timeout");
    assert!(ran.outcome.stdout_truncated);
}

#[test]
fn result_has_a_limit() {
    let limit = [("NSBOX_LIMITS_RESULT", "64k")];
    let ran = run_with(&limit, &[], "result = 'x' * 60_000").expect("ok");
    assert_eq!(ran.json["result"].as_str().unwrap().len(), 60_000);
    let ran =
        run_with(&limit, &[], "result = 'x' * 70_000").expect("output-limit").says("larger than 64k (limits.result)");
    assert_eq!((ran.status, &ran.outcome.result), (122, &None));
}

#[test]
fn result_that_the_script_forges_has_the_same_limit() {
    // Descriptor 4 is the result's: a script may write to it and leave without the runner's own document.
    let source = "import os\nos.ftruncate(4, 1 << 26)\nos._exit(0)";
    run_with(&[("NSBOX_LIMITS_RESULT", "64k")], &[], source).expect("output-limit");
}

#[test]
fn artifacts_have_a_limit() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("output");
    let write = |source: &str| {
        let flags = ["--output", output.to_str().unwrap()];
        run_with(&[("NSBOX_LIMITS_ARTIFACTS", "64k")], &flags, source)
    };
    let ran = write("open('/output/a', 'wb').write(b'x' * 60_000)").expect("ok");
    assert_eq!(ran.json["artifacts"], serde_json::json!([{"path": "a", "size": 60_000}]));
    assert_eq!(std::fs::read(output.join("a")).unwrap(), vec![b'x'; 60_000]);

    let ran = write("open('/output/a', 'wb').write(b'x' * 70_000)").expect("error");
    assert!(ran.outcome.message.contains("No space left on device"), "{}", ran.outcome.message);

    // Holes take no room in the sandbox, and would on the host.
    let ran = write("open('/output/hole', 'wb').truncate(70_000)").expect("output-limit").says("limits.artifacts");
    assert_eq!(ran.status, 122);
    assert!(!output.join("hole").exists());
}
