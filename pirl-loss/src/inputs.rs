//! What every loss computes from, checked.

use candle_core::Tensor;
use pirl_core::{SettingError, check};

use crate::negatives::Sizes;
use crate::{LossError, Negatives};

/// The arguments of a loss: their shapes, types and indices fit together.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    /// `(B, D)`.
    pub(crate) query: &'a Tensor,
    /// `(B, D)`.
    pub(crate) positive: &'a Tensor,
    pub(crate) negatives: &'a Negatives,
    pub(crate) sizes: Sizes,
    /// Tau.
    pub(crate) temperature: f64,
}

impl<'a> Inputs<'a> {
    pub(crate) fn new(
        query: &'a Tensor,
        positive: &'a Tensor,
        negatives: &'a Negatives,
        temperature: f64,
    ) -> Result<Self, LossError> {
        Ok(Self {
            query,
            positive,
            negatives,
            sizes: negatives.check(query, positive)?,
            temperature,
        })
    }

    /// Positives and negatives of the batch, those that are masked out not counted.
    pub(crate) fn count(&self) -> usize {
        (0..self.sizes.batch)
            .map(|image| 1 + self.negatives.valid(self.sizes, image))
            .sum()
    }
}

/// `value` as a temperature: positive and finite.
pub(crate) fn check_temperature(value: f64) -> Result<f64, SettingError> {
    let fits = value.is_finite() && value > 0.0;
    check("temperature", value, fits, "must be finite and positive")?;
    Ok(value)
}
