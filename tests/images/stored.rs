//! The store under many hands: names, concurrent imports, runs that hold an image, imports that are killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nsbox::image::store::Error;
use nsbox::image::{Options, Source, Store};

use crate::archives::{Tar, gzip};
use crate::hostile::chain;
use crate::import::Place;

/// What is under `staging/`, but for the store's own lock.
fn staged(store: &Store) -> Vec<PathBuf> {
    let entries = fs::read_dir(store.root().join("staging")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| !path.ends_with(".lock")).collect()
}

fn blobs(store: &Store) -> usize {
    fs::read_dir(store.root().join("blobs/sha256")).unwrap().count()
}

#[test]
fn name_moves_and_the_image_stays_until_it_is_removed() {
    let place = Place::new();
    let first = place.import(&place.write("1.tar", &Tar::new().file("n", "1").done())).unwrap().digest;
    let second = place.import(&place.write("2.tar", &Tar::new().file("n", "2").done())).unwrap().digest;
    assert_eq!(place.read("n"), "2");
    place.store.set_name("other", &second).unwrap();
    let listed: Vec<_> =
        place.store.list().unwrap().into_iter().map(|entry| (entry.names, entry.record.digest)).collect();
    assert_eq!(listed, [(vec!["image".to_owned(), "other".to_owned()], second), (vec![], first)]);
    assert_eq!(place.store.find(&first.hex()[..8]).unwrap().digest, first);
    assert_eq!(place.store.find(&first.to_string()).unwrap().digest, first);
    assert_eq!(place.store.remove("image").unwrap(), None);
    assert_eq!(place.store.remove("other").unwrap(), Some(second));
    assert_eq!(place.store.remove(&first.hex()[..8]).unwrap(), Some(first));
    assert!(place.store.list().unwrap().is_empty());
    assert_eq!((blobs(&place.store), staged(&place.store).len()), (0, 0));
    assert_eq!(fs::read_dir(place.store.root().join("images")).unwrap().count(), 0);
}

#[test]
fn layers_of_several_images_are_kept_once_and_while_one_has_them() {
    let place = Place::new();
    let shared = Tar::new().file("shared", "s").done();
    let one = place.import_layers(&[shared.clone(), Tar::new().file("a", "1").done()]).unwrap().digest;
    let two = place.import_layers(&[shared, Tar::new().file("a", "2").done()]).unwrap().digest;
    assert_eq!(blobs(&place.store), 7, "2 manifests, 2 configurations, 3 layers");
    place.store.remove(&one.to_string()).unwrap();
    assert_eq!(blobs(&place.store), 4);
    assert!(place.store.verify(&two.to_string(), &()).unwrap().is_empty());
}

#[test]
fn unknown_name_is_answered_with_those_that_look_like_it() {
    let place = Place::new();
    place.import(&place.write("a.tar", &Tar::new().file("a", "a").done())).unwrap();
    let text = chain(&place.store.find("imaeg").unwrap_err());
    assert!(text.contains("near: image") && text.contains("nsbox image import"), "{text}");
    let text = chain(&place.store.find("sandbox").unwrap_err());
    assert!(text.contains("nsbox image build"), "{text}");
    for name in ["", "../x", "a/b", "host", "-x", ".hidden", "sha256:x", &"n".repeat(200), "a b", "ü"] {
        let error = place.store.import(&Source::Path("x".into()), Some(name), &Options::default(), &()).unwrap_err();
        assert!(matches!(error, Error::Name { .. }), "{name:?}: {error}");
        assert!(matches!(place.store.find(name).unwrap_err(), Error::Unknown { .. }), "{name:?}");
    }
}

#[test]
fn verify_tells_every_kind_of_damage() {
    let place = Place::new();
    let tar = Tar::new().file("a", "a").file("b", "b").file("c", "c").dir("d/").symlink("l", "a").file("m", "m").done();
    let digest = place.import(&place.write("a.tar", &tar)).unwrap().digest;
    let root = place.rootfs();
    fs::write(root.join("a"), "x").unwrap();
    fs::remove_file(root.join("b")).unwrap();
    fs::write(root.join("extra"), "").unwrap();
    fs::remove_file(root.join("l")).unwrap();
    std::os::unix::fs::symlink("b", root.join("l")).unwrap();
    fs::remove_file(root.join("c")).unwrap();
    nix::unistd::mkfifo(&root.join("c"), nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
    fs::set_permissions(root.join("m"), std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let record = &place.store.list().unwrap()[0].record;
    let blob = place.store.layout_dir(&digest).join("blobs/sha256").join(record.layers[0].digest.hex());
    fs::write(blob, "x").unwrap();
    let told = place.store.verify("image", &()).unwrap();
    for (start, says) in [
        ("./a: expected", "sha256digest"),
        ("./b: ", "No such file"),
        ("./extra", "not of the image"),
        ("./l: ", "link=b"),
        ("./c: ", "no file"),
        ("./m: ", "mode=0666"),
        ("blob sha256:", "has the digest"),
    ] {
        assert!(told.iter().any(|told| told.starts_with(start) && told.contains(says)), "{start} {says}: {told:#?}");
    }
    let mtree = root.parent().unwrap().join("tree.mtree");
    fs::write(&mtree, fs::read_to_string(&mtree).unwrap() + "./x type=dir mode=0755 time=0.000000000\n").unwrap();
    assert!(place.store.verify("image", &()).unwrap().iter().any(|told| told.starts_with("tree.mtree")));
}

/// Wherever it lies: in the tree and its description, in blobs, in documents.
#[test]
fn verify_finds_one_flipped_byte_in_any_file() {
    let place = Place::new();
    place.import_layers(&[Tar::new().file("a", "content").file("d/b", "more").done()]).unwrap();
    let image = place.rootfs().parent().unwrap().to_owned();
    assert_eq!(place.store.verify("image", &()).unwrap(), Vec::<String>::new());
    let mut flipped = 0;
    for path in files(&image) {
        // What the record says of time and source, nothing else does.
        if path.ends_with("image.json") {
            continue;
        }
        let (whole, time) = (fs::read(&path).unwrap(), fs::metadata(&path).unwrap().modified().unwrap());
        for at in [0, whole.len() / 2, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            write_keeping(&path, &bytes, time);
            let told = place.store.verify("image", &()).map_err(|error| chain(&error));
            assert!(!told.is_ok_and(|told| told.is_empty()), "byte {at} of {path:?}");
            flipped += 1;
        }
        write_keeping(&path, &whole, time);
    }
    assert_eq!(flipped, 3 * 9, "two files, their description, three blobs and three documents");
    assert_eq!(place.store.verify("image", &()).unwrap(), Vec::<String>::new());
}

/// All regular files under a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// As a disk that fails would: nothing but the content is another.
fn write_keeping(path: &Path, bytes: &[u8], time: SystemTime) {
    fs::write(path, bytes).unwrap();
    fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

#[test]
fn damaged_blob_of_the_store_is_fetched_anew() {
    let place = Place::new();
    let shared = Tar::new().file("shared", &"s".repeat(5000)).done();
    let digest = place.import_layers(std::slice::from_ref(&shared)).unwrap().digest;
    let layer = place.store.list().unwrap()[0].record.layers[0].digest;
    fs::write(place.store.root().join("blobs/sha256").join(layer.hex()), vec![b'x'; shared.len()]).unwrap();
    let both = [shared, Tar::new().file("more", "m").done()];
    assert_eq!(place.import_layers(&both).unwrap_err().code(), "layer-digest");
    let again = place.import_layers(&both).unwrap().digest;
    assert!(place.store.verify(&again.to_string(), &()).unwrap().is_empty());
    assert!(!place.store.verify(&digest.to_string(), &()).unwrap().is_empty());
}

#[test]
fn held_image_is_not_removed() {
    let place = Place::new();
    let digest = place.import(&place.write("a.tar", &Tar::new().file("a", "a").done())).unwrap().digest;
    let held = place.store.find("image").unwrap();
    let clone = held.lease.clone();
    drop(held);
    for name in ["image".to_owned(), digest.to_string()] {
        let error = place.store.remove(&name).unwrap_err();
        assert!(matches!(error, Error::InUse { .. }), "{error}");
    }
    assert_eq!(place.read("a"), "a");
    drop(clone);
    assert_eq!(place.store.remove("image").unwrap(), Some(digest));
}

#[test]
fn imports_of_one_image_at_once_end_with_one() {
    for as_layout in [false, true] {
        let place = Place::new();
        let tar = (0..200).fold(Tar::new(), |tar, number| tar.file(&format!("d/{number}"), &"x".repeat(4000))).done();
        let source = if as_layout {
            let folder = place.path("layout");
            fs::create_dir(&folder).unwrap();
            crate::archives::Layout(&folder).image(&crate::archives::plain(&[tar]));
            folder
        } else {
            place.write("a.tar", &tar)
        };
        let imported: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| place.import(&source).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(imported.iter().all(|one| one.digest == imported[0].digest));
        assert_eq!(imported.iter().filter(|one| !one.was_there).count(), 1);
        assert!(place.store.verify("image", &()).unwrap().is_empty());
        assert_eq!((place.store.list().unwrap().len(), staged(&place.store).len()), (1, 0));
    }
}

fn nsbox(store: &Store, args: &[&str], path: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nsbox"));
    command.args(args).arg(path).env("NSBOX_STORE", store.root()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn has_room(folder: &Path) -> bool {
    let found = nix::sys::statvfs::statvfs(folder).unwrap();
    found.blocks_available() * found.fragment_size() > 256 << 20
}

/// Kills the command at fifty moments spread over all it does, again and again over the remains of the ones before.
#[test]
fn import_killed_at_any_moment_leaves_a_store_that_works() {
    // In memory where there is room: else a busy disk is waited for most of the time, and killed in that.
    let memory = tempfile::tempdir_in("/dev/shm").ok().filter(|folder| has_room(folder.path()));
    let place = Place::at(memory.unwrap_or_else(|| tempfile::tempdir().unwrap()));
    let tree = |offset: usize| {
        let file =
            |tar: Tar, number: usize| tar.file(&format!("d{}/{number}", number % 20), &"x".repeat(number * 7 % 9000));
        (offset..offset + 1500).fold(Tar::new(), file).done()
    };
    let kept = place.import(&place.write("kept.tar", &tree(0))).unwrap().digest;
    place.store.set_name("kept", &kept).unwrap();
    let source = place.write("b.tar.gz", &gzip(&tree(5)));
    let args = ["image", "import", "--quiet", "--name", "image"];
    let started = Instant::now();
    assert!(nsbox(&place.store, &args, &source).status().unwrap().success());
    let mut whole = started.elapsed();
    let digest = place.store.find("image").unwrap().digest;
    let (mut killed, mut finished) = (0_u32, 0_u32);
    while killed < 50 {
        if killed % 7 == 0 {
            place.store.remove(&digest.to_string()).ok();
        }
        let mut child = nsbox(&place.store, &args, &source).spawn().unwrap();
        // Spread evenly, and jittered by what the process id happens to be.
        thread::sleep(whole * (killed % 25) / 24 + Duration::from_micros(u64::from(child.id() % 997)));
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            finished += 1;
            assert!(finished < 500, "{finished} finished before they could be killed, {killed} did not");
            // The machine has become faster; below, slower.
            whole = whole * 9 / 10;
        } else {
            killed += 1;
            if killed % 25 == 0 {
                whole = whole * 11 / 10;
            }
        }
        // Whatever is listed is whole.
        for entry in place.store.list().unwrap() {
            let differences = place.store.verify(&entry.record.digest.to_string(), &()).unwrap();
            assert!(differences.is_empty(), "kill {killed}: {differences:?}");
        }
    }
    assert!(place.store.verify("kept", &()).unwrap().is_empty());
    assert_eq!(place.import(&source).unwrap().digest, digest);
    assert!(place.store.verify("image", &()).unwrap().is_empty());
    place.store.sweep().unwrap();
    assert_eq!(staged(&place.store), Vec::<PathBuf>::new());
    let files = fs::read_dir(place.store.root().join("staging")).unwrap().count();
    assert_eq!(files, 1, "the store's own lock");
    let names: Vec<_> =
        fs::read_dir(place.store.root().join("names")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.len() <= 3, "{names:?}");
}

#[test]
fn packages_are_read_from_the_image() {
    let place = Place::new();
    let status = "Package: libc6\nStatus: install ok installed\nVersion: 2.36-9\n\n";
    let site = "usr/lib/python3/site-packages";
    let tar = Tar::new()
        .file("var/lib/dpkg/status", status)
        .file(&format!("{site}/numpy-2.2.0.dist-info/METADATA"), "Name: numpy\nVersion: 2.2.0\n\ntext")
        // It must not be read from the host.
        .symlink("opt/evil.dist-info/METADATA", "/etc/passwd");
    place.import(&place.write("a.tar", &tar.done())).unwrap();
    let found = place.store.inspect("image").unwrap();
    let packages: Vec<_> =
        found.packages.iter().map(|package| (package.name.as_str(), package.version.as_str())).collect();
    assert_eq!(packages, [("libc6", "2.36-9"), ("numpy", "2.2.0")]);
    assert_eq!(found.config["os"], "linux");
}

#[test]
fn store_that_others_may_write_is_refused() {
    let place = Place::new();
    let source = place.write("a.tar", &Tar::new().file("a", "a").done());
    place.import(&source).unwrap();
    for shelf in ["images", "names", "staging", "blobs"] {
        let path = place.store.root().join(shelf);
        let set = |mode| fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        set(0o777);
        fs::write(place.path("b.tar"), Tar::new().file("b", shelf).done()).unwrap();
        let error = place.import(&place.path("b.tar")).unwrap_err();
        assert_eq!(error.code(), "image-store-unsafe", "{shelf}: {}", chain(&error));
        set(0o755);
    }
}
