//! What the check costs: a strategy of 200 lines, parse included, and loading the built-in policy.
//!
//! Cases: `check/strategy_200_lines` (target: under 300 us), `check/empty`.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use nsbox::check::{Policy, check};

const STRATEGY: &str = include_str!("../tests/check/benign/strategy_200_lines.py");

fn checks(c: &mut Criterion) {
    let policy = Policy::builtin();
    let mut group = c.benchmark_group("check");
    group.bench_function("strategy_200_lines", |b| {
        b.iter(|| check(black_box(STRATEGY.as_bytes()), "strategy.py", policy));
    });
    group.bench_function("empty", |b| b.iter(|| check(black_box(b""), "empty.py", policy)));
    group.finish();
}

criterion_group!(benches, checks);
criterion_main!(benches);
