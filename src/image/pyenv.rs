//! Which interpreter a pyenv shim stands for, read from the files that pyenv reads.
//!
//! A shim is a shell script that starts `pyenv exec`, some 50 ms and several processes away from the interpreter.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::Error;
use super::host::Caller;
use super::tree::Tree;

/// What a pyenv shim stands for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Shim {
    /// An interpreter.
    Interpreter(PathBuf),
    /// The next one on the search path that is no shim.
    System,
}

/// The folder of pyenv, if a path is one of its shims: a script in its folder `shims`.
pub(crate) fn shim_root<'p>(tree: &Tree, path: &'p Path) -> Result<Option<&'p Path>, Error> {
    let shims = path.parent().filter(|folder| folder.file_name() == Some(OsStr::new("shims")));
    let Some(shims) = shims else { return Ok(None) };
    let text = tree.read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?.unwrap_or_default();
    let shim = text.starts_with(b"#!") && text.windows(5).any(|word| word == b"pyenv");
    Ok(shims.parent().filter(|_| shim))
}

/// Resolves a shim by `PYENV_VERSION`, the nearest `.python-version`, or pyenv's global `version` file.
pub(crate) fn resolve(tree: &Tree, shim: &Path, root: &Path, caller: &Caller) -> Result<Shim, Error> {
    let failed = |reason: String| Error::Shim { shim: shim.to_owned(), reason };
    let (names, origin) = selection(tree, root, caller)?;
    let name = shim.file_name().unwrap_or_default();
    let versions = root.join("versions");
    let mut without = Vec::new();
    for version in &names {
        if version == "system" {
            return Ok(Shim::System);
        }
        let Some(installed) = installed(tree, &versions, version) else {
            return Err(failed(format!("version {version:?}, set by {origin}, is not installed")));
        };
        let interpreter = versions.join(&installed).join("bin").join(name);
        if tree.is_executable(&interpreter) {
            return Ok(Shim::Interpreter(interpreter));
        }
        without.push(installed);
    }
    if names.is_empty() {
        return Ok(Shim::System);
    }
    Err(failed(format!("{without:?}, set by {origin}, have no {name:?}")))
}

/// The versions asked for, and by what.
fn selection(tree: &Tree, root: &Path, caller: &Caller) -> Result<(Vec<OsString>, String), Error> {
    if let Some(version) = caller.pyenv_version.as_deref().filter(|version| !version.is_empty()) {
        let names = version.as_bytes().split(|byte| *byte == b':').filter(|name| !name.is_empty());
        return Ok((names.map(|name| OsStr::from_bytes(name).to_owned()).collect(), "PYENV_VERSION".into()));
    }
    let local = caller.cwd.ancestors().map(|folder| folder.join(".python-version"));
    for file in local.chain([root.join("version")]) {
        if let Some(text) = tree.read(&file).map_err(|source| Error::Read { path: file.clone(), source })? {
            return Ok((version_names(&text), file.display().to_string()));
        }
    }
    Ok((Vec::new(), String::new()))
}

/// The first word of each line that is no comment; a path is no version.
fn version_names(text: &[u8]) -> Vec<OsString> {
    let lines = text.split(|byte| *byte == b'\n');
    let words = lines.filter_map(|line| line.split(u8::is_ascii_whitespace).find(|word| !word.is_empty()));
    let names = words.filter(|word| !word.starts_with(b"#") && *word != b".." && !word.contains(&b'/'));
    names.map(|word| OsString::from_vec(word.to_vec())).collect()
}

/// The installed version that a name means: itself, or the latest one that it is a prefix of; `python-` may lead it.
fn installed(tree: &Tree, versions: &Path, name: &OsStr) -> Option<OsString> {
    let bare = OsStr::from_bytes(name.as_bytes().strip_prefix(b"python-").unwrap_or(name.as_bytes()));
    let exact = [name, bare].into_iter().find(|name| tree.find_dir(&versions.join(name)).is_some());
    exact.map(OsStr::to_owned).or_else(|| latest(&tree.names(versions).ok()?, bare))
}

/// The latest final release among `names` that starts with `prefix` and a dot or dash.
fn latest(names: &[OsString], prefix: &OsStr) -> Option<OsString> {
    let prefix = prefix.to_str()?;
    let (prefix, suffix) = match prefix.strip_suffix('t') {
        Some(number) if number.ends_with(|last: char| last.is_ascii_digit()) => (number, "t"),
        _ => (prefix, ""),
    };
    let matching = names.iter().filter_map(|name| {
        let rest = name.to_str()?.strip_prefix(prefix)?.strip_prefix(['.', '-'])?.strip_suffix(suffix)?;
        // Only numbers: neither `3.13.0rc2`, `3.13-dev` nor, unless asked for, `3.13.0t`.
        let numbers: Option<Vec<u32>> = rest.split(['.', '-']).map(|number| number.parse().ok()).collect();
        Some((numbers?, name))
    });
    matching.max().map(|(_, name)| name.clone())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    struct Pyenv {
        folder: tempfile::TempDir,
        caller: Caller,
    }

    /// A pyenv with versions whose interpreters are empty executables, and its shim first on the search path.
    fn pyenv(versions: &[&str]) -> Pyenv {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for version in versions {
            executable(&root.join("versions").join(version).join("bin/python3"), "");
        }
        executable(&root.join("shims/python3"), "#!/usr/bin/env bash\nexec pyenv exec python3\n");
        executable(&root.join("system/python3"), "");
        fs::create_dir_all(root.join("project/deep")).unwrap();
        let path = format!("{0}/empty:{0}/shims:{0}/system", root.display()).into();
        let caller = Caller { path, cwd: root.join("project/deep"), pyenv_version: None };
        Pyenv { folder, caller }
    }

    fn executable(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    impl Pyenv {
        fn found(&self) -> Result<PathBuf, Error> {
            let found = self.caller.find_python(&Tree::new("/"), None)?;
            Ok(found.strip_prefix(self.folder.path()).unwrap().to_owned())
        }

        fn found_with(&mut self, version: &str) -> Result<PathBuf, Error> {
            self.caller.pyenv_version = Some(version.into());
            self.found()
        }

        fn write(&self, path: &str, text: &str) {
            fs::write(self.folder.path().join(path), text).unwrap();
        }
    }

    #[test]
    fn shim_follows_variable_then_local_then_global() {
        let mut pyenv = pyenv(&["3.10.1", "3.11.2", "3.12.3", "3.13.4"]);
        assert_eq!(pyenv.found().unwrap(), Path::new("system/python3"));
        pyenv.write("version", "3.10.1\n");
        assert_eq!(pyenv.found().unwrap(), Path::new("versions/3.10.1/bin/python3"));
        pyenv.write("project/.python-version", "# ours\n\n  3.11.2 ignored\r\n");
        assert_eq!(pyenv.found().unwrap(), Path::new("versions/3.11.2/bin/python3"));
        pyenv.write("project/deep/.python-version", "3.12.3");
        assert_eq!(pyenv.found().unwrap(), Path::new("versions/3.12.3/bin/python3"));
        assert_eq!(pyenv.found_with("3.13.4").unwrap(), Path::new("versions/3.13.4/bin/python3"));
        assert_eq!(pyenv.found_with("system").unwrap(), Path::new("system/python3"));
    }

    #[test]
    fn shim_takes_the_latest_release_of_a_prefix() {
        let mut pyenv = pyenv(&["3.11.9", "3.11.10", "3.11.11rc1", "3.1.0", "3.13.2", "3.13.3t", "3.14-dev"]);
        assert_eq!(pyenv.found_with("3.11").unwrap(), Path::new("versions/3.11.10/bin/python3"));
        assert_eq!(pyenv.found_with("python-3.11").unwrap(), Path::new("versions/3.11.10/bin/python3"));
        assert_eq!(pyenv.found_with("3.13").unwrap(), Path::new("versions/3.13.2/bin/python3"));
        assert_eq!(pyenv.found_with("3.13t").unwrap(), Path::new("versions/3.13.3t/bin/python3"));
        assert_eq!(pyenv.found_with("3.14-dev").unwrap(), Path::new("versions/3.14-dev/bin/python3"));
    }

    #[test]
    fn shim_of_a_missing_version_names_it_and_its_origin() {
        let mut pyenv = pyenv(&["3.11.9"]);
        let error = pyenv.found_with("3.12").unwrap_err();
        assert_eq!(error.code(), "image-shim");
        assert!(error.to_string().contains("3.12") && error.to_string().contains("PYENV_VERSION"), "{error}");
        pyenv.caller.pyenv_version = None;
        pyenv.write("project/.python-version", "3.9.9\n");
        assert!(pyenv.found().unwrap_err().to_string().contains("project/.python-version"));
    }

    #[test]
    fn shim_passes_over_versions_without_the_program_and_over_paths() {
        let mut pyenv = pyenv(&["3.11.9"]);
        fs::create_dir_all(pyenv.folder.path().join("versions/tools/bin")).unwrap();
        assert_eq!(pyenv.found_with("tools:3.11.9").unwrap(), Path::new("versions/3.11.9/bin/python3"));
        assert_eq!(pyenv.found_with("tools").unwrap_err().code(), "image-shim");
        pyenv.caller.pyenv_version = None;
        pyenv.write("version", "..\n../../system\n3.11.9\n");
        assert_eq!(pyenv.found().unwrap(), Path::new("versions/3.11.9/bin/python3"));
    }

    #[test]
    fn shim_reached_by_a_link_to_its_folder_is_a_shim() {
        let mut pyenv = pyenv(&["3.11.9"]);
        let root = pyenv.folder.path().to_owned();
        symlink(&root, root.join("linked")).unwrap();
        pyenv.caller.path = root.join("linked/shims").into();
        assert_eq!(pyenv.found_with("3.11.9").unwrap(), Path::new("linked/versions/3.11.9/bin/python3"));
    }

    #[test]
    fn name_is_looked_for_and_a_path_is_not() {
        let mut pyenv = pyenv(&["3.11.9"]);
        let root = pyenv.folder.path().to_owned();
        executable(&root.join("system/python3.12"), "");
        let found = |caller: &Caller, python: &str| caller.find_python(&Tree::new("/"), Some(Path::new(python)));
        assert_eq!(found(&pyenv.caller, "python3.12").unwrap(), root.join("system/python3.12"));
        assert_eq!(found(&pyenv.caller, "./python3.12").unwrap(), pyenv.caller.cwd.join("./python3.12"));
        assert_eq!(found(&pyenv.caller, "python3.9").unwrap_err().code(), "image-no-python");
        // A shim that is named stands for what pyenv makes of it.
        let shim = root.join("shims/python3");
        pyenv.caller.pyenv_version = Some("3.11.9".into());
        let expected = root.join("versions/3.11.9/bin/python3");
        assert_eq!(pyenv.caller.find_python(&Tree::new("/"), Some(&shim)).unwrap(), expected);
    }

    #[test]
    fn search_without_any_python_names_the_path() {
        let mut pyenv = pyenv(&[]);
        pyenv.caller.path = "/nonexistent:/dev/null".into();
        let error = pyenv.found().unwrap_err();
        assert_eq!(error.code(), "image-no-python");
        assert!(error.to_string().contains("/nonexistent:/dev/null"), "{error}");
    }
}
