//! A layer on its way from its blob to the unpacker: hashed, kept, decompressed, hashed again, in a thread of its own.
//!
//! The unpacker takes the decompressed bytes from a short queue while the next are made. Whether the bytes were the right
//! ones is known at the end alone, so what was unpacked counts only once [`Pump::run`] has said so.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};

use super::digest::Digest;
use super::import::{Limits, Progress};

/// Bytes in one piece of the queue, and how many pieces may wait in it.
const PIECE: usize = 256 << 10;
const QUEUE: usize = 8;
/// The largest window of a zstd frame: 64 MiB, which `zstd --ultra -21` makes. The memory is taken for each layer.
const ZSTD_WINDOW_LOG: u32 = 26;

/// How a blob is compressed, as its first bytes tell; what a manifest says of it is not asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, of one or many members.
    Gzip,
    /// Zstandard, of one or many frames.
    Zstd,
}

/// Why a layer's bytes are refused. Which layer it is, the caller says.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The blob cannot be read.
    #[error("failed to read it")]
    Read(#[source] io::Error),
    /// The compressed stream is broken, ends early, or asks for too much memory.
    #[error("failed to decompress it as {}: it is damaged or cut off, or was made with a window above 64 MiB", .compression.word())]
    Decompress {
        /// What it is compressed with.
        compression: Compression,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A compression that nsbox does not read.
    #[error("it is compressed with {0}: recompress it with gzip or zstd")]
    Compression(&'static str),
    /// The blob is not the one that was named.
    #[error("it has the digest {found}, not {expected} as named: it was damaged or exchanged, fetch it again")]
    Digest {
        /// What the manifest says.
        expected: Digest,
        /// What was read.
        found: Digest,
    },
    /// The decompressed layer is not the one that the configuration names.
    #[error("it unpacks to the digest {found}, not to {expected} as the image's configuration says")]
    DiffId {
        /// What the configuration says.
        expected: Digest,
        /// What was read.
        found: Digest,
    },
    /// The blob is longer or shorter than the manifest says.
    #[error("it has {found} bytes, not {expected} as its descriptor says")]
    Size {
        /// What the descriptor says.
        expected: u64,
        /// What was read; no more is read than one byte too many.
        found: u64,
    },
    /// More decompressed bytes than allowed.
    #[error("it unpacks to more than {limit} bytes in all: --max-size raises the limit")]
    TooLarge {
        /// The limit for all layers together.
        limit: u64,
    },
    /// Compressed further than anything honest is.
    #[error("it unpacks to more than {limit} times its size: --max-ratio raises the limit")]
    Ratio {
        /// The limit.
        limit: u64,
    },
    /// The copy in the store cannot be written.
    #[error("failed to keep it in the store (NSBOX_STORE names another)")]
    Keep(#[source] io::Error),
}

impl Error {
    /// Whether the stream broke off, so that what the unpacker says of its end is but a consequence.
    pub(crate) fn is_of_the_stream(&self) -> bool {
        !matches!(self, Self::Digest { .. } | Self::DiffId { .. })
    }

    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Read(_) => "layer-read",
            Self::Decompress { .. } => "layer-decompress",
            Self::Compression(_) => "layer-compression",
            Self::Digest { .. } => "layer-digest",
            Self::DiffId { .. } => "layer-diff-id",
            Self::Size { .. } => "layer-size",
            Self::TooLarge { .. } => "layer-too-large",
            Self::Ratio { .. } => "layer-ratio",
            Self::Keep(_) => "layer-keep",
        }
    }
}

impl Compression {
    /// By the magic numbers of RFC 1952 and RFC 8878; what is neither is taken for a plain tar.
    pub(crate) fn of(start: &[u8]) -> Result<Self, Error> {
        match start {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [b'B', b'Z', b'h', ..] => Err(Error::Compression("bzip2")),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err(Error::Compression("xz")),
            _ => Ok(Self::None),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::None => "nothing",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// What decompresses a stream. `window_log_max` keeps a frame's header from ordering gigabytes.
    pub(crate) fn decoder<'a, R: BufRead + Send + 'a>(self, from: R) -> io::Result<Box<dyn Read + Send + 'a>> {
        Ok(match self {
            Self::None => Box::new(from),
            Self::Gzip => Box::new(MultiGzDecoder::new(from)),
            Self::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(from)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Box::new(decoder)
            }
        })
    }
}

/// What is known of a layer before it is read, and what its bytes must come to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Expected {
    /// Digest of the blob.
    pub digest: Option<Digest>,
    /// Size of the blob.
    pub size: Option<u64>,
    /// Digest of the decompressed layer.
    pub diff_id: Option<Digest>,
}

/// What a layer turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Layer {
    /// Digest of the blob, as it was given.
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// Digest of the tar in it.
    pub diff_id: Digest,
    /// Bytes of the tar in it.
    pub tar_size: u64,
    /// How the blob is compressed.
    pub compression: Compression,
}

/// Reads a blob; hashes, counts and copies what passes.
struct Source<'a> {
    from: Box<dyn Read + Send + 'a>,
    keep: Option<File>,
    hash: Sha256,
    count: u64,
    /// One byte more than this is not read.
    limit: u64,
    progress: &'a dyn Progress,
    /// The first failure, in its own words: decoders lose them.
    failure: Option<Error>,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                self.failure = Some(Error::Read(copy(error)));
            }
        })?;
        self.count += count as u64;
        if self.count > self.limit {
            self.failure = Some(Error::Size { expected: self.limit, found: self.count });
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.hash.update(&buffer[..count]);
        if let Some(keep) = &mut self.keep {
            keep.write_all(&buffer[..count]).inspect_err(|error| self.failure = Some(Error::Keep(copy(error))))?;
        }
        self.progress.advance(count as u64);
        Ok(count)
    }
}

/// The same failure once more: `io::Error` cannot be cloned.
fn copy(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| io::Error::new(error.kind(), error.to_string()), io::Error::from_raw_os_error)
}

/// The end of the queue that makes the decompressed bytes.
pub(crate) struct Pump<'a> {
    /// The blob.
    pub from: Box<dyn Read + Send + 'a>,
    /// Where a copy of the blob goes.
    pub keep: Option<File>,
    /// What it must come to.
    pub expected: Expected,
    /// How many decompressed bytes other layers have left of [`Limits::bytes`].
    pub left: u64,
    pub limits: Limits,
    pub progress: &'a dyn Progress,
}

impl Pump<'_> {
    /// Sends the whole layer into the queue, then says what it was. Where the unpacker has hung up, the rest is not read
    /// and the result of no use.
    pub(crate) fn run(self, queue: &Queue) -> Result<Layer, Error> {
        let Self { from, keep, expected, left, limits, progress } = self;
        let limit = expected.size.unwrap_or(u64::MAX);
        let source = Source { from, keep, hash: Sha256::new(), count: 0, limit, progress, failure: None };
        let source = std::sync::Mutex::new(source);
        let mut reader = BufReader::with_capacity(128 << 10, Shared(&source));
        let failed = |compression: Compression, error| {
            let own = source.lock().ok().and_then(|mut source| source.failure.take());
            own.unwrap_or(match compression {
                Compression::None => Error::Read(error),
                _ => Error::Decompress { compression, source: error },
            })
        };
        // An empty blob has no first bytes, and unpacks to an empty layer.
        let compression = Compression::of(reader.fill_buf().map_err(|error| failed(Compression::None, error))?)?;
        let mut decoder = compression.decoder(reader).map_err(|error| failed(compression, error))?;
        let mut hash = Sha256::new();
        let mut tar_size = 0;
        let mut hung_up = false;
        loop {
            let mut piece = queue.empty();
            let count = fill(&mut decoder, &mut piece).map_err(|error| failed(compression, error))?;
            if count == 0 {
                break;
            }
            tar_size += count as u64;
            if tar_size > left {
                return Err(Error::TooLarge { limit: limits.bytes });
            }
            limits.check_stream(tar_size, source.lock().map_or(0, |source| source.count))?;
            piece.truncate(count);
            hash.update(&piece);
            if queue.full.send(piece).is_err() {
                hung_up = true;
                break;
            }
        }
        drop(decoder);
        let source = source.into_inner().map_err(|_| Error::Read(io::Error::other("its reader panicked")))?;
        let (digest, diff_id) = (Digest::from(source.hash), Digest::from(hash));
        let layer = Layer { digest, size: source.count, diff_id, tar_size, compression };
        if !hung_up {
            expected.compare(&layer)?;
        }
        Ok(layer)
    }
}

impl Expected {
    fn compare(&self, found: &Layer) -> Result<(), Error> {
        match *self {
            Self { size: Some(expected), .. } if expected != found.size => {
                Err(Error::Size { expected, found: found.size })
            }
            Self { digest: Some(expected), .. } if expected != found.digest => {
                Err(Error::Digest { expected, found: found.digest })
            }
            Self { diff_id: Some(expected), .. } if expected != found.diff_id => {
                Err(Error::DiffId { expected, found: found.diff_id })
            }
            _ => Ok(()),
        }
    }
}

/// The source while a decoder owns its reader: the lock is never waited for, all is in one thread.
struct Shared<'a, 's>(&'s std::sync::Mutex<Source<'a>>);

impl Read for Shared<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.lock().map_err(|_| io::Error::other("its reader panicked"))?.read(buffer)
    }
}

/// Reads until the buffer is full or nothing is left.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut count = 0;
    while count < buffer.len() {
        match reader.read(&mut buffer[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

/// The pump's end of the queue.
pub(crate) struct Queue {
    full: SyncSender<Vec<u8>>,
    empties: Receiver<Vec<u8>>,
}

impl Queue {
    /// A piece to fill: one that the unpacker is done with, if there is one.
    fn empty(&self) -> Vec<u8> {
        let mut piece = self.empties.try_recv().unwrap_or_default();
        piece.resize(PIECE, 0);
        piece
    }
}

/// The unpacker's end of the queue. It ends early where the pump failed: ask the pump what the end means.
pub(crate) struct Stream {
    full: Receiver<Vec<u8>>,
    empties: Sender<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

/// Both ends of a queue for one layer.
pub(crate) fn queue() -> (Queue, Stream) {
    let (full, taken) = sync_channel(QUEUE);
    let (back, empties) = channel();
    (Queue { full, empties }, Stream { full: taken, empties: back, piece: Vec::new(), at: 0 })
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            let Ok(next) = self.full.recv() else { return Ok(0) };
            // The pump may have ended already, and needs no more pieces then.
            self.empties.send(std::mem::replace(&mut self.piece, next)).ok();
            self.at = 0;
        }
        let count = buffer.len().min(self.piece.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}
