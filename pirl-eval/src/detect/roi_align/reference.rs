//! ROIAlign from Candle's own differentiable ops.

use candle_core::{DType, Device, Result, Tensor, WithDType};

use super::super::boxes::BBox;
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
    let device = features.device();
    let of_axis = |intervals: &[(f32, f32)], size: usize, bins: usize| match features.dtype() {
        DType::F64 => dense::<f64>(intervals, size, bins, config, device),
        other => dense::<f32>(intervals, size, bins, config, device)?.to_dtype(other),
    };
    let features = features.contiguous()?;
    let mut chunks = Vec::with_capacity(rois.len().div_ceil(CHUNK));
    for rois in rois.chunks(CHUNK) {
        let sides = |side: fn(BBox) -> (f32, f32)| -> Vec<_> {
            rois.iter().map(|roi| side(roi.bbox)).collect()
        };
        let row_weights = of_axis(&sides(|[_, y0, _, y1]| (y0, y1)), maps.height, rows)?;
        let column_weights = of_axis(&sides(|[x0, _, x1, _]| (x0, x1)), maps.width, columns)?;
        let images: Vec<u32> = rois.iter().map(|roi| roi.image as u32).collect();
        let images = Tensor::from_vec(images, rois.len(), device)?;
        // (rois, c h, w) times (rois, w, columns), then (rois, 1, rows, h) times that as maps.
        let maps_of_rois = features.index_select(&images, 0)?;
        let shape = (rois.len(), maps.channels * maps.height, maps.width);
        let summed = maps_of_rois
            .reshape(shape)?
            .matmul(&column_weights.t()?)?
            .reshape((rois.len(), maps.channels, maps.height, columns))?;
        chunks.push(row_weights.unsqueeze(1)?.broadcast_matmul(&summed)?);
    }
    Tensor::cat(&chunks, 0)
}

/// The weights of one axis as a matrix for each interval, `(intervals, bins, size)`.
fn dense<T: WithDType>(
    intervals: &[(f32, f32)],
    size: usize,
    bins: usize,
    config: &RoiAlignConfig,
    device: &Device,
) -> Result<Tensor> {
    let mut matrices = vec![T::zero(); intervals.len() * bins * size];
    let each = matrices.chunks_exact_mut(bins * size);
    for (matrix, &interval) in each.zip(intervals) {
        let axis = Axis::<T>::new(interval, size, bins, config);
        for (row, (first, weights)) in matrix.chunks_exact_mut(size).zip(axis.bins()) {
            row[first..][..weights.len()].copy_from_slice(weights);
        }
    }
    Tensor::from_vec(matrices, (intervals.len(), bins, size), device)
}
