//! Acts that the kernel must refuse.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::{Child, Stdio};

use super::{PYTHON, everyone, run};
use crate::user::User;

/// What each attack may use; they raise `OSError` where they are refused.
const PRELUDE: &str = "
import ctypes, os, resource, signal, socket, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    value = libc[name](*args)
    if value < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return value
def word(path):
    with open(path) as file:
        return file.read()
";

/// The names, and what is done; `SECRET`, `HOME`, `NAME`, `PORT`, `VICTIM` and `SEGMENT` are of the outside.
const ATTACKS: &[(&str, &str)] = &[
    ("read a private file", "assert word('SECRET') == 'secret'"),
    ("read what everybody may", "word('/etc/passwd')"),
    ("list a home", "os.listdir('HOME')"),
    ("write beside its folder", "open('HOME/left', 'w').close()"),
    ("write into the temporary folder", "open('/tmp/NAME', 'w').close(); os.unlink('/tmp/NAME')"),
    ("write into shared memory", "open('/dev/shm/NAME', 'w').close(); os.unlink('/dev/shm/NAME')"),
    ("remove a file", "os.unlink('HOME/spare')"),
    ("rename a file", "os.rename('HOME/movable', 'HOME/moved')"),
    ("make a link to a private file", "os.link('SECRET', 'HOME/link')"),
    ("open a file to everybody", "os.chmod('HOME/full', 0o777)"),
    ("set the owner of a file", "os.chown('HOME/full', -1, os.stat('HOME/full').st_gid)"),
    ("set the times of a file", "os.utime('HOME/full')"),
    ("set an attribute of a file", "os.setxattr('HOME/full', 'user.nsbox', b'1')"),
    ("watch a folder", "call('inotify_add_watch', call('inotify_init'), b'HOME', 2)"),
    ("truncate a file that it reads", "os.close(os.open('HOME/full', os.O_RDONLY | os.O_TRUNC))"),
    ("truncate a file", "os.truncate('HOME/full', 0)"),
    ("keep a file that has no name", "os.close(os.open('.', os.O_TMPFILE | os.O_RDWR))"),
    ("keep a file whose name is gone", "open('unnamed', 'w').close(); os.unlink('unnamed')"),
    ("keep memory that no process has", "os.close(os.memfd_create('m', 8))"),
    (
        "execute a file of its own",
        "open('own', 'w').write('#!/bin/true'); os.chmod('own', 0o755); subprocess.run(['./own'], check=True)",
    ),
    ("connect over TCP", "socket.create_connection(('127.0.0.1', PORT))"),
    ("listen on TCP", "socket.socket().bind(('127.0.0.1', 0))"),
    ("send over UDP", "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))"),
    ("connect to a socket by path", "socket.socket(socket.AF_UNIX).connect('HOME/socket')"),
    ("connect to an abstract socket", "socket.socket(socket.AF_UNIX).connect('\\0NAME')"),
    ("send from a pair to a socket", "socket.socketpair(type=socket.SOCK_DGRAM)[0].sendto(b'', 'HOME/datagrams')"),
    ("ask the kernel's routes", "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)"),
    ("signal another process", "os.kill(VICTIM, signal.SIGCONT)"),
    ("signal everybody", "os.kill(-1, 0)"),
    ("signal a thread of another process", "call('tgkill', VICTIM, VICTIM, 18)"),
    (
        "trace another process",
        "call('ptrace', 16, VICTIM, 0, 0); os.waitpid(VICTIM, 0); call('ptrace', 17, VICTIM, 0, 0)",
    ),
    ("read another's memory", "open(f'/proc/{VICTIM}/mem', 'rb').close()"),
    ("read another's environment", "word('/proc/VICTIM/environ')"),
    ("read another's status", "word('/proc/VICTIM/status')"),
    ("read the host's sockets", "word('/proc/self/net/unix')"),
    ("read the host's mounts", "word('/proc/self/mountinfo')"),
    ("lower another's limits", "resource.prlimit(VICTIM, resource.RLIMIT_CORE)"),
    ("move another to a CPU", "os.sched_setaffinity(VICTIM, os.sched_getaffinity(VICTIM))"),
    ("slow all of a user down", "os.setpriority(os.PRIO_USER, 0, os.getpriority(os.PRIO_USER, 0))"),
    ("share memory by System V", "call('shmctl', call('shmget', 0, 4096, 0o600), 0, None)"),
    ("share semaphores by System V", "call('semctl', call('semget', 0, 1, 0o600), 0, 0)"),
    ("share messages by System V", "call('msgctl', call('msgget', 0, 0o600), 0, None)"),
    (
        "share messages by POSIX",
        "call('mq_open', b'/NAME', os.O_CREAT | os.O_RDWR, 0o600, None); call('mq_unlink', b'/NAME')",
    ),
    ("look at another's shared memory", "call('shmctl', SEGMENT, 2, ctypes.create_string_buffer(256))"),
    ("remove another's shared memory", "call('shmctl', SEGMENT, 0, None)"),
    ("remove another's queue", "call('mq_unlink', b'/queue-NAME')"),
    ("leave its session", "os.setsid()"),
    ("leave its process group", "os.setpgid(0, 0) if os.getpid() != os.getpgid(0) else os.setsid()"),
    (
        "execute a memfd",
        "fd = os.memfd_create('m'); os.write(fd, b'#!/bin/true'); subprocess.run([f'/proc/self/fd/{fd}'], pass_fds=[fd], check=True)",
    ),
];

/// Makes shared memory and a queue, and says the number of the first.
const SHARED: &str = "
print(call('shmget', 0, 4096, 0o1600))
call('mq_open', b'/queue-NAME', os.O_CREAT | os.O_RDWR, 0o600, None)
";

/// What the attacks are aimed at, of one user.
struct Outside {
    user: User,
    name: String,
    victim: Child,
    segment: String,
    port: u16,
    _tcp: TcpListener,
    _udp: UdpSocket,
    _sockets: [UnixListener; 2],
    _datagrams: std::os::unix::net::UnixDatagram,
}

impl Outside {
    fn of(user: User) -> Self {
        for (file, content) in [("secret", "secret"), ("spare", ""), ("movable", ""), ("full", "full")] {
            let path = user.path(file);
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            chown(&path, Some(user.id), Some(user.id)).unwrap();
        }
        let name = format!("nsbox-attack-{}-{}", std::process::id(), user.id);
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        let udp = UdpSocket::bind(("127.0.0.1", port)).unwrap();
        let abstracted = SocketAddr::from_abstract_name(&name).unwrap();
        let sockets = [UnixListener::bind(user.path("socket")).unwrap(), UnixListener::bind_addr(&abstracted).unwrap()];
        let datagrams = std::os::unix::net::UnixDatagram::bind(user.path("datagrams")).unwrap();
        for path in ["socket", "datagrams"] {
            fs::set_permissions(user.path(path), fs::Permissions::from_mode(0o777)).unwrap();
        }
        let words: Vec<String> = user.become_it().into_iter().chain(["sleep", "600"].map(str::to_owned)).collect();
        let victim = user.command(&words).stdout(Stdio::null()).spawn().unwrap();
        crate::harness::until("the victim is itself", || crate::harness::comm(victim.id()) == "sleep");
        let shared = format!("{PRELUDE}{}", SHARED.replace("NAME", &name));
        let segment = output(&user, &shared).trim().to_owned();
        assert!(segment.parse::<u32>().is_ok(), "{segment}");
        Self { user, name, victim, segment, port, _tcp: tcp, _udp: udp, _sockets: sockets, _datagrams: datagrams }
    }

    /// The script of an attack, which tells how it ended.
    fn script(&self, attack: &str) -> String {
        let home = self.user.path("").display().to_string();
        let attack = attack
            .replace("SECRET", &self.user.path("secret").display().to_string())
            .replace("HOME", home.trim_end_matches('/'))
            .replace("NAME", &self.name)
            .replace("SEGMENT", &self.segment)
            .replace("PORT", &self.port.to_string())
            .replace("VICTIM", &self.victim.id().to_string());
        format!("{PRELUDE}\ntry:\n    {attack}\n    print('done')\nexcept OSError as error:\n    print('refused')\n")
    }

    /// How it ends without a sandbox.
    fn outside(&self, script: &str) -> String {
        output(&self.user, script)
    }
}

/// What a script says without a sandbox.
fn output(user: &User, script: &str) -> String {
    let words = [PYTHON, "-c", script].map(str::to_owned);
    let words: Vec<String> = user.become_it().into_iter().chain(words).collect();
    let output = user.command(&words).current_dir(user.path("")).output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.victim.kill().ok();
        self.victim.wait().ok();
    }
}

#[test]
fn acts_that_succeed_outside_are_refused_inside() {
    for user in everyone() {
        let outside = Outside::of(user);
        let mut wrong = Vec::new();
        for (name, attack) in ATTACKS {
            let script = outside.script(attack);
            // What can be done once only is tried inside first.
            let ran = run(&outside.user, &[], &script);
            let inside = format!("{} {}{}", ran.verdict(), ran.stdout(), String::from_utf8_lossy(&ran.outcome.stderr));
            let outside = outside.outside(&script);
            if !inside.starts_with("ok refused") && ran.verdict() != "violation" || !outside.starts_with("done") {
                wrong.push(format!("{name}: inside {inside:?} ({}), outside {outside:?}", ran.outcome.message));
            }
        }
        assert!(wrong.is_empty(), "uid {}:\n{}", outside.user.id, wrong.join("\n"));
        assert!(!outside.user.path("left").metadata().is_ok_and(|left| left.len() > 0));
    }
}
