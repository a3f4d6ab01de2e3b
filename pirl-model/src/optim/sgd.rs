//! The in-place kernels of SGD with momentum, in PyTorch's form:
//! `m = momentum * m + d` and `w -= lr * m`, or with Nesterov `w -= lr * (d + momentum * m)`, where
//! `d = scale * (g + decay * w)`.

use candle_core::{CpuStorage, InplaceOp3, Layout};
use pirl_core::storage::{slice, slice_mut};
use pirl_core::vectorised;
use rayon::prelude::*;

/// How one parameter tensor, `len` neighbouring entries, is updated.
pub(super) struct Segment {
    pub(super) len: usize,
    pub(super) decay: f32,
    pub(super) scale: f32,
}

/// On the momentum, from gradient and parameters.
pub(super) struct Accumulate<'a> {
    pub(super) segments: &'a [Segment],
    pub(super) momentum: f32,
}

/// On the parameters, from gradient and momentum.
pub(super) struct Apply<'a> {
    pub(super) segments: &'a [Segment],
    pub(super) nesterov: Option<f32>,
    pub(super) lr: f32,
}

impl InplaceOp3 for Accumulate<'_> {
    fn name(&self) -> &'static str {
        "sgd-momentum"
    }

    fn cpu_fwd(
        &self,
        momentum: &mut CpuStorage,
        layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
        values: &CpuStorage,
        values_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (g, w) = (
            slice(gradient, gradient_layout)?,
            slice(values, values_layout)?,
        );
        each(
            self.segments,
            slice_mut(momentum, layout)?,
            g,
            w,
            |segment, m, g, w| accumulate(self.momentum, segment.decay, segment.scale, m, g, w),
        );
        Ok(())
    }
}

impl InplaceOp3 for Apply<'_> {
    fn name(&self) -> &'static str {
        "sgd-step"
    }

    fn cpu_fwd(
        &self,
        values: &mut CpuStorage,
        layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
        momentum: &CpuStorage,
        momentum_layout: &Layout,
    ) -> candle_core::Result<()> {
        let g = slice(gradient, gradient_layout)?;
        let m = slice(momentum, momentum_layout)?;
        each(
            self.segments,
            slice_mut(values, layout)?,
            g,
            m,
            |segment, w, g, m| match self.nesterov {
                Some(momentum) => {
                    look_ahead(self.lr, momentum, segment.decay, segment.scale, w, g, m);
                }
                None => descend(self.lr, w, m),
            },
        );
        Ok(())
    }
}

vectorised! {
    /// `m = momentum * m + scale * (g + decay * w)`.
    fn accumulate(momentum: f32, decay: f32, scale: f32, m: &mut [f32], g: &[f32], w: &[f32]) {
        for ((m, &g), &w) in m.iter_mut().zip(g).zip(w) {
            *m = momentum * *m + scale * (g + decay * w);
        }
    }
}

vectorised! {
    /// `w -= lr * m`.
    fn descend(lr: f32, w: &mut [f32], m: &[f32]) {
        for (w, &m) in w.iter_mut().zip(m) {
            *w -= lr * m;
        }
    }
}

vectorised! {
    /// `w -= lr * (scale * (g + decay * w) + momentum * m)`.
    fn look_ahead(
        lr: f32,
        momentum: f32,
        decay: f32,
        scale: f32,
        w: &mut [f32],
        g: &[f32],
        m: &[f32],
    ) {
        for ((w, &g), &m) in w.iter_mut().zip(g).zip(m) {
            *w -= lr * (scale * (g + decay * *w) + momentum * m);
        }
    }
}

/// Calls `update` on the parts of `target` with those of `a` and `b`, in parallel.
fn each(
    segments: &[Segment],
    mut target: &mut [f32],
    mut a: &[f32],
    mut b: &[f32],
    update: impl Fn(&Segment, &mut [f32], &[f32], &[f32]) + Sync,
) {
    /// Numbers of a part: of each of the three, what fits the second-level cache.
    const PART: usize = 1 << 14;
    let mut parts = Vec::with_capacity(segments.len());
    for segment in segments {
        let (target_part, target_rest) = target.split_at_mut(segment.len);
        let ((a_part, a_rest), (b_part, b_rest)) =
            (a.split_at(segment.len), b.split_at(segment.len));
        let of_a_and_b = a_part.chunks(PART).zip(b_part.chunks(PART));
        let of_all = target_part.chunks_mut(PART).zip(of_a_and_b);
        parts.extend(of_all.map(|(target, (a, b))| (segment, target, a, b)));
        (target, a, b) = (target_rest, a_rest, b_rest);
    }
    parts
        .into_par_iter()
        .for_each(|(segment, target, a, b)| update(segment, target, a, b));
}
