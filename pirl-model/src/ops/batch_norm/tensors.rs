//! Batch norm of channels-last tensors outside Candle's graph, in the steps that the fast engine of GPUs takes:
//! by the kernels of `batch_norm.cu` on a CUDA device, elsewhere by Candle's ops.
//!
//! Maps are `(n, h, w, c)` or `(n, c)`, contiguous, of any type; numbers of channels are `f32`.

use candle_core::{D, DType, Result, Tensor};

#[cfg(feature = "cuda")]
use super::cuda;
use crate::ops::reference;

/// What maps are normalised by, `(c)` each.
#[derive(Clone, Debug)]
pub(crate) struct Scales {
    pub(crate) mean: Tensor,
    /// `1 / sqrt(var + eps)`.
    pub(crate) inv_std: Tensor,
}

/// The statistics of the rows of `x`. Mean, then biased variance, are written to `place`, `(2 c)`.
pub(crate) fn statistics(x: &Tensor, eps: f32, place: &Tensor) -> Result<Scales> {
    let c = x.dim(D::Minus1)?;
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return Ok(Scales {
            inv_std: cuda::statistics(x, eps, place)?,
            mean: place.narrow(0, 0, c)?,
        });
    }
    let x = rows(x)?;
    let mean = x.mean(0)?;
    let var = x.broadcast_sub(&mean)?.sqr()?.mean(0)?;
    place.slice_set(&mean, 0, 0)?;
    place.slice_set(&var, 0, c)?;
    let inv_std = (var + f64::from(eps))?.sqrt()?.recip()?;
    Ok(Scales { mean, inv_std })
}

/// `gamma (x - mean) inv_std + beta`, then `residual` added, then ReLU; `affine`: gamma, then beta, `(2 c)`.
pub(crate) fn apply(
    x: &Tensor,
    affine: &Tensor,
    by: &Scales,
    residual: Option<&Tensor>,
    relu: bool,
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return cuda::apply(x, affine, by, residual, relu);
    }
    let c = x.dim(D::Minus1)?;
    let (gamma, beta) = (affine.narrow(0, 0, c)?, affine.narrow(0, c, c)?);
    let scale = (gamma * &by.inv_std)?;
    let centred = rows(x)?.broadcast_sub(&by.mean)?;
    let mut out = centred.broadcast_mul(&scale)?.broadcast_add(&beta)?;
    if let Some(residual) = residual {
        out = (out + rows(residual)?)?;
    }
    if relu {
        out = reference::relu(&out)?;
    }
    out.reshape(x.shape())?.to_dtype(x.dtype())
}

/// What the backward pass of [`apply`] reads.
pub(crate) struct Applied<'a> {
    pub(crate) x: &'a Tensor,
    pub(crate) affine: &'a Tensor,
    pub(crate) by: &'a Scales,
    /// The output, if it was rectified.
    pub(crate) rectified: Option<&'a Tensor>,
    /// The gradient of the output.
    pub(crate) dy: &'a Tensor,
}

impl Applied<'_> {
    /// Writes the gradients of gamma, then of beta, to `place`, `(2 c)`: the sums over rows of `d xhat` and of
    /// `d`, where `d` is `dy` without the entries that the ReLU cut off.
    pub(crate) fn sums(&self, place: &Tensor) -> Result<()> {
        #[cfg(feature = "cuda")]
        if self.x.device().is_cuda() {
            return cuda::gradient_sums(self, place);
        }
        let c = self.x.dim(D::Minus1)?;
        let (d, centred) = (self.before_relu()?, self.centred()?);
        let product = ((&d * centred)?.sum(0)? * &self.by.inv_std)?;
        place.slice_set(&product, 0, 0)?;
        place.slice_set(&d.sum(0)?, 0, c)
    }

    /// The gradients of the input, and, if there was a residual, of that. With the `sums` of all rows the
    /// statistics are those of the batch, and depend on the input; without they are constants.
    pub(crate) fn input_gradient(
        &self,
        sums: Option<&Tensor>,
        residual: bool,
    ) -> Result<(Tensor, Option<Tensor>)> {
        #[cfg(feature = "cuda")]
        if self.x.device().is_cuda() {
            return cuda::input_gradient(self, sums, residual);
        }
        let c = self.x.dim(D::Minus1)?;
        let d = self.before_relu()?;
        let scale = (self.affine.narrow(0, 0, c)? * &self.by.inv_std)?;
        let mut inner = d.clone();
        if let Some(sums) = sums {
            let sums = (sums / d.dim(0)? as f64)?;
            let slope = (sums.narrow(0, 0, c)? * &self.by.inv_std)?;
            let of_mean = self.centred()?.broadcast_mul(&slope)?;
            inner = (d.broadcast_sub(&sums.narrow(0, c, c)?)? - of_mean)?;
        }
        let like_x = |d: Tensor| d.reshape(self.x.shape())?.to_dtype(self.x.dtype());
        let dx = like_x(inner.broadcast_mul(&scale)?)?;
        Ok((dx, residual.then(|| like_x(d)).transpose()?))
    }

    fn centred(&self) -> Result<Tensor> {
        rows(self.x)?.broadcast_sub(&self.by.mean)
    }

    fn before_relu(&self) -> Result<Tensor> {
        let dy = rows(self.dy)?;
        match self.rectified {
            Some(out) => reference::before_relu(&rows(out)?, &dy),
            None => Ok(dy),
        }
    }
}

/// `(rows, c)`, `f32`.
fn rows(x: &Tensor) -> Result<Tensor> {
    x.flatten_to(D::Minus2)?.to_dtype(DType::F32)
}
