//! The losses from Candle's own differentiable operations: what tests compare the fused ops with, and
//! what runs on the devices and in the types that these do not cover.
//!
//! Memory grows with `B x N` (and `B x N x D` for per-image negatives, whose rows Candle keeps for
//! the backward pass). The arguments are checked as by
//! [`ContrastiveLoss::forward`](crate::ContrastiveLoss::forward), with the same errors, and the
//! results are the same scalars.

use candle_core::{D, DType, Tensor};

use crate::kind::NCE_EPS;
use crate::negatives::Sizes;
use crate::{LossError, Negatives};

/// The value and gradient of [`Paper`](crate::Paper).
///
/// # Errors
/// Those of [`ContrastiveLoss::forward`](crate::ContrastiveLoss::forward).
pub fn paper(
    query: &Tensor,
    positive: &Tensor,
    negatives: &Negatives,
    temperature: f64,
) -> Result<Tensor, LossError> {
    let (z_p, z_n, _) = scores(query, positive, negatives, temperature)?;
    let log_s = log_sum_exp(&z_n)?;
    let attraction = softplus(&(&log_s - z_p)?)?;
    let repulsion = softplus(&z_n.broadcast_sub(&log_s)?)?.sum_keepdim(D::Minus1)?;
    Ok((attraction + repulsion)?.mean_all()?)
}

/// The value and gradient of [`Nce`](crate::Nce) with the natural logarithm `log_z` of its
/// constant given.
///
/// # Errors
/// Those of [`ContrastiveLoss::forward`](crate::ContrastiveLoss::forward).
pub fn nce(
    query: &Tensor,
    positive: &Tensor,
    negatives: &Negatives,
    temperature: f64,
    dataset_size: usize,
    log_z: f64,
) -> Result<Tensor, LossError> {
    let (z_p, z_n, sizes) = scores(query, positive, negatives, temperature)?;
    let noise: Vec<f64> = (0..sizes.batch)
        .map(|image| negatives.valid(sizes, image) as f64 / dataset_size as f64)
        .collect();
    let column = |values: Vec<f64>| {
        Tensor::from_vec(values, (sizes.batch, 1), query.device())?.to_dtype(query.dtype())
    };
    let threshold = column(noise.iter().map(|c| log_z + (c + NCE_EPS).ln()).collect())?;
    // ln((c + eps) / c), once for each negative.
    let constant = noise
        .iter()
        .enumerate()
        .map(|(image, c)| negatives.valid(sizes, image) as f64 * (NCE_EPS / c).ln_1p());
    let constant = column(constant.collect())?;
    let attraction = softplus(&(&threshold - z_p)?)?;
    let repulsion = softplus(&z_n.broadcast_sub(&threshold)?)?.sum_keepdim(D::Minus1)?;
    Ok(((attraction + repulsion)? + constant)?.mean_all()?)
}

/// The value and gradient of [`InfoNce`](crate::InfoNce).
///
/// # Errors
/// Those of [`ContrastiveLoss::forward`](crate::ContrastiveLoss::forward).
pub fn info_nce(
    query: &Tensor,
    positive: &Tensor,
    negatives: &Negatives,
    temperature: f64,
) -> Result<Tensor, LossError> {
    let (z_p, z_n, _) = scores(query, positive, negatives, temperature)?;
    Ok(softplus(&(log_sum_exp(&z_n)? - z_p)?)?.mean_all()?)
}

/// The natural logarithm of the mean of `exp(z)` over the positives and the negatives of a batch,
/// from which [`Nce`](crate::Nce) fixes its constant.
///
/// # Errors
/// Those of [`ContrastiveLoss::forward`](crate::ContrastiveLoss::forward).
pub fn log_mean_exp(
    query: &Tensor,
    positive: &Tensor,
    negatives: &Negatives,
    temperature: f64,
) -> Result<f64, LossError> {
    let (z_p, z_n, sizes) = scores(&query.detach(), positive, negatives, temperature)?;
    let all = Tensor::cat(&[z_p, z_n], 1)?
        .to_dtype(DType::F64)?
        .flatten_all()?
        .unsqueeze(0)?;
    let count: usize = (0..sizes.batch)
        .map(|image| 1 + negatives.valid(sizes, image))
        .sum();
    let log_sum = log_sum_exp(&all)?.flatten_all()?.to_vec1::<f64>()?;
    Ok(log_sum.first().copied().unwrap_or(f64::NAN) - (count as f64).ln())
}

/// `s / temperature` with the positive `(B, 1)` and the negatives `(B, N)`, own columns masked.
fn scores(
    query: &Tensor,
    positive: &Tensor,
    negatives: &Negatives,
    temperature: f64,
) -> Result<(Tensor, Tensor, Sizes), LossError> {
    let sizes = negatives.check(query, positive)?;
    let query = (query / temperature)?;
    let z_p = (&query * positive.detach())?.sum_keepdim(D::Minus1)?;
    let z_n = negatives.scores_of(&query, sizes)?;
    Ok((z_p, z_n, sizes))
}

/// `ln(1 + exp(x))`, exact at either end.
fn softplus(x: &Tensor) -> candle_core::Result<Tensor> {
    x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?
}

/// Over the last dimension, which is kept.
fn log_sum_exp(x: &Tensor) -> candle_core::Result<Tensor> {
    let max = x.detach().max_keepdim(D::Minus1)?;
    x.broadcast_sub(&max)?
        .exp()?
        .sum_keepdim(D::Minus1)?
        .log()?
        .broadcast_add(&max)
}
