//! Convolution and max-pooling of channels-last tensors outside Candle's graph, and their gradients: by this
//! crate's ops on a CUDA device, elsewhere by Candle's.
//!
//! Maps are `(n, h, w, c)`, weights `(c_out, k, k, c_in)`, both of one type and contiguous.

#[cfg(feature = "cuda")]
use super::candle::MaxPool;
#[cfg(feature = "cudnn")]
use super::candle::{Convolution, Way};
use super::conv2d::ConvShape;
#[cfg(feature = "cudnn")]
use super::conv2d::{Winograd, cudnn};
use super::pool::PoolShape;
#[cfg(feature = "cuda")]
use super::pool::cuda;
use super::reference;
use candle_core::{DType, Result, Tensor, Var};

/// Convolution of `x` with `weight`: `(n, oh, ow, c_out)`. With `tf32` cuDNN may round factors to TF32's ten
/// binary places.
pub(crate) fn conv2d(s: &ConvShape, tf32: bool, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cudnn")]
    if x.device().is_cuda() {
        let way = Way {
            tf32,
            winograd: Winograd::Off,
        };
        return x.apply_op2_no_bwd(weight, &Convolution { shape: *s, way });
    }
    let _ = tf32;
    let out = reference::conv2d(&plain(x)?, &plain(weight)?, s.stride, s.padding)?;
    rounded(&out, x.dtype())
}

/// The gradient of [`conv2d`]'s input from `dy`, that of its result.
pub(crate) fn conv2d_input_gradient(
    s: &ConvShape,
    tf32: bool,
    weight: &Tensor,
    dy: &Tensor,
) -> Result<Tensor> {
    #[cfg(feature = "cudnn")]
    if dy.device().is_cuda() {
        return cudnn::backward_input(s, tf32, weight, dy);
    }
    let _ = tf32;
    // The gradient does not depend on the numbers of the input.
    let x = Tensor::zeros((s.n, s.c_in, s.h, s.w), DType::F32, dy.device())?;
    let weight = plain(weight)?;
    let dx = differentiate(&x, dy, |x| {
        reference::conv2d(x, &weight, s.stride, s.padding)
    })?;
    rounded(&dx, dy.dtype())
}

/// Writes the gradient of [`conv2d`]'s weight to `all`, `(len)`, from number `start` on.
pub(crate) fn conv2d_weight_gradient(
    s: &ConvShape,
    tf32: bool,
    x: &Tensor,
    dy: &Tensor,
    (all, start): (&Tensor, usize),
) -> Result<()> {
    #[cfg(feature = "cudnn")]
    if x.device().is_cuda() {
        let place = all.narrow(0, start, s.weight_len())?;
        return cudnn::backward_weight_into(s, tf32, x, dy, &place);
    }
    let _ = tf32;
    let x = plain(x)?;
    let shape = (s.c_out, s.c_in, s.kernel, s.kernel);
    let weight = Tensor::zeros(shape, DType::F32, x.device())?;
    let dw = differentiate(&weight, dy, |weight| {
        reference::conv2d(&x, weight, s.stride, s.padding)
    })?;
    all.slice_set(&rounded(&dw, dy.dtype())?.flatten_all()?, 0, start)
}

/// The maximum of `x` under each window.
pub(crate) fn max_pool(s: &PoolShape, x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return x.apply_op1_no_bwd(&MaxPool(*s));
    }
    let out = reference::max_pool2d(&plain(x)?, s.kernel, s.stride, s.padding)?;
    rounded(&out, x.dtype())
}

/// The gradient of [`max_pool`]'s input `x` from `dy`, that of its result.
pub(crate) fn max_pool_gradient(s: &PoolShape, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return cuda::max_backward(s, x, dy);
    }
    let dx = differentiate(&plain(x)?, dy, |x| {
        reference::max_pool2d(x, s.kernel, s.stride, s.padding)
    })?;
    rounded(&dx, dy.dtype())
}

/// As Candle's ops take it: NCHW and `f32`.
fn plain(x: &Tensor) -> Result<Tensor> {
    x.permute((0, 3, 1, 2))?.to_dtype(DType::F32)?.contiguous()
}

/// What Candle's ops made, as this module returns it.
fn rounded(out: &Tensor, dtype: DType) -> Result<Tensor> {
    out.permute((0, 2, 3, 1))?.to_dtype(dtype)?.contiguous()
}

/// The gradient of `of` from `dy`, that of what `op` makes of it, which is NHWC.
fn differentiate(
    of: &Tensor,
    dy: &Tensor,
    op: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let of = Var::from_tensor(of)?;
    let product = (op(of.as_tensor())? * plain(dy)?)?;
    let gradients = product.sum_all()?.backward()?;
    match gradients.get(of.as_tensor()) {
        Some(gradient) => Ok(gradient.clone()),
        None => of.as_tensor().zeros_like(),
    }
}
