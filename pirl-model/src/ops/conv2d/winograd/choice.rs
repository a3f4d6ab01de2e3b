//! When Winograd's way pays.

use serde::{Deserialize, Serialize};

use super::super::shape::ConvShape;
use super::transform::{Four, Tiles, Two};

/// Whether convolutions of 3x3 taps and stride 1 may be computed by Winograd's minimal filtering, on a
/// CPU in `f32`: with fewer products, and other rounding.
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
    /// The way of `product` of the convolution `s`.
    pub(in super::super) fn way(self, s: &ConvShape, product: Product) -> Way {
        if self == Self::Off || !possible(s) {
            return Way::Direct;
        }
        let costs = [
            (Way::Direct, direct(s)),
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

/// In products.
fn direct(s: &ConvShape) -> f64 {
    // Taps inside the map, over the places of an axis.
    let axis = |input: usize, output: usize| -> usize {
        let of_place = |o: usize| {
            (o + 3)
                .min(input + s.padding)
                .saturating_sub(o.max(s.padding))
        };
        (0..output).map(of_place).sum()
    };
    let (h, w) = s.out_hw();
    (s.n * axis(s.h, h) * axis(s.w, w) * s.c_in * s.c_out) as f64
}

fn of_tiles<W: Tiles>(s: &ConvShape, product: Product) -> f64 {
    let (h, w) = match product {
        Product::Input => (s.h, s.w),
        Product::Output | Product::Weight => s.out_hw(),
    };
    let tiles = s.n * h.div_ceil(W::OUT) * w.div_ceil(W::OUT);
    let products = (tiles * W::PRODUCTS * s.c_in * s.c_out) as f64;
    let transforms = 10.0 * (tiles * W::PRODUCTS * (s.c_in + s.c_out)) as f64;
    let weight = 8.0 * (W::PRODUCTS * s.c_in * s.c_out) as f64;
    products + transforms + weight
}
