//! The other engine: it builds the same files from the same locks, and runs the image that nsbox built.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::engine::{BASE, Engine};
use crate::harness::require;
use crate::metrics::{OUTSIDE, assert_same};
use crate::small::digests;
use crate::store::{printed, shown, slim, store};
use crate::strategies::{inside, prices, script};
use crate::tree::{self, of_command, of_layout};

/// What `docker build` is given: the tree's own files, and the packages that the store has fetched.
fn context(folder: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (from, to) = (root.join("rootfs"), folder.join("rootfs"));
    fs::create_dir(&to).unwrap();
    fs::copy(root.join("Dockerfile.sandbox"), folder.join("Dockerfile.sandbox")).unwrap();
    printed_of(Command::new("cp").arg("-r").arg(from.join(".")).arg(&to));
    let packages = to.join("packages");
    fs::create_dir(&packages).unwrap();
    for name in ["debian.txt", "slim.txt"] {
        for hex in digests(&fs::read_to_string(from.join("lock").join(name)).unwrap()) {
            fs::hard_link(store().join("cache").join(&hex), packages.join(&hex)).unwrap();
        }
    }
}

#[track_caller]
fn printed_of(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", shown(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// `docker load` of the store's own layout; the image's id.
fn load(engine: &Engine) -> String {
    let folder = tempfile::tempdir_in(store()).unwrap();
    let archive = folder.path().join("image.tar");
    let mut tar = tar::Builder::new(File::create(&archive).unwrap());
    tar.append_dir_all("", &slim().layout).unwrap();
    tar.finish().unwrap();
    let said = printed(engine.docker(["load", "--quiet", "--input", &archive.display().to_string()]));
    said.rsplit(' ').next().unwrap().to_owned()
}

/// What containers of an image start with.
fn config(engine: &Engine, image: &str) -> Value {
    let all: Value = serde_json::from_str(&printed(engine.docker(["image", "inspect", image]))).unwrap();
    let config = &all[0]["Config"];
    ["Env", "User", "WorkingDir", "Cmd"].into_iter().map(|key| (key.to_owned(), config[key].clone())).collect()
}

#[test]
fn docker_builds_the_same_files_and_runs_nsboxs_image() {
    let Some(engine) = Engine::shared() else { return };
    if !engine.has_base() {
        return;
    }
    let ours = of_layout(&slim().layout);
    let loaded = load(&engine);
    let loaded_config = config(&engine, &loaded);
    let bind = |from: PathBuf, to: &str| format!("--volume={}:{to}:ro", from.display());
    let (strategy, prices) = (bind(script("pandas_trend"), "/tmp/strategy.py"), bind(prices(), "/input/prices"));
    let run =
        ["run", "--rm", "--network=none", &strategy, &prices, &loaded, "python3", "-c", OUTSIDE, "/tmp/strategy.py"];
    let outside = serde_json::from_str(&printed(engine.docker(run))).unwrap();
    assert_same(&inside(&script("pandas_trend")).json["metrics"], &outside, "docker run");
    printed(engine.docker(["rmi", "--force", &loaded]));

    let folder = tempfile::tempdir_in(store()).unwrap();
    context(folder.path());
    let (base, context) = (format!("BASE={BASE}"), folder.path().display().to_string());
    let file = folder.path().join("Dockerfile.sandbox").display().to_string();
    let args = ["build", "--network=none", "--force-rm", "--build-arg", &base, "--build-arg", "PROFILE=slim"];
    let args = [args.as_slice(), &["--tag", "theirs", "--file", &file, &context]].concat();
    printed_of(engine.docker(args).env("DOCKER_BUILDKIT", "0"));
    let container = printed(engine.docker(["create", "theirs"]));
    let theirs = of_command(engine.docker(["export", &container]));
    assert!(ours.len() > 10_000 && require(!theirs.is_empty(), "files in Docker's image"));
    tree::assert_same(&ours, &theirs);
    assert_eq!(config(&engine, "theirs"), loaded_config);
}
