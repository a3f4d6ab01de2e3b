//! Batch norm over fixed features.

use rayon::prelude::*;

use crate::feature_set::LayerFeatures;

/// PyTorch's batch norm.
const EPS: f64 = 1e-5;
/// Rows that one thread sums; fixed, so that sums do not depend on the number of threads.
const ROWS: usize = 1024;

/// The mean and the inverse standard deviation of every column; the cells of a channel share them.
pub(crate) struct Standard {
    mean: Vec<f32>,
    inverse: Vec<f32>,
}

impl Standard {
    /// From the biased variance over all rows and cells of a channel.
    pub(crate) fn of(features: &LayerFeatures) -> Self {
        let cells = features.cells();
        let count = (features.rows() * cells) as f64;
        let mean = channel_sums(features, &vec![0.0; features.dim() / cells], |x| x);
        let mean: Vec<f64> = mean.into_iter().map(|sum| sum / count).collect();
        let squares = channel_sums(features, &mean, |x| x * x);
        let columns = |values: &mut dyn Iterator<Item = f64>| -> Vec<f32> {
            values
                .flat_map(|value| std::iter::repeat_n(value as f32, cells))
                .collect()
        };
        Self {
            inverse: columns(&mut squares.iter().map(|sum| 1.0 / (sum / count + EPS).sqrt())),
            mean: columns(&mut mean.into_iter()),
        }
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
        let features = LayerFeatures::with_cells(Layer::Res4, rows, dim, cells, values).unwrap();
        let standard = Standard::of(&features);
        let mut moments = [[0f64; 2]; 2];
        let mut out = vec![0.0; dim];
        for row in 0..rows {
            standard.apply(features.row(row), &mut out);
            for (i, x) in out.iter().enumerate() {
                moments[i / cells][0] += f64::from(*x) / (rows * cells) as f64;
                moments[i / cells][1] += f64::from(*x).powi(2) / (rows * cells) as f64;
            }
        }
        for [mean, variance] in moments {
            assert!(
                mean.abs() < 1e-5 && (variance - 1.0).abs() < 1e-4,
                "{mean} {variance}"
            );
        }
    }

    #[test]
    fn a_constant_feature_becomes_zero() {
        let features = LayerFeatures::new(Layer::Res2, 4, 1, vec![7.0; 4]).unwrap();
        let mut out = [1.0];
        Standard::of(&features).apply(&[7.0], &mut out);
        assert_eq!(out, [0.0]);
    }
}
