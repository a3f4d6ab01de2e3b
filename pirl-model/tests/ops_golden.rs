//! The fast ops against PyTorch: `golden/make_ops.py` wrote the expected numbers.

use std::collections::HashMap;

use benches::fill;
use candle_core::{Device, Result, Tensor, Var};
use pirl_model::ops::batch_norm::{Affine, Gradients, Statistics};
use pirl_model::ops::pool::{self, PoolShape};
use pirl_model::ops::{batch_norm, conv2d, linear, max_pool2d, relu};

/// Entries that a large tensor is compared on, besides its norm.
const SAMPLE: usize = 64;

struct Golden(HashMap<String, Tensor>);

impl Golden {
    fn load() -> Result<Golden> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/ops.safetensors");
        candle_core::safetensors::load(path, &Device::Cpu).map(Golden)
    }

    /// Relative error under 1e-4, against the largest magnitude among the entries stored.
    fn check(&self, name: &str, got: &[f32]) -> Result<()> {
        let want: Vec<f32> = self.0[name].to_vec1()?;
        let got = if got.len() <= SAMPLE {
            got.to_vec()
        } else {
            let norm = got.iter().map(|&v| (v as f64).powi(2)).sum::<f64>().sqrt() as f32;
            let picks = (0..SAMPLE).map(|i| got[i * got.len() / SAMPLE]);
            assert!(
                (norm / want[0] - 1.0).abs() < 1e-4,
                "{name}: norm {norm}, should be {}",
                want[0]
            );
            std::iter::once(want[0]).chain(picks).collect()
        };
        assert_eq!(got.len(), want.len(), "{name}");
        let entries = if want.len() > SAMPLE { 1.. } else { 0.. };
        let scale = want[entries].iter().fold(0f32, |m, v| m.max(v.abs()));
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            assert!(
                (g - w).abs() <= 1e-4 * scale,
                "{name}: entry {i} is {g}, should be {w}"
            );
        }
        Ok(())
    }
}

fn tensor(seed: u32, shape: &[usize]) -> Result<Tensor> {
    Tensor::from_vec(fill(seed, shape.iter().product()), shape, &Device::Cpu)
}

fn numbers(x: &Tensor) -> Result<Vec<f32>> {
    x.flatten_all()?.to_vec1()
}

/// NCHW numbers to NHWC.
fn channels_last(x: Vec<f32>, (n, c, h, w): (usize, usize, usize, usize)) -> Result<Vec<f32>> {
    let x = Tensor::from_vec(x, (n, c, h, w), &Device::Cpu)?;
    numbers(&x.permute((0, 2, 3, 1))?.contiguous()?)
}

/// NHWC numbers to NCHW.
fn channels_first(x: Vec<f32>, (n, c, h, w): (usize, usize, usize, usize)) -> Result<Vec<f32>> {
    let x = Tensor::from_vec(x, (n, h, w, c), &Device::Cpu)?;
    numbers(&x.permute((0, 3, 1, 2))?.contiguous()?)
}

#[test]
fn convolution_equals_pytorch() -> Result<()> {
    let golden = Golden::load()?;
    let shapes = [
        (1, 3, 9, 7, 5, 3, 1, 1),
        (2, 16, 7, 7, 17, 3, 2, 1),
        (3, 5, 1, 1, 4, 1, 1, 0),
        (4, 64, 2, 2, 100, 3, 1, 1),
        (2, 3, 15, 12, 16, 7, 2, 3),
        (2, 1, 12, 12, 16, 3, 1, 1),
        (2, 17, 6, 5, 8, 1, 2, 0),
        (9, 64, 6, 6, 128, 3, 2, 1),
        (2, 100, 5, 5, 64, 3, 1, 1),
    ];
    for (i, (n, c_in, h, w, c_out, kernel, stride, padding)) in shapes.into_iter().enumerate() {
        let x = Var::from_tensor(&tensor(1, &[n, c_in, h, w])?)?;
        let weight = Var::from_tensor(&tensor(2, &[c_out, c_in, kernel, kernel])?)?;
        let out = conv2d(&x, &weight, stride, padding)?;
        let grads = out.mul(&tensor(3, out.dims())?)?.sum_all()?.backward()?;
        golden.check(&format!("conv{i}.out"), &numbers(&out)?)?;
        golden.check(&format!("conv{i}.d_x"), &numbers(grads.get(&x).unwrap())?)?;
        golden.check(
            &format!("conv{i}.d_weight"),
            &numbers(grads.get(&weight).unwrap())?,
        )?;
    }
    Ok(())
}

#[test]
fn batch_norm_with_residual_and_relu_equals_pytorch() -> Result<()> {
    let golden = Golden::load()?;
    let shapes = [(2, 3, 5, 4), (4, 16, 3, 3), (3, 100, 2, 5), (40, 64, 9, 11)];
    for (i, shape) in shapes.into_iter().enumerate() {
        let (n, c, h, w) = shape;
        let len = n * c * h * w;
        let x = channels_last(fill(1, len), shape)?;
        let residual = channels_last(fill(4, len), shape)?;
        let dy = channels_last(fill(9, len), shape)?;
        let gamma: Vec<f32> = fill(2, c).iter().map(|v| v + 1.5).collect();
        let beta = fill(3, c);
        let mean = fill(5, c);
        let var: Vec<f32> = fill(6, c).iter().map(|v| v + 1.25).collect();
        for mode in ["train", "eval"] {
            let mut y = vec![0.0; len];
            let (mut dgamma, mut dbeta) = (vec![0.0; c], vec![0.0; c]);
            let (mut dx, mut dr) = (vec![0.0; len], dy.clone());
            let statistics = match mode {
                "train" => Statistics::of_batch(&x, c, 1e-5),
                _ => Statistics::running(mean.clone(), var.clone(), 1e-5),
            };
            let affine = Affine::new(&gamma, &beta, &statistics);
            batch_norm::forward(&x, &affine, Some(&residual), true, &mut y);
            let gradients = Gradients {
                gamma: &mut dgamma,
                beta: &mut dbeta,
                x: Some(&mut dx),
            };
            batch_norm::backward(&x, Some(&y), &mut dr, &gamma, &statistics, gradients);
            let name = format!("norm{i}.{mode}");
            golden.check(&format!("{name}.out"), &channels_first(y, shape)?)?;
            golden.check(&format!("{name}.d_x"), &channels_first(dx, shape)?)?;
            golden.check(&format!("{name}.d_residual"), &channels_first(dr, shape)?)?;
            golden.check(&format!("{name}.d_gamma"), &dgamma)?;
            golden.check(&format!("{name}.d_beta"), &dbeta)?;
        }
    }
    Ok(())
}

#[test]
fn max_pool_equals_pytorch() -> Result<()> {
    let golden = Golden::load()?;
    for (i, shape) in [[2, 3, 8, 8], [1, 16, 7, 9], [1, 5, 1, 1], [2, 17, 2, 2]]
        .iter()
        .enumerate()
    {
        let x = Var::from_tensor(&(tensor(1, shape)? * 3.0)?.round()?)?;
        let out = max_pool2d(&x, 3, 2, 1)?;
        let grads = out.mul(&tensor(2, out.dims())?)?.sum_all()?.backward()?;
        golden.check(&format!("pool{i}.out"), &numbers(&out)?)?;
        golden.check(&format!("pool{i}.d_x"), &numbers(grads.get(&x).unwrap())?)?;

        // The kernel with its recorded winners, as the engine calls it.
        let [n, c, h, w] = *shape;
        let s = PoolShape {
            n,
            h,
            w,
            c,
            kernel: 3,
            stride: 2,
            padding: 1,
        };
        let (oh, ow) = s.out_hw();
        let (mut out, mut argmax) = (vec![0.0; s.out_len()], vec![0; s.out_len()]);
        pool::max_forward(
            &s,
            &channels_last(numbers(&x)?, (n, c, h, w))?,
            &mut out,
            Some(&mut argmax),
        );
        let mut dx = vec![0.0; s.in_len()];
        let dy = channels_last(fill(2, s.out_len()), (n, c, oh, ow))?;
        pool::max_backward(&s, &argmax, &dy, &mut dx);
        golden.check(
            &format!("pool{i}.out"),
            &channels_first(out, (n, c, oh, ow))?,
        )?;
        golden.check(&format!("pool{i}.d_x"), &channels_first(dx, (n, c, h, w))?)?;
    }
    Ok(())
}

#[test]
fn average_pool_linear_and_relu_equal_pytorch() -> Result<()> {
    let golden = Golden::load()?;
    let shape = (3, 17, 4, 5);
    let (mut out, mut dx) = (vec![0.0; 51], vec![0.0; 1020]);
    pool::average_forward(3, 20, 17, &channels_last(fill(1, 1020), shape)?, &mut out);
    pool::average_backward(3, 20, 17, &fill(2, 51), &mut dx);
    golden.check("average.out", &out)?;
    golden.check("average.d_x", &channels_first(dx, shape)?)?;

    let (x, weight, bias, dy) = (fill(1, 200), fill(2, 680), fill(3, 17), fill(4, 85));
    let (mut y, mut dx) = (vec![0.0; 85], vec![0.0; 200]);
    let (mut dw, mut db) = (vec![0.0; 680], vec![0.0; 17]);
    linear::forward(5, 40, 17, &x, &weight, Some(&bias), &mut y);
    linear::backward(
        5,
        40,
        17,
        &x,
        &weight,
        &dy,
        Some(&mut dx),
        &mut dw,
        Some(&mut db),
    );
    golden.check("linear.out", &y)?;
    golden.check("linear.d_x", &dx)?;
    golden.check("linear.d_weight", &dw)?;
    golden.check("linear.d_bias", &db)?;

    let (mut out, mut dx) = (vec![0.0; 50], vec![0.0; 50]);
    relu::forward(&fill(1, 50), &mut out);
    relu::backward(&out, &fill(2, 50), &mut dx);
    golden.check("relu.out", &out)?;
    golden.check("relu.d_x", &dx)
}
