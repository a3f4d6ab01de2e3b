//! Batch norm over fixed features.

use rayon::prelude::*;

use crate::feature_set::LayerFeatures;

/// PyTorch's batch norm.
const EPS: f64 = 1e-5;
/// Rows that one thread sums; fixed, so that sums do not depend on the number of threads.
const ROWS: usize = 1024;

/// Mean and variance of every channel, over rows and cells.
#[derive(Clone, Debug)]
pub(crate) struct ChannelStatistics {
    mean: Vec<f64>,
    /// Biased.
    variance: Vec<f64>,
    /// How many numbers of a channel they are of.
    count: usize,
}

/// The mean and the inverse standard deviation of every column; the cells of a channel share them.
pub(crate) struct Standardizer {
    mean: Vec<f32>,
    inverse: Vec<f32>,
}

impl ChannelStatistics {
    /// Mean 0 and variance 1, the start of running statistics.
    pub(crate) fn standard(channels: usize) -> Self {
        Self {
            mean: vec![0.0; channels],
            variance: vec![1.0; channels],
            count: 0,
        }
    }

    /// The statistics of all rows and cells.
    pub(crate) fn of(features: &LayerFeatures) -> Self {
        let cells = features.cells();
        let numbers = features.rows() * cells;
        let count = numbers as f64;
        let mean = channel_sums(features, &vec![0.0; features.dim() / cells], |x| x);
        let mean: Vec<f64> = mean.into_iter().map(|sum| sum / count).collect();
        let squares = channel_sums(features, &mean, |x| x * x);
        Self {
            variance: squares.into_iter().map(|sum| sum / count).collect(),
            mean,
            count: numbers,
        }
    }

    /// Moves towards the statistics of a batch, whose variance is made unbiased, as PyTorch's running
    /// statistics do.
    pub(crate) fn follow(&mut self, batch: &Self, momentum: f64) {
        let unbiased = batch.count as f64 / (batch.count.saturating_sub(1).max(1)) as f64;
        let towards = |value: &mut f64, new: f64| *value += momentum * (new - *value);
        for (value, new) in self.mean.iter_mut().zip(&batch.mean) {
            towards(value, *new);
        }
        for (value, new) in self.variance.iter_mut().zip(&batch.variance) {
            towards(value, new * unbiased);
        }
    }

    /// Standardises by these, with `cells` columns to a channel.
    pub(crate) fn standardizer(&self, cells: usize) -> Standardizer {
        let columns = |values: &mut dyn Iterator<Item = f64>| -> Vec<f32> {
            values
                .flat_map(|value| std::iter::repeat_n(value as f32, cells))
                .collect()
        };
        let inverse = |variance: &f64| 1.0 / (variance + EPS).sqrt();
        Standardizer {
            mean: columns(&mut self.mean.iter().copied()),
            inverse: columns(&mut self.variance.iter().map(inverse)),
        }
    }

    /// What a checkpoint keeps of running statistics.
    pub(crate) fn parts(&self) -> [(&'static str, &[f64]); 2] {
        [
            ("running_mean", &self.mean),
            ("running_var", &self.variance),
        ]
    }

    /// The same in the same order, mutable.
    pub(crate) fn parts_mut(&mut self) -> [&mut Vec<f64>; 2] {
        [&mut self.mean, &mut self.variance]
    }
}

impl Standardizer {
    /// From the biased variance over all rows and cells of a channel.
    pub(crate) fn of(features: &LayerFeatures) -> Self {
        ChannelStatistics::of(features).standardizer(features.cells())
    }

    /// `out = (row - mean) / deviation`.
    pub(crate) fn apply(&self, row: &[f32], out: &mut [f32]) {
        let statistics = self.mean.iter().zip(&self.inverse);
        for ((out, value), (mean, inverse)) in out.iter_mut().zip(row).zip(statistics) {
            *out = (value - mean) * inverse;
        }
    }
}

/// For each channel, the sum of `f(value - centre)` over rows and cells.
fn channel_sums(
    features: &LayerFeatures,
    centre: &[f64],
    f: impl Fn(f64) -> f64 + Sync,
) -> Vec<f64> {
    let (dim, cells) = (features.dim(), features.cells());
    let parts: Vec<Vec<f64>> = features
        .values()
        .par_chunks(ROWS * dim)
        .map(|rows| {
            let mut sums = vec![0.0; centre.len()];
            for row in rows.chunks_exact(dim) {
                for ((sum, centre), channel) in
                    sums.iter_mut().zip(centre).zip(row.chunks_exact(cells))
                {
                    *sum += channel
                        .iter()
                        .map(|x| f(f64::from(*x) - centre))
                        .sum::<f64>();
                }
            }
            sums
        })
        .collect();
    let mut total = vec![0.0; centre.len()];
    for part in parts {
        total
            .iter_mut()
            .zip(part)
            .for_each(|(total, part)| *total += part);
    }
    total
}

#[cfg(test)]
mod tests {
    use pirl_model::Layer;

    use super::*;

    #[test]
    fn channels_come_out_with_mean_0_and_variance_1_over_rows_and_cells() {
        let (rows, dim, cells) = (2500, 6, 3);
        let values = benches::fill(1, rows * dim)
            .iter()
            .map(|x| 3.0 * x + 5.0)
            .collect();
        let features = LayerFeatures::with_cells(Layer::RES4, rows, dim, cells, values).unwrap();
        let standardizer = Standardizer::of(&features);
        let mut statistics = [[0f64; 2]; 2];
        let mut out = vec![0.0; dim];
        for row in 0..rows {
            standardizer.apply(features.row(row), &mut out);
            for (i, x) in out.iter().enumerate() {
                statistics[i / cells][0] += f64::from(*x) / (rows * cells) as f64;
                statistics[i / cells][1] += f64::from(*x).powi(2) / (rows * cells) as f64;
            }
        }
        for [mean, variance] in statistics {
            assert!(
                mean.abs() < 1e-5 && (variance - 1.0).abs() < 1e-4,
                "{mean} {variance}"
            );
        }
    }

    #[test]
    fn a_constant_feature_becomes_zero() {
        let features = LayerFeatures::new(Layer::RES2, 4, 1, vec![7.0; 4]).unwrap();
        let mut out = [1.0];
        Standardizer::of(&features).apply(&[7.0], &mut out);
        assert_eq!(out, [0.0]);
    }
}
