//! Turns the built-in check policy into JSON: YAML is for its readers, but costs a cold run more to parse than the check.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=config/policy.yaml");
    let policy: serde_json::Value = serde_yaml::from_str(&fs::read_to_string("config/policy.yaml")?)?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?).join("policy.json");
    fs::write(out, policy.to_string())?;
    Ok(())
}
