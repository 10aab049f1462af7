//! What an image consists of, as its documents say: from an OCI layout (`index.json`), or from what `docker save` writes
//! (`manifest.json`), in a folder or an archive.
//!
//! Documents are small, counted before they are read, and those that have a digest are compared with it. See the OCI
//! image specification, "Image Layout", "Image Index" and "Image Manifest".

use std::io::{self, Read};

use oci_spec::image::{
    Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, OciLayout, Os, Platform,
};
use serde::Deserialize;

use super::archive::Content;
use super::digest::Digest;
use super::layer::Expected;

/// The largest document that is read.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;
/// The most layers of an image; Docker's own limit is 127.
const MAX_LAYERS: usize = 127;
/// How far an index may lead to another.
const MAX_NESTING: usize = 4;
/// The most images an index may list.
const MAX_LISTED: usize = 1024;
/// The name of an image in an index.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The same with its repository, as containerd and Docker write it.
const IMAGE_NAME: &str = "io.containerd.image.name";

/// Why an image's documents are refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something that the documents name is not there.
    #[error("{path} is missing: the image is incomplete, make or fetch it again")]
    Missing {
        /// Its path in the layout, or its digest in the registry.
        path: String,
    },
    /// A document or layer cannot be read.
    #[error("failed to read {path}")]
    Read {
        /// Its path in the layout.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A document above the limit.
    #[error("{path} is larger than 4 MiB, the limit of an image's documents (a fixed limit)")]
    TooLarge {
        /// Its path in the layout.
        path: String,
    },
    /// A document that is not what it should be.
    #[error("failed to understand {path}")]
    Parse {
        /// Its path in the layout.
        path: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A document that is not the one that was named.
    #[error("{path} has the digest {found}, not the one it is named by: it was damaged or exchanged, fetch it again")]
    Digest {
        /// Its path in the layout.
        path: String,
        /// What was read.
        found: Digest,
    },
    /// A digest that cannot be checked.
    #[error("{path} names a digest that nsbox does not check")]
    Algorithm {
        /// The document.
        path: String,
        /// The digest.
        #[source]
        source: super::digest::NotADigest,
    },
    /// A layout of another version.
    #[error("the layout is of version {found:?}, nsbox reads 1.0")]
    Version {
        /// Its version.
        found: String,
    },
    /// Indexes that lead to indexes without end.
    #[error("its indexes are nested deeper than {MAX_NESTING}, or list more than {MAX_LISTED} images (fixed limits)")]
    Nested,
    /// No image in it that can run here.
    #[error("it has no image for {wanted} (found: {found}): build or fetch one for this machine")]
    Platform {
        /// This machine's.
        wanted: String,
        /// Those of the index.
        found: String,
    },
    /// Several images, and none of the name asked for.
    #[error("it holds several images ({found}): give --name one of these names, or save one image alone")]
    Several {
        /// Their names.
        found: String,
    },
    /// Something else than an image.
    #[error("{path} is of type {found}, not an image")]
    NotAnImage {
        /// The document.
        path: String,
        /// What it says of itself.
        found: String,
    },
    /// More layers than allowed.
    #[error("it has {found} layers, the limit is {MAX_LAYERS} (a fixed limit): flatten the image")]
    TooManyLayers {
        /// How many.
        found: usize,
    },
    /// Manifest and configuration disagree.
    #[error("its manifest names {layers} layers, its configuration {diff_ids}")]
    Layers {
        /// Layers of the manifest.
        layers: usize,
        /// Digests of decompressed layers in the configuration.
        diff_ids: usize,
    },
}

impl Error {
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "layout-missing",
            Self::Read { .. } => "layout-read",
            Self::TooLarge { .. } => "layout-too-large",
            Self::Parse { .. } => "layout-parse",
            Self::Digest { .. } => "layout-digest",
            Self::Algorithm { .. } => "layout-algorithm",
            Self::Version { .. } => "layout-version",
            Self::Nested => "layout-nested",
            Self::Platform { .. } => "layout-platform",
            Self::Several { .. } => "layout-several",
            Self::NotAnImage { .. } => "layout-not-an-image",
            Self::TooManyLayers { .. } => "layout-too-many-layers",
            Self::Layers { .. } => "layout-layers",
        }
    }
}

/// An image as its documents describe it; nothing of its layers has been read.
#[derive(Debug)]
pub(crate) struct Description {
    /// The manifest's text; `docker save` in its old form has none.
    pub manifest: Option<Vec<u8>>,
    /// The configuration's text.
    pub config: Vec<u8>,
    pub layers: Vec<LayerAt>,
}

/// Where a layer is, and what it must be.
#[derive(Debug)]
pub(crate) struct LayerAt {
    /// Its path in the layout.
    pub path: String,
    pub expected: Expected,
}

/// Where a layout keeps what has a digest.
pub(crate) fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Reads the documents of an image. `name` chooses where there are several.
pub(crate) fn describe(content: &Content, name: Option<&str>) -> Result<Description, Error> {
    if let Some(text) = read(content, "index.json")? {
        if let Some(text) = read(content, "oci-layout")? {
            let layout: OciLayout = parse("oci-layout", &text)?;
            if !layout.image_layout_version().starts_with("1.") {
                return Err(Error::Version { found: layout.image_layout_version().clone() });
            }
        }
        return from_index(content, &text, name);
    }
    match read(content, "manifest.json")? {
        Some(text) => from_saved(content, &text, name),
        None => {
            Err(Error::Missing { path: "index.json (of an OCI layout) or manifest.json (of docker save)".to_owned() })
        }
    }
}

fn from_index(content: &Content, text: &[u8], name: Option<&str>) -> Result<Description, Error> {
    let index: ImageIndex = parse("index.json", text)?;
    let fetch = |digest: &Digest| {
        let path = blob_path(digest);
        read(content, &path)?.ok_or(Error::Missing { path })
    };
    let mut choice = Choice { fetch: &fetch, listed: 0, found: Vec::new(), platforms: Vec::new() };
    choice.visit("index.json", &index, None, 0)?;
    let (_, manifest) = choice.choose(name)?;
    let path = blob_path(&manifest);
    let text = verified(&path, fetch(&manifest)?, &manifest)?;
    from_manifest(&path, text, &fetch)
}

/// The images of an index for this machine.
pub(crate) struct Choice<'a> {
    /// Gets a document by its digest.
    pub fetch: &'a dyn Fn(&Digest) -> Result<Vec<u8>, Error>,
    pub listed: usize,
    /// Name and manifest.
    pub found: Vec<(Option<String>, Digest)>,
    pub platforms: Vec<String>,
}

impl Choice<'_> {
    /// Looks through an index and those it leads to.
    pub(crate) fn visit(
        &mut self,
        path: &str,
        index: &ImageIndex,
        name: Option<&str>,
        depth: usize,
    ) -> Result<(), Error> {
        self.listed += index.manifests().len();
        if depth == MAX_NESTING || self.listed > MAX_LISTED {
            return Err(Error::Nested);
        }
        for descriptor in index.manifests() {
            let annotation = |key| descriptor.annotations().as_ref().and_then(|all| all.get(key)).map(String::as_str);
            let name = annotation(IMAGE_NAME).or_else(|| annotation(REF_NAME)).or(name);
            if !descriptor.platform().as_ref().is_none_or(runs_here) {
                self.platforms.extend(descriptor.platform().as_ref().map(shown));
                continue;
            }
            let digest = digest_of(path, descriptor)?;
            match descriptor.media_type() {
                MediaType::ImageIndex => self.descend(&digest, name, depth)?,
                MediaType::Other(other) if other == DOCKER_INDEX => self.descend(&digest, name, depth)?,
                _ => self.found.push((name.map(str::to_owned), digest)),
            }
        }
        Ok(())
    }

    fn descend(&mut self, digest: &Digest, name: Option<&str>, depth: usize) -> Result<(), Error> {
        let path = blob_path(digest);
        let text = verified(&path, (self.fetch)(digest)?, digest)?;
        self.visit(&path, &parse(&path, &text)?, name, depth + 1)
    }

    /// The one image, or the one of the name asked for.
    pub(crate) fn choose(mut self, name: Option<&str>) -> Result<(Option<String>, Digest), Error> {
        self.found.dedup_by(|a, b| a.1 == b.1);
        if self.found.len() == 1 {
            return Ok(self.found.remove(0));
        }
        if self.found.is_empty() {
            let found = if self.platforms.is_empty() { "nothing".to_owned() } else { self.platforms.join(", ") };
            return Err(Error::Platform { wanted: format!("{}/{}", Os::default(), Arch::default()), found });
        }
        let named = |(found, _): &(Option<String>, Digest)| {
            name.is_some_and(|name| found.as_deref().is_some_and(|found| is_called(found, name)))
        };
        if let Some(at) = self.found.iter().position(named) {
            return Ok(self.found.swap_remove(at));
        }
        let found = self.found.iter().map(|(name, digest)| name.clone().unwrap_or_else(|| digest.to_string()));
        Err(Error::Several { found: found.collect::<Vec<_>>().join(", ") })
    }
}

/// Whether an image's full name means `name`: with or without its repository's host and the tag `latest`.
fn is_called(full: &str, name: &str) -> bool {
    let last = full.rsplit('/').next().unwrap_or(full);
    [full, last].iter().any(|full| *full == name || full.strip_suffix(":latest") == Some(name))
}

const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Whether an image's platform is this machine's.
pub(crate) fn runs_here(platform: &Platform) -> bool {
    *platform.os() == Os::Linux && *platform.architecture() == Arch::default()
}

pub(crate) fn shown(platform: &Platform) -> String {
    format!("{}/{}", platform.os(), platform.architecture())
}

/// An image by its manifest; `fetch` gets its configuration.
pub(crate) fn from_manifest(
    path: &str,
    text: Vec<u8>,
    fetch: &dyn Fn(&Digest) -> Result<Vec<u8>, Error>,
) -> Result<Description, Error> {
    let manifest: ImageManifest = parse(path, &text)?;
    let config_digest = digest_of(path, manifest.config())?;
    if manifest.layers().len() > MAX_LAYERS {
        return Err(Error::TooManyLayers { found: manifest.layers().len() });
    }
    let config_path = blob_path(&config_digest);
    let config = verified(&config_path, fetch(&config_digest)?, &config_digest)?;
    let is_config = match manifest.config().media_type() {
        MediaType::ImageConfig => true,
        MediaType::Other(other) => other == "application/vnd.docker.container.image.v1+json",
        _ => false,
    };
    if !is_config {
        return Err(Error::NotAnImage { path: path.to_owned(), found: manifest.config().media_type().to_string() });
    }
    let diff_ids = diff_ids(&config_path, &config)?;
    if diff_ids.len() != manifest.layers().len() {
        return Err(Error::Layers { layers: manifest.layers().len(), diff_ids: diff_ids.len() });
    }
    let layers = manifest.layers().iter().zip(diff_ids).map(|(layer, diff_id)| {
        let digest = digest_of(path, layer)?;
        let expected = Expected { digest: Some(digest), size: Some(layer.size()), diff_id: Some(diff_id) };
        Ok(LayerAt { path: blob_path(&digest), expected })
    });
    Ok(Description { layers: layers.collect::<Result<_, Error>>()?, manifest: Some(text), config })
}

/// One image of `docker save`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn from_saved(content: &Content, text: &[u8], name: Option<&str>) -> Result<Description, Error> {
    let mut all: Vec<Saved> = parse("manifest.json", text)?;
    let is_named = |saved: &Saved| {
        let tags = saved.repo_tags.as_deref().unwrap_or_default();
        name.is_some_and(|name| tags.iter().any(|tag| is_called(tag, name)))
    };
    let at = if all.len() == 1 { Some(0) } else { all.iter().position(is_named) };
    let Some(at) = at else {
        let tags = all.into_iter().flat_map(|saved| saved.repo_tags.unwrap_or_else(|| vec![saved.config]));
        return Err(Error::Several { found: tags.collect::<Vec<_>>().join(", ") });
    };
    let saved = all.swap_remove(at);
    if saved.layers.len() > MAX_LAYERS {
        return Err(Error::TooManyLayers { found: saved.layers.len() });
    }
    let config = read(content, &saved.config)?.ok_or_else(|| Error::Missing { path: saved.config.clone() })?;
    // Named by its digest: `DIGEST.json`, `sha256:DIGEST` or `blobs/sha256/DIGEST`, depending on who wrote it.
    let last = saved.config.rsplit(['/', ':']).next().unwrap_or_default();
    let config = match Digest::from_hex(last.strip_suffix(".json").unwrap_or(last)) {
        Ok(digest) => verified(&saved.config, config, &digest)?,
        Err(_) => config,
    };
    let diff_ids = diff_ids(&saved.config, &config)?;
    if diff_ids.len() != saved.layers.len() {
        return Err(Error::Layers { layers: saved.layers.len(), diff_ids: diff_ids.len() });
    }
    let layers = saved.layers.into_iter().zip(diff_ids).map(|(path, diff_id)| {
        let expected = Expected { diff_id: Some(diff_id), ..Expected::default() };
        LayerAt { path, expected }
    });
    Ok(Description { layers: layers.collect(), manifest: None, config })
}

/// The digests of the decompressed layers, and whether the image is for this machine.
fn diff_ids(path: &str, config: &[u8]) -> Result<Vec<Digest>, Error> {
    let config: ImageConfiguration = parse(path, config)?;
    if *config.os() != Os::Linux || *config.architecture() != Arch::default() {
        let found = format!("{}/{}", config.os(), config.architecture());
        return Err(Error::Platform { wanted: format!("{}/{}", Os::default(), Arch::default()), found });
    }
    let parsed = config.rootfs().diff_ids().iter().map(|id| id.parse());
    parsed.collect::<Result<_, _>>().map_err(|source| Error::Algorithm { path: path.to_owned(), source })
}

fn digest_of(path: &str, descriptor: &Descriptor) -> Result<Digest, Error> {
    let digest = descriptor.digest().as_ref().parse();
    digest.map_err(|source| Error::Algorithm { path: path.to_owned(), source })
}

/// A document that has the digest it is named by.
pub(crate) fn verified(path: &str, text: Vec<u8>, digest: &Digest) -> Result<Vec<u8>, Error> {
    match Digest::of(&text) {
        found if found == *digest => Ok(text),
        found => Err(Error::Digest { path: path.to_owned(), found }),
    }
}

pub(crate) fn parse<T: for<'de> Deserialize<'de>>(path: &str, text: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(text).map_err(|source| Error::Parse { path: path.to_owned(), source })
}

/// A document of the layout, if it is there.
fn read(content: &Content, path: &str) -> Result<Option<Vec<u8>>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let Some(file) = content.open(path).map_err(failed)? else { return Ok(None) };
    let mut text = Vec::new();
    file.take(MAX_DOCUMENT + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_DOCUMENT {
        return Err(Error::TooLarge { path: path.to_owned() });
    }
    Ok(Some(text))
}
