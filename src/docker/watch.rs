//! Holds one container from its creation to its removal: feeds it, reads its frames, ends it in time.
//!
//! One task of one runtime. The clock and the kills are this side's; how the script ended is told by pid 1's waitid and by the
//! engine's own state of the container, which must agree.

use std::io::{self, Read};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bollard::Docker as Client;
use bollard::container::{AttachContainerResults, LogOutput};
use bollard::errors::Error as ApiError;
use bollard::models::ContainerState;
use bollard::query_parameters::{
    AttachContainerOptions, CreateContainerOptions, KillContainerOptions, WaitContainerOptions,
};
use futures_util::StreamExt;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::channel::{self, Facts, Frame, Garbled, Reader};
use super::engine::{self, Engine};
use super::files::{Inputs, Staging};
use super::{Error, request};
use crate::config::Config;
use crate::sandbox::evidence::{Captured, Evidence, Kill, Stream};
use crate::sandbox::supervise::REAP_PATIENCE;
use crate::sandbox::{Cancel, Script, Stdin, Watch, line};

/// How long pid 1 may take to end its script when asked, before the engine ends the whole container.
const GRACE: Duration = Duration::from_millis(250);
/// The most of the script's standard input at once.
const PIECE: usize = 64 << 10;
/// What is kept of a container's own standard error: an interpreter's last words.
const LAST_WORDS: u64 = 8 << 10;

/// A container of one run, yet to be created.
pub(super) struct Container {
    engine: Arc<Engine>,
    client: Client,
    name: String,
    /// The copies that the container binds live as long as it does.
    _inputs: Inputs,
    body: bollard::models::ContainerCreateBody,
}

/// A run that is over.
pub(super) struct Held {
    pub evidence: Evidence,
    /// How pid 1 was held.
    pub layers: Facts,
    /// Pid 1's last word, if it came to that.
    pub end: Option<Facts>,
    /// What the engine says of the container.
    pub state: ContainerState,
    /// What the container itself wrote to its standard error.
    pub said: Vec<u8>,
    /// Whether the set-up was over its time.
    pub late: bool,
    /// The artifacts, until they are collected.
    pub staging: Option<Staging>,
    pub garbled: bool,
}

impl Engine {
    /// Prepares a container for a script.
    pub(super) fn container(
        self: &Arc<Self>,
        config: &Config,
        seccomp: &str,
        script: &Script,
    ) -> Result<Container, Error> {
        let name = self.owner.next_name();
        let mut inputs = Inputs::find(script, &name)?;
        let mounts = std::mem::take(&mut inputs.mounts);
        let body = request::body(self, config, seccomp, &name, mounts, script.artifacts.is_some());
        Ok(Container { engine: Arc::clone(self), client: self.client()?, name, _inputs: inputs, body })
    }
}

impl Container {
    /// Creates it, and watches it until it has ended.
    pub(super) async fn hold(
        &self,
        config: &Config,
        script: Script,
        watch: Watch<'_>,
        deadline: Instant,
    ) -> Result<Held, Error> {
        let nonce = line::nonce().map_err(|source| Error::Step { step: "draw a nonce", source })?;
        let request = channel::request(config, &script, nonce);
        let staging =
            script.artifacts.is_some().then(|| Staging::make(&self.name, config.limits.artifacts)).transpose()?;
        let late = || Error::SetupTimeout { socket: self.engine.socket.clone(), limit: config.limits.setup_timeout };
        // Until the request is fed to it, the container does nothing: whenever this is given up, nothing ran.
        let given_up = async {
            tokio::select! {
                () = tokio::time::sleep_until(deadline.into()) => late(),
                () = cancelled(watch.cancel.as_ref()) => Error::Cancelled,
            }
        };
        let AttachContainerResults { output, input } = self.start(given_up).await?;
        let asked = feed(input, request, script.stdin)
            .map_err(|source| Error::Step { step: "start a thread for the script's standard input", source })?;
        let mut watcher = Watcher {
            container: self,
            config,
            watch,
            reader: Reader::new(nonce),
            asked,
            phase: Phase::SetUp,
            deadline,
            held: Held {
                evidence: Evidence::default(),
                layers: Facts::default(),
                end: None,
                state: ContainerState::default(),
                said: Vec::new(),
                late: false,
                staging,
                garbled: false,
            },
        };
        watcher.watch(output).await?;
        let mut held = watcher.held;
        held.evidence.ended.get_or_insert_with(Instant::now);
        held.state = self.state().await?;
        Ok(held)
    }

    /// Creates it, attaches to it, and starts it, unless it is given up before.
    async fn start(&self, given_up: impl Future<Output = Error>) -> Result<AttachContainerResults, Error> {
        tokio::pin!(given_up);
        let options = CreateContainerOptions { name: Some(self.name.clone()), ..Default::default() };
        let creating = self.client.create_container(Some(options), self.body.clone());
        tokio::pin!(creating);
        tokio::select! {
            created = &mut creating => {
                created.map_err(engine::failed(&self.engine.socket, "create the container"))?;
            }
            why = &mut given_up => {
                // What the engine is just creating cannot be removed before it is there.
                tokio::time::timeout(REAP_PATIENCE, creating).await.ok();
                return Err(why);
            }
        }
        tokio::select! {
            begun = self.begin() => begun,
            why = &mut given_up => Err(why),
        }
    }

    /// Attaches to it, once it is created, and starts it.
    async fn begin(&self) -> Result<AttachContainerResults, Error> {
        let failed = |step| engine::failed(&self.engine.socket, step);
        let options =
            AttachContainerOptions { stream: true, stdin: true, stdout: true, stderr: true, ..Default::default() };
        let attached =
            self.client.attach_container(&self.name, Some(options)).await.map_err(failed("attach to the container"))?;
        match self.client.start_container(&self.name, None).await {
            Ok(()) => Ok(attached),
            // The engine's own refusal: nothing ran. Without an answer, something may have.
            Err(source @ ApiError::DockerResponseServerError { .. }) => Err(failed("start the container")(source)),
            Err(source) => Err(self.lost(source)),
        }
    }

    fn lost(&self, source: ApiError) -> Error {
        Error::Lost { socket: self.engine.socket.clone(), source }
    }

    /// The engine's word on the container, once that has ended.
    async fn state(&self) -> Result<ContainerState, Error> {
        let ended = async {
            let options = WaitContainerOptions { condition: "not-running".to_owned() };
            // A status other than 0 is an error to it, too; the state tells them apart.
            let mut waiting = self.client.wait_container(&self.name, Some(options));
            let waited = waiting.next().await;
            let state = self.client.inspect_container(&self.name, None).await;
            let state = state.map_err(|source| self.lost(source))?.state.unwrap_or_default();
            match waited {
                Some(Err(source)) if state.running == Some(true) => Err(self.lost(source)),
                _ => Ok(state),
            }
        };
        let late = || Error::Unknown(format!("the container was killed, but had not ended after {REAP_PATIENCE:?}"));
        tokio::time::timeout(REAP_PATIENCE, ended).await.unwrap_or_else(|_| Err(late()))
    }

    async fn signal(&self, signal: &str) {
        let options = KillContainerOptions { signal: signal.to_owned() };
        // It may have ended by itself; whether it has, is looked at afterwards.
        let sent = self.client.kill_container(&self.name, Some(options));
        tokio::time::timeout(GRACE, sent).await.ok();
    }

    /// Removes it, in whatever state it is, or says that it could not.
    pub(super) async fn remove(&self) -> Result<(), Error> {
        let failed = engine::failed(&self.engine.socket, "remove the container");
        let removed = tokio::time::timeout(REAP_PATIENCE, engine::remove(&self.client, &self.name)).await;
        removed.unwrap_or(Err(ApiError::RequestTimeoutError)).map_err(failed)
    }
}

/// Where a run stands, and so what its deadline is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The script has not begun.
    SetUp,
    /// It runs.
    Running,
    /// Pid 1 has been asked to end it.
    Asked,
    /// Nothing of it is left; pid 1 hands over.
    Over,
    /// The engine was told to kill the container.
    Killed,
}

struct Watcher<'a, 'w> {
    container: &'a Container,
    config: &'a Config,
    watch: Watch<'w>,
    reader: Reader,
    /// Takes each wish for a piece of the script's standard input.
    asked: Option<mpsc::Sender<()>>,
    phase: Phase,
    deadline: Instant,
    held: Held,
}

type Output = Pin<Box<dyn futures_util::Stream<Item = Result<LogOutput, ApiError>> + Send>>;

impl Watcher<'_, '_> {
    /// Until pid 1's last word, or the end of the stream.
    async fn watch(&mut self, mut output: Output) -> Result<(), Error> {
        let cancel = self.watch.cancel.clone();
        let cancelled = cancelled(cancel.as_ref());
        tokio::pin!(cancelled);
        loop {
            let is_killed = self.held.evidence.kill.is_some() || self.held.late;
            tokio::select! {
                () = tokio::time::sleep_until(self.deadline.into()) => {
                    if self.phase == Phase::Killed {
                        return Ok(());
                    }
                    self.expire().await;
                }
                () = &mut cancelled, if !is_killed && self.phase != Phase::Over => self.stop(Kill::Cancelled).await,
                piece = output.next() => match piece {
                    Some(Ok(LogOutput::StdOut { message })) => {
                        self.reader.push(&message);
                        if !self.read().await? {
                            return Ok(());
                        }
                    }
                    Some(Ok(other)) => {
                        let mut kept = Captured { bytes: std::mem::take(&mut self.held.said), truncated: false };
                        kept.keep(other.as_ref(), LAST_WORDS);
                        self.held.said = kept.bytes;
                    }
                    // What became of the container is the engine's to say.
                    Some(Err(_)) | None => return Ok(()),
                },
            }
        }
    }

    fn enter(&mut self, phase: Phase, patience: Duration) {
        self.phase = phase;
        self.deadline = Instant::now() + patience;
    }

    /// The deadline has passed.
    async fn expire(&mut self) {
        match self.phase {
            Phase::Running => self.stop(Kill::Timeout).await,
            Phase::SetUp => {
                self.held.late = true;
                self.kill().await;
            }
            Phase::Asked | Phase::Over | Phase::Killed => self.kill().await,
        }
    }

    /// Ends the script by its pid 1, which then hands over what there is.
    async fn stop(&mut self, why: Kill) {
        self.held.evidence.kill.get_or_insert(why);
        self.enter(Phase::Asked, GRACE);
        self.container.signal("SIGTERM").await;
    }

    /// Ends the container.
    async fn kill(&mut self) {
        self.enter(Phase::Killed, REAP_PATIENCE);
        self.container.signal("SIGKILL").await;
    }

    /// Takes the frames that are there; `false` after the last.
    async fn read(&mut self) -> Result<bool, Error> {
        loop {
            let frame = match self.reader.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(true),
                Err(Garbled) => {
                    self.held.garbled = true;
                    self.kill().await;
                    return Ok(false);
                }
            };
            let staged = |source| Error::Step { step: "keep an artifact in the store", source };
            match frame {
                Frame::Layers(layers) => self.held.layers = layers,
                Frame::Started => {
                    self.held.evidence.started = Some(Instant::now());
                    if self.phase == Phase::SetUp {
                        self.enter(Phase::Running, self.config.limits.timeout);
                    }
                }
                Frame::Ready => {
                    // Its reader is gone where the stream has ended.
                    self.asked.as_ref().map(|asked| asked.try_send(()));
                }
                Frame::Output(stream, bytes) => self.capture(stream, &bytes).await,
                Frame::Over => {
                    self.held.evidence.ended = Some(Instant::now());
                    if self.phase != Phase::Killed {
                        self.enter(Phase::Over, REAP_PATIENCE);
                    }
                }
                Frame::Document(piece) => self.held.evidence.document.get_or_insert_default().extend(piece),
                Frame::Artifact(kind, size, path) => {
                    if let Some(staging) = &mut self.held.staging {
                        staging.begin(kind, size, &path).map_err(staged)?;
                    }
                }
                Frame::Piece(piece) => {
                    if let Some(staging) = &mut self.held.staging {
                        staging.add(&piece).map_err(staged)?;
                    }
                }
                Frame::End(facts) => {
                    self.held.end = Some(facts);
                    return Ok(false);
                }
            }
        }
    }

    async fn capture(&mut self, stream: Stream, bytes: &[u8]) {
        let captured = match stream {
            Stream::Stdout => &mut self.held.evidence.stdout,
            Stream::Stderr => &mut self.held.evidence.stderr,
        };
        let kept = captured.keep(bytes, self.config.limits.output);
        if let Some(sink) = self.watch.sink.as_mut().filter(|_| kept > 0) {
            sink(stream, &bytes[..kept]);
        }
        let may_stop = matches!(self.phase, Phase::SetUp | Phase::Running);
        if kept < bytes.len() && self.config.limits.output_kill && may_stop {
            self.stop(Kill::Output(stream)).await;
        }
    }
}

/// Returns once the run is cancelled.
pub(super) async fn cancelled(cancel: Option<&Cancel>) {
    let reader = |cancel: &Cancel| pipe::Receiver::from_owned_fd(cancel.descriptor().try_clone_to_owned()?);
    // That of a handle used before is not announced at the first look.
    if cancel.is_some_and(Cancel::is_cancelled) {
        return;
    }
    if let Some(Ok(reader)) = cancel.map(reader)
        && reader.readable().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// Writes the request and then, at each wish, a piece of the script's standard input, if it has one; the stream stays open for
/// as long as this process lives. Returns what takes the wishes; fails where no thread can be had.
fn feed(
    mut input: Pin<Box<dyn AsyncWrite + Send>>,
    request: Vec<u8>,
    stdin: Stdin,
) -> io::Result<Option<mpsc::Sender<()>>> {
    let (asked, mut pieces) = match stdin {
        Stdin::Empty => (None, None),
        Stdin::Stream(stream) => {
            let (asked, pieces) = pieces(stream)?;
            (Some(asked), Some(pieces))
        }
    };
    tokio::spawn(async move {
        // A container that has ended reads no more; its end is seen elsewhere.
        input.write_all(&request).await.ok()?;
        input.flush().await.ok()?;
        while let Some(pieces) = &mut pieces
            && let Some(piece) = pieces.recv().await
        {
            let length = u32::try_from(piece.len()).unwrap_or(u32::MAX);
            input.write_all(&[&length.to_le_bytes(), &piece[..]].concat()).await.ok()?;
            input.flush().await.ok()?;
        }
        std::future::pending::<Option<()>>().await
    });
    Ok(asked)
}

/// Reads a stream that may block, a piece for each wish, in a thread that ends with the stream, or with the run and a read
/// that is under way then. The last piece is empty.
fn pieces(mut stream: Box<dyn Read + Send>) -> io::Result<(mpsc::Sender<()>, mpsc::Receiver<Vec<u8>>)> {
    let (asked, mut wishes) = mpsc::channel(1);
    let (sender, receiver) = mpsc::channel(1);
    std::thread::Builder::new().spawn(move || {
        let mut buffer = vec![0; PIECE];
        while wishes.blocking_recv().is_some() {
            let count = loop {
                match stream.read(&mut buffer) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    read => break read.unwrap_or(0),
                }
            };
            if sender.blocking_send(buffer[..count].to_vec()).is_err() || count == 0 {
                return;
            }
        }
    })?;
    Ok((asked, receiver))
}
