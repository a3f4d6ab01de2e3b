//! The colour operations of Pillow's `ImageEnhance` and torchvision's `ColorJitter`.

#![allow(
    clippy::needless_range_loop,
    reason = "one index over several arrays is what becomes vector code"
)]

use pirl_core::vectorised;

use super::lanes::{Block, Change, LANES, Visit, change, to_byte, visit};
use crate::Image;

/// ITU-R 601-2 luma in 16-bit fixed point, as Pillow's `convert("L")`.
#[inline(always)]
pub(crate) fn luma(red: u8, green: u8, blue: u8) -> u32 {
    let (red, green, blue) = (u32::from(red), u32::from(green), u32::from(blue));
    (red * 19_595 + green * 38_470 + blue * 7_471 + 0x8000) >> 16
}

/// Whether hue, saturation and luma do not change an image: every pixel has three equal channels, or the
/// channels are not red, green and blue.
pub(crate) fn is_gray(image: &Image) -> bool {
    if image.channels != 3 {
        return true;
    }
    image
        .pixels
        .chunks_exact(3)
        .all(|pixel| pixel[0] == pixel[1] && pixel[1] == pixel[2])
}

/// Pillow's `Image.blend`: from `base` at 0 to `value` at 1 and beyond, cut off, not rounded.
#[inline(always)]
pub(super) fn blend(base: f32, value: u8, factor: f32) -> u8 {
    to_byte(base + factor * (f32::from(value) - base))
}

vectorised! {
    /// Blends every value with the same `base`.
    fn blend_all(values: &mut [u8], base: f32, factor: f32) {
        for value in values {
            *value = blend(base, *value, factor);
        }
    }
}

/// Multiplies all values by `factor`, at least 0.
pub fn brightness(image: &mut Image, factor: f32) {
    blend_all(&mut image.pixels, 0.0, factor);
}

/// Moves all values away from the image's mean luma by `factor`: 0 is flat, 1 changes nothing. Of channels
/// that are not RGB the mean is that of all values.
pub fn contrast(image: &mut Image, factor: f32) {
    let (sum, count) = match image.channels {
        3 => (sum_of_luma(&image.pixels), image.pixels.len() / 3),
        _ => {
            let values = image.pixels.iter();
            (
                values.map(|value| u64::from(*value)).sum(),
                image.pixels.len(),
            )
        }
    };
    if count == 0 {
        return;
    }
    let mean = (sum as f64 / count as f64 + 0.5) as u8;
    blend_all(&mut image.pixels, f32::from(mean), factor);
}

vectorised! {
    fn sum_of_luma(pixels: &[u8]) -> u64 {
        let mut sum = SumOfLuma(0);
        visit(pixels, &mut sum);
        sum.0
    }
}

struct SumOfLuma(u64);

impl Visit for SumOfLuma {
    #[inline(always)]
    fn visit(&mut self, [reds, greens, blues]: &Block) {
        let mut sum = 0;
        for lane in 0..LANES {
            sum += luma(reds[lane], greens[lane], blues[lane]);
        }
        self.0 += u64::from(sum);
    }
}

/// Moves every pixel away from its own luma by `factor`: 0 is grey, 1 changes nothing. Channels that are not
/// RGB do not change.
pub fn saturation(image: &mut Image, factor: f32) {
    if !is_gray(image) {
        saturate(&mut image.pixels, factor);
    }
}

vectorised! {
    fn saturate(pixels: &mut [u8], factor: f32) {
        change(pixels, Saturate { factor });
    }
}

struct Saturate {
    factor: f32,
}

impl Change for Saturate {
    #[inline(always)]
    fn change(&mut self, [reds, greens, blues]: &mut Block) {
        for lane in 0..LANES {
            let gray = luma(reds[lane], greens[lane], blues[lane]) as f32;
            reds[lane] = blend(gray, reds[lane], self.factor);
            greens[lane] = blend(gray, greens[lane], self.factor);
            blues[lane] = blend(gray, blues[lane], self.factor);
        }
    }
}

/// Replaces the three channels by their luma; channels that are not RGB do not change.
pub fn grayscale(image: &mut Image) {
    if image.channels == 3 {
        to_gray(&mut image.pixels);
    }
}

vectorised! {
    fn to_gray(pixels: &mut [u8]) {
        change(pixels, ToGray);
    }
}

struct ToGray;

impl Change for ToGray {
    #[inline(always)]
    fn change(&mut self, [reds, greens, blues]: &mut Block) {
        for lane in 0..LANES {
            let gray = luma(reds[lane], greens[lane], blues[lane]) as u8;
            (reds[lane], greens[lane], blues[lane]) = (gray, gray, gray);
        }
    }
}
