//! The rectifier, `max(x, 0)`.

use rayon::prelude::*;

/// Entries a task covers: below this, starting a second thread costs more than it saves.
const CHUNK: usize = 1 << 15;

/// `out = max(x, 0)`; a NaN stays a NaN. `out` is overwritten.
pub fn forward(x: &[f32], out: &mut [f32]) {
    debug_assert_eq!(x.len(), out.len());
    out.par_chunks_mut(CHUNK)
        .zip(x.par_chunks(CHUNK))
        .for_each(|(out, x)| {
            for (o, &x) in out.iter_mut().zip(x) {
                *o = if x <= 0.0 { 0.0 } else { x };
            }
        });
}

/// `dx = dy` where the forward output `out` is positive, else 0: the gradient at 0 is 0, as in
/// PyTorch. `dx` is overwritten.
pub fn backward(out: &[f32], dy: &[f32], dx: &mut [f32]) {
    debug_assert_eq!(out.len(), dx.len());
    debug_assert_eq!(dy.len(), dx.len());
    dx.par_chunks_mut(CHUNK)
        .zip(out.par_chunks(CHUNK).zip(dy.par_chunks(CHUNK)))
        .for_each(|(dx, (out, dy))| {
            for ((dx, &out), &dy) in dx.iter_mut().zip(out).zip(dy) {
                *dx = if out <= 0.0 { 0.0 } else { dy };
            }
        });
}
