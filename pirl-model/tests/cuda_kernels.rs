//! The CUDA kernels, run on a CPU, against the plain references.
#![cfg(all(target_os = "linux", target_env = "gnu"))] // what the shim needs

use std::ffi::c_void;
use std::ptr::null_mut;

use benches::{Buffer, Dim3, Kernels, Stored, fill};
use candle_core::{Device, Tensor, Var};
use half::{bf16, f16};
use pirl_model::ops::pool::{self, PoolShape};
use pirl_model::ops::reference;

type Result<T = ()> = candle_core::Result<T>;

const EPS: f32 = 1e-5;
/// Threads of a block of the batch-norm kernels, along channels and rows.
const NORM_BLOCK: Dim3 = (32, 16, 1);

fn compile<T: Stored>(file: &str) -> Kernels {
    Kernels::compile::<T>(format!("{}/src/{file}", env!("CARGO_MANIFEST_DIR")))
}

/// An NCHW tensor of channels-last numbers.
fn nchw(values: Vec<f32>, (n, c, h, w): (usize, usize, usize, usize)) -> Result<Tensor> {
    Tensor::from_vec(values, (n, h, w, c), &Device::Cpu)?
        .permute((0, 3, 1, 2))?
        .contiguous()
}

fn numbers(x: &Tensor) -> Result<Vec<f32>> {
    x.flatten_all()?.to_vec1()
}

/// Channels-last numbers of an NCHW tensor.
fn nhwc(x: &Tensor) -> Result<Vec<f32>> {
    numbers(&x.permute((0, 2, 3, 1))?.contiguous()?)
}

/// `tolerance` is a part of the largest magnitude: sums in another order and the rounding of what is
/// stored stay below it, a wrong term does not. The terms are of magnitude 1 and may cancel.
fn assert_near(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(0.1f32, |m, v| m.max(v.abs()));
    let off = |(g, w): (&f32, &f32)| {
        if g.is_nan() {
            f32::MAX
        } else {
            (g - w).abs() / scale
        }
    };
    let error = got.iter().zip(want).map(off).fold(0f32, f32::max);
    println!("{what}: off by {error:.1e}");
    assert!(
        error <= tolerance,
        "{what}: off by {error}, more than {tolerance}"
    );
}

/// What a batch norm and its gradients are.
#[derive(Default)]
struct Norm {
    mean: Vec<f32>,
    var: Vec<f32>,
    out: Vec<f32>,
    dx: Vec<f32>,
    dresidual: Vec<f32>,
    dgamma: Vec<f32>,
    dbeta: Vec<f32>,
}

/// One case: the input, `offset` from 0, and what follows the normalisation.
#[derive(Clone, Copy, Debug)]
struct Case {
    shape: (usize, usize, usize, usize),
    offset: f32,
    residual: bool,
    relu: bool,
    /// By the batch's own statistics; else by given ones.
    train: bool,
}

impl Case {
    fn len(&self) -> usize {
        let (n, c, h, w) = self.shape;
        n * c * h * w
    }

    fn x<T: Stored>(&self) -> Vec<f32> {
        T::round(
            &fill(1, self.len())
                .iter()
                .map(|x| x + self.offset)
                .collect::<Vec<_>>(),
        )
    }

    fn of<T: Stored>(&self, seed: u32) -> Vec<f32> {
        T::round(&fill(seed, self.len()))
    }

    fn per_channel(&self, seed: u32) -> Vec<f32> {
        fill(seed, self.shape.1)
    }

    /// Statistics that a network might have gathered.
    fn given(&self) -> (Vec<f32>, Vec<f32>) {
        let mean = self
            .per_channel(6)
            .iter()
            .map(|m| m + self.offset)
            .collect();
        (
            mean,
            self.per_channel(7).iter().map(|v| v * v + 0.1).collect(),
        )
    }

    fn by_reference<T: Stored>(&self) -> Result<Norm> {
        let c = self.shape.1;
        let var = |values: Vec<f32>| Var::from_tensor(&nchw(values, self.shape)?);
        let vector = |values: Vec<f32>| Tensor::from_vec(values, c, &Device::Cpu);
        let (x, residual) = (var(self.x::<T>())?, var(self.of::<T>(2))?);
        let gamma = Var::from_tensor(&vector(self.per_channel(3))?)?;
        let beta = Var::from_tensor(&vector(self.per_channel(4))?)?;
        let added = self.residual.then(|| residual.as_tensor());
        let (out, mean, var) = if self.train {
            reference::batch_norm_train(&x, &gamma, &beta, EPS.into(), added, self.relu)?
        } else {
            let (mean, var) = self.given();
            let (mean, var) = (vector(mean)?, vector(var)?);
            let eps = EPS.into();
            let out =
                reference::batch_norm_eval(&x, &gamma, &beta, &mean, &var, eps, added, self.relu)?;
            (out, mean, var)
        };
        let gradients = (&out * nchw(self.of::<T>(5), self.shape)?)?
            .sum_all()?
            .backward()?;
        let of = |var: &Var| gradients.get(var).expect("a gradient").clone();
        Ok(Norm {
            mean: numbers(&mean)?,
            var: numbers(&var)?,
            out: nhwc(&out)?,
            dx: nhwc(&of(&x))?,
            dresidual: if self.residual {
                nhwc(&of(&residual))?
            } else {
                Vec::new()
            },
            dgamma: numbers(&of(&gamma))?,
            dbeta: numbers(&of(&beta))?,
        })
    }

    fn by_kernels<T: Stored>(&self, kernels: &Kernels, splits: usize) -> Norm {
        type Void = *mut c_void;
        type F = *mut f32;
        type Moments = unsafe extern "C" fn(Void, i64, i32, F, F);
        type Statistics = unsafe extern "C" fn(F, F, i64, i32, i32, f32, F, F, F);
        type Apply = unsafe extern "C" fn(Void, Void, i64, i32, F, F, F, F, i32, Void);
        type Sums = unsafe extern "C" fn(Void, Void, Void, i64, i32, F, F, i32, F, F);
        type Totals = unsafe extern "C" fn(F, F, i32, i32, F, F);
        type Gradient =
            unsafe extern "C" fn(Void, Void, Void, i64, i32, F, F, F, F, F, i32, i32, Void, Void);

        let c = self.shape.1;
        let (channels, rows) = (c as i32, (self.len() / c) as i64);
        let (relu, train) = (i32::from(self.relu), i32::from(self.train));
        let x = Buffer::<T>::rounded(&self.x::<T>());
        let residual = Buffer::<T>::rounded(&self.of::<T>(2));
        let dy = Buffer::<T>::rounded(&self.of::<T>(5));
        let (gamma, beta) = (
            Buffer::new(&self.per_channel(3)),
            Buffer::new(&self.per_channel(4)),
        );
        let vector = || Buffer::<f32>::unset(c);
        let parts = || Buffer::<f32>::unset(splits * c);
        let (out, dx, dresidual) = (
            Buffer::<T>::unset(self.len()),
            Buffer::<T>::unset(self.len()),
            Buffer::<T>::unset(self.len()),
        );
        let (mut mean, mut var, mut inv_std) = (vector(), vector(), vector());

        let blocks = c.div_ceil(32) as u32;
        let grid = (blocks, splits as u32, 1);
        let each_channel = ((c.div_ceil(128)) as u32, 1, 1);
        let (sums, products) = (parts(), parts());
        let launch = |grid, block, thread: &dyn Fn()| kernels.launch(grid, block, thread);
        if self.train {
            let moments = kernels.get::<Moments>("batch_norm_moments");
            // SAFETY: the buffers have the sizes that the kernel asks for.
            launch(grid, NORM_BLOCK, &|| unsafe {
                moments(
                    x.pointer(),
                    rows,
                    channels,
                    sums.pointer(),
                    products.pointer(),
                );
            });
            let statistics = kernels.get::<Statistics>("batch_norm_statistics");
            // SAFETY: as above.
            launch(each_channel, (128, 1, 1), &|| unsafe {
                statistics(
                    sums.pointer(),
                    products.pointer(),
                    rows,
                    channels,
                    splits as i32,
                    EPS,
                    mean.pointer(),
                    var.pointer(),
                    inv_std.pointer(),
                );
            });
        } else {
            let (given_mean, given_var) = self.given();
            inv_std = Buffer::new(
                &given_var
                    .iter()
                    .map(|v| 1.0 / (v + EPS).sqrt())
                    .collect::<Vec<_>>(),
            );
            (mean, var) = (Buffer::new(&given_mean), Buffer::new(&given_var));
        }
        let added = if self.residual {
            residual.pointer()
        } else {
            null_mut()
        };
        let apply = kernels.get::<Apply>("batch_norm_apply");
        // SAFETY: as above.
        launch(grid, NORM_BLOCK, &|| unsafe {
            apply(
                x.pointer(),
                added,
                rows,
                channels,
                gamma.pointer(),
                beta.pointer(),
                mean.pointer(),
                inv_std.pointer(),
                relu,
                out.pointer(),
            );
        });
        let gradient_sums = kernels.get::<Sums>("batch_norm_gradient_sums");
        // SAFETY: as above.
        launch(grid, NORM_BLOCK, &|| unsafe {
            gradient_sums(
                x.pointer(),
                out.pointer(),
                dy.pointer(),
                rows,
                channels,
                mean.pointer(),
                inv_std.pointer(),
                relu,
                sums.pointer(),
                products.pointer(),
            );
        });
        let (dgamma, dbeta) = (vector(), vector());
        let totals = kernels.get::<Totals>("batch_norm_gradient_totals");
        // SAFETY: as above.
        launch(each_channel, (128, 1, 1), &|| unsafe {
            totals(
                sums.pointer(),
                products.pointer(),
                channels,
                splits as i32,
                dgamma.pointer(),
                dbeta.pointer(),
            );
        });
        let gradient = kernels.get::<Gradient>("batch_norm_input_gradient");
        let wanted = if self.residual {
            dresidual.pointer()
        } else {
            null_mut()
        };
        // SAFETY: as above.
        launch(grid, NORM_BLOCK, &|| unsafe {
            gradient(
                x.pointer(),
                out.pointer(),
                dy.pointer(),
                rows,
                channels,
                gamma.pointer(),
                mean.pointer(),
                inv_std.pointer(),
                dgamma.pointer(),
                dbeta.pointer(),
                relu,
                train,
                dx.pointer(),
                wanted,
            );
        });
        Norm {
            mean: mean.values(),
            var: var.values(),
            out: out.widened(),
            dx: dx.widened(),
            dresidual: if self.residual {
                dresidual.widened()
            } else {
                Vec::new()
            },
            dgamma: dgamma.values(),
            dbeta: dbeta.values(),
        }
    }
}

fn norms_equal_the_reference<T: Stored>() -> Result {
    let kernels = compile::<T>("ops/batch_norm.cu");
    for (shape, offset, splits) in [
        ((2, 3, 5, 7), 0.0, 3),
        ((1, 33, 1, 2), 0.0, 5), // more splits than rows
        ((3, 64, 4, 4), 0.5, 1),
        ((5, 17, 9, 3), -1.0, 4),
        ((1, 1, 1, 2), 0.0, 1),
        (
            (4, 2, 12, 13),
            if T::ROUNDING < 1e-4 { 300.0 } else { 2.0 },
            2,
        ), // far from 0
    ] {
        for (residual, relu, train) in [
            (true, true, true),
            (false, false, true),
            (false, true, false),
            (true, false, false),
        ] {
            let case = Case {
                shape,
                offset,
                residual,
                relu,
                train,
            };
            let want = case.by_reference::<T>()?;
            for falling in [false, true] {
                kernels.set_falling(falling);
                let got = case.by_kernels::<T>(&kernels, splits);
                // A mean far from 0 costs the reference digits of the deviations.
                let f32s = 2e-5 * (1.0 + offset.abs() * 0.2);
                let stored = f32s + 2.0 * T::ROUNDING;
                for (what, got, want, tolerance) in [
                    ("mean", &got.mean, &want.mean, 2e-6),
                    ("variance", &got.var, &want.var, f32s),
                    ("output", &got.out, &want.out, stored),
                    ("dx", &got.dx, &want.dx, stored),
                    ("dresidual", &got.dresidual, &want.dresidual, stored),
                    ("dgamma", &got.dgamma, &want.dgamma, f32s),
                    ("dbeta", &got.dbeta, &want.dbeta, f32s),
                ] {
                    assert_near(&format!("{what} of {case:?}"), got, want, tolerance);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn batch_norm_equals_the_reference() -> Result {
    norms_equal_the_reference::<f32>()?;
    norms_equal_the_reference::<bf16>()?;
    norms_equal_the_reference::<f16>()
}

fn pools_equal_the_reference<T: Stored>() -> Result {
    type Void = *mut c_void;
    type Forward =
        unsafe extern "C" fn(Void, i32, i32, i32, i32, i32, i32, i32, i32, i32, Void, *mut u32);
    type Backward =
        unsafe extern "C" fn(*mut u32, Void, i32, i32, i32, i32, i32, i32, i32, i32, i32, Void);
    let kernels = compile::<T>("ops/pool.cu");
    let forward = kernels.get::<Forward>("max_pool_forward");
    let backward = kernels.get::<Backward>("max_pool_backward");
    for (n, c, h, w, kernel, stride, padding) in [
        (2, 3, 8, 8, 3, 2, 1),
        (1, 16, 7, 9, 3, 2, 1),
        (3, 5, 1, 1, 3, 2, 1),
        (2, 17, 2, 2, 2, 2, 0),
        (2, 1, 6, 5, 3, 1, 1),
        (1, 4, 5, 5, 1, 2, 0), // pixels under no window
        (1, 300, 3, 4, 3, 3, 1),
    ] {
        let out_size = |size: usize| (size + 2 * padding - kernel) / stride + 1;
        let (oh, ow) = (out_size(h), out_size(w));
        // Few distinct values, so that ties are frequent.
        let values: Vec<f32> = fill(1, n * c * h * w)
            .iter()
            .map(|x| (x * 3.0).round())
            .collect();
        let dy = T::round(&fill(2, n * c * oh * ow));
        let input = Var::from_tensor(&nchw(values.clone(), (n, c, h, w))?)?;
        let plain = reference::max_pool2d(&input, kernel, stride, padding)?;
        let loss = (&plain * nchw(dy.clone(), (n, c, oh, ow))?)?.sum_all()?;
        let want = nhwc(loss.backward()?.get(&input).expect("a gradient"))?;

        let (x, d_out) = (Buffer::<T>::rounded(&values), Buffer::<T>::rounded(&dy));
        let (out, dx) = (
            Buffer::<T>::unset(dy.len()),
            Buffer::<T>::unset(values.len()),
        );
        let argmax = Buffer::<u32>::unset(dy.len());
        let [n, c, h, w, kernel, stride, padding, oh, ow] =
            [n, c, h, w, kernel, stride, padding, oh, ow].map(|size| size as i32);
        // Fewer rows of blocks than rows of maps, so that each takes several.
        let grid = |width: i32| (((width * c) as u32).div_ceil(64), 3, 1);
        // SAFETY: the buffers have the sizes that the kernels are told.
        kernels.launch(grid(ow), (64, 1, 1), || unsafe {
            forward(
                x.pointer(),
                n,
                h,
                w,
                c,
                kernel,
                stride,
                padding,
                oh,
                ow,
                out.pointer(),
                argmax.pointer(),
            );
        });
        // SAFETY: as above.
        kernels.launch(grid(w), (64, 1, 1), || unsafe {
            backward(
                argmax.pointer(),
                d_out.pointer(),
                n,
                h,
                w,
                c,
                kernel,
                stride,
                padding,
                oh,
                ow,
                dx.pointer(),
            );
        });
        let what = format!("window {kernel}, stride {stride}, of {c} maps of {h}x{w}");
        assert_eq!(out.widened(), nhwc(&plain)?, "{what}");
        assert_near(&what, &dx.widened(), &want, 1e-6 + T::ROUNDING);
    }
    Ok(())
}

#[test]
fn max_pool_equals_the_reference() -> Result {
    pools_equal_the_reference::<f32>()?;
    pools_equal_the_reference::<bf16>()?;
    pools_equal_the_reference::<f16>()
}

#[test]
fn max_pool_lets_a_nan_win_as_on_a_cpu() {
    type Forward = unsafe extern "C" fn(
        *mut f32,
        i32,
        i32,
        i32,
        i32,
        i32,
        i32,
        i32,
        i32,
        i32,
        *mut f32,
        *mut u32,
    );
    let kernels = compile::<f32>("ops/pool.cu");
    let forward = kernels.get::<Forward>("max_pool_forward");
    let mut values = fill(1, 6 * 5);
    (values[3], values[14], values[15]) = (f32::NAN, f32::NAN, f32::NAN);
    let shape = PoolShape {
        n: 1,
        h: 6,
        w: 5,
        c: 1,
        kernel: 3,
        stride: 2,
        padding: 1,
    };
    let (mut want, mut winners) = (vec![0f32; 9], vec![0u32; 9]);
    pool::max_forward(&shape, &values, &mut want, Some(&mut winners));
    let x = Buffer::new(&values);
    let (out, argmax) = (Buffer::<f32>::unset(9), Buffer::<u32>::unset(9));
    // SAFETY: the input has 6 x 5 numbers, the outputs 3 x 3.
    kernels.launch((1, 1, 1), (32, 1, 1), || unsafe {
        forward(
            x.pointer(),
            1,
            6,
            5,
            1,
            3,
            2,
            1,
            3,
            3,
            out.pointer(),
            argmax.pointer(),
        );
    });
    assert_eq!(argmax.values(), winners);
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&out.values()), bits(&want));
}

fn weights_change_their_layout<T: Stored>() -> Result {
    type Change = unsafe extern "C" fn(*mut c_void, *mut i64, *mut c_void);
    let kernels = compile::<T>("ops/weights.cu");
    let there = kernels.get::<Change>("weights_to_channels_last");
    let back = kernels.get::<Change>("weight_gradients_from_channels_last");
    // Three weights, with other parameters before, between and after them.
    let shapes = [(5, 3, 7, 7), (4, 6, 1, 1), (9, 8, 3, 3)];
    let starts = [2, 2 + 735, 2 + 735 + 24 + 10];
    let len = starts[2] + 648 + 3;
    let flat = fill(1, len);
    let (mut want, mut places) = (vec![None; len], Vec::new());
    for (start, (c_out, c_in, k, _)) in starts.into_iter().zip(shapes) {
        let size = c_out * c_in * k * k;
        places.extend([start, size, c_in, k * k].map(|number| number as i64));
        let weight = flat[start..start + size].to_vec();
        let weight = Tensor::from_vec(weight, (c_out, c_in, k, k), &Device::Cpu)?;
        for (at, number) in nhwc(&weight)?.into_iter().enumerate() {
            want[start + at] = Some(number);
        }
    }
    let (flat, places) = (Buffer::new(&flat), Buffer::new(&places));
    let (out, gradient) = (Buffer::<T>::unset(len), Buffer::<f32>::unset(len));
    let unset = (out.widened()[0], gradient.values()[0]);
    // SAFETY: the places lie within the buffers, which have `len` numbers.
    kernels.launch((2, 3, 1), (32, 1, 1), || unsafe {
        there(flat.pointer(), places.pointer(), out.pointer());
    });
    // SAFETY: as above.
    kernels.launch((2, 3, 1), (32, 1, 1), || unsafe {
        back(out.pointer(), places.pointer(), gradient.pointer());
    });
    let rounded = T::round(&flat.values());
    let expected = want
        .iter()
        .map(|x| x.map_or(unset.0, |x| T::round(&[x])[0]));
    assert_eq!(out.widened(), expected.collect::<Vec<_>>());
    let within = want.iter().map(Option::is_some).zip(&rounded);
    let expected = within.map(|(within, &x)| if within { x } else { unset.1 });
    assert_eq!(gradient.values(), expected.collect::<Vec<_>>());
    Ok(())
}

#[test]
fn weights_change_their_layout_and_their_gradients_change_it_back() -> Result {
    weights_change_their_layout::<f32>()?;
    weights_change_their_layout::<bf16>()?;
    weights_change_their_layout::<f16>()
}

#[test]
fn a_step_of_sgd_is_pytorchs() {
    type F = *mut f32;
    type Step = unsafe extern "C" fn(F, F, F, F, F, i64, f32, i32, f32);
    let kernels = compile::<f32>("optim/sgd.cu");
    let step = kernels.get::<Step>("sgd_step");
    let (len, momentum, rate) = (150usize, 0.9f32, 0.1f32);
    let of = |seed| fill(seed, len);
    let (decay, scale) = (of(4), of(5));
    for nesterov in [false, true] {
        let (w, m, g) = (of(1), of(2), of(3));
        let (mut want_w, mut want_m) = (w.clone(), m.clone());
        for i in 0..len {
            let direction = scale[i] * (g[i] + decay[i] * w[i]);
            want_m[i] = momentum * m[i] + direction;
            want_w[i] -= rate
                * match nesterov {
                    true => direction + momentum * want_m[i],
                    false => want_m[i],
                };
        }
        let [w, m, g, decay, scale] = [&w, &m, &g, &decay, &scale].map(|x| Buffer::new(x));
        // SAFETY: all have `len` numbers.
        kernels.launch((2, 1, 1), (32, 1, 1), || unsafe {
            step(
                w.pointer(),
                m.pointer(),
                g.pointer(),
                decay.pointer(),
                scale.pointer(),
                len as i64,
                momentum,
                i32::from(nesterov),
                rate,
            );
        });
        assert_near("momentum", &m.values(), &want_m, 1e-6);
        assert_near("parameters", &w.values(), &want_w, 1e-6);
    }
}
