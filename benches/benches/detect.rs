//! ROIAlign and non-maximum suppression, on up to 12,000 boxes: the cases that `compare.py detect`
//! times.

mod cases;
mod regions;

use cases::cases;
use criterion::{Criterion, criterion_group, criterion_main};

fn ops(c: &mut Criterion) {
    let mut group = c.benchmark_group("detect");
    group.sample_size(10);
    for (name, case) in cases::<regions::Case>("detect") {
        let mut run = case.runner();
        group.bench_function(name, |b| b.iter(&mut run));
    }
    group.finish();
}

criterion_group!(benches, ops);
criterion_main!(benches);
