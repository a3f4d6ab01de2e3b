//! The photometric operations of Pillow's `ImageOps` and `ImageEnhance.Sharpness`.

#![allow(
    clippy::needless_range_loop,
    reason = "one index over several arrays is what becomes vector code"
)]

use pirl_core::vectorised;

use super::color::blend;
use crate::Image;

/// Keeps the `bits` highest bits of every value; 8 and more change nothing.
pub fn posterize(image: &mut Image, bits: u32) {
    let mask = !(0xFF_u8.checked_shr(bits).unwrap_or(0));
    for value in &mut image.pixels {
        *value &= mask;
    }
}

/// Inverts values of `threshold` and above; 256 changes nothing.
pub fn solarize(image: &mut Image, threshold: u32) {
    let Ok(threshold) = u8::try_from(threshold) else {
        return;
    };
    for value in &mut image.pixels {
        *value = if *value < threshold {
            *value
        } else {
            255 - *value
        };
    }
}

/// Stretches each channel so that its least value becomes 0 and its largest 255.
///
/// A channel of one value only does not change.
pub fn autocontrast(image: &mut Image) {
    if image.channels != 3 {
        for channel in 0..image.channels {
            autocontrast_channel(image, channel);
        }
        return;
    }
    let (least, most) = extremes(&image.pixels);
    let tables: [[u8; 256]; 3] =
        std::array::from_fn(|channel| stretch(least[channel], most[channel]));
    for pixel in image.pixels.chunks_exact_mut(3) {
        for (value, table) in pixel.iter_mut().zip(&tables) {
            *value = table[usize::from(*value)];
        }
    }
}

/// The same for one channel of any number.
fn autocontrast_channel(image: &mut Image, channel: usize) {
    let channels = image.channels;
    let values = || image.pixels.iter().skip(channel).step_by(channels);
    let (Some(least), Some(most)) = (values().min(), values().max()) else {
        return;
    };
    let table = stretch(*least, *most);
    for value in image.pixels.iter_mut().skip(channel).step_by(channels) {
        *value = table[usize::from(*value)];
    }
}

/// The least and the largest value of each channel.
fn extremes(pixels: &[u8]) -> ([u8; 3], [u8; 3]) {
    // Sixteen pixels side by side make whole vectors.
    const WIDE: usize = 48;
    let mut least = [u8::MAX; WIDE];
    let mut most = [0; WIDE];
    for values in pixels.chunks(WIDE) {
        for (least, value) in least.iter_mut().zip(values) {
            *least = (*least).min(*value);
        }
        for (most, value) in most.iter_mut().zip(values) {
            *most = (*most).max(*value);
        }
    }
    let channel = |extremes: &[u8; WIDE], channel: usize, pick: fn(u8, u8) -> u8| {
        let values = extremes.iter().skip(channel).step_by(3).copied();
        values.reduce(pick).unwrap_or_default()
    };
    (
        std::array::from_fn(|c| channel(&least, c, u8::min)),
        std::array::from_fn(|c| channel(&most, c, u8::max)),
    )
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
/// and images narrower or lower than 3, as they are. `spare` is a buffer whose content is
/// overwritten.
pub fn sharpness(image: &mut Image, factor: f32, spare: &mut Vec<u8>) {
    let (width, height) = (image.width, image.height);
    let channels = image.channels;
    let row = width * channels;
    debug_assert_eq!(image.pixels.len(), row * height);
    if width < 3 || height < 3 {
        return;
    }
    spare.clear();
    spare.extend_from_slice(&image.pixels);
    let inside = image.pixels.chunks_exact_mut(row).skip(1).take(height - 2);
    for (out, window) in inside.zip(spare.windows(3 * row).step_by(row)) {
        let inside = &mut out[channels..row - channels];
        match channels {
            3 => sharpen_row(window, row, factor, inside),
            channels => sharpen_any(window, row, channels, factor, inside),
        }
    }
}

vectorised! {
    /// The inner pixels of a row, of the rows around it: three of `row` bytes.
    fn sharpen_row(window: &[u8], row: usize, factor: f32, out: &mut [u8]) {
        sharpen(window, row, 3, factor, out);
    }
}

vectorised! {
    /// As [`sharpen_row`], of any number of channels.
    fn sharpen_any(window: &[u8], row: usize, channels: usize, factor: f32, out: &mut [u8]) {
        sharpen(window, row, channels, factor, out);
    }
}

#[inline(always)]
fn sharpen(window: &[u8], row: usize, channels: usize, factor: f32, out: &mut [u8]) {
    {
        let inner = out.len();
        // Nine slices of one length: a bound that the compiler can see once.
        let (above, rest) = window.split_at(row);
        let (middle, below) = rest.split_at(row);
        let (a, b, c) = (
            &above[..inner],
            &above[channels..][..inner],
            &above[2 * channels..][..inner],
        );
        let (d, e, f) = (
            &middle[..inner],
            &middle[channels..][..inner],
            &middle[2 * channels..][..inner],
        );
        let (g, h, i) = (
            &below[..inner],
            &below[channels..][..inner],
            &below[2 * channels..][..inner],
        );
        for x in 0..inner {
            let up = u16::from(a[x]) + u16::from(b[x]) + u16::from(c[x]);
            let down = u16::from(g[x]) + u16::from(h[x]) + u16::from(i[x]);
            let sides = u16::from(d[x]) + u16::from(f[x]);
            let sum = up + down + sides + 5 * u16::from(e[x]);
            // sum / 13 rounded, which has no ties: 5042 / 2^16 is 1 / 13 closely enough for all
            // sums up to 255 * 13.
            let smooth = (u32::from(sum + 6) * 5042) >> 16;
            out[x] = blend(smooth as f32, out[x], factor);
        }
    }
}
