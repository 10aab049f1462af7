//! Where the parts of an image are read from: a folder, or an archive whose members are found by an index.
//!
//! What kind of source a path is, its content tells: an archive with an `index.json` or a `manifest.json` holds images, any
//! other is a root file system.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use nix::fcntl::{OFlag, ResolveFlag};
use tar::EntryType;

use super::import::Limits;
use super::layer::{self, Compression};
use super::meter::{Meter, Metered};
use super::root::open_in;

/// The most members of an archive of images: far above 127 layers of each of many images.
const MAX_MEMBERS: usize = 100_000;
/// The longest name of a member that counts: a document names its layers by their digests. What has a longer one is passed
/// over, so that names alone fill no memory.
const MAX_NAME: usize = 512;
/// Links from member to member, as `docker save` of old writes for a layer that it has written before.
const MAX_LINKS: usize = 8;

/// Why a source cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No such file or folder, or not readable.
    #[error("failed to open it")]
    Open(#[source] io::Error),
    /// Neither file nor folder.
    #[error("it is no file or folder: give an OCI layout, an archive, or oci://HOST/NAME:TAG")]
    Kind,
    /// A broken archive.
    #[error("failed to read it as an archive: it is damaged or no tar archive")]
    Tar(#[source] io::Error),
    /// Headers beyond all measure.
    #[error("the headers of a member are larger than 1 MiB, or it has more than {MAX_MEMBERS} members (fixed limits)")]
    Headers,
    /// Its compression.
    #[error(transparent)]
    Stream(#[from] layer::Error),
    /// No room to decompress it.
    #[error("failed to decompress it into the store (NSBOX_STORE names another)")]
    Spool(#[source] io::Error),
}

impl Error {
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Open(_) => "archive-open",
            Self::Kind => "archive-kind",
            Self::Tar(_) => "archive-tar",
            Self::Headers => "archive-headers",
            Self::Stream(error) => error.code(),
            Self::Spool(_) => "archive-spool",
        }
    }
}

/// What a path turned out to be.
pub(crate) enum Opened {
    /// Images with their documents.
    Images(Content),
    /// The tar of a root file system, perhaps compressed.
    Rootfs(File),
}

/// The parts of images, by their paths.
#[derive(Debug)]
pub(crate) enum Content {
    Folder(File),
    Archive(Index),
}

impl Content {
    /// A part to be read, where there is one. Links in a folder are followed inside it.
    pub(crate) fn open(&self, path: &str) -> io::Result<Option<Box<dyn Read + Send>>> {
        let found = match self {
            Self::Folder(folder) => open_part(folder, path),
            Self::Archive(index) => return Ok(index.open(path)),
        };
        match found {
            Ok(file) => Ok(Some(Box::new(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn open_part(folder: &File, path: &str) -> io::Result<File> {
    // What is opened may be a FIFO, which nobody writes to.
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = File::from(open_in(folder, Path::new(path), flags, ResolveFlag::RESOLVE_BENEATH)?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    Ok(file)
}

/// Opens a source. What must be decompressed to be looked through goes into a file without a name in `spool`.
pub(crate) fn open(path: &Path, limits: &Limits, spool: &Path) -> Result<Opened, Error> {
    let metadata = path.metadata().map_err(Error::Open)?;
    if metadata.is_dir() {
        return File::open(path).map(|folder| Opened::Images(Content::Folder(folder))).map_err(Error::Open);
    }
    if !metadata.is_file() {
        return Err(Error::Kind);
    }
    let file = File::open(path).map_err(Error::Open)?;
    let mut start = [0; 8];
    let count = file.read_at(&mut start, 0).map_err(Error::Open)?;
    let compression = Compression::of(&start[..count])?;
    let file = match compression {
        Compression::None => file,
        _ if !holds_images(&file, compression)? => return Ok(Opened::Rootfs(file)),
        _ => decompress(&file, compression, limits, spool)?,
    };
    let (index, ended) = Index::build(file)?;
    if index.members.contains_key("index.json") || index.members.contains_key("manifest.json") {
        return ended.map(|()| Opened::Images(Content::Archive(index)));
    }
    // What is wrong with a root file system, its unpacking tells better.
    File::open(path).map(Opened::Rootfs).map_err(Error::Open)
}

/// Whether a compressed archive's first member is one of an archive of images: the rest has not been looked at.
fn holds_images(file: &File, compression: Compression) -> Result<bool, Error> {
    let decoder = compression.decoder(BufReader::new(Region::whole(file)?)).map_err(Error::Tar)?;
    let meter = Rc::new(Meter::default());
    meter.expect_headers();
    let mut archive = tar::Archive::new(Metered { stream: decoder, meter: Rc::clone(&meter) });
    // The folder that was archived may come first.
    for entry in archive.entries().map_err(Error::Tar)?.take(2) {
        let name = member_name(&entry.map_err(Error::Tar)?.path_bytes());
        if !matches!(name.as_str(), "" | ".") {
            return Ok(is_of_images(&name));
        }
        meter.expect_headers();
    }
    Ok(false)
}

/// Whether an archive of images has such a member.
fn is_of_images(name: &str) -> bool {
    let top = name.split('/').next().unwrap_or_default();
    // `docker save` of old and skopeo start with DIGEST/, DIGEST.json or DIGEST.tar; others with sha256:DIGEST.
    let is_digest = top
        .strip_prefix("sha256:")
        .unwrap_or(top)
        .split('.')
        .next()
        .is_some_and(|stem| stem.len() == 64 && stem.bytes().all(|byte| byte.is_ascii_hexdigit()));
    is_digest || matches!(top, "blobs" | "index.json" | "manifest.json" | "oci-layout" | "repositories")
}

/// The decompressed archive, in a file that vanishes with its last descriptor.
fn decompress(file: &File, compression: Compression, limits: &Limits, spool: &Path) -> Result<File, Error> {
    let mut out = nameless(spool).map_err(Error::Spool)?;
    let size = file.metadata().map_err(Error::Open)?.len();
    let mut decoder = compression.decoder(BufReader::new(Region::whole(file)?)).map_err(Error::Tar)?;
    let mut buffer = vec![0; 128 << 10];
    let mut total = 0_u64;
    loop {
        let count = match decoder.read(&mut buffer) {
            Ok(0) => return Ok(out),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(layer::Error::Decompress { compression, source }.into()),
        };
        total += count as u64;
        limits.check_stream(total, size)?;
        out.write_all(&buffer[..count]).map_err(Error::Spool)?;
    }
}

/// A file that has no name any more.
fn nameless(folder: &Path) -> io::Result<File> {
    let path = folder.join(format!("{}.spool", uuid::Uuid::now_v7()));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    match std::fs::remove_file(&path) {
        // The sweep of another import may have been quicker.
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(file),
    }
}

/// Where the members of an archive are.
#[derive(Debug)]
pub(crate) struct Index {
    file: Arc<File>,
    members: HashMap<String, Member>,
}

#[derive(Debug)]
enum Member {
    At { offset: u64, size: u64 },
    Link(String),
}

impl Index {
    /// The index, and how the reading of it ended.
    fn build(file: File) -> Result<(Self, Result<(), Error>), Error> {
        let mut members = HashMap::new();
        let mut reader = BufReader::new(file);
        reader.seek(SeekFrom::Start(0)).map_err(Error::Open)?;
        let meter = Rc::new(Meter::default());
        let mut archive = tar::Archive::new(Metered { stream: reader, meter: Rc::clone(&meter) });
        let mut entries = archive.entries_with_seek().map_err(Error::Tar)?;
        let ended = loop {
            meter.expect_headers();
            let next = entries.next();
            if !meter.expect_content() {
                break Err(Error::Headers);
            }
            let entry = match next {
                Some(Ok(entry)) => entry,
                Some(Err(error)) => break Err(Error::Tar(error)),
                None => break Ok(()),
            };
            let name = member_name(&entry.path_bytes());
            if name.len() > MAX_NAME || entry.link_name_bytes().is_some_and(|target| target.len() > MAX_NAME) {
                continue;
            }
            let member = match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous => {
                    Member::At { offset: entry.raw_file_position(), size: entry.size() }
                }
                EntryType::Symlink | EntryType::Link => {
                    let target = member_name(&entry.link_name_bytes().unwrap_or_default());
                    let is_hard = entry.header().entry_type() == EntryType::Link;
                    Member::Link(if is_hard { target } else { beside(&name, &target) })
                }
                _ => continue,
            };
            if members.len() == MAX_MEMBERS {
                break Err(Error::Headers);
            }
            members.insert(name, member);
        };
        let file = Arc::new(archive.into_inner().stream.into_inner());
        Ok((Self { file, members }, ended))
    }

    fn open(&self, path: &str) -> Option<Box<dyn Read + Send>> {
        let mut path = path;
        for _ in 0..MAX_LINKS {
            match self.members.get(path)? {
                Member::At { offset, size } => {
                    return Some(Box::new(Region { file: Arc::clone(&self.file), at: *offset, left: *size }));
                }
                Member::Link(target) => path = target,
            }
        }
        None
    }
}

/// A member's name without `./`; what is no UTF-8 is nothing that a document could name.
fn member_name(bytes: &[u8]) -> String {
    let name = String::from_utf8_lossy(bytes);
    name.strip_prefix("./").unwrap_or(&name).trim_end_matches('/').to_owned()
}

/// Where a symbolic link leads, as a member's name. `..` above the top stays there: nothing outside is ever opened.
fn beside(link: &str, target: &str) -> String {
    let mut path = PathBuf::from(link);
    path.pop();
    for component in Path::new(target).components() {
        match component {
            std::path::Component::ParentDir => drop(path.pop()),
            std::path::Component::Normal(name) => path.push(name),
            _ => {}
        }
    }
    path.to_string_lossy().into_owned()
}

/// A part of a file, read by position, so that several may be read at once.
#[derive(Debug)]
struct Region<F> {
    file: F,
    at: u64,
    left: u64,
}

impl<'a> Region<&'a File> {
    fn whole(file: &'a File) -> Result<Self, Error> {
        Ok(Self { file, at: 0, left: file.metadata().map_err(Error::Open)?.len() })
    }
}

impl<F: std::ops::Deref<Target = File>> Read for Region<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}
