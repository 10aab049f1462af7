//! Archives and layouts, honest and other ones, made byte by byte.

use std::fs;
use std::io::Write;
use std::path::Path;

use nsbox::image::Digest;
use serde_json::{Value, json};
use tar::{EntryType, Header};

/// A tar under construction.
#[derive(Default)]
pub struct Tar(pub Vec<u8>);

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    /// An entry, whatever it says; a path that fits no header is cut.
    pub fn entry(self, kind: EntryType, path: &[u8], link: &[u8], content: &[u8]) -> Self {
        self.entry_of_mode(kind, path, link, content, 0o644)
    }

    pub fn entry_of_mode(mut self, kind: EntryType, path: &[u8], link: &[u8], content: &[u8], mode: u32) -> Self {
        let mut header = Header::new_gnu();
        let fill = |field: &mut [u8], bytes: &[u8]| {
            let count = bytes.len().min(field.len());
            field[..count].copy_from_slice(&bytes[..count]);
        };
        fill(&mut header.as_old_mut().name, path);
        fill(&mut header.as_old_mut().linkname, link);
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        header.set_mtime(1_700_000_000);
        header.set_uid(1234);
        header.set_gid(1234);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.content(content)
    }

    fn content(mut self, content: &[u8]) -> Self {
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, path: &str, content: &str) -> Self {
        self.entry(EntryType::Regular, path.as_bytes(), b"", content.as_bytes())
    }

    pub fn dir(self, path: &str) -> Self {
        self.entry_of_mode(EntryType::Directory, path.as_bytes(), b"", b"", 0o700)
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, path.as_bytes(), target.as_bytes(), b"")
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Link, path.as_bytes(), target.as_bytes(), b"")
    }

    /// Extended headers for the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (1..).find(|digits| (rest + digits).to_string().len() == *digits).unwrap() + rest;
            text.extend_from_slice(format!("{length} {key}=").as_bytes());
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        self.entry(EntryType::XHeader, b"pax", b"", &text)
    }

    /// The archive with its end marker.
    pub fn done(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

/// This machine's architecture, in the words of OCI.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub fn config(diff_ids: &[Digest]) -> Value {
    let ids: Vec<String> = diff_ids.iter().map(ToString::to_string).collect();
    json!({ "architecture": architecture(), "os": "linux", "config": {}, "rootfs": { "type": "layers", "diff_ids": ids } })
}

/// An OCI layout in a folder.
pub struct Layout<'a>(pub &'a Path);

impl Layout<'_> {
    pub fn blob(&self, bytes: &[u8]) -> Digest {
        let folder = self.0.join("blobs/sha256");
        fs::create_dir_all(&folder).unwrap();
        let digest = Digest::of(bytes);
        fs::write(folder.join(digest.hex()), bytes).unwrap();
        digest
    }

    pub fn json(&self, value: &Value) -> (Digest, usize) {
        let text = value.to_string();
        (self.blob(text.as_bytes()), text.len())
    }

    /// Writes the index and the version.
    pub fn index(&self, manifests: &[Value]) {
        fs::write(self.0.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        fs::write(self.0.join("index.json"), json!({ "schemaVersion": 2, "manifests": manifests }).to_string())
            .unwrap();
    }

    /// A manifest over layers: the blob as it is stored, and the tar in it.
    pub fn manifest(&self, layers: &[(Vec<u8>, Vec<u8>)]) -> Value {
        let diff_ids: Vec<Digest> = layers.iter().map(|(_, tar)| Digest::of(tar)).collect();
        let (config, size) = self.json(&config(&diff_ids));
        let layers: Vec<Value> = layers
            .iter()
            .map(|(blob, _)| descriptor("application/vnd.oci.image.layer.v1.tar", &self.blob(blob), blob.len()))
            .collect();
        json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config, size), "layers": layers,
        })
    }

    /// A whole image of these layers; the digest of its manifest.
    pub fn image(&self, layers: &[(Vec<u8>, Vec<u8>)]) -> Digest {
        self.image_of(&self.manifest(layers))
    }

    pub fn image_of(&self, manifest: &Value) -> Digest {
        let (digest, size) = self.json(manifest);
        self.index(&[descriptor("application/vnd.oci.image.manifest.v1+json", &digest, size)]);
        digest
    }
}

pub fn descriptor(media_type: &str, digest: &Digest, size: usize) -> Value {
    json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size })
}

/// Layers that are stored as they are.
pub fn plain(tars: &[Vec<u8>]) -> Vec<(Vec<u8>, Vec<u8>)> {
    tars.iter().map(|tar| (tar.clone(), tar.clone())).collect()
}
