//! When Winograd's way pays.
//!
//! A model of its cost decides, so that the same sizes go the same way, with the same rounding, with any
//! number of threads and on every machine but those that multiply pairs of `bf16`, for that type. Costs are in products of two numbers by the direct kernels;
//! the constants were fitted to 45 convolutions of 2x2 to 56x56 maps, batches of 1 to 400 and 3 to 512
//! channels on AVX2. What the model chooses takes 1 to 3 % longer than the fastest of the three ways, in
//! the geometric mean over those (`benches/RESULTS.md`).

use serde::{Deserialize, Serialize};

use super::super::shape::ConvShape;
use super::transform::{Four, Tiles, Two};

/// Whether convolutions of 3x3 taps and stride 1 may be computed by Winograd's minimal filtering on a CPU: in
/// `f32`, with fewer products, and other rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Winograd {
    /// Where a model of its cost says that it is faster.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Way {
    /// Tap by tap.
    Direct,
    /// By tiles of 2x2 outputs, [`Two`].
    Two,
    /// By tiles of 4x4 outputs, [`Four`].
    Four,
}

/// What is computed of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Product {
    /// Its output.
    Output,
    /// The gradient with respect to its input.
    Input,
    /// The gradient with respect to its weight.
    Weight,
}

impl Winograd {
    /// The way of `product` of the convolution `s`, where the direct kernels multiply so many numbers in each
    /// lane.
    pub(in super::super) fn way(self, s: &ConvShape, product: Product, lane_numbers: usize) -> Way {
        if self == Self::Off || !possible(s) {
            return Way::Direct;
        }
        let costs = [
            (Way::Direct, direct(s, product) / lane_numbers as f64),
            (Way::Two, of_tiles::<Two>(s, product)),
            (Way::Four, of_tiles::<Four>(s, product)),
        ];
        let cheapest = costs.into_iter().min_by(|a, b| a.1.total_cmp(&b.1));
        cheapest.map_or(Way::Direct, |(way, _)| way)
    }
}

/// Whether the convolution is one that tiles can compute, and not an empty one.
pub(in super::super) fn possible(s: &ConvShape) -> bool {
    s.kernel == 3 && s.stride == 1 && s.padding <= 2 && s.in_len() > 0 && s.out_len() > 0
}

/// A product with each tap inside the map.
fn direct(s: &ConvShape, product: Product) -> f64 {
    let axis = |input: usize, output: usize| -> usize {
        let taps = |o: usize| {
            (o + 3)
                .min(input + s.padding)
                .saturating_sub(o.max(s.padding))
        };
        (0..output).map(taps).sum()
    };
    let (h, w) = s.out_hw();
    let taps = axis(s.h, h) * axis(s.w, w);
    let (products, pairs) = ((s.n * taps) as f64, (s.c_in * s.c_out) as f64);
    match product {
        Product::Output | Product::Input => products * pairs,
        // The sums of the tasks are cleared, added up and unpacked; each task packs for itself.
        Product::Weight => (products + 38.0 * 9.0) * pairs + 4.6e6,
    }
}

/// The products of tiles, the transforms of each channel of each tile, and that of the weight or of its
/// gradient.
fn of_tiles<W: Tiles>(s: &ConvShape, product: Product) -> f64 {
    let ((h, w), transform, weight) = match product {
        Product::Output => (s.out_hw(), 32.0, 30.0),
        Product::Input => ((s.h, s.w), 32.0, 30.0),
        Product::Weight => (s.out_hw(), 25.0, 42.0),
    };
    let tiles = (s.n * h.div_ceil(W::OUT) * w.div_ceil(W::OUT)) as f64;
    let (pairs, channels) = ((s.c_in * s.c_out) as f64, (s.c_in + s.c_out) as f64);
    let of_each_product = tiles * (pairs + transform * channels) + weight * pairs;
    W::PRODUCTS as f64 * of_each_product
}
