//! The store, the image with its Python, and Docker's engine.

use std::path::Path;

use nix::sys::statvfs::{FsFlags, statvfs};

use super::{Layer, Status};
use crate::config::Config;
use crate::image::{self, Error, Image};
use crate::sandbox::chain;
use crate::sandbox::host::Host;

/// The image of a run, and the layers `store` and `image`.
pub(super) fn examine(config: &Config, host: &Host) -> (Option<Image>, Vec<Layer>) {
    let tried = "building the skeleton of a root in it";
    let store = match image::store_dir() {
        Ok(store) => store,
        Err(error) => {
            let store = Layer::refused("store", tried, chain(&error), vec!["NSBOX_STORE=/path/of/a/folder".to_owned()]);
            return (None, vec![store, Layer::untried("image", "there is no store")]);
        }
    };
    let look = "reading the interpreter's files";
    match image::find(&config.image, config.python.as_deref(), &store) {
        Ok(image) => {
            let layers = vec![store_layer(&store, tried), image_layer(&image, look)];
            (Some(image), layers)
        }
        Err(error @ (Error::NoStore | Error::Store { .. } | Error::StoreUnsafe { .. } | Error::Skeleton { .. })) => {
            let owner = if host.root { "" } else { ", owned by this user" };
            let knobs = vec![format!("NSBOX_STORE=/path/of/a/folder, writable{owner}")];
            (
                None,
                vec![Layer::refused("store", tried, chain(&error), knobs), Layer::untried("image", "the store failed")],
            )
        }
        Err(error) => {
            let knobs = vec!["--python PATH of a CPython 3.10 to 3.14, or --image PATH of an unpacked root".to_owned()];
            (None, vec![store_layer(&store, tried), Layer::refused("image", look, chain(&error), knobs)])
        }
    }
}

fn store_layer(store: &Path, tried: &str) -> Layer {
    let shown = store.display();
    let layer = Layer::allowed("store", tried, shown.to_string());
    // It may not be there yet, where the image failed before it was needed.
    match statvfs(store) {
        Ok(stat) if stat.flags().contains(FsFlags::ST_NOEXEC) => Layer {
            status: Status::Degraded,
            found: format!(
                "{shown} is on a file system mounted noexec: the host image works, unpacked ones cannot run"
            ),
            knobs: vec![format!("mount -o remount,exec of that file system, or NSBOX_STORE elsewhere")],
            required: false,
            ..layer
        },
        _ => layer,
    }
}

fn image_layer(image: &Image, tried: &str) -> Layer {
    let python = &image.python;
    let (major, minor) = python.version;
    let shown = python.executable.display();
    let found = format!("{}: Python {major}.{minor}, {shown}", image.name);
    let is_noexec = |path: &Path| statvfs(path).is_ok_and(|stat| stat.flags().contains(FsFlags::ST_NOEXEC));
    if image.name == "host" && is_noexec(&python.executable) {
        let knobs = vec!["mount -o remount,exec of that file system, or --python PATH of another".to_owned()];
        return Layer::refused("image", tried, format!("{found}, on a file system mounted noexec"), knobs);
    }
    Layer::allowed("image", tried, found)
}

/// Docker's engine; only the `docker` backend needs it.
pub(super) fn docker() -> Layer {
    let tried = "connecting to its socket";
    let found = match crate::docker::find_socket() {
        Ok(socket) => return Layer::allowed("docker", tried, socket.display().to_string()).optional(),
        Err(error) => error.to_string(),
    };
    let knobs = vec![
        "none needed by the namespace backend; for backend: docker, start Docker's engine and let this user connect \
         (usermod -aG docker USER, which is as good as root)"
            .to_owned(),
    ];
    Layer::refused("docker", tried, found, knobs).optional()
}
