//! `--image host`.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nsbox::image::{self, Error, Image};
use tempfile::TempDir;

use crate::machine::{interpreters, run, run_inside, skip, venv};

/// Loads extension modules with libraries of the system and of the installation, and shows what was found.
const IMPORTS: &str = "
import bz2, ctypes, decimal, hashlib, json, lzma, os, sqlite3, ssl, subprocess, time, zlib, zoneinfo
hashlib.sha256(); hashlib.blake2b(); ssl.create_default_context(); ctypes.CDLL(None).getpid()
sqlite3.connect(':memory:').execute('select 1')
assert str(zoneinfo.ZoneInfo('Asia/Taipei')), 'no time zones'
assert time.tzname == ('UTC', 'UTC'), time.tzname
assert subprocess.check_output(['/bin/sh', '-c', 'echo $0']) == b'/bin/sh\\n'
import pwd, socket
assert pwd.getpwuid(1000).pw_name == 'nsbox'
assert not os.path.exists('/sys') and not os.path.exists('/var/lib')
print(json.dumps([sys.version_info[:2], sys.prefix, sys.base_prefix, sys.implementation.cache_tag]))
";

/// What an interpreter says of itself on the host: version, prefixes, cache tag, and the paths that `site` added.
const ITSELF: &str = "
import json, os, sys
without = set(json.loads(sys.argv[1]))
added = [os.path.realpath(path) for path in sys.path if path not in without]
added = [path for path in added if not os.path.isdir(path) or os.listdir(path)]
print(json.dumps([sys.version_info[:2], os.path.realpath(sys.prefix), os.path.realpath(sys.base_prefix),
                  sys.implementation.cache_tag, list(dict.fromkeys(added))]))
";

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

fn store() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Compares an image with what its interpreter says outside, then runs it inside.
fn check(python: &Path, store: &Path) -> Image {
    let image = image::host(Some(python), store).unwrap();
    let found = &image.python;
    let run = |args: &[&str]| run(python, &args.iter().map(OsStr::new).collect::<Vec<_>>());
    let without = run(&["-E", "-s", "-S", "-c", "import json, sys; print(json.dumps(sys.path))"]);
    let itself = json(&run(&["-E", "-s", "-c", ITSELF, without.trim()]));
    let told = serde_json::json!([
        [found.version.0, found.version.1],
        found.prefix.to_str(),
        found.base_prefix.to_str(),
        found.cache_tag,
        found.sys_path.iter().map(|path| path.to_str()).collect::<Vec<_>>()
    ]);
    assert_eq!(told, itself, "{python:?}");
    if let Some(inside) = run_inside(&image, IMPORTS) {
        assert_eq!(json(&inside).as_array().unwrap()[..], itself.as_array().unwrap()[..4], "{python:?}");
    }
    image
}

#[test]
fn interpreter_is_what_it_says_and_runs_in_its_root() {
    let store = store();
    for python in interpreters() {
        let image = check(&python, store.path());
        assert_eq!(image.name, "host");
        assert!(image.python.env.is_empty(), "{python:?} needs {:?}", image.python.env);
    }
}

#[test]
fn venv_is_what_it_says_and_runs_in_its_root() {
    let store = store();
    for python in interpreters() {
        for options in [&[][..], &["--system-site-packages"], &["--copies"]] {
            let folder = tempfile::tempdir().unwrap();
            let venv_folder = folder.path().join("env");
            venv(&python, &venv_folder, options);
            let site = fs::read_dir(venv_folder.join("lib")).unwrap().next().unwrap().unwrap().path();
            fs::write(site.join("site-packages/strategy_helper.py"), "answer = 42").unwrap();

            let image = check(&venv_folder.join("bin/python3"), store.path());
            assert!(image.late_binds.iter().any(|bind| bind.target.ends_with("env")), "{image:#?}");
            if let Some(inside) = run_inside(&image, "import strategy_helper as h; print(h.answer, sys.executable)") {
                assert_eq!(inside.trim(), format!("42 {}", image.python.executable.display()));
            }
        }
    }
}

#[test]
fn venv_of_a_venv_leads_to_the_installation() {
    let store = store();
    for python in interpreters() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("first"), folder.path().join("second"));
        venv(&python, &first, &[]);
        venv(&first.join("bin/python3"), &second, &["--copies"]);
        // As other tools write it: the base is the first venv.
        let config = format!("home = {}\ninclude-system-site-packages = false\n", first.join("bin").display());
        fs::write(second.join("pyvenv.cfg"), config).unwrap();
        let image = image::host(Some(&second.join("bin/python3")), store.path()).unwrap();
        assert_eq!(image.python.prefix, second);
        if let Some(inside) = run_inside(&image, "import json; print(sys.base_prefix)") {
            assert_eq!(Path::new(inside.trim()), image.python.base_prefix);
        }
    }
}

#[test]
fn venv_reached_through_links_brings_them_along() {
    let store = store();
    for python in interpreters() {
        // Not under /tmp, so that the links themselves are in the skeleton; and under it.
        for parent in [Path::new("/var/tmp"), Path::new("/tmp")] {
            let folder = tempfile::tempdir_in(parent).unwrap();
            let real = folder.path().join("hops");
            fs::create_dir(&real).unwrap();
            symlink(&python, real.join("python3")).unwrap();
            let venv_folder = folder.path().join("env");
            venv(&python, &venv_folder, &[]);
            fs::remove_file(venv_folder.join("bin/python3")).unwrap();
            symlink(real.join("python3"), venv_folder.join("bin/python3")).unwrap();
            let image = image::host(Some(&venv_folder.join("bin/python3")), store.path()).unwrap();
            if let Some(inside) = run_inside(&image, "import json, os; print(os.readlink(sys.executable))") {
                assert_eq!(Path::new(inside.trim()), real.join("python3"));
            }
        }
    }
}

#[test]
fn venv_of_an_installation_behind_a_linked_folder_runs_in_its_root() {
    let store = store();
    for python in interpreters() {
        // As uv keeps them: the venv's home names a link to the folder of the patch version.
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let real = fs::canonicalize(&python).unwrap();
        let linked = folder.path().join("cpython-3");
        symlink(real.parent().unwrap().parent().unwrap(), &linked).unwrap();
        let executable = linked.join("bin").join(real.file_name().unwrap());
        let venv_folder = folder.path().join("env");
        venv(&python, &venv_folder, &[]);
        fs::remove_file(venv_folder.join("bin/python3")).unwrap();
        symlink(&executable, venv_folder.join("bin/python3")).unwrap();
        fs::write(venv_folder.join("pyvenv.cfg"), format!("home = {}\n", linked.join("bin").display())).unwrap();
        let image = image::host(Some(&venv_folder.join("bin/python3")), store.path()).unwrap();
        assert!(image.python.env.is_empty(), "{image:#?}");
        if let Some(inside) = run_inside(&image, "import json, os; print(os.path.realpath(sys.base_prefix))") {
            assert_eq!(Path::new(inside.trim()), image.python.base_prefix);
        }
    }
}

#[test]
fn venv_whose_home_lost_its_library_is_told_where_it_is() {
    let store = store();
    for python in interpreters() {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let venv_folder = folder.path().join("env");
        venv(&python, &venv_folder, &[]);
        let elsewhere = folder.path().join("bin");
        fs::create_dir(&elsewhere).unwrap();
        fs::write(venv_folder.join("pyvenv.cfg"), format!("home = {}\n", elsewhere.display())).unwrap();
        let image = image::host(Some(&venv_folder.join("bin/python3")), store.path()).unwrap();
        assert_eq!(image.python.env, [("PYTHONHOME".to_owned(), image.python.base_prefix.clone().into())]);
        if let Some(inside) = run_inside(&image, "import json; print(sys.base_prefix, json.__file__)") {
            assert!(inside.starts_with(image.python.base_prefix.to_str().unwrap()), "{inside}");
        }
    }
}

#[test]
fn venv_with_a_name_that_is_no_text_runs_in_its_root() {
    let store = store();
    for python in interpreters() {
        let folder = tempfile::tempdir().unwrap();
        let venv_folder = folder.path().join(OsStr::from_bytes(b"an env \xff"));
        // The module cannot write such a name into its scripts.
        venv(&python, &folder.path().join("plain"), &[]);
        fs::rename(folder.path().join("plain"), &venv_folder).unwrap();
        let image = image::host(Some(&venv_folder.join("bin/python3")), store.path()).unwrap();
        assert_eq!(image.python.prefix, venv_folder);
        if let Some(inside) = run_inside(&image, "import json; print('there')") {
            assert_eq!(inside.trim(), "there");
        }
    }
}

#[test]
fn pth_files_are_followed_as_site_follows_them() {
    let store = store();
    for python in interpreters() {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let venv_folder = folder.path().join("env");
        venv(&python, &venv_folder, &[]);
        let lib = fs::read_dir(venv_folder.join("lib")).unwrap().next().unwrap().unwrap().path();
        let site = lib.join("site-packages");
        let project = folder.path().join("project");
        for path in [&project.join("src"), &site.join("nested"), &site.join("second"), &site.join(" led")] {
            fs::create_dir_all(path).unwrap();
            fs::write(path.join("found_by_pth.py"), "").unwrap();
        }
        fs::write(
            site.join("a.pth"),
            format!("# {0}\n\nimport sys\nimport\tsys\n{0}/src/../src  \n", project.display()),
        )
        .unwrap();
        fs::write(site.join("b.pth"), "second\r\nnested\rmissing\nnested\n led\n/\0\n").unwrap();
        fs::write(site.join("c.txt"), "/usr").unwrap();
        let image = check(&venv_folder.join("bin/python3"), store.path());
        assert!(image.binds.iter().any(|bind| bind.target == project.join("src")), "{image:#?}");
        assert!(!image.binds.iter().any(|bind| bind.target == project), "{image:#?}");
        if let Some(inside) = run_inside(&image, "import found_by_pth as f; print(f.__file__)") {
            assert_eq!(PathBuf::from(inside.trim()), project.join("src/found_by_pth.py"));
        }
    }
}

#[test]
fn pth_file_that_names_a_home_is_refused() {
    let store = store();
    for python in interpreters().iter().take(1) {
        for wide in ["/", "/etc", "/tmp", "/home", "/root", "/proc/self", "/usr", "/dev"] {
            let folder = tempfile::tempdir().unwrap();
            let venv_folder = folder.path().join("env");
            venv(python, &venv_folder, &[]);
            let lib = fs::read_dir(venv_folder.join("lib")).unwrap().next().unwrap().unwrap().path();
            fs::write(lib.join("site-packages/wide.pth"), format!("{wide}\n")).unwrap();
            match image::host(Some(&venv_folder.join("bin/python3")), store.path()) {
                Err(error @ Error::TooWide { .. }) => assert!(error.to_string().contains("wide.pth"), "{error}"),
                other => panic!("{wide}: {other:?}"),
            }
        }
    }
}

#[test]
fn venv_in_a_project_shows_no_more_of_it_than_python() {
    let store = store();
    for python in interpreters() {
        let project = tempfile::tempdir_in("/var/tmp").unwrap();
        venv(&python, project.path(), &[]);
        fs::write(project.path().join("secret.env"), "KEY=1").unwrap();
        let image = image::host(Some(&project.path().join("bin/python3")), store.path()).unwrap();
        let code = format!("import os; print(sorted(os.listdir({:?})))", project.path().to_str().unwrap());
        if let Some(inside) = run_inside(&image, &code) {
            assert!(inside.contains("'bin'") && inside.contains("'lib'"), "{inside}");
            assert!(!inside.contains("secret"), "{inside}");
        }
    }
}

#[test]
fn image_shows_nothing_of_homes_and_etc() {
    let store = store();
    for python in interpreters() {
        let image = image::host(Some(&python), store.path()).unwrap();
        for bind in image.binds.iter().chain(&image.late_binds) {
            assert!(!bind.target.starts_with("/etc") && !bind.target.starts_with("/var"), "{bind:?}");
            assert_eq!(fs::canonicalize(&bind.source).unwrap(), bind.source, "a source is a real path");
        }
        // Outside, the secrets are there.
        assert!(Path::new("/etc/shadow").exists());
        if let Some(inside) = run_inside(&image, "import os; print(os.listdir('/etc'))") {
            for secret in ["shadow", "ssh", "fstab", "environment"] {
                assert!(!inside.contains(&format!("'{secret}'")), "{inside}");
            }
        }
    }
}

#[test]
fn unusable_interpreters_are_named() {
    let store = store();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    symlink("nowhere", at("dangling")).unwrap();
    symlink("loop", at("loop")).unwrap();
    fs::write(at("script"), "#!/bin/sh\nexec python3 \"$@\"\n").unwrap();
    fs::write(at("plain"), "").unwrap();
    fs::set_permissions(at("script"), Permissions::from_mode(0o755)).unwrap();
    let error = |path: &Path| image::host(Some(path), store.path()).unwrap_err();
    for (path, code) in [
        (at("missing"), "image-resolve"),
        (at("dangling"), "image-resolve"),
        (at("loop"), "image-resolve"),
        (at("script"), "image-not-python"),
        (at("plain"), "image-not-python"),
        (folder.path().to_owned(), "image-not-python"),
        ("/bin/sh".into(), "image-not-python"),
    ] {
        let error = error(&path);
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains("--python"), "{error}");
    }
}

#[test]
fn versions_out_of_range_are_named() {
    let store = store();
    let Some(python) = interpreters().pop() else { return };
    for version in ["9", "15"] {
        let folder = tempfile::tempdir().unwrap();
        let executable = folder.path().join(format!("bin/python3.{version}"));
        let lib = folder.path().join(format!("lib/python3.{version}"));
        fs::create_dir_all(&lib).unwrap();
        fs::create_dir(folder.path().join("bin")).unwrap();
        fs::write(lib.join("os.py"), "").unwrap();
        fs::copy(fs::canonicalize(&python).unwrap(), &executable).unwrap();
        let error = image::host(Some(&executable), store.path()).unwrap_err();
        assert_eq!(error.code(), "image-version");
        assert!(error.to_string().contains(&format!("Python 3.{version},")), "{error}");
    }
}

#[test]
fn relocated_installation_is_found_by_its_landmark() {
    let store = store();
    let Some(python) = crate::rootfs::self_contained() else { return skip("no Python here can be moved") };
    let folder = tempfile::tempdir().unwrap();
    // As conda lays it out: everything below one prefix, `python3` and `python` links to `python3.N`.
    let prefix = folder.path().join("conda env");
    crate::rootfs::copy_installation(&python, &prefix);
    fs::create_dir(prefix.join("conda-meta")).unwrap();
    fs::create_dir(prefix.join("pkgs")).unwrap();
    let image = image::host(Some(&prefix.join("bin/python")), store.path()).unwrap();
    assert_eq!(image.python.prefix, prefix);
    assert!(image.late_binds.iter().all(|bind| bind.target != prefix), "a base has folders that Python does not need");
    if let Some(inside) = run_inside(&image, "import json; print(json.__file__)") {
        assert!(Path::new(inside.trim()).starts_with(&prefix), "{inside}");
    }
}
