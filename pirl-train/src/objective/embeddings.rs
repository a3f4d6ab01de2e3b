//! What embeddings are like, for a reader of the metrics: do views of an image agree, and do images
//! differ (Wang and Isola, arXiv:2005.10242)?

use candle_core::{D, DType, Tensor};

use crate::error::Result;
use crate::training::Metric;

/// The metrics of a batch of embeddings, `(b, dim)`, whose images have `rows`, `(b, dim)`, in the bank,
/// all of unit length:
///
/// - `alignment`: the mean squared distance of an embedding from its image's row, so from the mean of
///   its embeddings in earlier epochs: from 0 (they agree) to 4; 2 for random ones.
/// - `uniformity`: `ln mean exp(-2 |z_i - z_j|^2)` over pairs of images; 0 if all embeddings are the
///   same, the lower the better, about -4 for random ones.
/// - `effective_rank`: `1 / mean (z_i . z_j)^2` over pairs of images; 1 if all embeddings lie on a line,
///   `dim` if they lie anywhere.
///
/// The last two need at least two images.
pub(super) fn embedding_metrics(
    embeddings: &Tensor,
    rows: &Tensor,
) -> Result<Vec<(&'static str, Metric)>> {
    let images = embeddings.dim(0)?;
    let mut numbers = vec![(embeddings * rows)?.sum(D::Minus1)?.mean_all()?];
    if images > 1 {
        let cosines = embeddings.matmul(&embeddings.t()?)?;
        numbers.push(cosines.sqr()?.sum_all()?);
        numbers.push(((&cosines - 1.0)? * 4.0)?.exp()?.sum_all()?);
    }
    // Read back together: a device is waited for once.
    let numbers = Tensor::stack(&numbers, 0)?.to_dtype(DType::F64)?;
    let numbers = numbers.to_vec1::<f64>()?;
    let real = |value: f64| Metric::Real(value as f32);
    let mut metrics = vec![("alignment", real(2.0 - 2.0 * numbers[0]))];
    if let [_, squares, potential] = numbers[..] {
        // Each row has a cosine of 1 with itself, which is no pair.
        let (n, pairs) = (images as f64, (images * (images - 1)) as f64);
        let (squares, potential) = (squares - n, potential - n);
        let floor = f64::from(f32::MIN_POSITIVE);
        metrics.push(("uniformity", real((potential / pairs).max(floor).ln())));
        metrics.push(("effective_rank", real(pairs / squares.max(floor))));
    }
    Ok(metrics)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn metrics(embeddings: &[[f32; 2]], rows: &[[f32; 2]]) -> Vec<f64> {
        let tensor = |values: &[[f32; 2]]| {
            let shape = (values.len(), 2);
            Tensor::from_vec(values.concat(), shape, &Device::Cpu).unwrap()
        };
        let found = embedding_metrics(&tensor(embeddings), &tensor(rows)).unwrap();
        let values = found.into_iter().map(|(_, metric)| match metric {
            Metric::Real(value) => f64::from(value),
            Metric::Count(_) => unreachable!("all are real"),
        });
        values.collect()
    }

    #[test]
    fn they_are_those_of_the_formulas() {
        let (x, y) = ([1.0, 0.0], [0.0, 1.0]);
        let collapsed = metrics(&[x, x, x], &[x, x, y]);
        let expected = [2.0 / 3.0, 0.0, 1.0];
        // Pairs: one at distance 0, two at squared distance 2.
        let spread = metrics(&[x, x, y], &[x, x, y]);
        let uniformity = ((1.0 + 2.0 * (-4f64).exp()) / 3.0).ln();
        for (found, expected) in [(collapsed, expected), (spread, [0.0, uniformity, 3.0])] {
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-5, "{found}, not {expected}");
            }
        }
        assert_eq!(metrics(&[x], &[y]), [2.0], "one image has no pairs");
    }
}
