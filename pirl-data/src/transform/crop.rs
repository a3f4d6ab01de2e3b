//! Where to crop: torchvision's random resized crop.

use rand::Rng;

use crate::Image;
use crate::random::{below, uniform};

/// A rectangle of an image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crop {
    /// Columns left of it.
    pub left: usize,
    /// Rows above it.
    pub top: usize,
    /// Its columns.
    pub width: usize,
    /// Its rows.
    pub height: usize,
}

impl Crop {
    /// All of `image`.
    pub fn whole(image: &Image) -> Self {
        Self {
            left: 0,
            top: 0,
            width: image.width,
            height: image.height,
        }
    }

    /// The same pixels, of a crop of an image of `width` x `height` turned counter-clockwise by
    /// `turns` quarters, in the image as it was.
    pub(crate) fn turned_back(self, turns: u32, width: usize, height: usize) -> Self {
        let (left, top) = match turns % 4 {
            0 => (self.left, self.top),
            1 => (width - self.top - self.height, self.left),
            2 => (
                width - self.left - self.width,
                height - self.top - self.height,
            ),
            _ => (self.top, height - self.left - self.width),
        };
        let (width, height) = match turns % 2 {
            0 => (self.width, self.height),
            _ => (self.height, self.width),
        };
        Self {
            left,
            top,
            width,
            height,
        }
    }
}

/// Tries at a crop that fits before the central one is taken (`torchvision.transforms`).
const TRIES: usize = 10;

/// A crop of random area and aspect ratio, sampled as torchvision's `RandomResizedCrop`.
#[derive(Clone, Debug, PartialEq)]
pub struct RandomResizedCrop {
    /// Share of the image's area, least and most, in `(0, 1]`.
    pub scale: [f64; 2],
    /// Width over height, least and most, above 0; its logarithm is drawn uniformly.
    pub ratio: [f64; 2],
}

impl RandomResizedCrop {
    /// Draws a crop of an image of `width` x `height` pixels, both at least 1.
    ///
    /// Of ten tries the first that fits is placed at random; without one, the largest central crop
    /// whose ratio is in range is taken.
    pub fn draw(&self, width: usize, height: usize, rng: &mut dyn Rng) -> Crop {
        let area = width as f64 * height as f64;
        for _ in 0..TRIES {
            let target = area * uniform(rng, self.scale);
            let ratio = uniform(rng, self.ratio.map(f64::ln)).exp();
            let w = (target * ratio).sqrt().round_ties_even() as usize;
            let h = (target / ratio).sqrt().round_ties_even() as usize;
            if (1..=width).contains(&w) && (1..=height).contains(&h) {
                return Crop {
                    top: below(rng, height - h + 1),
                    left: below(rng, width - w + 1),
                    width: w,
                    height: h,
                };
            }
        }
        self.central(width, height)
    }

    fn central(&self, width: usize, height: usize) -> Crop {
        let ratio = width as f64 / height as f64;
        let [least, most] = self.ratio;
        let (w, h) = if ratio < least {
            (width, (width as f64 / least).round_ties_even() as usize)
        } else if ratio > most {
            ((height as f64 * most).round_ties_even() as usize, height)
        } else {
            (width, height)
        };
        // Rounding cannot leave the image when the ratio is out of range, but an extreme range
        // can round a side to 0.
        let (w, h) = (w.clamp(1, width), h.clamp(1, height));
        Crop {
            left: (width - w) / 2,
            top: (height - h) / 2,
            width: w,
            height: h,
        }
    }
}
