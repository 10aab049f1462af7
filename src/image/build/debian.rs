//! A root file system from packages of Debian: each is unpacked in the order of the lock, and none of its scripts runs.
//!
//! What those scripts would do for a running system (users, caches, alternatives) the guest has no use for, or
//! `rootfs/install.py` does. So a build needs neither root nor Debian, and nothing that it fetches runs on the host. See
//! deb(5).

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Component, Path, PathBuf};

use tar::{Builder, EntryType, Header};

/// Folders that are links into `/usr`, as on every Debian since 12.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];
/// Debian's list of what is installed; tools that look for known holes read it.
const STATUS: &str = "var/lib/dpkg/status";
/// The largest control file that is read.
const MAX_CONTROL: u64 = 1 << 20;

/// One tar of all packages, as a layer.
pub(super) struct Base {
    tar: Builder<File>,
    folders: HashSet<PathBuf>,
    status: String,
}

impl Base {
    /// An empty one, in `file`.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let mut base = Self { tar: Builder::new(file), folders: HashSet::new(), status: String::new() };
        for name in MERGED {
            base.folder(Path::new("usr").join(name))?;
            let mut header = header(EntryType::Symlink, 0o777);
            base.tar.append_link(&mut header, name, Path::new("usr").join(name))?;
        }
        Ok(base)
    }

    /// Adds a package: its files, and a paragraph to the list.
    pub(super) fn add(&mut self, deb: &Path) -> io::Result<()> {
        let mut archive = ar::Archive::new(File::open(deb)?);
        let (mut control, mut data) = (false, false);
        while let Some(member) = archive.next_entry() {
            let member = member?;
            let name = String::from_utf8_lossy(member.header().identifier()).into_owned();
            if name.starts_with("control.tar") {
                self.control(decompressed(&name, member)?)?;
                control = true;
            } else if name.starts_with("data.tar") {
                self.data(decompressed(&name, member)?)?;
                data = true;
            }
        }
        if control && data { Ok(()) } else { Err(invalid("it has no control.tar or no data.tar")) }
    }

    /// The finished tar, from its begin.
    pub(super) fn finish(mut self) -> io::Result<File> {
        for parent in ["var", "var/lib", "var/lib/dpkg"] {
            self.folder(parent.into())?;
        }
        let mut header = header(EntryType::Regular, 0o644);
        header.set_size(self.status.len() as u64);
        self.tar.append_data(&mut header, STATUS, self.status.as_bytes())?;
        let mut file = self.tar.into_inner()?;
        file.rewind()?;
        Ok(file)
    }

    fn control(&mut self, tar: impl Read) -> io::Result<()> {
        for entry in tar::Archive::new(tar).entries()? {
            let entry = entry?;
            if entry.path()?.file_name().is_some_and(|name| name == "control") {
                let mut text = String::new();
                entry.take(MAX_CONTROL).read_to_string(&mut text)?;
                let (first, rest) = text.split_once('\n').ok_or_else(|| invalid("its control file is empty"))?;
                self.status += &format!("{first}\nStatus: install ok installed\n{}\n\n", rest.trim_end());
                return Ok(());
            }
        }
        Err(invalid("it has no control file"))
    }

    fn data(&mut self, tar: impl Read) -> io::Result<()> {
        for entry in tar::Archive::new(tar).entries()? {
            let mut entry = entry?;
            let path = merged(&entry.path()?);
            if path.as_os_str().is_empty() {
                continue;
            }
            let kind = entry.header().entry_type();
            let mut header = header(kind, entry.header().mode()?);
            match kind {
                EntryType::Directory => self.folder(path)?,
                EntryType::Symlink | EntryType::Link => {
                    let target = entry.link_name()?.ok_or_else(|| invalid("a link leads nowhere"))?;
                    let target = if kind == EntryType::Link { merged(&target) } else { target.into_owned() };
                    self.tar.append_link(&mut header, path, target)?;
                }
                EntryType::Regular | EntryType::Continuous => {
                    header.set_size(entry.size());
                    self.tar.append_data(&mut header, path, &mut entry)?;
                }
                // Devices and the like: Debian's packages have none.
                _ => {}
            }
        }
        Ok(())
    }

    /// A folder, once.
    fn folder(&mut self, path: PathBuf) -> io::Result<()> {
        if self.folders.contains(&path) {
            return Ok(());
        }
        self.tar.append_data(&mut header(EntryType::Directory, 0o755), &path, io::empty())?;
        self.folders.insert(path);
        Ok(())
    }
}

fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(0);
    header
}

/// A path of a package as it is in the tree: without `./`, and below `/usr` where Debian merged it into that.
fn merged(path: &Path) -> PathBuf {
    let mut names = path.components().filter(|part| !matches!(part, Component::CurDir | Component::RootDir)).peekable();
    let moves = names.peek().is_some_and(|first| MERGED.iter().any(|name| first.as_os_str() == *name));
    let rest = names.collect::<PathBuf>();
    if moves { Path::new("usr").join(rest) } else { rest }
}

fn decompressed<'a>(name: &str, stream: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match Path::new(name).extension().and_then(|suffix| suffix.to_str()) {
        Some("tar") => Box::new(stream),
        Some("gz") => Box::new(flate2::read::MultiGzDecoder::new(stream)),
        Some("xz") => Box::new(liblzma::read::XzDecoder::new_multi_decoder(stream)),
        Some("zst") => Box::new(zstd::Decoder::new(stream)?),
        _ => return Err(invalid(&format!("{name} is compressed in a way that nsbox does not know"))),
    })
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_merged_into_usr() {
        for (path, expected) in [
            ("./", ""),
            ("./bin/dash", "usr/bin/dash"),
            ("./lib64/ld-linux-x86-64.so.2", "usr/lib64/ld-linux-x86-64.so.2"),
            ("/sbin", "usr/sbin"),
            ("./usr/bin/env", "usr/bin/env"),
            ("./library/x", "library/x"),
        ] {
            assert_eq!(merged(Path::new(path)), Path::new(expected), "{path}");
        }
    }

    #[test]
    fn package_without_content_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let deb = folder.path().join("a.deb");
        std::fs::write(&deb, b"!<arch>\n").unwrap();
        let mut base = Base::new(tempfile::tempfile().unwrap()).unwrap();
        assert_eq!(base.add(&deb).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
