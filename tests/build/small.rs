//! What a build promises whatever it builds, shown with a lock of Debian's packages and three wheels.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::Duration;

use tempfile::TempDir;

use crate::harness::{require, until};
use crate::store::{nsbox_in, printed, shown, store};
use crate::user::User;

/// One that is compiled, one in Python alone, one that is data.
pub const WHEELS: [&str; 3] = ["pyyaml", "tqdm", "tzdata"];

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("rootfs/lock").join(name)).unwrap()
}

/// A folder with the small lock.
pub fn lock() -> TempDir {
    let folder = TempDir::with_prefix_in("nsbox-lock-", "/tmp").unwrap();
    let slim = read("slim.txt");
    let wheels: Vec<&str> =
        slim.lines().filter(|line| WHEELS.iter().any(|name| line.starts_with(&format!("{name}==")))).collect();
    assert_eq!(wheels.len(), WHEELS.len());
    let texts = [("debian.txt", read("debian.txt")), ("slim.txt", wheels.join("\n")), ("epoch", read("epoch"))];
    for (name, text) in texts {
        fs::write(folder.path().join(name), text).unwrap();
    }
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    folder
}

const BUILD: [&str; 6] = ["image", "build", "--profile", "slim", "--name", "small"];

fn build<'a>(lock: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&BUILD, ["--lock", lock].as_slice(), more].concat()
}

/// The digest of the small image, and with it the packages in the suite's cache.
pub fn digest() -> &'static str {
    static DIGEST: OnceLock<String> = OnceLock::new();
    DIGEST.get_or_init(|| {
        let lock = lock();
        let digest = printed(nsbox_in(store(), &build(lock.path().to_str().unwrap(), &[])));
        assert!(digest.starts_with("sha256:"), "{digest}");
        digest
    })
}

/// A store with the small lock's packages in its cache and nothing else, in a folder that a user of this id may use.
pub fn kept_cache(folder: &Path, lock: &Path, owner: u32) -> PathBuf {
    digest();
    let fresh = folder.join("store");
    let cache = fresh.join("cache");
    fs::create_dir_all(&cache).unwrap();
    for name in ["debian.txt", "slim.txt"] {
        for hex in digests(&fs::read_to_string(lock.join(name)).unwrap()) {
            let (from, to) = (store().join("cache").join(&hex), cache.join(&hex));
            fs::copy(from, &to).unwrap();
            chown(&to, Some(owner), Some(owner)).unwrap();
        }
    }
    for path in [&fresh, &cache] {
        chown(path, Some(owner), Some(owner)).unwrap();
    }
    fresh
}

/// Every digest that a lock's file names.
pub fn digests(text: &str) -> Vec<String> {
    let words = text.lines().filter(|line| !line.starts_with('#')).flat_map(|line| line.split([' ', ':']));
    let is_digest = |word: &&str| word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    words.filter(is_digest).map(str::to_owned).collect()
}

pub fn scratch() -> TempDir {
    let folder = TempDir::with_prefix_in("nsbox-build-", "/tmp").unwrap();
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    folder
}

#[test]
fn build_from_a_kept_cache_has_the_same_digest_without_a_network() {
    let (lock, folder) = (lock(), scratch());
    let fresh = kept_cache(folder.path(), lock.path(), nix::unistd::geteuid().as_raw());
    let lock = lock.path().to_str().unwrap();
    let mut command = nsbox_in(&fresh, &build(lock, &["--offline"]));
    // Another time, another mask, another zone: nothing of them is in the image.
    command.env("TZ", "Asia/Taipei").env("PYTHONDONTWRITEBYTECODE", "1").env("LC_ALL", "C.UTF-8");
    assert_eq!(printed(command), digest());
    let mut later = nsbox_in(&fresh, &build(lock, &["--offline"]));
    later.env("SOURCE_DATE_EPOCH", "1");
    assert_ne!(printed(later), digest(), "the time is SOURCE_DATE_EPOCH's");
}

#[test]
fn ordinary_user_builds_the_same_image() {
    let Some(user) = User::find() else { return };
    let lock = lock();
    let fresh = kept_cache(&user.path(""), lock.path(), user.id);
    let output = user.nsbox(&[], &build(lock.path().to_str().unwrap(), &["--offline"])).output().unwrap();
    assert!(output.status.success(), "{}", shown(&output));
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim_end(), digest());
    assert!(fs::read_dir(fresh.join("staging")).unwrap().all(|entry| entry.unwrap().file_name() == ".lock"));
}

#[test]
fn progress_is_lines_without_a_terminal_and_nothing_when_quiet() {
    let (lock, folder) = (lock(), scratch());
    let fresh = kept_cache(folder.path(), lock.path(), nix::unistd::geteuid().as_raw());
    let lock = lock.path().to_str().unwrap();
    let output = nsbox_in(&fresh, &build(lock, &["--offline", "--json"])).output().unwrap();
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    let mut rest = said.as_str();
    for stage in ["cache", "unpacking the base", "installing packages", "compiling packages", "packing the image"] {
        let at = rest.find(stage).unwrap_or_else(|| panic!("{stage:?} is missing or out of order: {said}"));
        rest = &rest[at..];
    }
    assert!(!said.contains(['\r', '\x1b']), "{said:?}");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((json["digest"].as_str(), json["name"].as_str()), (Some(digest()), Some("small")));
    let quiet = nsbox_in(&fresh, &build(lock, &["--offline", "--quiet"])).output().unwrap();
    assert_eq!(quiet.stderr, b"", "{}", shown(&quiet));
}

/// Fails unless the command ends with 125, says so, and leaves no image.
#[track_caller]
fn is_refused(fresh: &Path, args: &[&str], variables: &[(&str, &str)], words: &[&str]) {
    let output = nsbox_in(fresh, args).envs(variables.iter().copied()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{}", shown(&output));
    assert!(words.iter().all(|word| said.contains(word)), "{said} says nothing of {words:?}");
    assert_eq!(printed(nsbox_in(fresh, &["image", "list", "--json"])), "[]");
    assert!(fs::read_dir(fresh.join("staging")).unwrap().all(|entry| entry.unwrap().file_name() == ".lock"));
}

#[test]
fn package_that_cannot_be_had_is_named_with_what_to_do() {
    let (lock, folder) = (lock(), scratch());
    let fresh = kept_cache(folder.path(), lock.path(), nix::unistd::geteuid().as_raw());
    let lock = lock.path().to_str().unwrap();
    let libc = read("debian.txt").lines().find(|line| line.starts_with("libc6 ")).unwrap().to_owned();
    let cached = fresh.join("cache").join(&digests(&libc)[0]);
    let version = libc.split(' ').nth(1).unwrap();

    fs::write(&cached, b"damaged").unwrap();
    let offline = ["failed to build offline", "libc6", version, "missing packages: 1"];
    is_refused(&fresh, &build(lock, &["--offline"]), &[], &offline);
    is_refused(&fresh, &build(lock, &[]), &[("NSBOX_OFFLINE", "1")], &offline);

    // A mirror that has something else there, and one that dropped it.
    let mirror = folder.path().join("mirror");
    let place = mirror.join(libc.split(' ').nth(3).unwrap().replace("%2b", "+"));
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    fs::write(&place, b"exchanged").unwrap();
    let Some(server) = serve(&mirror) else { return };
    let variables = [("NSBOX_DEBIAN_MIRROR", server.address.as_str())];
    is_refused(&fresh, &build(lock, &[]), &variables, &["libc6", version, "not that of the lock"]);
    fs::remove_file(&place).unwrap();
    is_refused(&fresh, &build(lock, &[]), &variables, &["libc6", version, "rootfs/lock.sh renews the lock"]);
    fs::copy(store().join("cache").join(&digests(&libc)[0]), &place).unwrap();
    let mut command = nsbox_in(&fresh, &build(lock, &[]));
    command.envs(variables);
    assert_eq!(printed(command), digest());
}

/// A web server on loopback, which ends with the value.
struct Server {
    child: std::process::Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

const SERVE: &str = "
import functools, http.server, sys
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1])
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
print(server.server_port, flush=True)
server.serve_forever()
";

fn serve(folder: &Path) -> Option<Server> {
    let python = Path::new("/usr/bin/python3");
    if !require(python.exists(), "/usr/bin/python3") {
        return None;
    }
    let mut command = std::process::Command::new(python);
    command.args(["-I", "-c", SERVE]).arg(folder).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut port = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut port).unwrap();
    Some(Server { child, address: format!("http://127.0.0.1:{}", port.trim_end()) })
}

#[test]
fn killed_build_leaves_nothing_that_the_next_does_not_sweep() {
    let (lock, folder) = (lock(), scratch());
    let fresh = kept_cache(folder.path(), lock.path(), nix::unistd::geteuid().as_raw());
    let lock = lock.path().to_str().unwrap();
    let mut cut_off = 0;
    // From the first file to after the last.
    for step in 0..8 {
        let mut command = nsbox_in(&fresh, &build(lock, &["--offline", "--quiet"]));
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        sleep(Duration::from_millis(50 + 350 * step * step / 4));
        child.kill().unwrap();
        cut_off += u32::from(!child.wait().unwrap().success());
        let list = printed(nsbox_in(&fresh, &["image", "list", "--json"]));
        let list: Vec<serde_json::Value> = serde_json::from_str(&list).unwrap();
        for image in list {
            assert_eq!(image["digest"], digest(), "an image is whole or not there");
            printed(nsbox_in(&fresh, &["image", "verify", "small"]));
            printed(nsbox_in(&fresh, &["image", "rm", "small"]));
        }
    }
    assert!(cut_off >= 3, "{cut_off} builds were killed on their way");
    assert_eq!(printed(nsbox_in(&fresh, &build(lock, &["--offline"]))), digest());
    // What the killed ones' installers held until they ended.
    until("the remainders are swept", || {
        printed(nsbox_in(&fresh, &build(lock, &["--offline"])));
        fs::read_dir(fresh.join("staging")).unwrap().all(|entry| entry.unwrap().file_name() == ".lock")
    });
    printed(nsbox_in(&fresh, &["image", "verify", "small"]));
}
