//! What the guest says of itself: forged, malformed and oversized results, floods and silence on its output.

use nsbox::outcome::{Outcome, Verdict};

use crate::harness::{inside, serial};

/// Runs a script that leaves with `status` after writing `document` to `fds`.
fn leave(document: &str, fds: &str, status: i32) -> Outcome {
    let source = format!(
        "import os\ndocument = {document}\nfor fd in {fds}:\n    try: os.write(fd, document)\n    except OSError: pass\nos._exit({status})\n"
    );
    inside(&format!("leave-{}", serial()), &source, &[])
}

/// A document as the guest's runner writes it: learnt from a run that hands back 42, read through its own descriptor.
const HONEST: &str = r"
import os, subprocess, sys
result = 42
";

#[test]
fn forged_success_on_every_descriptor_is_still_the_scripts_failure() {
    assert_eq!(inside("honest", HONEST, &[]).verdict, Verdict::Ok);
    // The runner's own words, taken from its code in the guest, would be believed of a run that ended well.
    for document in ["b'\\xa1fresult\\x18\\x2a'", r#"b'{"verdict":"ok","exit_code":0,"result":42}\n'"#, "b'\\x01' * 24"]
    {
        let outcome = leave(document, "range(64)", 42);
        assert_eq!((outcome.verdict, outcome.exit_code), (Verdict::Error, Some(42)), "{outcome:#?}");
        assert_eq!(outcome.exit_status(), 42);
        assert_eq!(outcome.result, None);
    }
}

#[test]
fn malformed_result_is_refused_and_never_a_success() {
    let documents = [
        ("b'\\x81' * 1000000", "deep"),
        ("b'\\xbb' + b'\\xff' * 8", "a count beyond the document"),
        ("b'\\x9b\\x00\\x00\\x00\\xff\\xff\\xff\\xff\\xff' * 100", "lists of 2^40"),
        ("b'\\xa2fresult\\x01fresult\\x02'", "a duplicate key"),
        ("b'\\x7f' * 100000", "unfinished texts"),
        ("b'\\xa1fresult\\x63\\xff\\xfe\\xfd'", "text that is not UTF-8"),
        ("b'\\xa1fresult\\xfb\\x7f\\xf8\\x00\\x00\\x00\\x00\\x00\\x00'", "NaN outside a document"),
        ("b'\\x80\\x04K*.'", "a pickle"),
        ("os.urandom(65536)", "noise"),
    ];
    for (document, what) in documents {
        let outcome = leave(document, "[4]", 0);
        assert_eq!(outcome.verdict, Verdict::Error, "{what}: {outcome:#?}");
        assert_ne!(outcome.exit_status(), 0, "{what}: nobody may take this for a success");
        assert_eq!(outcome.result, None, "{what}");
        assert!(!outcome.message.is_empty(), "{what}");
    }
}

#[test]
fn result_descriptor_that_is_closed_sealed_or_grown_is_harmless() {
    let sparse = inside("sparse-result", "import os\nos.ftruncate(4, 60 << 20)\nos._exit(0)\n", &["--memory", "256m"]);
    assert!(matches!(sparse.verdict, Verdict::OutputLimit | Verdict::Error), "{sparse:#?}");
    let sealed = inside("sealed-result", "import fcntl\nfcntl.fcntl(4, 1033, 15)\nresult = 1\n", &[]);
    assert_ne!(sealed.verdict, Verdict::Ok, "a result that could not be handed over: {sealed:#?}");
    assert_ne!(sealed.exit_status(), 0);
    let closed = inside("closed-result", "import os\nos.close(4)\nresult = 1\n", &[]);
    assert_ne!(closed.verdict, Verdict::Ok, "{closed:#?}");
    assert_ne!(closed.exit_status(), 0);
    assert_eq!((sealed.result, closed.result), (None, None));
}

#[test]
fn result_over_its_limit_is_output_limit() {
    let outcome = inside("big-result", "result = list(range(9_000_000))\n", &["--memory", "2g"]);
    assert_eq!(outcome.verdict, Verdict::OutputLimit, "{}", outcome.message);
    assert_eq!(outcome.exit_status(), 122);
}

#[test]
fn floods_on_both_pipes_are_drained_and_cut() {
    let source = r"
import os, threading
def flood(fd, byte):
    for _ in range(128): os.write(fd, byte * 65536)
threads = [threading.Thread(target=flood, args=pair) for pair in ((1, b'o'), (2, b'e'))]
for thread in threads: thread.start()
for thread in threads: thread.join()
result = 'written'
";
    let outcome = inside("floods", source, &[]);
    assert_eq!(outcome.verdict, Verdict::Ok, "{}", outcome.message);
    assert_eq!((outcome.stdout.len(), outcome.stderr.len()), (1 << 20, 1 << 20));
    assert!(outcome.stdout_truncated && outcome.stderr_truncated);
    let killed = inside("floods-killed", source, &["--output-limit-kill"]);
    assert_eq!(killed.verdict, Verdict::OutputLimit, "{}", killed.message);
    assert_eq!(killed.exit_status(), 122);
}

#[test]
fn output_of_any_bytes_is_kept() {
    let source = r"
import os
os.write(1, b'a\0b\xff\xfe\x1b]0;title\x07\x1b[2Jend without a newline')
";
    let outcome = inside("bytes", source, &[]);
    assert_eq!(outcome.verdict, Verdict::Ok);
    assert_eq!(
        String::from_utf8_lossy(&outcome.stdout),
        "a\0b\u{fffd}\u{fffd}\u{1b}]0;title\u{7}\u{1b}[2Jend without a newline"
    );
}

#[test]
fn closed_output_is_not_the_end_of_the_run() {
    let source = "import os, time\nfor fd in (0, 1, 2): os.close(fd)\ntime.sleep(1)\nresult = 7\n";
    let outcome = inside("closed-output", source, &[]);
    assert_eq!(outcome.verdict, Verdict::Ok, "{outcome:#?}");
    assert!(outcome.usage.wall_ms >= 300.0);
    assert_eq!(serde_json::to_value(&outcome).expect("JSON")["result"], 7);
}
