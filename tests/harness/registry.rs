//! Debian's `docker-registry`, started by a test on a port of its own, with its content in a folder that outlives it.
#![allow(dead_code, reason = "each suite uses a part of it")]

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nsbox::image::Digest;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use serde_json::{Value, json};

/// How long it may take to listen, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);

/// openssl's own configuration would make it an authority, which rustls takes from no server.
const OPENSSL: &str = "\
[req]
distinguished_name = name
x509_extensions = extensions
[name]
[extensions]
basicConstraints = critical, CA:FALSE
subjectAltName = IP:127.0.0.1
";

/// A running registry, which ends with the value.
pub struct Registry {
    folder: PathBuf,
    pub port: u16,
    child: Child,
}

/// What a registry with TLS shows: its certificate, which is its own authority, and the key.
pub struct Certificate {
    pub certificate: PathBuf,
    key: PathBuf,
}

impl Certificate {
    /// For 127.0.0.1; `None` where openssl is not installed.
    pub fn make(folder: &Path) -> Option<Self> {
        let made = Self { certificate: folder.join("certificate.pem"), key: folder.join("key.pem") };
        let config = folder.join("openssl.cnf");
        fs::write(&config, OPENSSL).unwrap();
        let mut openssl = Command::new("openssl");
        openssl.args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=registry",
            "-config",
        ]);
        openssl.arg(config).arg("-out").arg(&made.certificate).arg("-keyout").arg(&made.key);
        let output = openssl.output().ok()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(made)
    }
}

impl Registry {
    /// `None` where it is not installed.
    pub fn start(folder: &Path, tls: Option<&Certificate>) -> Option<Self> {
        fs::create_dir_all(folder).unwrap();
        // Free now, and nobody else asks for this one.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let mut config = json!({
            "version": 0.1, "log": { "level": "error" }, "storage": { "filesystem": { "rootdirectory": folder } },
            "http": { "addr": format!("127.0.0.1:{port}"), "relativeurls": true },
        });
        if let Some(tls) = tls {
            config["http"]["tls"] = json!({ "certificate": tls.certificate, "key": tls.key });
        }
        // JSON is YAML.
        fs::write(folder.join("config.yml"), config.to_string()).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(folder.join("config.yml")).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().ok()?;
        let registry = Self { folder: folder.to_owned(), port, child };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            assert!(Instant::now() < deadline, "docker-registry does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        Some(registry)
    }

    /// Brings a layout's image, and all that its index leads to, into the registry as `quant/base:TAG`.
    pub fn push(&self, layout: &Path, tag: &str) {
        // Another test may have been quicker.
        rustls::crypto::ring::default_provider().install_default().ok();
        let client = Client::new(ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() });
        let reference: Reference = format!("127.0.0.1:{}/quant/base:{tag}", self.port).parse().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            client.auth(&reference, &RegistryAuth::Anonymous, RegistryOperation::Push).await.unwrap();
            for entry in fs::read_dir(layout.join("blobs/sha256")).unwrap() {
                let bytes = fs::read(entry.unwrap().path()).unwrap();
                let digest = Digest::of(&bytes).to_string();
                client.push_blob(&reference, bytes, &digest).await.unwrap();
            }
            let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
            for (text, kind, tag) in documents(layout, &index["manifests"][0], tag) {
                let at: Reference = format!("127.0.0.1:{}/quant/base{tag}", self.port).parse().unwrap();
                client.push_manifest_raw(&at, text, kind.parse().unwrap()).await.unwrap();
            }
        });
    }

    pub fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The file in which it keeps a blob.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.folder.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(&hex).join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // The test may have stopped it.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Manifests below a descriptor, the innermost first, with their types and how they are referred to.
fn documents(layout: &Path, descriptor: &Value, tag: &str) -> Vec<(Vec<u8>, String, String)> {
    fn below(layout: &Path, descriptor: &Value, at: String, found: &mut Vec<(Vec<u8>, String, String)>) {
        let hex = descriptor["digest"].as_str().unwrap().trim_start_matches("sha256:");
        let text = fs::read(layout.join("blobs/sha256").join(hex)).unwrap();
        let parsed: Value = serde_json::from_slice(&text).unwrap();
        for inner in parsed["manifests"].as_array().unwrap_or(&Vec::new()) {
            below(layout, inner, format!("@{}", inner["digest"].as_str().unwrap()), found);
        }
        found.push((text, descriptor["mediaType"].as_str().unwrap().to_owned(), at));
    }
    let mut found = Vec::new();
    below(layout, descriptor, format!(":{tag}"), &mut found);
    found
}
