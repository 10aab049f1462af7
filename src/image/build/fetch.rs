//! Gets the packages of a lock: from the store's cache, else from Debian's mirror or the machine's index of wheels.
//!
//! A file counts by its digest alone, wherever it came from, so a build with a kept cache needs no network. The index is
//! the one that pip would ask (`PIP_INDEX_URL`, then `index-url` of pip's configuration), by PEP 691's JSON or, as mirrors
//! may answer, PEP 503's HTML.

use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::{Client, StatusCode, Url, header};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::lock::{Lock, Package};
use super::{Base, Error, Options};
use crate::image::{Digest, Progress, tls};

/// Debian's own, which leads to one nearby.
const MIRROR: &str = "http://deb.debian.org";
/// The index of the Python community.
const INDEX: &str = "https://pypi.org/simple";
/// What an index is asked for.
const SIMPLE: &str = "application/vnd.pypi.simple.v1+json, text/html;q=0.1";
/// How many files are fetched at once.
const AT_ONCE: usize = 6;
/// How often a transfer that broke is begun again.
const ATTEMPTS: u32 = 4;
/// How long a server may be silent.
const SILENCE: Duration = Duration::from_secs(60);

/// Where the packages of a lock are, by digest.
pub(super) struct Cache<'a> {
    /// The folder, on the file system of `partial`.
    pub folder: &'a Path,
    /// A folder for what is on its way.
    pub partial: &'a Path,
}

/// What is fetched from where.
#[derive(Clone, Copy)]
enum Origin<'a> {
    Mirror(&'a str),
    Index(&'a str),
}

impl Cache<'_> {
    /// The file of a package.
    pub(super) fn path(&self, package: &Package) -> PathBuf {
        self.folder.join(package.digest.hex())
    }

    /// Fetches what is not there, some files at once.
    pub(super) fn fill(&self, lock: &Lock, options: &Options, progress: &dyn Progress) -> Result<(), Error> {
        let mirror = env::var("NSBOX_DEBIAN_MIRROR").unwrap_or_else(|_| MIRROR.to_owned());
        let index = index_url();
        let debian = lock
            .debian
            .iter()
            .filter(|_| options.base == Base::Debian)
            .map(|package| (package, Origin::Mirror(&mirror)));
        let all = debian.chain(lock.wheels.iter().map(|package| (package, Origin::Index(&index))));
        progress.begin("looking for packages in the cache", None);
        let mut missing = Vec::new();
        for (package, origin) in all {
            if !self.has(package, progress) {
                missing.push((package, origin));
            }
        }
        let Some((first, _)) = missing.first() else { return Ok(()) };
        if options.offline {
            return Err(Error::Offline { package: first.shown(), count: missing.len() });
        }
        progress.begin(&format!("fetching packages: {}", missing.len()), None);
        // A runtime of its own, in a thread of its own: the caller may be in one already.
        std::thread::scope(|scope| {
            let fetching = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let runtime = runtime.map_err(|source| Error::Network { source: source.into() })?;
                runtime.block_on(async {
                    let client = client()?;
                    let fetches =
                        missing.iter().map(|(package, origin)| self.fetch(&client, package, *origin, progress));
                    stream::iter(fetches).buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await
                })
            });
            let panicked = |_| Err(Error::Network { source: "its thread panicked".into() });
            fetching.join().unwrap_or_else(panicked).map(|_| ())
        })
    }

    /// Whether the cache has a package, whole.
    fn has(&self, package: &Package, progress: &dyn Progress) -> bool {
        let path = self.path(package);
        let Ok(file) = File::open(&path) else { return false };
        progress.advance(file.metadata().map_or(0, |metadata| metadata.len()));
        Digest::of_reader(file).is_ok_and(|digest| digest == package.digest)
    }

    async fn fetch(
        &self,
        client: &Client,
        package: &Package,
        origin: Origin<'_>,
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        let mut attempt = 1;
        loop {
            let fetched = match origin {
                Origin::Mirror(mirror) => self.download(client, package, url(mirror, &package.file)?, progress).await,
                Origin::Index(index) => match listed(client, package, index).await {
                    Ok(url) => self.download(client, package, url, progress).await,
                    Err(error) => Err(error),
                },
            };
            match fetched {
                Err(Error::Fetch { .. }) if attempt < ATTEMPTS => {
                    tokio::time::sleep(Duration::from_secs(1) * attempt).await;
                    attempt += 1;
                }
                ended => return ended,
            }
        }
    }

    /// Writes a file aside while it comes, and puts it into the cache once its digest is right.
    async fn download(
        &self,
        client: &Client,
        package: &Package,
        url: Url,
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        let failed = |source: reqwest::Error| fetch_failed(package, &url, source);
        let response = client.get(url.clone()).send().await.map_err(failed)?;
        if matches!(response.status(), StatusCode::NOT_FOUND | StatusCode::GONE) {
            return Err(Error::Dropped { package: package.shown(), place: shown(&url) });
        }
        let response = response.error_for_status().map_err(failed)?;
        let partial = self.partial.join(package.digest.hex());
        let failed_here = |source: io::Error| Error::Write { path: partial.clone(), source };
        let mut file = File::create(&partial).map_err(failed_here)?;
        let mut hash = Sha256::new();
        let mut bytes = response.bytes_stream();
        while let Some(piece) = bytes.next().await {
            let piece = piece.map_err(failed)?;
            hash.update(&piece);
            file.write_all(&piece).map_err(failed_here)?;
            progress.advance(piece.len() as u64);
        }
        let found = Digest::from(hash);
        if found != package.digest {
            return Err(Error::Mismatch { package: package.shown(), place: shown(&url), found });
        }
        fs::rename(&partial, self.path(package)).map_err(failed_here)
    }
}

/// A project of an index: PEP 691.
#[derive(Deserialize)]
struct Project {
    files: Vec<ProjectFile>,
}

#[derive(Deserialize)]
struct ProjectFile {
    url: String,
    #[serde(default)]
    hashes: Hashes,
}

#[derive(Default, Deserialize)]
struct Hashes {
    sha256: Option<String>,
}

/// Where the index has a wheel.
async fn listed(client: &Client, package: &Package, index: &str) -> Result<Url, Error> {
    let page = url(index, &format!("{}/", package.name))?;
    let failed = |source: reqwest::Error| fetch_failed(package, &page, source);
    let response = client.get(page.clone()).header(header::ACCEPT, SIMPLE).send().await.map_err(failed)?;
    let dropped = || Error::Dropped { package: package.shown(), place: shown(&page) };
    if response.status() == StatusCode::NOT_FOUND {
        return Err(dropped());
    }
    let response = response.error_for_status().map_err(failed)?;
    // The place that was asked may have led elsewhere, and links count from there.
    let from = response.url().clone();
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let is_html = kind.starts_with("text/html");
    let text = response.bytes().await.map_err(failed)?;
    let hex = package.digest.hex();
    let link = if is_html {
        linked(&String::from_utf8_lossy(&text), &hex)
    } else {
        let project: Project =
            serde_json::from_slice(&text).map_err(|source| Error::Index { place: shown(&page), source })?;
        project.files.into_iter().find(|file| file.hashes.sha256.as_deref() == Some(&hex)).map(|file| file.url)
    };
    let link = link.ok_or_else(dropped)?;
    from.join(&link).map_err(|_| Error::Address { text: link })
}

/// The link on a page of PEP 503 whose fragment is this digest.
fn linked(page: &str, hex: &str) -> Option<String> {
    let digest = format!("#sha256={hex}");
    let mut links = page.split("href=").skip(1).filter_map(|rest| {
        let quote = rest.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
        rest[1..].split(quote).next()
    });
    links.find_map(|link| link.strip_suffix(&digest)).map(|link| link.replace("&amp;", "&"))
}

fn client() -> Result<Client, Error> {
    tls::prepare();
    let client = Client::builder().connect_timeout(SILENCE).read_timeout(SILENCE).build();
    client.map_err(|source| Error::Tls { source })
}

fn url(base: &str, path: &str) -> Result<Url, Error> {
    let text = format!("{}/{path}", base.trim_end_matches('/'));
    // The text may have a password in it.
    Url::parse(&text).map_err(|_| Error::Address { text: path.to_owned() })
}

/// An address as it may be shown: without a password.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Fails where there can be none.
    url.set_password(None).ok();
    url.set_username("").ok();
    url.into()
}

fn fetch_failed(package: &Package, url: &Url, source: reqwest::Error) -> Error {
    let (place, source) = (shown(url), source.without_url());
    match tls::is_distrust(&source) {
        true => Error::Distrust { place, source },
        false => Error::Fetch { package: package.shown(), place, source },
    }
}

/// The index that pip would ask.
fn index_url() -> String {
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    if let Some(url) = variable("PIP_INDEX_URL") {
        return url;
    }
    let home = variable("HOME").map(PathBuf::from);
    let config = variable("XDG_CONFIG_HOME").map(PathBuf::from).or_else(|| Some(home.clone()?.join(".config")));
    let files = [
        variable("PIP_CONFIG_FILE").map(PathBuf::from),
        config.map(|config| config.join("pip/pip.conf")),
        home.map(|home| home.join(".pip/pip.conf")),
        Some("/etc/xdg/pip/pip.conf".into()),
        Some("/etc/pip.conf".into()),
    ];
    let texts = files.into_iter().flatten().filter_map(|path| fs::read_to_string(path).ok());
    texts.filter_map(|text| configured_index(&text)).next().unwrap_or_else(|| INDEX.to_owned())
}

/// `index-url` of a configuration file of pip, which is in INI format.
fn configured_index(text: &str) -> Option<String> {
    let mut counts = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            counts = matches!(line, "[global]" | "[install]" | "[download]");
        } else if let Some((key, value)) = line.split_once(['=', ':'])
            && counts
            && matches!(key.trim(), "index-url" | "index_url")
            && !value.trim().is_empty()
        {
            return Some(value.trim().to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_is_found_by_its_digest() {
        let page = "<a href=\"a.whl#sha256=00\">a</a>\n<a class='x' href='../b?x=1&amp;y=2#sha256=11'>b</a>";
        assert_eq!(linked(page, "00").as_deref(), Some("a.whl"));
        assert_eq!(linked(page, "11").as_deref(), Some("../b?x=1&y=2"));
        assert_eq!(linked(page, "22"), None);
        assert_eq!(linked("href=", "00"), None);
    }

    #[test]
    fn index_is_that_of_pips_configuration() {
        let text = "[global]\ncert = /c\n# index-url = no\nindex-url = https://a:b@mirror.example/simple \n";
        assert_eq!(configured_index(text).as_deref(), Some("https://a:b@mirror.example/simple"));
        assert_eq!(configured_index("[list]\nindex-url = https://x\n[global]\ntimeout=1\n"), None);
    }

    #[test]
    fn address_is_shown_without_its_password() {
        let url = url("https://user:secret@mirror.example/simple/", "numpy/").unwrap();
        assert_eq!(shown(&url), "https://mirror.example/simple/numpy/");
    }
}
