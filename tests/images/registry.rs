//! Images from a registry: a real one on loopback, with and without TLS, behind a wire that counts, is slow, or breaks.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nsbox::image::store::Error;
use nsbox::image::{Digest, Imported, Options, Source};
use serde_json::json;
use tar::EntryType;

use crate::archives::{Layout, Tar, architecture, descriptor, gzip, plain, zstd};
use crate::command::command;
use crate::hostile::chain;
use crate::import::Place;
use crate::machine::{skip, text};
use crate::registries::{Certificate, Registry};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A registry with its content in the place; `None` where there is none to be started, which is said.
fn registry(place: &Place) -> Option<Registry> {
    let found = Registry::start(&place.path("registry"), None);
    if found.is_none() {
        skip("docker-registry is not installed");
    }
    found
}

/// What stands between the registry and who asks it.
struct Wire {
    address: SocketAddr,
    /// Bytes that came from the registry.
    received: Arc<AtomicUsize>,
    /// The most connections that gave bytes at once.
    widest: Arc<AtomicUsize>,
}

impl Wire {
    /// A wire that gives out no more than `most` bytes: then the registry is `stopped`, and nobody connects any more.
    /// Each piece waits for `pause`.
    fn new(port: u16, most: i64, pause: Duration, stopped: impl FnOnce() + Send + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (received, widest) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (left, open, broken) =
            (Arc::new(AtomicI64::new(most)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::new(Mutex::new(Some(stopped)));
        let wire = Self { address, received: Arc::clone(&received), widest: Arc::clone(&widest) };
        thread::spawn(move || {
            for asking in listener.incoming() {
                let (mut asking, Ok(mut answering)) =
                    (asking.unwrap(), TcpStream::connect((Ipv4Addr::LOCALHOST, port)))
                else {
                    return;
                };
                if broken.load(Ordering::SeqCst) {
                    return;
                }
                let (mut question, mut to) = (asking.try_clone().unwrap(), answering.try_clone().unwrap());
                // A connection ends as its two ends please.
                thread::spawn(move || std::io::copy(&mut question, &mut to).ok());
                let (received, widest, left, open) =
                    (Arc::clone(&received), Arc::clone(&widest), Arc::clone(&left), Arc::clone(&open));
                let (broken, stopped) = (Arc::clone(&broken), Arc::clone(&stopped));
                thread::spawn(move || {
                    let mut piece = vec![0; 16 << 10];
                    let mut large = 0;
                    while let Ok(count) = answering.read(&mut piece) {
                        if count == 0 {
                            break;
                        }
                        if left.fetch_sub(i64::try_from(count).unwrap(), Ordering::SeqCst) < 0 {
                            broken.store(true, Ordering::SeqCst);
                            if let Some(stopped) = stopped.lock().unwrap().take() {
                                stopped();
                            }
                            break;
                        }
                        large += count;
                        // Documents are smaller than this, layers larger.
                        if large > 64 << 10 && large - count <= 64 << 10 {
                            widest.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        }
                        received.fetch_add(count, Ordering::SeqCst);
                        thread::sleep(pause);
                        if asking.write_all(&piece[..count]).is_err() {
                            break;
                        }
                    }
                    if large > 64 << 10 {
                        open.fetch_sub(1, Ordering::SeqCst);
                    }
                    // The other end may have gone first.
                    asking.shutdown(Shutdown::Both).ok();
                });
            }
        });
        wire
    }

    fn open(port: u16) -> Self {
        Self::new(port, i64::MAX, Duration::ZERO, || ())
    }

    fn received(&self) -> usize {
        self.received.load(Ordering::SeqCst)
    }
}

fn import(place: &Place, address: impl std::fmt::Display, what: &str) -> Result<Imported, Error> {
    let source: Source = format!("oci://{address}/quant/base{what}").parse().unwrap();
    place.store.import(&source, Some("image"), &Options::default(), &())
}

/// Bytes that do not compress, different for each seed.
fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn layer(seed: u64, count: usize) -> Vec<u8> {
    Tar::new().entry(EntryType::Regular, format!("file{seed}").as_bytes(), b"", &noise(seed, count)).done()
}

/// A layout in a place of its own.
fn layout(place: &Place, layers: &[(Vec<u8>, Vec<u8>)]) -> (PathBuf, Digest) {
    let folder = place.path("source");
    fs::create_dir_all(&folder).unwrap();
    let digest = Layout(&folder).image(layers);
    (folder, digest)
}

#[test]
fn image_of_a_registry_is_that_of_its_layout() {
    let place = Place::new();
    let Some(registry) = registry(&place) else { return };
    let tars = [Tar::new().file("a", "1").file("b", "b").done(), Tar::new().file("a", "2").done(), layer(1, 5000)];
    let layers: Vec<_> = [tars[0].clone(), gzip(&tars[1]), zstd(&tars[2])].into_iter().zip(tars).collect();
    let (folder, digest) = layout(&place, &layers);
    registry.push(&folder, "one");
    let address = format!("127.0.0.1:{}", registry.port);
    let imported = import(&place, &address, ":one").unwrap();
    assert_eq!((imported.digest, imported.was_there), (digest, false));
    assert_eq!((place.read("a"), place.read("b")), ("2".to_owned(), "b".to_owned()));
    assert_eq!(place.store.verify("image", &()).unwrap(), Vec::<String>::new());
    assert_eq!(fs::read_dir(place.store.root().join("partial")).unwrap().count(), 0);
    // Again, pinned, with and without a tag, and as the folder: the same one.
    for what in [":one".to_owned(), format!("@{digest}"), format!(":one@{digest}")] {
        let again = import(&place, &address, &what).unwrap();
        assert_eq!((again.digest, again.was_there), (digest, true), "{what}");
    }
    assert!(place.import(&folder).unwrap().was_there);
}

#[test]
fn index_of_a_registry_leads_to_this_machines_image() {
    let place = Place::new();
    let Some(registry) = registry(&place) else { return };
    let folder = place.path("source");
    fs::create_dir(&folder).unwrap();
    let layout = Layout(&folder);
    let of = |text: &str, architecture: &str| {
        let manifest = layout.manifest(&plain(&[Tar::new().file("which", text).done()]));
        let (digest, size) = layout.json(&manifest);
        let mut of = descriptor(MANIFEST, &digest, size);
        of["platform"] = json!({ "os": "linux", "architecture": architecture });
        of
    };
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [of("other", "s390x"), of("here", architecture())] });
    let (digest, size) = layout.json(&index);
    layout.index(&[descriptor(INDEX, &digest, size)]);
    registry.push(&folder, "many");
    let address = format!("127.0.0.1:{}", registry.port);
    for what in [":many".to_owned(), format!("@{digest}")] {
        import(&place, &address, &what).unwrap();
        assert_eq!(place.read("which"), "here");
    }
}

#[test]
fn layers_come_side_by_side_and_once() {
    let place = Place::new();
    let Some(registry) = registry(&place) else { return };
    let mut tars: Vec<_> = (1..=4).map(|seed| layer(seed, 1 << 20)).collect();
    let (folder, _) = layout(&place, &plain(&tars));
    registry.push(&folder, "four");
    let wire = Wire::new(registry.port, i64::MAX, Duration::from_millis(2), || ());
    import(&place, wire.address, ":four").unwrap();
    let widest = wire.widest.load(Ordering::SeqCst);
    assert!((2..=4).contains(&widest), "{widest} layers at once");
    assert!(wire.received() < 5 << 20, "each once: {} bytes", wire.received());
    // Another image with the same layers and one more brings that one alone.
    tars.push(layer(5, 1 << 20));
    let (folder, digest) = layout(&place, &plain(&tars));
    registry.push(&folder, "five");
    let before = wire.received();
    assert_eq!(import(&place, wire.address, ":five").unwrap().digest, digest);
    let more = wire.received() - before;
    assert!((1 << 20..2 << 20).contains(&more), "{more} bytes for a layer of 1 MiB");
    assert_eq!(place.store.verify("image", &()).unwrap(), Vec::<String>::new());
}

#[test]
fn import_goes_on_where_a_stopped_registry_broke_it_off() {
    let place = Place::new();
    let Some(registry) = registry(&place) else { return };
    let (folder, digest) = layout(&place, &plain(&[layer(1, 1 << 20), layer(2, 16 << 20)]));
    registry.push(&folder, "big");
    let port = registry.port;
    let registry = Arc::new(Mutex::new(registry));
    let stopping = Arc::clone(&registry);
    let wire = Wire::new(port, 10 << 20, Duration::ZERO, move || stopping.lock().unwrap().stop());
    let error = import(&place, wire.address, ":big").unwrap_err();
    assert!(["registry-fetch", "registry-broke-off"].contains(&error.code()), "{}", chain(&error));
    assert!(chain(&error).contains("/quant/base:big"), "{}", chain(&error));
    assert!(place.store.list().unwrap().is_empty());
    let kept: u64 = fs::read_dir(place.store.root().join("partial"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(kept > 1 << 20, "{kept} bytes were kept");
    // It is not there at all.
    assert_eq!(import(&place, wire.address, ":big").unwrap_err().code(), "registry-fetch");
    let registry = self::registry(&place).unwrap();
    let wire = Wire::open(registry.port);
    assert_eq!(import(&place, wire.address, ":big").unwrap().digest, digest);
    let (received, whole) = (wire.received(), 17 << 20);
    assert!(received + 6 * (1 << 20) < whole, "{received} bytes again of {whole}");
    assert_eq!(place.store.verify("image", &()).unwrap(), Vec::<String>::new());
    assert_eq!(fs::read_dir(place.store.root().join("partial")).unwrap().count(), 0);
}

#[test]
fn registry_that_gives_another_thing_is_refused() {
    let place = Place::new();
    let Some(registry) = registry(&place) else { return };
    let (folder, digest) = layout(&place, &plain(&[layer(1, 200_000)]));
    registry.push(&folder, "bad");
    let address = format!("127.0.0.1:{}", registry.port);
    let refused = |what: &str, codes: &[&str], says: &str| {
        let error = import(&place, &address, what).unwrap_err();
        assert!(codes.contains(&error.code()) && chain(&error).contains(says), "{}: {}", error.code(), chain(&error));
        assert!(place.store.list().unwrap().is_empty());
        let blobs = fs::read_dir(place.store.root().join("blobs/sha256")).map_or(0, Iterator::count);
        assert_eq!(blobs, 0, "nothing of it is kept as a blob");
    };
    refused(":missing", &["registry-fetch"], "/quant/base:missing");
    refused(&format!("@{}", Digest::of(b"another")), &["registry-fetch"], "/quant/base@");
    refused(":bad@sha256:short", &["registry-reference", "layout-algorithm"], "short");
    let layer = Digest::of(&layer(1, 200_000));
    let (path, whole) = (registry.blob(&layer), fs::read(registry.blob(&layer)).unwrap());
    // Another content of the same size, a longer one, a shorter one.
    let mut flipped = whole.clone();
    flipped[100_000] ^= 1;
    fs::write(&path, &flipped).unwrap();
    refused(":bad", &["layer-digest"], &layer.to_string());
    fs::write(&path, [whole.as_slice(), b"more"].concat()).unwrap();
    refused(":bad", &["layer-size"], &layer.to_string());
    fs::write(&path, &whole[..150_000]).unwrap();
    refused(":bad", &["registry-broke-off", "registry-fetch"], &layer.to_string());
    fs::write(&path, &whole).unwrap();
    assert_eq!(import(&place, &address, ":bad").unwrap().digest, digest);
}

#[test]
fn name_of_no_image_is_told() {
    let place = Place::new();
    for name in ["", "base", "base:1", "quant/base:1", "127.0.0.1:5000/UPPER", "127.0.0.1:5000/", "127.0.0.1:5000/a b"]
    {
        let source: Source = format!("oci://{name}").parse().unwrap();
        let error = place.store.import(&source, None, &Options::default(), &()).unwrap_err();
        assert_eq!(error.code(), "registry-reference", "{name:?}: {}", chain(&error));
        assert!(chain(&error).contains("expected oci://HOST"), "{}", chain(&error));
    }
    // Nobody listens there.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let error = import(&place, format!("127.0.0.1:{port}"), ":one").unwrap_err();
    assert_eq!(error.code(), "registry-fetch", "{}", chain(&error));
}

#[test]
fn registry_with_tls_is_trusted_by_its_authority_alone() {
    let place = Place::new();
    let Some(mut plain_registry) = registry(&place) else { return };
    let (folder, digest) = layout(&place, &plain(&[layer(1, 5000)]));
    plain_registry.push(&folder, "one");
    plain_registry.stop();
    let Some(certificate) = Certificate::make(&place.path("")) else { return skip("openssl is not installed") };
    let registry = Registry::start(&place.path("registry"), Some(&certificate)).unwrap();
    let source = format!("oci://127.0.0.1:{}/quant/base:one", registry.port);
    let import = |flags: &[&str], trusted: Option<&Path>| {
        let mut command = command(&place, &[&["image", "import", &source], flags].concat());
        command.env_remove("SSL_CERT_DIR").env_remove("SSL_CERT_FILE");
        trusted.map(|file| command.env("SSL_CERT_FILE", file));
        command.output().unwrap()
    };
    let refused = |output: &Output, words: &[&str]| {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(125) && words.iter().all(|word| said.contains(word)), "{said}");
        assert!(place.store.list().unwrap().is_empty());
    };
    // Another's certificate, so that somebody is trusted whatever this machine has.
    let another = place.path("another");
    fs::create_dir(&another).unwrap();
    let another = Certificate::make(&another).unwrap().certificate;
    let address = format!("127.0.0.1:{}", registry.port);
    refused(&import(&[], Some(&another)), &["failed to trust", &address, "SSL_CERT_FILE", "invalid peer certificate"]);
    refused(&import(&[], Some(&place.path("missing"))), &["failed to prepare for TLS", "ca-certificates"]);
    refused(&import(&["--plain-http"], Some(&another)), &["failed to fetch", &address]);
    assert_eq!(text(&import(&[], Some(&certificate.certificate))).trim(), digest.to_string());
}
