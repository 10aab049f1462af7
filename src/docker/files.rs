//! A run's files on this host: copies of inputs that only their owner may read, and the artifacts as they come.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use bollard::models::{Mount, MountBindOptions, MountBindOptionsPropagationEnum, MountType};

use super::Error;
use crate::image;
use crate::sandbox::cgroup::Owner;
use crate::sandbox::{Error as InputError, Script, check_input_name, idmap, input};

/// Where the guest sees files and folders.
const INPUTS: &str = "/input";
/// Where container.py finds values.
const VALUES: &str = "/run/nsbox/values";

/// A folder of one run, in the store; removed with it.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
}

impl Folder {
    fn make(name: &str) -> Result<Self, Error> {
        let made = || -> io::Result<Self> {
            let parent = parent().map_err(io::Error::other)?;
            DirBuilder::new().recursive(true).mode(0o700).create(&parent)?;
            let path = parent.join(name);
            DirBuilder::new().mode(0o700).create(&path)?;
            Ok(Self { path })
        };
        made().map_err(|source| Error::Step { step: "make a folder in the store", source })
    }

    /// Removes those of dead supervisors. What cannot be removed is in nobody's way.
    pub(super) fn sweep(owner: &Owner) {
        let entries = parent().ok().and_then(|parent| fs::read_dir(parent).ok());
        for entry in entries.into_iter().flatten().flatten() {
            if owner.is_stale(&entry.file_name().to_string_lossy()) {
                fs::remove_dir_all(entry.path()).ok();
            }
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // The next start tries again.
        fs::remove_dir_all(&self.path).ok();
    }
}

fn parent() -> Result<PathBuf, image::Error> {
    Ok(image::store_dir()?.join("docker"))
}

/// The inputs of a run, as the engine binds them.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    pub mounts: Vec<Mount>,
    /// Copies of those that the guest's user could not read, and of values: nobody can bind a memfd.
    copies: Option<Folder>,
}

impl Inputs {
    /// Finds them; `name` is that of the run.
    pub(super) fn find(script: &Script, name: &str) -> Result<Self, Error> {
        input::check(&script.values, &script.inputs)?;
        let mut found = Self::default();
        for (i, (input, path)) in script.inputs.iter().enumerate() {
            check_input_name(&script.inputs, i)?;
            let failed = |source| InputError::Input { name: input.clone(), path: path.clone(), source };
            let mut source = path.canonicalize().map_err(failed)?;
            let metadata = fs::metadata(&source).map_err(failed)?;
            if !metadata.is_dir() && !metadata.is_file() {
                return Err(failed(io::Error::other("an input is a regular file or a folder")).into());
            }
            if !idmap::is_everybodys(&source).map_err(failed)? {
                let copy = found.folder(name)?.join(input);
                copy_open(&source, &copy).map_err(failed)?;
                source = copy;
            }
            found.mounts.push(bind(&source, INPUTS, input)?);
        }
        for (input, value) in &script.values {
            let copy = found.folder(name)?.join(input);
            let written = File::create_new(&copy).and_then(|mut file| {
                value.copy_to(&mut file)?;
                file.set_permissions(Permissions::from_mode(0o444))
            });
            written
                .map_err(|source| Error::Step { step: "copy an input to the store, for the engine to bind", source })?;
            found.mounts.push(bind(&copy, VALUES, input)?);
        }
        Ok(found)
    }

    /// The folder of the copies, made for the first.
    fn folder(&mut self, name: &str) -> Result<&Path, Error> {
        let folder = match &mut self.copies {
            Some(folder) => folder,
            none => none.insert(Folder::make(name)?),
        };
        Ok(&folder.path)
    }
}

fn bind(source: &Path, folder: &str, input: &str) -> Result<Mount, Error> {
    let Some(text) = source.to_str() else {
        let source_error = io::Error::other("its path is not UTF-8, which the engine cannot be told");
        let (name, path) = (input.to_owned(), source.to_owned());
        return Err(InputError::Input { name, path, source: source_error }.into());
    };
    let propagation = Some(MountBindOptionsPropagationEnum::RPRIVATE);
    Ok(Mount {
        target: Some(format!("{folder}/{input}")),
        source: Some(text.to_owned()),
        typ: Some(MountType::BIND),
        read_only: Some(true),
        // What is mounted below would not be read-only.
        bind_options: Some(MountBindOptions { propagation, non_recursive: Some(true), ..Default::default() }),
        ..Default::default()
    })
}

/// Copies a file or a tree, readable for everybody. Links stay links.
fn copy_open(source: &Path, target: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(source)?;
    if metadata.is_symlink() {
        return symlink(fs::read_link(source)?, target);
    }
    if metadata.is_dir() {
        fs::create_dir(target)?;
        for entry in fs::read_dir(source)? {
            let entry = entry?;
            copy_open(&entry.path(), &target.join(entry.file_name()))?;
        }
        return fs::set_permissions(target, Permissions::from_mode(0o755));
    }
    if metadata.is_file() {
        fs::copy(source, target)?;
        fs::set_permissions(target, Permissions::from_mode(0o644))?;
    }
    Ok(())
}

/// The tree of /output as it comes out of the container: what is over the limit is there with its size alone, and what is
/// neither a file nor a folder as a link, so that whoever collects them sees the same as in the container.
#[derive(Debug)]
pub(super) struct Staging {
    folder: Folder,
    left: u64,
    /// The file that pieces belong to, and how many bytes of it are to come.
    current: Option<(File, u64)>,
}

impl Staging {
    pub(super) fn make(name: &str, limit: u64) -> Result<Self, Error> {
        let folder = Folder::make(&format!("{name}-output"))?;
        Ok(Self { folder, left: limit, current: None })
    }

    /// Begins an artifact. Nothing in this folder was made by anybody else, so its path leads nowhere else.
    pub(super) fn begin(&mut self, kind: u8, size: u64, path: &[u8]) -> io::Result<()> {
        self.current = None;
        let path = Path::new(OsStr::from_bytes(path));
        let is_below = path.components().all(|part| matches!(part, Component::Normal(_)));
        if path.as_os_str().is_empty() || !is_below {
            return Err(io::Error::other("an artifact's path leads out of /output"));
        }
        let place = self.folder.path.join(path);
        match kind {
            b'd' => fs::create_dir(place),
            b'f' => {
                let file = OpenOptions::new().write(true).create_new(true).open(place)?;
                if let Some(left) = self.left.checked_sub(size) {
                    self.left = left;
                    self.current = Some((file, size));
                    Ok(())
                } else {
                    file.set_len(size)
                }
            }
            _ => symlink("/dev/null", place),
        }
    }

    /// Adds to the artifact that was begun, no more than its size: the limit holds whatever the container sends.
    pub(super) fn add(&mut self, piece: &[u8]) -> io::Result<()> {
        let Some((file, left)) = &mut self.current else { return Ok(()) };
        *left = left.checked_sub(piece.len() as u64).ok_or_else(|| io::Error::other("an artifact is over its size"))?;
        file.write_all(piece)
    }

    /// The tree, to be collected while this lives.
    pub(super) fn open(&self) -> io::Result<OwnedFd> {
        Ok(File::open(&self.folder.path)?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn artifact_longer_than_it_said_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder { path: place.path().join("output") };
        fs::create_dir(&folder.path).unwrap();
        let mut staging = Staging { folder, left: 8, current: None };
        staging.begin(b'f', 4, b"a").unwrap();
        staging.add(b"abc").unwrap();
        staging.add(b"de").unwrap_err();
        assert_eq!(fs::read(staging.folder.path.join("a")).unwrap(), b"abc");
        staging.begin(b'f', 5, b"over the limit").unwrap();
        staging.add(b"abcde").unwrap();
        assert_eq!(fs::read(staging.folder.path.join("over the limit")).unwrap(), [0; 5]);
        staging.begin(b'f', 1, b"../out").unwrap_err();
    }
}
