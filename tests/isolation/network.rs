//! The network and what else two processes talk through: each is reached outside and out of reach inside.

use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};

use crate::harness::{self, folder, inside, said, serial};

/// Tries everything, after `ports` and names are filled in; each ends as "ok" or an errno's name.
const REACH: &str = r#"
import ctypes, errno, json, os, socket, threading
libc = ctypes.CDLL(None, use_errno=True)
def attempt(act):
    try:
        act()
        return "ok"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
def tcp(address=("127.0.0.1", TCP)): socket.create_connection(address, 2).close()
def udp():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2)
    s.sendto(b"ping", ("127.0.0.1", UDP))
    s.recv(16)
def unix(path):
    s = socket.socket(socket.AF_UNIX); s.settimeout(2); s.connect(path)
def check(result):
    if result < 0: raise OSError(ctypes.get_errno(), "")
def all():
    return {
        "tcp": attempt(tcp),
        "udp": attempt(udp),
        "abstract": attempt(lambda: unix("\0ABSTRACT")),
        "path": attempt(lambda: unix("PATH")),
        "shm": attempt(lambda: check(libc.shmget(SHMKEY, 0, 0))),
        "mq": attempt(lambda: check(libc.mq_open(b"/QUEUE", os.O_RDONLY))),
        "devshm": attempt(lambda: open("/dev/shm/DEVSHM").close()),
    }
found = {"main": all()}
thread = threading.Thread(target=lambda: found.update(thread=all())); thread.start(); thread.join()
print(json.dumps(found))
"#;

/// What the host offers: a thread serves it until it is dropped.
struct Offer {
    script: String,
    stop: std::sync::Arc<AtomicBool>,
    server: Option<thread::JoinHandle<()>>,
    cleanup: String,
}

impl Offer {
    fn open() -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a TCP port");
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a UDP port");
        let name = format!("nsbox-isolation-{}-{}", std::process::id(), serial());
        let address = SocketAddr::from_abstract_name(&name).expect("an abstract name");
        let unix_abstract = UnixListener::bind_addr(&address).expect("an abstract socket");
        let path = folder().join(format!("s{}", serial()));
        let unix_path = UnixListener::bind(&path).expect("a path socket");
        // Each offer's own: another's end must not remove it.
        let key = 0x4e53_0000
            + (i64::from(std::process::id() & 0xfff) << 4)
            + i64::try_from(serial() & 0xf).expect("four bits");
        let script = REACH
            .replace("TCP)", &format!("{})", tcp.local_addr().expect("an address").port()))
            .replace("UDP)", &format!("{})", udp.local_addr().expect("an address").port()))
            .replace("ABSTRACT", &name)
            .replace("PATH", &path.display().to_string())
            .replace("SHMKEY", &key.to_string())
            .replace("QUEUE", &name)
            .replace("DEVSHM", &name);
        harness::outside(&format!(
            "import ctypes, os\nlibc = ctypes.CDLL(None)\nassert libc.shmget({key}, 4096, 0o1666) >= 0\n\
             assert libc.mq_open(b'/{name}', os.O_CREAT | os.O_RDWR, 0o666, None) >= 0\nopen('/dev/shm/{name}', 'w').close()\nprint('null')"
        ));
        let cleanup = format!(
            "import ctypes, os\nlibc = ctypes.CDLL(None)\nlibc.shmctl(libc.shmget({key}, 0, 0), 0, None)\n\
             libc.mq_unlink(b'/{name}')\nos.unlink('/dev/shm/{name}')\nprint('null')"
        );
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        udp.set_read_timeout(Some(std::time::Duration::from_millis(50))).expect("a timeout");
        let server = thread::spawn(move || {
            // Connections are taken by the backlog; datagrams are answered.
            let _listening = (tcp, unix_abstract, unix_path);
            let mut buffer = [0; 16];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((_, from)) = udp.recv_from(&mut buffer) {
                    udp.send_to(b"pong", from).ok();
                }
            }
        });
        Self { script, stop, server: Some(server), cleanup }
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.server.take().map(thread::JoinHandle::join);
        harness::outside(&self.cleanup);
    }
}

#[test]
fn hosts_sockets_and_ipc_are_reached_outside_and_not_inside() {
    let offer = Offer::open();
    let outside = harness::outside(&offer.script);
    for how in ["main", "thread"] {
        for (name, reached) in outside[how].as_object().expect("an object") {
            assert_eq!(reached, "ok", "{name} from {how}, outside");
        }
    }
    let inside = said(&inside("reach", &offer.script, &[]));
    for how in ["main", "thread"] {
        let expected = json!({
            // No interface is up, so there is no route, not even to itself.
            "tcp": "ENETUNREACH",
            "udp": "ENETUNREACH",
            "abstract": "ECONNREFUSED",
            "path": "ENOENT",
            "shm": "ENOENT",
            "mq": "ENOENT",
            "devshm": "ENOENT",
        });
        assert_eq!(inside[how], expected, "from {how}");
    }
}

#[test]
fn after_exec_the_network_is_as_far_away() {
    let offer = Offer::open();
    let source = format!("import subprocess, sys\nsubprocess.run([sys.executable, '-c', {:?}])\n", offer.script);
    let reached: Value = said(&inside("reach-exec", &source, &[]));
    for (name, how) in reached["main"].as_object().expect("an object") {
        assert_ne!(how, "ok", "{name}");
    }
}

#[test]
fn outside_world_and_its_daemons_are_out_of_reach() {
    let source = r"
import errno, json, os, socket
def attempt(act):
    try:
        act()
        return 'ok'
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
print(json.dumps({
    'v4': attempt(lambda: socket.create_connection(('192.0.2.1', 53), 1)),
    'v6': attempt(lambda: socket.create_connection(('2001:db8::1', 53), 1)),
    'sockets': [path for path in ('/run/docker.sock', '/var/run/docker.sock', '/run/dbus/system_bus_socket',
                                  '/run/systemd/private', '/run/containerd/containerd.sock') if os.path.exists(path)],
}))
";
    let reached = said(&inside("world", source, &[]));
    assert_eq!(reached["v4"], "ENETUNREACH");
    assert_eq!(reached["v6"], "ENETUNREACH");
    assert_eq!(reached["sockets"], json!([]));
}
