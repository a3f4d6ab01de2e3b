//! What the images of a pack are like: sizes and colours, of a sample.

use super::Pack;
use crate::{DataError, Image};

/// Sizes and colours of a sample of a pack's images.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageStatistics {
    /// Images looked at.
    pub images: usize,
    /// Median of the shorter sides, in pixels.
    pub shorter_side: usize,
    /// Whether every pixel of every image is grey.
    pub gray: bool,
    /// Mean of red, green and blue over all pixels, every image counting alike, of values in 0..=1.
    pub mean: [f32; 3],
    /// Standard deviation, likewise.
    pub std: [f32; 3],
}

impl ImageStatistics {
    /// Of `sample` images, evenly spaced in the pack; images that cannot be decoded are left out.
    ///
    /// # Errors
    /// [`DataError::Decode`] if none can be decoded.
    pub fn of(pack: &Pack, sample: usize) -> Result<Self, DataError> {
        let count = sample.clamp(1, pack.len().max(1));
        let mut image = Image::empty();
        let mut sides = Vec::with_capacity(count);
        let (mut sums, mut squares, mut gray) = ([0f64; 3], [0f64; 3], true);
        let mut failure = None;
        for number in 0..count {
            if let Err(error) = pack.decode_into(number * pack.len() / count, &mut image) {
                failure = Some(error);
                continue;
            }
            sides.push(image.width.min(image.height));
            let weight = 1.0 / (image.width * image.height) as f64;
            for pixel in image.pixels.chunks_exact(3) {
                gray &= pixel[0] == pixel[1] && pixel[1] == pixel[2];
                for (channel, value) in pixel.iter().enumerate() {
                    let value = f64::from(*value) / 255.0;
                    sums[channel] += value * weight;
                    squares[channel] += value * value * weight;
                }
            }
        }
        if let (true, Some(error)) = (sides.is_empty(), failure) {
            return Err(error);
        }
        let images = sides.len();
        sides.sort_unstable();
        let mean = sums.map(|sum| sum / images as f64);
        let mut std = [0f32; 3];
        for (channel, std) in std.iter_mut().enumerate() {
            let variance = squares[channel] / images as f64 - mean[channel].powi(2);
            // Images of one colour have none, and what they are divided by must not be 0.
            *std = variance.max(0.0).sqrt().max(1e-3) as f32;
        }
        Ok(Self {
            images,
            shorter_side: sides[images / 2],
            gray,
            mean: mean.map(|mean| mean as f32),
            std,
        })
    }
}
