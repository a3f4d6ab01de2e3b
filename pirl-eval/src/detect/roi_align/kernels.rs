//! ROIAlign on channels-last slices, forward and backward, in parallel.

use candle_core::WithDType;
use pulp::Arch;
use rayon::prelude::*;

use super::axis::Axis;
use super::{Maps, Roi, RoiAlignConfig};

/// Channels that one thread sends gradients to at a time: its share of a map fits into a cache.
const BLOCK: usize = 64;

/// The sampling weights of all regions of a call.
pub(super) struct RegionWeights<T> {
    maps: Maps,
    output: (usize, usize),
    regions: Vec<Region<T>>,
}

struct Region<T> {
    image: usize,
    rows: Axis<T>,
    columns: Axis<T>,
}

impl<T: WithDType> RegionWeights<T> {
    pub(super) fn new(maps: Maps, rois: &[Roi], config: &RoiAlignConfig) -> Self {
        let region = |roi: &Roi| {
            let [x0, y0, x1, y1] = roi.bbox;
            let (rows, columns) = config.output_size;
            Region {
                image: roi.image,
                rows: Axis::new((y0, y1), maps.height, rows, config),
                columns: Axis::new((x0, x1), maps.width, columns, config),
            }
        };
        Self {
            maps,
            output: config.output_size,
            regions: rois.par_iter().map(region).collect(),
        }
    }

    /// `features`: `(n, h, w, c)`; `out`: `(rois, rows, columns, c)`, zeros at first.
    pub(super) fn forward(&self, features: &[T], out: &mut [T]) {
        let Maps {
            channels,
            height,
            width,
            ..
        } = self.maps;
        let (rows, columns) = self.output;
        if out.is_empty() {
            return;
        }
        let image = height * width * channels;
        let arch = Arch::new();
        out.par_chunks_mut(rows * columns * channels)
            .zip(&self.regions)
            .for_each_init(Vec::new, |sums, (out, region)| {
                let features = &features[region.image * image..][..image];
                arch.dispatch(
                    #[inline(always)]
                    || forward(region, features, (width, channels), sums, out),
                );
            });
    }

    /// The transpose of [`RegionWeights::forward`]: `d_out`: `(rois, rows, columns, c)`; `d_features`:
    /// `(n, h, w, c)`, overwritten.
    ///
    /// Regions overlap, so threads share channels out and not regions; each then adds up the regions
    /// in their order, whatever the number of threads.
    pub(super) fn backward(&self, d_out: &[T], d_features: &mut [T]) {
        let Maps {
            images,
            channels,
            height,
            width,
        } = self.maps;
        if d_features.is_empty() {
            return;
        }
        let cells = height * width;
        let threads = rayon::current_num_threads();
        let block = (images * channels).div_ceil(threads).clamp(1, BLOCK);
        let blocks = channels.div_ceil(block);
        let arch = Arch::new();
        // Maps of `block` channels each, block by block within an image.
        let mut parts: Vec<Vec<T>> = Vec::new();
        (0..images * blocks)
            .into_par_iter()
            .map_init(Vec::new, |sums, index| {
                let (image, first) = (index / blocks, index % blocks * block);
                let channel = first..channels.min(first + block);
                let mut part = vec![T::zero(); cells * channel.len()];
                let (rows, columns) = self.output;
                let d_regions = d_out.chunks_exact(rows * columns * channels);
                for (region, d_out) in self.regions.iter().zip(d_regions) {
                    if region.image == image {
                        arch.dispatch(
                            #[inline(always)]
                            || {
                                backward(
                                    region,
                                    d_out,
                                    channels,
                                    channel.clone(),
                                    width,
                                    sums,
                                    &mut part,
                                )
                            },
                        );
                    }
                }
                part
            })
            .collect_into_vec(&mut parts);
        d_features
            .par_chunks_mut(channels)
            .enumerate()
            .for_each(|(cell, d_features)| {
                let parts = &parts[cell / cells * blocks..][..blocks];
                for (d_features, part) in d_features.chunks_mut(block).zip(parts) {
                    let part = &part[cell % cells * d_features.len()..][..d_features.len()];
                    d_features.copy_from_slice(part);
                }
            });
    }
}

/// One region: each row of the output is a sum of rows of the map, summed again along columns.
#[inline(always)]
fn forward<T: WithDType>(
    region: &Region<T>,
    features: &[T],
    (width, channels): (usize, usize),
    sums: &mut Vec<T>,
    out: &mut [T],
) {
    let span = region.columns.span();
    let length = span.len() * channels;
    if length == 0 {
        return;
    }
    sums.resize(length, T::zero());
    let columns = region.columns.bins().len();
    let out_rows = out.chunks_exact_mut(columns * channels);
    for ((first_row, weights), out) in region.rows.bins().zip(out_rows) {
        let rows = weights.iter().zip(first_row..).map(|(&weight, row)| {
            let start = (row * width + span.start) * channels;
            (weight, &features[start..][..length])
        });
        weighted_sum(rows, sums);
        if weights.is_empty() {
            continue;
        }
        for ((first, weights), out) in region.columns.bins().zip(out.chunks_exact_mut(channels)) {
            let cells = weights.iter().zip(first..).map(|(&weight, column)| {
                let start = (column - span.start) * channels;
                (weight, &sums[start..][..channels])
            });
            weighted_sum(cells, out);
        }
    }
}

/// The gradient of [`forward`] for the channels `channel`, added to `d_features`, which has only
/// those.
#[inline(always)]
fn backward<T: WithDType>(
    region: &Region<T>,
    d_out: &[T],
    channels: usize,
    channel: std::ops::Range<usize>,
    width: usize,
    sums: &mut Vec<T>,
    d_features: &mut [T],
) {
    let span = region.columns.span();
    let count = channel.len();
    let length = span.len() * count;
    let columns = region.columns.bins().len();
    let d_rows = d_out.chunks_exact(columns * channels);
    for ((first_row, weights), d_row) in region.rows.bins().zip(d_rows) {
        if weights.is_empty() || length == 0 {
            continue;
        }
        sums.clear();
        sums.resize(length, T::zero());
        for ((first, weights), d_cell) in region.columns.bins().zip(d_row.chunks_exact(channels)) {
            let d_cell = &d_cell[channel.clone()];
            for (&weight, column) in weights.iter().zip(first..) {
                let start = (column - span.start) * count;
                add_scaled(weight, d_cell, &mut sums[start..][..count]);
            }
        }
        for (&weight, row) in weights.iter().zip(first_row..) {
            let start = (row * width + span.start) * count;
            add_scaled(weight, sums, &mut d_features[start..][..length]);
        }
    }
}

/// `out` becomes the sum of the terms, each a weight and as many numbers as `out` has; untouched
/// without terms.
#[inline(always)]
fn weighted_sum<'a, T: WithDType>(mut terms: impl Iterator<Item = (T, &'a [T])>, out: &mut [T]) {
    let Some((a, x)) = terms.next() else { return };
    let Some((b, y)) = terms.next() else {
        out.iter_mut().zip(x).for_each(|(out, &x)| *out = a * x);
        return;
    };
    for ((out, &x), &y) in out.iter_mut().zip(x).zip(y) {
        *out = a * x + b * y;
    }
    while let Some((a, x)) = terms.next() {
        match terms.next() {
            Some((b, y)) => {
                for ((out, &x), &y) in out.iter_mut().zip(x).zip(y) {
                    *out += a * x + b * y;
                }
            }
            None => add_scaled(a, x, out),
        }
    }
}

#[inline(always)]
fn add_scaled<T: WithDType>(weight: T, x: &[T], out: &mut [T]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out += weight * x;
    }
}
