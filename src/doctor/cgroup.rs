//! The cgroup: where it is, and whether each required controller can be used there.

use std::io;

use super::Layer;
use crate::sandbox::cgroup::{Error, Hierarchy, Owner};
use crate::sandbox::chain;
use crate::sandbox::knob;
use crate::sandbox::probe::Prober;

/// The layers of the controllers, in the order of their limit files.
const LAYERS: [&str; 3] = ["cgroup_memory", "cgroup_pids", "cgroup_cpu"];

/// Makes a cgroup with the limits of a run and puts a child in it; without a prober, makes an empty one.
pub(super) fn examine(prober: Option<&Prober<'_>>) -> Vec<Layer> {
    let tried = "reading the mounts and this process's membership";
    let owner = match Owner::current() {
        Ok(owner) => owner,
        Err(error) => {
            let knobs = vec!["mount /proc".to_owned()];
            return vec![Layer::refused("cgroup", tried, error.to_string(), knobs)];
        }
    };
    let hierarchy = match Hierarchy::discover(&owner, true) {
        Ok(hierarchy) => hierarchy,
        Err(error) => return none(tried, &error),
    };
    let place = hierarchy.to_string();
    let tried = "making one with every limit of a run, a child in it";
    let result = prober.map(|prober| prober.cgroup(&hierarchy, &owner));
    if let Some(Ok(files)) = result {
        let mut layers = vec![Layer::allowed("cgroup", tried, place)];
        layers.extend(
            LAYERS
                .into_iter()
                .zip(files)
                .map(|(layer, file)| Layer::allowed(layer, "setting the limit and reading it back", file)),
        );
        return layers;
    }
    let each = hierarchy.try_each(&owner);
    let folders: Vec<_> = hierarchy.parents().into_iter().map(|folder| folder.display().to_string()).collect();
    let mut knobs = if hierarchy.version() == 2 { knob::cgroup_v2() } else { knob::cgroup_v1(&folders) };
    let is_read_only = |error: &io::Error| error.kind() == io::ErrorKind::ReadOnlyFilesystem;
    if each.iter().any(|(_, _, outcome)| outcome.as_ref().is_err_and(is_read_only)) {
        knobs.insert(0, knob::CGROUP_RW.to_owned());
    }
    let mut layers = vec![match &result {
        Some(Err(error)) => Layer::refused("cgroup", tried, format!("{place}: {}", chain(error)), knobs.clone()),
        _ => Layer::untried("cgroup", "no process can be started for it"),
    }];
    for (layer, (_, folder, outcome)) in LAYERS.into_iter().zip(each) {
        let tried = "making an empty cgroup";
        let place = folder.display();
        layers.push(match outcome {
            Ok(()) => Layer::allowed(layer, tried, format!("made one in {place}")),
            Err(error) => Layer::refused(layer, tried, format!("{place}: {error}"), knobs.clone()),
        });
    }
    layers
}

/// There is no place for cgroups.
fn none(tried: &str, error: &Error) -> Vec<Layer> {
    let knobs = knob::no_cgroup(error);
    let mut layers = vec![Layer::refused("cgroup", tried, chain(error), knobs.clone())];
    for (layer, name) in LAYERS.into_iter().zip(["memory", "pids", "cpu"]) {
        layers.push(match error {
            Error::NoController { missing } if missing.split(", ").any(|missing| missing == name) => {
                Layer::refused(layer, tried, "not offered to this process", knobs.clone())
            }
            Error::NoController { .. } => Layer::untried(layer, "offered, but the others are missing"),
            _ => Layer::untried(layer, "there is no place for a cgroup"),
        });
    }
    layers
}
