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
