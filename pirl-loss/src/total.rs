//! Equation (6): the two views' terms.

use candle_core::Tensor;

use crate::LossError;

/// `lambda * patch_term + (1 - lambda) * image_term` (arXiv:1912.01991, equation 6).
///
/// `lambda` in `[0, 1]` weighs the transformed view; the paper's is 0.5, and 0 is NPID. The terms
/// are tensors of one shape, as [`ContrastiveLoss::forward`](crate::ContrastiveLoss::forward)
/// returns them.
///
/// # Errors
/// [`LossError::Lambda`]; [`LossError::Candle`] if the terms' shapes or types differ.
pub fn total_loss(
    lambda: f64,
    patch_term: &Tensor,
    image_term: &Tensor,
) -> Result<Tensor, LossError> {
    if !(0.0..=1.0).contains(&lambda) {
        return Err(LossError::Lambda { value: lambda });
    }
    Ok(((patch_term * lambda)? + (image_term * (1.0 - lambda))?)?)
}
