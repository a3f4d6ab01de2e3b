//! Activations stored as bf16 and f16: every op against the `f32` reference on inputs that those hold,
//! and networks against themselves in `f32`.

use benches::fill;
use candle_core::{Device, Tensor, Var};
use half::{bf16, f16};
use pirl_model::ops::batch_norm::{Affine, Gradients, Statistics};
use pirl_model::ops::conv2d::{self, ConvShape, Winograd};
use pirl_model::ops::pool::{self, PoolShape};
use pirl_model::ops::{Element, batch_norm, linear, reference, relu};
use pirl_model::{Arch, Backbone, Mode, ModelConfig, Ops, Precision, ResNet, Stem};

type Result<T = ()> = candle_core::Result<T>;

const CPU: Device = Device::Cpu;

trait Half: Element {
    const NAN: Self;
    /// The most that a number moves when it is rounded, as a share of it: half a step.
    const ROUNDING: f32;
    /// Half the least step.
    const LEAST: f32;
}

impl Half for bf16 {
    const NAN: Self = bf16::NAN;
    const ROUNDING: f32 = 1.0 / 256.0;
    const LEAST: f32 = 0.0;
}

impl Half for f16 {
    const NAN: Self = f16::NAN;
    const ROUNDING: f32 = 1.0 / 2048.0;
    const LEAST: f32 = 1.0 / (1 << 25) as f32;
}

/// Numbers that `T` holds, so that an op's own rounding is all that a comparison sees.
fn stored<T: Half>(seed: u32, len: usize) -> Vec<T> {
    fill(seed, len).into_iter().map(T::from_f32).collect()
}

fn wide<T: Half>(x: &[T]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}

/// `(n, h, w, c)` numbers as an NCHW variable.
fn nchw<T: Half>(x: &[T], (n, h, w, c): (usize, usize, usize, usize)) -> Result<Var> {
    let x = Tensor::from_vec(wide(x), (n, h, w, c), &CPU)?;
    Var::from_tensor(&x.permute((0, 3, 1, 2))?.contiguous()?)
}

fn nhwc(x: &Tensor) -> Result<Vec<f32>> {
    x.permute((0, 2, 3, 1))?.flatten_all()?.to_vec1()
}

/// Rounded once; sums in another order differ by 2e-5 of the largest.
fn assert_rounded<T: Half>(what: &str, got: &[T], want: &[f32]) {
    assert_near(what, &wide(got), want, (T::ROUNDING, T::LEAST));
}

fn assert_near(what: &str, got: &[f32], want: &[f32], (relative, least): (f32, f32)) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            (g - w).abs() <= relative * w.abs() + least + 2e-5 * scale,
            "{what}: entry {i} is {g}, should be {w}, scale {scale}"
        );
    }
}

#[test]
fn convolution_and_its_gradients_are_the_references_rounded_once() -> Result {
    check_convolution::<bf16>()?;
    check_convolution::<f16>()
}

fn check_convolution<T: Half>() -> Result {
    for (n, h, w, c_in, c_out, kernel, stride, padding) in [
        (1, 9, 7, 3, 5, 3, 1, 1),
        (2, 8, 8, 16, 17, 3, 2, 1),
        (3, 1, 1, 5, 4, 1, 1, 0),
        (2, 2, 2, 64, 100, 3, 1, 1),
        (2, 15, 12, 3, 16, 7, 2, 3),
        (2, 6, 5, 17, 8, 1, 2, 0),
    ] {
        let s = ConvShape {
            n,
            h,
            w,
            c_in,
            c_out,
            kernel,
            stride,
            padding,
        };
        let (x, dy) = (stored::<T>(1, s.in_len()), stored::<T>(3, s.out_len()));
        let weight = wide(&stored::<T>(2, s.weight_len()));
        let (mut out, mut dx) = (vec![T::NAN; s.out_len()], vec![T::NAN; s.in_len()]);
        let mut dw = vec![f32::NAN; s.weight_len()];
        conv2d::forward(&s, Winograd::Auto, &x, &weight, &mut out);
        conv2d::backward_input(&s, Winograd::Auto, &weight, &dy, &mut dx);
        conv2d::backward_weight(&s, Winograd::Auto, &x, &dy, &mut dw);

        let (oh, ow) = s.out_hw();
        let x = nchw(&x, (n, h, w, c_in))?;
        let weight = Tensor::from_vec(weight, (c_out, c_in, kernel, kernel), &CPU)?;
        let weight = Var::from_tensor(&weight)?;
        let want = reference::conv2d(&x, &weight, stride, padding)?;
        let dy = nchw(&dy, (n, oh, ow, c_out))?;
        let gradients = want.mul(&dy)?.sum_all()?.backward()?;
        let what = format!("{s:?}");
        assert_rounded(&what, &out, &nhwc(&want)?);
        assert_rounded(&what, &dx, &nhwc(gradients.get(&x).unwrap())?);
        let want = gradients.get(&weight).unwrap().flatten_all()?.to_vec1()?;
        assert_near(&what, &dw, &want, (0.0, 0.0));
    }
    Ok(())
}

#[test]
fn a_weight_is_rounded_too() {
    check_rounding_of_a_weight::<bf16>();
    check_rounding_of_a_weight::<f16>();
}

fn check_rounding_of_a_weight<T: Half>() {
    let s = ConvShape {
        n: 2,
        h: 5,
        w: 4,
        c_in: 6,
        c_out: 9,
        kernel: 3,
        stride: 1,
        padding: 1,
    };
    let (x, dy, weight) = (
        stored::<T>(1, s.in_len()),
        stored::<T>(3, s.out_len()),
        fill(2, s.weight_len()),
    );
    let run = |weight: &[f32]| {
        let (mut out, mut dx) = (vec![T::NAN; s.out_len()], vec![T::NAN; s.in_len()]);
        conv2d::forward(&s, Winograd::Auto, &x, weight, &mut out);
        conv2d::backward_input(&s, Winograd::Auto, weight, &dy, &mut dx);
        (out, dx)
    };
    assert_eq!(run(&weight), run(&wide(&stored::<T>(2, s.weight_len()))));
}

#[test]
fn a_linear_layer_and_its_gradients_are_rounded() {
    check_linear::<bf16>();
    check_linear::<f16>();
}

fn check_linear<T: Half>() {
    let (rows, inputs, outputs) = (7, 33, 10);
    let (x, dy) = (
        stored::<T>(1, rows * inputs),
        stored::<T>(3, rows * outputs),
    );
    let (weight, bias) = (wide(&stored::<T>(2, inputs * outputs)), fill(4, outputs));
    let (mut y, mut dx) = (vec![T::NAN; rows * outputs], vec![T::NAN; rows * inputs]);
    let (mut dw, mut db) = (vec![0f32; weight.len()], vec![0f32; outputs]);
    linear::forward(rows, inputs, outputs, &x, &weight, Some(&bias), &mut y);
    linear::backward(
        rows,
        inputs,
        outputs,
        &x,
        &weight,
        &dy,
        Some(&mut dx),
        &mut dw,
        Some(&mut db),
    );
    let (x, dy) = (wide(&x), wide(&dy));
    let (mut plain_y, mut plain_dx) = (vec![0f32; rows * outputs], vec![0f32; rows * inputs]);
    let (mut plain_dw, mut plain_db) = (dw.clone(), db.clone());
    linear::forward(rows, inputs, outputs, &x, &weight, None, &mut plain_y);
    // The product and the sum with the bias are both rounded.
    for (i, (found, product)) in y.iter().zip(&plain_y).enumerate() {
        let want = product + bias[i % outputs];
        let bound = (product.abs() + want.abs()) * T::ROUNDING + 1e-4;
        assert!((found.to_f32() - want).abs() <= bound, "{found:?} {want}");
    }
    linear::backward(
        rows,
        inputs,
        outputs,
        &x,
        &weight,
        &dy,
        Some(&mut plain_dx),
        &mut plain_dw,
        Some(&mut plain_db),
    );
    assert_rounded("dx", &dx, &plain_dx);
    assert_near("dw", &dw, &plain_dw, (0.0, 0.0));
    assert_near("db", &db, &plain_db, (0.0, 0.0));
}

#[test]
fn batch_norm_and_its_gradients_are_the_references_rounded_once() -> Result {
    check_batch_norm::<bf16>()?;
    check_batch_norm::<f16>()
}

fn check_batch_norm<T: Half>() -> Result {
    const EPS: f32 = 1e-5;
    for (n, h, w, c) in [(5, 1, 1, 3), (2, 7, 5, 16), (3, 4, 4, 130), (1, 1, 2, 1)] {
        let len = n * h * w * c;
        let (x, residual, dy) = (
            stored::<T>(1, len),
            stored::<T>(2, len),
            stored::<T>(3, len),
        );
        let (gamma, beta) = (fill(4, c), fill(5, c));
        for (relu, with_residual) in [(false, false), (true, false), (false, true), (true, true)] {
            let what = format!("{n}x{h}x{w}x{c}, ReLU {relu}, residual {with_residual}");
            let added = with_residual.then_some(&residual[..]);
            let mut out = vec![T::NAN; len];
            let statistics = Statistics::of_batch(&x, c, EPS);
            let affine = Affine::new(&gamma, &beta, &statistics);
            batch_norm::forward(&x, &affine, added, relu, &mut out);
            let (mut dx, mut d) = (vec![T::NAN; len], dy.clone());
            let (mut dgamma, mut dbeta) = (vec![f32::NAN; c], vec![f32::NAN; c]);
            let gradients = Gradients {
                gamma: &mut dgamma,
                beta: &mut dbeta,
                x: with_residual.then_some(&mut dx),
            };
            let rectified = relu.then_some(&out[..]);
            batch_norm::backward(&x, rectified, &mut d, &gamma, &statistics, gradients);

            let (x_, r_) = (wide(&x), wide(&residual));
            let added = with_residual.then_some(&r_[..]);
            let mut want = vec![0f32; len];
            let plain = Statistics::of_batch(&x_, c, EPS);
            let affine = Affine::new(&gamma, &beta, &plain);
            batch_norm::forward(&x_, &affine, added, relu, &mut want);
            assert_eq!(
                statistics, plain,
                "{what}: statistics are of the same numbers"
            );
            assert_rounded(&what, &out, &want);
            // A tiny positive output stays positive when rounded, so the ReLU cuts the same.
            let (mut dx_, mut d_) = (vec![0f32; len], wide(&dy));
            let (mut dgamma_, mut dbeta_) = (vec![0f32; c], vec![0f32; c]);
            let gradients = Gradients {
                gamma: &mut dgamma_,
                beta: &mut dbeta_,
                x: with_residual.then_some(&mut dx_),
            };
            let rectified = relu.then_some(&want[..]);
            batch_norm::backward(&x_, rectified, &mut d_, &gamma, &plain, gradients);
            assert_eq!((dgamma, dbeta), (dgamma_, dbeta_), "{what}");
            if with_residual {
                assert_rounded(&what, &dx, &dx_);
                assert_eq!(wide(&d), d_, "{what}: copies are not rounded");
            } else {
                assert_rounded(&what, &d, &d_);
            }
        }
    }
    Ok(())
}

#[test]
fn pools_choose_exactly_and_average_in_f32() {
    check_pools::<bf16>();
    check_pools::<f16>();
}

fn check_pools<T: Half>() {
    let s = PoolShape {
        n: 2,
        h: 7,
        w: 9,
        c: 16,
        kernel: 3,
        stride: 2,
        padding: 1,
    };
    let (x, dy) = (stored::<T>(1, s.in_len()), stored::<T>(2, s.out_len()));
    let (mut out, mut argmax) = (vec![T::NAN; s.out_len()], vec![0u32; s.out_len()]);
    pool::max_forward(&s, &x, &mut out, Some(&mut argmax));
    let (mut want, mut pixels) = (vec![0f32; s.out_len()], vec![0u32; s.out_len()]);
    pool::max_forward(&s, &wide(&x), &mut want, Some(&mut pixels));
    assert_eq!((wide(&out), argmax), (want, pixels.clone()));
    let (mut dx, mut want) = (vec![T::NAN; s.in_len()], vec![0f32; s.in_len()]);
    pool::max_backward(&s, &pixels, &dy, &mut dx);
    pool::max_backward(&s, &pixels, &wide(&dy), &mut want);
    for (found, want) in dx.iter().zip(&want) {
        // At most four windows meet in a pixel: three sums, each of at most 4, are rounded.
        assert!((found.to_f32() - want).abs() <= 3.0 * 4.0 * T::ROUNDING);
    }

    // A sum in bf16 would stop growing at 256, one in f16 at 2,048.
    let (hw, c) = (4096, 3);
    let one = T::from_f32(1.0);
    let ones = vec![one; hw * c];
    let mut mean = vec![T::NAN; c];
    pool::average_forward(1, hw, c, &ones, &mut mean);
    assert_eq!(mean, [one; 3]);
    let mut dx = vec![T::NAN; hw * c];
    pool::average_backward(1, hw, c, &mean, &mut dx);
    assert!(dx.iter().all(|&d| d == T::from_f32(1.0 / 4096.0)));

    let mut out = vec![T::NAN; x.len()];
    relu::forward(&x, &mut out);
    assert!(
        out.iter()
            .zip(&x)
            .all(|(o, x)| o.to_f32() == x.to_f32().max(0.0))
    );
}

fn config(arch: Arch, stem: Stem) -> ModelConfig {
    ModelConfig {
        arch,
        width: 0.25,
        stem,
        ..Default::default()
    }
}

/// Features and parameter gradients of a weighting of them.
fn pass(network: &ResNet, images: &Tensor) -> (Vec<f32>, Vec<f32>) {
    let features = network.forward(images, Mode::Train).unwrap();
    let shape = features.dims().to_vec();
    let weights = Tensor::from_vec(fill(7, shape.iter().product()), shape, &CPU).unwrap();
    let loss = features.mul(&weights).unwrap().sum_all().unwrap();
    let gradients = loss.backward().unwrap();
    let gradient = gradients.get(network.parameters().var()).unwrap();
    let features = features.flatten_all().unwrap().to_vec1().unwrap();
    (features, gradient.to_vec1().unwrap())
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let products = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b));
        products.sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Rounding every activation turns the gradient, most where ReLUs are near their kink. PyTorch 2.15's
/// autocast on the same networks, from other weights: cosines of gradients of 0.952 and 0.959 as
/// initialised; with 3 added to the batch norms' shifts, which keeps activations off the kink, 0.995
/// to 0.998, and of features 0.99999. A wrong op turns the gradient much further. (ResNet-50 as
/// initialised is chaotic: autocast's gradient has a cosine of 0.1 with its f32 one.)
#[test]
fn networks_learn_in_the_direction_of_f32() {
    for (arch, stem, batch, size, shift, bounds) in [
        (Arch::Resnet18, Stem::Small, 16, 16, 0f32, (0.999, 0.94)),
        (Arch::Resnet18, Stem::Small, 16, 16, 3.0, (0.9999, 0.99)),
        (Arch::Resnet18, Stem::Imagenet, 8, 64, 3.0, (0.9999, 0.99)),
        (Arch::Resnet50, Stem::Imagenet, 8, 64, 3.0, (0.9999, 0.99)),
    ] {
        let network = |precision| {
            let network = ResNet::new(&config(arch, stem), 1, &CPU).unwrap();
            let parameters = network.parameters();
            for shifted in parameters
                .params()
                .iter()
                .filter(|p| p.name.ends_with("bias"))
            {
                let value = Tensor::new(shift, &CPU).unwrap();
                let value = value.broadcast_as(shifted.shape.as_slice()).unwrap();
                parameters.set(&shifted.name, &value).unwrap();
            }
            network.with_precision(precision).unwrap()
        };
        let images = fill(3, batch * 3 * size * size);
        let images = Tensor::from_vec(images, (batch, 3, size, size), &CPU).unwrap();
        let plain = network(Precision::F32);
        let (features, gradient) = pass(&plain, &images);
        // Running statistics.
        let statistics = |network: &ResNet| -> Vec<f32> {
            let entries = network.buffers().entries().unwrap();
            let running = entries.iter().filter(|(name, _)| name.contains("running"));
            running
                .flat_map(|(_, x)| x.to_vec1::<f32>().unwrap())
                .collect()
        };
        for precision in [Precision::Bf16, Precision::F16] {
            let rounded = network(precision);
            let (rounded_features, rounded_gradient) = pass(&rounded, &images);
            let of_features = cosine(&features, &rounded_features);
            let of_gradient = cosine(&gradient, &rounded_gradient);
            let what = format!("{arch:?} {stem:?} {shift} {precision:?}");
            let found = format!("{what}: {of_features} {of_gradient}");
            // f16 is eight times as precise, so its gradients turn less.
            let turned = match precision {
                Precision::F16 => (1.0 - bounds.1) / 2.0,
                _ => 1.0 - bounds.1,
            };
            assert!(of_features > bounds.0, "{found}");
            assert!(of_gradient > 1.0 - turned, "{found}");
            assert_ne!(features, rounded_features, "{what}: it is in use");
            assert!(cosine(&statistics(&plain), &statistics(&rounded)) > 0.999);

            // The same bits again.
            let again = network(precision);
            assert_eq!(pass(&again, &images), (rounded_features, rounded_gradient));
        }
    }
}

#[test]
fn a_cpu_has_no_tf32() {
    let images = Tensor::from_vec(fill(3, 4 * 3 * 16 * 16), (4, 3, 16, 16), &CPU).unwrap();
    let pass = |precision| {
        let network = ResNet::new(&config(Arch::Resnet18, Stem::Small), 1, &CPU).unwrap();
        pass(&network.with_precision(precision).unwrap(), &images)
    };
    assert_eq!(pass(Precision::Tf32), pass(Precision::F32));
}

#[test]
fn maps_are_read_in_f32_whatever_the_precision() {
    let config = config(Arch::Resnet18, Stem::Small);
    let images = Tensor::from_vec(fill(3, 2 * 3 * 16 * 16), (2, 3, 16, 16), &CPU).unwrap();
    let maps = |precision| -> Vec<Vec<f32>> {
        let network = ResNet::new(&config, 1, &CPU).unwrap();
        let network = network.with_precision(precision).unwrap();
        let maps = network.feature_maps(&images, &network.layers()).unwrap();
        let flat = |map: &Tensor| map.flatten_all().unwrap().to_vec1().unwrap();
        maps.iter().map(|(_, map)| flat(map)).collect()
    };
    for precision in [Precision::Bf16, Precision::F16] {
        assert_eq!(maps(Precision::F32), maps(precision));
    }
}

#[test]
fn the_reference_ops_know_f32_alone() {
    let config = ModelConfig {
        ops: Ops::Reference,
        ..config(Arch::Resnet18, Stem::Small)
    };
    for (precision, name) in [
        (Precision::Tf32, "tf32"),
        (Precision::Bf16, "bf16"),
        (Precision::F16, "f16"),
    ] {
        let network = ResNet::new(&config, 1, &CPU).unwrap();
        let error = network.with_precision(precision).map(|_| ()).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("ops is fast") && error.contains(name),
            "{error}"
        );
    }
    let network = ResNet::new(&config, 1, &CPU).unwrap();
    assert!(network.with_precision(Precision::F32).is_ok());
}
