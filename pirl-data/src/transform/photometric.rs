//! The photometric operations of Pillow's `ImageOps` and `ImageEnhance.Sharpness`.

use crate::Image;

use super::color::blend;

/// Keeps the `bits` highest bits of every value; 8 and more change nothing.
pub fn posterize(image: &mut Image, bits: u32) {
    let mask = !(0xFF_u8.checked_shr(bits).unwrap_or(0));
    for value in &mut image.pixels {
        *value &= mask;
    }
}

/// Inverts values of `threshold` and above; 256 changes nothing.
pub fn solarize(image: &mut Image, threshold: u32) {
    for value in &mut image.pixels {
        if u32::from(*value) >= threshold {
            *value = 255 - *value;
        }
    }
}

/// Stretches each channel so that its least value becomes 0 and its largest 255.
///
/// A channel of one value only does not change.
pub fn autocontrast(image: &mut Image) {
    let mut least = [u8::MAX; 3];
    let mut most = [0; 3];
    for pixel in image.pixels.chunks_exact(3) {
        for channel in 0..3 {
            least[channel] = least[channel].min(pixel[channel]);
            most[channel] = most[channel].max(pixel[channel]);
        }
    }
    let tables: [[u8; 256]; 3] =
        std::array::from_fn(|channel| stretch(least[channel], most[channel]));
    for pixel in image.pixels.chunks_exact_mut(3) {
        for (value, table) in pixel.iter_mut().zip(&tables) {
            *value = table[usize::from(*value)];
        }
    }
}

fn stretch(least: u8, most: u8) -> [u8; 256] {
    if most <= least {
        return std::array::from_fn(|value| value as u8);
    }
    let scale = 255.0 / f64::from(most - least);
    let offset = -f64::from(least) * scale;
    std::array::from_fn(|value| (value as f64 * scale + offset) as u8)
}

/// Moves the image away from its smoothed self by `factor`: 0 is smooth, 1 changes nothing, 2
/// sharp.
///
/// Smooth is Pillow's 3x3 `SMOOTH` kernel (ones around a 5), which leaves the border of one pixel,
/// and images narrower or lower than 3, as they are. `spare` is room to work in, of any content.
pub fn sharpness(image: &mut Image, factor: f32, spare: &mut Vec<u8>) {
    let (width, height) = (image.width, image.height);
    let row = width * 3;
    debug_assert_eq!(image.pixels.len(), row * height);
    if width < 3 || height < 3 {
        return;
    }
    spare.clear();
    spare.extend_from_slice(&image.pixels);
    for (y, out) in image.pixels.chunks_exact_mut(row).enumerate() {
        if y == 0 || y + 1 >= height {
            continue;
        }
        let window = &spare[(y - 1) * row..(y + 2) * row];
        let (above, rest) = window.split_at(row);
        let (here, below) = rest.split_at(row);
        let inner = &mut out[3..row - 3];
        let taps = [above, here, below];
        let at = |line: usize, shift: usize| &taps[line][shift..shift + row - 6];
        let (a, b, c) = (at(0, 0), at(0, 3), at(0, 6));
        let (d, e, f) = (at(1, 0), at(1, 3), at(1, 6));
        let (g, h, i) = (at(2, 0), at(2, 3), at(2, 6));
        for (x, value) in inner.iter_mut().enumerate() {
            let wide = |tap: &[u8]| u32::from(tap[x]);
            let sum = wide(a)
                + wide(b)
                + wide(c)
                + wide(d)
                + wide(f)
                + wide(g)
                + wide(h)
                + wide(i)
                + 5 * wide(e);
            // sum / 13 rounded: with an odd divisor there are no ties.
            let smooth = ((2 * sum + 13) / 26) as u8;
            *value = blend(smooth, *value, factor);
        }
    }
}
