//! The closed-form gradient of softmax regression, for all learning rates at once.
//!
//! With standardised features x, logits z = W x + b and probabilities p = softmax(z), the mean
//! cross-entropy has dL/dW = (p - y) x^T / n and dL/db = (p - y) / n. The classifiers of several
//! learning rates are stacked, so that one product serves them all.

use pirl_core::{Matrix, product};
use rayon::prelude::*;

use super::samples::Samples;

/// Rows that one thread takes; fixed, so that sums do not depend on the number of threads.
const ROWS: usize = 64;

/// Weights and biases of stacked classifiers, with batch norm's scale and shift folded in.
pub(crate) struct FoldedWeights {
    /// `(classifiers * classes, dim)`
    pub(crate) weight: Vec<f32>,
    /// `(classifiers * classes)`
    pub(crate) bias: Vec<f32>,
    pub(crate) classifiers: usize,
}

/// dL/dW and dL/db of [`FoldedWeights`].
pub(crate) struct Gradient {
    /// `(classifiers * classes, dim)`
    pub(crate) weight: Vec<f32>,
    /// `(classifiers * classes)`
    pub(crate) bias: Vec<f32>,
    /// The mean cross-entropy itself, over classifiers too, in nats.
    pub(crate) loss: f64,
}

/// The logits of some rows, `(rows, classifiers * classes)`, and their standardised features.
pub(crate) fn logits(samples: &Samples<'_>, rows: &[u32], folded: &FoldedWeights) -> [Vec<f32>; 2] {
    let FoldedWeights { weight, bias, .. } = folded;
    let (dim, outputs) = (samples.features.dim(), bias.len());
    let mut x = vec![0f32; rows.len() * dim];
    for (row, out) in rows.iter().zip(x.chunks_exact_mut(dim)) {
        samples
            .standardizer
            .apply(samples.features.row(*row as usize), out);
    }
    let mut z = vec![0f32; rows.len() * outputs];
    product(
        &mut z,
        Matrix::new(&x, rows.len(), dim),
        Matrix::new(weight, outputs, dim).t(),
        1.0,
    );
    for row in z.chunks_exact_mut(outputs) {
        row.iter_mut().zip(bias).for_each(|(z, b)| *z += b);
    }
    [z, x]
}

/// The gradient of the mean cross-entropy over the rows of a batch.
pub(crate) fn gradient(samples: &Samples<'_>, batch: &[u32], folded: &FoldedWeights) -> Gradient {
    let (dim, outputs) = (samples.features.dim(), folded.bias.len());
    let scale = 1.0 / batch.len() as f32;
    let parts: Vec<Gradient> = batch
        .par_chunks(ROWS)
        .map(|rows| {
            let [mut z, x] = logits(samples, rows, folded);
            let mut loss = 0.0;
            for (row, z) in rows.iter().zip(z.chunks_exact_mut(outputs)) {
                let label = samples.labels[*row as usize] as usize;
                for z in z.chunks_exact_mut(samples.classes) {
                    loss += softmax_minus_target(z, label, scale);
                }
            }
            let mut part = Gradient {
                weight: vec![0.0; outputs * dim],
                bias: vec![0.0; outputs],
                loss,
            };
            product(
                &mut part.weight,
                Matrix::new(&z, rows.len(), outputs).t(),
                Matrix::new(&x, rows.len(), dim),
                1.0,
            );
            for z in z.chunks_exact(outputs) {
                part.bias.iter_mut().zip(z).for_each(|(sum, z)| *sum += z);
            }
            part
        })
        .collect();
    let mut total = Gradient {
        weight: vec![0.0; outputs * dim],
        bias: vec![0.0; outputs],
        loss: 0.0,
    };
    let losses = (batch.len() * folded.classifiers) as f64;
    for part in parts {
        total.loss += part.loss / losses;
        total
            .weight
            .iter_mut()
            .zip(&part.weight)
            .for_each(|(sum, x)| *sum += x);
        total
            .bias
            .iter_mut()
            .zip(&part.bias)
            .for_each(|(sum, x)| *sum += x);
    }
    total
}

/// Turns logits into `scale * (softmax - one_hot(label))`, the gradient of `scale` times the
/// cross-entropy, and returns the cross-entropy in nats. `label` must have a logit.
pub(crate) fn softmax_minus_target(z: &mut [f32], label: usize, scale: f32) -> f64 {
    let max = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let own = z[label] - max;
    let mut sum = 0.0;
    for z in z.iter_mut() {
        *z = (*z - max).exp();
        sum += *z;
    }
    let factor = scale / sum;
    z.iter_mut().for_each(|z| *z *= factor);
    z[label] -= scale;
    f64::from(sum.ln() - own)
}

#[cfg(test)]
mod tests {
    use pirl_model::Layer;

    use super::super::batch_norm::Standardizer;
    use super::*;
    use crate::feature_set::LayerFeatures;

    /// The same loss in f64, straight from its definition.
    fn loss(samples: &Samples<'_>, rows: &[u32], weight: &[f64], bias: &[f64]) -> f64 {
        let dim = samples.features.dim();
        let mut x = vec![0.0; dim];
        let mut total = 0.0;
        for row in rows {
            samples
                .standardizer
                .apply(samples.features.row(*row as usize), &mut x);
            let z: Vec<f64> = weight
                .chunks(dim)
                .zip(bias)
                .map(|(w, b)| {
                    b + w
                        .iter()
                        .zip(&x)
                        .map(|(w, x)| w * f64::from(*x))
                        .sum::<f64>()
                })
                .collect();
            let label = samples.labels[*row as usize] as usize;
            total += z.iter().map(|z| z.exp()).sum::<f64>().ln() - z[label];
        }
        total / rows.len() as f64
    }

    #[test]
    fn the_gradient_is_that_of_the_loss() {
        let (rows, dim, classes) = (150, 7, 4);
        let features =
            LayerFeatures::new(Layer::RES5, rows, dim, benches::fill(1, rows * dim)).unwrap();
        let standardizer = Standardizer::of(&features);
        let labels: Vec<u32> = (0..rows as u32)
            .map(|i| i * 7 % 11 % classes as u32)
            .collect();
        let samples = Samples {
            features: &features,
            standardizer: &standardizer,
            labels: &labels,
            classes,
        };
        let folded = FoldedWeights {
            weight: benches::fill(5, 2 * classes * dim),
            bias: benches::fill(6, 2 * classes),
            classifiers: 2,
        };
        let batch: Vec<u32> = (3..rows as u32).collect();
        let found = gradient(&samples, &batch, &folded);

        let FoldedWeights { weight, bias, .. } = &folded;
        let mut losses = Vec::new();
        for which in 0..2 {
            let mut w: Vec<f64> = weight[which * classes * dim..][..classes * dim]
                .iter()
                .map(|x| f64::from(*x))
                .collect();
            let mut b: Vec<f64> = bias[which * classes..][..classes]
                .iter()
                .map(|x| f64::from(*x))
                .collect();
            losses.push(loss(&samples, &batch, &w, &b));
            let h = 1e-5;
            for i in 0..w.len() {
                let at = w[i];
                w[i] = at + h;
                let up = loss(&samples, &batch, &w, &b);
                w[i] = at - h;
                let slope = (up - loss(&samples, &batch, &w, &b)) / (2.0 * h);
                w[i] = at;
                let found = f64::from(found.weight[which * classes * dim + i]);
                assert!(
                    (found - slope).abs() < 1e-5,
                    "weight {i}: {found}, not {slope}"
                );
            }
            for i in 0..b.len() {
                let at = b[i];
                b[i] = at + h;
                let up = loss(&samples, &batch, &w, &b);
                b[i] = at - h;
                let slope = (up - loss(&samples, &batch, &w, &b)) / (2.0 * h);
                b[i] = at;
                let found = f64::from(found.bias[which * classes + i]);
                assert!(
                    (found - slope).abs() < 1e-5,
                    "bias {i}: {found}, not {slope}"
                );
            }
        }
        let mean = losses.iter().sum::<f64>() / 2.0;
        assert!((found.loss - mean).abs() < 1e-6, "{} {mean}", found.loss);
    }
}
