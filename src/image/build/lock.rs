//! The lock of an image: every package with its version and digest. `rootfs/lock.sh` writes it; the built-in one is that
//! of this version of nsbox.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Error, Profile};
use crate::image::Digest;

/// Everything that a build takes, in the order of its installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lock {
    /// The time that every file of the image bears, in seconds since 1970.
    pub epoch: u64,
    /// Packages of Debian.
    pub debian: Vec<Package>,
    /// Wheels.
    pub wheels: Vec<Package>,
}

/// One package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Package {
    /// As the index knows it.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Digest of its file.
    pub digest: Digest,
    /// Of a wheel, the file's name; of Debian's, its path on the mirror.
    pub file: String,
}

impl Package {
    /// Name and version.
    pub(super) fn shown(&self) -> String {
        format!("{} {}", self.name, self.version)
    }
}

/// A file of the built-in lock.
fn builtin(name: &str) -> &'static str {
    match name {
        "debian.txt" => include_str!("../../../rootfs/lock/debian.txt"),
        "full.txt" => include_str!("../../../rootfs/lock/full.txt"),
        "slim.txt" => include_str!("../../../rootfs/lock/slim.txt"),
        _ => include_str!("../../../rootfs/lock/epoch"),
    }
}

impl Lock {
    /// The lock of a profile, from `folder` or the built-in one.
    pub(super) fn read(profile: Profile, folder: Option<&Path>) -> Result<Self, Error> {
        let read = |name: &str| match folder {
            None => Ok((PathBuf::from("rootfs/lock").join(name), builtin(name).to_owned())),
            Some(folder) => {
                let path = folder.join(name);
                let text = fs::read_to_string(&path);
                text.map(|text| (path.clone(), text)).map_err(|source| Error::Read { path, source })
            }
        };
        let (path, epoch) = read("epoch")?;
        let epoch = epoch.trim().parse().map_err(|_| Error::Lock { path, line: 1, text: epoch })?;
        let (path, debian) = read("debian.txt")?;
        let debian = packages(&path, &debian, debian_line)?;
        let (path, wheels) = read(&format!("{}.txt", profile.name()))?;
        Ok(Self { epoch, debian, wheels: packages(&path, &wheels, wheel_line)? })
    }
}

fn packages(path: &Path, text: &str, parse: fn(&str) -> Option<Package>) -> Result<Vec<Package>, Error> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let parsed = lines.map(|(number, line)| {
        parse(line).ok_or_else(|| Error::Lock { path: path.to_owned(), line: number + 1, text: line.to_owned() })
    });
    parsed.collect()
}

/// `NAME VERSION SHA256 PATH`
fn debian_line(line: &str) -> Option<Package> {
    let mut fields = line.split(' ');
    let (name, version) = (fields.next()?.to_owned(), fields.next()?.to_owned());
    let digest = Digest::from_hex(fields.next()?).ok()?;
    let file = fields.next().filter(|path| !path.is_empty())?.to_owned();
    fields.next().is_none().then_some(Package { name, version, digest, file })
}

/// `NAME==VERSION --hash=sha256:DIGEST  # FILE`, where the comment is for who has not asked the index yet.
fn wheel_line(line: &str) -> Option<Package> {
    let (requirement, file) = line.split_once("  # ")?;
    let (pinned, digest) = requirement.split_once(" --hash=")?;
    let (name, version) = pinned.split_once("==")?;
    let is_wheel = Path::new(file).extension().is_some_and(|suffix| suffix == "whl") && !file.contains('/');
    is_wheel.then_some(Package {
        name: name.to_owned(),
        version: version.to_owned(),
        digest: digest.parse().ok()?,
        file: file.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builtin_lock_has_every_package_of_its_profiles() {
        let names = |profile| -> Vec<String> {
            Lock::read(profile, None).unwrap().wheels.into_iter().map(|wheel| wheel.name).collect()
        };
        let (full, slim) = (names(Profile::Full), names(Profile::Slim));
        for name in [
            "backtesting",
            "duckdb",
            "finlab",
            "networkx",
            "numpy",
            "pandas",
            "pyarrow",
            "scikit-learn",
            "scipy",
            "sqlalchemy",
            "ta-lib",
            "yfinance",
        ] {
            assert!(full.iter().any(|n| n == name) && slim.iter().any(|n| n == name), "{name}");
        }
        for name in ["anthropic", "openai", "google-generativeai"] {
            assert!(full.iter().any(|n| n == name) && !slim.iter().any(|n| n == name), "{name}");
        }
    }

    #[test]
    fn builtin_profiles_agree_on_versions() {
        let (full, slim) = (Lock::read(Profile::Full, None).unwrap(), Lock::read(Profile::Slim, None).unwrap());
        assert!(slim.wheels.iter().all(|wheel| full.wheels.contains(wheel)));
        assert!(full.debian.iter().any(|package| package.name == "python3"));
        assert!(full.debian.iter().all(|package| package.file.contains("/pool/")));
    }

    #[test]
    fn lock_with_a_wrong_line_names_it() {
        let digest = "0".repeat(64);
        for line in ["python3", "python3 3.11 00 p", "a==1  # a-1-py3-none-any.whl", "a==1 --hash=md5:0  # a.whl"] {
            let text = format!("# head\nlibc6 2 {digest} debian/pool/l.deb\n{line}\n");
            let Err(Error::Lock { line: number, text, .. }) = packages(Path::new("l"), &text, debian_line) else {
                panic!("{line} was understood")
            };
            assert_eq!((number, text.as_str()), (3, line));
            assert_eq!(wheel_line(line), None);
        }
        let outside = format!("a==1 --hash=sha256:{digest}  # ../a.whl");
        assert_eq!(wheel_line(&outside), None, "a file of another folder");
    }
}
