//! What goes: images that are removed, and what the dead left behind.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::super::digest::Digest;
use super::error::failed;
use super::{Error, Store, is_at, listing, missing_is_fine, remove_all};

/// How long blobs of no image are kept for an import that goes on where another was cut off.
const KEEP: Duration = Duration::from_secs(24 * 3600);

impl Store {
    /// Removes a name, and the image with its last one; given a digest, the image with all its names. What is removed.
    ///
    /// # Errors
    /// [`Error::InUse`] while a run holds the image; then nothing is removed.
    pub fn remove(&self, name: &str) -> Result<Option<Digest>, Error> {
        let lock = self.lock()?;
        let digest = self.digest_of(name)?;
        let all = self.names()?;
        let is_name = all.iter().any(|(known, _)| known == name);
        let names: Vec<&String> = all.iter().filter(|(_, of)| *of == digest).map(|(name, _)| name).collect();
        let unlink = |name: &String| {
            let path = self.root.join("names").join(name);
            fs::remove_file(&path).map_err(failed("remove", &path))
        };
        if is_name && names.len() > 1 {
            unlink(&name.to_owned())?;
            return Ok(None);
        }
        let place = self.image_dir(&digest);
        let trash = self.staging_dir()?.join(format!("{}.trash", uuid::Uuid::now_v7()));
        match File::open(&place) {
            Ok(folder) => {
                if let Err(error) = folder.try_lock() {
                    return Err(match error {
                        fs::TryLockError::WouldBlock => Error::InUse { name: name.to_owned() },
                        fs::TryLockError::Error(error) => failed("lock", &place)(error),
                    });
                }
                names.into_iter().try_for_each(unlink)?;
                fs::rename(&place, &trash).map_err(failed("remove", &place))?;
            }
            // A name whose image is gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => names.into_iter().try_for_each(unlink)?,
            Err(error) => return Err(failed("open", &place)(error)),
        }
        drop(lock);
        self.clean(Duration::ZERO)?;
        Ok(Some(digest))
    }

    /// Removes what the dead left behind, and blobs that no image has had for a day.
    ///
    /// # Errors
    /// What cannot be removed.
    pub fn sweep(&self) -> Result<(), Error> {
        self.clean(KEEP)
    }

    fn clean(&self, keep: Duration) -> Result<(), Error> {
        let staging = self.staging_dir()?;
        for name in listing(&staging)? {
            let path = staging.join(&name);
            let Some(text) = name.to_str().filter(|name| *name != ".lock") else { continue };
            if let Some(made) = text.strip_suffix(".lock") {
                clean_staging(&path, &staging.join(made))?;
            } else if text.ends_with(".trash") {
                remove_all(&path)?;
            } else if text.ends_with(".spool") {
                fs::remove_file(&path).or_else(missing_is_fine).map_err(failed("remove", &path))?;
            }
        }
        for path in self.unused("partial", keep)? {
            // One that is being fetched is locked.
            if let Some(_lock) = locked(&path) {
                fs::remove_file(&path).or_else(missing_is_fine).map_err(failed("remove", &path))?;
            }
        }
        let _lock = self.lock()?;
        for path in self.unused("blobs/sha256", keep)? {
            fs::remove_file(&path).or_else(missing_is_fine).map_err(failed("remove", &path))?;
        }
        Ok(())
    }

    /// The files of a folder that no image has, and that nobody wrote to for so long.
    fn unused(&self, folder: &str, keep: Duration) -> Result<Vec<PathBuf>, Error> {
        let folder = self.root.join(folder);
        let now = SystemTime::now();
        let mut unused = Vec::new();
        for name in listing(&folder)? {
            let path = folder.join(name);
            let metadata = match fs::symlink_metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata.map_err(failed("look at", &path))?,
            };
            let age = metadata.modified().ok().and_then(|time| now.duration_since(time).ok()).unwrap_or_default();
            if metadata.nlink() == 1 && age >= keep {
                unused.push(path);
            }
        }
        Ok(unused)
    }
}

/// Removes a staging folder whose owner is gone.
fn clean_staging(lock_path: &Path, path: &Path) -> Result<(), Error> {
    if let Some(_lock) = locked(lock_path) {
        remove_all(path)?;
        fs::remove_file(lock_path).or_else(missing_is_fine).map_err(failed("remove", lock_path))?;
    }
    Ok(())
}

/// A file that nobody else has locked; it is locked now.
fn locked(path: &Path) -> Option<File> {
    let file = File::open(path).ok()?;
    (file.try_lock().is_ok() && is_at(&file, path)).then_some(file)
}
