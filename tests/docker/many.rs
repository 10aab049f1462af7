//! Many at once.

use nsbox::outcome::{Value, Verdict};
use nsbox::sandbox::Watch;

use crate::{docker, engine, expect};

#[test]
fn twenty_at_once_do_not_disturb_each_other() {
    let Some(engine) = engine() else { return };
    let docker =
        docker(&engine, &[("limits.timeout", "60s"), ("limits.memory", "96m"), ("limits.setup_timeout", "120s")]);
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..20)
            .map(|i| {
                let docker = &docker;
                let run = move || match i % 4 {
                    0 => docker.run(format!("open('/tmp/x', 'x').write('{i}')\nresult = int(open('/tmp/x').read())"), Watch::default()),
                    1 => docker.run(format!("raise SystemExit({i})"), Watch::default()),
                    2 => docker.run("x = bytearray(512 << 20)", Watch::default()),
                    _ => docker.run(format!("import os, time\ntime.sleep(1)\nprint({i}, len([p for p in os.listdir('/proc') if p.isdigit()]))"), Watch::default()),
                };
                scope.spawn(run)
            })
            .collect();
        for (i, run) in (0..).zip(runs) {
            let outcome = run.join().unwrap();
            match i % 4 {
                0 => {
                    expect(&outcome, Verdict::Ok);
                    assert_eq!(outcome.result, Some(Value::Int(i.into())));
                }
                1 => assert_eq!((outcome.verdict, outcome.exit_code), (Verdict::Error, Some(i)), "{outcome:#?}"),
                2 => expect(&outcome, Verdict::Oom),
                _ => {
                    expect(&outcome, Verdict::Ok);
                    assert_eq!(outcome.stdout, format!("{i} 2\n").as_bytes(), "it sees itself and pid 1");
                }
            }
        }
    });
}
