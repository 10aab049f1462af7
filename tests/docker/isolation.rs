//! What a container keeps from its script. That each act works elsewhere is shown by an ordinary container of the engine.

use nsbox::docker::Docker;
use nsbox::outcome::{Value, Verdict};
use nsbox::sandbox::Watch;

use crate::{config, engine, expect, run, text};

/// Prints one word for each probe: what it found, or the error that refused it.
const PROBES: &str = r#"
import ctypes, os, socket
def probe(name, step):
    try: found = step()
    except OSError as error: found = error.strerror
    print(name, found)
def write(path):
    with open(path, 'w') as file: file.write('x')
    return 'written'
def connect():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.connect(('1.1.1.1', 53))
    return 'connected'
probe('root', lambda: write('/etc/x'))
probe('tmp', lambda: write('/tmp/x'))
probe('network', connect)
probe('ids', lambda: os.getresuid() + os.getresgid() + tuple(os.getgroups()))
status = dict(line.split(':\t', 1) for line in open('/proc/self/status').read().splitlines())
probe('caps', lambda: {int(status[f'Cap{which}'], 16) for which in ('Inh', 'Prm', 'Eff', 'Bnd', 'Amb')})
probe('walls', lambda: (status['NoNewPrivs'], status['Seccomp']))
probe('chown', lambda: os.chown('/tmp/x', 0, 0))
probe('memory of pid 1', lambda: open('/proc/1/mem', 'rb'))
probe('streams of pid 1', lambda: os.listdir('/proc/1/fd'))
probe('environment of pid 1', lambda: open('/proc/1/environ').read())
probe('kill pid 1', lambda: [os.kill(1, number) for number in (9, 2, 1, 10, 12, 19)] and 'sent')
probe('machine', lambda: (open('/proc/cpuinfo').read(), open('/proc/cmdline').read(), os.listdir('/sys/class')))
probe('place', os.getcwd)
probe('name', lambda: os.uname().nodename)
probe('pid', lambda: os.getppid())
"#;

#[test]
fn script_reaches_nothing_of_the_host_and_nothing_of_pid_1() {
    let Some(engine) = engine() else { return };
    let outcome = run(&engine, &[], PROBES);
    expect(&outcome, Verdict::Ok);
    let expected = "\
root Read-only file system
tmp written
network the sandbox has no network: pass the data as an input, `nsbox run --input NAME=PATH` or `nsbox.run(..., inputs={...})`
ids (1000, 1000, 1000, 1000, 1000, 1000, 1000)
caps {0}
walls ('1', '2')
chown Operation not permitted
memory of pid 1 Permission denied
streams of pid 1 Permission denied
environment of pid 1 Permission denied
kill pid 1 sent
machine ('', '', [])
place /work
name nsbox
pid 1
";
    assert_eq!(text(&outcome.stdout), expected);
    // Outside, with nothing asked of the engine, the same acts succeed.
    let plain = engine.docker(["run", "--rm", "--network=none", "--entrypoint", "python3", crate::BASE, "-c", PROBES]);
    let mut plain = plain;
    let found = text(&plain.output().unwrap().stdout);
    for line in ["root written", "chown None", "ids (0, 0, 0, 0, 0, 0"] {
        assert!(found.contains(line), "{found}");
    }
    assert!(!found.contains("memory of pid 1 Permission denied"), "{found}");
}

#[test]
fn environment_is_the_fixed_one() {
    let Some(engine) = engine() else { return };
    let source = "import os\nresult = dict(os.environ)";
    let mut config = config(&[("limits.cpus", "1.5"), ("seed", "7")]);
    config.env.insert("GREETING".to_owned(), "a=b c".to_owned());
    let outcome = Docker::new(config).unwrap().socket(engine.socket()).run(source, Watch::default());
    expect(&outcome, Verdict::Ok);
    let Some(Value::Dict(found)) = outcome.result else { panic!("{outcome:#?}") };
    let mut found: Vec<String> = found
        .into_iter()
        .map(|(name, value)| match value {
            Value::Str(value) => format!("{name}={value}"),
            other => panic!("{other:?}"),
        })
        .collect();
    found.sort();
    let expected = [
        "GREETING=a=b c",
        "HOME=/tmp",
        "LANG=C.UTF-8",
        "MKL_NUM_THREADS=2",
        "NUMEXPR_NUM_THREADS=2",
        "OMP_NUM_THREADS=2",
        "OPENBLAS_NUM_THREADS=2",
        "PATH=/usr/local/bin:/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE=1",
        "PYTHONHASHSEED=7",
        "PYTHONNOUSERSITE=1",
        "PYTHONUNBUFFERED=1",
        "TZ=UTC",
    ];
    assert_eq!(found, expected);
}

#[test]
fn script_that_signals_pid_1_ends_itself_alone() {
    let Some(engine) = engine() else { return };
    let outcome = run(&engine, &[], "import os, time\nos.kill(1, 15)\ntime.sleep(30)");
    expect(&outcome, Verdict::Signal);
    let outcome = run(&engine, &[], "import os, time\nif os.fork() == 0: time.sleep(60)\nos.kill(-1, 9)");
    expect(&outcome, Verdict::Ok);
}

#[test]
fn process_left_running_is_ended_with_the_script() {
    let Some(engine) = engine() else { return };
    let source = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)\nprint('done')";
    let begun = std::time::Instant::now();
    let outcome = run(&engine, &[], source);
    expect(&outcome, Verdict::Ok);
    assert!(begun.elapsed().as_secs() < 30 && outcome.stdout == b"done\n");
}
