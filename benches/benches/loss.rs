//! The losses at the paper's sizes: N = 32,000 negatives of D = 128, forward and backward, and the
//! reference made of Candle's own operations beside the fused op.

use std::hint::black_box;

use candle_core::{Device, Tensor, Var};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pirl_loss::{ContrastiveLoss, InfoNce, Nce, Negatives, Paper, reference};

const NEGATIVES: usize = 32_000;
const DIM: usize = 128;
const TEMPERATURE: f64 = 0.07;

fn unit(seed: u32, rows: usize) -> Tensor {
    let x = Tensor::from_vec(benches::fill(seed, rows * DIM), (rows, DIM), &Device::Cpu).unwrap();
    let norm = x.sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap();
    x.broadcast_div(&norm).unwrap()
}

fn shared(batch: usize) -> Negatives {
    let own = (0..batch)
        .map(|b| (b % 8 == 0).then_some(b as u32))
        .collect();
    Negatives::Shared {
        rows: unit(3, NEGATIVES),
        own,
    }
}

fn losses(c: &mut Criterion) {
    let mut group = c.benchmark_group("loss");
    group.sample_size(10);
    let losses: [(&str, Box<dyn ContrastiveLoss>); 3] = [
        ("paper", Box::new(Paper::new(TEMPERATURE).unwrap())),
        (
            "nce",
            Box::new(Nce::new(TEMPERATURE, 1_281_167, 14.86).unwrap()),
        ),
        ("infonce", Box::new(InfoNce::new(TEMPERATURE).unwrap())),
    ];
    for batch in [256, 1024] {
        let query = Var::from_tensor(&unit(1, batch)).unwrap();
        let positive = unit(2, batch);
        let negatives = shared(batch);
        group.throughput(Throughput::Elements(batch as u64));
        for (name, loss) in &losses {
            group.bench_function(BenchmarkId::new(*name, batch), |b| {
                b.iter(|| {
                    let value = loss.forward(&query, &positive, &negatives).unwrap();
                    black_box(value.backward().unwrap())
                });
            });
        }
        group.bench_function(BenchmarkId::new("paper forward", batch), |b| {
            let query = query.detach();
            b.iter(|| black_box(losses[0].1.forward(&query, &positive, &negatives).unwrap()));
        });
    }

    let batch = 256;
    let query = Var::from_tensor(&unit(1, batch)).unwrap();
    let positive = unit(2, batch);
    group.throughput(Throughput::Elements(batch as u64));
    let negatives = shared(batch);
    group.bench_function(BenchmarkId::new("paper reference", batch), |b| {
        b.iter(|| {
            let value = reference::paper(&query, &positive, &negatives, TEMPERATURE).unwrap();
            black_box(value.backward().unwrap())
        });
    });
    let rows = 131_072;
    let negatives = Negatives::PerImage {
        bank: unit(3, rows),
        // A stride that shares no factor with the rows visits each before any twice.
        indices: (0..batch * NEGATIVES)
            .map(|i| (i * 40_503 % rows) as u32)
            .collect(),
    };
    group.bench_function(BenchmarkId::new("paper per-image", batch), |b| {
        b.iter(|| {
            let value = losses[0].1.forward(&query, &positive, &negatives).unwrap();
            black_box(value.backward().unwrap())
        });
    });
    group.finish();
}

criterion_group!(benches, losses);
criterion_main!(benches);
