//! The closed-form gradient of softmax regression, for all learning rates at once.
//!
//! With standardised features x, logits z = W x + b and probabilities p = softmax(z), the mean
//! cross-entropy has dL/dW = (p - y) x^T / n and dL/db = (p - y) / n. The classifiers of several
//! learning rates are stacked, so that one product serves them all.

use rayon::prelude::*;

use super::Task;
use super::sgd::Classifiers;
use crate::matrix::{times_transposed, transposed_times};

/// Rows that one thread takes; fixed, so that sums do not depend on the number of threads.
const ROWS: usize = 64;

/// dL/dW and dL/db of the effective weights, scale and shift folded in.
pub(crate) struct Gradient {
    /// `(classifiers * classes, dim)`
    pub(crate) weight: Vec<f32>,
    /// `(classifiers * classes)`
    pub(crate) bias: Vec<f32>,
    /// The mean cross-entropy itself, over classifiers too, in nats.
    pub(crate) loss: f64,
}

/// The logits of some rows, `(rows, classifiers * classes)`, and their standardised features.
pub(crate) fn logits(task: &Task<'_>, rows: &[u32], weight: &[f32], bias: &[f32]) -> [Vec<f32>; 2] {
    let (dim, outputs) = (task.features.dim(), bias.len());
    let mut x = vec![0f32; rows.len() * dim];
    for (row, out) in rows.iter().zip(x.chunks_exact_mut(dim)) {
        task.standard.apply(task.features.row(*row as usize), out);
    }
    let mut z = vec![0f32; rows.len() * outputs];
    times_transposed((rows.len(), outputs, dim), &x, weight, &mut z);
    for row in z.chunks_exact_mut(outputs) {
        row.iter_mut().zip(bias).for_each(|(z, b)| *z += b);
    }
    [z, x]
}

/// The gradient of the mean cross-entropy over the rows of a batch.
pub(crate) fn gradient(task: &Task<'_>, batch: &[u32], classifiers: &Classifiers) -> Gradient {
    let (weight, bias) = classifiers.effective();
    let (dim, outputs) = (task.features.dim(), bias.len());
    let scale = 1.0 / batch.len() as f32;
    let parts: Vec<Gradient> = batch
        .par_chunks(ROWS)
        .map(|rows| {
            let [mut z, x] = logits(task, rows, &weight, &bias);
            let mut loss = 0.0;
            for (row, z) in rows.iter().zip(z.chunks_exact_mut(outputs)) {
                let label = task.labels[*row as usize] as usize;
                for z in z.chunks_exact_mut(task.classes) {
                    loss += softmax_minus_target(z, label, scale);
                }
            }
            let mut part = Gradient {
                weight: vec![0.0; outputs * dim],
                bias: vec![0.0; outputs],
                loss,
            };
            transposed_times((outputs, dim, rows.len()), &z, &x, &mut part.weight);
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
    let losses = (batch.len() * classifiers.count()) as f64;
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

    use super::super::standard::Standard;
    use super::*;
    use crate::feature_set::LayerFeatures;

    /// The same loss in f64, straight from its definition.
    fn loss(task: &Task<'_>, rows: &[u32], weight: &[f64], bias: &[f64]) -> f64 {
        let dim = task.features.dim();
        let mut x = vec![0.0; dim];
        let mut total = 0.0;
        for row in rows {
            task.standard
                .apply(task.features.row(*row as usize), &mut x);
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
            let label = task.labels[*row as usize] as usize;
            total += z.iter().map(|z| z.exp()).sum::<f64>().ln() - z[label];
        }
        total / rows.len() as f64
    }

    #[test]
    fn the_gradient_is_that_of_the_loss() {
        let (rows, dim, classes) = (150, 7, 4);
        let features =
            LayerFeatures::new(Layer::RES5, rows, dim, benches::fill(1, rows * dim)).unwrap();
        let standard = Standard::of(&features);
        let labels: Vec<u32> = (0..rows as u32)
            .map(|i| i * 7 % 11 % classes as u32)
            .collect();
        let task = Task {
            features: &features,
            standard: &standard,
            labels: &labels,
            classes,
        };
        let mut classifiers = Classifiers::zero((dim, 1), classes, 2, false);
        classifiers.randomise(5);
        let batch: Vec<u32> = (3..rows as u32).collect();
        let found = gradient(&task, &batch, &classifiers);

        let (weight, bias) = classifiers.effective();
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
            losses.push(loss(&task, &batch, &w, &b));
            let h = 1e-5;
            for i in 0..w.len() {
                let at = w[i];
                w[i] = at + h;
                let up = loss(&task, &batch, &w, &b);
                w[i] = at - h;
                let slope = (up - loss(&task, &batch, &w, &b)) / (2.0 * h);
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
                let up = loss(&task, &batch, &w, &b);
                b[i] = at - h;
                let slope = (up - loss(&task, &batch, &w, &b)) / (2.0 * h);
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
