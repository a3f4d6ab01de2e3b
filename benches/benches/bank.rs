//! The memory bank at ImageNet's size, 1,281,167 rows of 128: drawing and gathering 32,000
//! negatives, and the update of a batch of 1,024.

use std::hint::black_box;

use candle_core::Device;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pirl_bank::{Drawn, MemoryBank, NegativeSampler, PerImageSampler, SharedSampler};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

const ROWS: usize = 1_281_167;
const DIM: usize = 128;
const NEGATIVES: usize = 32_000;
const BATCH: usize = 1024;

fn bank(c: &mut Criterion) {
    let mut group = c.benchmark_group("bank");
    group.sample_size(20);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut bank = MemoryBank::random(ROWS, DIM, 0.5, 1, &Device::Cpu).unwrap();
    // Spread over the bank: a prime stride.
    let batch: Vec<u32> = (0..BATCH).map(|b| (b * 999_983 % ROWS) as u32).collect();

    group.throughput(Throughput::Elements(NEGATIVES as u64));
    group.bench_function("draw shared", |b| {
        b.iter(|| {
            black_box(
                SharedSampler
                    .draw(ROWS, &batch, NEGATIVES, &mut rng)
                    .unwrap(),
            )
        });
    });
    let Drawn::Shared { indices, .. } = SharedSampler
        .draw(ROWS, &batch, NEGATIVES, &mut rng)
        .unwrap()
    else {
        unreachable!("a shared sampler draws a shared set")
    };
    group.bench_function("gather", |b| {
        b.iter(|| black_box(bank.gather(&indices).unwrap()))
    });

    group.throughput(Throughput::Elements(64 * NEGATIVES as u64));
    group.bench_function("draw per image, batch of 64", |b| {
        b.iter(|| {
            black_box(
                PerImageSampler
                    .draw(ROWS, &batch[..64], NEGATIVES, &mut rng)
                    .unwrap(),
            )
        });
    });

    let embeddings = MemoryBank::random(BATCH, DIM, 0.5, 2, &Device::Cpu).unwrap();
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("update", |b| {
        b.iter(|| bank.update(&batch, embeddings.rows()).unwrap());
    });
    group.finish();
}

criterion_group!(benches, bank);
criterion_main!(benches);
