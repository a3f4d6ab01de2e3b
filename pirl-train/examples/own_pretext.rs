//! A pretext task of one's own: the image in its complementary colours, upside down.
//!
//!     cargo run --release -p pirl-train --example own_pretext -- FOLDER
mod support;

use std::sync::Arc;

use pirl_data::{DataError, Image, Pretext, transform::Scratch};
use pirl_train::{Learner, Pirl};
use rand::{Rng, RngExt};

const SIDE: usize = 32;

/// One view of an image: each channel inverted, rows from bottom to top, moved by a few pixels.
struct Negative;

impl Pretext for Negative {
    fn views(&self) -> usize {
        1
    }

    fn view_size(&self) -> usize {
        SIDE
    }

    /// There is no label to predict: a transformation for PIRL, not for the covariant baseline.
    fn labels(&self) -> usize {
        0
    }

    fn apply(
        &self,
        image: &Image,
        rng: &mut dyn Rng,
        _: &mut Scratch,
        out: &mut [u8],
    ) -> Result<u32, DataError> {
        let shift = rng.random_range(0..4); // all chance comes from `rng`
        for (at, out) in out.iter_mut().enumerate() {
            let (channel, y, x) = (at / (SIDE * SIDE), at / SIDE % SIDE, at % SIDE);
            let column = (x + shift).min(SIDE - 1) * image.width / SIDE;
            let row = (SIDE - 1 - y) * image.height / SIDE;
            *out = 255 - image.pixel(column, row).unwrap_or_default()[channel];
        }
        Ok(0)
    }
}

fn main() -> support::Result<()> {
    let images = support::images()?;
    let objective = Pirl::builder(images.len(), Negative.views()).negatives(images.len() - 1);
    let learner = Learner::builder(support::resnet, objective.build()?).build()?;
    support::train(learner, support::loader(images, Some(Arc::new(Negative)))?)
}
