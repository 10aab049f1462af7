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
        let late = Error::SetupTimeout { socket: self.engine.socket.clone(), limit: config.limits.setup_timeout };
        let started = tokio::time::timeout_at(deadline.into(), self.start()).await;
        let AttachContainerResults { output, input } = started.unwrap_or(Err(late))?;
        feed(input, request, script.stdin)
            .map_err(|source| Error::Step { step: "start a thread for the script's standard input", source })?;
        let mut watcher = Watcher {
            container: self,
            config,
            watch,
            reader: Reader::new(nonce),
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

    /// Creates it, attaches to it, and starts it.
    async fn start(&self) -> Result<AttachContainerResults, Error> {
        let failed = |step| engine::failed(&self.engine.socket, step);
        let options = CreateContainerOptions { name: Some(self.name.clone()), ..Default::default() };
        self.client.create_container(Some(options), self.body.clone()).await.map_err(failed("create the container"))?;
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
async fn cancelled(cancel: Option<&Cancel>) {
    let reader = |cancel: &Cancel| pipe::Receiver::from_owned_fd(cancel.descriptor().try_clone_to_owned()?);
    if let Some(Ok(reader)) = cancel.map(reader)
        && reader.readable().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// Writes the request and then the script's standard input, if it has one; else the stream stays open for as long as this
/// process lives. Fails where no thread can be had.
fn feed(mut input: Pin<Box<dyn AsyncWrite + Send>>, request: Vec<u8>, stdin: Stdin) -> io::Result<()> {
    let pieces = match stdin {
        Stdin::Empty => None,
        Stdin::Stream(stream) => Some(pieces(stream)?),
    };
    tokio::spawn(async move {
        // A container that has ended reads no more; its end is seen elsewhere.
        input.write_all(&request).await.ok()?;
        input.flush().await.ok()?;
        let Some(mut pieces) = pieces else { return std::future::pending().await };
        while let Some(piece) = pieces.recv().await {
            input.write_all(&piece).await.ok()?;
            input.flush().await.ok()?;
        }
        input.shutdown().await.ok()
    });
    Ok(())
}

/// Reads a stream that may block, in a thread that ends with it, or with its first piece after the run.
fn pieces(mut stream: Box<dyn Read + Send>) -> io::Result<mpsc::Receiver<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::Builder::new().spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match stream.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(count) if count > 0 && sender.blocking_send(buffer[..count].to_vec()).is_ok() => {}
                _ => return,
            }
        }
    })?;
    Ok(receiver)
}
