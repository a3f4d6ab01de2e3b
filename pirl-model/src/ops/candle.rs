//! The fast ops as differentiable functions on Candle tensors.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Storage, Tensor, bail,
};

use super::conv2d::{self as kernels, ConvShape};
use super::pool::{self, PoolShape};
use super::reference;

/// Convolution (cross-correlation) of `x` with `weight`, differentiable in both.
///
/// # Shapes
/// `x`: `(n, c_in, h, w)`, `weight`: `(c_out, c_in, k, k)`; returns `(n, c_out, oh, ow)` with
/// `oh = (h + 2 padding - k) / stride + 1`, rounded down. The result is a view of channels-last
/// memory, and an `x` that is such a view too is read without a copy.
///
/// On a device other than a CPU, or in another type than `f32`, [`reference::conv2d`] runs.
///
/// # Errors
/// If the shapes do not fit, the kernel is not square or larger than the padded input, or the
/// stride is 0.
pub fn conv2d(x: &Tensor, weight: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
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
    if !runs_fast(x) || !runs_fast(weight) {
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
    channels_last(x)?
        .apply_op2(&weight.contiguous()?, Convolution(shape))?
        .permute((0, 3, 1, 2))
}

/// Max-pooling of `x` with minus infinity beyond its borders, differentiable.
///
/// # Shapes
/// `x`: `(n, c, h, w)`; returns `(n, c, oh, ow)`, sized and laid out as by [`conv2d()`]. Of equal
/// maxima the first in row order receives the gradient; a NaN under a window is its maximum.
///
/// On a device other than a CPU, or in another type than `f32`, [`reference::max_pool2d`] runs.
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
    if !runs_fast(x) {
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

fn runs_fast(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

fn channels_last(x: &Tensor) -> Result<Tensor> {
    x.permute((0, 2, 3, 1))?.contiguous()
}

/// The numbers of contiguous storage.
fn numbers<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a fast op needs contiguous tensors, got {layout:?}");
    };
    match storage.as_slice::<f32>()?.get(start..end) {
        Some(numbers) => Ok(numbers),
        None => bail!("a tensor spans {start}..{end}, beyond its storage"),
    }
}

/// Runs `f` on the numbers of a tensor in the CPU's memory.
fn with_numbers<T>(x: &Tensor, f: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(numbers(storage, layout)?)),
        _ => bail!("a fast op needs tensors in the CPU's memory"),
    }
}

/// NHWC input, PyTorch's weight, NHWC output.
struct Convolution(ConvShape);

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
        let s = &self.0;
        let mut out = vec![0f32; s.out_len()];
        kernels::forward(
            s,
            numbers(x, x_layout)?,
            numbers(weight, weight_layout)?,
            &mut out,
        );
        let (oh, ow) = s.out_hw();
        Ok((CpuStorage::F32(out), (s.n, oh, ow, s.c_out).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _out: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let s = &self.0;
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
                with_numbers(weight, |weight| {
                    with_numbers(dy, |dy| kernels::backward_input(s, weight, dy, dx))
                })?
            })?,
            gradient(weight, &|dw| {
                with_numbers(x, |x| {
                    with_numbers(dy, |dy| kernels::backward_weight(s, x, dy, dw))
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
        pool::max_forward(s, numbers(x, layout)?, &mut out, None);
        let (oh, ow) = s.out_hw();
        Ok((CpuStorage::F32(out), (s.n, oh, ow, s.c).into()))
    }

    /// Finds the winners again: cheaper than keeping them beside every forward pass.
    fn bwd(&self, x: &Tensor, _out: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let s = &self.0;
        let mut dx = vec![0f32; s.in_len()];
        with_numbers(x, |x| {
            with_numbers(dy, |dy| {
                let (mut out, mut argmax) = (vec![0f32; s.out_len()], vec![0u32; s.out_len()]);
                pool::max_forward(s, x, &mut out, Some(&mut argmax));
                pool::max_backward(s, &argmax, dy, &mut dx);
            })
        })??;
        Tensor::from_vec(dx, x.shape(), x.device()).map(Some)
    }
}
