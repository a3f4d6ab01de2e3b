//! Two-dimensional convolution (cross-correlation, as PyTorch defines it) and its two gradients.
//!
//! PIRL's networks see many small maps (patches of 64 pixels, down to 2x2) with few channels, where
//! unfolding the input into a matrix costs as much as the product. So nothing is unfolded: a
//! micro-kernel reads each input pixel where it lies, by a list of row offsets, and multiplies it
//! with panels of packed weights; see `plan` for how taps on padding are left out. The gradient
//! with respect to the input is the same product with reordered taps, that with respect to the
//! weight a product over pixels; see `weight_gradient`.

mod kernel;
mod plan;
mod scratch;
pub(crate) mod simd;
#[cfg(test)]
mod tests;
mod weight_gradient;

use plan::Plan;
use rayon::prelude::*;
use simd::Isa;

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

/// `out = x * weight`.
///
/// `x`: NHWC, `weight`: `(c_out, c_in, kernel, kernel)`, `out`: NHWC, overwritten.
///
/// # Panics
/// If a slice's length differs from what `s` says, or the stride is 0.
pub fn forward(s: &ConvShape, x: &[f32], weight: &[f32], out: &mut [f32]) {
    forward_on(Isa::best(), s, x, weight, out);
}

/// The gradient of [`forward`] with respect to `x`, from `dy`, that of the output.
///
/// `weight` as for [`forward`], `dy`: NHWC, `dx`: NHWC, overwritten.
///
/// # Panics
/// If a slice's length differs from what `s` says, or the stride is 0.
pub fn backward_input(s: &ConvShape, weight: &[f32], dy: &[f32], dx: &mut [f32]) {
    backward_input_on(Isa::best(), s, weight, dy, dx);
}

/// The gradient of [`forward`] with respect to the weight, from `dy`, that of the output.
///
/// `x`, `dy`: NHWC; `dw`: `(c_out, c_in, kernel, kernel)`, overwritten.
///
/// # Panics
/// If a slice's length differs from what `s` says, or the stride is 0.
pub fn backward_weight(s: &ConvShape, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    check(s, x.len(), dw.len(), dy.len());
    weight_gradient::compute(Isa::best(), s, x, dy, dw);
}

fn forward_on(isa: Isa, s: &ConvShape, x: &[f32], weight: &[f32], out: &mut [f32]) {
    check(s, x.len(), weight.len(), out.len());
    let width = kernel::panel_width(isa);
    let taps = s.kernel * s.kernel;
    let packed = pack(width, taps * s.c_in, s.c_out, |panel, first, columns| {
        let rows = s.c_in * taps;
        let of_panel = &weight[first * rows..][..columns * rows];
        for (i, tap) in (0..s.c_in).flat_map(|i| (0..taps).map(move |tap| (i, tap))) {
            let to = &mut panel[(tap * s.c_in + i) * width..][..columns];
            for (o, to) in to.iter_mut().enumerate() {
                *to = of_panel[o * rows + i * taps + tap];
            }
        }
    });
    product(isa, &Plan::forward(s), x, &packed, s.c_out, out);
}

fn backward_input_on(isa: Isa, s: &ConvShape, weight: &[f32], dy: &[f32], dx: &mut [f32]) {
    check(s, dx.len(), weight.len(), dy.len());
    let width = kernel::panel_width(isa);
    let taps = s.kernel * s.kernel;
    let places: Vec<usize> = (0..taps)
        .map(|t| {
            plan::gradient_tap(s, t / s.kernel) * s.kernel + plan::gradient_tap(s, t % s.kernel)
        })
        .collect();
    let packed = pack(width, taps * s.c_out, s.c_in, |panel, first, columns| {
        for o in 0..s.c_out {
            let of_panel = &weight[(o * s.c_in + first) * taps..][..columns * taps];
            for (i, of_pair) in of_panel.chunks_exact(taps).enumerate() {
                for (&place, &w) in places.iter().zip(of_pair) {
                    panel[(place * s.c_out + o) * width + i] = w;
                }
            }
        }
    });
    product(isa, &Plan::backward(s), dy, &packed, s.c_in, dx);
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

/// A matrix of `rows` by `columns` as panels of `width` columns, the last one filled up with zeros.
/// `fill` writes a panel, given its first column and how many it has.
fn pack(
    width: usize,
    rows: usize,
    columns: usize,
    fill: impl Fn(&mut [f32], usize, usize) + Sync,
) -> Vec<f32> {
    let mut packed = vec![0f32; columns.div_ceil(width) * rows * width];
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

/// `out = gathered x * packed weight`, `channels` being those of `out`.
fn product(isa: Isa, plan: &Plan, x: &[f32], packed: &[f32], channels: usize, out: &mut [f32]) {
    let width = kernel::panel_width(isa);
    let panels = channels.div_ceil(width);
    let groups = plan.groups();
    if panels == 0 || groups.is_empty() {
        return;
    }
    let panel_len = packed.len() / panels;
    let shares = TASKS.div_ceil(groups.len()).min(panels);
    let out = Shared(out.as_mut_ptr());
    (0..groups.len() * shares).into_par_iter().for_each(|task| {
        let (group, share) = (task / shares, task % shares);
        plan.visit(&groups[group], |segments, rows| {
            for (depth, segments) in plan::cut(segments, DEPTH).iter().enumerate() {
                for p in share * panels / shares..(share + 1) * panels / shares {
                    let first = p * width;
                    // SAFETY: `isa` is available, as every caller takes it from `Isa`. The plan's
                    // rows and segments address `x` and `out` of the lengths that `check`
                    // compared, and `packed` has a row of `width` for every tap and channel.
                    // Groups are disjoint in destination pixels and shares in channels, so no two
                    // tasks access one number of `out`.
                    unsafe {
                        kernel::gather(
                            isa,
                            rows,
                            segments,
                            x.as_ptr(),
                            packed.as_ptr().add(p * panel_len),
                            out.pointer().add(first),
                            width.min(channels - first),
                            depth > 0,
                        );
                    }
                }
            }
        });
    });
}

/// A pointer that tasks share to write disjoint parts of one slice.
struct Shared(*mut f32);

impl Shared {
    fn pointer(&self) -> *mut f32 {
        self.0
    }
}

// SAFETY: the pointer is only a number until dereferenced, and whoever does that argues for it.
unsafe impl Sync for Shared {}
