//! What the store cannot do, and why.

use std::io;
use std::path::{Path, PathBuf};

use super::super::{archive, layer, layout, registry, unpack};

/// Why the store cannot do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no store, or not a safe one.
    #[error(transparent)]
    Place(#[from] Box<super::super::Error>),
    /// A file of the store.
    #[error("failed to {step} {path:?} in the store (NSBOX_STORE names another)")]
    File {
        /// What was tried.
        step: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What cannot name an image.
    #[error(
        "{name:?} cannot name an image: use letters, digits, '.', '_', '-' and ':', at most 128, beginning with a letter or digit, and not host"
    )]
    Name {
        /// The name given.
        name: String,
    },
    /// No image of that name.
    #[error("there is no image {name:?} in the store{}", suggestion(.name, .near))]
    Unknown {
        /// What was asked for.
        name: String,
        /// Names that look like it.
        near: Vec<String>,
    },
    /// The start of several digests.
    #[error("{prefix:?} begins the digests of several images: {}", .found.join(", "))]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// The digests.
        found: Vec<String>,
    },
    /// An image that runs use.
    #[error("the image {name} is in use by a run: wait for its end, then remove it")]
    InUse {
        /// What was to be removed.
        name: String,
    },
    /// An image's record cannot be read.
    #[error("failed to understand {path:?}: import the image again")]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A document for the image cannot be made.
    #[error("failed to describe the image in the OCI format")]
    Document(#[source] oci_spec::OciSpecError),
    /// A source that cannot be opened.
    #[error("failed to import {archive}")]
    Archive {
        /// The source.
        archive: String,
        /// Why.
        #[source]
        source: archive::Error,
    },
    /// A source whose documents are refused.
    #[error("failed to import {archive}")]
    Layout {
        /// The source.
        archive: String,
        /// Why.
        #[source]
        source: layout::Error,
    },
    /// An image that a registry does not give.
    #[error("failed to import {archive}")]
    Registry {
        /// The source.
        archive: String,
        /// Why.
        #[source]
        source: registry::Error,
    },
    /// A layer whose bytes are refused.
    #[error("failed to import {archive}")]
    Layer {
        /// The source and the layer.
        archive: String,
        /// Why.
        #[source]
        source: layer::Error,
    },
    /// A layer whose entries are refused.
    #[error("failed to import {archive}")]
    Unpack {
        /// The source and the layer.
        archive: String,
        /// Why.
        #[source]
        source: unpack::Error,
    },
}

impl Error {
    /// A stable name for JSON, the command line and Python.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Place(error) => error.code(),
            Self::File { .. } => "image-store-file",
            Self::Name { .. } => "image-name",
            Self::Unknown { .. } => "image-unknown",
            Self::Ambiguous { .. } => "image-ambiguous",
            Self::InUse { .. } => "image-in-use",
            Self::Record { .. } => "image-record",
            Self::Document(_) => "image-document",
            Self::Archive { source, .. } => source.code(),
            Self::Layout { source, .. } => source.code(),
            Self::Registry { source, .. } => source.code(),
            Self::Layer { source, .. } => source.code(),
            Self::Unpack { source, .. } => source.code(),
        }
    }
}

/// What to do about a name that is not there.
fn suggestion(name: &str, near: &[String]) -> String {
    let near = match near {
        [] => String::new(),
        near => format!(" (near: {})", near.join(", ")),
    };
    let build = match crate::image::build::Profile::of_image(name) {
        Some(profile) => format!("nsbox image build --profile {} builds it, ", profile.name()),
        None => String::new(),
    };
    format!("{near}: {build}nsbox image import SOURCE --name {name} imports one, nsbox image list shows what is there")
}

/// Turns the failure of a file into an error.
pub(super) fn failed(step: &'static str, path: &Path) -> impl Fn(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::File { step, path: path.clone(), source }
}
