//! The training ops at the sizes that PIRL's networks give them, in floating-point operations a
//! second beside the `gemm` crate's, or in bytes a second for the ops bound by memory.
//!
//! Only taps inside the image count as work, so a convolution on small maps can be compared with a
//! matrix product. Single thread: `RAYON_NUM_THREADS=1 cargo bench -p benches --bench ops`.

use std::hint::black_box;

use benches::fill;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pirl_model::ops::batch_norm;
use pirl_model::ops::batch_norm::{Affine, Gradients, Statistics};
use pirl_model::ops::conv2d::{self, ConvShape, Winograd};
use pirl_model::ops::linear;
use pirl_model::ops::pool::{self, PoolShape};

/// Name and `n, side, c_in, c_out, kernel, stride` of the convolutions measured.
const CONVOLUTIONS: [(&str, [usize; 6]); 18] = [
    // ResNet-18 at a quarter and at half width on 28-pixel images, batch 128.
    ("18q/28 stem", [128, 28, 3, 16, 3, 1]),
    ("18q/28 res2", [128, 28, 16, 16, 3, 1]),
    ("18q/14 res3", [128, 14, 32, 32, 3, 1]),
    ("18q/7 res4", [128, 7, 64, 64, 3, 1]),
    ("18q/4 res5", [128, 4, 128, 128, 3, 1]),
    ("18h/28 res2", [128, 28, 32, 32, 3, 1]),
    ("18h/14 res3", [128, 14, 64, 64, 3, 1]),
    ("18h/7 res4", [128, 7, 128, 128, 3, 1]),
    ("18h/4 res5", [128, 4, 256, 256, 3, 1]),
    // Nine patches of 12 pixels each.
    ("18h/12 patch res2", [1152, 12, 32, 32, 3, 1]),
    ("18h/6 patch res3", [1152, 6, 64, 64, 3, 1]),
    ("18h/3 patch res4", [1152, 3, 128, 128, 3, 1]),
    ("18h/2 patch res5", [1152, 2, 256, 256, 3, 1]),
    // ResNet-50 on 224-pixel images.
    ("50/224 stem", [4, 224, 3, 64, 7, 2]),
    ("50/56 res2 3x3", [4, 56, 64, 64, 3, 1]),
    ("50/56 res2 1x1", [4, 56, 64, 256, 1, 1]),
    ("50/14 res4 3x3", [8, 14, 256, 256, 3, 1]),
    ("50/7 res5 1x1", [8, 7, 512, 2048, 1, 1]),
];

/// A square product, the yardstick: nothing else computes faster here.
fn peak(c: &mut Criterion) {
    let n = 768;
    let (a, b) = (fill(1, n * n), fill(2, n * n));
    let mut out = vec![0f32; n * n];
    let threads = match rayon_threads() {
        1 => gemm::Parallelism::None,
        n => gemm::Parallelism::Rayon(n),
    };
    let (rows, columns) = (1, n as isize);
    let mut group = c.benchmark_group("peak");
    group.throughput(Throughput::Elements(2 * (n as u64).pow(3)));
    group.bench_function("gemm 768", |bench| {
        bench.iter(|| {
            // SAFETY: the three slices have n * n numbers, and the strides address those only.
            unsafe {
                gemm::gemm(
                    n,
                    n,
                    n,
                    out.as_mut_ptr(),
                    rows,
                    columns,
                    false,
                    a.as_ptr(),
                    rows,
                    columns,
                    b.as_ptr(),
                    rows,
                    columns,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    threads,
                );
            }
        });
    });
}

fn rayon_threads() -> usize {
    std::env::var("RAYON_NUM_THREADS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()))
}

/// Multiplications and additions on taps inside the image.
fn operations(s: &ConvShape) -> u64 {
    let inside = |input: usize, output: usize| -> usize {
        (0..output)
            .map(|o| {
                (0..s.kernel)
                    .filter(|k| (s.padding..input + s.padding).contains(&(o * s.stride + k)))
                    .count()
            })
            .sum()
    };
    let (oh, ow) = s.out_hw();
    (2 * s.n * inside(s.h, oh) * inside(s.w, ow) * s.c_in * s.c_out) as u64
}

fn convolution(c: &mut Criterion) {
    for (name, [n, side, c_in, c_out, kernel, stride]) in CONVOLUTIONS {
        let padding = kernel / 2;
        let s = ConvShape {
            n,
            h: side,
            w: side,
            c_in,
            c_out,
            kernel,
            stride,
            padding,
        };
        let (x, weight, dy) = (
            fill(1, s.in_len()),
            fill(2, s.weight_len()),
            fill(3, s.out_len()),
        );
        let mut out = vec![0f32; s.out_len()];
        let (mut dx, mut dw) = (vec![0f32; s.in_len()], vec![0f32; s.weight_len()]);
        let mut group = c.benchmark_group(format!("conv2d/{name}"));
        group.throughput(Throughput::Elements(operations(&s)));
        // Both ways where there are two.
        let ways = [(Winograd::Auto, ""), (Winograd::Off, ", direct")];
        let ways = &ways[..if kernel == 3 && stride == 1 { 2 } else { 1 }];
        for &(winograd, way) in ways {
            group.bench_function(format!("forward{way}"), |b| {
                b.iter(|| conv2d::forward(black_box(&s), winograd, &x, &weight, &mut out));
            });
            group.bench_function(format!("backward input{way}"), |b| {
                b.iter(|| conv2d::backward_input(black_box(&s), winograd, &weight, &dy, &mut dx));
            });
            group.bench_function(format!("backward weight{way}"), |b| {
                b.iter(|| conv2d::backward_weight(black_box(&s), winograd, &x, &dy, &mut dw));
            });
        }
    }
}

/// `rows, inputs, outputs`: a head's projection, ImageNet's classes, and 10,000 permutations as classes.
const LINEAR: [[usize; 3]; 3] = [[256, 512, 128], [256, 2048, 1000], [256, 1152, 10_000]];

fn fully_connected(c: &mut Criterion) {
    for [rows, inputs, outputs] in LINEAR {
        let (x, weight, dy) = (
            fill(1, rows * inputs),
            fill(2, outputs * inputs),
            fill(3, rows * outputs),
        );
        let mut y = vec![0f32; dy.len()];
        let (mut dx, mut dw) = (vec![0f32; x.len()], vec![0f32; weight.len()]);
        let mut group = c.benchmark_group(format!("linear/{rows} rows, {inputs} to {outputs}"));
        let products = 2 * (rows * inputs * outputs) as u64;
        group.throughput(Throughput::Elements(products));
        group.bench_function("forward", |b| {
            b.iter(|| linear::forward(rows, inputs, outputs, black_box(&x), &weight, None, &mut y));
        });
        group.throughput(Throughput::Elements(2 * products));
        group.bench_function("backward", |b| {
            b.iter(|| {
                let dx = Some(&mut dx[..]);
                let x = black_box(&x);
                linear::backward(rows, inputs, outputs, x, &weight, &dy, dx, &mut dw, None);
            });
        });
    }
}

fn norm(criterion: &mut Criterion) {
    for (rows, c) in [
        (128 * 28 * 28, 16),
        (1152 * 2 * 2, 256),
        (16 * 56 * 56, 256),
    ] {
        let (x, residual, dy) = (fill(1, rows * c), fill(2, rows * c), fill(3, rows * c));
        let (gamma, beta) = (fill(4, c), fill(5, c));
        let mut y = vec![0f32; x.len()];
        let (mut dx, mut dr) = (vec![0f32; x.len()], dy);
        let (mut dgamma, mut dbeta) = (vec![0f32; c], vec![0f32; c]);
        let bytes = 4 * (rows * c) as u64;
        let mut group = criterion.benchmark_group(format!("batch_norm/{rows} rows, {c} channels"));
        group.throughput(Throughput::Bytes(4 * bytes));
        group.bench_function("forward", |b| {
            b.iter(|| {
                let statistics = Statistics::of_batch(&x, c, 1e-5);
                let affine = Affine::new(&gamma, &beta, &statistics);
                batch_norm::forward(&x, &affine, Some(&residual), true, &mut y);
            });
        });
        let statistics = Statistics::of_batch(&x, c, 1e-5);
        let affine = Affine::new(&gamma, &beta, &statistics);
        batch_norm::forward(&x, &affine, Some(&residual), true, &mut y);
        group.throughput(Throughput::Bytes(8 * bytes));
        group.bench_function("backward", |b| {
            b.iter(|| {
                let gradients = Gradients {
                    gamma: &mut dgamma,
                    beta: &mut dbeta,
                    x: Some(&mut dx),
                };
                batch_norm::backward(&x, Some(&y), &mut dr, &gamma, &statistics, gradients);
            });
        });
    }
}

fn pooling(criterion: &mut Criterion) {
    let s = PoolShape {
        n: 4,
        h: 112,
        w: 112,
        c: 64,
        kernel: 3,
        stride: 2,
        padding: 1,
    };
    let x = fill(1, s.in_len());
    let (mut out, mut argmax) = (vec![0f32; s.out_len()], vec![0u32; s.out_len()]);
    let mut dx = vec![0f32; s.in_len()];
    let mut group = criterion.benchmark_group("max_pool/112, 64 channels");
    group.throughput(Throughput::Bytes(4 * s.in_len() as u64));
    group.bench_function("forward", |b| {
        b.iter(|| pool::max_forward(black_box(&s), &x, &mut out, Some(&mut argmax)));
    });
    let dy = fill(2, s.out_len());
    group.bench_function("backward", |b| {
        b.iter(|| pool::max_backward(black_box(&s), &argmax, &dy, &mut dx));
    });
    group.finish();

    let (n, hw, c) = (128, 16, 256);
    let (x, mut out) = (fill(1, n * hw * c), vec![0f32; n * c]);
    let mut group = criterion.benchmark_group("average_pool/16 pixels, 256 channels");
    group.throughput(Throughput::Bytes(4 * x.len() as u64));
    group.bench_function("forward", |b| {
        b.iter(|| pool::average_forward(n, hw, c, black_box(&x), &mut out));
    });
}

criterion_group! {
    name = ops;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(std::time::Duration::from_millis(200))
        .measurement_time(std::time::Duration::from_millis(600));
    targets = peak, convolution, fully_connected, norm, pooling
}
criterion_main!(ops);
