//! Lossy WebP without transparency: image-webp decodes it to brightness and colours, and these become RGB here.
//!
//! image-webp does that too, pixel by pixel. What is unusual or damaged is left to it, and it says what is wrong.

#![allow(
    clippy::needless_range_loop,
    reason = "one index over several arrays is what becomes vector code"
)]

use image_webp::vp8::{Frame, Vp8Decoder};
use pirl_core::vectorised;

use super::make_room;
use crate::Image;
use crate::transform::lanes::{BYTES, Block, LANES, together};

/// Decodes an image that has so many pixels. `None` for what is left to others; the content of `out` is unspecified
/// then.
pub(super) fn decode(bytes: &[u8], (width, height): (usize, usize), out: &mut Image) -> Option<()> {
    let frame = Vp8Decoder::decode_frame(lossy(bytes)?).ok()?;
    if (usize::from(frame.width), usize::from(frame.height)) != (width, height) {
        return None;
    }
    make_room(out, width, height);
    to_rgb(&frame, (width, height), &mut out.pixels);
    Some(())
}

/// The lossy image of a file that has no transparency and is no animation.
fn lossy(bytes: &[u8]) -> Option<&[u8]> {
    const ALPHA_OR_ANIMATION: u8 = 0b1_0010;
    let mut rest = bytes.get(12..)?;
    loop {
        let (kind, tail) = rest.split_first_chunk::<4>()?;
        let (length, tail) = tail.split_first_chunk()?;
        let length = u32::from_le_bytes(*length) as usize;
        let body = tail.get(..length)?;
        match (kind, body) {
            (b"VP8 ", body) => return Some(body),
            (b"VP8X", [flags, ..]) if flags & ALPHA_OR_ANIMATION == 0 => {}
            (b"ICCP" | b"EXIF" | b"XMP ", _) => {}
            _ => return None,
        }
        // Chunks are padded to even lengths.
        rest = tail.get(length + length % 2..)?;
    }
}

/// Colours in between are interpolated from the four nearest, as libwebp's "fancy" upsampling does.
fn to_rgb(frame: &Frame, (width, height): (usize, usize), out: &mut [u8]) {
    // The planes are those of whole blocks of 16 pixels a side.
    let stride = width.next_multiple_of(16);
    let (wide, high) = (width.div_ceil(2), height.div_ceil(2));
    // One more on either side, and what the last block reads beyond.
    let mut blends = [0, 1].map(|_| vec![0; wide.next_multiple_of(LANES / 2) + 2]);
    let lumas = frame.ybuf.chunks_exact(stride);
    for ((y, luma), out) in lumas.enumerate().zip(out.chunks_exact_mut(3 * width)) {
        let near = y / 2;
        let far = if y % 2 == 0 {
            near.saturating_sub(1)
        } else {
            (near + 1).min(high - 1)
        };
        for (blend, plane) in blends.iter_mut().zip([&frame.ubuf, &frame.vbuf]) {
            let row = |y: usize| &plane[y * stride / 2..][..wide];
            blend_rows(row(near), row(far), &mut blend[1..=wide]);
            blend[0] = blend[1];
            blend[wide + 1] = blend[wide];
        }
        let [blues, reds] = &blends;
        row_to_rgb(&luma[..width], blues, reds, out);
    }
}

vectorised! {
    /// Three parts of the nearer row, one of the farther.
    fn blend_rows(near: &[u8], far: &[u8], out: &mut [u16]) {
        for ((out, near), far) in out.iter_mut().zip(near).zip(far) {
            *out = 3 * u16::from(*near) + u16::from(*far);
        }
    }
}

vectorised! {
    /// The colours are those of [`blend_rows`], for every other pixel, with one more on either side.
    fn row_to_rgb(luma: &[u8], blues: &[u16], reds: &[u16], out: &mut [u8]) {
        for (index, out) in out.chunks_mut(BYTES).enumerate() {
            let rest = &luma[index * LANES..];
            let mut lumas = [0; LANES];
            match rest.first_chunk() {
                Some(whole) => lumas = *whole,
                None => lumas[..rest.len()].copy_from_slice(rest),
            }
            let block = block_to_rgb(&lumas, &between(blues, index), &between(reds, index));
            match out.first_chunk_mut() {
                Some(whole) => together(&block, whole),
                None => {
                    let mut bytes = [0; BYTES];
                    together(&block, &mut bytes);
                    out.copy_from_slice(&bytes[..out.len()]);
                }
            }
        }
    }
}

/// The colour of each pixel of a block: three parts of the nearer column, one of the farther.
#[inline(always)]
fn between(blends: &[u16], block: usize) -> [u16; LANES] {
    let blends = &blends[block * LANES / 2..][..LANES / 2 + 2];
    let mut colors = [0; LANES];
    for pair in 0..LANES / 2 {
        let near = 3 * blends[pair + 1] + 8;
        colors[2 * pair] = (near + blends[pair]) / 16;
        colors[2 * pair + 1] = (near + blends[pair + 2]) / 16;
    }
    colors
}

/// BT.601 with 16 to 235 for brightness, in the fractions of libwebp's `yuv.h`. Sums never leave 16 bits, and below 0
/// they are cut off, which libwebp does at the end.
#[inline(always)]
fn block_to_rgb(lumas: &[u8; LANES], blues: &[u16; LANES], reds: &[u16; LANES]) -> Block {
    let byte = |value: u16| (value >> 6).min(255) as u8;
    let mut block = [[0; LANES]; 3];
    for lane in 0..LANES {
        let luma = scaled(u16::from(lumas[lane]), 19_077);
        let (blue, red) = (blues[lane], reds[lane]);
        block[0][lane] = byte((luma + scaled(red, 26_149)).saturating_sub(14_234));
        let less = scaled(blue, 6_419) + scaled(red, 13_320);
        block[1][lane] = byte((luma + 8_708).saturating_sub(less));
        block[2][lane] = byte((luma + scaled(blue, 33_050)).saturating_sub(17_685));
    }
    block
}

/// `value * factor / 256`, in the form of one instruction for 16 values; `value` is less than 256.
#[inline(always)]
fn scaled(value: u16, factor: u16) -> u16 {
    ((u32::from(value << 8) * u32::from(factor)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::super::other::by_image;
    use super::*;
    use crate::OtherFormat;

    fn golden(name: &str) -> Vec<u8> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/formats");
        std::fs::read(folder.join(name)).unwrap()
    }

    /// Every one of the three values with every other.
    #[test]
    fn colours_are_those_of_libwebp() {
        // `VP8YUVToR` and so on of libwebp's src/dsp/yuv.h.
        let high = |value: i32, factor: i32| (value * factor) >> 8;
        let clip = |value: i32| (value >> 6).clamp(0, 255) as u8;
        for blue in 0..=255_u16 {
            for red in 0..=255_u16 {
                for start in (0..256).step_by(LANES) {
                    let lumas = std::array::from_fn(|lane| (start + lane) as u8);
                    let found = block_to_rgb(&lumas, &[blue; LANES], &[red; LANES]);
                    let (u, v) = (i32::from(blue), i32::from(red));
                    for lane in 0..LANES {
                        let y = high(i32::from(lumas[lane]), 19_077);
                        let expected = [
                            clip(y + high(v, 26_149) - 14_234),
                            clip(y - high(u, 6_419) - high(v, 13_320) + 8_708),
                            clip(y + high(u, 33_050) - 17_685),
                        ];
                        assert_eq!(found.map(|channel| channel[lane]), expected);
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_lossy_and_opaque_decodes_as_by_image() {
        let mut out = Image::empty();
        let names = [
            "lossy.webp",
            "lossy-even.webp",
            "lossy-wide.webp",
            "lossy-exif.webp",
        ];
        for name in names {
            let bytes = golden(name);
            let expected = by_image(&bytes, OtherFormat::WebP).unwrap();
            let size = (expected.width, expected.height);
            assert!(decode(&bytes, size, &mut out).is_some(), "{name}");
            assert!(out == expected, "{name}");
            assert!(
                decode(&bytes, (size.1, size.0), &mut out).is_none(),
                "{name}"
            );
        }
        for name in [
            "lossless.webp",
            "alpha.webp",
            "lossy-alpha.webp",
            "animated.webp",
        ] {
            assert!(lossy(&golden(name)).is_none(), "{name}");
        }
    }

    /// Whatever is accepted, image-webp accepts, and makes the same of it.
    #[test]
    fn damage_is_not_decoded() {
        let files = ["lossy-wide.webp", "lossy-exif.webp"].map(golden);
        let mut rng = ChaCha8Rng::seed_from_u64(13);
        let mut out = Image::empty();
        let (mut accepted, mut refused) = (0, 0);
        for number in 0..2_000 {
            let mut bytes = files[number % 2].clone();
            for _ in 0..1 + number % 3 {
                let at = rng.random_range(8..bytes.len());
                match rng.random_range(0..3) {
                    0 => bytes[at] ^= 1 << rng.random_range(0..8),
                    1 => bytes[at] = rng.random(),
                    _ => bytes.truncate(at.max(9)),
                }
            }
            match by_image(&bytes, OtherFormat::WebP) {
                Some(expected) => {
                    let size = (expected.width, expected.height);
                    if decode(&bytes, size, &mut out).is_some() {
                        assert!(out == expected, "{number}");
                        accepted += 1;
                    }
                }
                None => {
                    for size in [(150, 37), (21, 13)] {
                        assert!(decode(&bytes, size, &mut out).is_none(), "{number}");
                    }
                    refused += 1;
                }
            }
        }
        eprintln!("{accepted} accepted, {refused} refused");
        assert!(accepted > 200 && refused > 200, "{accepted}, {refused}");
    }
}
