//! Prepares what the library embeds: the freestanding init and the zygote's extension module (`src/sys/init`), the built-in check policy as JSON
//! (YAML is for its readers, but costs a cold run more to parse than the check itself), and a name for the content of the
//! guest's own Python, so that two versions of nsbox can share one store.

use std::error::Error;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    compile_init(&out.join("nsbox-init"))?;
    compile_module(&out.join("nsbox-module.so"))?;
    convert_policy(&out.join("policy.json"))?;
    pack_relocations();
    println!("cargo::rustc-env=GUEST_DIGEST={:016x}", guest_digest()?);
    Ok(())
}

/// Compiles one of the freestanding programs of `src/sys/init`.
fn compile(source: &str, name: &str, kind: &str, arguments: &[&str], output: &Path) -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=src/sys/init");
    println!("cargo::rerun-if-changed=src/sys/program.rs");
    let status = Command::new(env::var_os("RUSTC").ok_or("RUSTC is not set")?)
        .args([source, "--crate-name", name, "--crate-type", kind, "--edition", "2024"])
        .args(["--target", &env::var("TARGET")?, "-o"])
        .arg(output)
        .args(["-C", "opt-level=s", "-C", "panic=abort", "-C", "strip=symbols", "-C", "linker=cc"])
        .args(["-C", "link-arg=-nostdlib", "-C", "link-arg=-nostartfiles"])
        .args(arguments.iter().flat_map(|argument| ["-C", argument]))
        .status()?;
    if status.success() { Ok(()) } else { Err(format!("{source} does not compile").into()) }
}

fn compile_init(output: &Path) -> Result<(), Box<dyn Error>> {
    // One page of headers, no build id and no page alignment between segments: fewer pages to map at each start.
    let small = "link-arg=-Wl,--build-id=none,-z,norelro,-z,noseparate-code";
    let arguments = ["relocation-model=static", "link-arg=-static", small];
    compile("src/sys/init/main.rs", "nsbox_init", "bin", &arguments, output)
}

/// Has the command's relocations packed, half a megabyte less to read at each start. The loader of glibc knows that form
/// since 2.36, and a binary wants no older one than it was built with.
fn pack_relocations() {
    let said = Command::new("getconf").arg("GNU_LIBC_VERSION").output().map(|output| output.stdout).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let version = said.trim().strip_prefix("glibc ").and_then(|version| version.split_once('.'));
    let version = version.and_then(|(major, minor)| Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?)));
    if version.is_some_and(|version| version >= (2, 36)) && env::var("HOST") == env::var("TARGET") {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The zygote's extension module; the interpreter's symbols are found when it is loaded.
fn compile_module(output: &Path) -> Result<(), Box<dyn Error>> {
    compile(
        "src/sys/init/module.rs",
        "nsbox_module",
        "cdylib",
        &["relocation-model=pic", "link-arg=-Wl,--build-id=none,-z,now"],
        output,
    )
}

fn convert_policy(output: &Path) -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=config/policy.yaml");
    let policy: serde_json::Value = serde_yaml::from_str(&fs::read_to_string("config/policy.yaml")?)?;
    Ok(fs::write(output, policy.to_string())?)
}

/// A name for the content of `rootfs/guest` and of the extension module: it tells versions apart, it does not guard against forgery.
fn guest_digest() -> Result<u64, Box<dyn Error>> {
    println!("cargo::rerun-if-changed=rootfs/guest");
    let files =
        fs::read_dir("rootfs/guest")?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, std::io::Error>>();
    let mut files: Vec<PathBuf> =
        files?.into_iter().filter(|file| file.extension().is_some_and(|e| e == "py")).collect();
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in files {
        (&file, fs::read(&file)?).hash(&mut hasher);
    }
    for file in [
        "src/sys/program.rs",
        "src/sys/init/code.rs",
        "src/sys/init/execute.rs",
        "src/sys/init/heap.rs",
        "src/sys/init/huge.rs",
        "src/sys/init/layout.rs",
        "src/sys/init/libraries.rs",
        "src/sys/init/immortal.rs",
        "src/sys/init/module.rs",
        "src/sys/init/restorer.rs",
        "src/sys/init/restorer/pages.rs",
    ] {
        (file, fs::read(file)?).hash(&mut hasher);
    }
    Ok(hasher.finish())
}
