//! The in-place kernels of SGD with momentum, in PyTorch's form:
//! `m = momentum * m + d` and `w -= lr * m`, or with Nesterov `w -= lr * (d + momentum * m)`, where
//! `d = scale * (g + decay * w)`.

use candle_core::{CpuStorage, InplaceOp3, Layout};
use pirl_core::storage::{slice, slice_mut};
use rayon::prelude::*;

/// How one parameter tensor, `len` neighbouring entries, is updated.
pub(super) struct Segment {
    pub(super) len: usize,
    pub(super) decay: f32,
    pub(super) scale: f32,
}

impl Segment {
    fn direction(&self, g: f32, w: f32) -> f32 {
        self.scale * (g + self.decay * w)
    }
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
            |segment, m, g, w| {
                *m = self.momentum * *m + segment.direction(g, w);
            },
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
            |segment, w, g, m| {
                let step = match self.nesterov {
                    Some(momentum) => segment.direction(g, *w) + momentum * m,
                    None => m,
                };
                *w -= self.lr * step;
            },
        );
        Ok(())
    }
}

/// Calls `update` on every entry of `target` with those of `a` and `b`, in parallel over segments.
fn each(
    segments: &[Segment],
    mut target: &mut [f32],
    mut a: &[f32],
    mut b: &[f32],
    update: impl Fn(&Segment, &mut f32, f32, f32) + Sync,
) {
    let mut parts = Vec::with_capacity(segments.len());
    for segment in segments {
        let (target_part, target_rest) = target.split_at_mut(segment.len);
        let ((a_part, a_rest), (b_part, b_rest)) =
            (a.split_at(segment.len), b.split_at(segment.len));
        parts.push((segment, target_part, a_part, b_part));
        (target, a, b) = (target_rest, a_rest, b_rest);
    }
    parts.into_par_iter().for_each(|(segment, target, a, b)| {
        for ((target, &a), &b) in target.iter_mut().zip(a).zip(b) {
            update(segment, target, a, b);
        }
    });
}
