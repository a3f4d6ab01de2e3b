//! Two-dimensional convolution (cross-correlation, as PyTorch defines it) and its two gradients.

use rayon::prelude::*;

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
pub fn forward(s: &ConvShape, x: &[f32], weight: &[f32], out: &mut [f32]) {
    debug_assert_eq!(x.len(), s.in_len());
    debug_assert_eq!(weight.len(), s.weight_len());
    debug_assert_eq!(out.len(), s.out_len());
    let (oh, ow) = s.out_hw();
    if out.is_empty() {
        return;
    }
    let k = s.kernel;
    let mut packed = vec![0f32; s.weight_len()];
    for o in 0..s.c_out {
        for i in 0..s.c_in {
            for t in 0..k * k {
                packed[(t * s.c_in + i) * s.c_out + o] = weight[(o * s.c_in + i) * k * k + t];
            }
        }
    }
    out.par_chunks_mut(ow * s.c_out)
        .enumerate()
        .for_each(|(row, out)| {
            let (n, oy) = (row / oh, row % oh);
            out.fill(0.0);
            for (ox, out) in out.chunks_mut(s.c_out).enumerate() {
                for ky in 0..k {
                    let iy = (oy * s.stride + ky).wrapping_sub(s.padding);
                    for kx in 0..k {
                        let ix = (ox * s.stride + kx).wrapping_sub(s.padding);
                        if iy >= s.h || ix >= s.w {
                            continue;
                        }
                        let x = &x[((n * s.h + iy) * s.w + ix) * s.c_in..][..s.c_in];
                        let w = &packed[(ky * k + kx) * s.c_in * s.c_out..][..s.c_in * s.c_out];
                        for (x, w) in x.iter().zip(w.chunks(s.c_out)) {
                            for (o, w) in out.iter_mut().zip(w) {
                                *o += x * w;
                            }
                        }
                    }
                }
            }
        });
}

/// The gradient of [`forward`] with respect to `x`, from `dy`, that of the output; `dx` is overwritten.
pub fn backward_input(s: &ConvShape, weight: &[f32], dy: &[f32], dx: &mut [f32]) {
    debug_assert_eq!(dx.len(), s.in_len());
    debug_assert_eq!(weight.len(), s.weight_len());
    debug_assert_eq!(dy.len(), s.out_len());
    let (oh, ow) = s.out_hw();
    if dx.is_empty() {
        return;
    }
    let k = s.kernel;
    let mut packed = vec![0f32; s.weight_len()];
    for o in 0..s.c_out {
        for i in 0..s.c_in {
            for t in 0..k * k {
                packed[(t * s.c_out + o) * s.c_in + i] = weight[(o * s.c_in + i) * k * k + t];
            }
        }
    }
    dx.par_chunks_mut(s.h * s.w * s.c_in)
        .enumerate()
        .for_each(|(n, dx)| {
            dx.fill(0.0);
            for (p, dy) in dy[n * oh * ow * s.c_out..][..oh * ow * s.c_out]
                .chunks(s.c_out)
                .enumerate()
            {
                let (oy, ox) = (p / ow, p % ow);
                for ky in 0..k {
                    let iy = (oy * s.stride + ky).wrapping_sub(s.padding);
                    for kx in 0..k {
                        let ix = (ox * s.stride + kx).wrapping_sub(s.padding);
                        if iy >= s.h || ix >= s.w {
                            continue;
                        }
                        let dx = &mut dx[(iy * s.w + ix) * s.c_in..][..s.c_in];
                        let w = &packed[(ky * k + kx) * s.c_in * s.c_out..][..s.c_in * s.c_out];
                        for (d, w) in dy.iter().zip(w.chunks(s.c_in)) {
                            for (x, w) in dx.iter_mut().zip(w) {
                                *x += d * w;
                            }
                        }
                    }
                }
            }
        });
}

/// The gradient of [`forward`] with respect to the weight, in the weight's layout; `dw` is overwritten.
pub fn backward_weight(s: &ConvShape, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    debug_assert_eq!(x.len(), s.in_len());
    debug_assert_eq!(dw.len(), s.weight_len());
    debug_assert_eq!(dy.len(), s.out_len());
    let (oh, ow) = s.out_hw();
    let k = s.kernel;
    let mut packed = vec![0f32; s.weight_len()];
    if s.c_in * s.c_out > 0 {
        packed
            .par_chunks_mut(s.c_in * s.c_out)
            .enumerate()
            .for_each(|(t, dw)| {
                let (ky, kx) = (t / k, t % k);
                for (p, dy) in dy.chunks(s.c_out).enumerate() {
                    let (n, oy, ox) = (p / (oh * ow), p / ow % oh, p % ow);
                    let iy = (oy * s.stride + ky).wrapping_sub(s.padding);
                    let ix = (ox * s.stride + kx).wrapping_sub(s.padding);
                    if iy >= s.h || ix >= s.w {
                        continue;
                    }
                    let x = &x[((n * s.h + iy) * s.w + ix) * s.c_in..][..s.c_in];
                    for (x, dw) in x.iter().zip(dw.chunks_mut(s.c_out)) {
                        for (w, d) in dw.iter_mut().zip(dy) {
                            *w += x * d;
                        }
                    }
                }
            });
    }
    for o in 0..s.c_out {
        for i in 0..s.c_in {
            for t in 0..k * k {
                dw[(o * s.c_in + i) * k * k + t] = packed[(t * s.c_in + i) * s.c_out + o];
            }
        }
    }
}
