//! Two-dimensional convolution (cross-correlation, as PyTorch defines it) and its two gradients.
//!
//! PIRL's networks see many small maps (patches of 64 pixels, down to 2x2) with few channels, where
//! unfolding the input into a matrix costs as much as the product. So nothing is unfolded: a
//! micro-kernel reads each input pixel where it lies, by a list of row offsets, and multiplies it
//! with panels of packed weights; see `plan` for how taps on padding are left out. The gradient
//! with respect to the input is the same product with reordered taps, that with respect to the
//! weight a product over pixels; see `weight_gradient`.
//!
//! Activations may be stored as `bf16`. Weights are then rounded to it, products are summed in `f32`,
//! and sums are rounded once. Where the processor multiplies pairs of `bf16`, see `lane`, it is given
//! them; elsewhere a part of the input is widened to `f32` at a time, for the same kernels as `f32`.

mod kernel;
mod lane;
mod plan;
mod scratch;
pub(crate) mod simd;
#[cfg(test)]
mod tests;
mod weight_gradient;

use kernel::Kernel;
use lane::{Lane, lanes};
use plan::Plan;
use rayon::prelude::*;
use simd::Isa;

use super::Element;
use super::element::narrow;

/// The sizes of one square-kernel, ungrouped, undilated convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Images in the batch.
    pub n: usize,
    /// Height of the input, pixels.
    pub h: usize,
    /// Width of the input, pixels.
    pub w: usize,
    /// Channels of the input.
    pub c_in: usize,
    /// Channels of the output.
    pub c_out: usize,
    /// Height and width of the kernel.
    pub kernel: usize,
    /// Step of the kernel in both directions, at least 1.
    pub stride: usize,
    /// Zero rows and columns added on every side of the input.
    pub padding: usize,
}

impl ConvShape {
    /// Height and width of the output; zero where the padded input is smaller than the kernel.
    pub fn out_hw(&self) -> (usize, usize) {
        let size = |input: usize| match (input + 2 * self.padding).checked_sub(self.kernel) {
            Some(room) if self.stride > 0 => room / self.stride + 1,
            _ => 0,
        };
        (size(self.h), size(self.w))
    }

    /// Length of the input, `n * h * w * c_in`.
    pub fn in_len(&self) -> usize {
        self.n * self.h * self.w * self.c_in
    }

    /// Length of the output, `n * out_h * out_w * c_out`.
    pub fn out_len(&self) -> usize {
        let (h, w) = self.out_hw();
        self.n * h * w * self.c_out
    }

    /// Length of the weight, `c_out * c_in * kernel * kernel`.
    pub fn weight_len(&self) -> usize {
        self.c_out * self.c_in * self.kernel * self.kernel
    }
}

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

/// `out = x * weight`.
///
/// `x`: NHWC, `weight`: `(c_out, c_in, kernel, kernel)`, `out`: NHWC, overwritten.
///
/// # Panics
/// If a slice's length differs from what `s` says, or the stride is 0.
pub fn forward<T: Element>(s: &ConvShape, x: &[T], weight: &[f32], out: &mut [T]) {
    check(s, x.len(), weight.len(), out.len());
    on_kernel!(Isa::best::<T>(), K => forward_on::<K, T>(s, x, weight, out));
}

/// The gradient of [`forward`] with respect to `x`, from `dy`, that of the output.
///
/// `weight` as for [`forward`], `dy`: NHWC, `dx`: NHWC, overwritten.
///
/// # Panics
/// If a slice's length differs from what `s` says, or the stride is 0.
pub fn backward_input<T: Element>(s: &ConvShape, weight: &[f32], dy: &[T], dx: &mut [T]) {
    check(s, dx.len(), weight.len(), dy.len());
    on_kernel!(Isa::best::<T>(), K => backward_input_on::<K, T>(s, weight, dy, dx));
}

/// The gradient of [`forward`] with respect to the weight, from `dy`, that of the output.
///
/// `x`, `dy`: NHWC; `dw`: `(c_out, c_in, kernel, kernel)`, overwritten.
///
/// # Panics
/// If a slice's length differs from what `s` says, or the stride is 0.
pub fn backward_weight<T: Element>(s: &ConvShape, x: &[T], dy: &[T], dw: &mut [f32]) {
    check(s, x.len(), dw.len(), dy.len());
    on_kernel!(Isa::best::<T>(), K => weight_gradient::compute::<K, T>(s, x, dy, dw));
}

/// The lengths have been checked.
fn forward_on<K: Kernel, T: Element>(s: &ConvShape, x: &[T], weight: &[f32], out: &mut [T]) {
    let taps = s.kernel * s.kernel;
    let (each, lanes) = (K::Lane::NUMBERS, lanes::<K::Lane>(s.c_in));
    let packed = pack::<K>(taps * lanes, s.c_out, |panel, first, columns| {
        let rows = s.c_in * taps;
        let of_panel = &weight[first * rows..][..columns * rows];
        for (i, tap) in (0..s.c_in).flat_map(|i| (0..taps).map(move |tap| (i, tap))) {
            let to = &mut panel[(tap * lanes + i / each) * K::WIDTH..][..columns];
            for (o, to) in to.iter_mut().enumerate() {
                to.put(i % each, rounded::<T>(of_panel[o * rows + i * taps + tap]));
            }
        }
    });
    let plan = Plan::forward(&ConvShape { c_in: lanes, ..*s });
    product::<K, T>(&plan, (x, s.c_in), &packed, (out, s.c_out));
}

/// The lengths have been checked.
fn backward_input_on<K: Kernel, T: Element>(s: &ConvShape, weight: &[f32], dy: &[T], dx: &mut [T]) {
    let taps = s.kernel * s.kernel;
    let places: Vec<usize> = (0..taps)
        .map(|t| {
            plan::gradient_tap(s, t / s.kernel) * s.kernel + plan::gradient_tap(s, t % s.kernel)
        })
        .collect();
    let (each, lanes) = (K::Lane::NUMBERS, lanes::<K::Lane>(s.c_out));
    let packed = pack::<K>(taps * lanes, s.c_in, |panel, first, columns| {
        for o in 0..s.c_out {
            let of_panel = &weight[(o * s.c_in + first) * taps..][..columns * taps];
            for (i, of_pair) in of_panel.chunks_exact(taps).enumerate() {
                for (&place, &w) in places.iter().zip(of_pair) {
                    let to = &mut panel[(place * lanes + o / each) * K::WIDTH + i];
                    to.put(o % each, rounded::<T>(w));
                }
            }
        }
    });
    let plan = Plan::backward(&ConvShape { c_out: lanes, ..*s });
    product::<K, T>(&plan, (dy, s.c_out), &packed, (dx, s.c_in));
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

/// A matrix of `rows` lanes by `columns` as panels of as many columns as the kernel takes, the last one
/// filled up with zeros. `fill` writes a panel, given its first column and how many it has.
fn pack<K: Kernel>(
    rows: usize,
    columns: usize,
    fill: impl Fn(&mut [K::Lane], usize, usize) + Sync,
) -> Vec<K::Lane> {
    let width = K::WIDTH;
    let mut packed = vec![K::Lane::ZERO; columns.div_ceil(width) * rows * width];
    if rows > 0 {
        packed
            .par_chunks_mut(rows * width)
            .enumerate()
            .for_each(|(p, panel)| {
                fill(panel, p * width, width.min(columns - p * width));
            });
    }
    packed
}

/// Tasks that a call is cut into at least, where its size allows: enough to keep threads busy to
/// the end. A constant, so that the cut (and with it every sum) is the same on every machine.
const TASKS: usize = 16;

/// Rows of a panel multiplied at a time: 20 KiB of it with AVX2, which stay in the first-level cache
/// while all pixels of a group pass.
const DEPTH: usize = 320;

/// `out = gathered x * packed weight`; `x` and `out` come with their channels, `plan` counts the
/// source in lanes.
fn product<K: Kernel, T: Element>(
    plan: &Plan,
    (x, x_channels): (&[T], usize),
    packed: &[K::Lane],
    (out, channels): (&mut [T], usize),
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
            };
            if !T::BF16 {
                return sum(out.cast());
            }
            scratch::with(destination.len() * channels, |sums: &mut [f32]| {
                sum(sums.as_mut_ptr());
                for (pixel, sums) in sums.chunks_exact(channels).enumerate() {
                    // SAFETY: this task's columns of one of the group's pixels, as above.
                    let out = unsafe {
                        let first = out.add(pixel * channels + columns.start);
                        std::slice::from_raw_parts_mut(first, columns.len())
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
