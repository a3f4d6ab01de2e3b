//! Max-pooling over padded windows and the global average pool.

#[cfg(feature = "cuda")]
pub(super) mod cuda;

use pirl_core::vectorised;
use rayon::prelude::*;

use super::{Element, placements};

/// The sizes of one square-window pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolShape {
    /// Images in the batch.
    pub n: usize,
    /// Height of the input, pixels.
    pub h: usize,
    /// Width of the input, pixels.
    pub w: usize,
    /// Channels.
    pub c: usize,
    /// Height and width of the window, at least 1.
    pub kernel: usize,
    /// Step of the window in both directions, at least 1.
    pub stride: usize,
    /// Rows and columns of minus infinity added on every side, at most half the window.
    pub padding: usize,
}

impl PoolShape {
    /// Height and width of the output; zero where the padded input is smaller than the window.
    pub fn out_hw(&self) -> (usize, usize) {
        let size = |input| placements(input, self.kernel, self.stride, self.padding);
        (size(self.h), size(self.w))
    }

    /// Length of the input, `n * h * w * c`.
    pub fn in_len(&self) -> usize {
        self.n * self.h * self.w * self.c
    }

    /// Length of the output, `n * out_h * out_w * c`.
    pub fn out_len(&self) -> usize {
        let (h, w) = self.out_hw();
        self.n * h * w * self.c
    }

    /// The input rows (or columns) of size `size` under window `o`, clipped to the image.
    fn window(&self, o: usize, size: usize) -> std::ops::Range<usize> {
        let start = o * self.stride;
        start.saturating_sub(self.padding)
            ..(start + self.kernel).saturating_sub(self.padding).min(size)
    }
}

/// Whether `x` is larger than `other`, or a NaN.
#[inline(always)]
fn exceeds<T: Element>(x: T, other: T) -> bool {
    let x = x.to_f32();
    x > other.to_f32() || x.is_nan()
}

vectorised! {
    /// Raises `out` to `x` where that is larger, or a NaN.
    fn raise<T: Element>(x: &[T], out: &mut [T]) {
        for (o, &x) in out.iter_mut().zip(x) {
            let take = exceeds(x, *o);
            *o = if take { x } else { *o };
        }
    }
}

vectorised! {
    /// [`raise`], noting `pixel` in `argmax` where `x` was taken.
    fn raise_with_pixel<T: Element>(x: &[T], pixel: u32, out: &mut [T], argmax: &mut [u32]) {
        for ((o, a), &x) in out.iter_mut().zip(argmax).zip(x) {
            let take = exceeds(x, *o);
            *o = if take { x } else { *o };
            *a = if take { pixel } else { *a };
        }
    }
}

/// The maximum under each window; a NaN under the window wins, as in PyTorch.
///
/// `x`, `out`: NHWC; `argmax`, as long as `out`, receives the pixel (`y * w + x` within its image)
/// of the maximum, the first in row order among equals. `out` and `argmax` are overwritten.
pub fn max_forward<T: Element>(s: &PoolShape, x: &[T], out: &mut [T], argmax: Option<&mut [u32]>) {
    debug_assert_eq!(x.len(), s.in_len());
    debug_assert_eq!(out.len(), s.out_len());
    let (oh, ow) = s.out_hw();
    if out.is_empty() {
        return;
    }
    let image = s.h * s.w * s.c;
    let row = ow * s.c;
    let one_row = |index: usize, out: &mut [T], mut argmax: Option<&mut [u32]>| {
        let x = &x[index / oh * image..][..image];
        let ys = s.window(index % oh, s.h);
        for ox in 0..ow {
            let out = &mut out[ox * s.c..][..s.c];
            let mut argmax = argmax.as_deref_mut().map(|a| &mut a[ox * s.c..][..s.c]);
            let xs = s.window(ox, s.w);
            let mut first = true;
            for iy in ys.clone() {
                for ix in xs.clone() {
                    let pixel = iy * s.w + ix;
                    let x = &x[pixel * s.c..][..s.c];
                    if first {
                        out.copy_from_slice(x);
                        if let Some(a) = argmax.as_deref_mut() {
                            a.fill(pixel as u32);
                        }
                        first = false;
                        continue;
                    }
                    match argmax.as_deref_mut() {
                        Some(argmax) => raise_with_pixel(x, pixel as u32, out, argmax),
                        None => raise(x, out),
                    }
                }
            }
        }
    };
    match argmax {
        Some(argmax) => out
            .par_chunks_mut(row)
            .zip(argmax.par_chunks_mut(row))
            .enumerate()
            .for_each(|(i, (out, argmax))| one_row(i, out, Some(argmax))),
        None => out
            .par_chunks_mut(row)
            .enumerate()
            .for_each(|(i, out)| one_row(i, out, None)),
    }
}

/// Sends each entry of `dy` to the pixel that [`max_forward`] named in `argmax`; `dx` is
/// overwritten, and a pixel that won several windows receives their sum.
pub fn max_backward<T: Element>(s: &PoolShape, argmax: &[u32], dy: &[T], dx: &mut [T]) {
    debug_assert_eq!(argmax.len(), s.out_len());
    debug_assert_eq!(dy.len(), s.out_len());
    debug_assert_eq!(dx.len(), s.in_len());
    let (oh, ow) = s.out_hw();
    if dx.is_empty() {
        return;
    }
    let image = oh * ow * s.c;
    dx.par_chunks_mut(s.h * s.w * s.c)
        .enumerate()
        .for_each(|(n, dx)| {
            dx.fill(T::from_f32(0.0));
            let pixels = argmax[n * image..][..image].chunks_exact(s.c);
            for (pixels, dy) in pixels.zip(dy[n * image..][..image].chunks_exact(s.c)) {
                for (c, (&pixel, dy)) in pixels.iter().zip(dy).enumerate() {
                    let dx = &mut dx[pixel as usize * s.c + c];
                    *dx = T::from_f32(dx.to_f32() + dy.to_f32());
                }
            }
        });
}

/// The mean over all pixels of each image: `x` `(n, hw, c)` to `out` `(n, c)`, overwritten.
pub fn average_forward<T: Element>(n: usize, hw: usize, c: usize, x: &[T], out: &mut [T]) {
    debug_assert_eq!(x.len(), n * hw * c);
    debug_assert_eq!(out.len(), n * c);
    if out.is_empty() || hw == 0 {
        out.fill(T::from_f32(f32::NAN));
        return;
    }
    let scale = 1.0 / hw as f32;
    out.par_chunks_mut(c)
        .zip(x.par_chunks(hw * c))
        .for_each(|(out, x)| {
            let mut sum = vec![0f32; c];
            for x in x.chunks_exact(c) {
                for (sum, x) in sum.iter_mut().zip(x) {
                    *sum += x.to_f32();
                }
            }
            for (o, sum) in out.iter_mut().zip(sum) {
                *o = T::from_f32(sum * scale);
            }
        });
}

/// The gradient of [`average_forward`]: `dy` `(n, c)` to `dx` `(n, hw, c)`, overwritten.
pub fn average_backward<T: Element>(n: usize, hw: usize, c: usize, dy: &[T], dx: &mut [T]) {
    debug_assert_eq!(dx.len(), n * hw * c);
    debug_assert_eq!(dy.len(), n * c);
    if dx.is_empty() {
        return;
    }
    let scale = 1.0 / hw as f32;
    dx.par_chunks_mut(hw * c)
        .zip(dy.par_chunks(c))
        .for_each(|(dx, dy)| {
            for dx in dx.chunks_exact_mut(c) {
                for (x, d) in dx.iter_mut().zip(dy) {
                    *x = T::from_f32(d.to_f32() * scale);
                }
            }
        });
}
