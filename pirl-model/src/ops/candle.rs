//! The fast ops as differentiable functions on Candle tensors.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, D, DType, Device, Layout, Result, Shape, Tensor, bail,
};
use pirl_core::storage::{slice, with_slice};

#[cfg(feature = "cuda")]
use super::batch_norm::{self, cuda::BatchNorm};
use super::conv2d::{self as kernels, ConvShape, Winograd};
use super::pool::{self, PoolShape};
use super::reference;

/// Convolution (cross-correlation) of `x` with `weight`, differentiable in both.
///
/// # Shapes
/// `x`: `(n, c_in, h, w)`, `weight`: `(c_out, c_in, k, k)`; returns `(n, c_out, oh, ow)` with
/// `oh = (h + 2 padding - k) / stride + 1`, rounded down. The result is a view of channels-last
/// memory, and an `x` that is such a view too is read without a copy.
///
/// Runs on a CPU in `f32`, by Winograd's way where that is faster ([`Winograd::Auto`]; [`conv2d_direct`]
/// never does), and with the feature `cudnn` on a CUDA device in `f32`, `bf16` or `f16`;
/// elsewhere [`reference::conv2d`] does.
///
/// # Errors
/// If the shapes do not fit, the kernel is not square or larger than the padded input, or the
/// stride is 0.
pub fn conv2d(x: &Tensor, weight: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    convolve(x, weight, stride, padding, Winograd::Auto)
}

/// [`conv2d()`] never by Winograd's way.
///
/// # Errors
/// As [`conv2d()`].
pub fn conv2d_direct(x: &Tensor, weight: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    convolve(x, weight, stride, padding, Winograd::Off)
}

fn convolve(
    x: &Tensor,
    weight: &Tensor,
    stride: usize,
    padding: usize,
    winograd: Winograd,
) -> Result<Tensor> {
    let (_, c_in, h, w) = x.dims4()?;
    let (_, weight_c_in, kernel, kernel_w) = weight.dims4()?;
    if kernel != kernel_w || kernel == 0 || stride == 0 {
        bail!(
            "conv2d needs a square kernel and a stride of at least 1, got {kernel}x{kernel_w} and {stride}"
        );
    }
    if c_in != weight_c_in {
        bail!("conv2d of {c_in} channels with a weight for {weight_c_in}");
    }
    if kernel > h + 2 * padding || kernel > w + 2 * padding {
        bail!("a {kernel}x{kernel} kernel does not fit into {h}x{w} padded by {padding}");
    }
    let fast = runs_fast(x, cfg!(feature = "cudnn")) && x.dtype() == weight.dtype();
    if !fast || (x.device().is_cuda() && x.elem_count() == 0) {
        return reference::conv2d(x, weight, stride, padding);
    }
    let (x, weight) = (channels_last(x)?, weight.permute((0, 2, 3, 1))?);
    let way = Way {
        tf32: false,
        winograd,
    };
    channels_second(&convolve_nhwc(&x, &weight, stride, padding, way)?)
}

/// [`conv2d()`] of `x` `(n, h, w, c_in)`, to `(n, oh, ow, c_out)`; `weight`: `(c_out, k, k, c_in)`. For
/// networks whose maps stay in this layout: to Candle a change of layout has a gradient like any op. With
/// `tf32` cuDNN may round factors to TF32's ten binary places.
pub(crate) fn conv2d_nhwc(
    x: &Tensor,
    weight: &Tensor,
    stride: usize,
    padding: usize,
    tf32: bool,
) -> Result<Tensor> {
    let runs = runs_fast(x, cfg!(feature = "cudnn")) && x.dtype() == weight.dtype();
    if runs && x.elem_count() > 0 {
        let way = Way {
            tf32,
            winograd: Winograd::Auto,
        };
        return convolve_nhwc(x, weight, stride, padding, way);
    }
    let (x, weight) = (channels_second(x)?, channels_second(weight)?);
    channels_last(&reference::conv2d(
        &x,
        &weight.contiguous()?,
        stride,
        padding,
    )?)
}

/// By an op of this crate, which there is for `x`.
fn convolve_nhwc(
    x: &Tensor,
    weight: &Tensor,
    stride: usize,
    padding: usize,
    way: Way,
) -> Result<Tensor> {
    let ((n, h, w, c_in), (c_out, kernel, ..)) = (x.dims4()?, weight.dims4()?);
    let shape = ConvShape {
        n,
        h,
        w,
        c_in,
        c_out,
        kernel,
        stride,
        padding,
    };
    // cuDNN wants weights with their channels last, too, and the kernels for CPUs do not.
    let weight = match weight.device() {
        Device::Cuda(_) => weight.contiguous()?,
        _ => channels_second(weight)?.contiguous()?,
    };
    x.contiguous()?
        .apply_op2(&weight, Convolution { shape, way })
}

/// Max-pooling of `x` with minus infinity beyond its borders, differentiable.
///
/// # Shapes
/// `x`: `(n, c, h, w)`; returns `(n, c, oh, ow)`, sized and laid out as by [`conv2d()`]. Of equal
/// maxima the first in row order receives the gradient; a NaN under a window is its maximum.
///
/// Runs on a CPU in `f32`, and with the feature `cuda` on a CUDA device in `f32`, `bf16` or `f16`;
/// elsewhere [`reference::max_pool2d`] does.
///
/// # Errors
/// If the window or stride is 0, the window does not fit into the padded input, or the padding
/// exceeds half the window.
pub fn max_pool2d(x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    if kernel == 0 || stride == 0 || 2 * padding > kernel {
        bail!(
            "max-pool needs a window and stride of at least 1 and a padding of at most half the window, got {kernel}, {stride}, {padding}"
        );
    }
    if h == 0 || w == 0 || kernel > h + 2 * padding || kernel > w + 2 * padding {
        bail!("a {kernel}x{kernel} window does not fit into {h}x{w} padded by {padding}");
    }
    if h * w > u32::MAX as usize {
        bail!("max-pool indexes pixels by 32 bits, an image of {h}x{w} has too many");
    }
    if !runs_fast(x, cfg!(feature = "cuda")) || (x.device().is_cuda() && x.elem_count() == 0) {
        return reference::max_pool2d(x, kernel, stride, padding);
    }
    let shape = PoolShape {
        n,
        h,
        w,
        c,
        kernel,
        stride,
        padding,
    };
    channels_last(x)?
        .apply_op1(MaxPool(shape))?
        .permute((0, 3, 1, 2))
}

/// The max-pooling of a network, 3x3 with stride 2 and padding 1, of `x` `(n, h, w, c)`.
pub(crate) fn max_pool_nhwc(x: &Tensor) -> Result<Tensor> {
    let (n, h, w, c) = x.dims4()?;
    if !runs_fast(x, cfg!(feature = "cuda")) || x.elem_count() == 0 {
        return channels_last(&max_pool2d(&channels_second(x)?, 3, 2, 1)?);
    }
    let shape = PoolShape {
        n,
        h,
        w,
        c,
        kernel: 3,
        stride: 2,
        padding: 1,
    };
    x.contiguous()?.apply_op1(MaxPool(shape))
}

/// Batch norm of `x` by the batch's own statistics, then the residual, then ReLU; differentiable in
/// `x`, `gamma`, `beta` and the residual.
///
/// # Shapes
/// As [`reference::batch_norm_train`], with the same results; mean and variance carry no gradient.
/// The output is a view of channels-last memory, and an `x` that is such a view is read without a
/// copy.
///
/// With the feature `cuda` runs on a CUDA device in `f32`, `bf16` or `f16` (`gamma`, `beta` and the
/// statistics are `f32`); elsewhere [`reference::batch_norm_train`] does.
///
/// # Errors
/// If the shapes do not fit each other.
pub fn batch_norm_train(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f64,
    residual: Option<&Tensor>,
    relu: bool,
) -> Result<(Tensor, Tensor, Tensor)> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() && runs_fast(x, true) && x.elem_count() > 0 {
        let (x, residual) = (channels_last(x)?, residual.map(channels_last).transpose()?);
        let affine = Tensor::cat(&[gamma, beta], 0)?;
        let (out, both) = batch_norm_nhwc(&x, &affine, None, eps, residual.as_ref(), relu)?;
        let c = both.elem_count() / 2;
        let (mean, var) = (both.narrow(0, 0, c)?, both.narrow(0, c, c)?);
        return Ok((channels_second(&out)?, mean, var));
    }
    reference::batch_norm_train(x, gamma, beta, eps, residual, relu)
}

/// Batch norm of `x` by given statistics, then the residual, then ReLU; differentiable in `x`,
/// `gamma`, `beta` and the residual.
///
/// # Shapes
/// As [`reference::batch_norm_eval`]; where it runs, and the layout, as [`batch_norm_train`].
///
/// # Errors
/// If the shapes do not fit each other.
#[expect(clippy::too_many_arguments, reason = "the twin of the reference")]
pub fn batch_norm_eval(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    mean: &Tensor,
    var: &Tensor,
    eps: f64,
    residual: Option<&Tensor>,
    relu: bool,
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() && runs_fast(x, true) && x.elem_count() > 0 {
        let (x, residual) = (channels_last(x)?, residual.map(channels_last).transpose()?);
        let affine = Tensor::cat(&[gamma, beta], 0)?;
        let given = Some((mean, var));
        let (out, _) = batch_norm_nhwc(&x, &affine, given, eps, residual.as_ref(), relu)?;
        return channels_second(&out);
    }
    reference::batch_norm_eval(x, gamma, beta, mean, var, eps, residual, relu)
}

/// Batch norm of `x` `(n, h, w, c)` by the `given` mean and variance, or without any by the batch's own, then
/// the residual, then ReLU; `affine`: gamma, then beta, `(2 c)`. Returns the output, and of the batch's own
/// statistics the mean, then the biased variance, `(2 c)`, which carry no gradient.
pub(crate) fn batch_norm_nhwc(
    x: &Tensor,
    affine: &Tensor,
    given: Option<(&Tensor, &Tensor)>,
    eps: f64,
    residual: Option<&Tensor>,
    relu: bool,
) -> Result<(Tensor, Tensor)> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() && runs_fast(x, true) && x.elem_count() > 0 {
        let x = x.contiguous()?;
        let c = x.dim(D::Minus1)?;
        let (statistics, mean, inv_std) = match given {
            None => {
                let all = batch_norm::cuda::statistics(&x, eps as f32)?;
                let (mean, inv_std) = (all.narrow(0, 0, c)?, all.narrow(0, 2 * c, c)?);
                (all.narrow(0, 0, 2 * c)?, mean, inv_std)
            }
            Some((mean, var)) => {
                let inv_std = (var.detach() + eps)?.sqrt()?.recip()?;
                (mean.detach(), mean.detach(), inv_std)
            }
        };
        let op = BatchNorm {
            mean,
            inv_std,
            of_batch: given.is_none(),
            relu,
        };
        let out = match residual {
            Some(residual) => x.apply_op3(affine, &residual.contiguous()?, op)?,
            None => x.apply_op2(affine, op)?,
        };
        return Ok((out, statistics));
    }
    let c = x.dim(D::Minus1)?;
    let (gamma, beta) = (affine.narrow(0, 0, c)?, affine.narrow(0, c, c)?);
    let residual = residual.map(channels_second).transpose()?;
    let (x, residual) = (channels_second(x)?, residual.as_ref());
    let (out, statistics) = match given {
        None => {
            let (out, mean, var) =
                reference::batch_norm_train(&x, &gamma, &beta, eps, residual, relu)?;
            (out, Tensor::cat(&[mean, var], 0)?)
        }
        Some((mean, var)) => {
            let out =
                reference::batch_norm_eval(&x, &gamma, &beta, mean, var, eps, residual, relu)?;
            (out, mean.clone())
        }
    };
    Ok((channels_last(&out)?, statistics))
}

/// Whether an op of this crate can run on `x`; `on_cuda`: whether there is one for CUDA devices.
fn runs_fast(x: &Tensor, on_cuda: bool) -> bool {
    match x.device() {
        Device::Cpu => x.dtype() == DType::F32,
        Device::Cuda(_) => on_cuda && matches!(x.dtype(), DType::F32 | DType::BF16 | DType::F16),
        Device::Metal(_) => false,
    }
}

fn channels_last(x: &Tensor) -> Result<Tensor> {
    x.permute((0, 2, 3, 1))?.contiguous()
}

fn channels_second(x: &Tensor) -> Result<Tensor> {
    x.permute((0, 3, 1, 2))
}

/// NHWC input and output; on a CPU PyTorch's weight, on a CUDA device with its channels last.
struct Convolution {
    shape: ConvShape,
    way: Way,
}

/// How a convolution may be computed.
#[derive(Clone, Copy)]
struct Way {
    #[cfg_attr(not(feature = "cudnn"), expect(dead_code, reason = "of cuDNN alone"))]
    tf32: bool,
    /// On a CPU.
    winograd: Winograd,
}

impl CustomOp2 for Convolution {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let s = &self.shape;
        let mut out = vec![0f32; s.out_len()];
        kernels::forward(
            s,
            self.way.winograd,
            slice(x, x_layout)?,
            slice(weight, weight_layout)?,
            &mut out,
        );
        let (oh, ow) = s.out_hw();
        Ok((CpuStorage::F32(out), (s.n, oh, ow, s.c_out).into()))
    }

    #[cfg(feature = "cudnn")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let s = &self.shape;
        let out =
            kernels::cudnn::forward(s, self.way.tf32, (x, x_layout), (weight, weight_layout))?;
        let (oh, ow) = s.out_hw();
        Ok((out, (s.n, oh, ow, s.c_out).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _out: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let s = &self.shape;
        #[cfg(feature = "cudnn")]
        if x.device().is_cuda() {
            use kernels::cudnn::{backward_input, backward_weight};
            let wanted = |of: &Tensor, gradient: fn(_, _, _, _, _) -> _| {
                of.track_op()
                    .then(|| gradient(s, self.way.tf32, x, weight, dy))
                    .transpose()
            };
            return Ok((wanted(x, backward_input)?, wanted(weight, backward_weight)?));
        }
        let winograd = self.way.winograd;
        let gradient = |of: &Tensor, compute: &dyn Fn(&mut [f32]) -> Result<()>| {
            if !of.track_op() {
                return Ok(None);
            }
            let mut d = vec![0f32; of.elem_count()];
            compute(&mut d)?;
            Tensor::from_vec(d, of.shape(), of.device()).map(Some)
        };
        Ok((
            gradient(x, &|dx| {
                with_slice(weight, |weight| {
                    with_slice(dy, |dy| {
                        kernels::backward_input(s, winograd, weight, dy, dx)
                    })
                })?
            })?,
            gradient(weight, &|dw| {
                with_slice(x, |x: &[f32]| {
                    with_slice(dy, |dy| kernels::backward_weight(s, winograd, x, dy, dw))
                })?
            })?,
        ))
    }
}

/// NHWC input and output.
struct MaxPool(PoolShape);

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max_pool2d"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let s = &self.0;
        let mut out = vec![0f32; s.out_len()];
        pool::max_forward(s, slice(x, layout)?, &mut out, None);
        let (oh, ow) = s.out_hw();
        Ok((CpuStorage::F32(out), (s.n, oh, ow, s.c).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let s = &self.0;
        let (oh, ow) = s.out_hw();
        let out = pool::cuda::max_forward(s, x, layout)?;
        Ok((out, (s.n, oh, ow, s.c).into()))
    }

    /// Finds the winners again: cheaper than keeping them beside every forward pass.
    fn bwd(&self, x: &Tensor, _out: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let s = &self.0;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return pool::cuda::max_backward(s, x, dy).map(Some);
        }
        let mut dx = vec![0f32; s.in_len()];
        with_slice(x, |x| {
            with_slice(dy, |dy| {
                let (mut out, mut argmax) = (vec![0f32; s.out_len()], vec![0u32; s.out_len()]);
                pool::max_forward(s, x, &mut out, Some(&mut argmax));
                pool::max_backward(s, &argmax, dy, &mut dx);
            })
        })??;
        Tensor::from_vec(dx, x.shape(), x.device()).map(Some)
    }
}
