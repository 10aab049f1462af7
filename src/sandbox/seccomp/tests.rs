//! Tests of the built-in profiles, of what they compile to, and of the errors that other profiles meet.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use super::profile::Condition;
use super::*;

mod agreement;

const ARCHES: [Arch; 2] = [Arch::X86_64, Arch::Aarch64];
const PROFILES: [&str; 2] = ["default", "strict"];
/// One past the last number that any table of today knows, with room for what is newer.
const NUMBERS: u32 = 1024;

fn builtin(name: &str) -> Profile {
    Profile::builtin(name).unwrap()
}

fn verdict(profile: &str, call: &str, args: &[u64]) -> u32 {
    verdict_with(profile, call, args, Options::default())
}

fn verdict_with(profile: &str, call: &str, args: &[u64], options: Options) -> u32 {
    let mut six = [0; 6];
    six[..args.len()].copy_from_slice(args);
    let number = options.arch.number(call).unwrap().cast_signed();
    builtin_program(profile, options).unwrap().run(options.arch.audit(), number, &six)
}

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILLED: u32 = libc::SECCOMP_RET_USER_NOTIF | KILL;

fn refused(errno: i32) -> u32 {
    libc::SECCOMP_RET_USER_NOTIF | errno.cast_unsigned()
}

#[test]
fn builtin_profiles_list_every_system_call_once_and_say_why() {
    for name in PROFILES {
        let profile = builtin(name);
        let listed: BTreeSet<&str> =
            profile.entries.iter().flat_map(|entry| &entry.names).map(String::as_str).collect();
        for arch in ARCHES {
            let missing: Vec<_> =
                (0..NUMBERS).filter_map(|number| arch.name(number)).filter(|call| !listed.contains(call)).collect();
            assert!(missing.is_empty(), "{name}, {arch:?}: not decided on: {missing:?}");
        }
        let mut seen: BTreeMap<&str, Vec<&[Condition]>> = BTreeMap::new();
        for entry in &profile.entries {
            assert!(entry.comment.len() > 8, "{name}: {:?} does not say why", entry.names);
            for call in &entry.names {
                assert!(ARCHES.iter().any(|arch| arch.number(call).is_some()), "{name}: {call} is of neither machine");
                let earlier = seen.entry(call).or_default();
                let alone = !entry.conditions.is_empty() && earlier.iter().all(|other| !other.is_empty());
                assert!(earlier.is_empty() || alone, "{name}: {call} is listed with and without conditions, or twice");
                assert!(!earlier.contains(&entry.conditions.as_slice()), "{name}: {call} repeats a condition");
                earlier.push(&entry.conditions);
            }
        }
    }
}

#[test]
fn builtin_profiles_are_ones_that_docker_takes() {
    for name in PROFILES {
        let json: serde_json::Value = serde_json::from_str(Profile::builtin_text(name).unwrap()).unwrap();
        assert!(json.get("architectures").is_none(), "Docker takes either architectures or archMap");
        for entry in json["syscalls"].as_array().unwrap() {
            let action = entry["action"].as_str().unwrap();
            assert!(matches!(action, "SCMP_ACT_ALLOW" | "SCMP_ACT_ERRNO" | "SCMP_ACT_KILL_PROCESS"), "{entry}");
            assert_eq!(entry.get("errnoRet").is_some(), action == "SCMP_ACT_ERRNO", "{entry}");
        }
        // The container runtime's own types read it, but for what only Docker's engine knows.
        let oci: oci_spec::runtime::LinuxSeccomp = serde_json::from_value(json).unwrap();
        assert_eq!(oci.default_errno_ret(), Some(38));
    }
}

#[test]
fn int_arguments_are_compared_as_the_kernel_reads_them() {
    for high in [0, 1 << 32, 0xffff_ffff << 32] {
        assert_eq!(verdict("default", "ioctl", &[0, high | 0x5412]), refused(libc::EPERM), "TIOCSTI");
        assert_eq!(verdict("default", "ioctl", &[0, high | 0x541c]), refused(libc::EPERM), "TIOCLINUX");
        assert_eq!(verdict("default", "ioctl", &[0, high | 0x5401]), ALLOW, "TCGETS");
        assert_ne!(verdict("default", "clone", &[high | 0x1000_0011]), ALLOW, "CLONE_NEWUSER");
        assert_ne!(verdict("default", "socket", &[high | 40, 1, 0]), ALLOW, "AF_VSOCK");
        assert_ne!(verdict("default", "personality", &[high | 0x40000]), ALLOW, "ADDR_NO_RANDOMIZE");
        assert_eq!(verdict("default", "memfd_create", &[0, high | 0x11]), refused(libc::EACCES), "MFD_EXEC");
        assert_eq!(verdict("default", "mknodat", &[0, 0, high | 0o020_666, 0]), refused(libc::EPERM), "device");
        assert_eq!(verdict("default", "mknodat", &[0, 0, high | 0o010_666, 0]), ALLOW, "FIFO");
    }
}

#[test]
fn default_profile_runs_python_and_its_libraries() {
    // fork and threads as the C library makes them.
    assert_eq!(verdict("default", "clone", &[0x0120_0011]), ALLOW);
    assert_eq!(verdict("default", "clone", &[0x003d_0f00]), ALLOW);
    assert_eq!(verdict("default", "clone", &[0x0000_4111]), ALLOW, "vfork of posix_spawn");
    assert_eq!(verdict("default", "clone3", &[]), libc::SECCOMP_RET_ERRNO | 38, "falls back, unreported");
    assert_eq!(verdict("default", "socket", &[1, 0x8_0001, 0]), ALLOW);
    assert_eq!(verdict("default", "socket", &[2, 0x8_0002, 17]), ALLOW, "fails at connect, clearly");
    assert_eq!(verdict("default", "socket", &[2, 1, 132]), refused(libc::ENOSYS), "SCTP");
    assert_eq!(verdict("default", "socket", &[16, 3, 0]), libc::SECCOMP_RET_ERRNO | 97, "getaddrinfo's netlink");
    assert_eq!(verdict("default", "memfd_create", &[0, 1]), ALLOW);
    let rootless = Options { require_memfd_noexec: true, ..Options::default() };
    assert_eq!(verdict_with("default", "memfd_create", &[0, 1], rootless), refused(libc::EACCES));
    assert_eq!(verdict_with("default", "memfd_create", &[0, 9], rootless), ALLOW);
    assert_eq!(verdict_with("default", "memfd_create", &[0, 0x18], rootless), refused(libc::EACCES));
}

#[test]
fn strict_profile_has_threads_and_neither_processes_nor_addressable_sockets() {
    assert_eq!(verdict("strict", "clone", &[0x003d_0f00]), ALLOW);
    assert_eq!(verdict("strict", "clone", &[0x0120_0011]), refused(libc::EPERM));
    assert_eq!(verdict("strict", "execve", &[]), refused(libc::EPERM));
    assert_eq!(verdict("strict", "socketpair", &[1, 0x8_0801, 0]), ALLOW);
    assert_eq!(verdict("strict", "socketpair", &[1, 0x8_0002, 0]), refused(libc::EPERM));
    assert_eq!(verdict("strict", "socket", &[1, 1, 0]), refused(libc::EPERM));
}

#[test]
fn shared_host_ipc_leaves_no_socket_that_reaches_the_host() {
    let options = Options { shares_host: true, ..Options::default() };
    for call in ["socket", "connect", "bind", "shmget", "semget", "msgget", "mq_open", "setsid", "setpgid"] {
        assert_eq!(verdict_with("default", call, &[1, 1, 0], options), refused(libc::EACCES), "{call}");
    }
    assert_eq!(verdict_with("default", "socketpair", &[1, 0x8_0001], options), ALLOW);
    assert_eq!(verdict_with("default", "socketpair", &[1, 0x8_0003], options), refused(libc::EACCES));
    for (pid, expected) in [
        (0, refused(libc::EACCES)),
        (u64::MAX, refused(libc::EACCES)),
        (0xffff_fff0, refused(libc::EACCES)),
        (7, ALLOW),
    ] {
        assert_eq!(verdict_with("default", "kill", &[pid, 9], options), expected, "{pid}");
    }
    for (call, own, other) in
        [("prlimit64", [0, 7], [7, 7]), ("setpriority", [0, 0], [0, 7]), ("setpriority", [0, 0], [2, 0])]
    {
        assert_eq!(verdict_with("default", call, &own, options), ALLOW, "{call}");
        assert_eq!(verdict_with("default", call, &other, options), refused(libc::EACCES), "{call}");
    }
}

#[test]
fn shared_host_leaves_no_file_uncounted_and_none_of_the_host_changed() {
    let options = Options { shares_host: true, ..Options::default() };
    let verdict = |call: &str, args: &[u64]| verdict_with("default", call, args, options);
    for call in
        ["chmod", "fchownat", "utimensat", "setxattr", "inotify_add_watch", "truncate", "openat2", "memfd_create"]
    {
        assert_eq!(verdict(call, &[0; 4]), refused(libc::EACCES), "{call}");
    }
    for call in ["shmat", "shmctl", "semop", "msgsnd", "mq_unlink"] {
        assert_eq!(verdict(call, &[0; 4]), refused(libc::EACCES), "{call}");
    }
    let flags = |flags: i32| u64::from(flags.unsigned_abs());
    assert_eq!(verdict("openat", &[0, 0, flags(libc::O_TMPFILE | libc::O_RDWR)]), refused(libc::EACCES));
    assert_eq!(verdict("openat", &[0, 0, flags(libc::O_TRUNC)]), refused(libc::EACCES));
    for honest in [
        libc::O_RDONLY | libc::O_DIRECTORY,
        libc::O_WRONLY | libc::O_TRUNC | libc::O_CREAT,
        libc::O_RDWR | libc::O_TRUNC,
    ] {
        assert_eq!(verdict("openat", &[0, 0, flags(honest)]), ALLOW, "{honest:#o}");
        assert_eq!(verdict("open", &[0, flags(honest)]), ALLOW, "{honest:#o}");
    }
    for (mode, expected) in
        [(0o777, ALLOW), (0o700, ALLOW), (0o300, refused(libc::EACCES)), (0o077, refused(libc::EACCES))]
    {
        assert_eq!(verdict("mkdir", &[0, mode]), expected, "{mode:o}");
        assert_eq!(verdict("mkdirat", &[0, 0, mode]), expected, "{mode:o}");
        assert_eq!(verdict("umask", &[!mode & 0o777]), expected, "{mode:o}");
    }
}

#[test]
fn held_signals_reach_nobody() {
    let options = Options { holds_signals: true, ..Options::default() };
    for call in ["kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal"] {
        assert_eq!(verdict_with("default", call, &[7, 7, 9], options), refused(libc::EACCES), "{call}");
    }
    for (command, expected) in [(libc::F_SETOWN, refused(libc::EACCES)), (libc::F_SETFD, ALLOW), (libc::F_SETLK, ALLOW)]
    {
        let command = u64::from(command.unsigned_abs());
        assert_eq!(verdict_with("default", "fcntl", &[0, command], options), expected, "{command}");
    }
}

#[test]
fn foreign_entrances_are_killed() {
    let program = builtin_program("default", Options { arch: Arch::X86_64, ..Options::default() }).unwrap();
    const I386: u32 = 0x4000_0003;
    assert_eq!(program.run(I386, 1, &[0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
    for x32 in [0x4000_0000, 0x4000_0001, 0x4000_0209, i32::MAX, -1] {
        assert_eq!(program.run(Arch::X86_64.audit(), x32, &[0; 6]), KILLED);
        assert_eq!(program.decide(x32, &[0; 6]), Denial::Kill);
    }
    assert_eq!(program.decide(0x3fff_ffff, &[0; 6]), Denial::Refuse(libc::ENOSYS));
}

#[test]
fn decide_answers_what_the_filter_asked() {
    let program = builtin_program("default", Options::default()).unwrap();
    let decide = |call: &str, args: [u64; 6]| program.decide(Arch::HOST.number(call).unwrap().cast_signed(), &args);
    assert_eq!(decide("bpf", [0; 6]), Denial::Kill);
    assert_eq!(decide("unshare", [0; 6]), Denial::Refuse(libc::EPERM));
    assert_eq!(decide("socket", [40, 0, 0, 0, 0, 0]), Denial::Refuse(libc::EAFNOSUPPORT));
    assert_eq!(decide("socket", [1 << 32, 0, 0, 0, 0, 0]), Denial::Refuse(libc::ENOSYS));
    assert_eq!(decide("ioctl", [0, 0xdead, 0, 0, 0, 0]), Denial::Refuse(libc::ENOSYS));
}

/// The table of compiled programs, as it has to stand in `builtin.rs`.
fn table_source() -> String {
    let mut source = String::from(
        "//! The built-in profiles, compiled, for the price of a copy: reading and compiling one takes longer than loading it.\n\
         //!\n\
         //! Written by `NSBOX_TEST_BLESS=1 cargo test --lib builtin_table`, and never by hand.\n\n\
         use super::Arch;\n\n\
         /// A profile's name, its architecture, whether memfds have to be sealed against execution, and its instructions:\n\
         /// `code << 48 | jt << 40 | jf << 32 | k`.\n\
         pub(super) type Row = (&'static str, Arch, bool, &'static [u64]);\n\n\
         #[rustfmt::skip]\n\
         pub(super) const TABLE: &[Row] = &[\n",
    );
    for (name, arch) in PROFILES.into_iter().flat_map(|name| ARCHES.map(|arch| (name, arch))) {
        for require_memfd_noexec in [false, true] {
            let options = Options { arch, require_memfd_noexec, ..Options::default() };
            let program = builtin(name).compile(options).unwrap();
            writeln!(source, "    (\"{name}\", Arch::{arch:?}, {require_memfd_noexec}, &[").unwrap();
            for row in program.bpf.chunks(6) {
                let words: Vec<String> = row.iter().map(|i| format!("{:#x}", pack(i))).collect();
                writeln!(source, "        {},", words.join(", ")).unwrap();
            }
            source.push_str("    ]),\n");
        }
    }
    source + "];\n"
}

fn pack(instruction: &sock_filter) -> u64 {
    let sock_filter { code, jt, jf, k } = *instruction;
    u64::from(code) << 48 | u64::from(jt) << 40 | u64::from(jf) << 32 | u64::from(k)
}

#[test]
fn builtin_table_is_what_the_files_compile_to() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sandbox/seccomp/builtin.rs");
    let wanted = table_source();
    if std::env::var_os("NSBOX_TEST_BLESS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let stale = "seccomp/*.json or the compiler changed: run NSBOX_TEST_BLESS=1 cargo test --lib builtin_table";
    assert!(std::fs::read_to_string(&path).unwrap() == wanted, "{stale}");
}

#[test]
fn builtin_program_is_the_compiled_profile_under_all_options() {
    for (name, arch) in PROFILES.into_iter().flat_map(|name| ARCHES.map(|arch| (name, arch))) {
        for bits in 0..32 {
            let [require_memfd_noexec, shares_host, holds_signals, notify, notices] =
                [1, 2, 4, 8, 16].map(|bit| bits & bit != 0);
            let options = Options { require_memfd_noexec, shares_host, holds_signals, notify, notices, arch };
            assert_eq!(builtin_program(name, options).unwrap(), builtin(name).compile(options).unwrap());
        }
    }
}

#[test]
fn only_neutral_calls_are_not_told() {
    const NEUTRAL: &[(&str, [u64; 3])] = &[
        ("read", [3, 0, 0]),
        ("write", [1, 0, 0]),
        ("pread64", [4, 0, 0]),
        ("close", [5, 0, 0]),
        ("openat", [7, 0, 0o2_000_000]),
        ("madvise", [0, 0, 23]),
        ("fcntl", [1, 1, 0]),
        ("futex", [0, 0x80, 0]),
        ("prlimit64", [0, 7, 0]),
        ("getrandom", [0, 0, 0]),
        ("exit_group", [0, 0, 0]),
    ];
    // What follows the first 32 bits of an `int` does not count.
    const TOLD: &[(&str, [u64; 3])] = &[
        ("read", [4, 0, 0]),
        ("write", [0xdead_0000_0004, 0, 0]),
        ("close", [1 << 32, 0, 0]),
        ("close", [4, 0, 0]),
        ("openat", [7, 0, 0o1]),
        ("openat", [7, 0, 0o100]),
        ("openat", [7, 0, 0o1000]),
        ("openat", [7, 0, 0o20_000_000]),
        ("openat", [7, 0, 0o2]),
        ("madvise", [0, 0, 4]),
        ("fcntl", [1, 2, 0]),
        ("fcntl", [5, 0, 3]),
        ("futex", [0, 6, 0]),
        ("prlimit64", [0, 7, 1]),
        ("mmap", [0, 4096, 3]),
        ("munmap", [0, 4096, 0]),
        ("mprotect", [0, 4096, 3]),
        ("brk", [0, 0, 0]),
        ("pwrite64", [4, 0, 0]),
        ("dup2", [1, 0, 0]),
        ("rt_sigaction", [2, 0, 0]),
        ("rt_sigprocmask", [2, 0, 0]),
        ("rt_sigreturn", [0, 0, 0]),
        ("setitimer", [0, 0, 0]),
        ("prctl", [15, 0, 0]),
        ("socketpair", [1, 1, 0]),
        ("clone", [0x3d_0f00, 0, 0]),
        ("kill", [0, 9, 0]),
        ("ftruncate", [4, 0, 0]),
        ("chdir", [0, 0, 0]),
        ("umask", [0, 0, 0]),
    ];
    for name in ["default", "strict"] {
        let program = builtin_program(name, Options { notices: true, ..Options::default() }).unwrap();
        let run = |name: &str, [a, b, c]: [u64; 3]| {
            let number = Arch::HOST.number(name).unwrap().cast_signed();
            (program.run(Arch::HOST.audit(), number, &[a, b, c, 0, 0, 0]), program.decide(number, &[a, b, c, 0, 0, 0]))
        };
        for (call, args) in NEUTRAL {
            assert_eq!(run(call, *args).0, libc::SECCOMP_RET_ALLOW, "{name}: {call} {args:?}");
        }
        for (call, args) in TOLD {
            assert_eq!(run(call, *args).1, Denial::LetRun, "{name}: {call} {args:?}");
        }
    }
}

#[test]
fn programs_stay_short() {
    for (name, most) in [("default", 190), ("strict", 190)] {
        let program = builtin_program(name, Options::default()).unwrap();
        assert!(program.bpf.len() <= most, "{name}: {} instructions", program.bpf.len());
    }
}

fn parse(text: &str) -> Result<Profile, Error> {
    Profile::parse(Path::new("mine.json"), text)
}

fn with_entry(entry: &str) -> String {
    format!("{{\n\"defaultAction\": \"SCMP_ACT_ERRNO\",\n\"syscalls\": [\n{entry}\n]\n}}")
}

fn error_of(entry: &str) -> Error {
    parse(&with_entry(entry)).and_then(|profile| profile.compile(Options::default())).unwrap_err()
}

#[test]
fn unknown_name_is_refused_with_its_line_and_the_nearest() {
    let error = error_of(r#"{"names": ["read", "opentat"], "action": "SCMP_ACT_ALLOW"}"#);
    assert_eq!(error.to_string(), "unknown system call 'opentat' at mine.json:4: did you mean 'openat'?");
    assert_eq!(error.code(), "seccomp-unknown-syscall");
}

#[test]
fn name_of_another_architecture_is_passed_over() {
    let text = with_entry(r#"{"names": ["mmap2", "swapcontext", "set_tls", "read"], "action": "SCMP_ACT_ALLOW"}"#);
    let profile = parse(&text).unwrap();
    assert_eq!(profile.chains(Options::default()).unwrap().len(), 1);
}

#[test]
fn unenforceable_profiles_are_refused() {
    for (entry, code) in [
        (r#"{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}"#, "seccomp-action"),
        (r#"{"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0}"#, "seccomp-action"),
        (r#"{"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 65535}"#, "seccomp-action"),
        (r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW", "why": "?"}"#, "seccomp-parse"),
        (r#"{"names": [], "action": "SCMP_ACT_ALLOW"}"#, "seccomp-nameless"),
        (
            r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}"#,
            "seccomp-argument",
        ),
        (
            r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 1, "value": 0, "op": "SCMP_CMP_GE"},
            {"index": 1, "value": 9, "op": "SCMP_CMP_LE"}]}"#,
            "seccomp-repeated-argument",
        ),
        (
            r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW"}, {"names": ["read"], "action": "SCMP_ACT_KILL_PROCESS"}"#,
            "seccomp-contradiction",
        ),
        (
            r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW"}, {"names": ["read"], "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]}"#,
            "seccomp-contradiction",
        ),
    ] {
        assert_eq!(error_of(entry).code(), code, "{entry}");
    }
    let text = r#"{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_S390X"], "syscalls": []}"#;
    assert_eq!(parse(text).unwrap_err().code(), "seccomp-architecture");
    assert_eq!(Profile::load(Path::new("/nowhere/x.json")).unwrap_err().code(), "seccomp-read");
    assert_eq!(Profile::builtin("lax").unwrap_err().code(), "seccomp-unknown-profile");
}

#[test]
fn too_long_profile_is_refused() {
    let rule = |value| {
        format!(
            r#"{{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{{"index": 0, "value": {value}, "op": "SCMP_CMP_EQ"}}]}}"#
        )
    };
    let rules: Vec<String> = (0..1200).map(rule).collect();
    assert_eq!(error_of(&rules.join(",")).code(), "seccomp-too-long");
}

#[test]
fn docker_conditions_are_those_of_a_guest_without_capabilities() {
    let text = with_entry(
        r#"{"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["unshare"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}},
        {"names": ["write"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64", "arm64"], "minKernel": "4.8"}},
        {"names": ["close"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "250.0"}}"#,
    );
    let chains = parse(&text).unwrap().chains(Options::default()).unwrap();
    let allowed: BTreeSet<_> = chains.keys().map(|number| Arch::HOST.name(*number).unwrap()).collect();
    assert_eq!(allowed, ["unshare", "write"].into());
}

#[test]
fn names_and_numbers_agree_both_ways() {
    for arch in ARCHES {
        for number in 0..NUMBERS {
            if let Some(name) = arch.name(number) {
                assert_eq!(arch.number(name), Some(number), "{arch:?} {name}");
            }
        }
    }
    assert_eq!(syscall_name(i64::from(Arch::HOST.number("openat").unwrap())), "openat");
    assert_eq!(syscall_name(9999), "syscall_9999");
    assert_eq!(syscall_name(-1), "syscall_-1");
}

#[test]
fn show_and_explain_say_why() {
    let profile = builtin("default");
    let table = profile.show();
    assert!(table.lines().any(|line| line.starts_with("clone3 ") && line.contains("ENOSYS (unreported)")), "{table}");
    assert!(table.lines().last().unwrap().starts_with("(all others)"), "{table}");
    let why = profile.explain("socket").unwrap();
    assert!(why.contains("if arg0 & 0xffffffff == 0x1: AF_UNIX") && why.contains("ENOSYS otherwise"), "{why}");
    assert_eq!(profile.explain("userfaultfd").unwrap().lines().count(), 1);
    assert_eq!(profile.explain("no_such_call"), None);
}
