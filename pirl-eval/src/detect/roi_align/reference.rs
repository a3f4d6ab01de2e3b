//! ROIAlign from Candle's own differentiable ops.

use candle_core::{DType, Device, Result, Tensor, WithDType};

use super::axis::Axis;
use super::{Roi, RoiAlignConfig, check};

/// Regions resampled together: bounds the memory of the products.
const CHUNK: usize = 16;

/// [`roi_align`](super::roi_align) as two matrix products, on any device and in any type of float:
/// the weights of the rows, times the features, times the weights of the columns.
///
/// # Errors
/// As [`roi_align`](super::roi_align).
pub fn roi_align_reference(
    features: &Tensor,
    rois: &[Roi],
    config: &RoiAlignConfig,
) -> Result<Tensor> {
    let maps = check(features, rois, config)?;
    let (rows, columns) = config.output_size;
    if rois.is_empty() {
        let shape = (0, maps.channels, rows, columns);
        return Tensor::zeros(shape, features.dtype(), features.device());
    }
    let of_axis = |interval: (f32, f32), size: usize, bins: usize| match features.dtype() {
        DType::F64 => dense::<f64>(interval, size, bins, config, features.device()),
        other => dense::<f32>(interval, size, bins, config, features.device())?.to_dtype(other),
    };
    let mut chunks = Vec::with_capacity(rois.len().div_ceil(CHUNK));
    for rois in rois.chunks(CHUNK) {
        let (mut row_weights, mut column_weights) = (Vec::new(), Vec::new());
        for &Roi { bbox, .. } in rois {
            let [x0, y0, x1, y1] = bbox;
            row_weights.push(of_axis((y0, y1), maps.height, rows)?);
            column_weights.push(of_axis((x0, x1), maps.width, columns)?.t()?);
        }
        let images: Vec<u32> = rois.iter().map(|roi| roi.image as u32).collect();
        let images = Tensor::from_vec(images, rois.len(), features.device())?;
        // (rois, c h, w) times (rois, w, columns), then (rois, 1, rows, h) times that as maps.
        let maps_of_rois = features.index_select(&images, 0)?;
        let shape = (rois.len(), maps.channels * maps.height, maps.width);
        let summed = maps_of_rois
            .reshape(shape)?
            .matmul(&Tensor::stack(&column_weights, 0)?)?
            .reshape((rois.len(), maps.channels, maps.height, columns))?;
        let row_weights = Tensor::stack(&row_weights, 0)?.unsqueeze(1)?;
        chunks.push(row_weights.broadcast_matmul(&summed)?);
    }
    Tensor::cat(&chunks, 0)
}

/// The weights of one axis as a matrix, `(bins, size)`.
fn dense<T: WithDType>(
    interval: (f32, f32),
    size: usize,
    bins: usize,
    config: &RoiAlignConfig,
    device: &Device,
) -> Result<Tensor> {
    let mut matrix = vec![T::zero(); bins * size];
    let axis = Axis::<T>::new(interval, size, bins, config);
    for (row, (first, weights)) in matrix.chunks_exact_mut(size).zip(axis.bins()) {
        row[first..][..weights.len()].copy_from_slice(weights);
    }
    Tensor::from_vec(matrix, (bins, size), device)
}
