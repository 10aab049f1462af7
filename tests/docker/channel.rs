//! The channel that results come over: nothing that a script writes or does makes a result that it did not leave.

use nsbox::outcome::{Value, Verdict};

use crate::{docker, engine, expect, run};
use nsbox::sandbox::{Stream, Watch};

#[test]
fn output_in_the_form_of_frames_is_output() {
    let Some(engine) = engine() else { return };
    let source = r"
import os, sys
forged = bytes(16) + b'D' + (5).to_bytes(4, 'little') + b'\xa1av\x01x'
end = bytes(16) + b'X' + (7).to_bytes(4, 'little') + b'exit=7\n'
stream = b'\x01\0\0\0\0\0\0\x05hello' + b'\x02\0\0\0\0\0\0\x05hello'
for data in (forged, end, stream):
    os.write(1, data)
    os.write(2, data)
result = 'mine'
";
    let outcome = run(&engine, &[], source);
    expect(&outcome, Verdict::Ok);
    assert_eq!((outcome.result, outcome.exit_code), (Some(Value::Str("mine".to_owned())), Some(0)));
    assert!(outcome.stdout.len() == outcome.stderr.len() && outcome.stdout.len() > 60);
}

#[test]
fn no_descriptor_of_the_script_is_the_channel() {
    let Some(engine) = engine() else { return };
    let source = r"
import os
forged = bytes(16) + b'X' + (7).to_bytes(4, 'little') + b'exit=7\n'
kinds = []
for fd in sorted(map(int, os.listdir('/proc/self/fd'))):
    try: kinds.append((fd, os.readlink(f'/proc/self/fd/{fd}').split(':')[0]))
    except OSError: continue
for fd, kind in kinds:
    if fd > 2 and 'memfd' not in kind:
        try: os.write(fd, forged)
        except OSError: pass
for path in ('/proc/1/fd/1', '/proc/1/root', '/proc/1/cwd'):
    try: os.open(path, os.O_WRONLY)
    except PermissionError: continue
    print('opened', path)
result = [kind for _, kind in kinds]
";
    let outcome = run(&engine, &[], source);
    expect(&outcome, Verdict::Ok);
    assert_eq!(outcome.stdout, b"");
    let words = ["/dev/null", "pipe", "pipe", "/memfd"].map(|word| Value::Str(word.to_owned()));
    assert_eq!(outcome.result, Some(Value::List(words.to_vec())));
}

#[test]
fn document_of_the_scripts_own_making_does_not_decide_how_it_ended() {
    let Some(engine) = engine() else { return };
    // The document is the guest's own word, and only that: the status is the kernel's.
    let source = "import os\nfor fd in range(3, 64):\n    try: os.pwrite(fd, b'\\xa3avx', 0)\n    except OSError: pass\nos._exit(4)";
    let outcome = run(&engine, &[], source);
    expect(&outcome, Verdict::Error);
    assert!(outcome.message.contains("result cannot be read"), "{outcome:#?}");
}

#[test]
fn output_comes_as_it_is_written() {
    let Some(engine) = engine() else { return };
    let mut pieces = Vec::new();
    let mut sink = |stream: Stream, bytes: &[u8]| pieces.push((stream, bytes.to_vec(), std::time::Instant::now()));
    let source = "import sys, time\nprint('one')\ntime.sleep(1)\nprint('two', file=sys.stderr)";
    let outcome = docker(&engine, &[]).run(source, Watch { sink: Some(&mut sink), cancel: None });
    expect(&outcome, Verdict::Ok);
    let all = |wanted: Stream| {
        pieces.iter().filter(move |(stream, ..)| *stream == wanted).flat_map(|(_, bytes, _)| bytes.clone())
    };
    assert!(all(Stream::Stdout).eq(*b"one\n") && all(Stream::Stderr).eq(*b"two\n"), "{pieces:?}");
    assert!(pieces[pieces.len() - 1].2 - pieces[0].2 > std::time::Duration::from_millis(500));
}

#[test]
fn binary_output_of_a_megabyte_is_whole() {
    let Some(engine) = engine() else { return };
    let source = "import os, sys\ndata = bytes(range(256)) * 4096\nsys.stdout.buffer.write(data)";
    let outcome = run(&engine, &[], source);
    expect(&outcome, Verdict::Ok);
    let expected: Vec<u8> = (0..=255).collect::<Vec<u8>>().repeat(4096);
    assert!(outcome.stdout == expected && !outcome.stdout_truncated);
}
