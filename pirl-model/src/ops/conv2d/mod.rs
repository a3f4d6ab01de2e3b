//! Two-dimensional convolution (cross-correlation, as PyTorch defines it) and its two gradients.
//!
//! PIRL's networks see many small maps (patches of 64 pixels, down to 2x2) with few channels, where
//! unfolding the input into a matrix costs as much as the product. So nothing is unfolded: a
//! micro-kernel reads each input pixel where it lies, by a list of row offsets, and multiplies it
//! with panels of packed weights; see `plan` for how taps on padding are left out. The gradient
//! with respect to the input is the same product with reordered taps, that with respect to the
//! weight a product over pixels; see `weight_gradient`. Convolutions of 3x3 taps and stride 1 go by tiles of
//! the map where that is faster; see `winograd`.
//!
//! Activations may be stored as `bf16` or `f16`. Weights are then rounded to it, products are summed in
//! `f32`, and sums are rounded once. Where the processor multiplies pairs of `bf16`, see `lane`, it is given
//! them, but for tiles; elsewhere a part of the input is widened to `f32` at a time, for the same kernels
//! as `f32`.

#[cfg(feature = "cudnn")]
pub(super) mod cudnn;
mod kernel;
mod lane;
mod plan;
mod scratch;
mod shape;
pub(crate) mod simd;
#[cfg(test)]
mod tests;
mod weight_gradient;
mod winograd;

use std::ops::Range;
use std::slice;

use candle_core::DType;
use kernel::Kernel;
use lane::{Lane, lanes};
use pirl_core::{prefetch, vectorised};
use plan::Plan;
use rayon::prelude::*;
use shape::TASKS;
use simd::Isa;

use super::Element;
use super::batch_norm::Affine;
use super::element::narrow;

use winograd::{Product, Way};

pub use shape::ConvShape;
pub use winograd::Winograd;

/// Evaluates an expression with `$kernel` the kernels of an instruction set.
macro_rules! on_kernel {
    ($isa:expr, $kernel:ident => $run:expr) => {
        match $isa {
            #[cfg(test)]
            Isa::Pairs => {
                type $kernel = kernel::Pairs;
                $run
            }
            Isa::Portable => {
                type $kernel = kernel::Portable;
                $run
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                type $kernel = kernel::Avx2;
                $run
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                type $kernel = kernel::Avx512;
                $run
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => {
                type $kernel = kernel::Avx512Bf16;
                $run
            }
        }
    };
}
#[cfg(test)]
use on_kernel;

/// Evaluates an expression by Winograd's way with `$kernel` the kernels of an instruction set and
/// `$tiles` the tiles; false if the way is the direct one.
macro_rules! on_tiles {
    ($way:expr, $isa:expr, $kernel:ident, $tiles:ident => $run:expr) => {
        match $way {
            Way::Direct => false,
            Way::Two => {
                type $tiles = winograd::transform::Two;
                on_tiles!($isa, $kernel => $run)
            }
            Way::Four => {
                type $tiles = winograd::transform::Four;
                on_tiles!($isa, $kernel => $run)
            }
        }
    };
    ($isa:expr, $kernel:ident => $run:expr) => {{
        match $isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                type $kernel = kernel::Avx2;
                $run
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => {
                type $kernel = kernel::Avx512;
                $run
            }
            _ => {
                type $kernel = kernel::Portable;
                $run
            }
        }
        true
    }};
}
#[cfg(test)]
use on_tiles;

/// `out = x * weight`.
///
/// `x`: NHWC, `weight`: `(c_out, c_in, kernel, kernel)`, `out`: NHWC, overwritten.
///
/// # Panics
/// If a slice's length differs from what `s` says, or the stride is 0.
pub fn forward<T: Element>(
    s: &ConvShape,
    winograd: Winograd,
    x: &[T],
    weight: &[f32],
    out: &mut [T],
) {
    check(s, x.len(), weight.len(), out.len());
    run_forward(s, winograd, x, weight, None, None, out);
}

/// `out = x * weight * scale + shift + residual`, then its positive part if `relu`: a convolution in
/// evaluation, with the batch norm that follows it folded in and the rest done while the output is
/// near the processor.
///
/// `affine`: a scale and a shift for each output channel; `residual`: as `out`. Otherwise as
/// [`forward`]. The scale is multiplied into the weight, which rounds otherwise than batch norm does.
///
/// # Panics
/// If a slice's length differs from what `s` says, or the stride is 0.
#[allow(clippy::too_many_arguments, reason = "all that is done in one pass")]
pub fn forward_affine<T: Element>(
    s: &ConvShape,
    winograd: Winograd,
    x: &[T],
    weight: &[f32],
    affine: &Affine,
    residual: Option<&[T]>,
    relu: bool,
    out: &mut [T],
) {
    check(s, x.len(), weight.len(), out.len());
    let channels = (affine.scale.len(), affine.shift.len());
    assert_eq!(channels, (s.c_out, s.c_out), "scales and shifts of {s:?}");
    assert!(
        residual.is_none_or(|residual| residual.len() == out.len()),
        "length of a residual of {s:?}"
    );
    let finish = Finish {
        shift: &affine.shift,
        residual,
        relu,
    };
    let scale = Some(&affine.scale[..]);
    run_forward(s, winograd, x, weight, scale, Some(&finish), out);
}

/// The lengths have been checked.
fn run_forward<T: Element>(
    s: &ConvShape,
    winograd: Winograd,
    x: &[T],
    weight: &[f32],
    scale: Option<&[f32]>,
    finish: Option<&Finish<'_, T>>,
    out: &mut [T],
) {
    let isa = Isa::best::<T>();
    let way = winograd.way(s, Product::Output, isa.lane_numbers());
    if on_tiles!(way, isa, K, W => winograd::forward::<K, W, T>(s, x, weight, scale, finish, out)) {
        return;
    }
    on_kernel!(isa, K => forward_on::<K, T>(s, x, weight, scale, finish, out));
}

/// The gradient of [`forward`] with respect to `x`, from `dy`, that of the output.
///
/// `weight` as for [`forward`], `dy`: NHWC, `dx`: NHWC, overwritten.
///
/// # Panics
/// If a slice's length differs from what `s` says, or the stride is 0.
pub fn backward_input<T: Element>(
    s: &ConvShape,
    winograd: Winograd,
    weight: &[f32],
    dy: &[T],
    dx: &mut [T],
) {
    check(s, dx.len(), weight.len(), dy.len());
    let isa = Isa::best::<T>();
    let way = winograd.way(s, Product::Input, isa.lane_numbers());
    if on_tiles!(way, isa, K, W => winograd::backward_input::<K, W, T>(s, weight, dy, dx)) {
        return;
    }
    on_kernel!(isa, K => backward_input_on::<K, T>(s, weight, dy, dx));
}

/// The gradient of [`forward`] with respect to the weight, from `dy`, that of the output.
///
/// `x`, `dy`: NHWC; `dw`: `(c_out, c_in, kernel, kernel)`, overwritten.
///
/// # Panics
/// If a slice's length differs from what `s` says, or the stride is 0.
pub fn backward_weight<T: Element>(
    s: &ConvShape,
    winograd: Winograd,
    x: &[T],
    dy: &[T],
    dw: &mut [f32],
) {
    check(s, x.len(), dw.len(), dy.len());
    let isa = Isa::best::<T>();
    let way = winograd.way(s, Product::Weight, isa.lane_numbers());
    if on_tiles!(way, isa, K, W => winograd::backward_weight::<K, W, T>(s, x, dy, dw)) {
        return;
    }
    on_kernel!(isa, K => weight_gradient::compute::<K, T>(s, x, dy, dw));
}

/// The lengths have been checked. Each output channel of the weight is multiplied by its `scale`.
fn forward_on<K: Kernel, T: Element>(
    s: &ConvShape,
    x: &[T],
    weight: &[f32],
    scale: Option<&[f32]>,
    finish: Option<&Finish<'_, T>>,
    out: &mut [T],
) {
    let taps = s.kernel * s.kernel;
    let (each, lanes) = (K::Lane::NUMBERS, lanes::<K::Lane>(s.c_in));
    let packed = pack::<K>(taps * lanes * K::WIDTH, s.c_out, |panel, first, columns| {
        let rows = s.c_in * taps;
        let of_panel = &weight[first * rows..][..columns * rows];
        let mut scales = [1.0; kernel::MAX_PANEL];
        if let Some(scale) = scale {
            scales[..columns].copy_from_slice(&scale[first..][..columns]);
        }
        // Channels of the output may lie a power of two apart, so a cache line of each is read at a time.
        let mut turned = [[0.0; kernel::MAX_PANEL]; 16];
        for start in (0..rows).step_by(turned.len()) {
            let len = turned.len().min(rows - start);
            for (o, of_channel) in of_panel.chunks_exact(rows).enumerate() {
                let (now, later) = of_channel[start..].split_at(len);
                prefetch(&later[..later.len().min(turned.len())]);
                for (turned, weight) in turned.iter_mut().zip(now) {
                    turned[o] = *weight;
                }
            }
            for (place, turned) in (start..).zip(&mut turned[..len]) {
                let (i, tap) = (place / taps, place % taps);
                for (weight, scale) in turned.iter_mut().zip(scales) {
                    *weight = rounded::<T>(scale * *weight);
                }
                let to = &mut panel[(tap * lanes + i / each) * K::WIDTH..][..columns];
                put(to, i % each, turned);
            }
        }
    });
    let plan = Plan::forward(&ConvShape { c_in: lanes, ..*s });
    product::<K, T>(&plan, (x, s.c_in), &packed, (out, s.c_out), finish);
}

/// The lengths have been checked.
fn backward_input_on<K: Kernel, T: Element>(s: &ConvShape, weight: &[f32], dy: &[T], dx: &mut [T]) {
    let taps = s.kernel * s.kernel;
    let places: Vec<usize> = (0..taps)
        .map(|t| {
            plan::gradient_tap(s, t / s.kernel) * s.kernel + plan::gradient_tap(s, t % s.kernel)
        })
        .collect();
    /// Output channels that memory is asked for before they are packed.
    const AHEAD: usize = 8;
    let (each, lanes) = (K::Lane::NUMBERS, lanes::<K::Lane>(s.c_out));
    let packed = pack::<K>(taps * lanes * K::WIDTH, s.c_in, |panel, first, columns| {
        let mut turned = [0.0; kernel::MAX_PANEL];
        for o in 0..s.c_out {
            let of_panel = |o: usize| &weight[(o * s.c_in + first) * taps..][..columns * taps];
            if o + AHEAD < s.c_out {
                prefetch(of_panel(o + AHEAD));
            }
            let of_panel = of_panel(o);
            for (tap, place) in places.iter().enumerate() {
                for (turned, of_pair) in turned.iter_mut().zip(of_panel.chunks_exact(taps)) {
                    *turned = rounded::<T>(of_pair[tap]);
                }
                let to = &mut panel[(place * lanes + o / each) * K::WIDTH..][..columns];
                put(to, o % each, &turned);
            }
        }
    });
    let plan = Plan::backward(&ConvShape { c_out: lanes, ..*s });
    product::<K, T>(&plan, (dy, s.c_out), &packed, (dx, s.c_in), None);
}

/// Sets number `index` of each lane to the number at its place in `from`.
fn put<L: Lane>(lanes: &mut [L], index: usize, from: &[f32]) {
    for (lane, x) in lanes.iter_mut().zip(from) {
        lane.put(index, *x);
    }
}

/// A weight as products with activations of type `T` take it.
#[inline(always)]
fn rounded<T: Element>(weight: f32) -> f32 {
    T::from_f32(weight).to_f32()
}

/// Panics unless the three lengths are those of `s`: the kernels below trust them.
fn check(s: &ConvShape, x: usize, weight: usize, out: usize) {
    assert!(s.stride > 0, "a convolution needs a stride of at least 1");
    assert_eq!(
        (x, weight, out),
        (s.in_len(), s.weight_len(), s.out_len()),
        "lengths of input, weight and output of {s:?}"
    );
}

/// A matrix of so many `columns` as panels of as many as the kernel takes, each of `len` lanes, what is
/// not filled being zeros. `fill` writes a panel, given its first column and how many it has.
fn pack<K: Kernel>(
    len: usize,
    columns: usize,
    fill: impl Fn(&mut [K::Lane], usize, usize) + Sync,
) -> Vec<K::Lane> {
    let width = K::WIDTH;
    let all = columns.div_ceil(width) * len;
    let mut packed = Vec::with_capacity(all);
    if len > 0 {
        packed.spare_capacity_mut()[..all]
            .par_chunks_mut(len)
            .enumerate()
            .for_each(|(p, panel)| {
                for lane in panel.iter_mut() {
                    lane.write(K::Lane::ZERO);
                }
                // SAFETY: all of it was written above.
                let panel =
                    unsafe { slice::from_raw_parts_mut(panel.as_mut_ptr().cast(), panel.len()) };
                fill(panel, p * width, width.min(columns - p * width));
            });
    }
    // SAFETY: its panels, all of which were written above, are all of it.
    unsafe { packed.set_len(all) };
    packed
}

/// Rows of a panel multiplied at a time: 20 KiB of it with AVX2, which stay in the first-level cache
/// while all pixels of a group pass.
const DEPTH: usize = 320;

/// What follows the products of a forward pass, on sums that are complete.
struct Finish<'a, T> {
    /// Of each channel.
    shift: &'a [f32],
    /// As long as the output.
    residual: Option<&'a [T]>,
    relu: bool,
}

impl<T: Element> Finish<'_, T> {
    /// Of `columns` of the pixel whose channels begin at `pixel` of the output.
    fn apply(&self, pixel: usize, columns: Range<usize>, sums: &mut [f32]) {
        let shift = &self.shift[columns.clone()];
        match self.residual {
            Some(residual) => {
                let residual = &residual[pixel + columns.start..][..columns.len()];
                shift_with(sums, shift, residual, self.relu);
            }
            None => shift_by(sums, shift, self.relu),
        }
    }
}

/// What a ReLU lifts everything to; a NaN is not below it, so it stays.
#[inline(always)]
fn floor(relu: bool) -> f32 {
    if relu { 0.0 } else { f32::NEG_INFINITY }
}

vectorised! {
    /// `sums + shift`, or its positive part.
    fn shift_by(sums: &mut [f32], shift: &[f32], relu: bool) {
        let floor = floor(relu);
        for (sum, shift) in sums.iter_mut().zip(shift) {
            let y = *sum + shift;
            *sum = if y < floor { floor } else { y };
        }
    }
}

vectorised! {
    /// `sums + shift + residual`, or its positive part.
    fn shift_with<T: Element>(sums: &mut [f32], shift: &[f32], residual: &[T], relu: bool) {
        let floor = floor(relu);
        for ((sum, shift), residual) in sums.iter_mut().zip(shift).zip(residual) {
            let y = *sum + shift + residual.to_f32();
            *sum = if y < floor { floor } else { y };
        }
    }
}

/// `out = gathered x * packed weight`, then `finish`; `x` and `out` come with their channels, `plan`
/// counts the source in lanes.
fn product<K: Kernel, T: Element>(
    plan: &Plan,
    (x, x_channels): (&[T], usize),
    packed: &[K::Lane],
    (out, channels): (&mut [T], usize),
    finish: Option<&Finish<'_, T>>,
) {
    let panels = channels.div_ceil(K::WIDTH);
    let groups = plan.groups();
    if panels == 0 || groups.is_empty() {
        return;
    }
    let panel_len = packed.len() / panels;
    let shares = TASKS.div_ceil(groups.len()).min(panels);
    let out = Shared(out.as_mut_ptr());
    (0..groups.len() * shares).into_par_iter().for_each(|task| {
        let (group, share) = (&groups[task / shares], task % shares);
        let panels = share * panels / shares..(share + 1) * panels / shares;
        let (source, destination) = (plan.source_pixels(group), plan.destination_pixels(group));
        let x = &x[source.start * x_channels..source.end * x_channels];
        as_lanes::<K::Lane, T, _>(x, x_channels, |x| {
            // SAFETY: groups are disjoint in destination pixels and shares in channels, so no two
            // tasks access one number of `out`.
            let out = unsafe { out.pointer().add(destination.start * channels) };
            let columns = panels.start * K::WIDTH..channels.min(panels.end * K::WIDTH);
            // The group's sums at `sums`, laid out as `out` is.
            let sum = |sums: *mut f32| {
                plan.visit(group, |segments, rows| {
                    for (depth, segments) in plan::cut(segments, DEPTH).iter().enumerate() {
                        for p in panels.clone() {
                            let first = p * K::WIDTH;
                            // SAFETY: the kernel's set is available, as every caller takes it from
                            // `Isa`. The plan's rows and segments address the group's part of `x`
                            // and of `out`, whose lengths `check` compared, and `packed` has a row
                            // of `WIDTH` for every tap and lane. `sums` is writable there by this
                            // task alone.
                            unsafe {
                                K::gather(
                                    rows,
                                    segments,
                                    x.as_ptr(),
                                    packed.as_ptr().add(p * panel_len),
                                    sums.add(first),
                                    K::WIDTH.min(channels - first),
                                    depth > 0,
                                );
                            }
                        }
                    }
                });
                let Some(finish) = finish else { return };
                for pixel in 0..destination.len() {
                    let first = pixel * channels + columns.start;
                    // SAFETY: this task's columns of one of the group's pixels, as above; the
                    // kernel wrote them all.
                    let sums = unsafe { slice::from_raw_parts_mut(sums.add(first), columns.len()) };
                    let pixel = (destination.start + pixel) * channels;
                    finish.apply(pixel, columns.clone(), sums);
                }
            };
            if T::DTYPE == DType::F32 {
                return sum(out.cast());
            }
            scratch::with(destination.len() * channels, |sums: &mut [f32]| {
                sum(sums.as_mut_ptr());
                for (pixel, sums) in sums.chunks_exact(channels).enumerate() {
                    // SAFETY: this task's columns of one of the group's pixels, as above.
                    let out = unsafe {
                        let first = out.add(pixel * channels + columns.start);
                        slice::from_raw_parts_mut(first, columns.len())
                    };
                    narrow(&sums[columns.clone()], out);
                }
            });
        });
    });
}

/// Calls `work` with the pixels `x` of `channels` numbers each as lanes.
fn as_lanes<L: Lane, T: Element, R>(x: &[T], channels: usize, work: impl FnOnce(&[L]) -> R) -> R {
    if let Some(x) = L::view(x, channels) {
        return work(x);
    }
    let pixels = x.len() / channels.max(1);
    scratch::with(pixels * lanes::<L>(channels), |converted| {
        L::convert(x, channels, converted);
        work(converted)
    })
}

/// A pointer that tasks share to write disjoint parts of one slice.
struct Shared<T>(*mut T);

impl<T> Shared<T> {
    fn pointer(&self) -> *mut T {
        self.0
    }
}

// SAFETY: the pointer is only a number until dereferenced, and whoever does that argues for it.
unsafe impl<T: Send> Sync for Shared<T> {}
