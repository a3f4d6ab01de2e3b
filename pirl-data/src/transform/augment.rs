//! What happens to a crop, or to one patch: the random colour and mirror operations, in order.

use rand::{Rng, RngExt};

use super::blur::gaussian_blur;
use super::color::{brightness, contrast, grayscale, saturation};
use super::hue::hue;
use super::orient::flip;
use super::photometric::{autocontrast, posterize, sharpness, solarize};
use crate::Image;
use crate::config::ViewConfig;
use crate::random::{chance, shuffle, uniform};

/// Jitter, photometric set, grey, blur, flip: VISSL's order, each drawn on its own.
#[derive(Clone, Debug)]
pub(crate) struct Augment(ViewConfig);

/// The operations of the jitter, which come in a random order.
#[derive(Clone, Copy)]
enum Jitter {
    Brightness,
    Contrast,
    Saturation,
    Hue,
}

impl Augment {
    /// `config` has been checked.
    pub(crate) fn new(config: &ViewConfig) -> Self {
        Self(config.clone())
    }

    pub(crate) fn apply(&self, image: &mut Image, rng: &mut dyn Rng, spare: &mut Vec<u8>) {
        let config = &self.0;
        if chance(rng, config.jitter_probability) {
            self.jitter(image, rng);
        }
        if chance(rng, config.photometric) {
            // The ranges of VISSL's `img_pil_random_photometric.py`.
            posterize(image, rng.random_range(4..=8));
            sharpness(image, uniform(rng, [0.1, 1.9]) as f32, spare);
            solarize(image, rng.random_range(0..=256));
            autocontrast(image);
        }
        if chance(rng, config.gray) {
            grayscale(image);
        }
        if chance(rng, config.blur_probability) {
            gaussian_blur(image, uniform(rng, config.blur_radius) as f32, spare);
        }
        if chance(rng, config.flip) {
            flip(image);
        }
    }

    /// torchvision's `ColorJitter`: factors drawn first, then applied in a random order.
    fn jitter(&self, image: &mut Image, rng: &mut dyn Rng) {
        let config = &self.0;
        let mut order = [
            Jitter::Brightness,
            Jitter::Contrast,
            Jitter::Saturation,
            Jitter::Hue,
        ];
        shuffle(rng, &mut order);
        let mut around_one =
            |width: f64| uniform(rng, [(1.0 - width).max(0.0), 1.0 + width]) as f32;
        let bright = around_one(config.brightness);
        let contrasting = around_one(config.contrast);
        let saturated = around_one(config.saturation);
        let turn = uniform(rng, [-config.hue, config.hue]) as f32;
        for operation in order {
            match operation {
                Jitter::Brightness if config.brightness > 0.0 => brightness(image, bright),
                Jitter::Contrast if config.contrast > 0.0 => contrast(image, contrasting),
                Jitter::Saturation if config.saturation > 0.0 => saturation(image, saturated),
                // 8-bit HSV is not lossless, so a hue of 0 must skip it.
                Jitter::Hue if config.hue > 0.0 => hue(image, turn),
                _ => {}
            }
        }
    }
}
