//! ROIAlign on a CUDA device, by the kernels of `roi_align.cu`.

use candle_core::backend::BackendStorage;
use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::{
    CudaSlice, CudaView, LaunchArgs, LaunchConfig, PushKernelArg,
};
use candle_core::{CudaDevice, CudaStorage, DType, Layout, Result, Tensor, bail};
use pirl_model::cuda::{self, Kernels, Number};

use super::Op;

static KERNELS: Kernels = Kernels::new("roi_align", include_str!("../roi_align.cu"));

/// Blocks of a launch at most; their threads take further numbers in turn.
const GRID: usize = 65_536;
/// Threads of a block.
const THREADS: usize = 256;

/// The regions on the device, and the sizes that both kernels are told, in their order.
struct Regions {
    images: CudaSlice<i32>,
    boxes: CudaSlice<f32>,
    sizes: [i32; 6],
    scale: f32,
    sampling: [i32; 2],
    config: LaunchConfig,
}

impl Regions {
    fn new(op: &Op, device: &CudaDevice) -> Result<Self> {
        let image = |roi: &super::Roi| cuda::int(roi.image);
        let images = op.rois.iter().map(image).collect::<Result<Vec<i32>>>()?;
        let boxes: Vec<f32> = op.rois.iter().flat_map(|roi| roi.bbox).collect();
        let (maps, (rows, columns)) = (op.shape, op.config.output_size);
        let all = [
            op.rois.len(),
            maps.channels,
            maps.height,
            maps.width,
            rows,
            columns,
        ];
        let mut sizes = [0; 6];
        for (to, from) in sizes.iter_mut().zip(all) {
            *to = cuda::int(from)?;
        }
        let blocks = op.out_shape().elem_count().div_ceil(THREADS).clamp(1, GRID);
        Ok(Self {
            images: device.clone_htod(&images)?,
            boxes: device.clone_htod(&boxes)?,
            sizes,
            scale: op.config.spatial_scale as f32,
            sampling: [
                cuda::int(op.config.sampling_ratio)?,
                op.config.aligned.into(),
            ],
            config: LaunchConfig {
                grid_dim: (blocks as u32, 1, 1),
                block_dim: (THREADS as u32, 1, 1),
                shared_mem_bytes: 0,
            },
        })
    }

    /// All arguments but the first and the last.
    fn push<'a>(&'a self, launch: &mut LaunchArgs<'a>) {
        launch.arg(&self.images).arg(&self.boxes);
        for size in &self.sizes {
            launch.arg(size);
        }
        launch.arg(&self.scale);
        for value in &self.sampling {
            launch.arg(value);
        }
    }
}

pub(super) fn forward(op: &Op, features: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
    match features.dtype() {
        DType::F32 => forward_of::<f32>(op, features, layout),
        DType::BF16 => forward_of::<half::bf16>(op, features, layout),
        DType::F16 => forward_of::<half::f16>(op, features, layout),
        other => bail!("roi_align on a CUDA device is for f32, bf16 and f16, got {other:?}"),
    }
}

fn forward_of<T: Number>(op: &Op, features: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
    let device = &features.device;
    let features = features_of::<T>(op, features, layout)?;
    let regions = Regions::new(op, device)?;
    let mut out = cuda::alloc::<T>(device, op.out_shape().elem_count())?;
    let kernel = KERNELS.get(device, "roi_align_forward", T::DTYPE)?;
    let mut launch = kernel.launch();
    launch.arg(&features);
    regions.push(&mut launch);
    launch.arg(&mut out);
    // SAFETY: features and output have the lengths that follow from the sizes, there is an image and
    // a box for each region, and every image named exists, as `check` saw.
    unsafe { launch.launch(regions.config) }.w()?;
    Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
}

/// The gradient of the features, in their type.
pub(super) fn backward(op: &Op, features: &Tensor, d_out: &Tensor) -> Result<Tensor> {
    let gradient = match features.dtype() {
        DType::F32 => backward_of::<f32>(op, d_out)?,
        DType::BF16 => backward_of::<half::bf16>(op, d_out)?,
        DType::F16 => backward_of::<half::f16>(op, d_out)?,
        other => bail!("roi_align on a CUDA device is for f32, bf16 and f16, got {other:?}"),
    };
    gradient.to_dtype(features.dtype())
}

/// In `f32`, whatever the type of `d_out`: regions add to it one after the other.
fn backward_of<T: Number>(op: &Op, d_out: &Tensor) -> Result<Tensor> {
    let d_out = d_out.contiguous()?;
    let (storage, layout) = d_out.storage_and_layout();
    let storage = cuda::storage(&storage)?;
    let (device, d_out) = (&storage.device, cuda::numbers::<T>(storage, layout)?);
    let expected = op.out_shape().elem_count();
    if d_out.len() != expected {
        bail!(
            "roi_align's gradient has {} numbers, expected {expected}",
            d_out.len()
        );
    }
    let maps = op.shape;
    let shape = (maps.images, maps.height, maps.width, maps.channels);
    let len = maps.images * maps.height * maps.width * maps.channels;
    let mut d_features = device.alloc_zeros::<f32>(len)?;
    let regions = Regions::new(op, device)?;
    let kernel = KERNELS.get(device, "roi_align_backward", T::DTYPE)?;
    let mut launch = kernel.launch();
    launch.arg(&d_out);
    regions.push(&mut launch);
    launch.arg(&mut d_features);
    // SAFETY: as in `forward_of`.
    unsafe { launch.launch(regions.config) }.w()?;
    drop(launch);
    Ok(cuda::tensor(d_features, shape, device))
}

fn features_of<'a, T: Number>(
    op: &Op,
    features: &'a CudaStorage,
    layout: &Layout,
) -> Result<CudaView<'a, T>> {
    let features = cuda::numbers::<T>(features, layout)?;
    let maps = op.shape;
    let expected = maps.images * maps.height * maps.width * maps.channels;
    match features.len() {
        found if found == expected => Ok(features),
        found => bail!("roi_align of {found} numbers, expected {expected}"),
    }
}
