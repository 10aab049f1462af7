//! What an import is held to, whatever it is given: nothing outside of the store changes, a refusal leaves the store
//! without an image, and what is taken verifies.
//!
//! ```text
//! cargo +nightly fuzz run layer
//! cargo +nightly fuzz run manifest fuzz/corpus/manifest fuzz/seeds/manifest
//! ```
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../../tests/images/archives.rs"]
pub mod archives;

use std::fs;
use std::path::{Path, PathBuf};

use nsbox::image::{Limits, Options, Source, Store};
use tempfile::TempDir;

/// A folder with a canary, a source and a store.
pub struct Place {
    folder: TempDir,
    store: Store,
}

impl Place {
    /// In memory where that can be had.
    pub fn new() -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        fs::write(folder.path().join("canary"), "canary").unwrap();
        let store = Store::at(folder.path().join("store"));
        Self { folder, store }
    }

    /// Where the source is to be.
    pub fn source(&self) -> PathBuf {
        self.folder.path().join("source")
    }

    pub fn import(&self) {
        let limits = Limits { bytes: 16 << 20, entries: 10_000, ratio: 200 };
        let options = Options { limits, ..Options::default() };
        match self.store.import(&Source::Path(self.source()), Some("image"), &options, &()) {
            Ok(_) => assert_eq!(self.store.verify("image", &()).unwrap(), Vec::<String>::new()),
            Err(_) => {
                assert!(self.store.list().unwrap().is_empty());
                assert_eq!(names(&self.store.root().join("staging")), [".lock"]);
            }
        }
        assert_eq!(names(self.folder.path()), ["canary", "source", "store"]);
        assert_eq!(fs::read(self.folder.path().join("canary")).unwrap(), b"canary");
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = entries.collect();
    names.sort();
    names
}
