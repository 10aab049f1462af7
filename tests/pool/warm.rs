//! The warm-up of slots that serve once.

use std::path::Path;
use std::process::Command;

use nsbox::outcome::Value;
use nsbox::pool::Pool;
use tempfile::NamedTempFile;

use crate::harness::{alone, until};
use crate::python::{VERSIONS, pyenv};
use crate::{builder, run};

/// 200 pages of the zygote's.
const MAKE: &str = "
import json
if not hasattr(json, 'pages'):
    json.pages = [bytearray(5000) for _ in range(200)]
";
const TOUCH: &str = "
import json, resource
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for page in json.pages:
    page[2500] ^= 1
result = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
";

#[test]
fn warmed_slot_has_copied_what_the_warm_up_touched() {
    if !alone("warm::warmed_slot_has_copied_what_the_warm_up_touched") {
        return;
    }
    let copied = [format!("{MAKE}{TOUCH}"), MAKE.to_owned()].map(|warm_up| {
        let script = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&script, warm_up).unwrap();
        let keys = [("warm_up", script.path().to_str().unwrap()), ("preload", "json,resource")];
        let pool = builder(&keys).slots(2).build().unwrap();
        until("the slots are warm", || pool.warmed() == 2);
        let outcome = run(&pool, TOUCH);
        let Some(Value::Int(pages)) = outcome.result else { panic!("{outcome:#?}") };
        pages
    });
    let [warm, plain] = copied;
    assert!(plain >= 200 && warm * 4 < plain, "{warm} pages in a warm slot, {plain} in one that is not");
}

#[test]
fn warmed_slot_has_the_script_s_file_and_no_other() {
    if !alone("warm::warmed_slot_has_the_script_s_file_and_no_other") {
        return;
    }
    let pool = builder(&[("preload", "json")]).slots(2).build().unwrap();
    for _ in 0..3 {
        until("the slots are warm", || pool.warmed() == 2);
        let source = "import os, sys\nresult = [os.listdir('/work'), sys.argv, open(__file__).read()[:9], dir()]";
        let outcome = run(&pool, source);
        let Some(Value::List(seen)) = &outcome.result else { panic!("{outcome:#?}") };
        let name = |text: &str| Value::List(vec![Value::Str(text.to_owned())]);
        assert_eq!(seen[..2], [name("script.py"), name("/work/script.py")], "{outcome:#?}");
        assert_eq!(seen[2], Value::Str("import os".to_owned()), "{outcome:#?}");
        let Value::List(names) = &seen[3] else { panic!("{outcome:#?}") };
        let own = ["os", "sys"].map(|name| Value::Str(name.to_owned()));
        let is_known = |name: &Value| matches!(name, Value::Str(name) if name.starts_with("__")) || own.contains(name);
        assert!(names.iter().all(is_known), "{outcome:#?}");
    }
}

/// Some thousand pages of lists, of which one in a hundred is used: that counts a reference, and writes to it. And how often this
/// has run, in forks of the zygote too.
const SCATTER: &str = "
import json, os
if not hasattr(json, 'hot'):
    json.lists = [[i] * (i % 50 + 1) for i in range(30000)]
    json.hot, json.cold = json.lists[::100], json.lists[50::100]
total = sum(len(one) for one in json.hot)
with open('/work/runs', 'a') as file:
    file.write('x')
json.runs = os.path.getsize('/work/runs')
";
/// How many pages those are on that are used, and others; then they grow, and end.
const LOOK: &str = "
import gc, json, sys
result = [len({id(one) >> 12 for one in some}) for some in (json.hot, json.cold)]
for one in json.hot:
    one.extend(range(100))
result.append(sum(map(sum, json.hot)))
del json.hot, json.cold, json.lists, one
gc.unfreeze()
gc.collect()
result.append(sum(map(len, [[i] for i in range(30000)])))
result += [json.runs, sys.version_info >= (3, 12)]
";

/// How often a zygote runs it at most that nothing goes ahead of: as it comes, again, and to see which code runs.
const ALONE: i128 = 3;

/// What a slot finds: the pages of the lists that are used, those of the others, how often the warm-up has run, and whether the
/// interpreter's objects are immortal.
fn look(pool: &Pool) -> (i128, i128, i128, bool) {
    let outcome = run(pool, LOOK);
    let Some(Value::List(found)) = &outcome.result else { panic!("{outcome:#?}") };
    let [Value::Int(hot), Value::Int(cold), sum, count, Value::Int(runs), Value::Bool(immortal)] = &found[..] else {
        panic!("{outcome:#?}")
    };
    // One of each hundred and what it grew by.
    let expected = (0..30000).step_by(100).sum::<i128>() + 300 * 4950;
    assert_eq!((sum, count), (&Value::Int(expected), &Value::Int(30000)), "{outcome:#?}");
    (*hot, *cold, *runs, *immortal)
}

/// A pool with this warm-up script, which successors read again, that has one zygote for two slots.
fn warmed_by(script: &str, python: &Path) -> (Pool, NamedTempFile) {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(&file, script).unwrap();
    let path = file.path().to_str().unwrap();
    let keys = [("warm_up", path), ("preload", "json"), ("python", python.to_str().unwrap())];
    (builder(&keys).slots(1).rotate_after(2).build().unwrap(), file)
}

#[test]
fn what_slots_write_to_lies_side_by_side() {
    if !alone("warm::what_slots_write_to_lies_side_by_side") {
        return;
    }
    for version in VERSIONS {
        let Some(python) = pyenv(version) else { continue };
        let (pool, _script) = warmed_by(SCATTER, &python);
        let (hot, cold, runs, immortal) = look(&pool);
        assert!(cold >= 200, "{version}: {cold}");
        // Where objects are immortal, nobody counts references to them, and nobody need find out.
        assert!(immortal || hot <= 20, "{version}: {hot} pages");
        assert_eq!(immortal, runs <= ALONE, "{version}: {runs}");
        let first = pool.counts().zygotes;
        until("the slots are a successor's", || {
            let (hot, _, runs, immortal) = look(&pool);
            let is_known = runs <= ALONE;
            assert!(immortal || hot <= 20, "{version}: {hot} pages");
            is_known && pool.counts().zygotes > first
        });
    }
}

#[test]
fn zygote_starts_though_what_goes_ahead_of_it_fails() {
    if !alone("warm::zygote_starts_though_what_goes_ahead_of_it_fails") {
        return;
    }
    let Some(python) = pyenv("3.11") else { return };
    for fails in ["os._exit(3)", "time.sleep(99)", "1 / 0", "os.kill(os.getpid(), 9)"] {
        let first = format!(
            "import os, time\nif not os.path.exists('/work/seen'):\n    open('/work/seen', 'x').close()\n    {fails}\n"
        );
        let (pool, _script) = warmed_by(&format!("{first}{SCATTER}"), &python);
        let (hot, cold, ..) = look(&pool);
        assert!(hot >= 200 && cold >= 200, "{fails}: {hot}, {cold}");
    }
}

/// KiB of text that is no file's, in huge pages.
const TEXT: &str = "
result = 0
for words in map(str.split, open('/proc/self/smaps')):
    if not words[0].endswith(':'):
        is_text = words[1] == 'r-xp' and len(words) == 5
    elif words[0] == 'AnonHugePages:' and is_text:
        result += int(words[1])
";

#[test]
fn text_that_slots_run_is_in_huge_pages() {
    if !alone("warm::text_that_slots_run_is_in_huge_pages") {
        return;
    }
    for python in VERSIONS.into_iter().filter_map(pyenv) {
        let python = python.display().to_string();
        let output = Command::new(&python).args(["-c", &format!("{TEXT}print(result)")]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "0\n", "{python}: {output:?}");
        let pool = builder(&[("python", &python), ("preload", "json")]).slots(1).build().unwrap();
        let outcome = run(&pool, TEXT);
        let Some(Value::Int(size)) = outcome.result else { panic!("{python}: {outcome:#?}") };
        assert!(size >= 2048, "{python}: {size} KiB");
    }
}
