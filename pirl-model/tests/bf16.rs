//! Activations stored as bf16: every op against the `f32` reference on inputs that bf16 holds, and
//! networks against themselves in `f32`.

use benches::fill;
use candle_core::{Device, Tensor, Var};
use half::bf16;
use pirl_model::ops::conv2d::{self, ConvShape};
use pirl_model::ops::pool::{self, PoolShape};
use pirl_model::ops::{batch_norm, linear, reference, relu};
use pirl_model::{Arch, Backbone, Layer, Mode, ModelConfig, Ops, Precision, ResNet, Stem};

type Result<T = ()> = candle_core::Result<T>;

const CPU: Device = Device::Cpu;
const NAN: bf16 = bf16::NAN;

/// Numbers that bf16 holds, so that an op's own rounding is all that a comparison sees.
fn stored(seed: u32, len: usize) -> Vec<bf16> {
    fill(seed, len).into_iter().map(bf16::from_f32).collect()
}

fn wide(x: &[bf16]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}

/// `(n, h, w, c)` numbers as an NCHW variable.
fn nchw(x: &[bf16], (n, h, w, c): (usize, usize, usize, usize)) -> Result<Var> {
    let x = Tensor::from_vec(wide(x), (n, h, w, c), &CPU)?;
    Var::from_tensor(&x.permute((0, 3, 1, 2))?.contiguous()?)
}

fn nhwc(x: &Tensor) -> Result<Vec<f32>> {
    x.permute((0, 2, 3, 1))?.flatten_all()?.to_vec1()
}

/// One rounding to 8 bits is at most 2^-8 of the number; sums in another order differ by 2e-5 of
/// the largest.
fn assert_rounded(what: &str, got: &[bf16], want: &[f32]) {
    assert_near(what, &wide(got), want, 1.0 / 256.0);
}

fn assert_near(what: &str, got: &[f32], want: &[f32], relative: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            (g - w).abs() <= relative * w.abs() + 2e-5 * scale,
            "{what}: entry {i} is {g}, should be {w}, scale {scale}"
        );
    }
}

#[test]
fn convolution_and_its_gradients_are_the_references_rounded_once() -> Result {
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
        let (x, dy) = (stored(1, s.in_len()), stored(3, s.out_len()));
        let weight = wide(&stored(2, s.weight_len()));
        let (mut out, mut dx) = (vec![NAN; s.out_len()], vec![NAN; s.in_len()]);
        let mut dw = vec![f32::NAN; s.weight_len()];
        conv2d::forward(&s, &x, &weight, &mut out);
        conv2d::backward_input(&s, &weight, &dy, &mut dx);
        conv2d::backward_weight(&s, &x, &dy, &mut dw);

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
        assert_near(&what, &dw, &want, 0.0);
    }
    Ok(())
}

#[test]
fn a_weight_is_rounded_to_bf16() {
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
        stored(1, s.in_len()),
        stored(3, s.out_len()),
        fill(2, s.weight_len()),
    );
    let run = |weight: &[f32]| {
        let (mut out, mut dx) = (vec![NAN; s.out_len()], vec![NAN; s.in_len()]);
        conv2d::forward(&s, &x, weight, &mut out);
        conv2d::backward_input(&s, weight, &dy, &mut dx);
        (out, dx)
    };
    assert_eq!(run(&weight), run(&wide(&stored(2, s.weight_len()))));
}

#[test]
fn a_linear_layer_and_its_gradients_are_rounded() {
    let (rows, inputs, outputs) = (7, 33, 10);
    let (x, dy) = (stored(1, rows * inputs), stored(3, rows * outputs));
    let (weight, bias) = (wide(&stored(2, inputs * outputs)), fill(4, outputs));
    let (mut y, mut dx) = (vec![NAN; rows * outputs], vec![NAN; rows * inputs]);
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
        let bound = (product.abs() + want.abs()) / 256.0 + 1e-4;
        assert!((found.to_f32() - want).abs() <= bound, "{found} {want}");
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
    assert_near("dw", &dw, &plain_dw, 0.0);
    assert_near("db", &db, &plain_db, 0.0);
}

#[test]
fn batch_norm_and_its_gradients_are_the_references_rounded_once() -> Result {
    const EPS: f32 = 1e-5;
    for (n, h, w, c) in [(5, 1, 1, 3), (2, 7, 5, 16), (3, 4, 4, 130), (1, 1, 2, 1)] {
        let len = n * h * w * c;
        let (x, residual, dy) = (stored(1, len), stored(2, len), stored(3, len));
        let (gamma, beta) = (fill(4, c), fill(5, c));
        for (relu, with_residual) in [(false, false), (true, false), (false, true), (true, true)] {
            let what = format!("{n}x{h}x{w}x{c}, ReLU {relu}, residual {with_residual}");
            let added = with_residual.then_some(&residual[..]);
            let mut out = vec![NAN; len];
            let stats = batch_norm::forward_train(&x, c, &gamma, &beta, EPS, added, relu, &mut out);
            let mut dx = vec![NAN; len];
            let mut dresidual = with_residual.then(|| vec![NAN; len]);
            let (mut dgamma, mut dbeta) = (vec![f32::NAN; c], vec![f32::NAN; c]);
            batch_norm::backward_train(
                &x,
                &out,
                &dy,
                c,
                &gamma,
                &stats,
                relu,
                &mut dgamma,
                &mut dbeta,
                &mut dx,
                dresidual.as_deref_mut(),
            );

            let (x_, r_) = (wide(&x), wide(&residual));
            let added = with_residual.then_some(&r_[..]);
            let mut want = vec![0f32; len];
            let plain =
                batch_norm::forward_train(&x_, c, &gamma, &beta, EPS, added, relu, &mut want);
            assert_eq!(stats, plain, "{what}: statistics are of the same numbers");
            assert_rounded(&what, &out, &want);
            // A tiny positive output rounded to bf16 stays positive, so the ReLU cuts the same.
            let (mut dx_, mut dr_) = (vec![0f32; len], with_residual.then(|| vec![0f32; len]));
            let (mut dgamma_, mut dbeta_) = (vec![0f32; c], vec![0f32; c]);
            batch_norm::backward_train(
                &x_,
                &want,
                &wide(&dy),
                c,
                &gamma,
                &plain,
                relu,
                &mut dgamma_,
                &mut dbeta_,
                &mut dx_,
                dr_.as_deref_mut(),
            );
            assert_rounded(&what, &dx, &dx_);
            assert_eq!((dgamma, dbeta), (dgamma_, dbeta_), "{what}");
            assert_eq!(
                dresidual.map(|d| wide(&d)),
                dr_,
                "{what}: copies are not rounded"
            );
        }
    }
    Ok(())
}

#[test]
fn pools_choose_exactly_and_average_in_f32() {
    let s = PoolShape {
        n: 2,
        h: 7,
        w: 9,
        c: 16,
        kernel: 3,
        stride: 2,
        padding: 1,
    };
    let (x, dy) = (stored(1, s.in_len()), stored(2, s.out_len()));
    let (mut out, mut argmax) = (vec![NAN; s.out_len()], vec![0u32; s.out_len()]);
    pool::max_forward(&s, &x, &mut out, Some(&mut argmax));
    let (mut want, mut pixels) = (vec![0f32; s.out_len()], vec![0u32; s.out_len()]);
    pool::max_forward(&s, &wide(&x), &mut want, Some(&mut pixels));
    assert_eq!((wide(&out), argmax), (want, pixels.clone()));
    let (mut dx, mut want) = (vec![NAN; s.in_len()], vec![0f32; s.in_len()]);
    pool::max_backward(&s, &pixels, &dy, &mut dx);
    pool::max_backward(&s, &pixels, &wide(&dy), &mut want);
    for (found, want) in dx.iter().zip(&want) {
        // At most four windows meet in a pixel: three sums, each of at most 4, are rounded.
        assert!((found.to_f32() - want).abs() <= 3.0 * 4.0 / 256.0);
    }

    // A sum in bf16 would stop growing at 256.
    let (hw, c) = (1024, 3);
    let ones = vec![bf16::ONE; hw * c];
    let mut mean = vec![NAN; c];
    pool::average_forward(1, hw, c, &ones, &mut mean);
    assert_eq!(mean, [bf16::ONE; 3]);
    let mut dx = vec![NAN; hw * c];
    pool::average_backward(1, hw, c, &mean, &mut dx);
    assert!(dx.iter().all(|&d| d == bf16::from_f32(1.0 / 1024.0)));

    let mut out = vec![NAN; x.len()];
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
        let (plain, bf16) = (network(Precision::F32), network(Precision::Bf16));
        let (features, gradient) = pass(&plain, &images);
        let (rounded_features, rounded_gradient) = pass(&bf16, &images);
        let of_features = cosine(&features, &rounded_features);
        let of_gradient = cosine(&gradient, &rounded_gradient);
        let what = format!("{arch:?} {stem:?} {shift}: {of_features} {of_gradient}");
        assert!(of_features > bounds.0, "{what}");
        assert!(of_gradient > bounds.1, "{what}");
        assert_ne!(features, rounded_features, "{what}: it is in use");

        // Statistics follow, maps are f32 and of the same weights.
        let statistics = |network: &ResNet| -> Vec<f32> {
            let entries = network.buffers().entries().unwrap();
            let running = entries.iter().filter(|(name, _)| name.contains("running"));
            running
                .flat_map(|(_, x)| x.to_vec1::<f32>().unwrap())
                .collect()
        };
        assert!(cosine(&statistics(&plain), &statistics(&bf16)) > 0.999);

        // The same bits again.
        let again = network(Precision::Bf16);
        assert_eq!(pass(&again, &images), (rounded_features, rounded_gradient));
    }
}

#[test]
fn maps_are_read_in_f32_whatever_the_precision() {
    let config = config(Arch::Resnet18, Stem::Small);
    let images = Tensor::from_vec(fill(3, 2 * 3 * 16 * 16), (2, 3, 16, 16), &CPU).unwrap();
    let maps = |precision| -> Vec<Vec<f32>> {
        let network = ResNet::new(&config, 1, &CPU).unwrap();
        let network = network.with_precision(precision).unwrap();
        let maps = network.feature_maps(&images, &Layer::ALL).unwrap();
        let flat = |map: &Tensor| map.flatten_all().unwrap().to_vec1().unwrap();
        maps.iter().map(|(_, map)| flat(map)).collect()
    };
    assert_eq!(maps(Precision::F32), maps(Precision::Bf16));
}

#[test]
fn the_reference_ops_know_no_bf16() {
    let config = ModelConfig {
        ops: Ops::Reference,
        ..config(Arch::Resnet18, Stem::Small)
    };
    let network = ResNet::new(&config, 1, &CPU).unwrap();
    let error = network
        .with_precision(Precision::Bf16)
        .map(|_| ())
        .unwrap_err();
    assert!(error.to_string().contains("model.ops"), "{error}");
    let network = ResNet::new(&config, 1, &CPU).unwrap();
    assert!(network.with_precision(Precision::F32).is_ok());
}
