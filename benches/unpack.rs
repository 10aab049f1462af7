//! Bringing an image into the store against `umoci unpack` of the same one: `cargo bench --bench unpack`.
//!
//! Cases, in turns within one run and in the other order every second round, each into an empty folder of one file system,
//! with nothing left to be written before. In each round first with the layers in memory, then with them on the disk alone:
//!
//! | case | what is timed |
//! |---|---|
//! | `umoci` | `umoci unpack`: tree and mtree(5) description, written at the system's leisure |
//! | `nsbox` | `nsbox image import`: the same, the blobs kept, and all of it on the disk; target: no slower, below 100 MB |
//! | `verify` | `nsbox image verify`: every blob and file hashed again |
//!
//! `LAYOUT` names an OCI layout of one image, as `nsbox image inspect` shows it of each in the store; without it, one is made
//! of Debian's smallest variant with its Python, by mmdebstrap. `ROUNDS` says how often.

use std::env;
use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::resource::{UsageWho, getrusage};
use nsbox::image::{Options, Source, Store};
use serde_json::{Value, json};

/// The bench's own word for: run what follows, print its peak memory in KiB.
const MEASURE: &str = "--peak-memory-of";
/// Files and bytes are counted in them.
const MIB: f64 = 1_048_576.0;

/// What came of one case.
#[derive(Default)]
struct Case {
    /// With the layers in memory, and without.
    seconds: [Vec<f64>; 2],
    /// KiB.
    peak: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().collect();
    if let Some(at) = args.iter().position(|arg| arg == MEASURE) {
        return measure(&args[at + 1..]);
    }
    let rounds: usize = env::var("ROUNDS").map_or(Ok(7), |rounds| rounds.parse())?;
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let layout = folder.path().join("layout");
    let source = match env::var_os("LAYOUT") {
        Some(layout) => PathBuf::from(layout),
        None => debian(folder.path())?,
    };
    copy_layout(&source, &layout)?;

    let store = folder.path().join("store");
    let image = format!("{}:bench", layout.display());
    let bundle = folder.path().join("bundle");
    let mut umoci = vec!["umoci", "unpack", "--image", &image];
    if !nix::unistd::geteuid().is_root() {
        umoci.push("--rootless");
    }
    let (bundle_arg, layout_arg) = (bundle.display().to_string(), layout.display().to_string());
    umoci.push(&bundle_arg);
    let nsbox = env!("CARGO_BIN_EXE_nsbox");
    let import = [nsbox, "image", "import", "--quiet", "--name", "bench", &layout_arg];
    let verify = [nsbox, "image", "verify", "--quiet", "bench"];
    let mut cases = [
        ("umoci", umoci, Case::default()),
        ("nsbox", import.to_vec(), Case::default()),
        ("verify", verify.to_vec(), Case::default()),
    ];
    for turn in 0..2 * rounds {
        for gone in [&bundle, &store] {
            match fs::remove_dir_all(gone) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        let cold = turn % 2;
        // An image is verified once it is there.
        let order = if turn / 2 % 2 == 0 { [0, 1, 2] } else { [1, 2, 0] };
        for index in order {
            let (name, words, case) = &mut cases[index];
            if cold == 1 {
                forget(&layout)?;
            }
            // What another has left to be written is not this one's to wait for.
            nix::unistd::sync();
            let begun = Instant::now();
            let output = Command::new(env::current_exe()?)
                .arg(MEASURE)
                .args(&*words)
                .env("NSBOX_STORE", &store)
                .stdin(Stdio::null())
                .stderr(Stdio::inherit())
                .output()?;
            case.seconds[cold].push(begun.elapsed().as_secs_f64());
            if !output.status.success() {
                return Err(format!("{name} ended with {}", output.status).into());
            }
            let printed = String::from_utf8(output.stdout)?;
            let peak = printed.lines().last().unwrap_or_default().parse()?;
            case.peak = case.peak.max(peak);
        }
    }
    report(&Store::at(&store), &mut cases)
}

/// Takes the blobs of a layout out of memory.
fn forget(layout: &Path) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(layout.join("blobs/sha256"))? {
        let file = File::open(entry?.path())?;
        file.sync_all()?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    }
    Ok(())
}

/// Runs a program, then prints what the largest of its processes had in memory at most.
#[expect(clippy::print_stdout, reason = "read by the bench itself")]
fn measure(words: &[String]) -> Result<(), Box<dyn Error>> {
    let (program, args) = words.split_first().ok_or("nothing to measure")?;
    let status = Command::new(program).args(args).stdout(Stdio::null()).status()?;
    if !status.success() {
        return Err(format!("{program} ended with {status}").into());
    }
    println!("{}", getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss());
    Ok(())
}

/// The layout of a small Debian with its Python, in one gzip layer.
fn debian(folder: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let tarball = Path::new(env!("CARGO_TARGET_TMPDIR")).join("unpack.tar.gz");
    if !tarball.exists() {
        let aside = tarball.with_file_name("unpack-unfinished.tar.gz");
        let mut command = Command::new("mmdebstrap");
        command.args(["--quiet", "--variant=minbase", "--include=python3", "stable"]).arg(&aside);
        if !command.stdin(Stdio::null()).status()?.success() {
            return Err("mmdebstrap made no image: name an OCI layout with LAYOUT=FOLDER".into());
        }
        fs::rename(aside, &tarball)?;
    }
    let store = Store::at(folder.join("made"));
    let imported = store.import(&Source::Path(tarball), None, &Options::default(), &())?;
    Ok(store.layout_dir(&imported.digest))
}

/// The same image by a name, without which umoci finds none.
fn copy_layout(from: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(to.join("blobs/sha256"))?;
    for entry in fs::read_dir(from.join("blobs/sha256"))? {
        let entry = entry?;
        let to = to.join("blobs/sha256").join(entry.file_name());
        fs::hard_link(entry.path(), &to).or_else(|_| fs::copy(entry.path(), &to).map(drop))?;
    }
    fs::copy(from.join("oci-layout"), to.join("oci-layout"))?;
    let mut index: Value = serde_json::from_slice(&fs::read(from.join("index.json"))?)?;
    index["manifests"][0]["annotations"] = json!({ "org.opencontainers.image.ref.name": "bench" });
    Ok(fs::write(to.join("index.json"), index.to_string())?)
}

#[expect(clippy::print_stdout, reason = "the figures are what a benchmark is for")]
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn report(store: &Store, cases: &mut [(&str, Vec<&str>, Case)]) -> Result<(), Box<dyn Error>> {
    let record = store.inspect("bench")?.entry.record;
    let (files, bytes) = (record.totals.files, record.totals.bytes as f64 / MIB);
    let compressed = record.layers.iter().map(|layer| layer.size).sum::<u64>() as f64 / MIB;
    println!("\n{files} files of {bytes:.0} MiB, {} layers of {compressed:.0} MiB", record.layers.len());
    for (cold, layers) in ["layers in memory", "layers on the disk"].into_iter().enumerate() {
        println!("\n{layers:<20}{:>12}{:>12}{:>10}{:>10}{:>12}", "fastest s", "median s", "ratio", "MiB/s", "peak MiB");
        let mut umoci = None;
        for (name, _, case) in &mut *cases {
            let seconds = &mut case.seconds[cold];
            seconds.sort_by(f64::total_cmp);
            let median = seconds[seconds.len() / 2];
            let ratio = median / *umoci.get_or_insert(median);
            let (fastest, peak) = (seconds[0], case.peak as f64 / 1024.0);
            println!("{name:<20}{fastest:>12.2}{median:>12.2}{ratio:>10.2}{:>10.0}{peak:>12.0}", bytes / median);
        }
    }
    println!("targets of nsbox: ratio 1.00, peak below 100 MB");
    Ok(())
}
