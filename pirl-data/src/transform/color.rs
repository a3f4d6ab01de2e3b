//! The colour operations of Pillow's `ImageEnhance` and torchvision's `ColorJitter`.

use crate::Image;

/// ITU-R 601-2 luma in 16-bit fixed point, as Pillow's `convert("L")`.
pub(crate) fn luma(red: u8, green: u8, blue: u8) -> u8 {
    ((u32::from(red) * 19_595 + u32::from(green) * 38_470 + u32::from(blue) * 7_471 + 0x8000) >> 16)
        as u8
}

/// Whether every pixel has three equal channels, which hue, saturation and luma leave alone.
pub(crate) fn is_gray(image: &Image) -> bool {
    image
        .pixels
        .chunks_exact(3)
        .all(|pixel| pixel[0] == pixel[1] && pixel[1] == pixel[2])
}

/// Pillow's `Image.blend`: from `base` at 0 to `value` at 1 and beyond, cut off, not rounded.
pub(crate) fn blend(base: u8, value: u8, factor: f32) -> u8 {
    (f32::from(base) + factor * (f32::from(value) - f32::from(base))) as u8
}

/// Replaces every value by what `of` says, which is asked once for each of the 256.
fn replace(image: &mut Image, of: impl Fn(u8) -> u8) {
    let table: [u8; 256] = std::array::from_fn(|value| of(value as u8));
    for value in &mut image.pixels {
        *value = table[usize::from(*value)];
    }
}

/// Multiplies all values by `factor`, at least 0.
pub fn brightness(image: &mut Image, factor: f32) {
    replace(image, |value| blend(0, value, factor));
}

/// Moves all values away from the image's mean luma by `factor`: 0 is flat, 1 changes nothing.
pub fn contrast(image: &mut Image, factor: f32) {
    let count = image.pixels.len() / 3;
    if count == 0 {
        return;
    }
    let sum: u64 = image
        .pixels
        .chunks_exact(3)
        .map(|pixel| u64::from(luma(pixel[0], pixel[1], pixel[2])))
        .sum();
    let mean = (sum as f64 / count as f64 + 0.5) as u8;
    replace(image, |value| blend(mean, value, factor));
}

/// Moves every pixel away from its own luma by `factor`: 0 is grey, 1 changes nothing.
pub fn saturation(image: &mut Image, factor: f32) {
    if is_gray(image) {
        return;
    }
    for pixel in image.pixels.chunks_exact_mut(3) {
        let gray = luma(pixel[0], pixel[1], pixel[2]);
        for value in pixel {
            *value = blend(gray, *value, factor);
        }
    }
}

/// Replaces the three channels by their luma.
pub fn grayscale(image: &mut Image) {
    for pixel in image.pixels.chunks_exact_mut(3) {
        pixel.fill(luma(pixel[0], pixel[1], pixel[2]));
    }
}
