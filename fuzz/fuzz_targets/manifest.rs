//! Documents of any shape: a configuration, a manifest and an index, a line each. Nobody guesses digests, so `$LAYER`,
//! `$CONFIG` and `$MANIFEST` stand for those of the layer and of the lines before.
#![no_main]

use std::fs;

use nsbox_fuzz::Place;
use nsbox_fuzz::archives::{Layout, Tar};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let place = Place::new();
    fs::create_dir(place.source()).unwrap();
    let source = place.source();
    let layout = Layout(&source);
    let layer = layout.blob(&Tar::new().file("a", "a").done()).to_string();
    let mut lines = text.split('\n');
    let mut next = || lines.next().unwrap_or_default().replace("$LAYER", &layer);
    let config = layout.blob(next().as_bytes()).to_string();
    let manifest = layout.blob(next().replace("$CONFIG", &config).as_bytes()).to_string();
    let index = next().replace("$CONFIG", &config).replace("$MANIFEST", &manifest);
    // What `docker save` writes names files, not digests.
    let (name, index) = match index.starts_with('[') {
        true => ("manifest.json", index.replace("sha256:", "sha256/")),
        false => ("index.json", index),
    };
    fs::write(source.join(name), index).unwrap();
    place.import();
});
