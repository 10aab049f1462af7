//! The layers that init arms inside its namespaces, each tried alone.

use super::{Layer, Status};
use crate::image::Image;
use crate::sandbox::host::Host;
use crate::sandbox::probe::{Namespace, Prober, Seen};
use crate::sandbox::{Error, chain, knob, landlock};

/// What follows from a refused user namespace.
const NO_NAMESPACE: &str = "it takes a user namespace";

/// The finding where not even the probes could be prepared: the guest's user or the seccomp profile.
pub(super) fn unprepared(error: &Error) -> Layer {
    let (layer, knob) = match error {
        Error::Seccomp(_) => ("seccomp", "another --seccomp profile: default, strict or the path of a valid one"),
        _ => ("user_namespace", "Linux 5.12 or newer, and free descriptors (ulimit -n)"),
    };
    Layer::refused(layer, "preparing a run", chain(error), vec![knob.to_owned()])
}

/// Tries them; `image` is what a run would have as its root.
pub(super) fn examine(prober: &Prober<'_>, image: Option<&Image>, host: &Host) -> Vec<Layer> {
    let tried = "cloning init into one and becoming the guest's user in it";
    let seen = match prober.user() {
        Ok(seen) => seen,
        Err(error @ Error::UserMap(_)) => return no_user_map(tried, &error),
        Err(error) => return no_user_namespace(tried, error, host),
    };
    let most =
        host.max_user_namespaces().map_or(String::new(), |most| format!(", of {most} (user.max_user_namespaces)"));
    let mut layers = vec![Layer::allowed("user_namespace", tried, format!("made one{most}"))];
    layers.push(user_map(seen));
    layers.extend(Namespace::ALL.map(|kind| namespace(prober, kind, host)));
    layers.push(simple("tmpfs", "mounting one with size and nr_inodes", "mounted it", prober.tmpfs(), host));
    layers.push(simple("procfs", "mounting one with subset=pid", "mounted it", prober.proc(), host));
    let tried = "binding the image read-only and pivoting into it";
    let root = match image {
        Some(image) => simple("root", tried, "mounted it", prober.root(image), host),
        None => Layer::untried("root", "there is no image"),
    };
    let has_root = root.status == Status::Allowed;
    layers.push(root);
    layers.push(simple(
        "capabilities",
        "emptying every capability set and setting no_new_privs",
        "none is left, and none can come back",
        prober.capabilities(),
        host,
    ));
    layers.push(simple(
        "seccomp",
        "installing the filter and receiving its listener",
        "the filter holds, and refused calls are reported",
        prober.seccomp(),
        host,
    ));
    layers.push(landlock_layer(prober, image.filter(|_| has_root)));
    layers.push(memfd_noexec(prober));
    layers.push(rlimits(prober));
    layers.push(clone3(seen));
    layers
}

fn no_user_namespace(tried: &str, error: Error, host: &Host) -> Vec<Layer> {
    let mut layers = vec![simple("user_namespace", tried, "", Err(error), host)];
    layers.push(Layer::untried("user_map", NO_NAMESPACE));
    layers.extend(untried(NO_NAMESPACE));
    layers
}

/// The guest could only be root of the host.
fn no_user_map(tried: &str, error: &Error) -> Vec<Layer> {
    let knobs = vec!["run nsbox as an ordinary user, or grant it CAP_SETUID and CAP_SETGID of the host".to_owned()];
    let mut layers = vec![Layer::allowed("user_namespace", tried, "made one, but the guest cannot be anybody in it")];
    layers.push(Layer::refused("user_map", "looking for an id that owns nothing", chain(error), knobs));
    layers.extend(untried("it takes a user map"));
    layers
}

/// The layers that come after the user map.
fn untried(why: &str) -> impl Iterator<Item = Layer> {
    let walls = ["tmpfs", "procfs", "root", "capabilities", "seccomp"];
    let walls = Namespace::ALL.map(layer_of).into_iter().chain(walls).map(move |layer| Layer::untried(layer, why));
    let others = ["landlock", "memfd_noexec", "rlimits", "clone3"];
    walls.chain(others.map(move |layer| Layer::untried(layer, why).optional()))
}

fn layer_of(kind: Namespace) -> &'static str {
    match kind {
        Namespace::Mount => "mount_namespace",
        Namespace::Pid => "pid_namespace",
        Namespace::Net => "net_namespace",
        Namespace::Ipc => "ipc_namespace",
        Namespace::Uts => "uts_namespace",
        Namespace::Cgroup => "cgroup_namespace",
    }
}

fn namespace(prober: &Prober<'_>, kind: Namespace, host: &Host) -> Layer {
    simple(layer_of(kind), "making one in a user namespace", "made one", prober.namespace(kind), host)
}

fn user_map(seen: Seen) -> Layer {
    let (uid, gid) = seen.host_ids;
    let found = format!("the guest's 1000 is uid {uid} and gid {gid} out here");
    Layer::allowed("user_map", "writing uid_map and gid_map, with setgroups denied", found)
}

fn landlock_layer(prober: &Prober<'_>, image: Option<&Image>) -> Layer {
    let tried = "enforcing the rules on a child in the image's root";
    let Some(image) = image else { return Layer::untried("landlock", "there is no root").optional() };
    let boot = "a kernel with CONFIG_SECURITY_LANDLOCK, and landlock in its lsm= boot parameter";
    let layer = match landlock::abi() {
        None => Layer::refused("landlock", tried, "the kernel offers none", vec![boot.to_owned()]),
        Some(abi) => match prober.landlock(image, abi) {
            Err(error) => Layer::refused("landlock", tried, chain(&error), vec![boot.to_owned()]),
            Ok(_) if abi < landlock::SCOPED => Layer {
                status: Status::Degraded,
                knobs: vec!["Linux 6.12 or newer".to_owned()],
                ..Layer::allowed(
                    "landlock",
                    tried,
                    format!("ABI {abi}, which knows no scopes: namespaces alone keep signals in"),
                )
            },
            Ok(_) => Layer::allowed("landlock", tried, format!("ABI {abi}")),
        },
    };
    layer.optional()
}

fn memfd_noexec(prober: &Prober<'_>) -> Layer {
    let tried = "writing vm.memfd_noexec=2 in a pid namespace";
    let layer = match prober.memfd_noexec() {
        // As strong: the filter refuses to make an executable memfd in the first place.
        None => Layer::allowed(
            "memfd_noexec",
            "looking for vm.memfd_noexec and the right to write it",
            "not to be had, so the seccomp filter refuses memfd_create without MFD_NOEXEC_SEAL",
        ),
        Some(Ok(_)) => Layer::allowed("memfd_noexec", tried, "memfds cannot be executed"),
        Some(Err(error)) => {
            let knobs = vec!["mount /proc writable, or run nsbox as an ordinary user".to_owned()];
            Layer::refused("memfd_noexec", tried, chain(&error), knobs)
        }
    };
    layer.optional()
}

fn rlimits(prober: &Prober<'_>) -> Layer {
    let tried = "setting each limit in a child";
    let layer = match prober.rlimits() {
        Err(error) => {
            Layer::refused("rlimits", tried, chain(&error), vec!["raise the hard limits (ulimit -H)".to_owned()])
        }
        Ok(limits) => {
            let lower: Vec<_> = limits.iter().filter(|limit| limit.applied < limit.configured).collect();
            if lower.is_empty() {
                Layer::allowed("rlimits", tried, "all as configured")
            } else {
                let names =
                    lower.iter().map(|limit| format!("{}={}, not {}", limit.name, limit.applied, limit.configured));
                let found = names.collect::<Vec<_>>().join("; ");
                let knobs = lower.iter().map(|limit| knob::rlimit(limit.name, limit.configured)).collect();
                Layer { status: Status::Degraded, knobs, ..Layer::allowed("rlimits", tried, found) }
            }
        }
    };
    layer.optional()
}

fn clone3(seen: Seen) -> Layer {
    let tried = "calling it first for each namespace above";
    if seen.clone3 {
        return Layer::allowed("clone3", tried, "it made them").optional();
    }
    Layer {
        status: Status::Degraded,
        knobs: vec![
            "none needed; a seccomp filter around this process that allows clone3 saves one write per run".to_owned(),
        ],
        ..Layer::allowed(
            "clone3",
            tried,
            "a filter refuses it: clone took its place, and init enters its cgroup by itself",
        )
    }
    .optional()
}

/// What came of a probe, with the knobs that a run of the same refusal names.
fn simple(layer: &'static str, tried: &str, found: &str, result: Result<Seen, Error>, host: &Host) -> Layer {
    match result {
        Ok(_) => Layer::allowed(layer, tried, found),
        Err(error) => {
            let mut knobs = knob::of(&error, host);
            if knobs.is_empty() {
                knobs.push(knob::JOURNAL.to_owned());
            }
            Layer::refused(layer, tried, chain(&error), knobs)
        }
    }
}
