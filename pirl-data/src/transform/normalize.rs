//! From 8-bit pixels to normalised numbers, channels apart.

#![allow(
    clippy::needless_range_loop,
    reason = "one index over several arrays is what becomes vector code"
)]

use crate::Image;

use super::lanes::{Block, LANES, Visit, vectorised, visit};

/// `(value / 255 - mean) / std` in `f32`, as torchvision's `ToTensor` and `Normalize`.
#[derive(Clone, Debug)]
pub(crate) struct Normalize {
    mean: [f32; 3],
    std: [f32; 3],
}

impl Normalize {
    pub(crate) fn new(mean: [f32; 3], std: [f32; 3]) -> Self {
        Self { mean, std }
    }

    /// Writes `image` to `out` as `(3, height, width)`; `out` has that many entries.
    pub(crate) fn write(&self, image: &Image, out: &mut [f32]) {
        debug_assert_eq!(out.len(), image.pixels.len());
        write_planes(&image.pixels, self.mean, self.std, out);
    }

    /// Back to 8 bits: the entry of the table that is nearest to each number.
    pub(crate) fn restore(&self, view: &[f32], side: usize) -> Image {
        let area = side * side;
        let mut pixels = vec![0; area * 3];
        for (channel, plane) in view.chunks_exact(area).enumerate() {
            let (mean, std) = (self.mean[channel], self.std[channel]);
            let table: [f32; 256] = std::array::from_fn(|value| number(value as u8, mean, std));
            for (pixel, number) in pixels.chunks_exact_mut(3).zip(plane) {
                // The table rises with the value.
                pixel[channel] = table.partition_point(|entry| entry < number).min(255) as u8;
            }
        }
        Image {
            width: side,
            height: side,
            pixels,
        }
    }
}

#[inline(always)]
fn number(value: u8, mean: f32, std: f32) -> f32 {
    (f32::from(value) / 255.0 - mean) / std
}

vectorised! {
    fn write_planes(pixels: &[u8], mean: [f32; 3], std: [f32; 3], out: &mut [f32]) {
        let (red, rest) = out.split_at_mut(pixels.len() / 3);
        let (green, blue) = rest.split_at_mut(pixels.len() / 3);
        let mut planes = Planes { rest: [red, green, blue], mean, std };
        visit(pixels, &mut planes);
    }
}

/// What of the three planes is still to be written.
struct Planes<'a> {
    rest: [&'a mut [f32]; 3],
    mean: [f32; 3],
    std: [f32; 3],
}

impl Visit for Planes<'_> {
    #[inline(always)]
    fn visit(&mut self, block: &Block) {
        for channel in 0..3 {
            let (mean, std) = (self.mean[channel], self.std[channel]);
            let mut numbers = [0.0; LANES];
            for lane in 0..LANES {
                numbers[lane] = number(block[channel][lane], mean, std);
            }
            let rest = std::mem::take(&mut self.rest[channel]);
            let (out, rest) = rest.split_at_mut(rest.len().min(LANES));
            out.copy_from_slice(&numbers[..out.len()]);
            self.rest[channel] = rest;
        }
    }
}
