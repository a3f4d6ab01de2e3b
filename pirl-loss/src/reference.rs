//! The losses from Candle's own differentiable operations: the oracle of the fused op's tests, and
//! what runs on devices and in types it does not cover.
//!
//! Memory grows with `B x N` (and `B x N x D` for per-image negatives, whose rows Candle keeps for
//! the backward pass). The arguments are checked as by
//! [`ContrastiveLoss::forward`](crate::ContrastiveLoss::forward), with the same errors, and the
//! results are the same scalars.

use candle_core::{D, DType, Tensor};

use crate::contrastive::NCE_EPS;
use crate::negatives::Sizes;
use crate::{LossError, Negatives};

/// Stands for minus infinity in a masked column: finite, so that no difference of two is NaN, and
/// its exponential is 0 in every type.
const MASKED: f64 = -1e30;

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
    let z_n = match negatives {
        Negatives::Shared { rows, own } => {
            let z = query.matmul(&rows.detach().t()?)?;
            mask(&z, own)?
        }
        Negatives::PerImage { bank, indices } => {
            let bank = bank.detach();
            let rows = indices
                .chunks(sizes.negatives)
                .enumerate()
                .map(|(image, indices)| {
                    let indices = Tensor::from_slice(indices, indices.len(), bank.device())?;
                    let rows = bank.index_select(&indices, 0)?;
                    query.narrow(0, image, 1)?.matmul(&rows.t()?)
                });
            Tensor::cat(&rows.collect::<candle_core::Result<Vec<_>>>()?, 0)?
        }
    };
    Ok((z_p, z_n, sizes))
}

/// `z` `(B, N)` with each image's own column, if it was drawn, masked.
fn mask(z: &Tensor, own: &[Option<u32>]) -> candle_core::Result<Tensor> {
    let (batch, columns) = z.dims2()?;
    let places = own.iter().enumerate();
    let places: Vec<i64> = places
        .filter_map(|(image, column)| Some((image * columns) as i64 + i64::from((*column)?)))
        .collect();
    if places.is_empty() {
        return Ok(z.clone());
    }
    let count = places.len();
    let masks = Tensor::full(MASKED as f32, count, z.device())?.to_dtype(z.dtype())?;
    let places = Tensor::from_vec(places, count, z.device())?;
    // z is bounded, so that adding drowns it: its gradient there is then 0 by the formulas.
    let z = z.flatten_all()?.index_add(&places, &masks, 0)?;
    z.reshape((batch, columns))
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
