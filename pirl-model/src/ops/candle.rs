//! The fast ops as differentiable functions on Candle tensors.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, DType, Device, Layout, Result, Shape, Tensor, bail,
};
use pirl_core::storage::{slice, with_slice};

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
    let (n, c_in, h, w) = x.dims4()?;
    let (c_out, weight_c_in, kernel, kernel_w) = weight.dims4()?;
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
        Device::Cuda(_) => channels_last(weight)?,
        _ => weight.contiguous()?,
    };
    let way = Way {
        tf32: false,
        winograd,
    };
    channels_last(x)?
        .apply_op2(&weight, Convolution { shape, way })?
        .permute((0, 3, 1, 2))
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

/// NHWC input and output; on a CPU PyTorch's weight, on a CUDA device with its channels last.
pub(super) struct Convolution {
    pub(super) shape: ConvShape,
    pub(super) way: Way,
}

/// How a convolution may be computed.
#[derive(Clone, Copy)]
pub(super) struct Way {
    #[cfg_attr(not(feature = "cudnn"), expect(dead_code, reason = "of cuDNN alone"))]
    pub(super) tf32: bool,
    /// On a CPU.
    pub(super) winograd: Winograd,
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
            let tf32 = self.way.tf32;
            let dx = x.track_op().then(|| backward_input(s, tf32, weight, dy));
            let dw = weight.track_op().then(|| backward_weight(s, tf32, x, dy));
            return Ok((dx.transpose()?, dw.transpose()?));
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
pub(super) struct MaxPool(pub(super) PoolShape);

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
