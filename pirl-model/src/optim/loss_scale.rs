//! Keeping gradients within the range of half precision.

use serde::{Deserialize, Serialize};

/// Good steps in a row before the scale is doubled.
const PATIENCE: u32 = 2000;
const FIRST: f64 = 65_536.0; // 2^16
const LEAST: f64 = 1.0;
const GREATEST: f64 = 16_777_216.0; // 2^24

/// The number by which a loss is multiplied before it is differentiated, and its gradients divided
/// before they are used, so that fewer of them vanish in half precision.
///
/// As in PyTorch's `GradScaler` (Micikevicius et al., arXiv:1710.03740, section 3.2) it begins at
/// 65,536, is halved at each step that has a gradient which is not finite and is therefore left out,
/// and is doubled after 2,000 other steps in a row. It stays from 1 to 2^24. Powers of two change no
/// digit of a gradient.
///
/// ```
/// use pirl_model::LossScale;
///
/// let mut scale = LossScale::default();
/// scale.update(false);
/// assert_eq!((scale.value(), scale.skipped()), (32_768.0, 1));
/// for _ in 0..2_000 {
///     scale.update(true);
/// }
/// assert_eq!((scale.value(), scale.skipped()), (65_536.0, 1));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossScale {
    value: f64,
    good_steps: u32,
    skipped: u64,
}

impl Default for LossScale {
    fn default() -> Self {
        Self {
            value: FIRST,
            good_steps: 0,
            skipped: 0,
        }
    }
}

impl LossScale {
    /// The factor of the next loss.
    pub fn value(&self) -> f64 {
        self.value
    }

    /// Steps left out so far.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Updates the scale after a step; `finite`: whether all its gradients were finite, as
    /// [`Optimizer::unscale`] says.
    ///
    /// [`Optimizer::unscale`]: crate::Optimizer::unscale
    pub fn update(&mut self, finite: bool) {
        if !finite {
            self.value = (self.value / 2.0).max(LEAST);
            self.good_steps = 0;
            self.skipped += 1;
            return;
        }
        self.good_steps += 1;
        if self.good_steps == PATIENCE {
            self.value = (self.value * 2.0).min(GREATEST);
            self.good_steps = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_in_its_range_and_forgets_what_was_good_before_a_bad_step() {
        let mut scale = LossScale::default();
        for _ in 0..40 {
            scale.update(false);
        }
        assert_eq!((scale.value(), scale.skipped()), (1.0, 40));
        for _ in 0..1_999 {
            scale.update(true);
        }
        scale.update(false);
        for _ in 0..1_999 {
            scale.update(true);
        }
        assert_eq!(scale.value(), 1.0);
        scale.update(true);
        assert_eq!(scale.value(), 2.0);
        for _ in 0..2_000 * 40 {
            scale.update(true);
        }
        assert_eq!(scale.value(), 2f64.powi(24));
    }
}
