//! Equation (6): the two views' terms.

use candle_core::Tensor;
use pirl_core::check;

use crate::LossError;

/// The weights of the two views' terms, lambda and 1 - lambda (arXiv:1912.01991, equation 6).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ViewWeights {
    /// Of the transformed view's term.
    pub transformed: f64,
    /// Of the image's own.
    pub image: f64,
}

impl ViewWeights {
    /// `lambda` in `[0, 1]` weighs the transformed view; the paper's is 0.5, and 0 is NPID.
    ///
    /// # Errors
    /// [`LossError::Setting`] if `lambda` is not in `[0, 1]`.
    pub fn new(lambda: f64) -> Result<Self, LossError> {
        let fits = (0.0..=1.0).contains(&lambda);
        check("lambda", lambda, fits, "must lie in [0, 1]")?;
        Ok(Self {
            transformed: lambda,
            image: 1.0 - lambda,
        })
    }
}

/// `lambda * patch_term + (1 - lambda) * image_term`, equation (6).
///
/// The terms are tensors of one shape, as
/// [`ContrastiveLoss::forward`](crate::ContrastiveLoss::forward) returns them. To differentiate the
/// terms one after the other, weigh them by [`ViewWeights`] instead.
///
/// # Errors
/// [`LossError::Setting`] as [`ViewWeights::new`]; [`LossError::Candle`] if the terms' shapes or types differ.
pub fn total_loss(
    lambda: f64,
    patch_term: &Tensor,
    image_term: &Tensor,
) -> Result<Tensor, LossError> {
    let weights = ViewWeights::new(lambda)?;
    Ok(((patch_term * weights.transformed)? + (image_term * weights.image)?)?)
}
