//! What cannot be given, and what says so.

use std::fs;

use nsbox::outcome::{Array, Outcome, Table, TableKind, Value, Verdict};
use nsbox::sandbox::{Input, Script};

use crate::harness::alone;
use crate::python::libraries;
use crate::{BARE, Way};

#[track_caller]
fn says(outcome: &Outcome, verdict: Verdict, said: &str) {
    let whole = format!("{} {}", outcome.message, String::from_utf8_lossy(&outcome.stderr));
    assert!(outcome.verdict == verdict && whole.contains(said), "{outcome:#?} says nothing of {said:?}");
}

#[test]
fn names_that_no_global_can_have_are_refused_before_anything_runs() {
    if !alone("refused::names_that_no_global_can_have_are_refused_before_anything_runs") {
        return;
    }
    let input = Input::new(1).unwrap();
    let give = |names: &[&str]| names.iter().fold(Script::from("print(1)"), |script, name| script.give(*name, &input));
    for way in Way::all(BARE.as_ref(), None, &[]) {
        for name in ["a b", "1a", "for", "inputs", "__file__", "result", ""] {
            says(&way.run(give(&[name])), Verdict::Unavailable, &format!("{name:?} cannot name a value"));
        }
        says(&way.run(give(&["x", "x"])), Verdict::Unavailable, "two inputs are named \"x\"");
        says(&way.run(give(&["x"]).input("x", "/etc/hostname")), Verdict::Unavailable, "two inputs are named \"x\"");
        let many: Vec<String> = (0..129).map(|number| format!("x{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        says(&way.run(give(&many)), Verdict::Unavailable, "129 inputs that are values, the most is 128");
        // As many as there may be.
        let sum = format!("result = {}", many[1..].join(" + "));
        let script = many[1..].iter().fold(Script::from(sum), |script, name| script.give(*name, &input));
        assert_eq!(way.result(script), Value::from(128));
    }
}

#[test]
fn library_that_the_image_lacks_is_named() {
    if !alone("refused::library_that_the_image_lacks_is_named") {
        return;
    }
    let Some((python, packages)) = libraries() else { return };
    // As pandas without pyarrow sees it.
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    fs::write(folder.path().join("pyarrow.py"), "raise ModuleNotFoundError('No module named pyarrow', name='pyarrow')")
        .unwrap();
    let prices = Table::from_ipc(TableKind::Frame, stream(&python)).unwrap();
    let table = Input::new(prices).unwrap();
    let array = Input::new(Array::from(&[1.0][..])).unwrap();
    assert!(packages.join("pyarrow").exists());
    for way in Way::all(BARE.as_ref(), None, &[]) {
        let ran = way.run(Script::from("print('it runs')").give("ones", &array));
        says(&ran, Verdict::Error, "the input 'ones' holds an array, which needs numpy, and numpy is not in the image");
        assert!(ran.stdout.is_empty());
        let ran = way.run(Script::from("print('it runs')").give("prices", &table));
        says(
            &ran,
            Verdict::Error,
            "the input 'prices' holds a table, which needs pandas, and pandas is not in the image",
        );
    }
    let hidden = Way::cold(&python, &[("env", "PYTHONPATH=/input/libs")]);
    let script = Script::from("print('it runs')").input("libs", folder.path()).give("prices", &table);
    let ran = hidden.run(script);
    says(
        &ran,
        Verdict::Error,
        "the input 'prices' holds a table, which needs pyarrow, and pyarrow is not in the image",
    );
    assert!(ran.stdout.is_empty());
}

/// The Arrow stream of a small frame, from the interpreter's own pandas.
fn stream(python: &std::path::Path) -> Vec<u8> {
    let made = Way::cold(python, &[]).result(Script::from("import pandas as pd\nresult = pd.DataFrame({'a': [1, 2]})"));
    let Value::Table(table) = made else { panic!("{made:?}") };
    table.ipc().unwrap().to_vec()
}

#[test]
fn no_room_for_descriptors_is_said() {
    if !alone("refused::no_room_for_descriptors_is_said") {
        return;
    }
    let input = Input::new(1).unwrap();
    let names: Vec<String> = (0..40).map(|number| format!("x{number}")).collect();
    let pool = Way::warm(BARE.as_ref(), "json", &[("limits.open_files", "32")]);
    let script = names.iter().fold(Script::from("print(1)"), |script, name| script.give(name.as_str(), &input));
    says(&pool.run(script), Verdict::Error, "the limit of open files leaves no room for it");
    assert_eq!(pool.result(Script::from("result = x").give("x", &input)), Value::from(1));
}
