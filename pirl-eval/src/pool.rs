//! From a feature map to a feature vector.

use std::ops::Range;

use candle_core::Tensor;
use pirl_model::Layer;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// Features that a layer has at most under [`Pool::Grid`], as in the published protocol.
const GRID_DIM: usize = 9216;

/// How a layer's maps become one vector for each image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    /// The average over all positions: as many features as channels. The default, for small images
    /// and quick probes.
    #[default]
    Average,
    /// About 9,000 features a layer, as published for ImageNet: a ResNet-50's maps of a 224-pixel
    /// image are pooled with VISSL's kernels, strides and paddings (conv1 10/10/4, res2 16/8/0,
    /// res3 13/5/0, res4 8/3/0, res5 6/1/0; padding counts as zeros); any other map is pooled
    /// adaptively, as PyTorch's `adaptive_avg_pool2d` does, to the largest square grid with at
    /// most 9,216 features in all.
    Grid,
}

/// Windows along one axis, and what the sum over a window is divided by.
#[derive(Debug, PartialEq)]
struct Windows {
    /// Positions that each cell averages.
    ranges: Vec<Range<usize>>,
    /// Side of every window with its padding; `None`: its own length.
    side: Option<usize>,
}

impl Windows {
    fn adaptive(length: usize, cells: usize) -> Self {
        let ranges = (0..cells)
            .map(|i| i * length / cells..((i + 1) * length).div_ceil(cells))
            .collect();
        Self { ranges, side: None }
    }

    fn strided(length: usize, kernel: usize, stride: usize, padding: usize) -> Self {
        let cells = (length + 2 * padding - kernel) / stride + 1;
        let range = |i: usize| {
            let start = i * stride;
            start.saturating_sub(padding)..(start + kernel - padding).min(length)
        };
        Self {
            ranges: (0..cells).map(range).collect(),
            side: Some(kernel),
        }
    }

    fn divisor(&self, range: &Range<usize>) -> f32 {
        self.side.unwrap_or(range.len()) as f32
    }
}

/// (layer, channels, side of the map, kernel, stride, padding): VISSL,
/// configs/config/benchmark/linear_image_classification/imagenet1k/eval_resnet_8gpu_transfer_in1k_linear.yaml
const PUBLISHED: [(Layer, usize, usize, usize, usize, usize); 5] = [
    (Layer::CONV1, 64, 112, 10, 10, 4),
    (Layer::RES2, 256, 56, 16, 8, 0),
    (Layer::RES3, 512, 28, 13, 5, 0),
    (Layer::RES4, 1024, 14, 8, 3, 0),
    (Layer::RES5, 2048, 7, 6, 1, 0),
];

impl Pool {
    fn windows(self, layer: &Layer, channels: usize, height: usize, width: usize) -> [Windows; 2] {
        let cells = match self {
            Self::Average => 1,
            Self::Grid => {
                let published = PUBLISHED.iter().find(|(at, c, side, ..)| {
                    (at, *c, *side, *side) == (layer, channels, height, width)
                });
                if let Some(&(.., kernel, stride, padding)) = published {
                    return [height, width]
                        .map(|length| Windows::strided(length, kernel, stride, padding));
                }
                (GRID_DIM / channels.max(1))
                    .isqrt()
                    .min(height)
                    .min(width)
                    .max(1)
            }
        };
        [height, width].map(|length| Windows::adaptive(length, cells))
    }

    /// `maps`: `(b, c, h, w)`, in any memory layout. Returns the rows, `(b, c * cells)`, and the
    /// number of cells.
    pub(crate) fn apply(self, layer: &Layer, maps: &Tensor) -> Result<(Vec<f32>, usize)> {
        let (_, channels, height, width) = maps.dims4()?;
        average(maps, &self.windows(layer, channels, height, width))
    }
}

/// As [`Pool::apply`], adaptively to at most `side` rows and `side` columns; smaller maps stay as they
/// are.
pub(crate) fn shrink(maps: &Tensor, side: usize) -> Result<(Vec<f32>, usize)> {
    let (_, _, height, width) = maps.dims4()?;
    let windows = [height, width].map(|length| Windows::adaptive(length, length.min(side)));
    average(maps, &windows)
}

fn average(maps: &Tensor, [rows, columns]: &[Windows; 2]) -> Result<(Vec<f32>, usize)> {
    let (_, channels, height, width) = maps.dims4()?;
    let cells = rows.ranges.len() * columns.ranges.len();
    // The fast engine's maps are views of channels-last memory: this copies nothing then.
    let values = maps
        .permute((0, 2, 3, 1))?
        .flatten_all()?
        .to_vec1::<f32>()?;
    let image = height * width * channels;
    let pooled = values
        .par_chunks(image.max(1))
        .flat_map_iter(|map| {
            let mut pooled = vec![0.0; channels * cells];
            let mut sums = vec![0f32; channels];
            let windows = rows
                .ranges
                .iter()
                .flat_map(|row| columns.ranges.iter().map(move |column| (row, column)));
            for (cell, (row, column)) in windows.enumerate() {
                sums.fill(0.0);
                for y in row.clone() {
                    let line = &map[(y * width + column.start) * channels..];
                    for pixel in line[..column.len() * channels].chunks_exact(channels) {
                        sums.iter_mut()
                            .zip(pixel)
                            .for_each(|(sum, value)| *sum += value);
                    }
                }
                let count = rows.divisor(row) * columns.divisor(column);
                for (channel, sum) in sums.iter().enumerate() {
                    pooled[channel * cells + cell] = sum / count;
                }
            }
            pooled
        })
        .collect();
    Ok((pooled, cells))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn dim(pool: Pool, layer: Layer, channels: usize, side: usize) -> usize {
        let [rows, columns] = pool.windows(&layer, channels, side, side);
        channels * rows.ranges.len() * columns.ranges.len()
    }

    #[test]
    fn a_grid_has_the_published_sizes_and_never_more_than_9216_features() {
        let sizes =
            PUBLISHED.map(|(layer, channels, side, ..)| dim(Pool::Grid, layer, channels, side));
        assert_eq!(sizes, [9216, 9216, 8192, 9216, 8192]);
        assert_eq!(dim(Pool::Grid, Layer::RES5, 512, 7), 512 * 16); // ResNet-18
        assert_eq!(dim(Pool::Grid, Layer::RES2, 32, 28), 32 * 16 * 16); // 17 * 17 * 32 = 9248
        assert_eq!(dim(Pool::Grid, Layer::RES5, 256, 4), 256 * 16); // no finer than the map
        assert_eq!(dim(Pool::Grid, Layer::RES5, 16_384, 7), 16_384);
        assert_eq!(dim(Pool::Average, Layer::RES4, 1024, 14), 1024);
    }

    #[test]
    fn windows_are_those_of_pytorch() {
        // adaptive_avg_pool2d of 7 into 3: [0, 3), [2, 5), [4, 7).
        assert_eq!(Windows::adaptive(7, 3).ranges, [0..3, 2..5, 4..7]);
        let conv1 = Windows::strided(112, 10, 10, 4);
        assert_eq!(
            (conv1.ranges.len(), &conv1.ranges[0], &conv1.ranges[11]),
            (12, &(0..6), &(106..112))
        );
    }

    #[test]
    fn maps_are_averaged_whatever_their_memory_layout() -> Result<()> {
        let values = benches::fill(5, 2 * 3 * 4 * 6);
        let maps = Tensor::from_vec(values.clone(), (2, 3, 4, 6), &Device::Cpu)?;
        let view = maps
            .permute((0, 2, 3, 1))?
            .contiguous()?
            .permute((0, 3, 1, 2))?;
        for maps in [&maps, &view] {
            let (average, cells) = Pool::Average.apply(&Layer::RES3, maps)?;
            assert_eq!((average.len(), cells), (6, 1));
            for (got, map) in average.iter().zip(values.chunks(24)) {
                assert!((got - map.iter().sum::<f32>() / 24.0).abs() < 1e-6);
            }
            // A 4 x 4 grid over 4 x 6: columns [0, 2), [1, 3), [3, 5), [4, 6).
            let (grid, cells) = Pool::Grid.apply(&Layer::RES3, maps)?;
            assert_eq!((grid.len(), cells), (2 * 3 * 16, 16));
            let [a, b] = [values[24 + 6 + 1], values[24 + 6 + 2]]; // channel 1, row 1
            assert!((grid[16 + 4 + 1] - (a + b) / 2.0).abs() < 1e-6);
        }
        Ok(())
    }
}
