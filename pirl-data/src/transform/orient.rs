//! Flips and quarter turns: pixels move, none changes.

use crate::Image;

/// Mirrors left and right.
pub fn flip(image: &mut Image) {
    if image.width == 0 {
        return;
    }
    for row in image.pixels.chunks_exact_mut(image.width * 3) {
        // Reversing the bytes reverses the pixels, and the channels in each.
        row.reverse();
        for pixel in row.chunks_exact_mut(3) {
            pixel.swap(0, 2);
        }
    }
}

/// Turns counter-clockwise by `turns` quarters, modulo 4, into `out`, whose buffer is reused.
pub fn quarter_turns(image: &Image, turns: u32, out: &mut Image) {
    let (width, height) = (image.width, image.height);
    debug_assert_eq!(image.pixels.len(), width * height * 3);
    let turns = turns % 4;
    (out.width, out.height) = if turns.is_multiple_of(2) {
        (width, height)
    } else {
        (height, width)
    };
    out.pixels.resize(image.pixels.len(), 0);
    if image.pixels.is_empty() {
        return;
    }
    let across = out.width;
    for (y, row) in out.pixels.chunks_exact_mut(across * 3).enumerate() {
        for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
            let (from_x, from_y) = match turns {
                0 => (x, y),
                1 => (width - 1 - y, x),
                2 => (width - 1 - x, height - 1 - y),
                _ => (y, height - 1 - x),
            };
            let start = (from_y * width + from_x) * 3;
            pixel.copy_from_slice(&image.pixels[start..start + 3]);
        }
    }
}
