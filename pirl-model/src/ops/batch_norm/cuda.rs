//! Batch norm on a CUDA device, by the kernels of `batch_norm.cu`.

use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::{CudaView, CudaViewMut, LaunchConfig, PushKernelArg};
use candle_core::{CudaDevice, DType, Layout, Result, StorageRef, Tensor, bail};

use super::tensors::{Applied, Scales};
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

/// As [`statistics`](super::tensors::statistics), but returns the inverse deviations alone.
pub(super) fn statistics(x: &Tensor, eps: f32, place: &Tensor) -> Result<Tensor> {
    of_type!("batch norm", x.dtype(), T => statistics_of::<T>(x, eps, place))
}

fn statistics_of<T: Number>(x: &Tensor, eps: f32, place: &Tensor) -> Result<Tensor> {
    let sizes = Sizes::of(x)?;
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

    let mut inv_std = cuda::alloc::<f32>(device, sizes.channels)?;
    cuda::write(place, |mut both| {
        let (mut mean, mut var) = sizes.halves(&mut both)?;
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
        Ok(())
    })?;
    Ok(cuda::tensor(inv_std, sizes.channels, device))
}

/// As [`apply`](super::tensors::apply).
pub(super) fn apply(
    x: &Tensor,
    affine: &Tensor,
    by: &Scales,
    residual: Option<&Tensor>,
    relu: bool,
) -> Result<Tensor> {
    of_type!("batch norm", x.dtype(), T => apply_of::<T>(x, affine, by, residual, relu))
}

fn apply_of<T: Number>(
    x: &Tensor,
    affine: &Tensor,
    by: &Scales,
    residual: Option<&Tensor>,
    relu: bool,
) -> Result<Tensor> {
    let (shape, sizes) = (x.shape(), Sizes::of(x)?);
    let (x, affine) = (Read::new(x), Read::new(affine));
    let (mean, inv_std) = (Read::new(&by.mean), Read::new(&by.inv_std));
    let residual = residual.map(Read::new);
    let device = x.device()?;
    let numbers = x.numbers::<T>(sizes.len())?;
    let affine = affine.numbers::<f32>(2 * sizes.channels)?;
    let (gamma, beta) = affine.split_at(sizes.channels);
    let mean = mean.numbers::<f32>(sizes.channels)?;
    let inv_std = inv_std.numbers::<f32>(sizes.channels)?;
    let residual = residual.as_ref().map(|r| r.numbers::<T>(sizes.len()));
    let residual = residual.transpose()?;
    let mut out = cuda::alloc::<T>(device, sizes.len())?;
    let (rows, channels) = (sizes.rows as i64, cuda::int(sizes.channels)?);
    let relu = i32::from(relu);
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
    Ok(cuda::tensor(out, shape, device))
}

/// As [`Applied::sums`].
pub(super) fn gradient_sums(applied: &Applied<'_>, place: &Tensor) -> Result<()> {
    of_type!("batch norm", applied.x.dtype(), T => gradient_sums_of::<T>(applied, place))
}

fn gradient_sums_of<T: Number>(applied: &Applied<'_>, place: &Tensor) -> Result<()> {
    let sizes = Sizes::of(applied.x)?;
    let (x, dy) = (Read::new(applied.x), Read::new(applied.dy));
    let (mean, inv_std) = (Read::new(&applied.by.mean), Read::new(&applied.by.inv_std));
    let out = applied.rectified.map(Read::new);
    let device = x.device()?;
    let (x, dy) = (x.numbers::<T>(sizes.len())?, dy.numbers::<T>(sizes.len())?);
    let out = out.as_ref().map(|out| out.numbers::<T>(sizes.len()));
    let out = out.transpose()?;
    let mean = mean.numbers::<f32>(sizes.channels)?;
    let inv_std = inv_std.numbers::<f32>(sizes.channels)?;
    let (rows, channels) = (sizes.rows as i64, cuda::int(sizes.channels)?);
    let relu = i32::from(out.is_some());

    let splits = sizes.splits();
    let parts = cuda::int(splits)?;
    let mut sums = cuda::alloc::<f32>(device, splits * sizes.channels)?;
    let mut products = cuda::alloc::<f32>(device, splits * sizes.channels)?;
    let kernel = KERNELS.get(device, "batch_norm_gradient_sums", T::DTYPE)?;
    let mut launch = kernel.launch();
    launch.arg(&x);
    match &out {
        Some(out) => launch.arg(out),
        None => launch.arg(&NULL),
    };
    launch
        .arg(&dy)
        .arg(&rows)
        .arg(&channels)
        .arg(&mean)
        .arg(&inv_std);
    launch.arg(&relu).arg(&mut sums).arg(&mut products);
    // SAFETY: the first three have rows x channels numbers, or the second is null and not read, the
    // statistics one for each channel, and the results splits x channels.
    unsafe { launch.launch(sizes.grid(splits)) }.w()?;

    cuda::write(place, |mut both| {
        let (mut dgamma, mut dbeta) = sizes.halves(&mut both)?;
        let kernel = KERNELS.get(device, "batch_norm_gradient_totals", DType::F32)?;
        let mut launch = kernel.launch();
        launch.arg(&sums).arg(&products).arg(&channels).arg(&parts);
        launch.arg(&mut dgamma).arg(&mut dbeta);
        // SAFETY: the kernel reads what the first wrote and writes a number a channel to each result.
        unsafe { launch.launch(LaunchConfig::for_num_elems(channels as u32)) }.w()?;
        Ok(())
    })
}

/// As [`Applied::input_gradient`].
pub(super) fn input_gradient(
    applied: &Applied<'_>,
    sums: Option<&Tensor>,
    residual: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    of_type!("batch norm", applied.x.dtype(), T => {
        input_gradient_of::<T>(applied, sums, residual)
    })
}

fn input_gradient_of<T: Number>(
    applied: &Applied<'_>,
    sums: Option<&Tensor>,
    residual: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let (shape, sizes) = (applied.x.shape(), Sizes::of(applied.x)?);
    let (x, dy) = (Read::new(applied.x), Read::new(applied.dy));
    let (mean, inv_std) = (Read::new(&applied.by.mean), Read::new(&applied.by.inv_std));
    let affine = Read::new(applied.affine);
    // Constants have no sums, which are not used then.
    let totals = Read::new(sums.unwrap_or(applied.affine));
    let out = applied.rectified.map(Read::new);
    let device = x.device()?;
    let (x, dy) = (x.numbers::<T>(sizes.len())?, dy.numbers::<T>(sizes.len())?);
    let out = out.as_ref().map(|out| out.numbers::<T>(sizes.len()));
    let out = out.transpose()?;
    let mean = mean.numbers::<f32>(sizes.channels)?;
    let inv_std = inv_std.numbers::<f32>(sizes.channels)?;
    let affine = affine.numbers::<f32>(2 * sizes.channels)?;
    let (gamma, _) = affine.split_at(sizes.channels);
    let totals = totals.numbers::<f32>(2 * sizes.channels)?;
    let (dgamma, dbeta) = totals.split_at(sizes.channels);
    let (rows, channels) = (sizes.rows as i64, cuda::int(sizes.channels)?);
    let (relu, of_batch) = (i32::from(out.is_some()), i32::from(sums.is_some()));

    let mut dx = cuda::alloc::<T>(device, sizes.len())?;
    let mut dresidual = match residual {
        true => Some(cuda::alloc::<T>(device, sizes.len())?),
        false => None,
    };
    let kernel = KERNELS.get(device, "batch_norm_input_gradient", T::DTYPE)?;
    let mut launch = kernel.launch();
    launch.arg(&x);
    match &out {
        Some(out) => launch.arg(out),
        None => launch.arg(&NULL),
    };
    launch
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
    // SAFETY: x, dy, dx, and out and dresidual unless they are null, have rows x channels numbers, the
    // other five one for each channel.
    unsafe { launch.launch(sizes.grid(sizes.shares())) }.w()?;
    drop(launch);
    Ok((
        cuda::tensor(dx, shape, device),
        dresidual.map(|numbers| cuda::tensor(numbers, shape, device)),
    ))
}

/// No tensor.
const NULL: usize = 0;

/// A tensor that a kernel reads.
struct Read<'a> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> Read<'a> {
    fn new(tensor: &'a Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        Self { storage, layout }
    }

    fn device(&self) -> Result<&CudaDevice> {
        Ok(&cuda::storage(&self.storage)?.device)
    }

    /// Its numbers, of which there are `expected`.
    fn numbers<T: Number>(&self, expected: usize) -> Result<CudaView<'_, T>> {
        let numbers = cuda::numbers(cuda::storage(&self.storage)?, self.layout)?;
        match numbers.len() {
            found if found == expected => Ok(numbers),
            found => bail!("a batch norm expects a tensor of {expected} numbers, got {found}"),
        }
    }
}

/// Maps as rows of channels, none of them 0.
#[derive(Clone, Copy)]
struct Sizes {
    rows: usize,
    channels: usize,
}

impl Sizes {
    fn of(x: &Tensor) -> Result<Self> {
        let channels = x.dims().last().copied().unwrap_or(0);
        if x.elem_count() == 0 {
            bail!("a batch norm of no numbers, {:?}", x.shape());
        }
        Ok(Self {
            rows: x.elem_count() / channels,
            channels,
        })
    }

    fn len(&self) -> usize {
        self.rows * self.channels
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

    /// Two numbers for each channel, as those of one kind and of the other.
    fn halves<'a>(
        &self,
        both: &'a mut CudaViewMut<'_, f32>,
    ) -> Result<(CudaViewMut<'a, f32>, CudaViewMut<'a, f32>)> {
        match both.len() {
            found if found == 2 * self.channels => Ok(both.split_at_mut(self.channels)),
            found => bail!(
                "a batch norm writes {} numbers, into room for {found}",
                2 * self.channels
            ),
        }
    }
}
