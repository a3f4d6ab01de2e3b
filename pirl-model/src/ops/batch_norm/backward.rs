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
    /// Of the input, `(rows, c)`, where it has memory of its own: without, it is written over that of the
    /// output.
    pub x: Option<&'a mut [T]>,
}

/// The gradients of [`forward`](super::forward) with the line of `gamma`, beta and `statistics`.
/// Through the statistics of a batch, which depend on `x`, the gradient flows too; given ones are
/// constants.
///
/// `x`: the input, `(rows, c)`; `rectified`: the output, `(rows, c)`, if the ReLU was asked for; `dy`:
/// the gradient of the output, `(rows, c)`, which becomes that of the residual, or without
/// [`Gradients::x`] that of the input; `gamma`: `(c)`.
///
/// # Panics
/// If the lengths differ.
pub fn backward<T: Element>(
    x: &[T],
    rectified: Option<&[T]>,
    dy: &mut [T],
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
    dy: &mut [T],
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
    let Gradients {
        gamma: dgamma,
        beta: dbeta,
        x: dx,
    } = gradients;
    let lengths = (dgamma.len(), dbeta.len());
    assert_eq!(lengths, (c, c), "channels of a batch norm");
    let sums = gradient_sums(x, rectified, dy, channels);
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
    input_gradients(x, dy, &line, dx);
    Ok(())
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

    /// Mean, scale, slope and shift of one channel after the other.
    #[inline(always)]
    fn places(&self) -> impl Iterator<Item = [f32; 4]> {
        let lines = self.mean.iter().zip(&self.scale);
        let rest = self.slope.iter().zip(&self.shift);
        lines.zip(rest).map(|((a, b), (c, d))| [*a, *b, *c, *d])
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

/// The sums over the rows of `d`, the gradient of beta, and then of `d xhat`, that of gamma: `(2 c)`; `dy`
/// becomes `d`.
fn gradient_sums<T: Element>(
    x: &[T],
    rectified: Option<&[T]>,
    dy: &mut [T],
    channels: &ChannelStatistics,
) -> Vec<f64> {
    let c = channels.mean.len();
    if c == 0 {
        return Vec::new();
    }
    let cut = Cut::new(c);
    let mean = cut.tile(&channels.mean);
    let tasks = dy.par_chunks_mut(cut.task).enumerate();
    let parts: Vec<(Vec<f64>, Vec<f64>)> = tasks
        .map(|(task, dy)| {
            let part = |numbers| part::<T>(numbers, task * cut.task, dy.len());
            let (x, rectified) = (part(x), rectified.map(part));
            task_sums(x, rectified, dy, &mean, c, &cut)
        })
        .collect();
    let sum = |i: usize| parts.iter().map(|part| part.0[i]).sum::<f64>();
    let product = |i: usize| {
        let product = parts.iter().map(|part| part.1[i]).sum::<f64>();
        product * channels.inv_std[i] as f64
    };
    (0..c).map(sum).chain((0..c).map(product)).collect()
}

/// The `len` numbers from `start` on.
fn part<T>(numbers: &[T], start: usize, len: usize) -> &[T] {
    &numbers[start..start + len]
}

/// The sums of `d` and of `d * (x - mean)` over the rows of a task, block by block.
fn task_sums<T: Element>(
    x: &[T],
    rectified: Option<&[T]>,
    dy: &mut [T],
    mean: &[f32],
    c: usize,
    cut: &Cut,
) -> (Vec<f64>, Vec<f64>) {
    let (mut sums, mut products) = (vec![0f64; c], vec![0f64; c]);
    let (mut sum, mut product) = (cut.zeros(c), cut.zeros(c));
    for (block, dy) in dy.chunks_mut(cut.block).enumerate() {
        let len = dy.len();
        let part = |numbers| part::<T>(numbers, block * cut.block, len);
        sum.fill(0.0);
        product.fill(0.0);
        if let Some(out) = rectified {
            cut_off(part(out), dy);
        }
        add_gradients(part(x), dy, mean, &mut sum, &mut product);
        for (total, wide) in [(&mut sums, &sum), (&mut products, &product)] {
            for (total, v) in total.iter_mut().zip(cut.fold(wide, c)) {
                *total += v;
            }
        }
    }
    (sums, products)
}

vectorised! {
    /// Clears the entries of `dy` that the ReLU with the output `out` cut off.
    fn cut_off<T: Element>(out: &[T], dy: &mut [T]) {
        for (dy, out) in dy.iter_mut().zip(out) {
            *dy = if out.to_f32() <= 0.0 { T::from_f32(0.0) } else { *dy };
        }
    }
}

vectorised! {
    /// Adds `d` and `d * (x - mean)` over the wide rows to `sum` and `product`.
    fn add_gradients<T: Element>(x: &[T], d: &[T], mean: &[f32], sum: &mut [f32], product: &mut [f32]) {
        let wide = mean.len();
        for (x, d) in x.chunks(wide).zip(d.chunks(wide)) {
            let sums = sum.iter_mut().zip(product.iter_mut()).zip(mean);
            for (((s, p), &m), (&x, &d)) in sums.zip(x.iter().zip(d)) {
                let d = d.to_f32();
                *s += d;
                *p += d * (x.to_f32() - m);
            }
        }
    }
}

/// The gradient of the input, to `dx` or else over `d`.
fn input_gradients<T: Element>(x: &[T], d: &mut [T], line: &Line, dx: Option<&mut [T]>) {
    assert!(
        dx.as_ref().is_none_or(|dx| dx.len() == x.len()),
        "input and gradient of a batch norm"
    );
    let c = line.scale.len();
    if c == 0 {
        return;
    }
    let cut = Cut::new(c);
    let line = line.tile(&cut);
    match dx {
        Some(dx) => dx
            .par_chunks_mut(cut.task)
            .enumerate()
            .for_each(|(task, dx)| {
                let part = |numbers| part::<T>(numbers, task * cut.task, dx.len());
                apply_gradient(part(x), part(d), &line, dx);
            }),
        None => d
            .par_chunks_mut(cut.task)
            .enumerate()
            .for_each(|(task, d)| {
                apply_in_place(part(x, task * cut.task, d.len()), &line, d);
            }),
    }
}

vectorised! {
    /// `dx` along the line given per channel, over wide rows.
    fn apply_gradient<T: Element>(x: &[T], d: &[T], line: &Line, dx: &mut [T]) {
        let wide = line.mean.len();
        for (dx, (d, x)) in dx.chunks_mut(wide).zip(d.chunks(wide).zip(x.chunks(wide))) {
            for ((dx, (&x, &d)), at) in dx.iter_mut().zip(x.iter().zip(d)).zip(line.places()) {
                *dx = along(at, x, d);
            }
        }
    }
}

vectorised! {
    /// [`apply_gradient`] written over `d`.
    fn apply_in_place<T: Element>(x: &[T], line: &Line, d: &mut [T]) {
        let wide = line.mean.len();
        for (d, x) in d.chunks_mut(wide).zip(x.chunks(wide)) {
            for ((d, &x), at) in d.iter_mut().zip(x).zip(line.places()) {
                *d = along(at, x, *d);
            }
        }
    }
}

/// The gradient of an input `x` by the mean, scale, slope and shift of its channel.
#[inline(always)]
fn along<T: Element>([mean, scale, slope, shift]: [f32; 4], x: T, d: T) -> T {
    T::from_f32(scale * d.to_f32() + (slope * (x.to_f32() - mean) + shift))
}
