//! ROIAlign: the features under a box, resampled to a fixed size (He et al., arXiv:1703.06870).

mod axis;
#[cfg(feature = "cuda")]
mod cuda;
mod kernels;
mod reference;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{
    CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Storage, Tensor, WithDType, bail,
};

use super::boxes::BBox;
use kernels::RegionWeights;

pub use reference::roi_align_reference;

/// Cells of the map beyond which a corner of a region cannot lie: single precision still tells
/// samples apart there, and their number is bounded.
const FARTHEST: f64 = 1e6;

/// A region of interest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roi {
    /// Its image in the batch.
    pub image: usize,
    /// In pixels of the image; it may reach out of it, be empty or inverted.
    pub bbox: BBox,
}

/// How [`roi_align`] samples; by default as detectron2's R50-C4.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoiAlignConfig {
    /// Rows and columns of the output; 14, 14.
    pub output_size: (usize, usize),
    /// Cells of the feature map per pixel of the image; 1/16.
    pub spatial_scale: f64,
    /// Samples of an output cell along each axis. 0, the default, is adaptive: one for each feature
    /// cell it begins to cover.
    pub sampling_ratio: usize,
    /// Whether coordinates are moved by half a cell, so that a feature lies in the middle of its
    /// cell, as it should; true. Without, boxes are also made at least one cell wide and high.
    pub aligned: bool,
}

impl Default for RoiAlignConfig {
    fn default() -> Self {
        Self {
            output_size: (14, 14),
            spatial_scale: 1.0 / 16.0,
            sampling_ratio: 0,
            aligned: true,
        }
    }
}

/// The mean of bilinear samples in each of a grid of cells over each region, differentiable in the
/// features (not in the boxes).
///
/// # Shapes
/// `features`: `(n, c, h, w)`; returns `(rois, c, height, width)` with the sizes of
/// `config.output_size`, as a view of channels-last memory. Features that are such a view too, as
/// `pirl_model`'s convolutions return, are read without a copy.
///
/// Equals torchvision's `roi_align` to rounding: a sample farther than one cell out of the map is 0,
/// one nearer is taken at its border, an inverted or empty region has no adaptive samples and is 0.
/// Runs on a CPU in `f32` and `f64`, where the result does not depend on the number of threads, and
/// with the feature `cuda` on a CUDA device in `f32`, `bf16` and `f16`; elsewhere
/// [`roi_align_reference`] does.
///
/// # Errors
/// If `features` has not four dimensions or a map without cells, a region names an image beyond `n`
/// or has a corner more than a million cells away, an output size is 0, or the scale is not positive.
pub fn roi_align(features: &Tensor, rois: &[Roi], config: &RoiAlignConfig) -> Result<Tensor> {
    let shape = check(features, rois, config)?;
    let fast = match features.device() {
        Device::Cpu => matches!(features.dtype(), DType::F32 | DType::F64),
        Device::Cuda(_) => {
            let float = matches!(features.dtype(), DType::F32 | DType::BF16 | DType::F16);
            cfg!(feature = "cuda") && float && features.elem_count() > 0
        }
        Device::Metal(_) => false,
    };
    if !fast || rois.is_empty() {
        return roi_align_reference(features, rois, config);
    }
    let op = Op {
        shape,
        rois: rois.to_vec(),
        config: *config,
    };
    features
        .permute((0, 2, 3, 1))?
        .contiguous()?
        .apply_op1(op)?
        .permute((0, 3, 1, 2))
}

/// Sizes of the features.
#[derive(Clone, Copy)]
struct Maps {
    images: usize,
    channels: usize,
    height: usize,
    width: usize,
}

fn check(features: &Tensor, rois: &[Roi], config: &RoiAlignConfig) -> Result<Maps> {
    let (images, channels, height, width) = features.dims4()?;
    let (rows, columns) = config.output_size;
    if rows == 0 || columns == 0 {
        bail!("roi_align needs an output of at least 1x1, got {rows}x{columns}");
    }
    if !(config.spatial_scale > 0.0 && config.spatial_scale.is_finite()) {
        bail!(
            "roi_align needs a positive scale, got {}",
            config.spatial_scale
        );
    }
    if height == 0 || width == 0 {
        bail!("roi_align of maps without cells, {height}x{width}");
    }
    for (index, roi) in rois.iter().enumerate() {
        if roi.image >= images {
            bail!(
                "region {index} is of image {}, but the batch has {images}",
                roi.image
            );
        }
        let cells = |x: f32| (f64::from(x) * config.spatial_scale).abs();
        if !roi.bbox.iter().all(|&x| cells(x) <= FARTHEST) {
            bail!(
                "region {index} is {:?}, which is not finite or farther away than {FARTHEST} cells",
                roi.bbox
            );
        }
    }
    Ok(Maps {
        images,
        channels,
        height,
        width,
    })
}

/// On channels-last features and outputs.
struct Op {
    shape: Maps,
    rois: Vec<Roi>,
    config: RoiAlignConfig,
}

impl Op {
    fn forward<T: WithDType>(&self, features: &[T]) -> Vec<T> {
        let mut out = vec![T::zero(); self.out_shape().elem_count()];
        RegionWeights::<T>::new(self.shape, &self.rois, &self.config).forward(features, &mut out);
        out
    }

    fn backward<T: WithDType>(&self, features: &Tensor, d_out: &Tensor) -> Result<Tensor> {
        let d_out = d_out.contiguous()?;
        let (storage, layout) = d_out.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else {
            bail!("roi_align's gradient is not in the CPU's memory");
        };
        let mut d_features = vec![T::zero(); features.elem_count()];
        let weights = RegionWeights::<T>::new(self.shape, &self.rois, &self.config);
        weights.backward(numbers(storage, layout)?, &mut d_features);
        Tensor::from_vec(d_features, features.shape(), features.device())
    }

    fn out_shape(&self) -> Shape {
        let (rows, columns) = self.config.output_size;
        (self.rois.len(), rows, columns, self.shape.channels).into()
    }
}

impl CustomOp1 for Op {
    fn name(&self) -> &'static str {
        "roi_align"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let out = match storage {
            CpuStorage::F32(_) => CpuStorage::F32(self.forward(numbers(storage, layout)?)),
            CpuStorage::F64(_) => CpuStorage::F64(self.forward(numbers(storage, layout)?)),
            _ => bail!("roi_align on a CPU is for f32 and f64"),
        };
        Ok((out, self.out_shape()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        Ok((cuda::forward(self, storage, layout)?, self.out_shape()))
    }

    fn bwd(&self, features: &Tensor, _out: &Tensor, d_out: &Tensor) -> Result<Option<Tensor>> {
        #[cfg(feature = "cuda")]
        if features.device().is_cuda() {
            return cuda::backward(self, features, d_out).map(Some);
        }
        let gradient = match features.dtype() {
            DType::F32 => self.backward::<f32>(features, d_out)?,
            DType::F64 => self.backward::<f64>(features, d_out)?,
            other => bail!("roi_align on a CPU is for f32 and f64, got {other:?}"),
        };
        Ok(Some(gradient))
    }
}

/// The numbers of contiguous storage.
fn numbers<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("roi_align needs contiguous tensors, got {layout:?}");
    };
    match T::cpu_storage_as_slice(storage)?.get(start..end) {
        Some(numbers) => Ok(numbers),
        None => bail!("a tensor spans {start}..{end}, beyond its storage"),
    }
}
