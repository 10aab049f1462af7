//! What CPython's `site` would append to `sys.path`: site folders, and the paths in their `.pth` files.
//!
//! The guest is started without `site`, whose work takes milliseconds of every run; here it takes microseconds.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::Error;
use super::python::Layout;
use super::tree::Tree;

/// One entry of `sys.path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SitePath {
    /// Real path of a folder, or of an archive, in the tree.
    pub path: PathBuf,
    /// The `.pth` file that names it; `None` for a site folder.
    pub named_by: Option<PathBuf>,
}

/// The entries for an interpreter, in the order of `site`, each once.
pub(crate) fn site_paths(tree: &Tree, layout: &Layout) -> Result<Vec<SitePath>, Error> {
    let failed = |path: &Path, source| Error::Read { path: tree.on_host(path), source };
    let mut paths: Vec<SitePath> = Vec::new();
    for folder in site_folders(tree, layout) {
        // `site` does not read the `.pth` files of a folder that it knows.
        if paths.iter().any(|known| known.path == folder) {
            continue;
        }
        let names = tree.names(&folder).map_err(|source| failed(&folder, source))?;
        // An empty folder is worth no mount.
        if names.is_empty() {
            continue;
        }
        paths.push(SitePath { path: folder.clone(), named_by: None });
        for name in pth_files(names) {
            let file = folder.join(name);
            let Some(text) = tree.read(&file).map_err(|source| failed(&file, source))? else { continue };
            for line in pth_lines(&text) {
                let line = Path::new(OsStr::from_bytes(line));
                let Some((path, _)) = tree.find(&normal(&folder.join(line))) else { continue };
                if !paths.iter().any(|known| known.path == path) {
                    paths.push(SitePath { path, named_by: Some(file.clone()) });
                }
            }
        }
    }
    Ok(paths)
}

/// The existing site folders of a venv, if it is one, and of the installation, if it is in use.
fn site_folders(tree: &Tree, layout: &Layout) -> Vec<PathBuf> {
    let venv = layout.prefix != layout.base_prefix;
    let version = layout.version.folder();
    let mut candidates = Vec::new();
    if venv {
        candidates.push(layout.prefix.join(layout.lib).join(&version).join("site-packages"));
    }
    if !venv || layout.system_site {
        let base = &layout.base_prefix;
        let debian = base == Path::new("/usr") && tree.find_dir(&base.join("lib/python3/dist-packages")).is_some();
        // Debian's interpreter reads the installation's site-packages from within a venv only.
        if !debian || venv {
            candidates.push(base.join(layout.lib).join(&version).join("site-packages"));
            candidates.push(base.join("lib").join(&version).join("site-packages"));
        }
        if debian {
            candidates.push(base.join("local/lib").join(&version).join("dist-packages"));
            candidates.push(base.join("lib/python3/dist-packages"));
            candidates.push(base.join("lib").join(&version).join("dist-packages"));
        }
    }
    candidates.iter().filter_map(|folder| tree.find_dir(folder)).collect()
}

/// The `.pth` files among the names of a folder, sorted as `site` sorts them; hidden ones are not read.
fn pth_files(mut names: Vec<OsString>) -> Vec<OsString> {
    names.retain(|name| name.as_bytes().ends_with(b".pth") && !name.as_bytes().starts_with(b"."));
    names.sort();
    names
}

/// The lines of a `.pth` file that are paths: not blank, no comment, no `import`.
fn pth_lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    text.split(|byte| matches!(byte, b'\n' | b'\r'))
        .filter(|line| !line.starts_with(b"#") && !line.starts_with(b"import ") && !line.starts_with(b"import\t"))
        .map(|line| &line[..line.len() - line.iter().rev().take_while(|byte| is_space(**byte)).count()])
        .filter(|line| !line.is_empty() && !line.contains(&0))
}

/// Whether Python's `str.rstrip` takes an ASCII character for space.
fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | 0x1c..=0x1f | b' ')
}

/// An absolute path without `.` and `..`, by its text alone, as `os.path.abspath` does it.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => normal.push(name),
            Component::ParentDir => {
                normal.pop();
            }
            _ => {}
        }
    }
    normal
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    fn lines(text: &[u8]) -> Vec<&[u8]> {
        pth_lines(text).collect()
    }

    #[test]
    fn pth_lines_are_the_paths() {
        let text = b"\xef\xbb\xbffirst\n#comment\nimport os\nimport\tos\nimportant\r\n \t\n  led\x0c \rlast";
        assert_eq!(lines(text), [&b"first"[..], b"important", b"  led", b"last"]);
    }

    #[test]
    fn pth_files_are_sorted_and_not_hidden() {
        let names = ["b.pth", ".hidden.pth", "a.pth", "c.pth.bak", "pth"].map(OsString::from);
        assert_eq!(pth_files(names.to_vec()), ["a.pth", "b.pth"]);
    }

    #[test]
    fn normal_paths_do_not_leave_the_root() {
        assert_eq!(normal(Path::new("/a/./b/../../../c")), Path::new("/c"));
    }

    proptest! {
        #[test]
        fn pth_lines_keep_every_path_in_order(
            paths in prop::collection::vec("[a-z/.]{1,12}(_ [a-z]{1,4})?", 0..8),
            noise in prop::collection::vec(select(vec!["", "  ", "# x", "import x", "import\tx; y", "\0"]), 0..9),
            end in select(vec!["\n", "\r\n", "\r"]),
        ) {
            let mut text = String::new();
            for at in 0..paths.len().max(noise.len()) {
                for line in [paths.get(at).map(String::as_str), noise.get(at).copied()].into_iter().flatten() {
                    text.push_str(line);
                    text.push_str(end);
                }
            }
            let expected: Vec<&[u8]> = paths.iter().map(String::as_bytes).collect();
            prop_assert_eq!(lines(text.as_bytes()), expected);
        }

        #[test]
        fn pth_lines_of_any_bytes_could_be_paths(text in prop::collection::vec(any::<u8>(), 0..200)) {
            for line in pth_lines(&text) {
                prop_assert!(!line.is_empty() && !line.iter().any(|byte| matches!(byte, 0 | b'\n' | b'\r')));
                prop_assert!(!line.starts_with(b"#") && !line.starts_with(b"import "));
            }
        }
    }
}
