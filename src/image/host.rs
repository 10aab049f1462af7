//! `--image host`: the caller's own Python and its libraries, nothing to set up.
//!
//! Bound is what an interpreter needs: the system's programs and libraries, time zones, and the interpreter's own
//! folders. Homes, `/etc`, `/var` and the rest of the host stay out of sight.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::binds::Binds;
use super::pyenv::{self, Shim};
use super::python::Layout;
use super::site::site_paths;
use super::skeleton::Skeleton;
use super::tree::Tree;
use super::{Error, Image};

/// The system's programs and libraries, bound where they exist; links among them, as on merged-/usr hosts, stay links.
const SYSTEM: [&str; 7] = ["/bin", "/lib", "/lib64", "/usr/bin", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo"];

/// Where administrators put libraries that the loader's cache names.
const LOCAL_LIBRARIES: &str = "/usr/local/lib";

/// The host's own Python as an image: the one at the path `python`, or the first of that name on `PATH`, where `None`
/// means `python3`. It is found by reading files (pyenv shims, venvs, Debian's and conda's layouts), never by running it.
///
/// # Errors
/// An [`Error`] that names what was found where no supported Python (3.10 to 3.14) can be told, where it needs a folder
/// that would show more of the host than Python, or where the store cannot be written.
pub fn host(python: Option<&Path>, store: &Path) -> Result<Image, Error> {
    Caller::from_environment().host(python, store)
}

/// What the search for an interpreter depends on.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// `PATH`.
    pub path: OsString,
    /// The working directory.
    pub cwd: PathBuf,
    /// `PYENV_VERSION`.
    pub pyenv_version: Option<OsString>,
}

impl Caller {
    fn from_environment() -> Self {
        Self {
            path: env::var_os("PATH").unwrap_or_default(),
            // Without a working directory only absolute paths can be told.
            cwd: env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            pyenv_version: env::var_os("PYENV_VERSION"),
        }
    }

    pub(crate) fn host(&self, python: Option<&Path>, store: &Path) -> Result<Image, Error> {
        let tree = Tree::new("/");
        let layout = Layout::read(&tree, &self.find_python(&tree, python)?)?;
        let site = site_paths(&tree, &layout)?;

        let mut skeleton = Skeleton::new();
        let mut binds = Binds::of_host(&tree);
        let local = has_libraries(&tree, Path::new(LOCAL_LIBRARIES)).then_some(LOCAL_LIBRARIES);
        for path in SYSTEM.into_iter().chain(local) {
            binds.add_if_there(Path::new(path), &layout.executable)?;
        }
        binds.add_python(&layout, &site)?;
        skeleton.copy(Path::new("/etc/ld.so.cache"));
        // Debian's BLAS and many of its programs are links into it.
        skeleton.copy_links(Path::new("/etc/alternatives"));

        let (binds, late_binds) = binds.finish(&mut skeleton)?;
        Ok(Image {
            name: "host".into(),
            digest: None,
            skeleton: skeleton.build(store)?,
            binds,
            late_binds,
            python: layout.into_interpreter(site),
            lease: None,
        })
    }

    /// The interpreter at a path, or the first of its name on the search path; shims resolved.
    pub(crate) fn find_python(&self, tree: &Tree, python: Option<&Path>) -> Result<PathBuf, Error> {
        let python = python.unwrap_or(Path::new("python3"));
        // As in a shell, what has no slash is looked for.
        let is_name = python.parent() == Some(Path::new(""));
        let given = (!is_name).then(|| self.cwd.join(python));
        let name = python.file_name().unwrap_or_default();
        let searched = env::split_paths(&self.path).map(|folder| self.cwd.join(folder).join(name));
        let searched = searched.filter(|candidate| tree.is_executable(candidate));

        let mut system = false;
        for candidate in given.into_iter().chain(searched) {
            match pyenv::shim_root(tree, &candidate)? {
                None => return Ok(candidate),
                Some(_) if system => {}
                Some(root) => match pyenv::resolve(tree, &candidate, root, self)? {
                    Shim::Interpreter(path) => return Ok(path),
                    Shim::System => system = true,
                },
            }
        }
        Err(Error::NoPython { name: name.to_owned(), searched: self.path.clone() })
    }
}

/// Whether a folder holds shared libraries, itself or in a folder of Debian's architecture.
fn has_libraries(tree: &Tree, path: &Path) -> bool {
    let library = |name: &OsString| {
        let name = name.to_string_lossy();
        name.contains(".so") || name.ends_with("-linux-gnu")
    };
    tree.names(path).is_ok_and(|names| names.iter().any(library))
}
