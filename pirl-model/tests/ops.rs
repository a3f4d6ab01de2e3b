//! The fast ops against their plain references: outputs and every gradient.

use benches::fill;
use candle_core::{Device, Tensor, Var};
use pirl_model::ops::batch_norm;
use pirl_model::ops::batch_norm::{Affine, Gradients, Statistics};
use pirl_model::ops::pool::{self, PoolShape};
use pirl_model::ops::{conv2d, linear, max_pool2d, reference, relu};

type Result<T = ()> = candle_core::Result<T>;

fn tensor(seed: u32, shape: &[usize]) -> Result<Tensor> {
    Tensor::from_vec(fill(seed, shape.iter().product()), shape, &Device::Cpu)
}

fn numbers(x: &Tensor) -> Result<Vec<f32>> {
    x.flatten_all()?.to_vec1()
}

/// Channels-last numbers of an NCHW tensor.
fn nhwc(x: &Tensor) -> Result<Vec<f32>> {
    numbers(&x.permute((0, 2, 3, 1))?.contiguous()?)
}

/// Largest difference over the largest magnitude: sums of thousands of terms in another order stay
/// below 1e-5 of it, a wrong term does not.
fn assert_near(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            (g - w).abs() <= 2e-5 * scale,
            "{what}: entry {i} is {g}, should be {w}, scale {scale}"
        );
    }
}

/// Loss whose gradient differs at every entry, and which uses `x` once more, so that a gradient
/// overwritten instead of added shows.
fn loss(out: &Tensor, x: &Tensor) -> Result<Tensor> {
    let weights = tensor(9, out.dims())?;
    out.mul(&weights)?.sum_all()? + x.sqr()?.sum_all()?
}

#[test]
fn convolution_and_its_gradients_equal_the_reference() -> Result {
    for (n, c_in, h, w, c_out, kernel, stride, padding) in [
        (1, 3, 9, 7, 5, 3, 1, 1),
        (2, 16, 8, 8, 17, 3, 2, 1),
        (3, 5, 1, 1, 4, 1, 1, 0),
        (2, 64, 2, 2, 100, 3, 1, 1),
        (2, 3, 15, 12, 16, 7, 2, 3),
        (2, 17, 6, 5, 8, 1, 2, 0),
    ] {
        let x = Var::from_tensor(&tensor(1, &[n, c_in, h, w])?)?;
        let weight = Var::from_tensor(&tensor(2, &[c_out, c_in, kernel, kernel])?)?;
        let fast = conv2d(&x, &weight, stride, padding)?;
        let plain = reference::conv2d(&x, &weight, stride, padding)?;
        let what =
            format!("kernel {kernel}, stride {stride}, {c_in} to {c_out} channels of {h}x{w}");
        assert_eq!(fast.dims(), plain.dims());
        assert_near(&what, &numbers(&fast)?, &numbers(&plain)?);
        let (fast, plain) = (loss(&fast, &x)?.backward()?, loss(&plain, &x)?.backward()?);
        for var in [&x, &weight] {
            let (fast, plain) = (fast.get(var).unwrap(), plain.get(var).unwrap());
            assert_near(&what, &numbers(fast)?, &numbers(plain)?);
        }
    }
    Ok(())
}

#[test]
fn convolution_reads_views_and_rejects_what_does_not_fit() -> Result {
    let weight = tensor(2, &[4, 3, 3, 3])?;
    let view = tensor(1, &[2, 6, 8, 3])?
        .permute((0, 3, 2, 1))?
        .narrow(2, 1, 5)?;
    let fast = conv2d(&view, &weight, 1, 1)?;
    let plain = reference::conv2d(&view.contiguous()?, &weight, 1, 1)?;
    assert_near("a view", &numbers(&fast)?, &numbers(&plain)?);

    let empty = Tensor::zeros((0, 3, 4, 4), candle_core::DType::F32, &Device::Cpu)?;
    assert_eq!(conv2d(&empty, &weight, 1, 1)?.dims(), [0, 4, 4, 4]);

    let x = tensor(1, &[1, 3, 4, 4])?;
    let message = |r: Result<Tensor>| r.unwrap_err().to_string();
    assert!(message(conv2d(&x, &tensor(1, &[4, 2, 3, 3])?, 1, 1)).contains("3 channels"));
    assert!(message(conv2d(&x, &tensor(1, &[4, 3, 3, 2])?, 1, 1)).contains("3x2"));
    assert!(message(conv2d(&x, &weight, 0, 1)).contains("stride"));
    assert!(message(conv2d(&x, &tensor(1, &[4, 3, 7, 7])?, 1, 1)).contains("does not fit"));
    Ok(())
}

#[test]
fn max_pool_and_its_gradient_equal_the_reference() -> Result {
    for (h, w, c, kernel, stride, padding) in [
        (8, 8, 3, 3, 2, 1),
        (7, 9, 16, 3, 2, 1),
        (1, 1, 5, 3, 2, 1),
        (2, 2, 17, 2, 2, 0),
        (6, 5, 1, 3, 1, 1),
        (5, 5, 4, 1, 2, 0),
    ] {
        // Few distinct values, so that ties are frequent.
        let x = (tensor(1, &[2, c, h, w])? * 3.0)?.round()?;
        let x = Var::from_tensor(&x)?;
        let fast = max_pool2d(&x, kernel, stride, padding)?;
        let plain = reference::max_pool2d(&x, kernel, stride, padding)?;
        assert_eq!(numbers(&fast)?, numbers(&plain)?);
        let (fast, plain) = (loss(&fast, &x)?.backward()?, loss(&plain, &x)?.backward()?);
        assert_near(
            "gradient",
            &numbers(fast.get(&x).unwrap())?,
            &numbers(plain.get(&x).unwrap())?,
        );
    }
    Ok(())
}

#[test]
fn max_pool_sends_the_gradient_to_the_first_maximum_and_lets_nan_through() -> Result {
    let x = Var::from_vec(
        vec![2f32, 5., 5., 1., -1., f32::NAN, 3., 3.],
        (1, 1, 2, 4),
        &Device::Cpu,
    )?;
    let out = max_pool2d(&x, 2, 2, 0)?;
    let values = numbers(&out)?;
    assert!(values[0].is_nan());
    assert_eq!(values[1], 5.0);
    let gradient = out.sum_all()?.backward()?;
    assert_eq!(
        numbers(gradient.get(&x).unwrap())?,
        [0., 0., 1., 0., 0., 1., 0., 0.]
    );

    let x = Var::from_tensor(&Tensor::ones(
        (1, 1, 3, 3),
        candle_core::DType::F32,
        &Device::Cpu,
    )?)?;
    let gradient = max_pool2d(&x, 3, 2, 1)?.sum_all()?.backward()?;
    // Windows of 2x2 pixels at the corners (0,0), (0,1), (1,0), (1,1): each gives to its first.
    assert_eq!(
        numbers(gradient.get(&x).unwrap())?,
        [1., 1., 0., 1., 1., 0., 0., 0., 0.]
    );

    let x = x.as_tensor();
    for (kernel, stride, padding) in [(0, 1, 0), (3, 0, 1), (2, 1, 2), (4, 1, 0)] {
        assert!(max_pool2d(x, kernel, stride, padding).is_err());
        assert!(reference::max_pool2d(x, kernel, stride, padding).is_err());
    }
    Ok(())
}

#[test]
fn batch_norm_and_its_gradients_equal_the_reference() -> Result {
    // The last sizes make several blocks and tasks.
    for (n, c, h, w) in [
        (2, 1, 1, 1),
        (2, 3, 5, 4),
        (4, 16, 3, 3),
        (3, 17, 2, 5),
        (2, 300, 2, 2),
        (40, 64, 9, 11),
        (3000, 5, 3, 4),
    ] {
        for (with_residual, rectified, train) in [
            (false, false, true),
            (false, true, true),
            (true, true, true),
            (true, false, true),
            (false, true, false),
            (true, true, false),
        ] {
            let x = Var::from_tensor(&tensor(1, &[n, c, h, w])?)?;
            let gamma = Var::from_tensor(&(tensor(2, &[c])? + 1.5)?)?;
            let beta = Var::from_tensor(&tensor(3, &[c])?)?;
            let residual = Var::from_tensor(&tensor(4, &[n, c, h, w])?)?;
            let given = with_residual.then_some(residual.as_tensor());
            let (mean, var) = (tensor(5, &[c])?, (tensor(6, &[c])? + 1.2)?);
            let eps = 1e-5;
            let (out, batch) = if train {
                let (out, mean, var) =
                    reference::batch_norm_train(&x, &gamma, &beta, eps, given, rectified)?;
                (out, Some((mean, var)))
            } else {
                (
                    reference::batch_norm_eval(
                        &x, &gamma, &beta, &mean, &var, eps, given, rectified,
                    )?,
                    None,
                )
            };
            let dy = tensor(9, &[n, c, h, w])?;
            let grads = out.mul(&dy)?.sum_all()?.backward()?;

            let what =
                format!("n {n}, c {c}, residual {with_residual}, relu {rectified}, train {train}");
            let eps = eps as f32;
            let (x_, dy) = (nhwc(&x)?, nhwc(&dy)?);
            let (gamma_, beta_) = (numbers(&gamma)?, numbers(&beta)?);
            let (mean, var) = (numbers(&mean)?, numbers(&var)?);
            let residual_ = with_residual.then(|| nhwc(&residual)).transpose()?;
            let mut y = vec![f32::NAN; x_.len()];
            let (mut dgamma, mut dbeta) = (vec![f32::NAN; c], vec![f32::NAN; c]);
            let (mut dx, mut dr) = (vec![f32::NAN; x_.len()], dy.clone());
            let statistics = match batch {
                Some((mean, var)) => {
                    let statistics = Statistics::of_batch(&x_, c, eps);
                    assert_near(&what, &statistics.channels().mean, &numbers(&mean)?);
                    assert_near(&what, &statistics.channels().var, &numbers(&var)?);
                    statistics
                }
                None => Statistics::running(mean, var, eps),
            };
            let affine = Affine::new(&gamma_, &beta_, &statistics);
            batch_norm::forward(&x_, &affine, residual_.as_deref(), rectified, &mut y);
            let gradients = Gradients {
                gamma: &mut dgamma,
                beta: &mut dbeta,
                x: with_residual.then_some(&mut dx),
            };
            let out_ = rectified.then_some(&y[..]);
            batch_norm::backward(&x_, out_, &mut dr, &gamma_, &statistics, gradients);
            let dx = if with_residual { &dx } else { &dr };
            assert_near(&what, &y, &nhwc(&out)?);
            assert_near(&what, &dgamma, &numbers(grads.get(&gamma).unwrap())?);
            assert_near(&what, &dbeta, &numbers(grads.get(&beta).unwrap())?);
            // Two pixels normalise to plus and minus one whatever they are: dx is the rounding of
            // a difference that is zero but for eps.
            if n * h * w > 2 || !train {
                assert_near(&what, dx, &nhwc(grads.get(&x).unwrap())?);
            }
            if with_residual {
                assert_near(&what, &dr, &nhwc(grads.get(&residual).unwrap())?);
            }
        }
    }
    Ok(())
}

/// `sum(dy * relu(gamma * xhat + beta + residual))` in `f64`, by the definition.
fn norm_loss(
    x: &[f64],
    c: usize,
    gamma: &[f64],
    beta: &[f64],
    residual: &[f64],
    dy: &[f64],
) -> f64 {
    let rows = (x.len() / c) as f64;
    let column = |i: usize| x.iter().skip(i).step_by(c);
    let mean: Vec<f64> = (0..c).map(|i| column(i).sum::<f64>() / rows).collect();
    let var: Vec<f64> = (0..c)
        .map(|i| column(i).map(|v| (v - mean[i]).powi(2)).sum::<f64>() / rows)
        .collect();
    (0..x.len())
        .map(|at| {
            let i = at % c;
            let xhat = (x[at] - mean[i]) / (var[i] + 1e-5).sqrt();
            dy[at] * (gamma[i] * xhat + beta[i] + residual[at]).max(0.0)
        })
        .sum()
}

#[test]
fn batch_norm_gradients_equal_finite_differences() {
    let (rows, c) = (13, 3);
    let seeds = [(1, rows * c), (2, c), (3, c), (4, rows * c)];
    let inputs: Vec<Vec<f32>> = seeds.iter().map(|&(seed, n)| fill(seed, n)).collect();
    let dy = fill(9, rows * c);
    let mut y = vec![0.0; rows * c];
    let statistics = Statistics::of_batch(&inputs[0], c, 1e-5);
    let affine = Affine::new(&inputs[1], &inputs[2], &statistics);
    batch_norm::forward(&inputs[0], &affine, Some(&inputs[3]), true, &mut y);
    let mut got: Vec<Vec<f32>> = inputs.iter().map(|v| vec![f32::NAN; v.len()]).collect();
    if let [dx, dgamma, dbeta, dr] = &mut got[..] {
        let gradients = Gradients {
            gamma: dgamma,
            beta: dbeta,
            x: Some(dx),
        };
        let (x, gamma) = (&inputs[0], &inputs[1]);
        dr.copy_from_slice(&dy);
        batch_norm::backward(x, Some(&y), dr, gamma, &statistics, gradients);
    }
    let inputs: Vec<Vec<f64>> = inputs
        .iter()
        .map(|v| v.iter().map(|&v| v as f64).collect())
        .collect();
    let dy: Vec<f64> = dy.iter().map(|&v| v as f64).collect();
    let at = |i: &[Vec<f64>]| norm_loss(&i[0], c, &i[1], &i[2], &i[3], &dy);
    for (which, got) in got.iter().enumerate() {
        for (entry, &got) in got.iter().enumerate() {
            let moved = |by: f64| {
                let mut inputs = inputs.clone();
                inputs[which][entry] += by;
                at(&inputs)
            };
            let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            // Differences of f64 sums of magnitude 10 at a step of 1e-5 are good to 1e-9.
            assert!(
                (slope - got as f64).abs() < 1e-5 * (1.0 + slope.abs()),
                "{which} {entry}: {got} {slope}"
            );
        }
    }
}

#[test]
fn batch_statistics_survive_a_large_mean() {
    let (rows, c) = (20_000, 7);
    let x: Vec<f32> = fill(1, rows * c).iter().map(|v| v + 4096.0).collect();
    let statistics = Statistics::of_batch(&x, c, 1e-5);
    let stats = statistics.channels();
    for i in 0..c {
        let column = || x.iter().skip(i).step_by(c).map(|&v| v as f64);
        let mean = column().sum::<f64>() / rows as f64;
        let var = column().map(|v| (v - mean).powi(2)).sum::<f64>() / rows as f64;
        assert!(
            (stats.mean[i] as f64 - mean).abs() < 5e-4,
            "{} {mean}",
            stats.mean[i]
        );
        assert!(
            (stats.var[i] as f64 / var - 1.0).abs() < 1e-5,
            "{} {var}",
            stats.var[i]
        );
    }
}

#[test]
fn batch_norm_is_the_same_to_the_bit_for_any_number_of_threads() {
    let (rows, c) = (30_000, 24);
    let (x, dy) = (fill(1, rows * c), fill(2, rows * c));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let (mut y, mut dx) = (vec![0.0; x.len()], dy.clone());
            let (mut dgamma, mut dbeta) = (vec![0.0; c], vec![0.0; c]);
            let gamma = fill(3, c);
            let statistics = Statistics::of_batch(&x, c, 1e-5);
            let affine = Affine::new(&gamma, &fill(4, c), &statistics);
            batch_norm::forward(&x, &affine, None, true, &mut y);
            let gradients = Gradients {
                gamma: &mut dgamma,
                beta: &mut dbeta,
                x: None,
            };
            batch_norm::backward(&x, Some(&y), &mut dx, &gamma, &statistics, gradients);
            [y, dx, dgamma, dbeta]
                .concat()
                .iter()
                .map(|v| v.to_bits())
                .collect::<Vec<_>>()
        })
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn average_pool_and_linear_equal_the_reference() -> Result {
    let (n, c, h, w) = (3, 17, 4, 5);
    let x = Var::from_tensor(&tensor(1, &[n, c, h, w])?)?;
    let plain = reference::global_average_pool(&x)?;
    let mut out = vec![f32::NAN; n * c];
    pool::average_forward(n, h * w, c, &nhwc(&x)?, &mut out);
    assert_near("average", &out, &numbers(&plain)?);
    let dy = tensor(2, &[n, c])?;
    let grads = plain.mul(&dy)?.sum_all()?.backward()?;
    let mut dx = vec![f32::NAN; n * c * h * w];
    pool::average_backward(n, h * w, c, &numbers(&dy)?, &mut dx);
    assert_near("average gradient", &dx, &nhwc(grads.get(&x).unwrap())?);

    for (rows, inputs, outputs) in [(1, 1, 1), (5, 40, 17), (130, 64, 128)] {
        let x = Var::from_tensor(&tensor(1, &[rows, inputs])?)?;
        let weight = Var::from_tensor(&tensor(2, &[outputs, inputs])?)?;
        let bias = Var::from_tensor(&tensor(3, &[outputs])?)?;
        let dy = tensor(4, &[rows, outputs])?;
        let plain = reference::linear(&x, &weight, Some(&bias))?;
        let grads = plain.mul(&dy)?.sum_all()?.backward()?;
        let (x_, weight_, bias_) = (numbers(&x)?, numbers(&weight)?, numbers(&bias)?);
        let mut y = vec![f32::NAN; rows * outputs];
        linear::forward(rows, inputs, outputs, &x_, &weight_, Some(&bias_), &mut y);
        assert_near("linear", &y, &numbers(&plain)?);
        let (mut dx, mut dw) = (vec![f32::NAN; x_.len()], vec![f32::NAN; weight_.len()]);
        let mut db = vec![f32::NAN; outputs];
        linear::backward(
            rows,
            inputs,
            outputs,
            &x_,
            &weight_,
            &numbers(&dy)?,
            Some(&mut dx),
            &mut dw,
            Some(&mut db),
        );
        assert_near("linear dx", &dx, &numbers(grads.get(&x).unwrap())?);
        assert_near("linear dw", &dw, &numbers(grads.get(&weight).unwrap())?);
        assert_near("linear db", &db, &numbers(grads.get(&bias).unwrap())?);
    }
    Ok(())
}

#[test]
fn relu_has_no_gradient_at_zero_and_keeps_nan() -> Result {
    let x = [-1f32, 0.0, 2.0, f32::NAN];
    let (mut out, mut dx) = ([9.0; 4], [9.0; 4]);
    relu::forward(&x, &mut out);
    relu::backward(&out, &[1.0, 2.0, 3.0, 4.0], &mut dx);
    assert_eq!(out[..3], [0.0, 0.0, 2.0]);
    assert!(out[3].is_nan());
    assert_eq!(dx, [0.0, 0.0, 3.0, 4.0]);

    let x = Var::from_slice(&x[..3], 3, &Device::Cpu)?;
    let y = reference::relu(&x)?;
    assert_eq!(numbers(&y)?, [0.0, 0.0, 2.0]);
    assert_eq!(
        numbers(y.sum_all()?.backward()?.get(&x).unwrap())?,
        [0.0, 0.0, 1.0]
    );
    Ok(())
}

#[test]
fn empty_batches_pass_every_op() {
    let s = PoolShape {
        n: 0,
        h: 4,
        w: 4,
        c: 3,
        kernel: 3,
        stride: 2,
        padding: 1,
    };
    pool::max_forward::<f32>(&s, &[], &mut [], Some(&mut []));
    pool::max_backward::<f32>(&s, &[], &[], &mut []);
    pool::average_forward::<f32>(0, 4, 3, &[], &mut []);
    pool::average_backward::<f32>(0, 4, 3, &[], &mut []);
    relu::forward::<f32>(&[], &mut []);
    let statistics = Statistics::of_batch::<f32>(&[], 2, 1e-5);
    let affine = Affine::new(&[1.0; 2], &[0.0; 2], &statistics);
    batch_norm::forward::<f32>(&[], &affine, None, true, &mut []);
    let stats = statistics.channels();
    assert!(stats.mean[0].is_nan() && stats.var[0].is_nan());
    linear::forward::<f32>(0, 2, 1, &[], &[1.0, 2.0], None, &mut []);
}
