//! What the store knows of its images: records, packages, and whether every byte is still the one that came.

use std::fs::{self, File};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::digest::Digest;
use super::super::documents;
use super::super::import::Progress;
use super::super::layer::Layer;
use super::super::layout;
use super::super::mtree::{self, Totals};
use super::super::packages::{Package, packages};
use super::error::failed;
use super::{Error, Held, Store};

/// The version of [`Record`].
pub(crate) const SCHEMA: u32 = 1;
/// The file of an image's [`Record`].
pub(crate) const RECORD: &str = "image.json";
/// The file of its tree's description.
pub(crate) const TREE: &str = "tree.mtree";

/// What the store knows of an image, beside its documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Record {
    /// The version of this record: 1.
    pub schema: u32,
    /// Digest of the image: of its OCI manifest.
    pub digest: Digest,
    /// Digest of its configuration, which Docker calls the image's id.
    pub config: Digest,
    /// Where it came from.
    pub source: String,
    /// When it came.
    pub imported: jiff::Timestamp,
    /// Its layers, the base first.
    pub layers: Vec<Layer>,
    /// What its tree holds.
    pub totals: Totals,
    /// Digest of the tree's description.
    pub tree: Digest,
    /// What was left out of it.
    pub notes: Vec<String>,
}

/// An image of the store with its names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Entry {
    /// Its names, sorted.
    pub names: Vec<String>,
    /// What is known of it.
    #[serde(flatten)]
    pub record: Record,
}

/// All that is known of an image.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// Names and record.
    #[serde(flatten)]
    pub entry: Entry,
    /// Its tree.
    pub rootfs: PathBuf,
    /// Its OCI layout.
    pub layout: PathBuf,
    /// What is installed in it.
    pub packages: Vec<Package>,
    /// Its configuration, as it came.
    #[serde(rename = "configuration")]
    pub config: serde_json::Value,
}

impl Store {
    /// What the store knows of an image.
    pub(crate) fn record(&self, digest: &Digest) -> Result<Record, Error> {
        let path = self.image_dir(digest).join(RECORD);
        let text = fs::read(&path).map_err(failed("read", &path))?;
        serde_json::from_slice(&text).map_err(|source| Error::Record { path, source })
    }

    /// All images, by their first names.
    ///
    /// # Errors
    /// What cannot be read.
    pub fn list(&self) -> Result<Vec<Entry>, Error> {
        let names = self.names()?;
        let entry = |digest: &Digest| {
            let names = names.iter().filter(|(_, of)| of == digest).map(|(name, _)| name.clone()).collect();
            Ok(Entry { names, record: self.record(digest)? })
        };
        let mut entries = self.digests()?.iter().map(entry).collect::<Result<Vec<_>, Error>>()?;
        entries.sort_by(|a, b| a.names.is_empty().cmp(&b.names.is_empty()).then_with(|| a.names.cmp(&b.names)));
        Ok(entries)
    }

    /// Compares an image with its digests: every blob, the description of its tree, and every file with that; what
    /// differs, in words. Nothing where all is as it was imported.
    ///
    /// # Errors
    /// What cannot be read at all.
    pub fn verify(&self, name: &str, progress: &dyn Progress) -> Result<Vec<String>, Error> {
        let held = self.find(name)?;
        let record = self.record(&held.digest)?;
        let mut told = Vec::new();
        let blobs = self.layout_dir(&held.digest).join("blobs/sha256");
        let sizes = record.layers.iter().map(|layer| layer.size).sum::<u64>();
        progress.begin("hashing its blobs and files", Some(sizes + record.totals.bytes));
        let layers = record.layers.iter().map(|layer| &layer.digest);
        for digest in layers.chain([&record.config, &record.digest]) {
            let path = blobs.join(digest.hex());
            match File::open(&path).and_then(Digest::of_reader) {
                Ok(found) if found == *digest => {}
                Ok(found) => told.push(format!("blob {digest}: has the digest {found}")),
                Err(error) => told.push(format!("blob {digest}: {error}")),
            }
        }
        progress.advance(sizes);
        if record.digest != held.digest {
            told.push(format!("{RECORD}: is of the image {}", record.digest));
        }
        told.extend(self.verify_layout(&record)?);
        let description = self.description(&held)?;
        if Digest::of(description.as_bytes()) != record.tree {
            told.push(format!("{TREE}: is not the description that was written at import"));
        }
        told.extend(mtree::verify(&held.rootfs, &description, progress).map_err(failed("read", &held.rootfs))?);
        Ok(told)
    }

    /// The documents of the layout that are no blobs: each is what the record comes to.
    fn verify_layout(&self, record: &Record) -> Result<Vec<String>, Error> {
        let layout = self.layout_dir(&record.digest);
        // A manifest that is not there, or of another size, has been told of by its digest.
        let size = fs::metadata(layout.join(layout::blob_path(&record.digest))).map_or(0, |metadata| metadata.len());
        let mut told = Vec::new();
        for (name, expected) in documents::of_layout(record, size).map_err(Error::Document)? {
            match fs::read(layout.join(name)) {
                Ok(found) if found == expected.as_bytes() => {}
                Ok(_) => told.push(format!("{name}: is not the document that was written at import")),
                Err(error) => told.push(format!("{name}: {error}")),
            }
        }
        Ok(told)
    }

    /// The image's tree in mtree(5)'s format.
    fn description(&self, held: &Held) -> Result<String, Error> {
        let path = self.image_dir(&held.digest).join(TREE);
        fs::read_to_string(&path).map_err(failed("read", &path))
    }

    /// All that is known of an image.
    ///
    /// # Errors
    /// Where there is none of that name, or what cannot be read.
    pub fn inspect(&self, name: &str) -> Result<Inspection, Error> {
        let held = self.find(name)?;
        let names = self.names()?.into_iter().filter(|(_, of)| *of == held.digest).map(|(name, _)| name).collect();
        let record = self.record(&held.digest)?;
        let path = self.layout_dir(&held.digest).join(layout::blob_path(&record.config));
        let config = fs::read(&path).map_err(failed("read", &path))?;
        let config = serde_json::from_slice(&config).map_err(|source| Error::Record { path, source })?;
        let packages = packages(&held.rootfs, &self.description(&held)?).map_err(failed("read", &held.rootfs))?;
        let layout = self.layout_dir(&held.digest);
        Ok(Inspection { entry: Entry { names, record }, rootfs: held.rootfs, layout, packages, config })
    }
}
