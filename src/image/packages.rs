//! What is installed in an image, as its own package databases say: Debian's, and Python's `*.dist-info`.

use std::io;
use std::path::Path;

use serde::Serialize;

use super::mtree::path_of;
use super::tree::Tree;

/// A package in an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Package {
    /// Who installed it.
    pub manager: Manager,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// Who installs packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Manager {
    /// Debian's dpkg.
    Dpkg,
    /// Whatever installs Python distributions.
    Python,
}

/// The packages of a tree, sorted; `description` is its mtree, which saves a walk.
pub(crate) fn packages(rootfs: &Path, description: &str) -> io::Result<Vec<Package>> {
    let tree = Tree::new(rootfs);
    let mut found = Vec::new();
    let mut read = |path: &Path, manager| -> io::Result<()> {
        if let Some(text) = tree.read(&Path::new("/").join(path))? {
            found.extend(parse(&String::from_utf8_lossy(&text), manager));
        }
        Ok(())
    };
    read(Path::new("var/lib/dpkg/status"), Manager::Dpkg)?;
    for line in description.lines() {
        let encoded = line.split(' ').next().unwrap_or_default();
        // distroless images have a file for each package.
        if encoded.starts_with("./var/lib/dpkg/status.d/")
            && !encoded.ends_with(".md5sums")
            && line.contains("type=file")
        {
            read(&path_of(line), Manager::Dpkg)?;
        } else if encoded.ends_with(".dist-info/METADATA") {
            read(&path_of(line), Manager::Python)?;
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// The packages of one database: paragraphs of `Key: value`; a distribution's metadata is one, and text after it.
fn parse(text: &str, manager: Manager) -> Vec<Package> {
    let name_key = match manager {
        Manager::Dpkg => "Package",
        Manager::Python => "Name",
    };
    let paragraphs = text.split("\n\n").take(if manager == Manager::Python { 1 } else { usize::MAX });
    let package = |paragraph: &str| {
        let value = |key: &str| {
            let mut lines = paragraph.lines();
            lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(|value| value.trim().to_owned())
        };
        if value("Status").is_some_and(|status| !status.ends_with(" installed")) {
            return None;
        }
        Some(Package { manager, name: value(name_key)?, version: value("Version")? })
    };
    paragraphs.filter_map(package).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_are_read() {
        let dpkg = "Package: a\nStatus: install ok installed\nVersion: 1-2\n\nPackage: gone\nStatus: deinstall ok \
                    config-files\nVersion: 3\n\nPackage: b\nVersion: 4\n Version: 5\n";
        let shown = |packages: Vec<Package>| {
            packages.into_iter().map(|package| format!("{} {}", package.name, package.version)).collect::<Vec<_>>()
        };
        assert_eq!(shown(parse(dpkg, Manager::Dpkg)), ["a 1-2", "b 4"]);
        let metadata = "Metadata-Version: 2.1\nName: pandas\nVersion: 2.3.3\n\nName: not this\nVersion: 0\n";
        assert_eq!(shown(parse(metadata, Manager::Python)), ["pandas 2.3.3"]);
    }
}
