//! The fused losses on a CUDA device: cuBLAS multiplies, and the kernels of `rows.cu` turn a tile's
//! logits into losses and coefficients in place.

use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaView, LaunchConfig, PushKernelArg};
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, CustomOp1, DType, InplaceOp1, Layout, Result, Shape,
    Tensor, bail,
};
use pirl_model::cuda::{self, Kernels, Number};

use super::log_mean::log_mean;
use crate::inputs::Inputs;
use crate::kind::Kind;
use crate::negatives::Sizes;
use crate::{LossError, Negatives};

static KERNELS: Kernels = Kernels::new("rows", include_str!("../rows.cu"));

/// Bytes that the logits of a tile may take, unless one image's take more.
const TILE: usize = 256 << 20;
/// Threads of a block of `contrastive_rows`.
const ROW_THREADS: u32 = 256;
/// Threads of a block of the kernels on indexed rows.
const INDEXED_BLOCK: (u32, u32, u32) = (32, 8, 1);
/// Negatives that a block of `indexed_scores` multiplies at a time.
const INDEXED: usize = 256;
/// Blocks that share out an image's indexed rows at most.
const SPLITS: usize = 16;

/// The mean loss, with its gradient if the query is tracked.
pub(super) fn forward(kind: Kind, inputs: Inputs<'_>) -> std::result::Result<Tensor, LossError> {
    let query = inputs.query;
    let input = OnDevice::new(inputs)?;
    let (mut losses, mut gradients) = (Vec::new(), Vec::new());
    for tile in input.tiles() {
        let scores = tile.scores()?;
        let (tile_losses, pulls) = tile.reduce(kind.into(), &scores)?;
        losses.push(tile_losses);
        if query.track_op() {
            gradients.push(tile.gradient(&scores, &pulls)?);
        }
    }
    let value = Tensor::cat(&losses, 0)?.mean_all()?.to_dtype(DType::F32)?;
    let gradient = match gradients.as_slice() {
        [] => None,
        parts => Some(Tensor::cat(parts, 0)?),
    };
    Ok(query.apply_op1(Computed { value, gradient })?)
}

/// `ln mean exp(z)` over positives and negatives.
pub(super) fn log_mean_exp(inputs: Inputs<'_>) -> std::result::Result<f64, LossError> {
    let input = OnDevice::new(inputs)?;
    let mut sums = Vec::new();
    for tile in input.tiles() {
        let (log_sums, _) = tile.reduce(Reduction::LOG_SUM, &tile.scores()?)?;
        sums.extend(log_sums.to_vec1::<f64>()?);
    }
    Ok(log_mean(sums, inputs.count()))
}

/// What `contrastive_rows` computes, and its constants.
#[derive(Clone, Copy)]
struct Reduction {
    kind: i32,
    log_z: f64,
    dataset_size: f64,
}

impl Reduction {
    const LOG_SUM: Self = Self::without_constants(3);

    const fn without_constants(kind: i32) -> Self {
        Self {
            kind,
            log_z: 0.0,
            dataset_size: 1.0,
        }
    }
}

impl From<Kind> for Reduction {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Paper => Self::without_constants(0),
            Kind::Nce {
                log_z,
                dataset_size,
            } => Self {
                kind: 1,
                log_z,
                dataset_size: dataset_size as f64,
            },
            Kind::InfoNce => Self::without_constants(2),
        }
    }
}

/// The arguments, contiguous and outside the graph.
struct OnDevice {
    query: Tensor,
    positive: Tensor,
    rows: Tensor,
    /// `(B, N)`, on the device; of per-image negatives.
    indices: Option<CudaSlice<u32>>,
    /// `(B)`, on the device; of shared negatives.
    own: Option<CudaSlice<i32>>,
    sizes: Sizes,
    /// `1 / temperature`.
    scale: f64,
    device: CudaDevice,
}

/// Some of the images.
struct Tile<'a> {
    input: &'a OnDevice,
    first: usize,
    images: usize,
}

impl OnDevice {
    fn new(inputs: Inputs<'_>) -> Result<Self> {
        let device = inputs.query.device().as_cuda_device()?.clone();
        let (rows, indices, own) = match inputs.negatives {
            Negatives::Shared { rows, own } => {
                let column = |own: &Option<u32>| own.map_or(Ok(-1), |own| cuda::int(own as usize));
                let own = own.iter().map(column).collect::<Result<Vec<i32>>>()?;
                (rows, None, Some(device.clone_htod(&own)?))
            }
            Negatives::PerImage { bank, indices } => {
                (bank, Some(device.clone_htod(indices)?), None)
            }
        };
        let plain = |t: &Tensor| t.detach().contiguous();
        Ok(Self {
            query: plain(inputs.query)?,
            positive: plain(inputs.positive)?,
            rows: plain(rows)?,
            indices,
            own,
            sizes: inputs.sizes,
            scale: 1.0 / inputs.temperature,
            device,
        })
    }

    fn tiles(&self) -> impl Iterator<Item = Tile<'_>> {
        let Sizes {
            batch, negatives, ..
        } = self.sizes;
        let images = (TILE / (size_of::<f32>() * negatives)).clamp(1, batch);
        (0..batch).step_by(images).map(move |first| Tile {
            input: self,
            first,
            images: images.min(batch - first),
        })
    }
}

impl Tile<'_> {
    fn query(&self) -> Result<Tensor> {
        self.input.query.narrow(0, self.first, self.images)
    }

    fn positive(&self) -> Result<Tensor> {
        self.input.positive.narrow(0, self.first, self.images)
    }

    /// This tile's rows of indices.
    fn indices<'a>(&self, indices: &'a CudaSlice<u32>) -> Result<CudaView<'a, u32>> {
        let n = self.input.sizes.negatives;
        part(indices, self.first * n, self.images * n)
    }

    /// Inner products with the negatives, `(images, N)`.
    fn scores(&self) -> Result<Tensor> {
        let Sizes { dim, negatives, .. } = self.input.sizes;
        let Some(indices) = &self.input.indices else {
            return self.query()?.matmul(&self.input.rows.t()?);
        };
        let indices = self.indices(indices)?;
        let device = &self.input.device;
        let mut scores = cuda::alloc::<f32>(device, self.images * negatives)?;
        with_numbers(&self.query()?, |query: &CudaView<f32>| {
            with_numbers(&self.input.rows, |bank: &CudaView<f32>| {
                let (n, dim) = (cuda::int(negatives)?, cuda::int(dim)?);
                let kernel = KERNELS.get(device, "indexed_scores", DType::F32)?;
                let mut launch = kernel.launch();
                launch
                    .arg(query)
                    .arg(bank)
                    .arg(&indices)
                    .arg(&n)
                    .arg(&dim)
                    .arg(&mut scores);
                // SAFETY: queries are images x dim, indices and scores images x N, and each index,
                // as `Negatives::check` saw, is that of a row of `dim` numbers of the bank.
                unsafe { launch.launch(self.indexed(negatives.div_ceil(INDEXED))) }.w()?;
                Ok(())
            })
        })?;
        Ok(cuda::tensor(scores, (self.images, negatives), device))
    }

    /// Turns the scores into `dL/dz_n`; returns the losses, `(images)` in `f64`, and `dL/dz_p`,
    /// `(images, 1)`.
    fn reduce(&self, reduction: Reduction, scores: &Tensor) -> Result<(Tensor, Tensor)> {
        let device = &self.input.device;
        let mut losses = cuda::alloc::<f64>(device, self.images)?;
        // Not written for a sum alone.
        let mut pulls = device.alloc_zeros::<f32>(self.images)?;
        let op = Rows {
            tile: self,
            reduction,
            results: std::sync::Mutex::new((&mut losses, &mut pulls)),
        };
        scores.inplace_op1(&op)?;
        Ok((
            cuda::tensor(losses, self.images, device),
            cuda::tensor(pulls, (self.images, 1), device),
        ))
    }

    /// `dL/dv = (1 / (B tau)) (dL/dz_p m_p + sum_n dL/dz_n m_n)`.
    fn gradient(&self, coefficients: &Tensor, pulls: &Tensor) -> Result<Tensor> {
        let Sizes {
            batch,
            dim,
            negatives,
        } = self.input.sizes;
        let sums = match &self.input.indices {
            None => coefficients.matmul(&self.input.rows)?,
            Some(indices) => {
                let indices = self.indices(indices)?;
                let device = &self.input.device;
                let splits = negatives.div_ceil(INDEXED).min(SPLITS);
                let mut sums = cuda::alloc::<f32>(device, splits * self.images * dim)?;
                with_numbers(coefficients, |coefficients: &CudaView<f32>| {
                    with_numbers(&self.input.rows, |bank: &CudaView<f32>| {
                        let (n, dim) = (cuda::int(negatives)?, cuda::int(dim)?);
                        let kernel = KERNELS.get(device, "indexed_sums", DType::F32)?;
                        let mut launch = kernel.launch();
                        launch
                            .arg(coefficients)
                            .arg(bank)
                            .arg(&indices)
                            .arg(&n)
                            .arg(&dim);
                        launch.arg(&mut sums);
                        // SAFETY: as in `scores`; the sums are splits x images x dim.
                        unsafe { launch.launch(self.indexed(splits)) }.w()?;
                        Ok(())
                    })
                })?;
                cuda::tensor(sums, (splits, self.images, dim), device).sum(0)?
            }
        };
        let pulled = self.positive()?.broadcast_mul(pulls)?;
        (sums + pulled)? * (self.input.scale / batch as f64)
    }

    /// A launch of a kernel on indexed rows.
    fn indexed(&self, height: usize) -> LaunchConfig {
        LaunchConfig {
            grid_dim: (self.images as u32, height.min(SPLITS) as u32, 1),
            block_dim: INDEXED_BLOCK,
            shared_mem_bytes: 0,
        }
    }
}

/// `contrastive_rows` on the scores of a tile.
struct Rows<'a> {
    tile: &'a Tile<'a>,
    reduction: Reduction,
    /// Losses and pulls.
    results: std::sync::Mutex<(&'a mut CudaSlice<f64>, &'a mut CudaSlice<f32>)>,
}

impl InplaceOp1 for Rows<'_> {
    fn name(&self) -> &'static str {
        "contrastive-rows"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        bail!("this loss runs on CUDA devices only")
    }

    fn cuda_fwd(&self, scores: &mut CudaStorage, layout: &Layout) -> Result<()> {
        let Tile {
            input,
            first,
            images,
        } = self.tile;
        let Sizes { dim, negatives, .. } = input.sizes;
        if layout.contiguous_offsets() != Some((0, images * negatives)) {
            bail!("the scores of a tile are {layout:?}, expected {images} x {negatives}");
        }
        let device = scores.device.clone();
        let scores = scores.as_cuda_slice_mut::<f32>()?;
        let own = match &input.own {
            Some(own) => Some(part(own, *first, *images)?),
            None => None,
        };
        let Ok(mut results) = self.results.lock() else {
            bail!("a loss that failed before");
        };
        let (losses, pulls) = &mut *results;
        with_numbers(&self.tile.query()?, |query: &CudaView<f32>| {
            with_numbers(&self.tile.positive()?, |positive: &CudaView<f32>| {
                let (n, dim, null) = (cuda::int(negatives)?, cuda::int(dim)?, 0usize);
                let kernel = KERNELS.get(&device, "contrastive_rows", DType::F32)?;
                let mut launch = kernel.launch();
                launch
                    .arg(&self.reduction.kind)
                    .arg(scores)
                    .arg(query)
                    .arg(positive);
                match &own {
                    Some(own) => launch.arg(own),
                    None => launch.arg(&null),
                };
                launch
                    .arg(&n)
                    .arg(&dim)
                    .arg(&input.scale)
                    .arg(&self.reduction.log_z);
                launch
                    .arg(&self.reduction.dataset_size)
                    .arg(&mut **losses)
                    .arg(&mut **pulls);
                let config = LaunchConfig {
                    grid_dim: (*images as u32, 1, 1),
                    block_dim: (ROW_THREADS, 1, 1),
                    shared_mem_bytes: 0,
                };
                // SAFETY: scores are images x N as checked, queries and positives images x dim, the
                // rest one for each image; own columns are below N, as `Negatives::check` saw.
                unsafe { launch.launch(config) }.w()?;
                Ok(())
            })
        })
    }
}

/// A value computed beforehand, and its gradient: the op only puts them into Candle's graph.
struct Computed {
    value: Tensor,
    gradient: Option<Tensor>,
}

impl CustomOp1 for Computed {
    fn name(&self) -> &'static str {
        "contrastive-loss"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("this loss runs on CUDA devices only")
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let (storage, layout) = self.value.storage_and_layout();
        let storage = cuda::storage(&storage)?;
        let value = cuda::numbers::<f32>(storage, layout)?;
        let mut copy = cuda::alloc::<f32>(&storage.device, 1)?;
        storage.device.memcpy_dtod(&value, &mut copy)?;
        Ok((
            CudaStorage::wrap_cuda_slice(copy, storage.device.clone()),
            Shape::from(()),
        ))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, upstream: &Tensor) -> Result<Option<Tensor>> {
        let gradient = self.gradient.as_ref();
        gradient
            .map(|gradient| gradient.broadcast_mul(upstream))
            .transpose()
    }
}

/// Runs `work` on the numbers of a contiguous tensor.
fn with_numbers<T: Number, R>(
    tensor: &Tensor,
    work: impl FnOnce(&CudaView<T>) -> Result<R>,
) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    work(&cuda::numbers(cuda::storage(&storage)?, layout)?)
}

fn part<T>(all: &CudaSlice<T>, start: usize, len: usize) -> Result<CudaView<'_, T>> {
    match all.try_slice(start..start + len) {
        Some(part) => Ok(part),
        None => bail!("entries {start}.. of {} are not {len}", all.len()),
    }
}
