//! Brightness and colour differences of an image apart, the latter at half the resolution, as most JPEGs have them.

#![allow(
    clippy::needless_range_loop,
    reason = "one index over several arrays is what becomes vector code"
)]

use pirl_core::vectorised;

use super::lanes::{BYTES, Block, LANES, apart};
use crate::Image;

/// What the channels of an image are to become before they are put apart.
pub(crate) trait Colors: Copy {
    /// Y, Cb and Cr of 32 pixels; mark it `inline(always)`.
    fn convert(self, block: Block) -> Block;
}

/// Of an image whose channels are Y, Cb and Cr: nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AsTheyAre;

impl Colors for AsTheyAre {
    #[inline(always)]
    fn convert(self, block: Block) -> Block {
        block
    }
}

/// Of an image in RGB: Y, Cb and Cr as JFIF has them (ITU-T T.871, 7), in the 16-bit fractions of libjpeg's
/// `jccolor.c`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FromRgb;

impl Colors for FromRgb {
    #[inline(always)]
    fn convert(self, [reds, greens, blues]: Block) -> Block {
        const HALF: i32 = 0x7FFF;
        const MIDDLE: i32 = (128 << 16) + HALF;
        let mut block = [[0; LANES]; 3];
        for lane in 0..LANES {
            let [red, green, blue] = [reds[lane], greens[lane], blues[lane]].map(i32::from);
            block[0][lane] = ((19_595 * red + 38_470 * green + 7_471 * blue + HALF) >> 16) as u8;
            block[1][lane] =
                ((-11_059 * red - 21_709 * green + 32_768 * blue + MIDDLE) >> 16) as u8;
            block[2][lane] = ((32_768 * red - 27_439 * green - 5_329 * blue + MIDDLE) >> 16) as u8;
        }
        block
    }
}

/// Puts the first channel of an image, once its colours are converted, into `whole`, and into `halves` the two
/// others, averaged over squares of four pixels: half the columns and half the rows, rounded up. The last column
/// and row of an odd side count twice. Halves are rounded down in even columns and up in odd ones, as by
/// libjpeg's `h2v2_downsample`.
///
/// The image has at least one pixel, of three channels.
pub(crate) fn split_planes(
    image: &Image,
    colors: impl Colors,
    whole: &mut Vec<u8>,
    halves: &mut [Vec<u8>; 2],
) {
    let (width, height) = (image.width, image.height);
    whole.resize(width * height, 0);
    let half = width.div_ceil(2);
    for plane in halves.iter_mut() {
        plane.resize(half * height.div_ceil(2), 0);
    }
    let [blue, red] = halves;
    let rows = image.pixels.chunks(2 * 3 * width);
    let rows = rows.zip(whole.chunks_mut(2 * width));
    let halves = blue.chunks_mut(half).zip(red.chunks_mut(half));
    for ((pixels, whole), (blue, red)) in rows.zip(halves) {
        let (top, bottom) = pixels.split_at(3 * width);
        let (first, second) = whole.split_at_mut(width);
        // An odd number of rows ends with one row, and no place for a second.
        let bottom = if bottom.is_empty() { top } else { bottom };
        split_rows(colors, top, bottom, first, second, blue, red);
    }
}

vectorised! {
    /// Two rows of pixels: two rows of the first channel, and one of half the length of each other.
    /// `second` may be empty.
    fn split_rows<C: Colors>(
        colors: C,
        top: &[u8],
        bottom: &[u8],
        first: &mut [u8],
        second: &mut [u8],
        blue: &mut [u8],
        red: &mut [u8],
    ) {
        for start in (0..first.len()).step_by(LANES) {
            let top = colors.convert(block(top, start));
            let bottom = colors.convert(block(bottom, start));
            let count = LANES.min(first.len() - start);
            put(&top[0], &mut first[start..start + count]);
            if !second.is_empty() {
                put(&bottom[0], &mut second[start..start + count]);
            }
            let (from, to) = (start / 2, (start + count).div_ceil(2));
            put(&average(&top[1], &bottom[1]), &mut blue[from..to]);
            put(&average(&top[2], &bottom[2]), &mut red[from..to]);
        }
    }
}

/// The 32 pixels of a row from `start` on; after its end its last one.
#[inline(always)]
fn block(row: &[u8], start: usize) -> Block {
    let rest = &row[3 * start..];
    if let Some(bytes) = rest.first_chunk::<BYTES>() {
        return apart(bytes);
    }
    let mut bytes = [0; BYTES];
    let last = [0, 1, 2].map(|channel| rest[rest.len() - 3 + channel]);
    for pixel in bytes.as_chunks_mut::<3>().0 {
        *pixel = last;
    }
    bytes[..rest.len()].copy_from_slice(rest);
    apart(&bytes)
}

#[inline(always)]
fn average(top: &[u8; LANES], bottom: &[u8; LANES]) -> [u8; LANES / 2] {
    let mut averages = [0; LANES / 2];
    for pair in 0..LANES / 2 {
        let upper = u16::from(top[2 * pair]) + u16::from(top[2 * pair + 1]);
        let lower = u16::from(bottom[2 * pair]) + u16::from(bottom[2 * pair + 1]);
        averages[pair] = ((upper + lower + 1 + (pair % 2) as u16) / 4) as u8;
    }
    averages
}

/// Writes the first values, as many as fit.
#[inline(always)]
fn put<const N: usize>(values: &[u8; N], out: &mut [u8]) {
    if let Some(out) = out.first_chunk_mut() {
        *out = *values;
    } else {
        out.copy_from_slice(&values[..out.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn planes_are_those_of_plain_loops(width in 1usize..80, height in 1usize..7, seed: u8) {
            let bytes = (0..width * height * 3).map(|i| (i * 37 % 251) as u8 ^ seed);
            let image = Image::new(width, height, bytes.collect()).unwrap();
            let converted = image.pixels.chunks(3).flat_map(|pixel| {
                let (luma, blue, red) = jpeg_encoder::rgb_to_ycbcr(pixel[0], pixel[1], pixel[2]);
                [luma, blue, red]
            });
            let converted = Image::new(width, height, converted.collect()).unwrap();
            check(&image, AsTheyAre, &image)?;
            check(&image, FromRgb, &converted)?;
        }
    }

    /// `wanted` is the image whose channels are put apart.
    fn check(image: &Image, colors: impl Colors, wanted: &Image) -> Result<(), TestCaseError> {
        let (width, height) = (image.width, image.height);
        let (mut whole, mut halves) = (vec![9; 5], [vec![9; 1], vec![9; 1000]]);
        split_planes(image, colors, &mut whole, &mut halves);
        let at = |x: usize, y: usize, channel| {
            let (x, y) = (x.min(width - 1), y.min(height - 1));
            wanted.pixels[(y * width + x) * 3 + channel]
        };
        let all = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        prop_assert_eq!(whole, all.map(|(x, y)| at(x, y, 0)).collect::<Vec<_>>());
        for (plane, channel) in halves.into_iter().zip([1, 2]) {
            let columns = width.div_ceil(2);
            prop_assert_eq!(plane.len(), columns * height.div_ceil(2));
            for (place, value) in plane.into_iter().enumerate() {
                let (x, y) = (place % columns, place / columns);
                let square = [(0, 0), (1, 0), (0, 1), (1, 1)];
                let four = square.map(|(dx, dy)| u32::from(at(2 * x + dx, 2 * y + dy, channel)));
                let sum: u32 = four.iter().sum();
                prop_assert_eq!(u32::from(value), (sum + 1 + (x % 2) as u32) / 4);
            }
        }
        Ok(())
    }
}
