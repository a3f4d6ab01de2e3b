//! Every instruction set of this machine against seven loops in `f64`.

use super::*;
use benches::fill;
use candle_core::DType;
use half::{bf16, f16};

/// The output and both gradients of one convolution, in `f64`, with its terms' magnitudes.
struct Oracle {
    out: Vec<f64>,
    dx: Vec<f64>,
    dw: Vec<f64>,
}

/// Seven loops; with `magnitudes`, the sum of the absolute products instead, which bounds rounding.
fn oracle(s: &ConvShape, x: &[f32], weight: &[f32], dy: &[f32], magnitudes: bool) -> Oracle {
    let (oh, ow) = s.out_hw();
    let k = s.kernel;
    let term = |a: f32, b: f32| {
        let product = a as f64 * b as f64;
        if magnitudes { product.abs() } else { product }
    };
    let mut r = Oracle {
        out: vec![0.0; s.out_len()],
        dx: vec![0.0; s.in_len()],
        dw: vec![0.0; s.weight_len()],
    };
    for n in 0..s.n {
        for (oy, ox) in (0..oh).flat_map(|oy| (0..ow).map(move |ox| (oy, ox))) {
            for (ky, kx) in (0..k).flat_map(|ky| (0..k).map(move |kx| (ky, kx))) {
                let (y, x_) = (oy * s.stride + ky, ox * s.stride + kx);
                if y < s.padding || x_ < s.padding || y >= s.h + s.padding || x_ >= s.w + s.padding
                {
                    continue;
                }
                let (y, x_) = (y - s.padding, x_ - s.padding);
                for o in 0..s.c_out {
                    let at_out = ((n * oh + oy) * ow + ox) * s.c_out + o;
                    for i in 0..s.c_in {
                        let at_x = ((n * s.h + y) * s.w + x_) * s.c_in + i;
                        let at_w = ((o * s.c_in + i) * k + ky) * k + kx;
                        r.out[at_out] += term(x[at_x], weight[at_w]);
                        r.dx[at_x] += term(dy[at_out], weight[at_w]);
                        r.dw[at_w] += term(x[at_x], dy[at_out]);
                    }
                }
            }
        }
    }
    r
}

/// `f32` sums of products of magnitudes m are within a few thousand half-ulps of m: 1e-5 m is
/// generous for sums of up to 10^4 terms and still sees a single wrong product among them. What is
/// stored as `bf16`, which has 8 bits, or `f16`, which has 11, is then rounded by 2^-8 or 2^-11 of
/// itself at most.
fn assert_close<T: Element>(what: &str, got: &[T], want: &[f64], magnitude: &[f64]) {
    assert_eq!(got.len(), want.len());
    // Steps of `f16` are never shorter than 2^-24.
    let (rounding, least) = match T::DTYPE {
        DType::BF16 => (1.0 / 256.0, 0.0),
        DType::F16 => (1.0 / 2048.0, 2f64.powi(-25)),
        _ => (0.0, 0.0),
    };
    for (i, ((&g, &w), &m)) in got.iter().zip(want).zip(magnitude).enumerate() {
        let bound = 1e-5 * m + rounding * (w.abs() + 1e-5 * m) + least;
        assert!(
            (f64::from(g.to_f32()) - w).abs() <= bound,
            "{what}: entry {i} is {g:?}, should be {w} +- {bound}"
        );
    }
}

/// Winograd's tiles round by the magnitudes of all their numbers, so an entry's bound is not its own.
fn largest(magnitudes: &[f64]) -> Vec<f64> {
    let largest = magnitudes.iter().copied().fold(0.0, f64::max);
    vec![largest; magnitudes.len()]
}

fn check_shape(s: ConvShape) {
    check_shape_in::<f32>(s);
    check_shape_in::<bf16>(s);
    check_shape_in::<f16>(s);
}

fn check_shape_in<T: Element>(s: ConvShape) {
    // Inputs that `T` holds, so that only the op itself rounds.
    let stored = |seed, len| -> Vec<T> { fill(seed, len).into_iter().map(T::from_f32).collect() };
    let wide = |x: &[T]| -> Vec<f32> { x.iter().map(|x| x.to_f32()).collect() };
    let (x, dy) = (stored(1, s.in_len()), stored(3, s.out_len()));
    let weight = wide(&stored(2, s.weight_len()));
    let want = oracle(&s, &wide(&x), &weight, &wide(&dy), false);
    let size = oracle(&s, &wide(&x), &weight, &wide(&dy), true);
    // Powers of two, so that scaled weights are not rounded.
    let scale = |channel: usize| [0.5, -2.0, 1.0][channel % 3];
    let scales: Vec<f32> = (0..s.c_out).map(scale).collect();
    let (shift, residual) = (fill(4, s.c_out), stored(5, s.out_len()));
    let finish = Finish {
        shift: &shift,
        residual: (s.n == 2).then_some(&residual[..]),
        relu: s.n < 3,
    };
    let finished = |sums: &[f64], magnitude: bool| -> Vec<f64> {
        let parts = sums.iter().enumerate().map(|(i, &sum)| {
            let channel = i % s.c_out;
            let scaled = sum * f64::from(scale(channel));
            let added = finish.residual.map_or(0.0, |x| f64::from(x[i].to_f32()));
            let parts = [scaled, f64::from(shift[channel]), added];
            match magnitude {
                true => parts.iter().map(|x| x.abs()).sum(),
                false if finish.relu => parts.iter().sum::<f64>().max(0.0),
                false => parts.iter().sum(),
            }
        });
        parts.collect()
    };
    let (finished, finished_size) = (finished(&want.out, false), finished(&size.out, true));
    let scale = Some(&scales[..]);
    let nan = T::from_f32(f32::NAN);
    for isa in Isa::available::<T>() {
        let what = |of: &str| format!("{isa:?} {of} of {s:?}");
        // Outputs start as NaN, so that an entry left unwritten shows.
        let mut out = vec![nan; s.out_len()];
        on_kernel!(isa, K => forward_on::<K, T>(&s, &x, &weight, None, None, &mut out));
        assert_close(&what("output"), &out, &want.out, &size.out);
        out.fill(nan);
        on_kernel!(isa, K => forward_on::<K, T>(&s, &x, &weight, scale, Some(&finish), &mut out));
        assert_close(&what("finished output"), &out, &finished, &finished_size);
        let mut dx = vec![nan; s.in_len()];
        on_kernel!(isa, K => backward_input_on::<K, T>(&s, &weight, &dy, &mut dx));
        assert_close(&what("dx"), &dx, &want.dx, &size.dx);
        let mut dw = vec![f32::NAN; s.weight_len()];
        on_kernel!(isa, K => weight_gradient::compute::<K, T>(&s, &x, &dy, &mut dw));
        assert_close(&what("dw"), &dw, &want.dw, &size.dw);
        if !winograd::possible(&s) {
            continue;
        }
        for way in [Way::Two, Way::Four] {
            let what = |of: &str| format!("{isa:?} {way:?} {of} of {s:?}");
            let mut out = vec![nan; s.out_len()];
            on_tiles!(way, isa, K, W => winograd::forward::<K, W, T>(&s, &x, &weight, None, None, &mut out));
            assert_close(&what("output"), &out, &want.out, &largest(&size.out));
            out.fill(nan);
            let finish = Some(&finish);
            on_tiles!(way, isa, K, W => winograd::forward::<K, W, T>(&s, &x, &weight, scale, finish, &mut out));
            assert_close(
                &what("finished output"),
                &out,
                &finished,
                &largest(&finished_size),
            );
            let mut dx = vec![nan; s.in_len()];
            on_tiles!(way, isa, K, W => winograd::backward_input::<K, W, T>(&s, &weight, &dy, &mut dx));
            assert_close(&what("dx"), &dx, &want.dx, &largest(&size.dx));
            let mut dw = vec![f32::NAN; s.weight_len()];
            on_tiles!(way, isa, K, W => winograd::backward_weight::<K, W, T>(&s, &x, &dy, &mut dw));
            assert_close(&what("dw"), &dw, &want.dw, &largest(&size.dw));
        }
    }
}

#[test]
fn every_kernel_stride_padding_and_small_size() {
    for kernel in [1, 2, 3, 7] {
        for stride in [1, 2, 3] {
            for padding in [0, 1, 3] {
                for (h, w) in [(1, 1), (2, 2), (3, 5), (8, 7)] {
                    let s = ConvShape {
                        n: 2,
                        h,
                        w,
                        c_in: 3,
                        c_out: 5,
                        kernel,
                        stride,
                        padding,
                    };
                    if s.out_len() > 0 {
                        check_shape(s);
                    }
                }
            }
        }
    }
}

#[test]
fn a_rectified_nan_stays_one() {
    let s = ConvShape {
        n: 1,
        h: 1,
        w: 2,
        c_in: 1,
        c_out: 1,
        kernel: 1,
        stride: 1,
        padding: 0,
    };
    let affine = Affine {
        scale: vec![1.0],
        shift: vec![0.5],
    };
    let mut out = [7.0; 2];
    forward_affine(
        &s,
        Winograd::Auto,
        &[f32::NAN, -1.0],
        &[1.0],
        &affine,
        None,
        true,
        &mut out,
    );
    assert!(out[0].is_nan() && out[1] == 0.0, "{out:?}");
}

#[test]
fn channel_counts_around_the_tile_sizes() {
    for c_in in [1, 3, 5, 16, 17, 64] {
        for c_out in [1, 3, 16, 17, 33, 64, 100] {
            let s = ConvShape {
                n: 3,
                h: 5,
                w: 4,
                c_in,
                c_out,
                kernel: 3,
                stride: 1,
                padding: 1,
            };
            check_shape(s);
            check_shape(ConvShape {
                kernel: 1,
                padding: 0,
                stride: 2,
                ..s
            });
        }
    }
}

/// Several groups of images, bands of rows, and chunks of the weight gradient.
#[test]
fn large_batches_and_large_maps() {
    let s = ConvShape {
        n: 1,
        h: 90,
        w: 110,
        c_in: 6,
        c_out: 20,
        kernel: 3,
        stride: 1,
        padding: 1,
    };
    check_shape(s);
    check_shape(ConvShape {
        stride: 2,
        kernel: 7,
        padding: 3,
        c_in: 3,
        ..s
    });
    check_shape(ConvShape {
        n: 700,
        h: 3,
        w: 3,
        c_in: 8,
        c_out: 40,
        ..s
    });
    check_shape(ConvShape {
        n: 3000,
        h: 1,
        w: 1,
        c_in: 9,
        c_out: 65,
        kernel: 1,
        padding: 0,
        ..s
    });
}

#[test]
fn an_empty_batch_has_no_output_and_no_gradient() {
    let s = ConvShape {
        n: 0,
        h: 4,
        w: 4,
        c_in: 2,
        c_out: 3,
        kernel: 3,
        stride: 1,
        padding: 1,
    };
    let weight = fill(2, s.weight_len());
    forward::<f32>(&s, Winograd::Auto, &[], &weight, &mut []);
    backward_input::<bf16>(&s, Winograd::Auto, &weight, &[], &mut []);
    let mut dw = vec![f32::NAN; s.weight_len()];
    backward_weight::<bf16>(&s, Winograd::Auto, &[], &[], &mut dw);
    assert!(dw.iter().all(|&w| w == 0.0));
}

#[test]
#[should_panic(expected = "lengths of input, weight and output")]
fn a_slice_of_the_wrong_length_panics() {
    let s = ConvShape {
        n: 1,
        h: 4,
        w: 4,
        c_in: 2,
        c_out: 3,
        kernel: 3,
        stride: 1,
        padding: 1,
    };
    forward(&s, Winograd::Auto, &[0.0; 31], &[0.0; 54], &mut [0.0; 48]);
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    threads_change_no_bit::<f32>(Winograd::Auto, 600);
    threads_change_no_bit::<f32>(Winograd::Auto, 2);
    threads_change_no_bit::<f32>(Winograd::Off, 600);
    threads_change_no_bit::<bf16>(Winograd::Auto, 600);
    threads_change_no_bit::<bf16>(Winograd::Off, 600);
}

fn threads_change_no_bit<T: Element>(winograd: Winograd, n: usize) {
    let s = ConvShape {
        n,
        h: 4,
        w: 4,
        c_in: 20,
        c_out: 40,
        kernel: 3,
        stride: 1,
        padding: 1,
    };
    let stored = |seed, len| -> Vec<T> { fill(seed, len).into_iter().map(T::from_f32).collect() };
    let (x, dy) = (stored(1, s.in_len()), stored(3, s.out_len()));
    let weight = fill(2, s.weight_len());
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let zero = T::from_f32(0.0);
            let (mut out, mut dx, mut dw) = (
                vec![zero; s.out_len()],
                vec![zero; s.in_len()],
                vec![0.0; s.weight_len()],
            );
            forward(&s, winograd, &x, &weight, &mut out);
            backward_input(&s, winograd, &weight, &dy, &mut dx);
            backward_weight(&s, winograd, &x, &dy, &mut dw);
            let stored = out.iter().chain(&dx).map(|v| v.to_f32());
            stored.chain(dw).map(f32::to_bits).collect::<Vec<_>>()
        })
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(5));
}

/// Products that are cut in several depths, and weight gradients of several spans.
#[test]
fn many_channels() {
    for (many, kernel, stride) in [
        (321, 1, 1),
        (512, 1, 2),
        (1000, 1, 1),
        (130, 3, 1),
        (257, 3, 2),
    ] {
        for (c_in, c_out) in [(many, 35), (35, many)] {
            check_shape(ConvShape {
                n: 2,
                h: 3,
                w: 4,
                c_in,
                c_out,
                kernel,
                stride,
                padding: kernel / 2,
            });
        }
    }
}

/// As a part of the direct way's, the error of each op by tiles: at most 4 for those of 2x2, 20 for those
/// of 4x4; and at most 1e-4 of the numbers themselves. Both of the root of the mean square and of the
/// largest.
#[test]
fn tiles_round_little_more_than_the_direct_way() {
    for (c_in, c_out, side, padding) in [
        (1, 4, 9, 1),
        (3, 16, 12, 1),
        (16, 24, 9, 0),
        (64, 48, 7, 1),
        (300, 20, 4, 1),
        (20, 300, 4, 2),
    ] {
        let s = ConvShape {
            n: 2,
            h: side,
            w: side + 1,
            c_in,
            c_out,
            kernel: 3,
            stride: 1,
            padding,
        };
        let (x, dy) = (fill(1, s.in_len()), fill(3, s.out_len()));
        let weight = fill(2, s.weight_len());
        let want = oracle(&s, &x, &weight, &dy, false);
        let (mut out, mut dx) = (dy.clone(), x.clone());
        let mut dw = weight.clone();
        let errors = |found: [&[f32]; 3]| {
            [
                (found[0], &want.out),
                (found[1], &want.dx),
                (found[2], &want.dw),
            ]
            .map(|(found, want)| error(found, want))
        };
        for isa in Isa::available::<f32>() {
            on_kernel!(isa, K => forward_on::<K, f32>(&s, &x, &weight, None, None, &mut out));
            on_kernel!(isa, K => backward_input_on::<K, f32>(&s, &weight, &dy, &mut dx));
            on_kernel!(isa, K => weight_gradient::compute::<K, f32>(&s, &x, &dy, &mut dw));
            let direct = errors([&out, &dx, &dw]);
            for (way, times) in [(Way::Two, 4.0), (Way::Four, 20.0)] {
                on_tiles!(way, isa, K, W => {
                    winograd::forward::<K, W, f32>(&s, &x, &weight, None, None, &mut out);
                    winograd::backward_input::<K, W, f32>(&s, &weight, &dy, &mut dx);
                    winograd::backward_weight::<K, W, f32>(&s, &x, &dy, &mut dw);
                });
                let found = errors([&out, &dx, &dw]);
                for ((op, found), direct) in ["output", "dx", "dw"].iter().zip(found).zip(direct) {
                    let what =
                        format!("{isa:?} {way:?} {op} of {s:?}: {found:?}, direct {direct:?}");
                    for (found, direct) in found.into_iter().zip(direct) {
                        assert!(found <= times * direct && found <= 1e-4, "{what}");
                    }
                }
            }
        }
    }
}

/// Of the differences, the root of the mean square and the largest, as a part of those of `want`.
fn error(found: &[f32], want: &[f64]) -> [f64; 2] {
    let differences = found
        .iter()
        .zip(want)
        .map(|(&found, want)| f64::from(found) - want);
    let differences: Vec<f64> = differences.collect();
    let sizes = |x: &[f64]| {
        let squares: f64 = x.iter().map(|x| x * x).sum();
        [
            squares.sqrt(),
            x.iter().fold(0.0, |most: f64, x| most.max(x.abs())),
        ]
    };
    let (differences, want) = (sizes(&differences), sizes(want));
    [differences[0] / want[0], differences[1] / want[1]]
}

#[test]
fn tiles_are_for_what_they_make_faster() {
    let s = ConvShape {
        n: 16,
        h: 28,
        w: 28,
        c_in: 128,
        c_out: 128,
        kernel: 3,
        stride: 1,
        padding: 1,
    };
    for product in [Product::Output, Product::Input, Product::Weight] {
        assert_eq!(Winograd::Auto.way(&s, product, 1), Way::Four);
        assert_eq!(Winograd::Off.way(&s, product, 1), Way::Direct);
        for other in [
            ConvShape { stride: 2, ..s },
            ConvShape { kernel: 1, ..s },
            ConvShape { padding: 3, ..s },
            ConvShape { n: 0, ..s },
            ConvShape { c_in: 0, ..s },
            ConvShape { h: 1, w: 1, ..s },
            ConvShape { h: 2, w: 2, ..s },
        ] {
            assert_eq!(
                Winograd::Auto.way(&other, product, 1),
                Way::Direct,
                "{other:?}"
            );
        }
    }
}

/// A transformed weight that is kept in parts.
#[test]
fn a_weight_of_several_parts() {
    check_shape_in::<f32>(ConvShape {
        n: 1,
        h: 2,
        w: 1,
        c_in: 512,
        c_out: 600,
        kernel: 3,
        stride: 1,
        padding: 1,
    });
}
