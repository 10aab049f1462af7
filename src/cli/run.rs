//! `nsbox run`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use clap::Parser;

use super::terminal::Output;
use super::{Failure, complain, event_log};
use crate::config::{Resolved, Resolver};
use crate::outcome::{Attempt, Backend, Outcome, Verdict};
use crate::router::Router;
use crate::sandbox::{Cancel, Script, Stdin, Stream, Watch};
use crate::stats::word;

/// Signals that end the guest before they end nsbox.
const SIGNALS: [i32; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// Options that are configuration keys too; the help names each key.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Options {
    /// Reads this configuration file [env: NSBOX_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// host, the name of an image, or the path of an unpacked root file system; sandbox and sandbox-slim are built at their
    /// first use [key: image]
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// The interpreter of the host image; default: the first python3 on PATH [key: python]
    #[arg(long, value_name = "PATH")]
    python: Option<String>,
    /// namespace, docker, ast-only or auto [key: backend]
    #[arg(long, value_name = "BACKEND")]
    backend: Option<String>,
    /// Backends that may take over, separated by commas [key: fallback]
    #[arg(long, value_name = "LIST")]
    fallback: Option<String>,
    /// Memory of all processes together, such as 512m [key: limits.memory]
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    memory: Option<String>,
    /// Share of one CPU's time, such as 0.5 [key: limits.cpus]
    #[arg(long, value_name = "NUMBER", help_heading = "Limits")]
    cpus: Option<String>,
    /// Processes and threads together [key: limits.pids]
    #[arg(long, value_name = "NUMBER", help_heading = "Limits")]
    pids: Option<String>,
    /// What /tmp, /work and /dev/shm hold together [key: limits.disk]
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    disk: Option<String>,
    /// Wall time from the script's first line, such as 10s or 500ms [key: limits.timeout]
    #[arg(long, value_name = "DURATION", help_heading = "Limits")]
    timeout: Option<String>,
    /// CPU time of all processes together [key: limits.cpu_time]
    #[arg(long, value_name = "DURATION", help_heading = "Limits")]
    cpu_time: Option<String>,
    /// What is kept of stdout, and of stderr [key: limits.output]
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    output_limit: Option<String>,
    /// Kills a script that writes more, instead of cutting its output [key: limits.output_kill]
    #[arg(long, help_heading = "Limits")]
    output_limit_kill: bool,
    /// Goes on where a required layer can only be had in a weaker form [key: allow_degraded]
    #[arg(long)]
    allow_degraded: bool,
    /// Sets a variable of the guest's environment [key: env]
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Runs without the check [key: check]
    #[arg(long)]
    no_check: bool,
    /// The check's policy file [key: policy]
    #[arg(long, value_name = "FILE")]
    policy: Option<String>,
    /// default, strict, or the path of a profile in the OCI format [key: seccomp]
    #[arg(long, value_name = "PROFILE")]
    seccomp: Option<String>,
    /// Starts a new interpreter for each run [key: warm]
    #[arg(long, conflicts_with = "warm")]
    fresh: bool,
    /// Lets an interpreter that has imported the preload list serve the runs, as a loop does [key: warm]
    #[arg(long)]
    warm: bool,
    /// Modules that a warm interpreter has imported, separated by commas [key: preload]
    #[arg(long, value_name = "LIST")]
    preload: Option<String>,
    /// Seeds random, numpy.random and string hashes [key: seed]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<String>,
}

impl Options {
    /// No option but the configuration file.
    pub(super) fn of_file(config: Option<PathBuf>) -> Self {
        Self { config, ..Self::default() }
    }

    /// The configuration: built-in < file < environment < these.
    pub(super) fn resolve(&self) -> Result<Resolved, Failure> {
        let mut resolver = Resolver::new().env(std::env::vars_os());
        if let Some(file) = &self.config {
            resolver = resolver.file(file);
        }
        let texts = [
            ("image", "--image", &self.image),
            ("python", "--python", &self.python),
            ("backend", "--backend", &self.backend),
            ("fallback", "--fallback", &self.fallback),
            ("limits.memory", "--memory", &self.memory),
            ("limits.cpus", "--cpus", &self.cpus),
            ("limits.pids", "--pids", &self.pids),
            ("limits.disk", "--disk", &self.disk),
            ("limits.timeout", "--timeout", &self.timeout),
            ("limits.cpu_time", "--cpu-time", &self.cpu_time),
            ("limits.output", "--output-limit", &self.output_limit),
            ("policy", "--policy", &self.policy),
            ("seccomp", "--seccomp", &self.seccomp),
            ("preload", "--preload", &self.preload),
            ("seed", "--seed", &self.seed),
        ];
        for (key, flag, value) in texts {
            if let Some(value) = value {
                resolver = resolver.flag(key, value, flag);
            }
        }
        let switches = [
            ("limits.output_kill", "--output-limit-kill", self.output_limit_kill, "true"),
            ("allow_degraded", "--allow-degraded", self.allow_degraded, "true"),
            ("check", "--no-check", self.no_check, "false"),
            ("warm", "--fresh", self.fresh, "false"),
            ("warm", "--warm", self.warm, "true"),
        ];
        for (key, flag, _, value) in switches.into_iter().filter(|(_, _, given, _)| *given) {
            resolver = resolver.flag(key, value, flag);
        }
        for variable in &self.env {
            resolver = resolver.flag("env", variable, "--env");
        }
        let resolved = resolver.resolve().map_err(|error| Failure::usage(&error))?;
        for warning in &resolved.warnings {
            complain(&format!("warning: {warning}"));
        }
        Ok(resolved)
    }
}

/// What a script is given.
#[derive(Debug, clap::Args)]
pub(super) struct Given {
    /// Shows a file or folder, read-only, as /input/NAME
    #[arg(long, value_name = "NAME=PATH")]
    input: Vec<String>,
    /// Copies what the script leaves in /output into this folder
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Passes an argument to the script
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    arg: Vec<String>,
}

impl Given {
    /// The script with it.
    pub(super) fn give(&self, script: Script) -> Result<Script, Failure> {
        Ok(self.give_inputs(script, &self.inputs()?, self.output.clone()))
    }

    /// The script of a loop's iteration with it: what it leaves in /output has a folder of its own.
    pub(super) fn give_iteration(&self, script: Script, inputs: &[(&str, &str)], iteration: u64) -> Script {
        self.give_inputs(script, inputs, self.output.as_ref().map(|folder| folder.join(iteration.to_string())))
    }

    /// The inputs, by name and path.
    pub(super) fn inputs(&self) -> Result<Vec<(&str, &str)>, Failure> {
        fn split(input: &String) -> Result<(&str, &str), Failure> {
            input.split_once('=').ok_or_else(|| Failure {
                status: super::USAGE,
                message: format!("--input {input}: expected NAME=PATH, as in prices=GOOG.csv"),
            })
        }
        self.input.iter().map(split).collect()
    }

    fn give_inputs(&self, mut script: Script, inputs: &[(&str, &str)], artifacts: Option<PathBuf>) -> Script {
        for (name, path) in inputs {
            script = script.input(*name, *path);
        }
        for arg in &self.arg {
            script = script.arg(arg);
        }
        match artifacts {
            Some(folder) => script.artifacts(folder),
            None => script,
        }
    }
}

/// Runs one script: streams its output and mirrors its exit status
#[derive(Debug, Parser)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    #[command(flatten)]
    pub options: Options,
    #[command(flatten)]
    given: Given,
    /// Passes nsbox's standard input on to the script
    #[arg(long)]
    stdin: bool,
    /// Prints the outcome as JSON instead of the script's output
    #[arg(long)]
    json: bool,
    /// Says nothing but what the script prints
    #[arg(long, short)]
    quiet: bool,
    /// Says how the run ended, what it used and which layers held
    #[arg(long, short)]
    verbose: bool,
    /// The script; - reads it from standard input
    #[arg(value_name = "SCRIPT|-")]
    script: PathBuf,
}

const AFTER_HELP: &str = "\
Exit status: the script's own; 124 timeout, 137 out of memory, 128+N killed by signal N, 159 seccomp violation,
126 refused by the check, 125 sandbox unavailable or wrong usage, 130 cancelled, 122 output limit, 121 lost.

Examples:
  nsbox run strategy.py
  nsbox run --input prices=GOOG.csv --timeout 10s strategy.py
  nsbox run --json --memory 512m strategy.py | jq .metrics
  echo 'print(1 + 1)' | nsbox run -
  nsbox run --output results --arg --fast --seed 7 strategy.py";

pub(super) fn main(args: Args) -> Result<u8, Failure> {
    let resolved = args.options.resolve()?;
    let script = script(&args)?;
    super::image::ensure(&resolved.config.image, args.quiet)?;
    let cancel = Cancel::new()?;
    end_by_signal(&cancel)?;
    let log = event_log(&resolved.config);
    let mut output = (!args.json).then(Output::new);
    let mut sink = |stream: Stream, bytes: &[u8]| {
        if let Some(output) = &mut output {
            output.write(stream, bytes);
        }
    };
    let watch = Watch { sink: Some(&mut sink), cancel: Some(cancel) };
    let router = Router::new(resolved.config, log);
    // A pool is worth its start where many runs share it.
    let router = if args.options.warm { router.jobs(1) } else { router.once() };
    let outcome = router.run(script, watch);
    if let Some(output) = output {
        output.finish();
    }
    if args.json {
        let mut stdout = io::stdout().lock();
        serde_json::to_writer(&mut stdout, &outcome).map_err(io::Error::from)?;
        writeln!(stdout)?;
    }
    if !args.quiet {
        report(&outcome, args.json, args.verbose);
    }
    Ok(u8::try_from(outcome.exit_status()).unwrap_or(u8::MAX))
}

/// Lets a signal end the guests first.
pub(super) fn end_by_signal(cancel: &Cancel) -> io::Result<()> {
    for signal in SIGNALS {
        signal_hook::low_level::pipe::register(signal, cancel.trigger()?)?;
    }
    Ok(())
}

/// The script with all that it is given.
fn script(args: &Args) -> Result<Script, Failure> {
    let failure = |message| Failure { status: super::USAGE, message };
    let from_stdin = args.script.as_os_str() == "-";
    if from_stdin && args.stdin {
        return Err(failure("--stdin cannot be had with a script from standard input".to_owned()));
    }
    let mut source = Vec::new();
    let read = if from_stdin {
        io::stdin().lock().read_to_end(&mut source)
    } else {
        File::open(&args.script).and_then(|mut file| file.read_to_end(&mut source))
    };
    let shown = args.script.display();
    read.map_err(|error| failure(format!("failed to read the script {shown}: {error}")))?;
    let name = if from_stdin { "stdin.py".to_owned() } else { args.script.to_string_lossy().into_owned() };
    let mut script = args.given.give(Script::from(source).name(name))?;
    if args.stdin {
        script = script.stdin(Stdin::Stream(Box::new(io::stdin())));
    }
    Ok(script)
}

/// Says how the run ended where its exit status alone does not, and everything with `verbose`.
fn report(outcome: &Outcome, json: bool, verbose: bool) {
    let tells_itself = matches!(outcome.verdict, Verdict::Ok | Verdict::Error);
    if json && !verbose {
        return;
    }
    if !tells_itself {
        let verdict = word(&outcome.verdict);
        complain(&format!("{verdict}: {}", outcome.message));
    } else if verbose && !outcome.message.is_empty() {
        complain(&outcome.message);
    }
    if outcome.backend == Some(Backend::Direct) {
        complain("warning: the script ran without any isolation (enabled: false)");
    } else if outcome.degraded {
        complain(
            "warning: the run was degraded: a required layer or limit was replaced by something weaker (--json names it)",
        );
    }
    for Attempt { backend, verdict, why } in &outcome.attempts {
        complain(&format!("warning: {} was left for another backend ({}): {why}", word(backend), word(verdict)));
    }
    for violation in &outcome.violations {
        if verbose || !tells_itself {
            complain(&format!("refused: {} ({}x)", violation.syscall, violation.count));
        }
    }
    if verbose {
        let peak = outcome.usage.peak_memory_bytes.map(|bytes| indicatif::BinaryBytes(bytes).to_string());
        let memory = peak.as_deref().unwrap_or("?");
        let timings = outcome.timings;
        complain(&format!(
            "{}: {:.1} ms (check {:.1}, set-up {:.1}, teardown {:.1}), peak memory {memory}",
            word(&outcome.verdict),
            timings.run_ms,
            timings.check_ms,
            timings.setup_ms,
            timings.teardown_ms
        ));
    }
}
