//! The step of SGD with momentum on a CUDA device, in one launch of the kernel of `sgd.cu`.

use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::{LaunchConfig, PushKernelArg};
use candle_core::{DType, Result, Tensor, bail};

use crate::cuda::{self, Kernels};

static KERNELS: Kernels = Kernels::new("sgd", include_str!("sgd.cu"));

/// Threads of a block, and blocks at most.
const THREADS: u32 = 256;
const GRID: usize = 4096;

/// What a step is made of beside parameters and momentum.
pub(super) struct Step<'a> {
    pub(super) gradient: &'a Tensor,
    /// Weight decay of each entry.
    pub(super) decay: &'a Tensor,
    /// Factor of each entry's step.
    pub(super) scale: &'a Tensor,
    pub(super) momentum: f32,
    pub(super) nesterov: bool,
    pub(super) lr: f32,
}

/// Moves `momentum` and `values`; all tensors are contiguous, `f32`, and as long.
pub(super) fn step(values: &Tensor, momentum: &Tensor, step: &Step<'_>) -> Result<()> {
    let (gradient, gradient_layout) = step.gradient.storage_and_layout();
    let (decay, decay_layout) = step.decay.storage_and_layout();
    let (scale, scale_layout) = step.scale.storage_and_layout();
    let gradient = cuda::storage(&gradient)?;
    let device = &gradient.device;
    let gradient = cuda::numbers::<f32>(gradient, gradient_layout)?;
    let decay = cuda::numbers::<f32>(cuda::storage(&decay)?, decay_layout)?;
    let scale = cuda::numbers::<f32>(cuda::storage(&scale)?, scale_layout)?;
    cuda::write::<f32, _>(values, |mut values| {
        cuda::write::<f32, _>(momentum, |mut momenta| {
            let len = values.len();
            if [momenta.len(), gradient.len(), decay.len(), scale.len()] != [len; 4] {
                bail!("a step of {len} parameters with a gradient or momentum of another size");
            }
            let numbers = len as i64;
            let nesterov = i32::from(step.nesterov);
            let kernel = KERNELS.get(device, "sgd_step", DType::F32)?;
            let mut launch = kernel.launch();
            launch
                .arg(&mut values)
                .arg(&mut momenta)
                .arg(&gradient)
                .arg(&decay)
                .arg(&scale);
            launch
                .arg(&numbers)
                .arg(&step.momentum)
                .arg(&nesterov)
                .arg(&step.lr);
            let config = LaunchConfig {
                grid_dim: (len.div_ceil(THREADS as usize).clamp(1, GRID) as u32, 1, 1),
                block_dim: (THREADS, 1, 1),
                shared_mem_bytes: 0,
            };
            // SAFETY: all have as many numbers as the kernel is told, as checked.
            unsafe { launch.launch(config) }.w()?;
            Ok(())
        })
    })
}
