//! The whole step: both branches, forward and backward, the loss, the optimiser and the bank.
//!
//! `peers/compare.py` runs the same steps in turn with PyTorch's.

mod cases;
mod learner;

use cases::cases;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use learner::{Case, Steps};
use pirl_core::allocator::{self, Allocator};
use pirl_model::Precision;
use pirl_model::ops::conv2d::Winograd;

#[global_allocator]
static ALLOCATOR: Allocator = allocator::allocator(); // as the `pirl` command

fn steps(c: &mut Criterion) {
    allocator::keep_freed_memory();
    let mut group = c.benchmark_group("step");
    group.sample_size(10);
    for (name, case) in cases::<Case>("step") {
        group.throughput(Throughput::Elements(case.batch as u64));
        for precision in [Precision::F32, Precision::Bf16] {
            let mut steps = Steps::new(&case, precision, Winograd::Auto);
            group.bench_function(format!("{name} {precision:?}"), |b| {
                b.iter(|| steps.step());
            });
        }
    }
    group.finish();
}

criterion_group!(benches, steps);
criterion_main!(benches);
