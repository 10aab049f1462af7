//! Documents that lie: of layers that are not there, of digests that are not theirs, of more than there can be.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nsbox::image::Digest;
use serde_json::json;

use crate::archives::{Layout, Tar, config, descriptor, plain};
use crate::hostile::Guarded;
use crate::import::Place;

/// A layout with an image in it, and its manifest.
pub fn layout(place: &Place) -> (PathBuf, serde_json::Value) {
    let folder = place.path("layout");
    if folder.exists() {
        fs::remove_dir_all(&folder).unwrap();
    }
    fs::create_dir(&folder).unwrap();
    let layout = Layout(&folder);
    let manifest = layout.manifest(&plain(&[Tar::new().file("a", "a").done(), Tar::new().file("b", "b").done()]));
    layout.image_of(&manifest);
    (folder, manifest)
}

#[test]
fn blobs_that_are_not_what_their_digests_say_are_refused() {
    let guarded = Guarded::new();
    let blob = |folder: &Path, digest: &serde_json::Value| {
        folder.join("blobs/sha256").join(digest.as_str().unwrap().trim_start_matches("sha256:"))
    };
    let import = |folder: &Path| guarded.place.import(folder);
    let (folder, manifest) = layout(&guarded.place);
    let path = blob(&folder, &manifest["layers"][1]["digest"]);
    fs::write(&path, Tar::new().file("b", "x").done()).unwrap();
    guarded.refuses(import(&folder), "layer-digest", &["layer 2 of 2", "damaged or exchanged"]);
    fs::write(&path, b"").unwrap();
    guarded.refuses(import(&folder), "layer-size", &["layer 2 of 2"]);
    fs::write(&path, [Tar::new().file("b", "b").done(), vec![0; 512]].concat()).unwrap();
    guarded.refuses(import(&folder), "layer-size", &["bytes"]);
    fs::remove_file(&path).unwrap();
    guarded.refuses(import(&folder), "layout-missing", &["blobs/sha256"]);
    // Not a file: it would hang, or be read forever.
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    guarded.refuses(import(&folder), "layer-read", &["no regular file"]);
    fs::remove_file(&path).unwrap();
    symlink(guarded.place.path("canary/folder/secret"), &path).unwrap();
    guarded.refuses(import(&folder), "layer-read", &["layer 2 of 2"]);

    let (folder, manifest) = layout(&guarded.place);
    fs::write(blob(&folder, &manifest["config"]["digest"]), config(&[]).to_string()).unwrap();
    guarded.refuses(import(&folder), "layout-digest", &["blobs/sha256"]);
    // The configuration says another thing of the tar than is in the blob.
    let (folder, mut manifest) = layout(&guarded.place);
    let (digest, size) = Layout(&folder).json(&config(&[Digest::of(b"a"), Digest::of(b"b")]));
    manifest["config"] = descriptor("application/vnd.oci.image.config.v1+json", &digest, size);
    Layout(&folder).image_of(&manifest);
    guarded.refuses(import(&folder), "layer-diff-id", &["layer 1 of 2", "configuration"]);
}

#[test]
fn documents_that_say_too_much_or_too_little_are_refused() {
    let guarded = Guarded::new();
    let import = |folder: &Path| guarded.place.import(folder);
    let changed = |change: &dyn Fn(&mut serde_json::Value)| {
        let (folder, mut manifest) = layout(&guarded.place);
        change(&mut manifest);
        Layout(&folder).image_of(&manifest);
        import(&folder)
    };
    let fewer = changed(&|manifest| drop(manifest["layers"].as_array_mut().unwrap().pop()));
    guarded.refuses(fewer, "layout-layers", &["1 layers", "2"]);
    let more = changed(&|manifest| {
        let layer = manifest["layers"][0].clone();
        manifest["layers"].as_array_mut().unwrap().push(layer);
    });
    guarded.refuses(more, "layout-layers", &["3 layers"]);
    let many = changed(&|manifest| {
        let layer = manifest["layers"][0].clone();
        *manifest["layers"].as_array_mut().unwrap() = vec![layer; 5000];
    });
    guarded.refuses(many, "layout-too-many-layers", &["5000", "127"]);
    let huge = changed(&|manifest| manifest["layers"][0]["size"] = json!(u64::MAX));
    guarded.refuses(huge, "layer-too-large", &["--max-size"]);
    let algorithm = changed(&|manifest| manifest["layers"][0]["digest"] = json!(format!("sha512:{}", "0".repeat(128))));
    guarded.refuses(algorithm, "layout-algorithm", &["sha512"]);
    let path = changed(&|manifest| manifest["layers"][0]["digest"] = json!("sha256:../../../canary/folder/secret"));
    guarded.refuses(path, "layout-parse", &[]);
    let artifact = changed(&|manifest| manifest["config"]["mediaType"] = json!("application/vnd.oci.empty.v1+json"));
    guarded.refuses(artifact, "layout-not-an-image", &["empty"]);
    let (folder, _) = layout(&guarded.place);
    fs::write(folder.join("index.json"), vec![b' '; 5 << 20]).unwrap();
    guarded.refuses(import(&folder), "layout-too-large", &["index.json", "4 MiB"]);
    fs::write(folder.join("index.json"), "[".repeat(100_000)).unwrap();
    guarded.refuses(import(&folder), "layout-parse", &["index.json"]);
    Layout(&folder).index(&[]);
    guarded.refuses(import(&folder), "layout-platform", &["nothing"]);
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"9.0.0"}"#).unwrap();
    guarded.refuses(import(&folder), "layout-version", &["9.0.0"]);
    fs::remove_file(folder.join("index.json")).unwrap();
    guarded.refuses(import(&folder), "layout-missing", &["index.json"]);
    fs::write(folder.join("manifest.json"), r#"[{"Config":"../canary/folder/secret","Layers":[]}]"#).unwrap();
    guarded.refuses(import(&folder), "layout-read", &["canary"]);
}

#[test]
fn indexes_without_end_are_refused() {
    let mut guarded = Guarded::new();
    let (folder, manifest) = layout(&guarded.place);
    let layout = Layout(&folder);
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    let (digest, size) = layout.json(&manifest);
    let mut inner = descriptor("application/vnd.oci.image.manifest.v1+json", &digest, size);
    for _ in 0..3 {
        let (digest, size) = layout.json(&json!({ "schemaVersion": 2, "manifests": [inner] }));
        inner = descriptor(INDEX, &digest, size);
    }
    layout.index(&[inner.clone()]);
    guarded.place.import(&folder).unwrap();
    guarded.put_back();
    let (digest, size) = layout.json(&json!({ "schemaVersion": 2, "manifests": [inner] }));
    layout.index(&[descriptor(INDEX, &digest, size)]);
    guarded.refuses(guarded.place.import(&folder), "layout-nested", &["deeper than 4"]);
    // Wide instead of deep: each level lists the next hundred times.
    let (digest, size) = layout.json(&manifest);
    let mut level = descriptor("application/vnd.oci.image.manifest.v1+json", &digest, size);
    for _ in 0..3 {
        let (digest, size) = layout.json(&json!({ "schemaVersion": 2, "manifests": vec![level; 100] }));
        level = descriptor(INDEX, &digest, size);
    }
    layout.index(&[level]);
    guarded.refuses(guarded.place.import(&folder), "layout-nested", &["1024"]);
}
