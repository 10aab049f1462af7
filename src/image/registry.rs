//! Images from a registry: documents pinned by digest, layers fetched side by side and gone on with where they broke off.
//!
//! A layer under way is `partial/DIGEST` in the store, locked while somebody fetches it. Its digest is computed as it
//! comes, and only what has the right one becomes a blob. See the OCI distribution specification.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use oci_spec::image::ImageIndex;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::runtime::Runtime;

use super::digest::Digest;
use super::import::{Options, Progress};
use super::layer;
use super::layout::{self, Choice, Description, LayerAt, MAX_DOCUMENT, blob_path};
use super::store::{Store, is_at};
use super::tls;

/// Layers fetched at once.
const PARALLEL: usize = 4;
/// How often a layer is gone on with before the import gives up.
const ATTEMPTS: u32 = 5;
/// How long the registry may say nothing.
const SILENCE: Duration = Duration::from_secs(60);
/// The documents asked for.
const ACCEPTED: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// Why an image cannot be fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What names no image.
    #[error("it names no image: expected oci://HOST[:PORT]/NAME[:TAG][@sha256:...]")]
    Reference(#[source] oci_client::ParseError),
    /// A name without a host, for which others take a public registry.
    #[error("it names no registry: expected oci://HOST[:PORT]/NAME[:TAG][@sha256:...]")]
    NoHost,
    /// The client cannot be started.
    #[error("failed to start the registry's client")]
    Start(#[source] io::Error),
    /// Nobody is trusted.
    #[error("failed to prepare for TLS: install ca-certificates, or name a file of certificates in SSL_CERT_FILE")]
    Tls(#[source] Box<OciDistributionError>),
    /// The registry is not trusted.
    #[error(
        "failed to trust {registry}: its certificate needs an authority of the system's (update-ca-certificates) or of a file that SSL_CERT_FILE names, and must be none itself"
    )]
    Distrust {
        /// Its address.
        registry: String,
        /// Why.
        #[source]
        source: Box<OciDistributionError>,
    },
    /// The registry did not give something.
    #[error("failed to fetch {what}: is the name right, the registry up and open to everybody{}?", plain(.plain_http))]
    Fetch {
        /// What was asked for.
        what: String,
        /// Whether TLS was left out.
        plain_http: bool,
        /// Why.
        #[source]
        source: Box<OciDistributionError>,
    },
    /// A layer broke off again and again.
    #[error("failed to fetch {what}, which broke off {ATTEMPTS} times: import again to go on from there")]
    BrokeOff {
        /// What was asked for.
        what: String,
        /// The last failure.
        #[source]
        source: io::Error,
    },
    /// Its documents.
    #[error(transparent)]
    Layout(#[from] layout::Error),
    /// A layer that is not the one named.
    #[error("refused {what}")]
    Layer {
        /// The layer.
        what: String,
        /// Why.
        #[source]
        source: layer::Error,
    },
    /// A file of the store.
    #[error("failed to keep {what} in the store (NSBOX_STORE names another)")]
    Keep {
        /// The layer.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Reference(_) | Self::NoHost => "registry-reference",
            Self::Start(_) => "registry-start",
            Self::Tls(_) => "registry-tls",
            Self::Distrust { .. } => "registry-distrust",
            Self::Fetch { .. } => "registry-fetch",
            Self::BrokeOff { .. } => "registry-broke-off",
            Self::Layout(error) => error.code(),
            Self::Layer { source, .. } => source.code(),
            Self::Keep { .. } => "registry-keep",
        }
    }
}

fn plain(plain_http: &bool) -> &'static str {
    if *plain_http { "" } else { " (one without TLS needs --plain-http)" }
}

/// An image in a registry.
pub(crate) struct Remote {
    runtime: Runtime,
    client: Client,
    reference: Reference,
    plain_http: bool,
}

impl Remote {
    /// A client for the registry that a reference names. One on a loopback address is asked whether it speaks TLS.
    pub(crate) fn new(reference: &str, options: &Options) -> Result<Self, Error> {
        if !names_host(reference) {
            return Err(Error::NoHost);
        }
        let reference: Reference = reference.parse().map_err(Error::Reference)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Start)?;
        let mut remote = Self { runtime, client: client(ClientProtocol::Https)?, reference, plain_http: false };
        if options.plain_http || is_loopback(remote.reference.resolve_registry()) && !remote.speaks_tls() {
            remote.client = client(ClientProtocol::Http)?;
            remote.plain_http = true;
        }
        Ok(remote)
    }

    /// Whether who listens there takes part in a handshake, be it one that fails for want of trust.
    fn speaks_tls(&self) -> bool {
        let asked = self.client.auth(&self.reference, &RegistryAuth::Anonymous, RegistryOperation::Pull);
        match self.runtime.block_on(asked) {
            Err(OciDistributionError::RequestError(error)) if error.is_connect() => tls::is_distrust(&error),
            _ => true,
        }
    }

    /// The documents of the image for this machine. Each has the digest that it is named by; the first one's is in the
    /// reference, where it is pinned.
    pub(crate) fn describe(&self) -> Result<Description, Error> {
        let pinned = self.reference.digest().map(str::parse::<Digest>).transpose();
        let pinned = pinned.map_err(|source| layout::Error::Algorithm { path: self.reference.to_string(), source })?;
        let text = self.manifest(&self.reference)?;
        let shown = self.reference.to_string();
        let text = match pinned {
            Some(digest) => layout::verified(&shown, text, &digest)?,
            None => text,
        };
        let kind: Kind = layout::parse(&shown, &text)?;
        // What the closures below fail with is the registry's; documents' own failures are the layout's.
        let failure = RefCell::new(None);
        let keep = |result: Result<Vec<u8>, Error>, digest: &Digest| {
            result.map_err(|error| {
                failure.replace(Some(error));
                layout::Error::Missing { path: digest.to_string() }
            })
        };
        let described = if kind.manifests.is_some() {
            let index: ImageIndex = layout::parse(&shown, &text)?;
            let fetch = |digest: &Digest| keep(self.manifest(&self.at(digest)), digest);
            let mut choice = Choice { fetch: &fetch, listed: 0, found: Vec::new(), platforms: Vec::new() };
            choice.visit(&shown, &index, None, 0).and_then(|()| choice.choose(None)).and_then(|(_, digest)| {
                let path = blob_path(&digest);
                let text = layout::verified(&path, fetch(&digest)?, &digest)?;
                layout::from_manifest(&path, text, &|digest| keep(self.document(digest), digest))
            })
        } else {
            layout::from_manifest(&shown, text, &|digest| keep(self.document(digest), digest))
        };
        described.map_err(|error| failure.take().unwrap_or(Error::Layout(error)))
    }

    fn at(&self, digest: &Digest) -> Reference {
        self.reference.clone_with_digest(digest.to_string())
    }

    fn fetch_failed(&self, what: &dyn ToString) -> impl Fn(OciDistributionError) -> Error + use<> {
        let (what, plain_http) = (what.to_string(), self.plain_http);
        let registry = self.reference.resolve_registry().to_owned();
        move |source| {
            let is_distrust = tls::is_distrust(&source);
            let source = Box::new(source);
            match is_distrust {
                true => Error::Distrust { registry: registry.clone(), source },
                false => Error::Fetch { what: what.clone(), plain_http, source },
            }
        }
    }

    fn manifest(&self, reference: &Reference) -> Result<Vec<u8>, Error> {
        let pull = self.client.pull_manifest_raw(reference, &RegistryAuth::Anonymous, &ACCEPTED);
        let (text, _) = self.runtime.block_on(pull).map_err(self.fetch_failed(reference))?;
        if text.len() as u64 > MAX_DOCUMENT {
            return Err(layout::Error::TooLarge { path: reference.to_string() }.into());
        }
        Ok(text.to_vec())
    }

    /// A blob that is a document.
    fn document(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let shown = digest.to_string();
        self.runtime.block_on(async {
            let mut stream = self
                .client
                .pull_blob_stream(&self.reference, shown.as_str())
                .await
                .map_err(self.fetch_failed(digest))?;
            let mut text = Vec::new();
            while let Some(piece) = stream.try_next().await.map_err(|error| self.fetch_failed(digest)(error.into()))? {
                if (text.len() + piece.len()) as u64 > MAX_DOCUMENT {
                    return Err(layout::Error::TooLarge { path: shown.clone() }.into());
                }
                text.extend_from_slice(&piece);
            }
            Ok(text)
        })
    }

    /// Fetches the layers that the store has not.
    pub(crate) fn fetch(&self, layers: &[LayerAt], fetch: &Fetch<'_>) -> Result<(), Error> {
        // Each future is made here, one after the other, and they run side by side.
        let mut fetches = Vec::new();
        for (index, layer) in layers.iter().enumerate() {
            fetches.push(async move {
                self.layer(layer, fetch).await?;
                // An unpacker that has failed waits no more.
                fetch.ready.send(index).ok();
                Ok(())
            });
        }
        self.runtime.block_on(stream::iter(fetches).buffered(PARALLEL).try_collect())
    }

    async fn layer(&self, layer: &LayerAt, fetch: &Fetch<'_>) -> Result<(), Error> {
        let Fetch { store, blobs, .. } = fetch;
        let (Some(digest), Some(size)) = (layer.expected.digest, layer.expected.size) else { return Ok(()) };
        let keep_failed = |source| Error::Keep { what: digest.to_string(), source };
        let partial = store.partial(&digest).map_err(|error| keep_failed(io::Error::other(error)))?;
        let file = loop {
            if store.link_blob(&digest, blobs).is_ok() {
                return Ok(());
            }
            let open = File::options().create(true).truncate(false).read(true).write(true).open(&partial);
            let file = open.map_err(keep_failed)?;
            match file.try_lock() {
                Ok(()) if is_at(&file, &partial) => break file,
                Ok(()) => {}
                // Somebody else fetches it: there will be a blob, or a part to go on from.
                Err(fs::TryLockError::WouldBlock) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(fs::TryLockError::Error(error)) => return Err(keep_failed(error)),
            }
        };
        let found = self.go_on(&file, &digest, size, fetch).await?;
        if found != digest {
            fs::remove_file(&partial).map_err(keep_failed)?;
            let source = layer::Error::Digest { expected: digest, found };
            return Err(Error::Layer { what: digest.to_string(), source });
        }
        file.sync_all().map_err(keep_failed)?;
        store.adopt_blob(&partial, &digest, blobs).map_err(|error| keep_failed(io::Error::other(error)))
    }

    /// Fetches what is missing of a layer; the digest of the whole.
    async fn go_on(&self, mut file: &File, digest: &Digest, size: u64, fetch: &Fetch<'_>) -> Result<Digest, Error> {
        let what = digest.to_string();
        let keep_failed = |source| Error::Keep { what: what.clone(), source };
        let (mut hash, mut have) = hash_part(file, size).map_err(keep_failed)?;
        fetch.progress.advance(have);
        let mut attempt = 0;
        while have < size {
            let response = self.client.pull_blob_stream_partial(&self.reference, what.as_str(), have, None).await;
            let mut stream = match response.map_err(self.fetch_failed(digest))? {
                BlobResponse::Partial(stream) => stream,
                // A registry that knows no ranges begins anew.
                BlobResponse::Full(stream) => {
                    file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0))).map_err(keep_failed)?;
                    (hash, have) = (Sha256::new(), 0);
                    stream
                }
            };
            let broke_off = loop {
                match stream.try_next().await {
                    _ if fetch.stop.load(Ordering::Relaxed) => {
                        return Err(Error::BrokeOff { what, source: io::ErrorKind::Interrupted.into() });
                    }
                    Ok(Some(piece)) => {
                        have += piece.len() as u64;
                        if have > size {
                            let source = layer::Error::Size { expected: size, found: have };
                            return Err(Error::Layer { what, source });
                        }
                        hash.update(&piece);
                        file.write_all(&piece).map_err(keep_failed)?;
                        fetch.progress.advance(piece.len() as u64);
                    }
                    Ok(None) if have == size => break None,
                    Ok(None) => break Some(io::ErrorKind::UnexpectedEof.into()),
                    // The whole was here, but for its digest: the caller compares that.
                    Err(_) if have == size => break None,
                    Err(error) => break Some(error),
                }
            };
            if let Some(source) = broke_off {
                attempt += 1;
                if attempt == ATTEMPTS {
                    return Err(Error::BrokeOff { what, source });
                }
                tokio::time::sleep(Duration::from_millis(100 << attempt)).await;
            }
        }
        Ok(hash.into())
    }
}

fn client(protocol: ClientProtocol) -> Result<Client, Error> {
    tls::prepare();
    let config = ClientConfig {
        protocol,
        read_timeout: Some(SILENCE),
        connect_timeout: Some(SILENCE),
        user_agent: concat!("nsbox/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    };
    // `Client::new` panics where nobody is trusted.
    Client::try_from(config).map_err(|error| Error::Tls(Box::new(error)))
}

/// Where fetched layers go, and who waits for them.
pub(crate) struct Fetch<'a> {
    pub store: &'a Store,
    /// The folder that gets a name of each.
    pub blobs: &'a Path,
    /// Is told the index of each layer that is there.
    pub ready: Sender<usize>,
    /// Nobody waits any more.
    pub stop: &'a AtomicBool,
    pub progress: &'a dyn Progress,
}

/// What a document is, told by what it has.
#[derive(Debug, Deserialize)]
struct Kind {
    manifests: Option<serde::de::IgnoredAny>,
}

/// Hashes what is there of a layer, and stands at its end; what is longer than the layer is none of it.
fn hash_part(mut file: &File, size: u64) -> io::Result<(Sha256, u64)> {
    if file.metadata()?.len() > size {
        file.set_len(0)?;
    }
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 128 << 10];
    let mut have = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((hash, have)),
            Ok(count) => {
                hash.update(&buffer[..count]);
                have += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether what a reference starts with is a host, and not the first part of a name.
fn names_host(reference: &str) -> bool {
    reference.split_once('/').is_some_and(|(host, _)| host == "localhost" || host.contains(['.', ':']))
}

/// Whether a registry's host is this machine, so that nobody between can read or change what it says.
fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_addresses_are_loopback() {
        for registry in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.8.8.8", "[::1]:5000"] {
            assert!(is_loopback(registry), "{registry}");
        }
        for registry in ["localhost.example.org", "127.0.0.1.example.org", "10.0.0.1:5000", "[fe80::1]", "registry"] {
            assert!(!is_loopback(registry), "{registry}");
        }
    }
}
