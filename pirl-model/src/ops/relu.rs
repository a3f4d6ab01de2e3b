//! The rectifier, `max(x, 0)`.

use rayon::prelude::*;

use super::Element;

/// Entries a task covers: below this, starting a second thread costs more than it saves.
const CHUNK: usize = 1 << 15;

/// `out = max(x, 0)`; a NaN stays a NaN. `out` is overwritten.
pub fn forward<T: Element>(x: &[T], out: &mut [T]) {
    debug_assert_eq!(x.len(), out.len());
    out.par_chunks_mut(CHUNK)
        .zip(x.par_chunks(CHUNK))
        .for_each(|(out, x)| {
            for (o, &x) in out.iter_mut().zip(x) {
                *o = if x.to_f32() <= 0.0 {
                    T::from_f32(0.0)
                } else {
                    x
                };
            }
        });
}

/// `dx = dy` where the forward output `out` is positive, else 0: the gradient at 0 is 0, as in
/// PyTorch. `dx` is overwritten.
pub fn backward<T: Element>(out: &[T], dy: &[T], dx: &mut [T]) {
    debug_assert_eq!(out.len(), dx.len());
    debug_assert_eq!(dy.len(), dx.len());
    dx.par_chunks_mut(CHUNK)
        .zip(out.par_chunks(CHUNK).zip(dy.par_chunks(CHUNK)))
        .for_each(|(dx, (out, dy))| {
            for ((dx, &out), &dy) in dx.iter_mut().zip(out).zip(dy) {
                *dx = if out.to_f32() <= 0.0 {
                    T::from_f32(0.0)
                } else {
                    dy
                };
            }
        });
}
