//! A script for more than one backend: all of it can be given again but its standard input, which is read once.

use std::io::{self, Read};
use std::sync::{Arc, Mutex};

use crate::sandbox::{Script, Stdin};

/// A script's standard input, lent to one backend after the other, as long as none has read from it.
#[derive(Default)]
pub(super) struct Lent(Option<Arc<Mutex<Shared>>>);

struct Shared {
    stream: Box<dyn Read + Send>,
    /// Which loan may read.
    loan: u32,
    read: bool,
}

/// What a backend gets.
struct Loan {
    shared: Arc<Mutex<Shared>>,
    number: u32,
}

impl Lent {
    /// Takes the standard input out of a script.
    pub(super) fn take(script: &mut Script) -> Self {
        Self(match script.take_stdin() {
            Stdin::Empty => None,
            Stdin::Stream(stream) => Some(Arc::new(Mutex::new(Shared { stream, loan: 0, read: false }))),
        })
    }

    /// Lends it; an earlier borrower, who has not read, finds its end from now on.
    pub(super) fn lend(&self) -> Stdin {
        let Some(shared) = &self.0 else { return Stdin::Empty };
        let number = shared.try_lock().map_or(0, |mut shared| {
            shared.loan += 1;
            shared.loan
        });
        Stdin::Stream(Box::new(Loan { shared: Arc::clone(shared), number }))
    }

    /// Whether somebody has read from it, or is just about to.
    pub(super) fn is_read(&self) -> bool {
        self.0.as_ref().is_some_and(|shared| shared.try_lock().map_or(true, |shared| shared.read))
    }
}

impl Read for Loan {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut shared = self.shared.lock().map_err(|_| io::Error::other("the stream's reader panicked"))?;
        if shared.loan != self.number {
            return Ok(0);
        }
        shared.read = true;
        shared.stream.read(buffer)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn lent(text: &'static str) -> Lent {
        Lent::take(&mut Script::from("pass").stdin(Stdin::Stream(Box::new(text.as_bytes()))))
    }

    fn all(stdin: Stdin) -> String {
        let mut text = String::new();
        if let Stdin::Stream(mut stream) = stdin {
            stream.read_to_string(&mut text).unwrap();
        }
        text
    }

    #[test]
    fn stream_that_nobody_read_is_whole_for_the_next() {
        let lent = lent("text");
        let first = lent.lend();
        assert!(!lent.is_read());
        assert_eq!(all(lent.lend()), "text");
        assert!(lent.is_read());
        assert_eq!(all(first), "");
    }

    #[test]
    fn script_without_a_stream_is_never_read() {
        let lent = Lent::take(&mut Script::from("pass"));
        assert!(matches!(lent.lend(), Stdin::Empty) && !lent.is_read());
    }
}
