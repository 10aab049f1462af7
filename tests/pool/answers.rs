//! What a guest makes of its answer: one that is forged, given twice, too late or never.

use std::time::{Duration, Instant};

use nsbox::outcome::{Ended, Outcome, Value, Verdict};

use crate::harness::{alone, children, patiently};
use crate::isolation::result;
use crate::{builder, pool, run};

#[track_caller]
fn expect(outcome: &Outcome, verdict: Verdict, ended: Ended) {
    assert_eq!((outcome.verdict, outcome.ended), (verdict, ended), "{outcome:#?}");
}

#[test]
fn forged_answer_is_none() {
    if !alone("answers::forged_answer_is_none") {
        return;
    }
    let pool = pool(&[("limits.timeout", "1s")]);
    let everywhere = "import os\nfor fd in range(64):\n    for text in (b'', b'r', b'{}', bytes(16) + b'i', b'x' * 70000):\n        \
                      try:\n            os.write(fd, text)\n        except OSError:\n            pass\n";
    let outcome = run(&pool, &format!("{everywhere}os._exit(42)"));
    expect(&outcome, Verdict::Error, Ended::Exited);
    assert_eq!(outcome.exit_code, Some(42));
    // After such noise a good end is known by the end of the process, and its result is still the runner's.
    let outcome = run(&pool, &format!("{everywhere}result = 5"));
    expect(&outcome, Verdict::Ok, Ended::Exited);
    assert_eq!(outcome.result, Some(Value::Int(5)));
    // A guest that closes its line and never answers.
    expect(&run(&pool, "import os\nos.close(3)\nwhile True: pass"), Verdict::Timeout, Ended::Killed);
    expect(&run(&pool, "import os\nos.close(3)\nresult = 1"), Verdict::Ok, Ended::Exited);
}

#[test]
fn answer_of_its_own_making_counts_for_its_own_run_alone() {
    if !alone("answers::answer_of_its_own_making_counts_for_its_own_run_alone") {
        return;
    }
    let pool = pool(&[]);
    // The nonce is in the runner's frames: whoever finds it has ended its own run, and no other.
    let forge = "import os, sys\nframe = sys._getframe()\nwhile 'nonce' not in frame.f_locals:\n    frame = frame.f_back\n\
                 nonce = frame.f_locals['nonce']\nwhile True:\n    os.write(3, nonce + b'i')";
    for _ in 0..3 {
        let neighbour = pool.submit("import time; time.sleep(0.2)\nresult = 'mine'");
        expect(&run(&pool, forge), Verdict::Ok, Ended::Answered);
        let outcome = neighbour.wait();
        expect(&outcome, Verdict::Ok, Ended::Answered);
        assert_eq!(outcome.result, Some(Value::Str("mine".to_owned())));
    }
    // The document is the guest's word, and is read as such.
    let garbage = forge.replace("b'i'", "b'i\\xff\\xff'");
    expect(&run(&pool, &garbage), Verdict::Error, Ended::Answered);
    let hollow = forge.replace("b'i'", "b'm'").replace("while True", "os.ftruncate(4, 1 << 25)\nwhile True");
    assert_ne!(run(&pool, &hollow).verdict, Verdict::Lost);
}

#[test]
fn answer_to_an_earlier_request_is_none() {
    if !alone("answers::answer_to_an_earlier_request_is_none") {
        return;
    }
    let pool = pool(&[]);
    let find = "import os, sys\nframe = sys._getframe()\nwhile 'nonce' not in frame.f_locals:\n    frame = frame.f_back\n\
                nonce = frame.f_locals['nonce']\n";
    let mut nonces = Vec::new();
    for _ in 0..4 {
        let Value::Bytes(nonce) = result(&pool, &format!("{find}result = nonce")) else { panic!() };
        assert!(nonce.len() == 16 && !nonces.contains(&nonce), "{nonces:?}");
        nonces.push(nonce);
    }
    // Answered with those, a run goes on: its end is what it is.
    let hex: Vec<String> =
        nonces.iter().map(|nonce| nonce.iter().map(|byte| format!("{byte:02x}")).collect()).collect();
    // The first of them is the last that is heard.
    let source = format!(
        "import os\nfor nonce in {hex:?}:\n    try:\n        os.write(3, bytes.fromhex(nonce) + b'i')\n    \
         except BrokenPipeError:\n        pass\nos._exit(42)"
    );
    let outcome = run(&pool, &source);
    expect(&outcome, Verdict::Error, Ended::Exited);
    assert_eq!(outcome.exit_code, Some(42));
}

#[test]
fn second_answer_is_not_heard() {
    if !alone("answers::second_answer_is_not_heard") {
        return;
    }
    let pool = pool(&[]);
    // Two documents, {"v": 1, "names": {"result": 1 or 2}, "notes": []}: the first one is the run's.
    let twice = "import os, sys\nframe = sys._getframe()\nwhile 'nonce' not in frame.f_locals:\n    frame = frame.f_back\n\
                 nonce = frame.f_locals['nonce']\n\
                 document = lambda value: b'\\xa3\\x61v\\x01\\x65names\\xa1\\x66result' + bytes([value]) + b'\\x65notes\\x80'\n\
                 for value in (1, 2, 3):\n    os.write(3, nonce + b'i' + document(value))\nwhile True: pass";
    for i in 0..5 {
        let outcome = run(&pool, twice);
        expect(&outcome, Verdict::Ok, Ended::Answered);
        assert_eq!(outcome.result, Some(Value::Int(1)), "{outcome:#?}");
        assert_eq!(result(&pool, &format!("result = {i}")), Value::Int(i));
    }
}

#[test]
fn output_without_end_after_an_answer_holds_up_nobody() {
    if !alone("answers::output_without_end_after_an_answer_holds_up_nobody") {
        return;
    }
    let pool = pool(&[("limits.timeout", "20s"), ("limits.cpus", "2")]);
    for stream in [1, 2] {
        let flood = format!("while True: os.write({stream}, b'x' * 65536)");
        let source = format!("import os, time\nif os.fork() == 0:\n    {flood}\ntime.sleep(0.05)\nresult = 1");
        let begun = Instant::now();
        let outcome = run(&pool, &source);
        expect(&outcome, Verdict::Ok, Ended::Answered);
        assert!(begun.elapsed() < patiently(Duration::from_secs(3)), "{:?}", begun.elapsed());
    }
}

#[test]
fn what_runs_on_after_an_answer_is_killed() {
    if !alone("answers::what_runs_on_after_an_answer_is_killed") {
        return;
    }
    let pool = builder(&[]).slots(1).build().unwrap();
    let outcome = run(
        &pool,
        "import os, threading\ndef spin():\n    while True: pass\n\
         threading.Thread(target=spin, daemon=True).start()\n\
         for _ in range(3):\n    if os.fork() == 0:\n        os.setsid()\n        spin()\nresult = 1",
    );
    expect(&outcome, Verdict::Ok, Ended::Answered);
    crate::harness::until("only the slot that is ready is left", || {
        let inits: Vec<u32> = children(std::process::id()).into_iter().flat_map(children).collect();
        // The zygote and one slot's init; the slot's guest is a child of the zygote.
        inits.len() == 2 && inits.into_iter().flat_map(children).count() == 1 && pool.ready() == 1
    });
}
