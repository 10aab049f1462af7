//! The channel to a container's pid 1: the request to it, and its frames. Both are described in `rootfs/guest/container.py`.

use std::collections::HashMap;

use crate::config::Config;
use crate::sandbox::evidence::Stream;
use crate::sandbox::line::Nonce;
use crate::sandbox::{Script, Stdin, guest};

/// Nonce, kind, length.
const HEADER: usize = 16 + 1 + 4;
/// The longest payload that pid 1 writes is 64 KiB, and a little.
const LONGEST: usize = 1 << 20;

/// What pid 1 tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// How it is held.
    Layers(Facts),
    /// The script begins.
    Started,
    /// The next piece of its standard input can be taken.
    Ready,
    /// What the script wrote.
    Output(Stream, Vec<u8>),
    /// Nothing of the script is left.
    Over,
    /// A piece of its document.
    Document(Vec<u8>),
    /// An artifact: its kind (`f`, `d` or another), its size, its path.
    Artifact(u8, u64, Vec<u8>),
    /// A piece of the artifact before.
    Piece(Vec<u8>),
    /// How the script ended, and what the kernel counted.
    End(Facts),
}

/// Values by name.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Facts(HashMap<String, String>);

impl Facts {
    fn parse(text: &[u8]) -> Self {
        let text = String::from_utf8_lossy(text);
        Self(text.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
    }

    pub(super) fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.text(name).parse().ok()
    }
}

/// What came is not a frame of this run's.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Garbled;

/// Takes the stream apart, in whatever pieces it comes.
#[derive(Debug)]
pub(super) struct Reader {
    nonce: Nonce,
    buffer: Vec<u8>,
}

impl Reader {
    pub(super) fn new(nonce: Nonce) -> Self {
        Self { nonce, buffer: Vec::new() }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, Garbled> {
        let Some((header, rest)) = self.buffer.split_at_checked(HEADER) else { return Ok(None) };
        let length = header[17..].try_into().map_or(usize::MAX, |bytes| u32::from_le_bytes(bytes) as usize);
        if header[..16] != self.nonce || length > LONGEST {
            return Err(Garbled);
        }
        let kind = header[16];
        let Some(payload) = rest.get(..length).map(<[u8]>::to_vec) else { return Ok(None) };
        self.buffer.drain(..HEADER + length);
        Ok(Some(match kind {
            b'L' => Frame::Layers(Facts::parse(&payload)),
            b'S' => Frame::Started,
            b'R' => Frame::Ready,
            b'O' => Frame::Output(Stream::Stdout, payload),
            b'E' => Frame::Output(Stream::Stderr, payload),
            b'K' => Frame::Over,
            b'D' => Frame::Document(payload),
            b'A' => {
                let (kind, rest) = payload.split_first().ok_or(Garbled)?;
                let (size, path) = rest.split_first_chunk().ok_or(Garbled)?;
                Frame::Artifact(*kind, u64::from_le_bytes(*size), path.to_vec())
            }
            b'B' => Frame::Piece(payload),
            b'X' => Frame::End(Facts::parse(&payload)),
            _ => return Err(Garbled),
        }))
    }
}

/// The request for one script.
pub(super) fn request(config: &Config, script: &Script, nonce: Nonce) -> Vec<u8> {
    let limits = &config.limits;
    let mut texts = Vec::new();
    let mut add = |key: &str, value: &[u8]| {
        let length = u32::try_from(key.len() + 1 + value.len()).unwrap_or(u32::MAX);
        texts.extend(length.to_le_bytes());
        texts.extend([key.as_bytes(), b"=", value].concat());
    };
    for (name, text) in guest::modules() {
        add(&format!("module:{name}"), text.as_bytes());
    }
    add("source", &script.source);
    add("file", guest::script_path(&script.name).as_bytes());
    script.args.iter().for_each(|arg| add("arg", arg.as_bytes()));
    script.inputs.iter().for_each(|(name, _)| add("input", name.as_bytes()));
    script.values.iter().for_each(|(name, _)| add("value", name.as_bytes()));
    if let Some(seed) = config.seed {
        add("seed", seed.to_string().as_bytes());
    }
    add("cpus", limits.cpus.to_string().as_bytes());
    add("timeout", limits.timeout.as_secs_f64().to_string().as_bytes());
    if let Some(time) = limits.cpu_time {
        add("cpu_time", time.as_secs_f64().to_string().as_bytes());
    }
    add("output_limit", limits.output.to_string().as_bytes());
    add("result_limit", limits.result.to_string().as_bytes());
    if script.artifacts.is_some() {
        add("artifacts_limit", limits.artifacts.to_string().as_bytes());
    }
    if matches!(script.stdin, Stdin::Stream(_)) {
        add("stdin", b"yes");
    }
    let length = u32::try_from(texts.len()).unwrap_or(u32::MAX);
    [&nonce[..], &length.to_le_bytes(), &texts].concat()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONCE: Nonce = *b"0123456789abcdef";

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_le_bytes();
        [&NONCE[..], &[kind], &length, payload].concat()
    }

    #[test]
    fn frames_are_told_apart_however_they_are_cut() {
        let stream = [
            frame(b'S', b""),
            frame(b'O', b"text"),
            frame(b'A', b"f\x05\0\0\0\0\0\0\0a/b"),
            frame(b'X', b"exit=3\nwhy=cpu\n"),
        ]
        .concat();
        for size in 1..stream.len() {
            let mut reader = Reader::new(NONCE);
            let mut frames = Vec::new();
            for piece in stream.chunks(size) {
                reader.push(piece);
                while let Some(frame) = reader.next().unwrap() {
                    frames.push(frame);
                }
            }
            let Frame::End(facts) = frames.pop().unwrap() else { panic!("{frames:?}") };
            assert_eq!((facts.number("exit"), facts.text("why"), facts.text("signal")), (Some(3), "cpu", ""));
            let expected = [
                Frame::Started,
                Frame::Output(Stream::Stdout, b"text".to_vec()),
                Frame::Artifact(b'f', 5, b"a/b".to_vec()),
            ];
            assert_eq!(frames, expected);
        }
    }

    proptest! {
        #[test]
        fn bytes_without_the_nonce_are_no_frame(bytes in prop::collection::vec(any::<u8>(), HEADER..200)) {
            prop_assume!(bytes[..16] != NONCE);
            let mut reader = Reader::new(NONCE);
            reader.push(&bytes);
            prop_assert_eq!(reader.next(), Err(Garbled));
        }

        #[test]
        fn payload_of_any_kind_and_length_is_read_or_refused(kind in any::<u8>(), length in any::<u32>(), rest in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut reader = Reader::new(NONCE);
            reader.push(&[&NONCE[..], &[kind], &length.to_le_bytes(), &rest].concat());
            while let Ok(Some(_)) = reader.next() {}
        }
    }
}
