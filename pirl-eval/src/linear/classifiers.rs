//! The classifiers of several learning rates, and a step of each.

use rayon::prelude::*;

use super::gradient::{FoldedWeights, Gradient};

/// Classifiers of the same shape, stacked; each with velocities of its own.
pub(crate) struct Classifiers {
    count: usize,
    dim: usize,
    cells: usize,
    /// `(count * classes, dim)`
    weight: Parameters,
    /// `(count * classes)`
    bias: Parameters,
    affine: Option<Affine>,
}

/// Batch norm's scale and shift, `(count, channels)` each.
struct Affine {
    scale: Parameters,
    shift: Parameters,
}

/// Parameters and their velocities.
struct Parameters {
    value: Vec<f32>,
    velocity: Vec<f32>,
}

impl Parameters {
    fn full(value: f32, len: usize) -> Self {
        Self {
            value: vec![value; len],
            velocity: vec![0.0; len],
        }
    }

    /// PyTorch's SGD with Nesterov momentum: g += decay p; v = momentum v + g; p -= lr (g +
    /// momentum v). The parameters are `rates.len()` equal parts, one for each rate.
    fn step(&mut self, gradient: &[f32], rates: &[f64], momentum: f64, decay: f64) {
        let part = self.value.len() / rates.len();
        let (momentum, decay) = (momentum as f32, decay as f32);
        let values = self
            .value
            .par_chunks_mut(part)
            .zip(self.velocity.par_chunks_mut(part));
        values.zip(gradient.par_chunks(part)).zip(rates).for_each(
            |(((values, velocities), gradients), rate)| {
                let rate = *rate as f32;
                for ((p, v), g) in values.iter_mut().zip(velocities).zip(gradients) {
                    let g = g + decay * *p;
                    *v = momentum * *v + g;
                    *p -= rate * (g + momentum * *v);
                }
            },
        );
    }
}

impl Classifiers {
    /// `count` classifiers of `dim` features, `cells` to a channel, with all weights 0.
    pub(crate) fn zero(
        (dim, cells): (usize, usize),
        classes: usize,
        count: usize,
        affine: bool,
    ) -> Self {
        let channels = count * (dim / cells);
        Self {
            count,
            dim,
            cells,
            weight: Parameters::full(0.0, count * classes * dim),
            bias: Parameters::full(0.0, count * classes),
            affine: affine.then(|| Affine {
                scale: Parameters::full(1.0, channels),
                shift: Parameters::full(0.0, channels),
            }),
        }
    }

    /// Weights and biases with batch norm's scale and shift folded in:
    /// W (scale x + shift) + b = (W scale) x + (W shift + b).
    pub(crate) fn folded(&self) -> FoldedWeights {
        let mut folded = FoldedWeights {
            weight: self.weight.value.clone(),
            bias: self.bias.value.clone(),
            classifiers: self.count,
        };
        if let Some(affine) = &self.affine {
            self.fold(affine, &mut folded);
        }
        folded
    }

    fn fold(&self, affine: &Affine, folded: &mut FoldedWeights) {
        let FoldedWeights { weight, bias, .. } = folded;
        let (classes, channels) = (bias.len() / self.count, self.dim / self.cells);
        let rows = weight.chunks_exact_mut(self.dim).zip(bias);
        for (row, (weight, bias)) in rows.enumerate() {
            let of = row / classes * channels;
            for (channel, weight) in weight.chunks_exact_mut(self.cells).enumerate() {
                let (scale, shift) = (
                    affine.scale.value[of + channel],
                    affine.shift.value[of + channel],
                );
                for weight in weight {
                    *bias += *weight * shift;
                    *weight *= scale;
                }
            }
        }
    }

    /// One step of each classifier at its own rate. Batch norm's parameters do not decay.
    pub(crate) fn step(&mut self, gradient: &Gradient, rates: &[f64], momentum: f64, decay: f64) {
        match self.through_batch_norm(gradient) {
            Some((weight, scale, shift)) => {
                self.weight.step(&weight, rates, momentum, decay);
                if let Some(affine) = &mut self.affine {
                    affine.scale.step(&scale, rates, momentum, 0.0);
                    affine.shift.step(&shift, rates, momentum, 0.0);
                }
            }
            None => self.weight.step(&gradient.weight, rates, momentum, decay),
        }
        self.bias.step(&gradient.bias, rates, momentum, decay);
    }

    /// With G and d the gradients of the folded weights and biases:
    /// dW = G scale + d shift, dscale = sum over classes of W G, dshift = sum over classes of W d.
    fn through_batch_norm(&self, gradient: &Gradient) -> Option<(Vec<f32>, Vec<f32>, Vec<f32>)> {
        let affine = self.affine.as_ref()?;
        let (classes, channels) = (self.bias.value.len() / self.count, self.dim / self.cells);
        let mut d_weight = gradient.weight.clone();
        let mut d_scale = vec![0.0; affine.scale.value.len()];
        let mut d_shift = vec![0.0; affine.shift.value.len()];
        let rows = d_weight
            .chunks_exact_mut(self.dim)
            .zip(self.weight.value.chunks_exact(self.dim));
        for (row, ((d_row, weights), d_bias)) in rows.zip(&gradient.bias).enumerate() {
            let of = row / classes * channels;
            let cells = d_row
                .chunks_exact_mut(self.cells)
                .zip(weights.chunks_exact(self.cells));
            for (channel, (d_cells, weights)) in cells.enumerate() {
                let at = of + channel;
                for (d, weight) in d_cells.iter_mut().zip(weights) {
                    d_scale[at] += weight * *d;
                    d_shift[at] += weight * d_bias;
                    *d = *d * affine.scale.value[at] + d_bias * affine.shift.value[at];
                }
            }
        }
        Some((d_weight, d_scale, d_shift))
    }

    /// Number of parameters and velocities.
    pub(crate) fn numbers(&self) -> usize {
        let affine = self.affine.iter().flat_map(|a| [&a.scale, &a.shift]);
        let all = [&self.weight, &self.bias].into_iter().chain(affine);
        all.map(|part| 2 * part.value.len()).sum()
    }

    /// All parameters and velocities, by name: what a checkpoint keeps.
    pub(crate) fn parts(&self) -> Vec<(&'static str, &[f32])> {
        let mut parts: Vec<(_, &[f32])> = vec![
            ("fc.weight", &self.weight.value),
            ("fc.weight.velocity", &self.weight.velocity),
            ("fc.bias", &self.bias.value),
            ("fc.bias.velocity", &self.bias.velocity),
        ];
        if let Some(Affine { scale, shift }) = &self.affine {
            parts.extend([
                ("norm.weight", scale.value.as_slice()),
                ("norm.weight.velocity", &scale.velocity),
                ("norm.bias", &shift.value),
                ("norm.bias.velocity", &shift.velocity),
            ]);
        }
        parts
    }

    /// The same in the same order, mutable.
    pub(crate) fn parts_mut(&mut self) -> Vec<&mut Vec<f32>> {
        let mut all = vec![&mut self.weight, &mut self.bias];
        if let Some(Affine { scale, shift }) = &mut self.affine {
            all.extend([scale, shift]);
        }
        all.into_iter()
            .flat_map(|part| [&mut part.value, &mut part.velocity])
            .collect()
    }
}
