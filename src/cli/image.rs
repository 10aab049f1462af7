//! `nsbox image`.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use comfy_table::{Table, presets};
use indicatif::BinaryBytes;

use super::progress::Bar;
use super::{Failure, complain, terminal};
use crate::config::parse_size;
use crate::image::build;
use crate::image::store::{Entry, Error, Inspection};
use crate::image::{Limits, Manager, Options, Progress, Source, Store};

/// Exit status of `verify` where something differs.
const DIFFERS: u8 = 1;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Builds the production image from packages and a lock, without a daemon and without root
    Build(Build),
    /// Brings an image into the store: from an OCI layout, an archive of docker save, a root file system or a registry
    Import(Import),
    /// Lists the images of the store
    #[command(visible_alias = "ls")]
    List(List),
    /// Shows what is known of an image: layers, sizes, packages
    Inspect(Inspect),
    /// Compares every file and blob of images with the digests written at import
    Verify(Verify),
    /// Removes images; one that a run uses stays
    Rm(Remove),
}

/// Builds the production image from packages and a lock, without a daemon and without root
#[derive(Debug, Parser)]
#[command(after_help = BUILD_HELP)]
pub(super) struct Build {
    /// The name it gets; default: sandbox, or sandbox-slim
    #[arg(long)]
    name: Option<String>,
    /// full, or slim: without the clients of language models and what only speaks to a network
    #[arg(long, value_enum, default_value = "full")]
    profile: BuildProfile,
    /// What the packages are put on: debian, an OCI layout or archive, or oci://HOST/NAME:TAG
    #[arg(long, default_value = "debian")]
    base: String,
    /// A folder with a lock of your own, as rootfs/lock.sh writes it; default: the one built in
    #[arg(long, value_name = "DIR")]
    lock: Option<PathBuf>,
    /// Takes the packages from the store's cache alone [env: NSBOX_OFFLINE=1]
    #[arg(long)]
    offline: bool,
    /// Says nothing but the digest
    #[arg(long, short)]
    quiet: bool,
    /// Prints the result as JSON
    #[arg(long)]
    json: bool,
}

/// The profiles, as flags spell them.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum BuildProfile {
    Full,
    Slim,
}

const BUILD_HELP: &str = "\
Packages come from Debian's mirror (NSBOX_DEBIAN_MIRROR names another) and from pip's index (PIP_INDEX_URL, pip.conf), by
the digests of the lock, and are kept in the store's cache. One lock gives one digest. `nsbox run` and `nsbox loop`
build sandbox and sandbox-slim at their first use.

Examples:
  nsbox image build
  nsbox image build --profile slim --name small
  nsbox run --image sandbox strategy.py";

/// Brings an image into the store: from an OCI layout, an archive of docker save, a root file system or a registry
#[derive(Debug, Parser)]
#[command(after_help = IMPORT_HELP)]
pub(super) struct Import {
    /// A folder or archive (tar; gzip, zstd or neither), or oci://HOST/NAME:TAG, with @sha256:... to pin it
    source: String,
    /// The name it gets; one that another image had is moved. Of several images in the source, chooses the one so named
    #[arg(long)]
    name: Option<String>,
    /// Bytes that it may unpack to
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "16g")]
    max_size: u64,
    /// Files, folders and links that it may have
    #[arg(long, value_name = "NUMBER", default_value_t = Limits::default().entries)]
    max_entries: u64,
    /// How many times its compressed size a layer may unpack to
    #[arg(long, value_name = "NUMBER", default_value_t = Limits::default().ratio)]
    max_ratio: u64,
    /// Speaks to a registry without TLS; one on a loopback address needs no leave
    #[arg(long)]
    plain_http: bool,
    /// Says nothing but the digest
    #[arg(long, short)]
    quiet: bool,
    /// Prints the result as JSON
    #[arg(long)]
    json: bool,
}

const IMPORT_HELP: &str = "\
Nothing of the image is run. Devices, set-id bits, file capabilities and extended attributes are left out, with a note.
A registry is trusted by the system's authorities, or by those in the file that SSL_CERT_FILE names.

Examples:
  nsbox image import image.tar --name sandbox
  docker save python:3.13-slim | zstd > python.tar.zst; nsbox image import python.tar.zst --name python
  nsbox image import oci://registry.example.org/quant/base:2026 --name base
  nsbox run --image base strategy.py";

/// Lists the images of the store
#[derive(Debug, Parser)]
pub(super) struct List {
    /// Prints them as JSON
    #[arg(long)]
    json: bool,
}

/// Shows what is known of an image: layers, sizes, packages
#[derive(Debug, Parser)]
pub(super) struct Inspect {
    /// Its name, its digest, or the start of that
    image: String,
    /// Prints it as JSON
    #[arg(long)]
    json: bool,
}

/// Compares every file and blob of images with the digests written at import
#[derive(Debug, Parser)]
#[command(after_help = "Exit status: 0 when all is as it was imported, 1 when something differs, 125 on wrong usage.")]
pub(super) struct Verify {
    /// Names or digests; all images where none is given
    images: Vec<String>,
    /// Says nothing but what differs
    #[arg(long, short)]
    quiet: bool,
    /// Prints the result as JSON
    #[arg(long)]
    json: bool,
}

/// Removes images; one that a run uses stays
#[derive(Debug, Parser)]
pub(super) struct Remove {
    /// Names, or digests: a name goes, and the image with its last; a digest takes all its names along
    #[arg(required = true)]
    images: Vec<String>,
    /// Prints the result as JSON
    #[arg(long)]
    json: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::usage(&error)
    }
}

pub(super) fn main(command: &Command) -> Result<u8, Failure> {
    match command {
        Command::Build(args) => build(args),
        Command::Import(args) => import(args),
        Command::List(args) => list(args),
        Command::Inspect(args) => inspect(args),
        Command::Verify(args) => verify(args),
        Command::Rm(args) => remove(args),
    }
}

fn build(args: &Build) -> Result<u8, Failure> {
    let store = Store::open()?;
    let profile = match args.profile {
        BuildProfile::Full => build::Profile::Full,
        BuildProfile::Slim => build::Profile::Slim,
    };
    let Ok(base) = args.base.parse();
    let (name, lock, offline) = (args.name.clone(), args.lock.clone(), args.offline || offline());
    let options = build::Options { profile, base, name, lock, epoch: None, offline };
    let bar = Bar::new(args.quiet);
    let built = build::build(&store, &options, &bar);
    bar.clear();
    let built = built.map_err(|error| Failure::usage(&error))?;
    if args.json {
        return print_json(&serde_json::json!({
            "name": built.name,
            "digest": built.imported.digest,
            "was_there": built.imported.was_there,
        }));
    }
    print(&built.imported.digest.to_string())?;
    Ok(0)
}

/// Whether the environment forbids a build to ask the network.
fn offline() -> bool {
    std::env::var_os("NSBOX_OFFLINE").is_some_and(|value| !value.is_empty() && value != "0")
}

/// Builds the production image at its first use, when its name is asked for and the store has none.
pub(super) fn ensure(image: &str, quiet: bool) -> Result<(), Failure> {
    let Some(profile) = build::Profile::of_image(image) else { return Ok(()) };
    let store = Store::open()?;
    if store.has_name(image)? {
        return Ok(());
    }
    let bar = Bar::new(quiet);
    bar.begin(&format!("the store has no image {image:?} yet: building it, once"), None);
    let options = build::Options { profile, offline: offline(), ..build::Options::default() };
    let built = build::build(&store, &options, &bar);
    bar.clear();
    built.map(|_| ()).map_err(|error| Failure::usage(&error))
}

fn import(args: &Import) -> Result<u8, Failure> {
    let store = Store::open()?;
    let Ok(source) = args.source.parse::<Source>();
    let limits = Limits { bytes: args.max_size, entries: args.max_entries, ratio: args.max_ratio };
    let options = Options { limits, plain_http: args.plain_http };
    let bar = Bar::new(args.quiet);
    let imported = store.import(&source, args.name.as_deref(), &options, &bar);
    bar.clear();
    let imported = imported?;
    if args.json {
        let json = serde_json::json!({
            "digest": imported.digest, "name": args.name, "was_there": imported.was_there, "notes": imported.notes,
        });
        return print_json(&json);
    }
    if !args.quiet {
        for note in &imported.notes {
            complain(&format!("note: {note}"));
        }
        if imported.was_there {
            complain("the store has this image already");
        }
    }
    print(&imported.digest.to_string())?;
    Ok(0)
}

fn list(args: &List) -> Result<u8, Failure> {
    let entries = Store::open()?.list()?;
    if args.json {
        return print_json(&entries);
    }
    let mut table = table(&["NAME", "DIGEST", "UNPACKED", "LAYERS", "FILES", "IMPORTED", "SOURCE"]);
    for Entry { names, record, .. } in &entries {
        table.add_row([
            if names.is_empty() { "-".to_owned() } else { names.join(", ") },
            record.digest.hex()[..12].to_owned(),
            BinaryBytes(record.totals.bytes).to_string(),
            BinaryBytes(record.layers.iter().map(|layer| layer.size).sum()).to_string(),
            record.totals.files.to_string(),
            record.imported.strftime("%Y-%m-%d %H:%M").to_string(),
            record.source.clone(),
        ]);
    }
    print(&table.trim_fmt())?;
    Ok(0)
}

fn inspect(args: &Inspect) -> Result<u8, Failure> {
    let found = Store::open()?.inspect(&args.image)?;
    if args.json {
        return print_json(&found);
    }
    let Inspection { entry: Entry { names, record, .. }, rootfs, layout, packages, .. } = &found;
    let totals = record.totals;
    let facts = [
        ("names", names.join(", ")),
        ("digest", record.digest.to_string()),
        ("config", record.config.to_string()),
        ("source", record.source.clone()),
        ("imported", record.imported.to_string()),
        ("files", format!("{} in {} folders, {} links", totals.files, totals.folders, totals.links)),
        ("size", BinaryBytes(totals.bytes).to_string()),
        ("rootfs", rootfs.display().to_string()),
        ("OCI layout", layout.display().to_string()),
    ];
    let mut table_of_facts = table(&[]);
    table_of_facts.add_rows(facts.map(|(key, value)| [key.to_owned(), value]));
    print(&format!("{}\n", table_of_facts.trim_fmt()))?;
    let mut layers = table(&["LAYER", "SIZE", "AS TAR"]);
    for layer in &record.layers {
        let sizes = [layer.size, layer.tar_size].map(|size| BinaryBytes(size).to_string());
        layers.add_row([&[layer.digest.to_string()][..], &sizes].concat());
    }
    print(&layers.trim_fmt())?;
    for note in &record.notes {
        print(&format!("note: {note}"))?;
    }
    let mut installed = table(&["PACKAGE", "VERSION", "OF"]);
    for package in packages {
        let manager = match package.manager {
            Manager::Dpkg => "dpkg",
            Manager::Python => "python",
        };
        installed.add_row([&package.name, &package.version, manager]);
    }
    print(&format!("\n{}", installed.trim_fmt()))?;
    Ok(0)
}

fn verify(args: &Verify) -> Result<u8, Failure> {
    let store = Store::open()?;
    let images = if args.images.is_empty() {
        store.list()?.into_iter().map(|entry| entry.record.digest.to_string()).collect()
    } else {
        args.images.clone()
    };
    let bar = Bar::new(args.quiet || args.json);
    let mut results = Vec::new();
    for image in images {
        let differences = store.verify(&image, &bar);
        bar.clear();
        results.push((image, differences?));
    }
    let differs = results.iter().any(|(_, differences)| !differences.is_empty());
    let status = if differs { DIFFERS } else { 0 };
    if args.json {
        let shown = |(image, differences)| serde_json::json!({ "image": image, "differences": differences });
        print_json(&results.into_iter().map(shown).collect::<Vec<_>>())?;
        return Ok(status);
    }
    for (image, differences) in results {
        if differences.is_empty() && !args.quiet {
            print(&format!("{image}: as it was imported"))?;
        }
        for difference in differences {
            print(&format!("{image}: {difference}"))?;
        }
    }
    Ok(status)
}

fn remove(args: &Remove) -> Result<u8, Failure> {
    let store = Store::open()?;
    let mut results = Vec::new();
    for image in &args.images {
        results.push((image, store.remove(image)?));
    }
    if args.json {
        let shown = |(image, digest)| serde_json::json!({ "image": image, "removed": digest });
        return print_json(&results.into_iter().map(shown).collect::<Vec<_>>());
    }
    for (image, digest) in results {
        match digest {
            Some(digest) => print(&format!("removed {digest}"))?,
            None => print(&format!("removed the name {image}; the image has others"))?,
        }
    }
    Ok(0)
}

/// A table without lines.
fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if !head.is_empty() {
        table.set_header(head);
    }
    table
}

/// Prints what may quote an image: the names of its files and packages.
fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout();
    let text = if stdout.is_terminal() { terminal::visible(text).into() } else { Cow::Borrowed(text) };
    Ok(writeln!(stdout, "{text}")?)
}

fn print_json(value: &impl serde::Serialize) -> Result<u8, Failure> {
    let mut stdout = io::stdout().lock();
    serde_json::to_writer_pretty(&mut stdout, value).map_err(io::Error::from)?;
    writeln!(stdout)?;
    Ok(0)
}
