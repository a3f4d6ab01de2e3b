//! Flips and quarter turns: pixels move, none changes.

use crate::Image;

/// Mirrors left and right.
pub fn flip(image: &mut Image) {
    if image.width == 0 {
        return;
    }
    match image.channels {
        3 => flip_rows(&mut image.pixels, image.width, 3),
        channels => flip_rows(&mut image.pixels, image.width, channels),
    }
}

/// Inlined, so that the usual number of channels is a constant.
#[inline(always)]
fn flip_rows(pixels: &mut [u8], width: usize, channels: usize) {
    for row in pixels.chunks_exact_mut(width * channels) {
        // Reversing the bytes reverses the pixels, and the channels in each.
        row.reverse();
        for pixel in row.chunks_exact_mut(channels) {
            pixel.reverse();
        }
    }
}

/// Turns counter-clockwise by `turns` quarters, modulo 4, into `out`, whose buffer is reused.
pub fn quarter_turns(image: &Image, turns: u32, out: &mut Image) {
    let (width, height, channels) = (image.width, image.height, image.channels);
    debug_assert_eq!(image.pixels.len(), width * height * channels);
    let turns = turns % 4;
    match turns.is_multiple_of(2) {
        true => out.set_size(width, height, channels),
        false => out.set_size(height, width, channels),
    }
    if image.pixels.is_empty() {
        return;
    }
    match channels {
        3 => turn(image, turns, out, 3),
        channels => turn(image, turns, out, channels),
    }
}

#[inline(always)]
fn turn(image: &Image, turns: u32, out: &mut Image, channels: usize) {
    let (width, height, across) = (image.width, image.height, out.width);
    for (y, row) in out.pixels.chunks_exact_mut(across * channels).enumerate() {
        for (x, pixel) in row.chunks_exact_mut(channels).enumerate() {
            let (from_x, from_y) = match turns {
                0 => (x, y),
                1 => (width - 1 - y, x),
                2 => (width - 1 - x, height - 1 - y),
                _ => (y, height - 1 - x),
            };
            let start = (from_y * width + from_x) * channels;
            pixel.copy_from_slice(&image.pixels[start..start + channels]);
        }
    }
}
