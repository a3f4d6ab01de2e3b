//! Cross-entropy: the loss of the covariant baselines, which predict the transformation (equation 2), and
//! of training with labels.

use candle_core::{D, Tensor};

use crate::LossError;

/// Mean cross-entropy, in nats, of `targets` under `logits` `(B, K)`: the class of each image, or the
/// index of the permutation or of the rotation that was applied to it.
///
/// # Errors
/// [`LossError::Shape`] if `logits` is not a matrix or `targets` are not `B`,
/// [`LossError::EmptyBatch`], [`LossError::Index`] for a target that is not below `K`.
pub fn cross_entropy(logits: &Tensor, targets: &[u32]) -> Result<Tensor, LossError> {
    let (batch, classes) = logits.dims2().map_err(|_| LossError::Shape {
        what: "logits",
        expected: "(B, K)".to_owned(),
        found: format!("{:?}", logits.dims()),
    })?;
    if batch == 0 {
        return Err(LossError::EmptyBatch);
    }
    if targets.len() != batch {
        return Err(LossError::Shape {
            what: "targets",
            expected: format!("{batch}, one an image"),
            found: targets.len().to_string(),
        });
    }
    if let Some(position) = targets
        .iter()
        .position(|&target| target as usize >= classes)
    {
        let (what, index) = ("targets", targets[position]);
        return Err(LossError::Index {
            what,
            index,
            position,
            limit: classes,
        });
    }
    let targets = Tensor::from_slice(targets, (batch, 1), logits.device())?;
    let shifted = logits.broadcast_sub(&logits.detach().max_keepdim(D::Minus1)?)?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let chosen = shifted.contiguous()?.gather(&targets, 1)?;
    Ok((log_sum - chosen)?.mean_all()?)
}
