//! The forward pass.

use pirl_core::vectorised;
use rayon::prelude::*;

use super::affine::Affine;
use super::cut::Cut;
use crate::ops::Element;

/// `out = x * scale + shift + residual`, then its positive part if `relu`; a NaN stays a NaN.
///
/// `x`, `residual`, `out`: `(rows, c)`; `affine`: of `c` channels. `out` is overwritten.
///
/// # Panics
/// If the lengths differ.
pub fn forward<T: Element>(
    x: &[T],
    affine: &Affine,
    residual: Option<&[T]>,
    relu: bool,
    out: &mut [T],
) {
    let c = affine.scale.len();
    assert_eq!(affine.shift.len(), c, "channels of a batch norm");
    assert_eq!(x.len(), out.len(), "input and output of a batch norm");
    assert!(
        residual.is_none_or(|r| r.len() == x.len()),
        "input and residual of a batch norm"
    );
    if c == 0 {
        return;
    }
    let cut = Cut::new(c);
    let (scale, shift) = (cut.tile(&affine.scale), cut.tile(&affine.shift));
    out.par_chunks_mut(cut.task)
        .enumerate()
        .for_each(|(task, out)| {
            let part = task * cut.task..task * cut.task + out.len();
            let residual = residual.map(|r| &r[part.clone()]);
            apply(&x[part], &scale, &shift, residual, relu, out);
        });
}

vectorised! {
    /// `out = [relu](x * scale + shift [+ residual])` over wide rows.
    fn apply<T: Element>(
        x: &[T],
        scale: &[f32],
        shift: &[f32],
        residual: Option<&[T]>,
        relu: bool,
        out: &mut [T],
    ) {
        let wide = scale.len();
        // A NaN is not below the floor, so it passes.
        let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
        match residual {
            Some(residual) => {
                let inputs = x.chunks(wide).zip(residual.chunks(wide));
                for (out, (x, residual)) in out.chunks_mut(wide).zip(inputs) {
                    let per_channel = scale.iter().zip(shift);
                    for (((o, &x), &r), (&a, &b)) in out.iter_mut().zip(x).zip(residual).zip(per_channel) {
                        let y = x.to_f32() * a + b + r.to_f32();
                        *o = T::from_f32(if y < floor { floor } else { y });
                    }
                }
            }
            None => {
                for (out, x) in out.chunks_mut(wide).zip(x.chunks(wide)) {
                    for ((o, &x), (&a, &b)) in out.iter_mut().zip(x).zip(scale.iter().zip(shift)) {
                        let y = x.to_f32() * a + b;
                        *o = T::from_f32(if y < floor { floor } else { y });
                    }
                }
            }
        }
    }
}
