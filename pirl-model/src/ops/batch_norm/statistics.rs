//! Means and variances of channels.

use pirl_core::vectorised;
use rayon::prelude::*;

use super::cut::Cut;
use crate::ops::Element;
use crate::peers::{self, Peers};

/// What a batch norm normalises by, and whether it depends on the input.
#[derive(Clone, Debug, PartialEq)]
pub enum Statistics {
    /// Those of the batch itself: gradients flow through them.
    Batch(ChannelStatistics),
    /// Given ones, which are constants.
    Running(ChannelStatistics),
}

/// Mean and variance of each of `c` channels.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelStatistics {
    /// Mean over all rows.
    pub mean: Vec<f32>,
    /// Variance; that of a batch is biased (divided by the number of rows).
    pub var: Vec<f32>,
    /// `1 / sqrt(var + eps)`.
    pub inv_std: Vec<f32>,
}

impl Statistics {
    /// The statistics of the batch `x`: `(rows, c)`. Without rows they are NaN.
    pub fn of_batch<T: Element>(x: &[T], c: usize, eps: f32) -> Self {
        Self::Batch(Moments::of_rows(x, c).statistics(eps))
    }

    /// Given statistics, `(c)` each; `var` is not negative.
    pub fn running(mean: Vec<f32>, var: Vec<f32>, eps: f32) -> Self {
        let inv_std = var.iter().map(|&v| inverse_deviation(v.into(), eps));
        Self::Running(ChannelStatistics {
            inv_std: inv_std.collect(),
            mean,
            var,
        })
    }

    /// Mean and variance, wherever they come from.
    pub fn channels(&self) -> &ChannelStatistics {
        match self {
            Self::Batch(channels) | Self::Running(channels) => channels,
        }
    }
}

fn inverse_deviation(var: f64, eps: f32) -> f32 {
    (1.0 / (var + eps as f64).sqrt()) as f32
}

/// The statistics of the rows of a task, block by block: a block is read once for its means and again,
/// from the cache, for the deviations from them.
fn of_task<T: Element>(x: &[T], c: usize, cut: &Cut) -> Moments {
    let mut part = Moments::new(c);
    let mut wide = cut.zeros(c);
    for block in x.chunks(cut.block) {
        let rows = (block.len() / c) as f64;
        wide.fill(0.0);
        add_rows(block, &mut wide);
        let mut mean = cut.fold(&wide, c);
        mean.iter_mut().for_each(|m| *m /= rows);
        let rounded: Vec<f32> = mean.iter().map(|&m| m as f32).collect();
        wide.fill(0.0);
        add_squares(block, &cut.tile(&rounded), &mut wide);
        part.merge(rows, &mean, &cut.fold(&wide, c));
    }
    part
}

/// Count, means and sums of squared deviations of some rows, from which the statistics of more can be joined.
pub(crate) struct Moments {
    rows: f64,
    mean: Vec<f64>,
    square: Vec<f64>,
}

impl Moments {
    fn new(c: usize) -> Self {
        Self {
            rows: 0.0,
            mean: vec![0.0; c],
            square: vec![0.0; c],
        }
    }

    /// Those of `x`: `(rows, c)`.
    pub(crate) fn of_rows<T: Element>(x: &[T], c: usize) -> Self {
        let mut all = Self::new(c);
        if c > 0 {
            let cut = Cut::new(c);
            let parts = x.par_chunks(cut.task).map(|x| of_task(x, c, &cut));
            for part in parts.collect::<Vec<_>>() {
                all.merge(part.rows, &part.mean, &part.square);
            }
        }
        all
    }

    /// Those of so many rows with this mean and biased variance, `(c)` each.
    pub(crate) fn of_statistics(rows: usize, mean: &[f32], var: &[f32]) -> Self {
        let rows = rows as f64;
        Self {
            rows,
            mean: mean.iter().map(|&m| f64::from(m)).collect(),
            square: var.iter().map(|&v| f64::from(v) * rows).collect(),
        }
    }

    /// Those of the rows of all `peers`, these among them.
    ///
    /// # Errors
    /// [`ModelError::Peers`](crate::ModelError::Peers).
    pub(crate) fn over(self, peers: &dyn Peers) -> crate::error::Result<Self> {
        let c = self.mean.len();
        let own = [vec![self.rows], self.mean, self.square].concat();
        let mut all = Self::new(c);
        for part in peers::gather(peers, own)? {
            let (mean, square) = part[1..].split_at(c);
            all.merge(part[0], mean, square);
        }
        Ok(all)
    }

    /// How many rows they are of.
    pub(crate) fn rows(&self) -> f64 {
        self.rows
    }

    /// The statistics of the rows; without any they are NaN.
    pub(crate) fn statistics(&self, eps: f32) -> ChannelStatistics {
        let mean = |&m: &f64| if self.rows > 0.0 { m as f32 } else { f32::NAN };
        let var: Vec<f64> = self.square.iter().map(|s| s / self.rows).collect();
        ChannelStatistics {
            mean: self.mean.iter().map(mean).collect(),
            var: var.iter().map(|&v| v as f32).collect(),
            inv_std: var.iter().map(|&v| inverse_deviation(v, eps)).collect(),
        }
    }

    /// Takes in another part (Chan, Golub, LeVeque 1979): no cancellation, whatever the mean.
    fn merge(&mut self, rows: f64, mean: &[f64], square: &[f64]) {
        let total = self.rows + rows;
        let (weight, cross) = (rows / total, self.rows * rows / total);
        for (((m, s), &other), &square) in self
            .mean
            .iter_mut()
            .zip(&mut self.square)
            .zip(mean)
            .zip(square)
        {
            let delta = other - *m;
            *m += delta * weight;
            *s += square + delta * delta * cross;
        }
        self.rows = total;
    }
}

vectorised! {
    /// Adds the wide rows of `x` to `sum`; the last may be short.
    fn add_rows<T: Element>(x: &[T], sum: &mut [f32]) {
        for row in x.chunks(sum.len()) {
            for (s, &x) in sum.iter_mut().zip(row) {
                *s += x.to_f32();
            }
        }
    }
}

vectorised! {
    /// Adds the squared deviations of the wide rows of `x` from `mean` to `sum`.
    fn add_squares<T: Element>(x: &[T], mean: &[f32], sum: &mut [f32]) {
        for row in x.chunks(mean.len()) {
            for ((s, &x), &m) in sum.iter_mut().zip(row).zip(mean) {
                let x = x.to_f32();
                *s += (x - m) * (x - m);
            }
        }
    }
}
