//! The backward pass.

use std::convert::Infallible;

use pirl_core::vectorised;
use rayon::prelude::*;

use super::cut::Cut;
use super::statistics::{ChannelStatistics, Statistics};
use crate::ops::Element;

/// Where a backward pass writes; all is overwritten.
#[derive(Debug)]
pub struct Gradients<'a, T> {
    /// Of gamma, `(c)`.
    pub gamma: &'a mut [f32],
    /// Of beta, `(c)`.
    pub beta: &'a mut [f32],
    /// Of the input, `(rows, c)`.
    pub x: &'a mut [T],
    /// Of the residual, `(rows, c)`, if there was one.
    pub residual: Option<&'a mut [T]>,
}

/// The gradients of [`forward`](super::forward) with the line of `gamma`, beta and `statistics`.
/// Through the statistics of a batch, which depend on `x`, the gradient flows too; given ones are
/// constants.
///
/// `x`: the input, `(rows, c)`; `rectified`: the output, `(rows, c)`, if the ReLU was asked for; `dy`:
/// the gradient of the output, `(rows, c)`; `gamma`: `(c)`.
///
/// # Panics
/// If the lengths differ.
pub fn backward<T: Element>(
    x: &[T],
    rectified: Option<&[T]>,
    dy: &[T],
    gamma: &[f32],
    statistics: &Statistics,
    gradients: Gradients<'_, T>,
) {
    let rows = (x.len() / gamma.len().max(1)) as f64;
    let own = |sums| Ok::<_, Infallible>((rows, sums));
    let Ok(()) = backward_over(x, rectified, dy, gamma, statistics, gradients, own);
}

/// [`backward`] where the statistics of the batch are of more rows than those of `x`. `total` is given the sums
/// over these rows, of `d` and then of `d xhat`, `(2 c)`, where `d` is `dy` without the entries that the ReLU
/// cut off, and returns how many rows the statistics are of, and the sums over all of them.
///
/// # Errors
/// Those of `total`.
pub(crate) fn backward_over<T: Element, E>(
    x: &[T],
    rectified: Option<&[T]>,
    dy: &[T],
    gamma: &[f32],
    statistics: &Statistics,
    gradients: Gradients<'_, T>,
    total: impl FnOnce(Vec<f64>) -> Result<(f64, Vec<f64>), E>,
) -> Result<(), E> {
    let (c, channels) = (gamma.len(), statistics.channels());
    assert_eq!(x.len(), dy.len(), "input and gradient of a batch norm");
    assert!(
        rectified.is_none_or(|out| out.len() == x.len()),
        "input and output of a batch norm"
    );
    let lengths = (channels.mean.len(), channels.inv_std.len());
    assert_eq!(lengths, (c, c), "channels of a batch norm");
    let pass = Pass { x, rectified, dy };
    let Gradients {
        gamma: dgamma,
        beta: dbeta,
        x: dx,
        residual: dresidual,
    } = gradients;
    let lengths = (dgamma.len(), dbeta.len());
    assert_eq!(lengths, (c, c), "channels of a batch norm");
    let sums = gradient_sums(pass, channels);
    let halves = dbeta.iter_mut().chain(dgamma.iter_mut());
    for (gradient, sum) in halves.zip(&sums) {
        *gradient = *sum as f32;
    }
    let line = match statistics {
        Statistics::Batch(_) => {
            let (rows, sums) = total(sums)?;
            Line::of_batch(gamma, channels, &sums, rows as f32)
        }
        Statistics::Running(_) => Line::of_constants(gamma, channels),
    };
    input_gradients(pass, &line, dx, dresidual);
    Ok(())
}

/// What a backward pass reads of every row.
#[derive(Clone, Copy)]
struct Pass<'a, T> {
    x: &'a [T],
    rectified: Option<&'a [T]>,
    dy: &'a [T],
}

impl<'a, T> Pass<'a, T> {
    /// The `len` numbers from `start` on.
    fn part(self, start: usize, len: usize) -> Self {
        let part = |numbers: &'a [T]| &numbers[start..start + len];
        Self {
            x: part(self.x),
            rectified: self.rectified.map(part),
            dy: part(self.dy),
        }
    }
}

/// `dx = scale * d + slope * (x - mean) + shift`, per channel.
struct Line {
    mean: Vec<f32>,
    scale: Vec<f32>,
    slope: Vec<f32>,
    shift: Vec<f32>,
}

impl Line {
    /// `dx = scale (d - mean(d) - xhat mean(d xhat))`, as a line in `d` and `x - mean`, from the sums over all
    /// rows of `d` and then of `d xhat`.
    fn of_batch(gamma: &[f32], channels: &ChannelStatistics, sums: &[f64], rows: f32) -> Self {
        let constants = Self::of_constants(gamma, channels);
        let (scale, inv_std) = (&constants.scale, &channels.inv_std);
        let (sum, product) = sums.split_at(gamma.len());
        let slope = |i: usize| -scale[i] * inv_std[i] * (product[i] as f32 / rows);
        let shift = |i: usize| -scale[i] * (sum[i] as f32 / rows);
        Self {
            slope: (0..gamma.len()).map(slope).collect(),
            shift: (0..gamma.len()).map(shift).collect(),
            ..constants
        }
    }

    /// `dx = scale d`.
    fn of_constants(gamma: &[f32], channels: &ChannelStatistics) -> Self {
        let scale = gamma.iter().zip(&channels.inv_std).map(|(g, i)| g * i);
        Self {
            mean: channels.mean.clone(),
            scale: scale.collect(),
            slope: vec![0.0; gamma.len()],
            shift: vec![0.0; gamma.len()],
        }
    }

    /// The same for wide rows.
    fn tile(&self, cut: &Cut) -> Self {
        Self {
            mean: cut.tile(&self.mean),
            scale: cut.tile(&self.scale),
            slope: cut.tile(&self.slope),
            shift: cut.tile(&self.shift),
        }
    }
}

/// The sums over the rows of `d`, the gradient of beta, and then of `d xhat`, that of gamma: `(2 c)`.
fn gradient_sums<T: Element>(pass: Pass<'_, T>, channels: &ChannelStatistics) -> Vec<f64> {
    let c = channels.mean.len();
    if c == 0 {
        return Vec::new();
    }
    let cut = Cut::new(c);
    let mean = cut.tile(&channels.mean);
    let starts = (0..pass.x.len()).into_par_iter().step_by(cut.task);
    let parts: Vec<(Vec<f64>, Vec<f64>)> = starts
        .map(|start| {
            let len = cut.task.min(pass.x.len() - start);
            task_sums(pass.part(start, len), &mean, c, &cut)
        })
        .collect();
    let sum = |i: usize| parts.iter().map(|part| part.0[i]).sum::<f64>();
    let product = |i: usize| {
        let product = parts.iter().map(|part| part.1[i]).sum::<f64>();
        product * channels.inv_std[i] as f64
    };
    (0..c).map(sum).chain((0..c).map(product)).collect()
}

/// The sums of `d` and of `d * (x - mean)` over the rows of a task, block by block.
fn task_sums<T: Element>(
    pass: Pass<'_, T>,
    mean: &[f32],
    c: usize,
    cut: &Cut,
) -> (Vec<f64>, Vec<f64>) {
    let (mut sums, mut products) = (vec![0f64; c], vec![0f64; c]);
    let (mut sum, mut product) = (cut.zeros(c), cut.zeros(c));
    for start in (0..pass.x.len()).step_by(cut.block) {
        let Pass { x, rectified, dy } = pass.part(start, cut.block.min(pass.x.len() - start));
        sum.fill(0.0);
        product.fill(0.0);
        add_gradients(x, rectified, dy, mean, &mut sum, &mut product);
        for (total, wide) in [(&mut sums, &sum), (&mut products, &product)] {
            for (total, v) in total.iter_mut().zip(cut.fold(wide, c)) {
                *total += v;
            }
        }
    }
    (sums, products)
}

vectorised! {
    /// Adds `d` and `d * (x - mean)` over the wide rows to `sum` and `product`, where `d` is `dy`
    /// with the entries cleared that the ReLU cut off.
    fn add_gradients<T: Element>(
        x: &[T],
        out: Option<&[T]>,
        dy: &[T],
        mean: &[f32],
        sum: &mut [f32],
        product: &mut [f32],
    ) {
        let wide = mean.len();
        for (i, (x, dy)) in x.chunks(wide).zip(dy.chunks(wide)).enumerate() {
            let sums = sum.iter_mut().zip(product.iter_mut()).zip(mean);
            match out {
                Some(out) => {
                    let out = &out[i * wide..][..x.len()];
                    for ((((s, p), &m), (&x, &dy)), &o) in sums.zip(x.iter().zip(dy)).zip(out) {
                        let d = if o.to_f32() <= 0.0 { 0.0 } else { dy.to_f32() };
                        *s += d;
                        *p += d * (x.to_f32() - m);
                    }
                }
                None => {
                    for (((s, p), &m), (&x, &dy)) in sums.zip(x.iter().zip(dy)) {
                        let d = dy.to_f32();
                        *s += d;
                        *p += d * (x.to_f32() - m);
                    }
                }
            }
        }
    }
}

fn input_gradients<T: Element>(
    pass: Pass<'_, T>,
    line: &Line,
    dx: &mut [T],
    dresidual: Option<&mut [T]>,
) {
    let len = pass.x.len();
    assert_eq!(dx.len(), len, "input and gradient of a batch norm");
    assert!(
        dresidual.as_ref().is_none_or(|r| r.len() == len),
        "input and residual of a batch norm"
    );
    let c = line.scale.len();
    if c == 0 {
        return;
    }
    let cut = Cut::new(c);
    let line = line.tile(&cut);
    let one = |task: usize, dx: &mut [T], dresidual: Option<&mut [T]>| {
        let Pass { x, rectified, dy } = pass.part(task * cut.task, dx.len());
        apply_gradient(x, rectified, dy, &line, dx, dresidual);
    };
    match dresidual {
        Some(dresidual) => dx
            .par_chunks_mut(cut.task)
            .zip(dresidual.par_chunks_mut(cut.task))
            .enumerate()
            .for_each(|(task, (dx, dresidual))| one(task, dx, Some(dresidual))),
        None => dx
            .par_chunks_mut(cut.task)
            .enumerate()
            .for_each(|(task, dx)| one(task, dx, None)),
    }
}

vectorised! {
    /// `dx` along the line given per channel, over wide rows; `dresidual` is `d` itself.
    fn apply_gradient<T: Element>(
        x: &[T],
        out: Option<&[T]>,
        dy: &[T],
        line: &Line,
        dx: &mut [T],
        dresidual: Option<&mut [T]>,
    ) {
        let wide = line.mean.len();
        match (out, dresidual) {
            (Some(out), Some(dresidual)) => {
                // The masked gradient is itself wanted: write it, then read it back from the cache.
                let inputs = out.chunks(wide).zip(dy.chunks(wide)).zip(x.chunks(wide));
                for ((dx, dr), ((out, dy), x)) in dx.chunks_mut(wide).zip(dresidual.chunks_mut(wide)).zip(inputs) {
                    for ((dr, &o), &dy) in dr.iter_mut().zip(out).zip(dy) {
                        *dr = if o.to_f32() <= 0.0 { T::from_f32(0.0) } else { dy };
                    }
                    for (i, ((dx, &d), &x)) in dx.iter_mut().zip(&*dr).zip(x).enumerate() {
                        let moved = line.slope[i] * (x.to_f32() - line.mean[i]) + line.shift[i];
                        *dx = T::from_f32(line.scale[i] * d.to_f32() + moved);
                    }
                }
            }
            (Some(out), None) => {
                let inputs = out.chunks(wide).zip(dy.chunks(wide)).zip(x.chunks(wide));
                for (dx, ((out, dy), x)) in dx.chunks_mut(wide).zip(inputs) {
                    let coefficients = line.scale.iter().zip(&line.slope).zip(line.shift.iter().zip(&line.mean));
                    let inputs = x.iter().zip(dy).zip(out);
                    for ((dx, ((&x, &dy), &o)), ((&a, &b), (&c, &m))) in dx.iter_mut().zip(inputs).zip(coefficients) {
                        let d = if o.to_f32() <= 0.0 { 0.0 } else { dy.to_f32() };
                        *dx = T::from_f32(a * d + (b * (x.to_f32() - m) + c));
                    }
                }
            }
            (None, dresidual) => {
                if let Some(dresidual) = dresidual {
                    dresidual.copy_from_slice(dy);
                }
                for (dx, (dy, x)) in dx.chunks_mut(wide).zip(dy.chunks(wide).zip(x.chunks(wide))) {
                    let coefficients = line.scale.iter().zip(&line.slope).zip(line.shift.iter().zip(&line.mean));
                    for ((dx, (&x, &d)), ((&a, &b), (&c, &m))) in dx.iter_mut().zip(x.iter().zip(dy)).zip(coefficients) {
                        *dx = T::from_f32(a * d.to_f32() + (b * (x.to_f32() - m) + c));
                    }
                }
            }
        }
    }
}
