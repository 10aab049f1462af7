//! A tree as an OCI layout of one layer, the same bytes for the same tree: sorted, of one time, of fixed owners and
//! modes. See the OCI image specification, "Image Layer Filesystem Changeset" and "Image Layout".

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use oci_spec::image::{
    ConfigBuilder, DescriptorBuilder, ImageConfigurationBuilder, ImageIndexBuilder, ImageManifestBuilder, MediaType,
    OciLayoutBuilder, RootFsBuilder, Sha256Digest,
};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use crate::image::{Digest, Progress, UID};

/// What a process of the image starts with, in engines that ask the image.
const ENV: [&str; 6] = [
    "PATH=/usr/local/bin:/usr/bin:/bin",
    "HOME=/tmp",
    "LANG=C.UTF-8",
    "TZ=UTC",
    "PYTHONUNBUFFERED=1",
    "PYTHONDONTWRITEBYTECODE=1",
];
/// Folders that belong to the guest.
const GUESTS: [&str; 2] = ["output", "work"];
/// gzip, for engines before Docker 23 load no layer of zstd; at its own default level.
const LEVEL: Compression = Compression::new(6);

/// Why a tree has not become a layout.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the tree or of the layout.
    #[error("failed to pack {path:?}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A document.
    #[error("failed to describe the image in the OCI format")]
    Document(#[from] oci_spec::OciSpecError),
}

/// Writes a stream's bytes on, and knows their digest and number.
struct Hashing<W> {
    to: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Hashing<W> {
    fn new(to: W) -> Self {
        Self { to, hash: Sha256::new(), bytes: 0 }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Writes the tree as a layout into `layout`, an empty folder.
pub(super) fn pack(tree: &Path, epoch: u64, layout: &Path, progress: &dyn Progress) -> Result<(), Error> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(failed(&blobs))?;
    let partial = layout.join("layer");
    let (diff, digest, size) = layer(tree, epoch, &partial, progress)?;
    fs::rename(&partial, blobs.join(digest.hex())).map_err(failed(&partial))?;
    documents(layout, epoch, diff, digest, size)
}

/// The layer, compressed in `to`: the digests of the tar and of the file, and the file's size.
fn layer(tree: &Path, epoch: u64, to: &Path, progress: &dyn Progress) -> Result<(Digest, Digest, u64), Error> {
    let file = Hashing::new(BufWriter::new(File::create(to).map_err(failed(to))?));
    // Its header has neither time nor system.
    let encoder = GzEncoder::new(file, LEVEL);
    let tar = tar_of(tree, epoch, Hashing::new(encoder), progress)?;
    let mut file = tar.to.finish().map_err(failed(to))?;
    file.flush().map_err(failed(to))?;
    Ok((tar.hash.into(), file.hash.into(), file.bytes))
}

/// Writes the tree as a tar.
pub(super) fn tar_of<W: Write>(tree: &Path, epoch: u64, to: W, progress: &dyn Progress) -> Result<W, Error> {
    let mut tar = Builder::new(to);
    // The first path of each file that has several.
    let mut linked = HashMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let source = tree.join(&path);
        let metadata = fs::symlink_metadata(&source).map_err(failed(&source))?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            let names = fs::read_dir(&source).and_then(Iterator::collect::<io::Result<Vec<_>>>);
            let mut names: Vec<_> = names.map_err(failed(&source))?.iter().map(fs::DirEntry::file_name).collect();
            names.sort_unstable_by(|a, b| b.cmp(a));
            pending.extend(names.iter().map(|name| path.join(name)));
            if path.as_os_str().is_empty() {
                continue;
            }
        }
        let mode = match metadata.permissions().mode() {
            _ if kind.is_symlink() => 0o777,
            _ if path.as_os_str() == "tmp" => 0o1777,
            mode if kind.is_dir() || mode & 0o100 != 0 => 0o755,
            _ => 0o644,
        };
        let mut header = Header::new_gnu();
        header.set_mode(mode);
        header.set_mtime(epoch);
        let owner = if GUESTS.iter().any(|own| path.as_os_str() == *own) { u64::from(UID) } else { 0 };
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_size(0);
        let key = (metadata.dev(), metadata.ino());
        let first = (kind.is_file() && metadata.nlink() > 1).then(|| linked.get(&key)).flatten();
        let added = if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            tar.append_data(&mut header, &path, io::empty())
        } else if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            let target = fs::read_link(&source).map_err(failed(&source))?;
            tar.append_link(&mut header, &path, target)
        } else if let Some(first) = first {
            header.set_entry_type(EntryType::Link);
            tar.append_link(&mut header, &path, first)
        } else if kind.is_file() {
            linked.insert(key, path.clone());
            header.set_entry_type(EntryType::Regular);
            header.set_size(metadata.len());
            let file = File::open(&source).map_err(failed(&source))?;
            progress.advance(metadata.len());
            tar.append_data(&mut header, &path, file)
        } else {
            Ok(())
        };
        added.map_err(failed(&source))?;
    }
    tar.into_inner().map_err(failed(tree))
}

/// Configuration, manifest and index.
fn documents(layout: &Path, epoch: u64, diff: Digest, layer: Digest, size: u64) -> Result<(), Error> {
    let seconds = i64::try_from(epoch).unwrap_or_default();
    let created = jiff::Timestamp::from_second(seconds).unwrap_or_default().to_string();
    let config = ConfigBuilder::default()
        .user(format!("{UID}:{UID}"))
        .env(ENV.map(str::to_owned))
        .cmd(["python3".to_owned()])
        .working_dir("/work")
        .build()?;
    let rootfs = RootFsBuilder::default().typ("layers").diff_ids([diff.to_string()]).build()?;
    let config = ImageConfigurationBuilder::default().created(created).config(config).rootfs(rootfs).build()?;
    let config = blob(layout, &config)?;
    let descriptor = |kind, (digest, size): (Digest, u64)| {
        let digest: Sha256Digest = digest.hex().parse()?;
        DescriptorBuilder::default().media_type(kind).digest(digest).size(size).build()
    };
    let manifest = ImageManifestBuilder::default()
        .schema_version(2_u32)
        .media_type(MediaType::ImageManifest)
        .config(descriptor(MediaType::ImageConfig, config)?)
        .layers([descriptor(MediaType::ImageLayerGzip, (layer, size))?])
        .build()?;
    let manifest = descriptor(MediaType::ImageManifest, blob(layout, &manifest)?)?;
    let index = ImageIndexBuilder::default()
        .schema_version(2_u32)
        .media_type(MediaType::ImageIndex)
        .manifests([manifest])
        .build()?;
    let version = OciLayoutBuilder::default().image_layout_version("1.0.0").build()?;
    document(&layout.join("oci-layout"), &version)?;
    document(&layout.join("index.json"), &index)?;
    Ok(())
}

/// Writes a document as a blob.
fn blob(layout: &Path, document: &impl Serialize) -> Result<(Digest, u64), Error> {
    let text = serde_json::to_vec(document).map_err(|source| failed(layout)(source.into()))?;
    let digest = Digest::of(&text);
    let path = layout.join("blobs/sha256").join(digest.hex());
    fs::write(&path, &text).map_err(failed(&path))?;
    Ok((digest, text.len() as u64))
}

fn document(path: &Path, document: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_vec(document).map_err(|source| failed(path)(source.into()))?;
    fs::write(path, text).map_err(failed(path))
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::File { path: path.clone(), source }
}
