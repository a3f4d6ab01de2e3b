//! From Candle's order of a map's numbers to the tape's, and back.

use rayon::prelude::*;

use crate::ops::Element;

/// `(n, c, pixels)` to `(n, pixels, c)`.
pub(super) fn nhwc_from_nchw<T: Element>(x: &[f32], c: usize, pixels: usize, out: &mut [T]) {
    transpose(x, c, pixels, out);
}

/// `(n, pixels, c)` to `(n, c, pixels)`.
pub(crate) fn nchw_from_nhwc<T: Element>(x: &[T], c: usize, pixels: usize, out: &mut [f32]) {
    transpose(x, pixels, c, out);
}

/// Each `(rows, columns)` matrix of the batch `x` transposed into `out`.
fn transpose<A: Element, B: Element>(x: &[A], rows: usize, columns: usize, out: &mut [B]) {
    let size = (rows * columns).max(1);
    out.par_chunks_mut(size)
        .zip(x.par_chunks(size))
        .for_each(|(out, x)| {
            for (r, row) in x.chunks_exact(columns).enumerate() {
                for (out, x) in out[r..].iter_mut().step_by(rows).zip(row) {
                    *out = B::from_f32(x.to_f32());
                }
            }
        });
}
