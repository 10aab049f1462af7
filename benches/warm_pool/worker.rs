//! The bare worker: the other side of all ratios.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

use crate::{Result, S1};

/// The bare worker: runs what it is sent; `F` and `C` fork instead and answer how long one takes, in wall and in CPU time;
/// `L` runs S1 in a loop for so many seconds and answers how often, `f` forks so, `l` forks so for each run of S1.
const WORKER: &str = "
import os, socket, sys, time, json, gc
import numpy, pandas
gc.collect(); gc.freeze()
line = socket.socket(fileno=0)
def fork(do=None):
    pid = os.fork()
    if pid == 0:
        try:
            if do:
                do()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
def repeat(seconds, do):
    until, count = time.perf_counter() + seconds, 0
    while time.perf_counter() < until:
        do()
        count += 1
    return count
def run(text):
    names = {'__name__': '__main__'}
    exec(compile(text, 'script.py', 'exec'), names)
    return names.get('result')
while message := line.recv(1 << 17):
    kind, text = message[:1], message[1:].decode()
    if kind == b'R':
        answer = json.dumps(run(text))
    elif kind == b'F':
        begun = time.perf_counter(); fork(); answer = time.perf_counter() - begun
    elif kind == b'C':
        before = sum(os.times()[:4]); [fork() for _ in range(int(text))]; answer = (sum(os.times()[:4]) - before) / int(text)
    elif kind == b'f':
        answer = repeat(float(text), fork)
    else:
        seconds, _, text = text.partition(' ')
        do = lambda: run(text)
        answer = repeat(float(seconds), do if kind == b'L' else lambda: fork(do))
    line.send(str(answer).encode())
";

/// A persistent interpreter with no sandbox.
pub struct Worker {
    line: OwnedFd,
    child: Child,
}

impl Worker {
    /// Starts one, which has run S1 once.
    pub fn start(python: &str) -> Result<Self> {
        let (line, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let mut command = Command::new(python);
        for name in ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"] {
            command.env(name, "1");
        }
        let child = command.args(["-c", WORKER]).stdin(Stdio::from(theirs)).spawn()?;
        // It has the other end of the line, which its death is to close.
        drop(command);
        let worker = Self { line, child };
        worker.ask("R", S1)?;
        Ok(worker)
    }

    /// What it answers to a request of this kind.
    pub fn ask(&self, kind: &str, text: &str) -> io::Result<String> {
        send(self.line.as_raw_fd(), format!("{kind}{text}").as_bytes(), MsgFlags::empty())?;
        let mut answer = vec![0; 4096];
        let length = recv(self.line.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        if length == 0 {
            return Err(io::Error::other("the bare worker ended: PYTHON needs numpy and pandas"));
        }
        answer.truncate(length);
        String::from_utf8(answer).map_err(io::Error::other)
    }

    /// The same, a number.
    pub fn number(&self, kind: &str, text: &str) -> Result<f64> {
        Ok(self.ask(kind, text)?.parse()?)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
