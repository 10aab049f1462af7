//! Any bytes as a source: kinds of archive, compressions, members, and tars whose checksums happen to be right.
#![no_main]

use nsbox_fuzz::Place;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let place = Place::new();
    std::fs::write(place.source(), bytes).unwrap();
    place.import();
});
