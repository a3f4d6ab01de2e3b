//! Batch norm on a CUDA device, by the kernels of `batch_norm.cu`.

use candle_core::backend::BackendStorage;
use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::{CudaView, LaunchConfig, PushKernelArg};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor, bail,
};

use crate::cuda::{self, Kernels, Number, of_type};

static KERNELS: Kernels = Kernels::new("batch_norm", include_str!("../batch_norm.cu"));

/// Threads of a block along channels and rows, as the kernels have them.
const BLOCK: (u32, u32, u32) = (32, 16, 1);
/// Parts that rows are summed in at most: with a few channels they fill a GPU, and adding them up
/// takes no time.
const SPLITS: usize = 128;
/// Rows that a thread has to sum for another part to pay.
const ROWS: usize = 8;
/// Blocks that share out the rows at most.
const GRID: usize = 4096;

/// Mean, biased variance and inverse deviation of each channel of NHWC maps `x`, one after the other, `(3 c)`
/// of `f32`.
pub(in crate::ops) fn statistics(x: &Tensor, eps: f32) -> Result<Tensor> {
    of_type!("batch norm", x.dtype(), T => statistics_of::<T>(x, eps))
}

fn statistics_of<T: Number>(x: &Tensor, eps: f32) -> Result<Tensor> {
    let sizes = Sizes::of(x.shape())?;
    let (storage, layout) = x.storage_and_layout();
    let storage = cuda::storage(&storage)?;
    let (device, x) = (&storage.device, cuda::numbers::<T>(storage, layout)?);
    let splits = sizes.splits();
    let mut means = cuda::alloc::<f32>(device, splits * sizes.channels)?;
    let mut squares = cuda::alloc::<f32>(device, splits * sizes.channels)?;
    let (rows, channels, parts) = (
        sizes.rows as i64,
        cuda::int(sizes.channels)?,
        cuda::int(splits)?,
    );

    let kernel = KERNELS.get(device, "batch_norm_moments", T::DTYPE)?;
    let mut launch = kernel.launch();
    launch
        .arg(&x)
        .arg(&rows)
        .arg(&channels)
        .arg(&mut means)
        .arg(&mut squares);
    // SAFETY: the kernel reads rows x channels numbers and writes splits x channels of each result,
    // which is what the buffers hold.
    unsafe { launch.launch(sizes.grid(splits)) }.w()?;

    let mut all = cuda::alloc::<f32>(device, 3 * sizes.channels)?;
    let (mut mean, mut others) = all.split_at_mut(sizes.channels);
    let (mut var, mut inv_std) = others.split_at_mut(sizes.channels);
    let kernel = KERNELS.get(device, "batch_norm_statistics", DType::F32)?;
    let mut launch = kernel.launch();
    launch
        .arg(&means)
        .arg(&squares)
        .arg(&rows)
        .arg(&channels)
        .arg(&parts)
        .arg(&eps);
    launch.arg(&mut mean).arg(&mut var).arg(&mut inv_std);
    // SAFETY: the kernel reads what the first wrote and writes a number a channel to each result.
    unsafe { launch.launch(LaunchConfig::for_num_elems(channels as u32)) }.w()?;
    Ok(cuda::tensor(all, 3 * sizes.channels, device))
}

/// A batch norm with the residual addition and ReLU after it: of NHWC maps `x` and, one after the
/// other in one `f32` tensor of `2 c` numbers, gamma and beta, and maybe a residual like `x`.
pub(in crate::ops) struct BatchNorm {
    /// Of each channel, `f32`.
    pub(in crate::ops) mean: Tensor,
    /// Of each channel, `f32`.
    pub(in crate::ops) inv_std: Tensor,
    /// Whether these are the batch's own, and depend on `x`.
    pub(in crate::ops) of_batch: bool,
    pub(in crate::ops) relu: bool,
}

type Part<'a> = (&'a CudaStorage, &'a Layout);

impl BatchNorm {
    fn forward(
        &self,
        x: Part,
        affine: Part,
        residual: Option<Part>,
    ) -> Result<(CudaStorage, Shape)> {
        let storage = of_type!("batch norm", x.0.dtype(), T => {
            self.forward_of::<T>(x, affine, residual)?
        });
        Ok((storage, x.1.shape().clone()))
    }

    fn forward_of<T: Number>(
        &self,
        x: Part,
        affine: Part,
        residual: Option<Part>,
    ) -> Result<CudaStorage> {
        let sizes = Sizes::of(x.1.shape())?;
        let device = &x.0.device;
        let affine = sizes.affine(affine)?;
        let (gamma, beta) = affine.split_at(sizes.channels);
        let (mean, mean_layout) = self.mean.storage_and_layout();
        let (inv_std, inv_std_layout) = self.inv_std.storage_and_layout();
        let mean = sizes.per_channel(cuda::storage(&mean)?, mean_layout)?;
        let inv_std = sizes.per_channel(cuda::storage(&inv_std)?, inv_std_layout)?;
        let numbers = cuda::numbers::<T>(x.0, x.1)?;
        let residual = residual.map(|(storage, layout)| cuda::numbers::<T>(storage, layout));
        let residual = residual.transpose()?;
        if residual.as_ref().is_some_and(|r| r.len() != numbers.len()) {
            bail!("a batch norm's residual has another size than its input");
        }
        let mut out = cuda::alloc::<T>(device, numbers.len())?;
        let (rows, channels) = (sizes.rows as i64, cuda::int(sizes.channels)?);
        let relu = i32::from(self.relu);
        let kernel = KERNELS.get(device, "batch_norm_apply", T::DTYPE)?;
        let mut launch = kernel.launch();
        launch.arg(&numbers);
        match &residual {
            Some(residual) => launch.arg(residual),
            None => launch.arg(&NULL),
        };
        launch
            .arg(&rows)
            .arg(&channels)
            .arg(&gamma)
            .arg(&beta)
            .arg(&mean)
            .arg(&inv_std);
        launch.arg(&relu).arg(&mut out);
        // SAFETY: input, residual (or null) and output have rows x channels numbers, the other four
        // one for each channel, as checked.
        unsafe { launch.launch(sizes.grid(sizes.shares())) }.w()?;
        Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
    }

    /// The gradients of `x`, of gamma and beta, and of the residual if asked.
    fn backward(
        &self,
        x: &Tensor,
        affine: &Tensor,
        out: &Tensor,
        dy: &Tensor,
        residual: bool,
    ) -> Result<(Tensor, Tensor, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        of_type!("batch norm", x.dtype(), T => {
            self.backward_of::<T>(x, affine, out, &dy, residual)
        })
    }

    fn backward_of<T: Number>(
        &self,
        x: &Tensor,
        affine: &Tensor,
        out: &Tensor,
        dy: &Tensor,
        residual: bool,
    ) -> Result<(Tensor, Tensor, Option<Tensor>)> {
        let (shape, sizes) = (x.shape(), Sizes::of(x.shape())?);
        let (x, x_layout) = x.storage_and_layout();
        let (out, out_layout) = out.storage_and_layout();
        let (dy, dy_layout) = dy.storage_and_layout();
        let (affine, affine_layout) = affine.storage_and_layout();
        let (mean, mean_layout) = self.mean.storage_and_layout();
        let (inv_std, inv_std_layout) = self.inv_std.storage_and_layout();
        let device = &cuda::storage(&x)?.device;
        let x = cuda::numbers::<T>(cuda::storage(&x)?, x_layout)?;
        let out = cuda::numbers::<T>(cuda::storage(&out)?, out_layout)?;
        let dy = cuda::numbers::<T>(cuda::storage(&dy)?, dy_layout)?;
        if out.len() != x.len() || dy.len() != x.len() {
            bail!("a batch norm's output or gradient has another size than its input");
        }
        let affine = sizes.affine((cuda::storage(&affine)?, affine_layout))?;
        let (gamma, _) = affine.split_at(sizes.channels);
        let mean = sizes.per_channel(cuda::storage(&mean)?, mean_layout)?;
        let inv_std = sizes.per_channel(cuda::storage(&inv_std)?, inv_std_layout)?;
        let (rows, channels) = (sizes.rows as i64, cuda::int(sizes.channels)?);
        let (relu, of_batch) = (i32::from(self.relu), i32::from(self.of_batch));

        let splits = sizes.splits();
        let parts = cuda::int(splits)?;
        let mut sums = cuda::alloc::<f32>(device, splits * sizes.channels)?;
        let mut products = cuda::alloc::<f32>(device, splits * sizes.channels)?;
        let kernel = KERNELS.get(device, "batch_norm_gradient_sums", T::DTYPE)?;
        let mut launch = kernel.launch();
        launch
            .arg(&x)
            .arg(&out)
            .arg(&dy)
            .arg(&rows)
            .arg(&channels)
            .arg(&mean)
            .arg(&inv_std);
        launch.arg(&relu).arg(&mut sums).arg(&mut products);
        // SAFETY: the first three have rows x channels numbers, the statistics one for each channel,
        // and the results splits x channels.
        unsafe { launch.launch(sizes.grid(splits)) }.w()?;

        let mut daffine = cuda::alloc::<f32>(device, 2 * sizes.channels)?;
        let (mut dgamma, mut dbeta) = daffine.split_at_mut(sizes.channels);
        let kernel = KERNELS.get(device, "batch_norm_gradient_totals", DType::F32)?;
        let mut launch = kernel.launch();
        launch.arg(&sums).arg(&products).arg(&channels).arg(&parts);
        launch.arg(&mut dgamma).arg(&mut dbeta);
        // SAFETY: the kernel reads what the first wrote and writes a number a channel to each result.
        unsafe { launch.launch(LaunchConfig::for_num_elems(channels as u32)) }.w()?;

        let (dgamma, dbeta) = (
            daffine.slice(..sizes.channels),
            daffine.slice(sizes.channels..),
        );
        let mut dx = cuda::alloc::<T>(device, x.len())?;
        let mut dresidual = match residual {
            true => Some(cuda::alloc::<T>(device, x.len())?),
            false => None,
        };
        let kernel = KERNELS.get(device, "batch_norm_input_gradient", T::DTYPE)?;
        let mut launch = kernel.launch();
        launch
            .arg(&x)
            .arg(&out)
            .arg(&dy)
            .arg(&rows)
            .arg(&channels)
            .arg(&gamma)
            .arg(&mean);
        launch
            .arg(&inv_std)
            .arg(&dgamma)
            .arg(&dbeta)
            .arg(&relu)
            .arg(&of_batch)
            .arg(&mut dx);
        match &mut dresidual {
            Some(dresidual) => launch.arg(dresidual),
            None => launch.arg(&NULL),
        };
        // SAFETY: x, out, dy, dx and dresidual (or null) have rows x channels numbers, the other
        // five one for each channel.
        unsafe { launch.launch(sizes.grid(sizes.shares())) }.w()?;
        drop(launch);
        Ok((
            cuda::tensor(dx, shape, device),
            cuda::tensor(daffine, 2 * sizes.channels, device),
            dresidual.map(|numbers| cuda::tensor(numbers, shape, device)),
        ))
    }
}

/// No tensor.
const NULL: usize = 0;

impl CustomOp2 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        bail!("this batch norm runs on CUDA devices only")
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        affine: &CudaStorage,
        affine_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.forward((x, x_layout), (affine, affine_layout), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        affine: &Tensor,
        out: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, daffine, _) = self.backward(x, affine, out, dy, false)?;
        Ok((Some(dx), Some(daffine)))
    }
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        bail!("this batch norm runs on CUDA devices only")
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        affine: &CudaStorage,
        affine_layout: &Layout,
        residual: &CudaStorage,
        residual_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let residual = Some((residual, residual_layout));
        self.forward((x, x_layout), (affine, affine_layout), residual)
    }

    fn bwd(
        &self,
        x: &Tensor,
        affine: &Tensor,
        _residual: &Tensor,
        out: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, daffine, dresidual) = self.backward(x, affine, out, dy, true)?;
        Ok((Some(dx), Some(daffine), dresidual))
    }
}

/// Maps as rows of channels, none of them 0.
#[derive(Clone, Copy)]
struct Sizes {
    rows: usize,
    channels: usize,
}

impl Sizes {
    fn of(shape: &Shape) -> Result<Self> {
        let channels = shape.dims().last().copied().unwrap_or(0);
        if shape.elem_count() == 0 {
            bail!("a batch norm of no numbers, {shape:?}");
        }
        Ok(Self {
            rows: shape.elem_count() / channels,
            channels,
        })
    }

    /// Parts that the rows are summed in.
    fn splits(&self) -> usize {
        (self.rows / (ROWS * BLOCK.1 as usize)).clamp(1, SPLITS)
    }

    /// Blocks that the rows are shared out to, for each block of channels.
    fn shares(&self) -> usize {
        (self.rows / (ROWS * BLOCK.1 as usize)).clamp(1, GRID)
    }

    fn grid(&self, height: usize) -> LaunchConfig {
        LaunchConfig {
            grid_dim: (
                self.channels.div_ceil(BLOCK.0 as usize) as u32,
                height as u32,
                1,
            ),
            block_dim: BLOCK,
            shared_mem_bytes: 0,
        }
    }

    fn per_channel<'a>(
        &self,
        storage: &'a CudaStorage,
        layout: &Layout,
    ) -> Result<CudaView<'a, f32>> {
        exactly(cuda::numbers(storage, layout)?, self.channels)
    }

    fn affine<'a>(&self, (storage, layout): Part<'a>) -> Result<CudaView<'a, f32>> {
        exactly(cuda::numbers(storage, layout)?, 2 * self.channels)
    }
}

fn exactly<T>(numbers: CudaView<'_, T>, expected: usize) -> Result<CudaView<'_, T>> {
    match numbers.len() {
        found if found == expected => Ok(numbers),
        found => bail!("a batch norm expects {expected} numbers for its channels, got {found}"),
    }
}
