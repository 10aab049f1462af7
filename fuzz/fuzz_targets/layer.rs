//! Layers over layers of any entries, their checksums right.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use nsbox_fuzz::Place;
use nsbox_fuzz::archives::{Layout, Tar, plain};
use tar::EntryType;

#[derive(Debug, Arbitrary)]
struct Entry<'a> {
    headers: Vec<(&'a str, &'a [u8])>,
    kind: u8,
    path: &'a [u8],
    link: &'a [u8],
    content: &'a [u8],
    mode: u32,
}

fn tar(entries: &[Entry<'_>]) -> Vec<u8> {
    let add = |tar: Tar, entry: &Entry<'_>| {
        let tar = if entry.headers.is_empty() { tar } else { tar.pax(&entry.headers) };
        tar.entry_of_mode(EntryType::new(entry.kind), entry.path, entry.link, entry.content, entry.mode)
    };
    entries.iter().fold(Tar::new(), add).done()
}

libfuzzer_sys::fuzz_target!(|layers: Vec<Vec<Entry<'_>>>| {
    let place = Place::new();
    std::fs::create_dir(place.source()).unwrap();
    let tars: Vec<Vec<u8>> = layers.iter().map(|entries| tar(entries)).collect();
    Layout(&place.source()).image(&plain(&tars));
    place.import();
});
