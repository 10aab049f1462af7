//! Where the store is, and who may write to it.

use std::env;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::super::Error;

/// The store: `$NSBOX_STORE`; else, for root, `/var/lib/nsbox`; else `$XDG_DATA_HOME/nsbox` or `~/.local/share/nsbox`.
/// Relative values are passed over, as the XDG base directory specification asks.
///
/// # Errors
/// [`Error::NoStore`] where none of these is an absolute path. The folder itself is made when it is first needed.
pub fn store_dir() -> Result<PathBuf, Error> {
    choose(nix::unistd::geteuid().is_root(), |name| env::var_os(name)).ok_or(Error::NoStore)
}

fn choose(root: bool, variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(store) = path("NSBOX_STORE") {
        return Some(store);
    }
    if root {
        return Some(PathBuf::from("/var/lib/nsbox"));
    }
    path("XDG_DATA_HOME").or_else(|| Some(path("HOME")?.join(".local/share"))).map(|data| data.join("nsbox"))
}

/// A folder of the store, made where it is not there. Only its owner, root or the caller, may write to it.
pub(crate) fn shelf(store: &Path, name: &str) -> Result<PathBuf, Error> {
    let shelf = store.join(name);
    if trusted(&shelf)? {
        return Ok(shelf);
    }
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Store { path, source }
    };
    let mut builder = DirBuilder::new();
    builder.mode(0o755);
    builder.recursive(true).create(store).map_err(failed(store))?;
    match builder.recursive(false).create(&shelf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(&shelf)(error)),
        Err(_) => {}
        Ok(()) => fs::set_permissions(&shelf, Permissions::from_mode(0o755)).map_err(failed(&shelf))?,
    }
    Ok(shelf)
}

fn trusted(shelf: &Path) -> Result<bool, Error> {
    match fs::symlink_metadata(shelf) {
        Ok(metadata) => {
            let owner = metadata.uid() == 0 || metadata.uid() == nix::unistd::geteuid().as_raw();
            if metadata.is_dir() && owner && metadata.mode() & 0o022 == 0 {
                Ok(true)
            } else {
                Err(Error::StoreUnsafe { path: shelf.to_owned() })
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::Store { path: shelf.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(root: bool, variables: &[(&str, &str)]) -> Option<PathBuf> {
        choose(root, |name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn store_prefers_its_own_variable() {
        let variables = [("NSBOX_STORE", "/s"), ("XDG_DATA_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(chosen(true, &variables), Some("/s".into()));
        assert_eq!(chosen(false, &variables), Some("/s".into()));
    }

    #[test]
    fn store_of_root_is_the_systems() {
        assert_eq!(chosen(true, &[("HOME", "/root")]), Some("/var/lib/nsbox".into()));
    }

    #[test]
    fn store_of_a_user_follows_xdg_and_passes_over_relative_values() {
        assert_eq!(chosen(false, &[("XDG_DATA_HOME", "/x"), ("HOME", "/h")]), Some("/x/nsbox".into()));
        assert_eq!(chosen(false, &[("XDG_DATA_HOME", "x"), ("HOME", "/h")]), Some("/h/.local/share/nsbox".into()));
        assert_eq!(chosen(false, &[("NSBOX_STORE", "s"), ("HOME", "")]), None);
    }
}
