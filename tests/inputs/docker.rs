//! The same in containers, with a real engine.

use nsbox::config::Resolver;
use nsbox::docker::Docker;
use nsbox::outcome::{Backend, Outcome, Value, Verdict};
use nsbox::sandbox::{Script, Watch};

use crate::backends::{WRITES, give, written};
use crate::engine::{BASE, Engine};
use crate::harness::{alone_with, is_alone, store};
use crate::python::libraries;
use crate::strategies::Image;
use crate::{list, text};

/// The backend in a process of its own, for an image; `None` outside, when the test has passed, or cannot run.
#[track_caller]
fn beside_engine(test: &str, keys: &[(&str, &str)]) -> Option<Docker> {
    if !is_alone() {
        let engine = Engine::shared().filter(|engine| engine.has_base())?;
        alone_with(&[("DOCKER_HOST", &format!("unix://{}", engine.socket().display()))], test);
        return None;
    }
    let resolver = Resolver::new().flag("docker.image", BASE, "docker.image");
    let resolver = keys.iter().fold(resolver, |resolver, (key, value)| resolver.flag(*key, *value, *key));
    Some(Docker::new(resolver.resolve().unwrap().config).unwrap())
}

#[track_caller]
fn expect(outcome: &Outcome, verdict: Verdict) {
    assert_eq!((outcome.verdict, outcome.backend), (verdict, Some(Backend::Docker)), "{outcome:#?}");
}

#[test]
fn every_kind_is_there_and_writable_in_containers() {
    let keys = [("env", "PYTHONPATH=/input/libs")];
    let Some(docker) = beside_engine("docker::every_kind_is_there_and_writable_in_containers", &keys) else { return };
    let Some((_, packages)) = libraries() else { return };
    // The base image has the same version of Python, and no libraries of its own.
    for _ in 0..2 {
        let outcome = docker.run(give(WRITES).input("libs", &packages), Watch::default());
        expect(&outcome, Verdict::Ok);
        assert_eq!(outcome.result, Some(written()));
    }
    let own = format!("-{}-", std::process::id());
    let kept = std::fs::read_dir(store().join("docker")).into_iter().flatten().flatten();
    assert_eq!(kept.filter(|entry| entry.file_name().to_string_lossy().contains(&own)).count(), 0, "copies are left");
}

#[test]
fn plain_values_need_no_library_and_what_needs_one_says_so_in_containers() {
    let test = "docker::plain_values_need_no_library_and_what_needs_one_says_so_in_containers";
    let Some(docker) = beside_engine(test, &[("check", "false")]) else { return };
    let source = "
import os
place = '/run/nsbox/values/x'
try: open(place, 'r+b'); result = 'writable'
except OSError as error: result = error.strerror
links = [os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if os.path.lexists(f'/proc/self/fd/{fd}')]
result = [x, inputs['x'] is x, result, any('values' in link for link in links)]
";
    let script = Script::from(source).value("x", list([1.into(), text("a"), f64::INFINITY.into()])).unwrap();
    let outcome = docker.run(script, Watch::default());
    expect(&outcome, Verdict::Ok);
    let value = list([1.into(), text("a"), f64::INFINITY.into()]);
    // An ordinary user's own, or on a read-only mount.
    let refusals = ["Permission denied", "Read-only file system"];
    let Some(Value::List(found)) = &outcome.result else { panic!("{outcome:#?}") };
    assert_eq!((&found[0], &found[1], &found[3]), (&value, &true.into(), &false.into()));
    assert!(refusals.map(text).contains(&found[2]), "{found:?}");
    let outcome = docker.run(give("print('it runs')"), Watch::default());
    expect(&outcome, Verdict::Error);
    assert!(outcome.message.contains("needs numpy, and numpy is not in the image"), "{outcome:#?}");
    let outcome = docker.run(Script::from("pass").value("for", 1).unwrap(), Watch::default());
    assert!(outcome.verdict == Verdict::Unavailable && outcome.message.contains("\"for\" cannot name"), "{outcome:#?}");
}

#[test]
fn image_without_pyarrow_is_told_so() {
    let Some(engine) = Engine::shared().filter(|engine| engine.has_base()) else { return };
    let Some(image) = Image::make(&engine) else { return };
    let resolver = Resolver::new().flag("docker.image", image.name, "docker.image");
    let docker = Docker::new(resolver.resolve().unwrap().config).unwrap().socket(engine.socket());
    let outcome = docker.run(give("print('it runs')"), Watch::default());
    expect(&outcome, Verdict::Error);
    let said = "the input 'table' holds a table, which needs pyarrow, and pyarrow is not in the image";
    assert!(outcome.message.contains(said), "{outcome:#?}");
    assert!(outcome.stdout.is_empty());
}
