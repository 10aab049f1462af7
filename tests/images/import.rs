//! Imports that succeed: every kind of source, every compression, layers over layers.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nsbox::image::{Digest, Imported, Limits, Options, Source, Store};
use tempfile::TempDir;

use crate::archives::{Layout, Tar, config, gzip, plain, zstd};

/// A store of its own, and a folder for sources.
pub struct Place {
    pub folder: TempDir,
    pub store: Store,
}

impl Place {
    pub fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap())
    }

    pub fn at(folder: TempDir) -> Self {
        let store = Store::at(folder.path().join("store"));
        Self { folder, store }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    pub fn import(&self, path: &Path) -> Result<Imported, nsbox::image::store::Error> {
        self.import_with(path, Limits::default())
    }

    pub fn import_with(&self, path: &Path, limits: Limits) -> Result<Imported, nsbox::image::store::Error> {
        let options = Options { limits, ..Options::default() };
        self.store.import(&Source::Path(path.to_owned()), Some("image"), &options, &())
    }

    /// Imports layers as a layout.
    pub fn import_layers(&self, tars: &[Vec<u8>]) -> Result<Imported, nsbox::image::store::Error> {
        let folder = self.path("layout");
        fs::create_dir_all(&folder).unwrap();
        Layout(&folder).image(&plain(tars));
        self.import(&folder)
    }

    pub fn rootfs(&self) -> PathBuf {
        self.store.find("image").unwrap().rootfs
    }

    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.rootfs().join(path)).unwrap()
    }

    pub fn has(&self, path: &str) -> bool {
        fs::symlink_metadata(self.rootfs().join(path)).is_ok()
    }
}

fn small() -> Vec<u8> {
    Tar::new().dir("etc/").file("etc/hello", "hello").symlink("bin", "usr/bin").file("usr/bin/tool", "#!").done()
}

#[test]
fn rootfs_tar_is_told_whatever_it_is_compressed_with() {
    for bytes in [small(), gzip(&small()), zstd(&small())] {
        let place = Place::new();
        let imported = place.import(&place.write("a", &bytes)).unwrap();
        assert!(!imported.was_there);
        assert_eq!(place.read("etc/hello"), "hello");
        assert_eq!(fs::read_link(place.rootfs().join("bin")).unwrap(), Path::new("usr/bin"));
        assert_eq!(place.store.verify("image", &()).unwrap(), Vec::<String>::new());
        // Nothing in it depends on when or where it was imported.
        let other = Place::new();
        assert_eq!(other.import(&other.write("b", &bytes)).unwrap().digest, imported.digest);
    }
}

#[test]
fn modes_are_the_guests_and_times_are_kept() {
    let place = Place::new();
    let tar = Tar::new()
        .dir("private/")
        .entry_of_mode(tar::EntryType::Regular, b"private/key", b"", b"k", 0o600)
        .entry_of_mode(tar::EntryType::Regular, b"tool", b"", b"t", 0o4777);
    let imported = place.import(&place.write("a.tar", &tar.done())).unwrap();
    for (path, mode) in [("private", 0o040_755), ("private/key", 0o100_644), ("tool", 0o100_755)] {
        let metadata = fs::metadata(place.rootfs().join(path)).unwrap();
        assert_eq!(metadata.mode(), mode, "{path}: {:o}", metadata.mode());
        assert_eq!(metadata.mtime(), 1_700_000_000, "{path}");
        assert_eq!(metadata.uid(), nix::unistd::geteuid().as_raw());
    }
    assert_eq!(imported.notes, ["set-user-id and set-group-id bits dropped: 1 (tool)"]);
}

#[test]
fn layout_keeps_its_digest_as_folder_and_as_archive() {
    let place = Place::new();
    let folder = place.path("layout");
    fs::create_dir(&folder).unwrap();
    let tar = small();
    let digest = Layout(&folder).image(&[(gzip(&tar), tar.clone()), (zstd(&tar), tar.clone()), (tar.clone(), tar)]);
    assert_eq!(place.import(&folder).unwrap().digest, digest);
    let archive = place.path("layout.tar");
    let run = |args: &[&str]| assert!(Command::new("tar").args(args).status().unwrap().success());
    let (from, to) = (folder.to_str().unwrap(), archive.to_str().unwrap());
    for flags in ["-cf", "-czf"] {
        run(&["-C", from, flags, to, "."]);
        let other = Place::new();
        assert_eq!(other.import(&archive).unwrap().digest, digest);
        assert_eq!(other.read("etc/hello"), "hello");
    }
}

#[test]
fn layout_in_the_store_is_the_image_alone_and_can_be_imported() {
    let place = Place::new();
    place.import_layers(&[Tar::new().file("other", "1").done()]).unwrap();
    let digest = place.import(&place.write("a.tar", &small())).unwrap().digest;
    let layout = place.store.layout_dir(&digest);
    assert_eq!(fs::read_dir(layout.join("blobs/sha256")).unwrap().count(), 3, "manifest, configuration, layer");
    let other = Place::new();
    assert_eq!(other.import(&layout).unwrap().digest, digest);
    // The words of docker save say the same.
    fs::remove_file(layout.join("index.json")).unwrap();
    let third = Place::new();
    third.import(&layout).unwrap();
    assert_eq!(third.read("etc/hello"), "hello");
}

#[test]
fn saved_archive_of_the_old_form_is_read_with_its_links() {
    let place = Place::new();
    let layer = small();
    let config = config(&[Digest::of(&layer), Digest::of(&layer)]).to_string();
    let config_name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let (first, second) = ("a".repeat(64), "b".repeat(64));
    let manifest = serde_json::json!([{
        "Config": config_name, "RepoTags": ["quant/base:latest"],
        "Layers": [format!("{first}/layer.tar"), format!("{second}/layer.tar")],
    }]);
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |path: String, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, content).unwrap();
    };
    add(format!("{first}/layer.tar"), &layer);
    add(config_name, config.as_bytes());
    add("manifest.json".to_owned(), manifest.to_string().as_bytes());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, format!("{second}/layer.tar"), format!("../{first}/layer.tar")).unwrap();
    let archive = builder.into_inner().unwrap();
    let digests = [archive.clone(), gzip(&archive), zstd(&archive)].map(|bytes| {
        let place = Place::new();
        let digest = place.import(&place.write("saved", &bytes)).unwrap().digest;
        assert_eq!(place.read("usr/bin/tool"), "#!");
        digest
    });
    assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
    drop(place);
}

#[test]
fn whiteouts_remove_what_lies_below_and_nothing_else() {
    let place = Place::new();
    let base =
        Tar::new().dir("d/").file("d/one", "1").file("d/two", "2").dir("e/").file("e/old", "o").file("gone", "g");
    let base = base.dir("tree/").dir("tree/deep/").file("tree/deep/file", "f").file("kept", "k");
    // The opaque whiteout comes after what the same layer puts there.
    let top = Tar::new().file("d/.wh.one", "").file("e/new", "n").dir("e/sub/").file("e/sub/file", "s");
    let top = top.file("e/.wh..wh..opq", "").file(".wh.gone", "").file(".wh.tree", "").file("tree/again", "a");
    place.import_layers(&[base.done(), top.done()]).unwrap();
    assert!(place.has("d/two") && place.has("kept") && place.has("e/new") && place.has("e/sub/file"));
    for path in ["d/one", "e/old", "gone", "tree/deep", "d/.wh.one", "e/.wh..wh..opq", ".wh.gone"] {
        assert!(!place.has(path), "{path}");
    }
    assert_eq!(place.read("tree/again"), "a");
}

#[test]
fn whiteout_of_what_its_own_layer_put_there_leaves_it() {
    let place = Place::new();
    let top = Tar::new().dir("d/").file("d/new", "n").file(".wh.d", "").file("f", "f").file(".wh.f", "");
    place.import_layers(&[Tar::new().dir("d/").file("d/old", "o").done(), top.done()]).unwrap();
    assert!(place.has("d/new") && place.has("f") && !place.has("d/old"));
}

/// The kernel gives a new folder the inode of one that is gone, whose time is not its own.
#[test]
fn folder_that_no_layer_names_has_no_time() {
    let place = Place::new();
    let gone = (0..20).fold(Tar::new().dir("a/"), |tar, number| tar.dir(&format!("a/{number}/")));
    let tar = (0..20).fold(gone.file("a", "file"), |tar, number| tar.file(&format!("{number}/in"), "i"));
    place.import(&place.write("a.tar", &tar.done())).unwrap();
    for number in 0..20 {
        assert_eq!(fs::metadata(place.rootfs().join(number.to_string())).unwrap().mtime(), 0, "{number}");
    }
}

#[test]
fn later_layer_replaces_whatever_was_there() {
    let place = Place::new();
    let base =
        Tar::new().dir("a/").file("a/x", "x").file("b", "b").symlink("c", "b").symlink("d", "a").file("same", "1");
    let top = Tar::new().file("a", "file").dir("b/").file("c", "file").dir("d/").file("d/y", "y").file("same", "2");
    place.import_layers(&[base.done(), top.done()]).unwrap();
    assert_eq!(place.read("a"), "file");
    assert!(place.rootfs().join("b").is_dir());
    assert_eq!(place.read("c"), "file");
    assert_eq!(place.read("d/y"), "y");
    assert!(!place.rootfs().join("d").is_symlink());
    assert_eq!(place.read("same"), "2");
}

#[test]
fn hard_links_are_one_file_until_one_of_them_is_replaced() {
    let place = Place::new();
    let base = Tar::new().file("one", "content").hard_link("two", "./one").hard_link("two", "one").done();
    let top = Tar::new().file("one", "other").hard_link("three", "two").done();
    place.import_layers(&[base, top]).unwrap();
    let ino = |path: &str| fs::metadata(place.rootfs().join(path)).unwrap().ino();
    assert_eq!(ino("two"), ino("three"));
    assert_eq!((place.read("one"), place.read("two")), ("other".to_owned(), "content".to_owned()));
}

#[test]
fn entries_through_a_link_land_where_the_guest_sees_them() {
    let place = Place::new();
    let base = Tar::new().dir("usr/").dir("usr/lib/").symlink("lib", "usr/lib").symlink("abs", "/usr/lib");
    let top = Tar::new().file("lib/new", "n").file("abs/other", "o");
    place.import_layers(&[base.done(), top.done()]).unwrap();
    assert_eq!((place.read("usr/lib/new"), place.read("usr/lib/other")), ("n".to_owned(), "o".to_owned()));
}

#[test]
fn archives_of_gnu_tar_in_every_format_give_one_tree() {
    let place = Place::new();
    let folder = place.path("tree");
    let deep = folder.join("d".repeat(90)).join("e".repeat(90)).join("f".repeat(90));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("long"), "long").unwrap();
    std::os::unix::fs::symlink("t".repeat(300), folder.join("link")).unwrap();
    fs::write(folder.join("ünïcode name"), "u").unwrap();
    fs::hard_link(deep.join("long"), folder.join("hard")).unwrap();
    let sparse = fs::File::create(folder.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", 3 << 20).unwrap();
    sparse.set_len(5 << 20).unwrap();
    let mut trees = Vec::new();
    let formats: [&[&str]; 4] =
        [&["--format=gnu", "-S"], &["--format=posix", "-S"], &["--format=posix"], &["--format=gnu", "-S", "-z"]];
    for (number, flags) in formats.iter().enumerate() {
        let archive = place.path(&format!("{number}.tar"));
        let mut tar = Command::new("tar");
        tar.args(*flags).arg("-C").arg(&folder).arg("-cf").arg(&archive).arg(".");
        assert!(tar.status().unwrap().success());
        let other = Place::new();
        other.import(&archive).unwrap();
        assert_eq!(fs::read(other.rootfs().join("sparse")).unwrap(), fs::read(folder.join("sparse")).unwrap());
        if flags.contains(&"-S") {
            let blocks = fs::metadata(other.rootfs().join("sparse")).unwrap().blocks();
            assert!(blocks < 2048, "{flags:?}: holes take {blocks} blocks");
        }
        let tree = fs::read_to_string(other.rootfs().parent().unwrap().join("tree.mtree")).unwrap();
        // GNU's own format keeps whole seconds.
        let whole = |word: &str| word.strip_prefix("time=").map_or(word.to_owned(), |time| time[..10].to_owned());
        trees.push(tree.split_whitespace().map(whole).collect::<Vec<_>>());
    }
    assert!(trees.iter().all(|tree| *tree == trees[0]));
}

#[test]
fn index_leads_to_the_image_of_this_machine_and_of_the_name() {
    let place = Place::new();
    let folder = place.path("layout");
    fs::create_dir(&folder).unwrap();
    let layout = Layout(&folder);
    let manifest = |text: &str| {
        let tar = Tar::new().file("which", text).done();
        let (digest, size) = layout.json(&layout.manifest(&plain(&[tar])));
        crate::archives::descriptor("application/vnd.oci.image.manifest.v1+json", &digest, size)
    };
    let with = |mut descriptor: serde_json::Value, key: &str, value: serde_json::Value| {
        descriptor[key] = value;
        descriptor
    };
    let platform = |name: &str| serde_json::json!({ "os": "linux", "architecture": name });
    let named = |name: &str| serde_json::json!({ "org.opencontainers.image.ref.name": name });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [
        with(manifest("other"), "platform", platform("s390x")),
        with(manifest("here"), "platform", platform(crate::archives::architecture())),
    ] });
    let (digest, size) = layout.json(&index);
    let nested = crate::archives::descriptor("application/vnd.oci.image.index.v1+json", &digest, size);
    layout
        .index(&[with(manifest("wrong"), "annotations", named("wrong")), with(nested, "annotations", named("image"))]);
    place.import(&folder).unwrap();
    assert_eq!(place.read("which"), "here");
    let error = place.store.import(&Source::Path(folder), None, &Options::default(), &()).unwrap_err();
    assert_eq!(error.code(), "layout-several");
    assert!(crate::hostile::chain(&error).contains("wrong, image"), "{}", crate::hostile::chain(&error));
}
