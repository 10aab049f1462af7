//! The guest's output on the way to the caller: never in the way of the run, and harmless on a terminal.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use crate::sandbox::Stream;

/// Writers for stdout and stderr; each has a thread of its own once there is something to write, for a reader that is
/// slow must not stop the run's clock. What they hold is bounded by the output limit.
pub(super) struct Output {
    writers: [Option<Writer>; 2],
}

enum Writer {
    Thread {
        queue: Sender<Vec<u8>>,
        thread: JoinHandle<()>,
    },
    /// Where no thread can be had (RLIMIT_NPROC): a slow reader does stop the clock.
    Here(Copier),
}

impl Output {
    pub(super) fn new() -> Self {
        Self { writers: [None, None] }
    }

    /// Queues bytes.
    pub(super) fn write(&mut self, stream: Stream, bytes: &[u8]) {
        let slot = &mut self.writers[usize::from(stream == Stream::Stderr)];
        // When the reader is gone, there is nobody to tell.
        match slot.get_or_insert_with(|| Writer::start(stream)) {
            Writer::Thread { queue, .. } => queue.send(bytes.to_vec()).ok(),
            Writer::Here(copier) => copier.copy(bytes).ok(),
        };
    }

    /// Waits until all is written.
    pub(super) fn finish(self) {
        for writer in self.writers.into_iter().flatten() {
            match writer {
                Writer::Thread { queue, thread } => {
                    drop(queue);
                    // A panic of the writer has been printed by its thread.
                    thread.join().ok();
                }
                Writer::Here(copier) => copier.finish(),
            }
        }
    }
}

impl Writer {
    fn start(stream: Stream) -> Self {
        let (queue, bytes) = channel::<Vec<u8>>();
        let copy = move || {
            let mut copier = Copier::of(stream);
            for bytes in bytes {
                if copier.copy(&bytes).is_err() {
                    return;
                }
            }
            copier.finish();
        };
        match std::thread::Builder::new().spawn(copy) {
            Ok(thread) => Self::Thread { queue, thread },
            Err(_) => Self::Here(Copier::of(stream)),
        }
    }
}

/// Copies one of the guest's streams to the command's own.
struct Copier {
    to: Box<dyn Write + Send>,
    /// On a terminal.
    visible: Option<Visible>,
}

impl Copier {
    fn of(stream: Stream) -> Self {
        let (to, terminal): (Box<dyn Write + Send>, _) = match stream {
            Stream::Stdout => (Box::new(io::stdout()), io::stdout().is_terminal()),
            Stream::Stderr => (Box::new(io::stderr()), io::stderr().is_terminal()),
        };
        Self { to, visible: terminal.then(Visible::default) }
    }

    fn copy(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.visible {
            Some(visible) => self.to.write_all(&visible.feed(bytes))?,
            None => self.to.write_all(bytes)?,
        }
        self.to.flush()
    }

    /// The rest of a character that never came.
    fn finish(mut self) {
        if let Some(visible) = self.visible.take() {
            self.to.write_all(&visible.end()).and_then(|()| self.to.flush()).ok();
        }
    }
}

/// A text with its control characters visible.
pub(super) fn visible(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    show(text, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

/// Makes control characters visible, so that no output can drive a terminal: C0 but newline and tab in caret notation,
/// C1 and bidirectional overrides as code points. Text may be cut anywhere between two calls.
#[derive(Debug, Default)]
struct Visible {
    rest: Vec<u8>,
}

impl Visible {
    fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut pending = std::mem::take(&mut self.rest);
        pending.extend_from_slice(bytes);
        let mut out = Vec::with_capacity(pending.len());
        let mut left = pending.as_slice();
        while !left.is_empty() {
            match std::str::from_utf8(left) {
                Ok(text) => {
                    show(text, &mut out);
                    break;
                }
                Err(error) => {
                    let (valid, after) = left.split_at(error.valid_up_to());
                    show(&String::from_utf8_lossy(valid), &mut out);
                    let Some(length) = error.error_len() else {
                        self.rest = after.to_vec();
                        break;
                    };
                    out.extend_from_slice("\u{fffd}".as_bytes());
                    left = &after[length..];
                }
            }
        }
        out
    }

    fn end(self) -> Vec<u8> {
        if self.rest.is_empty() { Vec::new() } else { "\u{fffd}".into() }
    }
}

fn show(text: &str, out: &mut Vec<u8>) {
    for c in text.chars() {
        match c {
            '\n' | '\t' => out.push(c as u8),
            '\0'..='\x1f' => out.extend([b'^', c as u8 ^ 0x40]),
            '\x7f' => out.extend(b"^?"),
            '\u{80}'..='\u{9f}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                out.extend(format!("<U+{:04X}>", c as u32).bytes());
            }
            _ => out.extend(c.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_are_visible() {
        let shown = Visible::default().feed(b"\x1b]0;title\x07 \x1b[2Jok\r\n\tdone\x7f");
        assert_eq!(shown, b"^[]0;title^G ^[[2Jok^M\n\tdone^?");
    }

    #[test]
    fn c1_and_bidirectional_controls_are_visible() {
        let shown = Visible::default().feed("a\u{9b}2J\u{202e}b".as_bytes());
        assert_eq!(shown, b"a<U+009B>2J<U+202E>b");
    }

    #[test]
    fn characters_cut_between_two_writes_are_whole() {
        let mut visible = Visible::default();
        let euro = "€".as_bytes();
        let mut shown = visible.feed(&euro[..1]);
        shown.extend(visible.feed(&euro[1..]));
        shown.extend(visible.feed(b"\xff!\xe2"));
        shown.extend(visible.end());
        assert_eq!(String::from_utf8_lossy(&shown), "€\u{fffd}!\u{fffd}");
    }
}
