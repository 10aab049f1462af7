//! From a source to an image in the store: find the documents, unpack the layers aside, describe the tree, put it in place.
//!
//! Everything happens in a folder of the import's own, which becomes the image by one rename at the end; an import that is
//! refused, or dies, leaves images and names as they were.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;

use sha2::{Digest as _, Sha256};

use super::archive::{self, Content, Opened};
use super::digest::Digest;
use super::documents;
use super::layer::{self, Expected, Layer, Pump, queue};
use super::layout::{self, Description, LayerAt};
use super::mtree;
use super::registry::{self, Fetch, Remote};
use super::store::{Error, Record, Staging, Store};
use super::unpack::Unpacker;

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// An OCI layout, what `docker save` writes, or a root file system: a folder or a tar, gzip, zstd or neither.
    Path(PathBuf),
    /// `HOST/NAME:TAG`, `HOST/NAME@sha256:...` or both, in a registry.
    Registry(String),
}

impl FromStr for Source {
    type Err = std::convert::Infallible;

    /// `oci://...` is a registry's, everything else a path.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.strip_prefix("oci://").map_or_else(|| Self::Path(text.into()), |name| Self::Registry(name.to_owned())))
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Registry(name) => write!(f, "oci://{name}"),
        }
    }
}

/// What an import may take at most; the flags of `nsbox image import` that raise each are in parentheses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all files, and of all decompressed layers (`--max-size`).
    pub bytes: u64,
    /// Entries of all layers (`--max-entries`).
    pub entries: u64,
    /// How many times its compressed size a layer may unpack to, beyond its first 64 MiB (`--max-ratio`).
    pub ratio: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 16 << 30, entries: 500_000, ratio: 200 }
    }
}

/// How much a stream may unpack to before its ratio is looked at: a small one harms nobody.
const RATIO_FROM: u64 = 64 << 20;

impl Limits {
    /// Whether a stream that gave `unpacked` bytes for `read` is within bounds.
    pub(crate) fn check_stream(&self, unpacked: u64, read: u64) -> Result<(), layer::Error> {
        if unpacked > self.bytes {
            return Err(layer::Error::TooLarge { limit: self.bytes });
        }
        if unpacked > RATIO_FROM && unpacked / self.ratio.max(1) > read {
            return Err(layer::Error::Ratio { limit: self.ratio });
        }
        Ok(())
    }
}

/// How an import is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// What it may take.
    pub limits: Limits,
    /// Whether a registry may be spoken to without TLS; one on a loopback address always may.
    pub plain_http: bool,
}

/// Is told how far a long piece of work is, from any thread.
pub trait Progress: Sync {
    /// A stage begins: what it does, and how many bytes it will go through where that is known.
    fn begin(&self, what: &str, total: Option<u64>);

    /// So many more bytes of the stage are done.
    fn advance(&self, bytes: u64);
}

/// Nobody is told.
impl Progress for () {
    fn begin(&self, _: &str, _: Option<u64>) {}
    fn advance(&self, _: u64) {}
}

/// What came of an import.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Imported {
    /// The image's digest: that of its OCI manifest.
    pub digest: Digest,
    /// Whether the store had it already.
    pub was_there: bool,
    /// What was left out of it, and what to know of it.
    pub notes: Vec<String>,
}

impl Store {
    /// Brings an image into the store, and gives it `name` where there is one; a name that another image had is moved.
    /// The image is there already where its digest is: then only the name is given. Any number of imports may run at
    /// once, in any number of processes, and any may be killed.
    ///
    /// # Errors
    /// An [`Error`] that names the archive, the entry and the limit. The store is then as it was, but for blobs that
    /// a registry's next import goes on from.
    pub fn import(
        &self,
        source: &Source,
        name: Option<&str>,
        options: &Options,
        progress: &dyn Progress,
    ) -> Result<Imported, Error> {
        self.import_as(source, &source.to_string(), name, options, progress)
    }

    /// The same for a source that errors and the image's record call `shown`.
    pub(crate) fn import_as(
        &self,
        source: &Source,
        shown: &str,
        name: Option<&str>,
        options: &Options,
        progress: &dyn Progress,
    ) -> Result<Imported, Error> {
        name.map(super::store::check_name).transpose()?;
        self.sweep()?;
        match source {
            Source::Path(path) => {
                let spool = self.staging_dir()?;
                let failed = |source| Error::Archive { archive: shown.to_owned(), source };
                let opened = archive::open(path, &options.limits, &spool).map_err(failed)?;
                let parcel = match opened {
                    Opened::Rootfs(file) => Parcel::rootfs(file),
                    Opened::Images(content) => {
                        let failed = |source| Error::Layout { archive: shown.to_owned(), source };
                        Parcel::described(layout::describe(&content, name).map_err(failed)?, content)
                    }
                };
                self.import_parcel(&parcel, shown, name, &options.limits, progress)
            }
            Source::Registry(reference) => {
                let failed = |source| Error::Registry { archive: shown.to_owned(), source };
                progress.begin("asking the registry", None);
                let remote = Remote::new(reference, options).map_err(failed)?;
                let parcel = Parcel::remote(remote.describe().map_err(failed)?, remote);
                self.import_parcel(&parcel, shown, name, &options.limits, progress)
            }
        }
    }

    fn import_parcel(
        &self,
        parcel: &Parcel,
        shown: &str,
        name: Option<&str>,
        limits: &Limits,
        progress: &dyn Progress,
    ) -> Result<Imported, Error> {
        let digest = parcel.manifest.as_deref().map(Digest::of);
        let staging = self.stage(digest.as_ref())?;
        if let Some(digest) = digest
            && let Some(imported) = self.name_known(digest, name)?
        {
            return Ok(imported);
        }
        // Before anything is fetched or copied.
        let sizes = parcel.layers.iter().filter_map(|layer| layer.expected.size);
        if sizes.fold(0_u64, u64::saturating_add) > limits.bytes {
            let source = layer::Error::TooLarge { limit: limits.bytes };
            return Err(Error::Layer { archive: shown.to_owned(), source });
        }
        let import = Import { parcel, shown, limits: *limits, staging: &staging, store: self, progress };
        let record = import.unpack()?;
        let (digest, notes) = (record.digest, record.notes.clone());
        progress.begin("putting the image in place", None);
        let was_there = !self.commit(staging, &record, name)?;
        Ok(Imported { digest, was_there, notes })
    }

    /// `None` where the store does not have the image, or not any more.
    fn name_known(&self, digest: Digest, name: Option<&str>) -> Result<Option<Imported>, Error> {
        if !self.has(&digest)? {
            return Ok(None);
        }
        let notes = self.record(&digest)?.notes;
        match name.map(|name| self.set_name(name, &digest)) {
            Some(Err(Error::Unknown { .. })) => Ok(None),
            Some(Err(error)) => Err(error),
            _ => Ok(Some(Imported { digest, was_there: true, notes })),
        }
    }
}

/// An image that is ready to be read.
struct Parcel {
    from: From,
    manifest: Option<Vec<u8>>,
    config: Option<Vec<u8>>,
    layers: Vec<LayerAt>,
}

impl Parcel {
    fn rootfs(file: File) -> Self {
        let layer = LayerAt { path: "its tar".to_owned(), expected: Expected::default() };
        Self { from: From::Rootfs(file), manifest: None, config: None, layers: vec![layer] }
    }

    fn described(description: Description, content: Content) -> Self {
        let Description { manifest, config, layers } = description;
        Self { from: From::Content(content), manifest, config: Some(config), layers }
    }

    fn remote(description: Description, remote: Remote) -> Self {
        let Description { manifest, config, layers } = description;
        Self { from: From::Registry(remote), manifest, config: Some(config), layers }
    }

    fn open(&self, layer: &LayerAt) -> io::Result<Option<Box<dyn Read + Send + '_>>> {
        match &self.from {
            From::Rootfs(file) => Ok(Some(Box::new(file))),
            From::Content(content) => Ok(content.open(&layer.path)?.map(|reader| reader as Box<dyn Read + Send>)),
            From::Registry(_) => Ok(None),
        }
    }
}

/// Where layers come from.
enum From {
    /// A layout or an archive.
    Content(Content),
    /// The one layer of a root file system is the file itself.
    Rootfs(File),
    /// They are fetched into the store first.
    Registry(Remote),
}

/// One import under way.
struct Import<'a> {
    parcel: &'a Parcel,
    shown: &'a str,
    limits: Limits,
    staging: &'a Staging,
    store: &'a Store,
    progress: &'a dyn Progress,
}

impl Import<'_> {
    /// Fills the staging folder with all that an image has.
    fn unpack(&self) -> Result<Record, Error> {
        let tree = self.staging.make_dir("rootfs")?;
        let blobs = self.staging.make_dir("layout/blobs/sha256")?;
        let mut unpacker = Unpacker::new(&tree, self.limits).map_err(self.staging.failed("rootfs"))?;
        let layers = match &self.parcel.from {
            From::Registry(remote) => self.fetch_and_apply(remote, &blobs, &mut unpacker)?,
            From::Content(_) | From::Rootfs(_) => self.apply(&blobs, &mut unpacker, self.progress, |_| true)?,
        };
        self.progress.begin("describing the tree", None);
        let unpacked = unpacker.finish();
        let description = self.staging.path().join(super::store::TREE);
        let failed = self.staging.failed(super::store::TREE);
        let mut out =
            Hashing { out: BufWriter::new(File::create(&description).map_err(&failed)?), hash: Sha256::new() };
        let totals = mtree::describe(&unpacked.root, &unpacked.digests, &mut out).map_err(&failed)?;
        out.out.flush().map_err(&failed)?;
        let tree_digest = Digest::from(out.hash);

        let (config, manifest) = self.documents(&layers)?;
        let record = Record {
            schema: super::store::SCHEMA,
            digest: Digest::of(&manifest),
            config: Digest::of(&config),
            source: self.shown.to_owned(),
            imported: jiff::Timestamp::now(),
            layers,
            totals,
            tree: tree_digest,
            notes: unpacked.notes,
        };
        self.write_layout(&record, &config, &manifest, &blobs)?;
        Ok(record)
    }

    /// Unpacks the layers in their order, each as soon as it is `ready`; ends early where one never is.
    fn apply(
        &self,
        blobs: &Path,
        unpacker: &mut Unpacker,
        progress: &dyn Progress,
        mut ready: impl FnMut(usize) -> bool,
    ) -> Result<Vec<Layer>, Error> {
        let mut layers = Vec::new();
        let mut left = self.limits.bytes;
        for (index, layer) in self.parcel.layers.iter().enumerate() {
            if !ready(index) {
                break;
            }
            let what = format!("layer {} of {}", index + 1, self.parcel.layers.len());
            progress.begin(&format!("unpacking {what}"), layer.expected.size);
            let found = self.layer(layer, &what, left, blobs, unpacker, progress)?;
            left -= found.tar_size;
            layers.push(found);
        }
        Ok(layers)
    }

    /// The same while the layers come from a registry: what is shown is how far that is.
    fn fetch_and_apply(&self, remote: &Remote, blobs: &Path, unpacker: &mut Unpacker) -> Result<Vec<Layer>, Error> {
        let layers = &self.parcel.layers;
        let total = layers.iter().filter_map(|layer| layer.expected.size).sum();
        self.progress.begin(&format!("fetching and unpacking {} layers", layers.len()), Some(total));
        let (ready, receiver) = channel();
        let stop = AtomicBool::new(false);
        let fetch = Fetch { store: self.store, blobs, ready, stop: &stop, progress: self.progress };
        thread::scope(|scope| {
            let fetching = scope.spawn(move || remote.fetch(layers, &fetch));
            let mut fetched = HashSet::new();
            let applied = self.apply(blobs, unpacker, &(), |index| {
                while !fetched.contains(&index) {
                    match receiver.recv() {
                        Ok(index) => fetched.insert(index),
                        Err(_) => return false,
                    };
                }
                true
            });
            // A layer that is refused ends the import; what is half fetched stays for the next.
            stop.store(applied.is_err(), Ordering::Relaxed);
            let panicked = |_| Err(registry::Error::Start(io::Error::other("its thread panicked")));
            let fetched = fetching.join().unwrap_or_else(panicked);
            let applied = applied?;
            fetched.map_err(|source| Error::Registry { archive: self.shown.to_owned(), source })?;
            Ok(applied)
        })
    }

    /// Unpacks one layer, read and decompressed by a thread of its own, and keeps its blob.
    fn layer(
        &self,
        layer: &LayerAt,
        what: &str,
        left: u64,
        blobs: &Path,
        unpacker: &mut Unpacker,
        progress: &dyn Progress,
    ) -> Result<Layer, Error> {
        let archive = || match self.parcel.from {
            From::Rootfs(_) => self.shown.to_owned(),
            From::Content(_) | From::Registry(_) => format!("{} ({what}, {})", self.shown, layer.path),
        };
        let read_failed = |source| Error::Layer { archive: archive(), source };
        // What the store has already is hashed again as it is read.
        let known = layer.expected.digest.filter(|digest| self.store.link_blob(digest, blobs).is_ok());
        let aside = blobs.join("layer");
        let (from, keep): (Box<dyn Read + Send + '_>, _) = match known {
            Some(digest) => {
                let path = blobs.join(digest.hex());
                (Box::new(File::open(&path).map_err(|error| read_failed(layer::Error::Read(error)))?), None)
            }
            None => {
                let opened = self.parcel.open(layer).map_err(|error| read_failed(layer::Error::Read(error)))?;
                let missing = || layout::Error::Missing { path: layer.path.clone() };
                let from = opened.ok_or_else(|| Error::Layout { archive: self.shown.to_owned(), source: missing() })?;
                (from, Some(File::create(&aside).map_err(self.staging.failed("layer"))?))
            }
        };
        let limits = self.limits;
        let pump = Pump { from, keep, expected: layer.expected, left, limits, progress };
        let (queue, stream) = queue();
        let vouched = layer.expected.digest.is_some() || layer.expected.diff_id.is_some();
        let (found, applied) = thread::scope(|scope| {
            let pumping = scope.spawn(move || {
                let found = pump.run(&queue);
                drop(queue);
                found
            });
            let applied = unpacker.apply(stream, vouched);
            (pumping.join(), applied)
        });
        let found = found.unwrap_or_else(|_| Err(layer::Error::Read(io::Error::other("its thread panicked"))));
        // A stream that breaks ends early for the unpacker too, which knows less of it. A pump that the unpacker hung up
        // on has read too little to say anything.
        let unpack_failed = |source| Error::Unpack { archive: archive(), source };
        let result = match (found, applied) {
            (found, Ok(())) => found.map_err(read_failed),
            (Err(error), Err(_)) if error.is_of_the_stream() => Err(read_failed(error)),
            (_, Err(error)) => Err(unpack_failed(error)),
        };
        if let (Err(_), Some(expected)) = (&result, known) {
            // The store's own copy may be what is damaged: the next import shall not meet it again.
            let copy = File::open(blobs.join(expected.hex())).and_then(Digest::of_reader);
            let found = copy.map_err(|error| read_failed(layer::Error::Read(error)))?;
            if found != expected {
                self.store.forget_blob(&expected)?;
                return Err(read_failed(layer::Error::Digest { expected, found }));
            }
        }
        let found = result?;
        if known.is_none() {
            let name = found.digest.hex();
            fs::rename(&aside, blobs.join(&name)).map_err(self.staging.failed(&name))?;
        }
        Ok(found)
    }

    /// Configuration and manifest: the image's own, or made for what has none, from its layers alone.
    fn documents(&self, layers: &[Layer]) -> Result<(Vec<u8>, Vec<u8>), Error> {
        let config = match &self.parcel.config {
            Some(config) => config.clone(),
            None => documents::config(layers).map_err(Error::Document)?.into_bytes(),
        };
        let manifest = match &self.parcel.manifest {
            Some(manifest) => manifest.clone(),
            None => documents::manifest(&config, layers).map_err(Error::Document)?.into_bytes(),
        };
        Ok((config, manifest))
    }

    /// Completes the image's folder.
    fn write_layout(&self, record: &Record, config: &[u8], manifest: &[u8], blobs: &Path) -> Result<(), Error> {
        for (digest, text) in [(&record.config, config), (&record.digest, manifest)] {
            fs::write(blobs.join(digest.hex()), text).map_err(self.staging.failed(&digest.hex()))?;
        }
        for (name, text) in documents::of_layout(record, manifest.len() as u64).map_err(Error::Document)? {
            let name = format!("layout/{name}");
            fs::write(self.staging.path().join(&name), text).map_err(self.staging.failed(&name))?;
        }
        let failed = self.staging.failed(super::store::RECORD);
        let text = serde_json::to_string_pretty(record).map_err(|error| failed(error.into()))?;
        fs::write(self.staging.path().join(super::store::RECORD), text).map_err(failed)?;
        Ok(())
    }
}

/// Hashes what it writes.
struct Hashing<W> {
    out: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
