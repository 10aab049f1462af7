//! The description of an unpacked tree, in the format of mtree(5): written at import, checked by `nsbox image verify`.
//!
//! One line for each path, sorted folder by folder, so that one tree has one description and that a digest. A line is
//! made from what is on the disk, then and now: checking is making it again.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use nix::fcntl::{AtFlags, OFlag, ResolveFlag, readlinkat};
use nix::sys::stat::{FileStat, SFlag, fstat, fstatat};
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::import::Progress;
use super::root::{self, MAX_DEPTH, Root};

const HEAD: &str = "#mtree v2.0\n";
/// How many lines one thread checks before it asks for more.
const BATCH: usize = 64;
/// Differences told of one tree.
const MAX_TOLD: usize = 100;

/// What a tree holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Regular files, each of their names counted.
    pub files: u64,
    /// Folders.
    pub folders: u64,
    /// Symbolic links.
    pub links: u64,
    /// Bytes of the files, those with several names counted once.
    pub bytes: u64,
}

/// Describes a tree that has just been unpacked, and gives its folders their modes and times.
pub(crate) fn describe(root: &Root, digests: &HashMap<u64, Digest>, out: &mut impl Write) -> io::Result<Totals> {
    out.write_all(HEAD.as_bytes())?;
    let mut totals = Totals::default();
    let mut counted = std::collections::HashSet::new();
    let mut line = |path: &Path, folder: BorrowedFd<'_>, name: &OsStr, stat: &FileStat| {
        let digest = digests.get(&stat.st_ino).copied();
        match root::kind(stat) {
            SFlag::S_IFDIR => totals.folders += 1,
            SFlag::S_IFLNK => totals.links += 1,
            _ => {
                totals.files += 1;
                if stat.st_nlink == 1 || counted.insert(stat.st_ino) {
                    totals.bytes += stat.st_size.unsigned_abs();
                }
            }
        }
        out.write_all(describe_one(path, folder, name, stat, digest)?.as_bytes())
    };
    let finish = |folder: BorrowedFd<'_>| {
        let ino = fstat(folder)?.st_ino;
        // A folder that no layer names has no time of its own: the same in every unpacking.
        root::finish(folder, 0o755, root.times.get(&ino).copied().unwrap_or(TimeSpec::new(0, 0)))
    };
    finish(root.fd())?;
    walk(root.fd(), Path::new("."), 0, &finish, &mut line)?;
    Ok(totals)
}

/// Visits everything below a folder in the order of the description; `enter` sees each folder first.
fn walk(
    folder: BorrowedFd<'_>,
    path: &Path,
    depth: usize,
    enter: &dyn Fn(BorrowedFd<'_>) -> io::Result<()>,
    visit: &mut dyn FnMut(&Path, BorrowedFd<'_>, &OsStr, &FileStat) -> io::Result<()>,
) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other("its folders are too deep"));
    }
    let mut names = root::names(folder)?;
    names.sort_unstable();
    for name in names {
        let below = path.join(&name);
        let stat = fstatat(folder, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if root::is_dir(&stat) {
            let inside = root::enter(folder, &name)?;
            enter(inside.as_fd())?;
            let stat = fstat(&inside)?;
            visit(&below, folder, &name, &stat)?;
            walk(inside.as_fd(), &below, depth + 1, enter, visit)?;
        } else {
            visit(&below, folder, &name, &stat)?;
        }
    }
    Ok(())
}

/// The line of one path; a file without a digest is none of the image's.
fn describe_one(
    path: &Path,
    folder: BorrowedFd<'_>,
    name: &OsStr,
    stat: &FileStat,
    digest: Option<Digest>,
) -> io::Result<String> {
    let mut line = encode(path.as_os_str().as_bytes());
    let kind = root::kind(stat);
    let written = match kind {
        SFlag::S_IFLNK => {
            let target = readlinkat(folder, name)?;
            write!(line, " type=link link={}", encode(target.as_bytes()))
        }
        SFlag::S_IFDIR => write!(line, " type=dir"),
        _ => {
            let digest = digest.ok_or_else(|| io::Error::other("it holds a file that no entry made"))?;
            write!(line, " type=file size={} sha256digest={}", stat.st_size, digest.hex())
        }
    };
    let time = (stat.st_mtime, stat.st_mtime_nsec);
    let written = written.and_then(|()| match kind {
        SFlag::S_IFLNK => Ok(()),
        _ => write!(line, " mode={:04o} time={}.{:09}", stat.st_mode & 0o7777, time.0, time.1),
    });
    written.and_then(|()| line.write_char('\n')).map_err(io::Error::other)?;
    Ok(line)
}

/// A path in mtree's form: what is no plain character in three octal digits.
fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'\\' | b'#' | b'*' | b'?' | b'[' | b'=' => text.push_str(&format!("\\{byte:03o}")),
            b'!'..=b'~' => text.push(char::from(*byte)),
            _ => text.push_str(&format!("\\{byte:03o}")),
        }
    }
    text
}

/// The path that a line starts with.
pub(crate) fn path_of(line: &str) -> PathBuf {
    let encoded = line.split(' ').next().unwrap_or_default().as_bytes();
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut at = 0;
    while at < encoded.len() {
        let octal = encoded.get(at + 1..at + 4).and_then(|digits| str::from_utf8(digits).ok());
        match (encoded[at], octal.and_then(|digits| u8::from_str_radix(digits, 8).ok())) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                at += 4;
            }
            (byte, _) => {
                bytes.push(byte);
                at += 1;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// Compares a tree with its description, with a thread for each CPU; what differs, in words, the first hundred.
pub(crate) fn verify(tree: &Path, description: &str, progress: &dyn Progress) -> io::Result<Vec<String>> {
    let lines: Vec<&str> = description.lines().filter(|line| !line.starts_with('#')).collect();
    let root = File::open(tree)?;
    let mut told = extra(root.as_fd(), &lines)?;
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let check = || {
        loop {
            let from = next.fetch_add(BATCH, Ordering::Relaxed);
            let batch = lines.get(from..lines.len().min(from + BATCH)).unwrap_or_default();
            if batch.is_empty() {
                return;
            }
            for line in batch {
                if let Some(difference) = compare(root.as_fd(), line, progress)
                    && let Ok(mut found) = found.lock()
                {
                    found.push((*line, difference));
                }
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, |count| count.get().min(8));
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(check);
        }
        check();
    });
    let mut found = found.into_inner().map_err(|_| io::Error::other("a thread panicked"))?;
    found.sort_unstable();
    told.extend(found.into_iter().map(|(_, difference)| difference));
    let more = told.len().saturating_sub(MAX_TOLD);
    told.truncate(MAX_TOLD);
    if more > 0 {
        told.push(format!("and {more} more"));
    }
    Ok(told)
}

/// What the tree holds and the description does not.
fn extra(root: BorrowedFd<'_>, lines: &[&str]) -> io::Result<Vec<String>> {
    let known: std::collections::HashSet<&str> = lines.iter().filter_map(|line| line.split(' ').next()).collect();
    let mut extra = Vec::new();
    walk(root, Path::new("."), 0, &|_| Ok(()), &mut |path, _, _, _| {
        if !known.contains(encode(path.as_os_str().as_bytes()).as_str()) {
            extra.push(format!("{}: is not of the image", path.display()));
        }
        Ok(())
    })?;
    Ok(extra)
}

/// How a path differs from its line.
fn compare(root: BorrowedFd<'_>, line: &str, progress: &dyn Progress) -> Option<String> {
    let path = path_of(line);
    let found = look(root, &path, progress);
    let shown = path.display();
    match found {
        Ok(found) if found.trim_end() == line => None,
        Ok(found) => {
            let facts =
                |line: &str| line.trim_end().split_once(' ').map(|(_, facts)| facts.to_owned()).unwrap_or_default();
            Some(format!("{shown}: expected {}, found {}", facts(line), facts(&found)))
        }
        Err(error) => Some(format!("{shown}: {error}")),
    }
}

/// The line of what is at a path now.
fn look(root: BorrowedFd<'_>, path: &Path, progress: &dyn Progress) -> io::Result<String> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let folder = root::open_in(root, parent, flags, ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS)?;
    let name = path.file_name().unwrap_or_default();
    let stat = fstatat(&folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let digest = match root::kind(&stat) {
        SFlag::S_IFREG => {
            let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
            // A FIFO put here just now must not hang the check.
            let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
            let digest = Digest::of_reader(File::from(root::open_in(&folder, Path::new(name), flags, resolve)?))?;
            progress.advance(stat.st_size.unsigned_abs());
            Some(digest)
        }
        SFlag::S_IFDIR | SFlag::S_IFLNK => None,
        _ => return Err(io::Error::other("is no file, folder or link any more")),
    };
    describe_one(path, folder.as_fd(), name, &stat, digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn path_is_read_as_it_was_written(bytes: Vec<u8>) {
            let line = format!("{} type=dir", encode(&bytes));
            let path = path_of(&line);
            proptest::prop_assert_eq!(path.as_os_str().as_bytes(), &bytes[..]);
            proptest::prop_assert!(line.is_ascii() && !line.contains('\n'));
        }
    }
}
