//! Archives that mean harm, or are broken. Each is refused with an error that names archive, entry and limit, or unpacked
//! without what would do harm; a canary tree beside the store keeps content, modes and times, and the store is as it was.

use std::error::Error as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nsbox::image::store::Error;
use nsbox::image::{Imported, Limits};
use proptest::prelude::*;
use tar::EntryType;

use crate::archives::{Layout, Tar, descriptor, gzip, plain, zstd};
use crate::documents::layout;
use crate::import::Place;
use crate::machine::{interpreters, run};

/// An error with its causes, as it is printed.
pub fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

/// A place with a canary tree, and an image in the store.
pub struct Guarded {
    pub place: Place,
    canary: Vec<(PathBuf, u32, i64, Vec<u8>)>,
    store: Vec<(PathBuf, u32, i64, Vec<u8>)>,
}

/// Path, mode, time and content of all that is in a folder.
fn state(folder: &Path) -> Vec<(PathBuf, u32, i64, Vec<u8>)> {
    let mut found = Vec::new();
    let mut todo = vec![folder.to_owned()];
    while let Some(path) = todo.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let content = if metadata.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        if metadata.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.push((path, metadata.mode(), metadata.mtime(), content));
    }
    found.sort();
    found
}

impl Guarded {
    pub fn new() -> Self {
        let place = Place::new();
        let canary = place.path("canary");
        fs::create_dir_all(canary.join("folder")).unwrap();
        fs::write(canary.join("folder/secret"), "secret").unwrap();
        fs::set_permissions(canary.join("folder/secret"), fs::Permissions::from_mode(0o600)).unwrap();
        place.import(&place.write("before.tar", &Tar::new().file("before", "b").done())).unwrap();
        let (canary, store) = (state(&canary), state(&place.path("store/images")));
        Self { place, canary, store }
    }

    fn canary(&self) -> String {
        self.place.path("canary").to_str().unwrap().to_owned()
    }

    /// Names the first image `image` again, and removes what has had the name since.
    pub fn put_back(&mut self) {
        self.place.import(&self.place.path("before.tar")).unwrap();
        let listed = self.place.store.list().unwrap();
        let other = listed.iter().find(|entry| entry.names.is_empty()).unwrap();
        self.place.store.remove(&other.record.digest.to_string()).unwrap();
        self.store = state(&self.place.path("store/images"));
    }

    pub fn check(&self) {
        assert_eq!(state(&self.place.path("canary")), self.canary, "the canary");
    }

    /// Fails unless an import is refused with this code, says all of this, and leaves the store as it was.
    #[track_caller]
    pub fn refuses(&self, imported: Result<Imported, Error>, code: &str, says: &[&str]) {
        let error = imported.map(|_| code).unwrap_err();
        let text = chain(&error);
        assert_eq!(error.code(), code, "{text}");
        for part in says {
            assert!(text.contains(part), "{text:?} says nothing of {part:?}");
        }
        self.check();
        assert_eq!(state(&self.place.path("store/images")), self.store, "the store");
        assert_eq!(self.place.read("before"), "b");
        let staging: Vec<_> =
            fs::read_dir(self.place.path("store/staging")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(staging, [".lock"], "nothing is left of it");
        let blobs = fs::read_dir(self.place.path("store/blobs/sha256")).unwrap().count();
        assert_eq!(blobs, 3, "manifest, configuration and layer of what was there");
    }

    fn import(&self, tar: Vec<u8>) -> Result<Imported, Error> {
        self.place.import(&self.place.write("bad.tar", &tar))
    }

    #[track_caller]
    fn refuses_entry(&self, tar: Tar, says: &[&str]) {
        let says = [&["bad.tar"], says].concat();
        self.refuses(self.import(tar.done()), "unpack-entry", &says);
    }
}

#[test]
fn paths_that_lead_out_are_refused() {
    let guarded = Guarded::new();
    let canary = guarded.canary();
    for path in ["../x", "a/../../x", "..", "a/..", "./../canary/folder/secret"] {
        guarded.refuses_entry(Tar::new().dir("a/").file(path, "x"), &["'..'", path]);
        guarded.refuses_entry(Tar::new().dir("a/").dir(path), &["'..'"]);
        guarded.refuses_entry(Tar::new().dir("a/").symlink(path, "x"), &["'..'"]);
    }
    for path in ["/x", "//x", &format!("{canary}/folder/secret")] {
        guarded.refuses_entry(Tar::new().file(path, "x"), &["absolute", "-P"]);
    }
    // The same in extended headers, which win over the header's name.
    let path = format!("{canary}/folder/secret");
    guarded.refuses_entry(Tar::new().pax(&[("path", path.as_bytes())]).file("fine", "x"), &["absolute", &path]);
    let long = format!("{}../x", "./".repeat(100));
    let tar = Tar::new().entry(EntryType::GNULongName, b"././@LongLink", b"", long.as_bytes()).file("fine", "x");
    guarded.refuses_entry(tar, &["'..'"]);
}

#[test]
fn links_lead_nowhere_outside() {
    let mut guarded = Guarded::new();
    let canary = guarded.canary();
    let up = "../".repeat(20) + canary.trim_start_matches('/');
    for target in [canary.as_str(), &up] {
        // Written through, the path would have to be in the image, and is not.
        let tar = || Tar::new().symlink("link", target);
        guarded.refuses_entry(tar().file("link/folder/secret", "x"), &["link/folder/secret", "leads nowhere"]);
        guarded.refuses_entry(tar().dir("link/folder/new/"), &["leads nowhere"]);
        guarded.refuses_entry(tar().hard_link("stolen", "link/folder/secret"), &["hard link"]);
        guarded
            .refuses_entry(Tar::new().hard_link("stolen", &format!("{target}/folder/secret")), &["outside the image"]);
        // A link as such is the guest's own affair; so is a file that takes its place.
        let direct = format!("{target}/folder/secret");
        guarded.import(Tar::new().symlink("secret", &direct).file("secret", "mine").done()).unwrap();
        assert_eq!(guarded.place.read("secret"), "mine");
        guarded.check();
        guarded.put_back();
    }
    guarded.refuses_entry(Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", "x"), &["a/x"]);
    guarded.refuses_entry(Tar::new().hard_link("a", "missing"), &["not in the image"]);
    guarded.refuses_entry(Tar::new().dir("d/").hard_link("a", "d"), &["no file"]);
    guarded.refuses_entry(Tar::new().file("f", "f").file("f/x", "x"), &["f/x", "is a file"]);
    guarded.refuses_entry(Tar::new().symlink("empty", ""), &["link target"]);
}

#[test]
fn whiteouts_through_links_stay_inside() {
    let guarded = Guarded::new();
    let canary = guarded.canary();
    let folder = guarded.place.path("layout");
    fs::create_dir(&folder).unwrap();
    for name in [".wh..wh..opq", ".wh.folder", ".wh.secret"] {
        let base = Tar::new().symlink("link", &canary).file("f", "f").done();
        Layout(&folder).image(&plain(&[base, Tar::new().file(&format!("link/{name}"), "").done()]));
        guarded.refuses(guarded.place.import(&folder), "unpack-entry", &["layer 2 of 2", name]);
    }
    // An opaque whiteout of a folder with a link in it takes the link, not what it names.
    let base = Tar::new().dir("d/").symlink("d/link", &canary).done();
    Layout(&folder).image(&plain(&[base, Tar::new().file("d/.wh..wh..opq", "").done()]));
    guarded.place.import(&folder).unwrap();
    assert!(!guarded.place.has("d/link"));
    guarded.check();
}

#[test]
fn whiteouts_of_no_name_are_refused() {
    let guarded = Guarded::new();
    for path in [".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh..."] {
        guarded.refuses_entry(Tar::new().dir("d/").file(path, ""), &["whiteout of no name"]);
    }
    guarded.refuses_entry(Tar::new().file("./", "x").symlink("./", "x"), &["root itself"]);
    guarded.refuses_entry(Tar::new().symlink(".", "/etc"), &["root itself"]);
}

#[test]
fn devices_fifos_and_attributes_are_left_out_with_a_note() {
    let guarded = Guarded::new();
    let capability: &[u8] = b"\x01\0\0\x02\0 \0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let tar = Tar::new()
        .entry(EntryType::Char, b"dev/null", b"", b"")
        .entry(EntryType::Block, b"dev/sda", b"", b"")
        .entry(EntryType::Fifo, b"pipe", b"", b"")
        .entry_of_mode(EntryType::Regular, b"su", b"", b"x", 0o6755)
        .pax(&[("SCHILY.xattr.security.capability", capability)])
        .file("ping", "x")
        .pax(&[("SCHILY.xattr.user.comment", b"c"), ("mtime", b"17.25")])
        .file("noted", "x");
    let imported = guarded.import(tar.done()).unwrap();
    assert_eq!(
        imported.notes,
        [
            "FIFOs skipped: 1 (pipe)",
            "devices skipped: 2 (dev/null, dev/sda)",
            "extended attributes dropped: 1 (noted)",
            "file capabilities dropped: 1 (ping)",
            "set-user-id and set-group-id bits dropped: 1 (su)",
        ]
    );
    let root = guarded.place.rootfs();
    assert!(!guarded.place.has("pipe") && fs::read_dir(root.join("dev")).unwrap().next().is_none());
    assert_eq!(fs::metadata(root.join("su")).unwrap().mode(), 0o100_755);
    assert_eq!(fs::metadata(root.join("noted")).unwrap().mtime(), 17);
    for python in interpreters().iter().take(1) {
        let code = "import os, sys; print([os.listxattr(path) for path in sys.argv[1:]])";
        let paths = ["ping", "noted"].map(|name| root.join(name));
        let listed = run(python, &["-c".as_ref(), code.as_ref(), paths[0].as_os_str(), paths[1].as_os_str()]);
        assert_eq!(listed, "[[], []]\n");
    }
}

#[test]
fn names_that_look_alike_are_different_files() {
    let guarded = Guarded::new();
    let names = ["A", "a", "é", "e\u{301}", "ﬁ", "fi", "\u{202e}txt", " ", "x\ny", "\u{1b}[2J", "a\u{200b}"];
    let tar = names.iter().fold(Tar::new(), |tar, name| tar.file(name, name));
    let tar = tar.entry(EntryType::Regular, b"\xff\xfe", b"", b"bytes");
    guarded.import(tar.done()).unwrap();
    for name in names {
        assert_eq!(guarded.place.read(name), name);
    }
    assert_eq!(guarded.place.store.verify("image", &()).unwrap(), Vec::<String>::new());
}

#[test]
fn duplicates_are_the_last_one() {
    let guarded = Guarded::new();
    let tar = Tar::new()
        .file("x", "first")
        .hard_link("y", "x")
        .dir("x/")
        .file("x/in", "i")
        .symlink("x", "y")
        .file("x", "last");
    guarded.import(tar.done()).unwrap();
    assert_eq!((guarded.place.read("x"), guarded.place.read("y")), ("last".to_owned(), "first".to_owned()));
}

#[test]
fn headers_that_contradict_or_flood_are_refused() {
    let guarded = Guarded::new();
    guarded.refuses_entry(Tar::new().pax(&[("path", b"a"), ("path", b"b")]).file("c", ""), &["contradict"]);
    guarded.refuses_entry(Tar::new().pax(&[("mtime", b"soon")]).file("c", ""), &["damaged"]);
    guarded.refuses_entry(Tar::new().pax(&[("size", b"-1")]).file("c", ""), &["damaged"]);
    guarded.refuses_entry(Tar::new().pax(&[("path", b"a\0b")]).file("c", ""), &["NUL"]);
    guarded.refuses_entry(Tar::new().pax(&[("GNU.sparse.map", b"0,1")]).file("c", ""), &["sparse"]);
    guarded.refuses_entry(
        Tar::new().entry(EntryType::XGlobalHeader, b"g", b"", b"12 path=abc\n").file("c", ""),
        &["contradict"],
    );
    let flood = vec![b'a'; 2 << 20];
    for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader] {
        let tar = Tar::new().file("last", "").entry(kind, b"flood", b"", &flood).file("c", "");
        guarded.refuses_entry(tar, &["last", "1 MiB"]);
    }
    guarded.refuses_entry(Tar::new().entry(EntryType::new(b'M'), b"odd", b"", b""), &["odd", "kind"]);
    let deep = "d/".repeat(200);
    guarded.refuses_entry(Tar::new().pax(&[("path", deep.as_bytes())]).dir("x"), &["128 folders"]);
    let long = "n".repeat(300);
    guarded.refuses_entry(Tar::new().pax(&[("path", long.as_bytes())]).file("x", ""), &["longer than"]);
    let sparse = |map: &str| {
        let tar = Tar::new().pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"s"),
            ("GNU.sparse.realsize", b"10"),
        ]);
        tar.file("x", map)
    };
    guarded.refuses_entry(sparse("1\n20\n5\n"), &["damaged"]);
    // A number without end.
    guarded.refuses_entry(sparse(&"1".repeat(1 << 20)), &["damaged"]);
}

#[test]
fn folders_piled_up_through_links_are_refused() {
    let guarded = Guarded::new();
    let mut tar = Tar::new();
    for round in 0..10 {
        let from = if round == 0 { String::new() } else { format!("l{round}/") };
        let deep = format!("{from}{}", "d/".repeat(60));
        tar = tar.pax(&[("path", deep.as_bytes())]).dir("x");
        let target = format!("{from}{}", "d/".repeat(60));
        tar = tar.pax(&[("linkpath", target.as_bytes())]).symlink(&format!("l{}", round + 1), "x");
    }
    guarded.refuses_entry(tar, &["deeper than 128"]);
}

#[test]
fn bombs_end_at_their_limits() {
    let guarded = Guarded::new();
    let limits = Limits { bytes: 8 << 20, entries: 1000, ratio: 200 };
    let import = |name: &str, bytes: &[u8]| guarded.place.import_with(&guarded.place.write(name, bytes), limits);
    let many = (0..1100).fold(Tar::new(), |tar, number| tar.file(&number.to_string(), ""));
    guarded.refuses(import("many.tar", &many.done()), "unpack-too-many", &["many.tar", "1000", "--max-entries"]);
    // Folders that no entry names: a hundred for each file.
    let path = |number: usize| format!("{number}/{}file", "d/".repeat(100));
    let deep = (0..11).fold(Tar::new(), |tar, at| tar.pax(&[("path", path(at).as_bytes())]).file("x", ""));
    guarded.refuses(import("deep.tar", &deep.done()), "unpack-too-many", &["deep.tar", "1000", "--max-entries"]);
    // A file that claims more than allowed, without having it.
    let claim = Tar::new().pax(&[("size", b"99999999999999")]).file("claim", "x");
    guarded.refuses(import("claim.tar", &claim.done()), "unpack-too-large", &["claim", "--max-size"]);
    let hole = Tar::new().pax(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"hole"),
        ("GNU.sparse.realsize", b"999999999999"),
    ]);
    guarded.refuses(import("hole.tar", &hole.file("x", "0\n").done()), "unpack-too-large", &["hole", "--max-size"]);
    // 1:1000.
    let zeros = Tar::new().entry(EntryType::Regular, b"zeros", b"", &vec![0; 100 << 20]).done();
    for (name, bytes) in [("zeros.tar.gz", gzip(&zeros)), ("zeros.tar.zst", zstd(&zeros))] {
        guarded.refuses(import(name, &bytes), "unpack-too-large", &[name, "zeros", "--max-size"]);
        let ratio = Limits { ratio: 200, ..Limits::default() };
        let path = guarded.place.path(name);
        guarded.refuses(guarded.place.import_with(&path, ratio), "layer-ratio", &[name, "200", "--max-ratio"]);
        let high = Limits { ratio: 1_000_000, ..Limits::default() };
        Place::new().import_with(&path, high).unwrap();
    }
    // Zeros after the end of the archive are of no file, and count too.
    let mut padded = Tar::new().file("a", "a").done();
    padded.resize(100 << 20, 0);
    guarded.refuses(import("padded.tar.gz", &gzip(&padded)), "layer-too-large", &["padded.tar.gz", "--max-size"]);
    // An archive of images, that has to be unpacked to be looked through.
    let images =
        Tar::new().file("index.json", "{}").entry(EntryType::Regular, b"blobs/x", b"", &vec![0; 100 << 20]).done();
    guarded.refuses(import("images.tar.gz", &gzip(&images)), "layer-too-large", &["images.tar.gz", "--max-size"]);
}

/// Hundreds of megabytes of headers in a few.
#[test]
fn million_entries_are_refused_unless_allowed() {
    let guarded = Guarded::new();
    let entry = Tar::new().dir("d/").0;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for _ in 0..1_000_000 {
        encoder.write_all(&entry).unwrap();
    }
    encoder.write_all(&[0; 1024]).unwrap();
    let path = guarded.place.write("million.tar.gz", &encoder.finish().unwrap());
    let limits = Limits { ratio: u64::MAX, ..Limits::default() };
    let refused = guarded.place.import_with(&path, limits);
    guarded.refuses(refused, "unpack-too-many", &["million.tar.gz", "d/", "500000", "--max-entries"]);
    let place = Place::new();
    place.import_with(&path, Limits { entries: 1_000_000, ..limits }).unwrap();
    assert!(place.has("d"));
}

#[test]
fn window_of_a_gigabyte_is_refused() {
    let guarded = Guarded::new();
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(30).unwrap();
    encoder.include_contentsize(false).unwrap();
    encoder.write_all(&Tar::new().file("a", "a").done()).unwrap();
    let path = guarded.place.write("window.tar.zst", &encoder.finish().unwrap());
    guarded.refuses(guarded.place.import(&path), "archive-tar", &["window.tar.zst"]);
}

#[test]
fn broken_streams_are_refused() {
    let guarded = Guarded::new();
    let content: Vec<u8> =
        (0..200_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let whole =
        Tar::new().file("first", "1").entry(EntryType::Regular, b"second", b"", &content).file("third", "3").done();
    let import = |name: &str, bytes: &[u8]| guarded.place.import(&guarded.place.write(name, bytes));
    for (name, bytes) in [("cut.tar", whole.clone()), ("cut.tar.gz", gzip(&whole)), ("cut.tar.zst", zstd(&whole))] {
        for keep in [bytes.len() / 3, bytes.len() / 2] {
            let error = import(name, &bytes[..keep]).expect_err(name);
            assert!(["unpack-tar", "layer-decompress", "archive-tar"].contains(&error.code()), "{}", chain(&error));
            guarded.refuses(Err(error), import(name, &bytes[..keep]).unwrap_err().code(), &[name]);
        }
        let mut flipped = bytes.clone();
        let middle = flipped.len() - 900;
        flipped[middle] ^= 0x55;
        if name != "cut.tar" {
            guarded.refuses(import(name, &flipped), "layer-decompress", &[name, "damaged"]);
        }
    }
    // Cut off where an entry ends, so that only the end marker is missing.
    let cut = Tar::new().file("first", "1").0;
    guarded.refuses(import("cut.tar", &cut), "unpack-unfinished", &["cut.tar", "first"]);
    let mut more = whole;
    more.extend(Tar::new().file("hidden", "h").done());
    guarded.refuses(import("more.tar", &more), "unpack-trailing", &["more.tar", "third"]);
    guarded.refuses(import("noise", &content), "unpack-tar", &["noise", "no tar archive"]);
    guarded.refuses(import("bz.tar", b"BZh91AY&SY"), "layer-compression", &["bzip2"]);
    let missing = guarded.place.path("missing");
    guarded.refuses(guarded.place.import(&missing), "archive-open", &["missing"]);
}

/// Entries of all kinds with names that meet each other, on the way in and out.
fn hostile_entry() -> impl Strategy<Value = (u8, String, String)> {
    let part = prop::sample::select(vec!["a", "b", "c", "..", ".", ".wh.a", ".wh..wh..opq", ".wh.", "/", "canary", ""]);
    let path = prop::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"));
    let kind = prop::sample::select(b"01234567xgLKSD\0".to_vec());
    (kind, path.clone(), path)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// The twin of the fuzz target `layer`: whatever entries there are, nothing outside changes, and what is taken verifies.
    #[test]
    fn layers_of_any_entries_stay_inside(layers in prop::collection::vec(prop::collection::vec(hostile_entry(), 0..12), 1..4)) {
        let guarded = Guarded::new();
        let tars: Vec<Vec<u8>> = layers.iter().map(|entries| {
            let add = |tar: Tar, (kind, path, link): &(u8, String, String)| {
                let content: &[u8] = if matches!(kind, b'0' | 0 | b'7') { b"content" } else { b"" };
                tar.entry(EntryType::new(*kind), path.as_bytes(), link.as_bytes(), content)
            };
            entries.iter().fold(Tar::new(), add).done()
        }).collect();
        match guarded.place.import_layers(&tars) {
            Ok(_) => {
                guarded.check();
                prop_assert_eq!(guarded.place.store.verify("image", &()).unwrap(), Vec::<String>::new());
            }
            Err(error) => {
                let code = error.code();
                prop_assert!(matches!(code, "unpack-entry" | "unpack-tar"), "{}", chain(&error));
                guarded.refuses(Err(error), code, &[]);
            }
        }
    }

    /// The same with any bytes.
    #[test]
    fn archives_of_any_bytes_stay_inside(noise in prop::collection::vec(any::<u8>(), 0..2048), at in 0_usize..2048) {
        let guarded = Guarded::new();
        let mut tar = Tar::new().dir("a/").symlink("b", "a").file("b/c", "c").done();
        let at = at.min(tar.len());
        let end = tar.len().min(at + noise.len());
        tar[at..end].copy_from_slice(&noise[..end - at]);
        drop(guarded.import(tar));
        guarded.check();
    }

    /// The twin of the fuzz target `manifest`: documents of any shape are refused or describe what is there.
    #[test]
    fn documents_with_any_change_are_refused_or_true(at in 0_usize..600, byte: u8, which in 0_usize..2) {
        let guarded = Guarded::new();
        let (folder, manifest) = layout(&guarded.place);
        let mut text = if which == 0 { manifest.to_string().into_bytes() } else { fs::read(folder.join("index.json")).unwrap() };
        let at = at % text.len();
        text[at] = byte;
        if which == 0 {
            let digest = Layout(&folder).blob(&text);
            Layout(&folder).index(&[descriptor("application/vnd.oci.image.manifest.v1+json", &digest, text.len())]);
        } else {
            fs::write(folder.join("index.json"), text).unwrap();
        }
        if guarded.place.import(&folder).is_ok() {
            prop_assert_eq!((guarded.place.read("a"), guarded.place.read("b")), ("a".to_owned(), "b".to_owned()));
        }
        guarded.check();
    }
}
