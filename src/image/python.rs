//! What an interpreter is, told by its files: version, prefixes and library are found where CPython itself would look
//! (`Modules/getpath.py`), without running it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::site::SitePath;
use super::tree::Tree;
use super::{Error, Interpreter, MINORS};

/// Venvs whose base is a venv, before it counts as a loop.
const MAX_VENVS: u8 = 8;

/// Folders below a prefix that may hold the standard library.
const LIBS: [&str; 2] = ["lib", "lib64"];

/// An interpreter's place in the file system. All paths are paths in its tree, and real but for `executable`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// What is to be started: a file, or in a venv perhaps a link.
    pub executable: PathBuf,
    /// The file behind it.
    pub base_executable: PathBuf,
    /// Links passed on the way from one to the other, and on the way to a venv's `home`.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// The library's version.
    pub version: Version,
    /// The venv, or the installation.
    pub prefix: PathBuf,
    /// The installation.
    pub base_prefix: PathBuf,
    /// Name of the folder that holds `python3.N` below the installation: `lib` or `lib64`.
    pub lib: &'static str,
    /// Whether the installation's site-packages are in use: always, but for most venvs.
    pub system_site: bool,
    /// Whether CPython needs `PYTHONHOME` to find the library.
    pub needs_home: bool,
}

/// Version of a Python 3, as its folder `python3.N` or `python3.Nt` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version {
    pub minor: u8,
    pub free_threaded: bool,
}

impl Version {
    /// From the name of an executable or a library folder: `python3.11`, `python3.13t`.
    fn parse(name: &OsStr) -> Option<Self> {
        let rest = name.to_str()?.strip_prefix("python3.")?;
        let digits = rest.trim_end_matches(|last: char| last.is_ascii_lowercase());
        Some(Self { minor: digits.parse().ok()?, free_threaded: rest[digits.len()..].contains('t') })
    }

    /// Name of the library's folder.
    pub fn folder(self) -> String {
        format!("python3.{}{}", self.minor, if self.free_threaded { "t" } else { "" })
    }
}

impl Layout {
    /// Reads the layout of the interpreter that an absolute path names.
    pub fn read(tree: &Tree, executable: &Path) -> Result<Self, Error> {
        Self::read_nested(tree, executable, 0)
    }

    fn read_nested(tree: &Tree, path: &Path, depth: u8) -> Result<Self, Error> {
        let unresolved = |source| Error::Resolve { path: path.to_owned(), source };
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(unresolved(io::ErrorKind::InvalidInput.into()));
        };
        let folder = tree.resolve(folder).map_err(unresolved)?.path;
        let executable = folder.join(name);
        let resolved = tree.resolve(&executable).map_err(unresolved)?;
        for prefix in folder.ancestors().take(2) {
            let config = prefix.join("pyvenv.cfg");
            if let Some(text) = read(tree, &config)? {
                let mut layout = Self::read_base(tree, &VenvConfig::parse(&text), &config, &resolved.path, depth)?;
                layout.links.extend(resolved.links);
                layout.executable = executable;
                layout.prefix = tree.resolve(prefix).map_err(unresolved)?.path;
                return Ok(layout);
            }
        }
        check_executable(tree, &resolved.path)?;
        let (version, base_prefix, lib) = find_library(tree, &resolved.path)?;
        Ok(Self {
            executable: resolved.path.clone(),
            base_executable: resolved.path,
            links: Vec::new(),
            version,
            prefix: base_prefix.clone(),
            base_prefix,
            lib,
            system_site: true,
            needs_home: false,
        })
    }

    /// The layout of a venv's base, which is behind the venv's link or, where the venv holds a copy, in its `home`.
    fn read_base(tree: &Tree, venv: &VenvConfig, config: &Path, real: &Path, depth: u8) -> Result<Self, Error> {
        let lost = || Error::Venv { config: config.to_owned() };
        let home = venv.home.as_deref().filter(|home| home.is_absolute()).ok_or_else(lost)?;
        let root = config.parent().unwrap_or(config);
        let base = if real.starts_with(tree.resolve(root).map_err(|_| lost())?.path) {
            let names = [real.file_name().unwrap_or_default(), OsStr::new("python3"), OsStr::new("python")];
            names.iter().map(|name| home.join(name)).find(|path| tree.is_executable(path)).ok_or_else(lost)?
        } else {
            real.to_owned()
        };
        if depth == MAX_VENVS {
            return Err(lost());
        }
        let mut layout = Self::read_nested(tree, &base, depth + 1)?;
        layout.system_site = venv.system_site;
        // CPython looks upwards from `home` as it is written there, which need not be where the real file is.
        let folder = layout.version.folder();
        let found = search_up(home, |up| library_below(tree, up, &folder));
        let found = found.and_then(|(prefix, _)| tree.find_dir(prefix));
        layout.needs_home |= found.as_ref() != Some(&layout.base_prefix);
        if let Ok(home) = tree.resolve(home) {
            layout.links.extend(home.links);
        }
        Ok(layout)
    }

    /// What the guest's runner is told, with what `site` would have added.
    pub fn into_interpreter(self, site: Vec<SitePath>) -> Interpreter {
        let home = self.needs_home.then(|| ("PYTHONHOME".to_owned(), self.base_prefix.clone().into_os_string()));
        Interpreter {
            version: (3, self.version.minor),
            cache_tag: format!("cpython-3{}", self.version.minor),
            executable: self.executable,
            prefix: self.prefix,
            base_prefix: self.base_prefix,
            sys_path: site.into_iter().map(|entry| entry.path).collect(),
            env: home.into_iter().collect(),
        }
    }
}

fn read(tree: &Tree, path: &Path) -> Result<Option<Vec<u8>>, Error> {
    tree.read(path).map_err(|source| Error::Read { path: tree.on_host(path), source })
}

/// Refuses shell wrappers and other programs by their first bytes and name.
fn check_executable(tree: &Tree, real: &Path) -> Result<(), Error> {
    let refused = |found| Err(Error::NotPython { path: real.to_owned(), found });
    if !tree.is_executable(real) {
        return refused("no executable file");
    }
    let mut magic = Vec::new();
    File::open(tree.on_host(real))
        .and_then(|file| file.take(4).read_to_end(&mut magic))
        .map_err(|source| Error::Read { path: tree.on_host(real), source })?;
    if magic.starts_with(b"#!") {
        return refused("a script");
    }
    if magic != b"\x7fELF" {
        return refused("no ELF file");
    }
    // A tool manager's shims are links to the manager, which looks at the name it is called by.
    if !real.file_name().is_some_and(|name| name.as_bytes().starts_with(b"python")) {
        return refused("another program");
    }
    Ok(())
}

/// The version, prefix and library folder of an executable.
fn find_library(tree: &Tree, real: &Path) -> Result<(Version, PathBuf, &'static str), Error> {
    let none = || Error::NoLibrary { executable: real.to_owned() };
    let folder = real.parent().ok_or_else(none)?;
    let named = real.file_name().and_then(Version::parse);
    let (prefix, (version, lib)) = search_up(folder, |up| match named {
        Some(version) => library_below(tree, up, &version.folder()).map(|lib| (version, lib)),
        None => only_library_below(tree, up),
    })
    .ok_or_else(none)?;
    if !MINORS.contains(&version.minor) {
        let found = version.folder().trim_start_matches("python").to_owned();
        return Err(Error::Version { executable: real.to_owned(), found });
    }
    Ok((version, tree.find_dir(prefix).ok_or_else(none)?, lib))
}

/// The first folder, from `start` upwards, for which there is an answer.
fn search_up<T>(start: &Path, answer: impl Fn(&Path) -> Option<T>) -> Option<(&Path, T)> {
    start.ancestors().find_map(|up| answer(up).map(|answer| (up, answer)))
}

/// Which of [`LIBS`] below a prefix has the landmark that CPython looks for.
fn library_below(tree: &Tree, prefix: &Path, folder: &str) -> Option<&'static str> {
    LIBS.into_iter().find(|lib| tree.find_file(&prefix.join(lib).join(folder).join("os.py")).is_some())
}

/// The library below a prefix, for an executable whose name has no version: there must be exactly one.
fn only_library_below(tree: &Tree, prefix: &Path) -> Option<(Version, &'static str)> {
    let mut found = LIBS.into_iter().flat_map(|lib| {
        let names = tree.names(&prefix.join(lib)).unwrap_or_default();
        let versions = names.into_iter().filter_map(|name| Version::parse(&name));
        versions
            .filter(move |version| library_below(tree, prefix, &version.folder()) == Some(lib))
            .map(move |v| (v, lib))
    });
    found.next().filter(|_| found.next().is_none())
}

/// What matters of a `pyvenv.cfg`.
#[derive(Debug, PartialEq, Eq)]
struct VenvConfig {
    home: Option<PathBuf>,
    system_site: bool,
}

impl VenvConfig {
    /// `key = value` lines; keys in any case, the last one of a key wins.
    fn parse(text: &[u8]) -> Self {
        let mut config = Self { home: None, system_site: true };
        for line in text.split(|byte| matches!(byte, b'\n' | b'\r')) {
            let mut parts = line.splitn(2, |byte| *byte == b'=');
            let (Some(key), Some(value)) = (parts.next(), parts.next()) else { continue };
            let value = value.trim_ascii();
            match key.trim_ascii().to_ascii_lowercase().as_slice() {
                b"home" => config.home = Some(OsString::from_vec(value.to_vec()).into()),
                b"include-system-site-packages" => config.system_site = !value.eq_ignore_ascii_case(b"false"),
                _ => {}
            }
        }
        config
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn versions_are_read_from_names() {
        let version = |name: &str| Version::parse(OsStr::new(name)).map(|found| (found.minor, found.free_threaded));
        assert_eq!(version("python3.11"), Some((11, false)));
        assert_eq!(version("python3.13t"), Some((13, true)));
        assert_eq!(version("python3.12d"), Some((12, false)));
        for none in ["python3", "python", "python3.", "python3.x", "python2.7", "python3.11-config", "pypy3.10"] {
            assert_eq!(version(none), None, "{none}");
        }
    }

    #[test]
    fn venv_configuration_is_read_as_python_reads_it() {
        let text = b"HOME=/a\r\n home = /b c \ninclude-system-site-packages = False\nversion = 3.11.7\nhomes = /x\n";
        let config = VenvConfig::parse(text);
        assert_eq!(config, VenvConfig { home: Some("/b c".into()), system_site: false });
        assert_eq!(VenvConfig::parse(b""), VenvConfig { home: None, system_site: true });
    }

    #[test]
    fn library_without_a_named_version_must_be_the_only_one() {
        let folder = tempfile::tempdir().unwrap();
        let tree = Tree::new(folder.path());
        let add = |name: &str| {
            let library = folder.path().join("usr").join(name);
            fs::create_dir_all(&library).unwrap();
            fs::write(library.join("os.py"), "").unwrap();
        };
        let only = || only_library_below(&tree, Path::new("/usr"));
        fs::create_dir_all(folder.path().join("usr/lib/python3.12/site-packages")).unwrap();
        assert_eq!(only(), None, "no landmark");
        add("lib64/python3.12");
        assert_eq!(only(), Some((Version { minor: 12, free_threaded: false }, "lib64")));
        add("lib/python3.11");
        assert_eq!(only(), None, "two versions");
    }

    proptest! {
        #[test]
        fn venv_configuration_takes_any_bytes(
            mut text in prop::collection::vec(any::<u8>(), 0..200),
            home in "/[a-z /]{0,20}[a-z]",
        ) {
            text.extend(format!("\nhome = {home}\n").bytes());
            prop_assert_eq!(VenvConfig::parse(&text).home, Some(PathBuf::from(home)));
        }
    }
}
