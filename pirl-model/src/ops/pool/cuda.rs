//! Max-pooling on a CUDA device, by the kernels of `pool.cu`.

use candle_core::backend::BackendStorage;
use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::{CudaSlice, LaunchConfig, PushKernelArg};
use candle_core::{CudaStorage, Layout, Result, Tensor, bail};

use super::PoolShape;
use crate::cuda::{self, Kernels, Number, of_type};

static KERNELS: Kernels = Kernels::new("pool", include_str!("../pool.cu"));

/// Threads of a block.
const BLOCK: u32 = 256;
/// Blocks that share out the rows at most.
const GRID: usize = 32_768;

/// The maximum under each window of NHWC maps.
pub(in crate::ops) fn max_forward(
    s: &PoolShape,
    x: &CudaStorage,
    layout: &Layout,
) -> Result<CudaStorage> {
    of_type!("max-pool", x.dtype(), T => {
        let out = forward_of::<T>(s, x, layout, None)?;
        Ok(CudaStorage::wrap_cuda_slice(out, x.device.clone()))
    })
}

/// The gradient of NHWC maps `x` from that of [`max_forward`]'s result.
pub(in crate::ops) fn max_backward(s: &PoolShape, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    of_type!("max-pool", x.dtype(), T => backward_of::<T>(s, x, dy))
}

fn forward_of<T: Number>(
    s: &PoolShape,
    x: &CudaStorage,
    layout: &Layout,
    argmax: Option<&mut CudaSlice<u32>>,
) -> Result<CudaSlice<T>> {
    let device = &x.device;
    let x = cuda::numbers::<T>(x, layout)?;
    if x.len() != s.in_len() {
        bail!("max-pool of {} numbers, expected {}", x.len(), s.in_len());
    }
    let mut out = cuda::alloc::<T>(device, s.out_len())?;
    let (rows, width) = (s.n * s.out_hw().0, s.out_hw().1 * s.c);
    let sizes = sizes(s)?;
    let null = 0usize;
    let kernel = KERNELS.get(device, "max_pool_forward", T::DTYPE)?;
    let mut launch = kernel.launch();
    launch.arg(&x);
    for size in &sizes {
        launch.arg(size);
    }
    launch.arg(&mut out);
    match argmax {
        Some(argmax) => launch.arg(argmax),
        None => launch.arg(&null),
    };
    // SAFETY: input, output and argmax (or null) have the lengths that follow from the sizes; the
    // windows begin and end inside the input, as the padding is at most half a window.
    unsafe { launch.launch(grid(rows, width)) }.w()?;
    Ok(out)
}

/// Finds the winners again, as on a CPU.
fn backward_of<T: Number>(s: &PoolShape, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let dy = dy.contiguous()?;
    let shape = x.shape();
    let (x, x_layout) = x.storage_and_layout();
    let (dy, dy_layout) = dy.storage_and_layout();
    let x = cuda::storage(&x)?;
    let device = &x.device;
    let dy = cuda::numbers::<T>(cuda::storage(&dy)?, dy_layout)?;
    if dy.len() != s.out_len() {
        bail!(
            "max-pool's gradient has {} numbers, expected {}",
            dy.len(),
            s.out_len()
        );
    }
    let mut argmax = cuda::alloc::<u32>(device, s.out_len())?;
    forward_of::<T>(s, x, x_layout, Some(&mut argmax))?;
    let mut dx = cuda::alloc::<T>(device, s.in_len())?;
    let sizes = sizes(s)?;
    let kernel = KERNELS.get(device, "max_pool_backward", T::DTYPE)?;
    let mut launch = kernel.launch();
    launch.arg(&argmax).arg(&dy);
    for size in &sizes {
        launch.arg(size);
    }
    launch.arg(&mut dx);
    // SAFETY: winners and `dy` have the output's length, `dx` the input's.
    unsafe { launch.launch(grid(s.n * s.h, s.w * s.c)) }.w()?;
    Ok(cuda::tensor(dx, shape, device))
}

/// What both kernels are told, in their order.
fn sizes(s: &PoolShape) -> Result<[i32; 9]> {
    let (oh, ow) = s.out_hw();
    let mut sizes = [0; 9];
    let all = [s.n, s.h, s.w, s.c, s.kernel, s.stride, s.padding, oh, ow];
    for (to, from) in sizes.iter_mut().zip(all) {
        *to = cuda::int(from)?;
    }
    Ok(sizes)
}

fn grid(rows: usize, width: usize) -> LaunchConfig {
    LaunchConfig {
        grid_dim: ((width as u32).div_ceil(BLOCK), rows.min(GRID) as u32, 1),
        block_dim: (BLOCK, 1, 1),
        shared_mem_bytes: 0,
    }
}
