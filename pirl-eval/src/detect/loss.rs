//! The losses of a detector, with gradients in closed form.
//!
//! Sampled anchors and regions are a small part of a network's outputs, so values and gradients are
//! computed entry by entry, in `f64`, and hung into Candle's graph by [`Loss::attach`]. Nothing
//! sampled is a loss of 0 with a gradient of 0, never 0 / 0.

use candle_core::Tensor;

use crate::error::Result;

/// A loss and its gradient with respect to a tensor.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Loss {
    pub(super) value: f64,
    gradient: Vec<f32>,
}

impl Loss {
    /// No loss with respect to a tensor of so many entries.
    pub(super) fn zero(entries: usize) -> Self {
        Self {
            value: 0.0,
            gradient: vec![0.0; entries],
        }
    }

    /// Adds a term and its slope at entry `at`.
    pub(super) fn add(&mut self, at: usize, (value, slope): (f64, f64)) {
        self.value += value;
        self.gradient[at] += slope as f32;
    }

    /// Multiplies the loss.
    pub(super) fn scale(mut self, factor: f64) -> Self {
        self.value *= factor;
        for slope in &mut self.gradient {
            *slope *= factor as f32;
        }
        self
    }

    /// A scalar of Candle's graph whose gradient with respect to `x` is this loss's. Its value is not
    /// the loss: that is [`Loss::value`].
    ///
    /// `x` has as many entries as the loss.
    pub(super) fn attach(&self, x: &Tensor) -> Result<Tensor> {
        let gradient = Tensor::from_slice(&self.gradient, x.shape(), x.device())?;
        Ok((x * gradient)?.sum_all()?)
    }
}

/// `-ln` of the probability that a logit gives to `target`, and the slope.
pub(super) fn binary_cross_entropy(logit: f32, target: bool) -> (f64, f64) {
    let (x, target) = (f64::from(logit), f64::from(u8::from(target)));
    let value = x.max(0.0) - x * target + (-x.abs()).exp().ln_1p();
    (value, 1.0 / (1.0 + (-x).exp()) - target)
}

/// `d^2 / (2 beta)` up to `beta`, then `|d| - beta / 2`; `|d|` for a `beta` of 0. And the slope.
pub(super) fn smooth_l1(difference: f64, beta: f64) -> (f64, f64) {
    let size = difference.abs();
    if size < beta {
        (0.5 * size * size / beta, difference / beta)
    } else if size > 0.0 {
        (size - 0.5 * beta, difference.signum())
    } else {
        (0.0, 0.0)
    }
}

/// Probabilities of a row of logits.
pub(super) fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers = logits
        .iter()
        .map(|logit| (f64::from(*logit) - f64::from(largest)).exp());
    let powers: Vec<f64> = powers.collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

/// Adds the cross-entropy of a row of logits, which begins at entry `start`.
pub(super) fn add_cross_entropy(loss: &mut Loss, start: usize, logits: &[f32], target: usize) {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let largest = f64::from(largest);
    let sum: f64 = logits
        .iter()
        .map(|logit| (f64::from(*logit) - largest).exp())
        .sum();
    for (class, logit) in logits.iter().enumerate() {
        let log = f64::from(*logit) - largest - sum.ln();
        let hit = class == target;
        let value = if hit { -log } else { 0.0 };
        loss.add(start + class, (value, log.exp() - f64::from(u8::from(hit))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    /// The slope by central differences.
    fn check(f: impl Fn(f64) -> (f64, f64), x: f64) {
        let step = 1e-5;
        let numeric = (f(x + step).0 - f(x - step).0) / (2.0 * step);
        assert!((f(x).1 - numeric).abs() < 1e-3, "{x}: {} {numeric}", f(x).1);
    }

    #[test]
    fn slopes_are_those_of_the_values() {
        for x in [-30.0, -1.5, -0.2, 0.3, 0.9, 2.0, 30.0] {
            for beta in [0.0, 0.1, 1.0] {
                check(|x| smooth_l1(x, beta), x);
            }
            for target in [false, true] {
                let step = 0.01f32;
                let at = |x: f32| binary_cross_entropy(x, target);
                let numeric = (at(x as f32 + step).0 - at(x as f32 - step).0)
                    / f64::from((x as f32 + step) - (x as f32 - step));
                assert!((at(x as f32).1 - numeric).abs() < 1e-4);
            }
        }
        assert_eq!(smooth_l1(0.0, 0.0), (0.0, 0.0));
        // torch: binary_cross_entropy_with_logits(tensor([1.5]), tensor([1.])) = 0.2014132799
        assert!((binary_cross_entropy(1.5, true).0 - 0.201_413_28).abs() < 1e-8);
        assert_eq!(binary_cross_entropy(-200.0, true).0, 200.0);
    }

    #[test]
    fn cross_entropy_is_that_of_the_softmax() {
        let logits = [0.3, -1.2, 80.0, 79.0];
        for target in 0..4 {
            let mut loss = Loss::zero(6);
            add_cross_entropy(&mut loss, 1, &logits, target);
            let probabilities = softmax(&logits);
            assert!((loss.value + probabilities[target].ln()).abs() < 1e-9);
            for (class, probability) in probabilities.iter().enumerate() {
                let slope = probability - f64::from(u8::from(class == target));
                assert!((f64::from(loss.gradient[1 + class]) - slope).abs() < 1e-7);
            }
            assert_eq!((loss.gradient[0], loss.gradient[5]), (0.0, 0.0));
        }
    }

    #[test]
    fn the_graph_gets_the_gradient() {
        let x = Var::new(&[[1.0f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        let mut loss = Loss::zero(4);
        loss.add(2, (5.0, 0.5));
        loss.add(2, (1.0, 0.25));
        let loss = loss.scale(2.0);
        assert_eq!(loss.value, 12.0);
        let y = x.sqr().unwrap();
        let gradients = loss.attach(&y).unwrap().backward().unwrap();
        let found = gradients.get(&x).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(found, [[0.0, 0.0], [9.0, 0.0]]);
    }
}
