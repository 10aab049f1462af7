//! The file system: what is there, what can be written, how it is mounted, who owns it; and who the guest is.

use nsbox::outcome::{LayerStatus, Verdict};
use serde_json::{Value, json};

use crate::harness::{self, folder, inside, is_root, said, script};

#[test]
fn only_the_private_tmpfs_can_be_written() {
    let source = r"
import errno, json, os
def attempt(act):
    try:
        act()
        return 'ok'
    except OSError as error:
        return errno.errorcode[error.errno]
def touch(folder):
    path = os.path.join(folder, 'nsbox-was-here')
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    os.unlink(path)
import sys
folders = ['/', '/usr', '/usr/bin', '/etc', '/dev', '/run', '/proc', '/input', os.path.dirname(os.__file__)]
print(json.dumps({
    'closed': {folder: attempt(lambda: touch(folder)) for folder in folders},
    'open': {folder: attempt(lambda: touch(folder)) for folder in ('/tmp', '/work', '/dev/shm')},
    'interpreter': attempt(lambda: os.close(os.open(os.path.realpath(sys.executable), os.O_WRONLY))),
    'chmod': attempt(lambda: os.chmod('/usr/bin', 0o777)),
    'unlink': attempt(lambda: os.unlink('/etc/passwd')),
    'rename': attempt(lambda: os.rename('/etc', '/tmp/etc')),
}))
";
    if is_root() {
        // Only the acts that leave no trace.
        let (harmless, _) = source.split_once("    'interpreter'").expect("the first act that is not");
        let outside = harness::outside(&format!("{harmless}}}))"));
        for folder in ["/", "/usr", "/usr/bin", "/etc"] {
            assert_eq!(outside["closed"][folder], "ok", "{folder}");
        }
    }
    let inside = said(&inside("writes", source, &[]));
    for (folder, how) in inside["closed"].as_object().expect("an object") {
        // Whose permissions answer first differs by folder; /proc has no such files at all.
        let refused = ["EROFS", "EACCES", "EPERM", "ENOENT"].iter().any(|errno| how == errno);
        assert!(refused, "{folder}: {how}");
    }
    for (folder, how) in inside["open"].as_object().expect("an object") {
        assert_eq!(how, "ok", "{folder}");
    }
    for act in ["interpreter", "chmod", "unlink", "rename"] {
        assert_ne!(inside[act], "ok", "{act}");
    }
}

#[test]
fn hosts_files_are_not_there() {
    let secret = folder().join("host-secret");
    std::fs::write(&secret, "secret").expect("a file");
    let source = format!(
        "import json, os\npaths = ['/etc/shadow', '/root', '/home', '/var', '/sys', '/boot', '/mnt', '/opt', '/srv', {:?},\n\
         '/proc/1/root/etc/shadow', '/proc/self/root/etc/shadow', '/work/../etc/shadow', '/tmp/../../../../etc/shadow', '/sys/fs/cgroup']\n\
         print(json.dumps([path for path in paths if os.path.lexists(path)]))",
        secret.display().to_string()
    );
    let outside = harness::outside(&source);
    assert!(outside.as_array().expect("a list").len() >= 5, "{outside}");
    assert_eq!(said(&inside("absent", &source, &[])), json!([]));
}

#[test]
fn writable_mounts_are_nosuid_nodev_noexec_and_the_rest_read_only() {
    let source = "import json\nprint(json.dumps(open('/proc/self/mountinfo').read()))";
    let outside = harness::outside(source);
    let host = outside.as_str().expect("text");
    assert!(host.lines().any(|line| line.split(' ').nth(4) == Some("/")), "{host}");
    let mountinfo =
        said(&inside("mounts", source, &["--input", &format!("data={}", script("data.csv", "1").display())]));
    let mut writable = Vec::new();
    for line in mountinfo.as_str().expect("text").lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let (target, options) = (fields[4], fields[5].split(',').collect::<Vec<_>>());
        assert!(options.contains(&"nosuid"), "{line}");
        assert!(options.contains(&"nodev") || target.starts_with("/dev/"), "{line}");
        if options.contains(&"rw") {
            assert!(options.contains(&"noexec"), "{line}");
            writable.push(target.to_owned());
        }
        let kind = fields[fields.iter().position(|field| *field == "-").expect("a separator") + 1];
        assert!(!["cgroup", "cgroup2", "sysfs", "devpts", "mqueue", "debugfs"].contains(&kind), "{line}");
        if kind == "proc" {
            assert!(line.ends_with("subset=pid"), "{line}");
        }
    }
    writable.sort();
    writable.dedup();
    assert_eq!(writable, ["/dev/shm", "/proc", "/tmp", "/work"]);
}

#[test]
fn cgroup_files_and_release_agents_are_absent() {
    let source = r"
import json, os
found = [os.path.join(folder, file) for folder, _, files in os.walk('/') if not folder.startswith('/proc')
         for file in files if file in ('release_agent', 'cgroup.procs', 'tasks', 'notify_on_release')]
print(json.dumps({'files': found, 'cgroup': open('/proc/self/cgroup').read()}))
";
    let found = said(&inside("cgroupfs", source, &[]));
    assert_eq!(found["files"], json!([]));
    for line in found["cgroup"].as_str().expect("text").lines() {
        assert!(!line.contains("nsbox-"), "the guest learns its place in the host's tree: {line}");
    }
}

/// What the kernel says of every thread of the guest, from the inside.
#[test]
fn every_thread_is_without_capabilities_and_under_the_filter() {
    let source = r"
import json, os, subprocess, sys, threading
def status(text):
    wanted = ('CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb', 'NoNewPrivs', 'Seccomp', 'Uid', 'Gid', 'Groups')
    fields = (line.partition(':') for line in text.splitlines())
    return {name: value.split() for name, _, value in fields if name in wanted}
release = threading.Event()
threads = [threading.Thread(target=release.wait) for _ in range(3)]
for thread in threads: thread.start()
found = [status(open(f'/proc/self/task/{task}/status').read()) for task in os.listdir('/proc/self/task')]
release.set()
program = f'import json\n' + 'print(open(\'/proc/self/status\').read())'
child = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True).stdout
found.append(status(child))
print(json.dumps(found))
";
    let outside: Value = harness::outside(source);
    assert_eq!(outside[0]["Seccomp"], json!(["0"]), "the suite itself is filtered: {outside}");
    let outcome = inside("status", source, &[]);
    let threads = said(&outcome);
    assert_eq!(threads.as_array().expect("a list").len(), 5);
    for status in threads.as_array().expect("a list") {
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status[set], json!(["0000000000000000"]), "{set}");
        }
        assert_eq!((&status["NoNewPrivs"], &status["Seccomp"]), (&json!(["1"]), &json!(["2"])));
        assert_eq!(status["Uid"], json!(["1000", "1000", "1000", "1000"]));
        assert_eq!(status["Gid"], json!(["1000", "1000", "1000", "1000"]));
        if is_root() {
            assert_eq!(status["Groups"], json!([]));
        }
    }
    let walls = &outcome.enforced;
    for wall in
        [&walls.namespaces, &walls.user_map, &walls.root, &walls.capabilities, &walls.no_new_privs, &walls.seccomp]
    {
        assert_eq!(wall.status, LayerStatus::Applied, "{wall:?}");
    }
}

/// What the kernel says of a running guest, from the outside.
#[test]
fn guest_is_never_the_hosts_root() {
    let marker = format!("owner-{}", std::process::id());
    let path = script(&format!("{marker}.py"), "import time\nprint('up')\ntime.sleep(30)\n");
    let mut launcher = harness::command(&path, &[]).stdout(std::process::Stdio::piped()).spawn().expect("nsbox starts");
    let guest = harness::wait_for_guest(&marker);
    let status = std::fs::read_to_string(format!("/proc/{guest}/status")).expect("the guest's status");
    let map = std::fs::read_to_string(format!("/proc/{guest}/uid_map")).expect("the guest's map");
    let groups = std::fs::read_to_string(format!("/proc/{guest}/setgroups")).expect("the guest's setgroups");
    let ids = |name: &str| -> Vec<u32> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
        line.split_whitespace().map(|id| id.parse().expect("an id")).collect()
    };
    let (uids, gids) = (ids("Uid:"), ids("Gid:"));
    harness::end(&mut launcher);
    assert!(uids.iter().chain(&gids).all(|id| *id != 0), "{status}");
    assert_eq!(groups.trim(), "deny");
    let map: Vec<u32> = map.split_whitespace().map(|word| word.parse().expect("a number")).collect();
    assert_eq!(map, [1000, uids[0], 1], "one id is mapped, and it is not root's");
    if is_root() {
        assert!(uids[0] > 65536, "an id that owns nothing: {}", uids[0]);
        assert_eq!(ids("Groups:"), [0_u32; 0]);
    }
}

#[test]
fn files_of_the_guest_belong_to_it_alone() {
    let source = r"
import json, os
open('/tmp/own', 'w').close()
print(json.dumps([[os.stat(path).st_uid, os.stat(path).st_gid] for path in ('/tmp/own', '/work', '/', '/usr/bin')]))
";
    let owners = said(&inside("owners", source, &[]));
    assert_eq!(owners[0], json!([1000, 1000]));
    assert_eq!(owners[1], json!([1000, 1000]));
    if is_root() {
        // What root owns outside is nobody's inside.
        assert_eq!((&owners[2], &owners[3]), (&json!([65534, 65534]), &json!([65534, 65534])));
    }
}

#[test]
fn one_run_leaves_nothing_for_the_next() {
    let write = "for folder in ('/tmp', '/work', '/dev/shm'): open(folder + '/left', 'w').write('secret')\n";
    assert_eq!(inside("leave-files", write, &[]).verdict, Verdict::Ok);
    let look = "import json, os\nprint(json.dumps([f for f in ('/tmp/left', '/work/left', '/dev/shm/left') if os.path.exists(f)]))";
    assert_eq!(said(&inside("look-for-files", look, &[])), json!([]));
}
