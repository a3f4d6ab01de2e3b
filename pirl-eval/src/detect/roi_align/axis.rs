//! ROIAlign along one axis.
//!
//! A cell's samples lie on a grid, and a bilinear sample weighs rows and columns apart. So the mean
//! over a cell is a weighted sum of rows, of weighted sums of columns, and the weights of an axis do
//! not depend on the other.

use std::ops::Range;

use candle_core::WithDType;

use super::RoiAlignConfig;

/// The weights with which the cells of a region sum the features along an axis.
pub(super) struct Axis<T> {
    bins: Vec<Bin>,
    weights: Vec<T>,
    /// Positions with a weight in some bin.
    span: Range<usize>,
}

/// A cell of the output: consecutive positions of the map.
struct Bin {
    first: usize,
    weights: Range<usize>,
}

impl<T: WithDType> Axis<T> {
    /// Of a region from `start` to `end` pixels along an axis with `size` features, cut into `bins`.
    ///
    /// Coordinates are computed in `T` in torchvision's order of operations, so that a sample falls
    /// between the same two features.
    pub(super) fn new(
        (start, end): (f32, f32),
        size: usize,
        bins: usize,
        config: &RoiAlignConfig,
    ) -> Self {
        let number = T::from_f64;
        let scale = number(config.spatial_scale);
        let offset = number(if config.aligned { 0.5 } else { 0.0 });
        let start = number(start.into()) * scale - offset;
        let mut length = number(end.into()) * scale - offset - start;
        if !config.aligned && length < T::one() {
            length = T::one();
        }
        let bin_size = length / number(bins as f64);
        let samples = match config.sampling_ratio {
            0 => bin_size.to_f64().ceil().max(0.0),
            ratio => ratio as f64,
        };
        let mut axis = Self {
            bins: Vec::with_capacity(bins),
            weights: Vec::new(),
            span: 0..0,
        };
        for bin in 0..bins {
            let start = start + number(bin as f64) * bin_size;
            let at = |sample: u64| {
                start + (number(sample as f64) + number(0.5)) * bin_size / number(samples)
            };
            axis.push(size, samples, inside(start, bin_size, samples, size), at);
        }
        axis
    }

    /// Adds the bin whose sample `s` lies `at(s)`; only those in `near` can lie on the map.
    fn push(&mut self, size: usize, samples: f64, near: Range<u64>, at: impl Fn(u64) -> T) {
        let last = size - 1;
        let begin = self.weights.len();
        let mut first = 0;
        let share = T::one() / T::from_f64(samples.max(1.0));
        let mut add = |position: usize, weight: T| {
            if self.weights.len() == begin {
                first = position;
            }
            // Samples rise or (in an inverted region) fall.
            if position < first {
                let missing = first - position;
                self.weights
                    .splice(begin..begin, std::iter::repeat_n(T::zero(), missing));
                first = position;
            }
            let index = begin + position - first;
            if index >= self.weights.len() {
                self.weights.resize(index + 1, T::zero());
            }
            self.weights[index] += weight;
        };
        for sample in near {
            let position = at(sample).to_f64();
            if !(position >= -1.0 && position <= size as f64) {
                continue;
            }
            let position = position.max(0.0);
            let low = position as usize;
            if low >= last {
                add(last, share);
            } else {
                let high = T::from_f64(position) - T::from_f64(low as f64);
                add(low, (T::one() - high) * share);
                add(low + 1, high * share);
            }
        }
        let weights = begin..self.weights.len();
        if !weights.is_empty() {
            let positions = first..first + weights.len();
            self.span = if self.span.is_empty() {
                positions
            } else {
                self.span.start.min(positions.start)..self.span.end.max(positions.end)
            };
        }
        self.bins.push(Bin { first, weights });
    }

    /// The positions with a weight in some bin.
    pub(super) fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// For each bin its first position, and the weights of that position and those after it.
    pub(super) fn bins(&self) -> impl ExactSizeIterator<Item = (usize, &[T])> {
        let weights = &self.weights;
        self.bins
            .iter()
            .map(move |bin| (bin.first, &weights[bin.weights.clone()]))
    }
}

/// A range that holds every sample on a map of `size` features: a region may reach far out of the map,
/// where most of its samples have no weight.
fn inside<T: WithDType>(start: T, bin_size: T, samples: f64, size: usize) -> Range<u64> {
    let all = 0..samples as u64;
    let step = bin_size.to_f64() / samples;
    if step <= 0.0 || samples < 64.0 {
        return all; // inverted regions have a fixed number of samples
    }
    let sample = |position: f64| (position - start.to_f64()) / step;
    // Beyond the rounding of `start` and `step`, which are `f32` at worst.
    let slack = 2.0 + 1e-5 * samples;
    let first = (sample(-1.0) - slack).max(0.0) as u64;
    let end = (sample(size as f64) + slack).max(0.0) as u64;
    first.min(all.end)..end.min(all.end)
}
