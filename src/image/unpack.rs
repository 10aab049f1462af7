//! Applies layers to a tree: what each tar says is judged before it is done, and done through [`Root`] alone.
//!
//! The bytes may be anybody's. An entry whose path could lead out of the tree, which does not say what it means, or which
//! exceeds a limit ends the import; what the sandbox has no use for (devices, set-id bits, extended attributes) is left
//! out with a note. See tar(5), pax(1), and "Image Layer Filesystem Changeset" in the OCI image specification.
//!
//! Modes become 0755 or 0644 by the owner's `x`: the guest owns nothing and must read everything, and nobody else on the
//! host may write. Owners are the caller's, times are kept, for `.pyc` files hold those of their sources.

mod error;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use nix::sys::stat::{SFlag, fstat};
use nix::sys::time::TimeSpec;
use sha2::{Digest as _, Sha256};
use tar::{Archive, Entry, EntryType};

use super::digest::Digest;
use super::import::Limits;
use super::meter::{Meter, Metered};
use super::pax::Pax;
use super::root::{self, Folder, MAX_DEPTH, MAX_PATH, Place, Root};
use error::MAX_LINK;
pub use error::{Error, Problem};

/// How many names a note gives.
const SHOWN: usize = 3;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What was left out, with how often and the first few names.
#[derive(Debug, Default)]
struct Notes(BTreeMap<&'static str, (u64, Vec<String>)>);

impl Notes {
    fn add(&mut self, what: &'static str, path: &Path) {
        let (count, names) = self.0.entry(what).or_default();
        *count += 1;
        if names.len() < SHOWN {
            names.push(path.display().to_string());
        }
    }

    fn lines(&self) -> Vec<String> {
        let line = |(what, (count, names)): (&&str, &(u64, Vec<String>))| {
            let more = if *count > names.len() as u64 { ", ..." } else { "" };
            format!("{what}: {count} ({}{more})", names.join(", "))
        };
        self.0.iter().map(line).collect()
    }
}

/// A tree to which layers are applied one after the other.
pub(crate) struct Unpacker {
    root: Root,
    limits: Limits,
    entries: u64,
    bytes: u64,
    /// Digests of the files by inode: entries replace each other, inodes tell what is left.
    digests: HashMap<u64, Digest>,
    /// Where this layer put something: its whiteouts are of what lies below it.
    fresh: HashSet<Place>,
    is_base: bool,
    notes: Notes,
    buffer: Vec<u8>,
}

/// What the layers came to, for the tree's description.
pub(crate) struct Unpacked {
    pub root: Root,
    pub digests: HashMap<u64, Digest>,
    pub notes: Vec<String>,
}

impl Unpacker {
    /// For an empty folder of nsbox's own.
    pub(crate) fn new(folder: &Path, limits: Limits) -> io::Result<Self> {
        Ok(Self {
            root: Root::open(folder)?,
            limits,
            entries: 0,
            bytes: 0,
            digests: HashMap::new(),
            fresh: HashSet::new(),
            is_base: true,
            notes: Notes::default(),
            buffer: vec![0; 128 << 10],
        })
    }

    /// Applies one layer. `vouched`: a digest says that nothing is missing at its end.
    pub(crate) fn apply(&mut self, stream: impl Read, vouched: bool) -> Result<(), Error> {
        let meter = Rc::new(Meter::default());
        let mut archive = Archive::new(Metered { stream, meter: Rc::clone(&meter) });
        let mut last = PathBuf::new();
        let mut entries = archive.entries().map_err(|source| Error::Tar { after: PathBuf::new(), source })?;
        loop {
            // Everything that belongs to the entry before has been read: what follows is headers.
            meter.expect_headers();
            let next = entries.next();
            if !meter.expect_content() {
                return Err(Error::Entry { entry: last, problem: Problem::LargeHeaders });
            }
            let mut entry = match next {
                None => break,
                Some(Err(source)) => return Err(Error::Tar { after: last, source }),
                Some(Ok(entry)) => entry,
            };
            self.entries += 1;
            let path = self.entry(&mut entry)?;
            // Folders that the path alone names count too: each entry may have a hundred of its own.
            if self.entries + self.root.made > self.limits.entries {
                return Err(Error::TooMany { entry: path, limit: self.limits.entries });
            }
            io::copy(&mut entry, &mut io::sink()).map_err(|source| Error::Tar { after: last, source })?;
            last = path;
        }
        self.end(archive.into_inner(), vouched, last)?;
        self.is_base = false;
        self.fresh.clear();
        Ok(())
    }

    /// Reads what follows the last entry: nothing but zeros.
    fn end(&mut self, mut rest: Metered<impl Read>, vouched: bool, after: PathBuf) -> Result<(), Error> {
        if rest.meter.ended() && !vouched {
            return Err(Error::Unfinished { after });
        }
        loop {
            match rest.read(&mut self.buffer) {
                Ok(0) => return Ok(()),
                Ok(count) if self.buffer[..count].iter().any(|byte| *byte != 0) => {
                    return Err(Error::Trailing { after });
                }
                Ok(_) => {}
                Err(source) => return Err(Error::Tar { after, source }),
            }
        }
    }

    /// The finished tree.
    pub(crate) fn finish(self) -> Unpacked {
        Unpacked { root: self.root, digests: self.digests, notes: self.notes.lines() }
    }

    /// Does what one entry says; its path.
    fn entry(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<PathBuf, Error> {
        let mut shown = PathBuf::from(OsStr::from_bytes(&entry.path_bytes()));
        let problem = |shown: &Path, problem| Error::Entry { entry: shown.to_owned(), problem };
        let pax = Pax::read(entry).map_err(|found| problem(&shown, found))?;
        if let Some(name) = &pax.sparse_name {
            shown = PathBuf::from(OsStr::from_bytes(name));
        }
        if entry.header().entry_type() == EntryType::XGlobalHeader {
            return Ok(shown);
        }
        let is_folder_name = shown.as_os_str().as_bytes().ends_with(b"/");
        let path = inside(&shown).map_err(|found| problem(&shown, found))?;
        let time = pax.time.unwrap_or_else(|| {
            TimeSpec::new(entry.header().mtime().ok().and_then(|time| i64::try_from(time).ok()).unwrap_or(0), 0)
        });
        if !pax.attributes.is_empty() {
            self.notes.add(pax.note(), &shown);
        }
        let kind = match entry.header().entry_type() {
            // Before POSIX, a slash at the end made a folder.
            EntryType::Regular if is_folder_name => EntryType::Directory,
            kind => kind,
        };
        let Some(name) = path.file_name() else {
            if kind != EntryType::Directory {
                return Err(problem(&shown, Problem::TheRoot));
            }
            let ino = fstat(self.root.fd()).map_err(|error| write_failed(&shown, error.into()))?.st_ino;
            self.root.times.insert(ino, time);
            return Ok(shown);
        };
        let parent = path.parent().unwrap_or(Path::new(""));
        let folder = self.root.folder(parent).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP) => problem(&shown, Problem::NoFolder),
            Some(libc::ENAMETOOLONG) => problem(&shown, Problem::TooLong),
            _ => write_failed(&shown, error),
        })?;
        if !self.is_base {
            self.keep_parents(parent).map_err(|error| write_failed(&shown, error))?;
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            return self.whiteout(&folder, hidden, &shown).map(|()| shown);
        }
        self.place(entry, kind, &pax, &folder, name, time, &shown)?;
        Ok(shown)
    }

    /// What leads to an entry of this layer is of this layer: a whiteout that follows must not take it away.
    fn keep_parents(&mut self, parent: &Path) -> io::Result<()> {
        for path in parent.ancestors() {
            let Some(name) = path.file_name() else { break };
            let above = self.root.find(path.parent().unwrap_or(Path::new("")))?;
            if !self.fresh.insert(self.root.place(&above, name)) {
                break;
            }
        }
        Ok(())
    }

    /// Removes what lower layers have at a name, or in the folder.
    fn whiteout(&mut self, folder: &Folder, hidden: &[u8], shown: &Path) -> Result<(), Error> {
        let fresh = std::mem::take(&mut self.fresh);
        let keep = |place: Place| fresh.contains(&place);
        let removed = if matches!(hidden, b"" | b"." | b"..") {
            return Err(Error::Entry { entry: shown.to_owned(), problem: Problem::Whiteout });
        } else if self.is_base {
            // Nothing lies below.
            Ok(())
        } else if hidden == &OPAQUE[WHITEOUT.len()..] {
            self.root.remove_inside(folder, &keep)
        } else if hidden.starts_with(WHITEOUT) {
            // What aufs keeps for itself: no file of the image.
            Ok(())
        } else {
            self.root.remove(folder, OsStr::from_bytes(hidden), &keep)
        };
        self.fresh = fresh;
        removed.map_err(|error| write_failed(shown, error))
    }

    /// Puts an entry into its folder, in place of what has its name.
    #[expect(clippy::too_many_arguments, reason = "one entry, as its header and extended headers tell it")]
    fn place(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        kind: EntryType,
        pax: &Pax,
        folder: &Folder,
        name: &OsStr,
        time: TimeSpec,
        shown: &Path,
    ) -> Result<(), Error> {
        let problem = |problem| Error::Entry { entry: shown.to_owned(), problem };
        let failed = |error: io::Error| match error.raw_os_error() {
            Some(libc::ENAMETOOLONG) => problem(Problem::TooLong),
            _ => write_failed(shown, error),
        };
        let mode = entry.header().mode().unwrap_or(0o644);
        if mode & 0o6000 != 0 {
            self.notes.add("set-user-id and set-group-id bits dropped", shown);
        }
        match kind {
            EntryType::Directory => {
                // A folder stays, and so does what is in it.
                if let Err(error) = folder.make_dir(name) {
                    let there = folder.stat(name).map_err(|_| failed(error))?;
                    if !root::is_dir(&there) {
                        self.make_room(folder, name).map_err(failed)?;
                        folder.make_dir(name).map_err(failed)?;
                    }
                }
                self.root.times.insert(folder.stat(name).map_err(failed)?.st_ino, time);
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let size = pax.real_size.unwrap_or_else(|| entry.size());
                self.bytes = self.bytes.saturating_add(size);
                if self.bytes > self.limits.bytes {
                    return Err(Error::TooLarge { entry: shown.to_owned(), limit: self.limits.bytes });
                }
                let file = match folder.create(name) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                        self.make_room(folder, name).map_err(failed)?;
                        folder.create(name)
                    }
                    file => file,
                };
                let file = file.map_err(failed)?;
                let ino = fstat(&file).map_err(|error| failed(error.into()))?.st_ino;
                let digest = self.content(entry, kind, pax, &file, shown)?;
                let mode = if mode & 0o100 != 0 { 0o755 } else { 0o644 };
                root::finish(file.as_fd(), mode, time).map_err(failed)?;
                self.digests.insert(ino, digest);
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default();
                if target.is_empty() || target.len() > MAX_LINK || target.contains(&0) {
                    return Err(problem(Problem::Target));
                }
                let target = OsStr::from_bytes(&target);
                if folder.symlink(name, target).is_err() {
                    self.make_room(folder, name).map_err(failed)?;
                    folder.symlink(name, target).map_err(failed)?;
                }
                folder.set_time(name, time).map_err(failed)?;
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().ok_or_else(|| problem(Problem::Target))?;
                self.hard_link(&target, folder, name, shown)?;
            }
            EntryType::Char | EntryType::Block => {
                self.notes.add("devices skipped", shown);
                return Ok(());
            }
            EntryType::Fifo => {
                self.notes.add("FIFOs skipped", shown);
                return Ok(());
            }
            _ => return Err(problem(Problem::Kind)),
        }
        if !self.is_base {
            self.fresh.insert(self.root.place(folder, name));
        }
        Ok(())
    }

    /// Another name for a file that is in the image already.
    fn hard_link(&mut self, target: &[u8], folder: &Folder, name: &OsStr, shown: &Path) -> Result<(), Error> {
        let problem = |problem| Error::Entry { entry: shown.to_owned(), problem };
        let target = inside(Path::new(OsStr::from_bytes(target))).map_err(|found| match found {
            Problem::Absolute | Problem::Parent => problem(Problem::HardLinkOut),
            other => problem(other),
        })?;
        let target_name = target.file_name().ok_or_else(|| problem(Problem::HardLinkTo))?;
        let of = self.root.find(target.parent().unwrap_or(Path::new(""))).map_err(|_| problem(Problem::HardLinkTo))?;
        let there = of.stat(target_name).map_err(|_| problem(Problem::HardLinkTo))?;
        if !matches!(root::kind(&there), SFlag::S_IFREG | SFlag::S_IFLNK) {
            return Err(problem(Problem::HardLinkTo));
        }
        if folder.stat(name).is_ok_and(|here| here.st_ino == there.st_ino) {
            return Ok(());
        }
        if folder.link(name, &of, target_name).is_err() {
            self.make_room(folder, name).map_err(|error| write_failed(shown, error))?;
            // What made room may have been a folder with the target in it.
            folder.link(name, &of, target_name).map_err(|_| problem(Problem::HardLinkTo))?;
        }
        Ok(())
    }

    /// Removes what has a name: it is replaced whole, and never written through.
    fn make_room(&mut self, folder: &Folder, name: &OsStr) -> io::Result<()> {
        self.root.remove(folder, name, &|_| false)
    }

    /// Writes a file's content; its digest.
    fn content(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        kind: EntryType,
        pax: &Pax,
        file: &File,
        shown: &Path,
    ) -> Result<Digest, Error> {
        let mut sink = Sink { file, hash: Sha256::new(), length: 0, shown };
        let damaged = || Error::Entry { entry: shown.to_owned(), problem: Problem::Headers };
        match pax.real_size {
            None => {
                let size = entry.size();
                sink.data(entry, size, kind == EntryType::GNUSparse, &mut self.buffer)?;
            }
            Some(real_size) => {
                for (offset, length) in Pax::read_map(entry).map_err(|_| damaged())? {
                    let gap = offset.checked_sub(sink.length).ok_or_else(damaged)?;
                    if offset.checked_add(length).is_none_or(|end| end > real_size) {
                        return Err(damaged());
                    }
                    sink.hole(gap, &mut self.buffer)?;
                    sink.data(entry, length, false, &mut self.buffer)?;
                }
                sink.hole(real_size - sink.length, &mut self.buffer)?;
            }
        }
        if pax.real_size.is_some() || kind == EntryType::GNUSparse {
            // A hole at the end is no write.
            file.set_len(sink.length).map_err(|error| write_failed(shown, error))?;
        }
        Ok(sink.hash.into())
    }
}

/// A file under way, hashed as it is written; holes stay holes.
struct Sink<'a> {
    file: &'a File,
    hash: Sha256,
    length: u64,
    shown: &'a Path,
}

impl Sink<'_> {
    fn data(&mut self, from: &mut impl Read, size: u64, sparse: bool, buffer: &mut [u8]) -> Result<(), Error> {
        let mut left = size;
        while left > 0 {
            let most = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
            let piece = match from.read(&mut buffer[..most]) {
                Ok(0) => {
                    let source = io::ErrorKind::UnexpectedEof.into();
                    return Err(Error::Tar { after: self.shown.to_owned(), source });
                }
                Ok(count) => &buffer[..count],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(Error::Tar { after: self.shown.to_owned(), source }),
            };
            self.hash.update(piece);
            let is_hole = sparse && piece.iter().all(|byte| *byte == 0);
            let written = if is_hole { self.skip(piece.len() as u64) } else { self.file.write_all(piece) };
            written.map_err(|error| write_failed(self.shown, error))?;
            left -= piece.len() as u64;
            self.length += piece.len() as u64;
        }
        Ok(())
    }

    fn hole(&mut self, size: u64, buffer: &mut [u8]) -> Result<(), Error> {
        self.data(&mut io::repeat(0), size, true, buffer)
    }

    fn skip(&mut self, count: u64) -> io::Result<()> {
        self.file.seek(SeekFrom::Current(count.cast_signed())).map(|_| ())
    }
}

fn write_failed(entry: &Path, source: io::Error) -> Error {
    Error::Write { entry: entry.to_owned(), source }
}

/// An entry's path relative to the image's root, which is the empty path.
fn inside(path: &Path) -> Result<PathBuf, Problem> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.contains(&0) {
        return Err(Problem::Nul);
    }
    let mut inside = PathBuf::new();
    let mut depth = 0;
    for component in path.components() {
        match component {
            Component::Normal(name) => {
                inside.push(name);
                depth += 1;
            }
            Component::CurDir => {}
            Component::ParentDir => return Err(Problem::Parent),
            Component::RootDir | Component::Prefix(_) => return Err(Problem::Absolute),
        }
    }
    if depth >= MAX_DEPTH || inside.as_os_str().len() > MAX_PATH { Err(Problem::TooLong) } else { Ok(inside) }
}
