//! PNG of grey or RGB pixels of 8 bits, every row filtered by Paeth's predictor: choosing a filter for each takes a
//! quarter of the time more, and saves a hundredth of the bytes (benches/RESULTS.md).

use flate2::Crc;
use pirl_core::vectorised;

use super::deflate::{Deflate, SymbolCounts};

const SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";
/// The number of Paeth's filter (PNG specification, section 9).
const PAETH: u8 = 4;
/// Bytes that are filtered before they are compressed.
const PART: usize = 1 << 14;
/// One row in so many is counted for the codes of all.
const COUNTED: usize = 5;

/// Pixels of one byte for each channel, row by row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pixels<'a> {
    pub(super) values: &'a [u8],
    pub(super) width: usize,
    pub(super) height: usize,
    /// 1 (grey) or 3 (RGB).
    pub(super) channels: usize,
}

/// # Errors
/// When a side is more than a PNG can have, or its data more than a chunk.
pub(super) fn encode(pixels: Pixels) -> Result<Vec<u8>, String> {
    let side = |side: usize| {
        let found = i32::try_from(side).ok().filter(|side| *side > 0);
        found.ok_or_else(|| format!("{side} pixels a side, which no PNG has"))
    };
    let [width, height] = [side(pixels.width)?, side(pixels.height)?].map(i32::to_be_bytes);
    let color = if pixels.channels == 1 { 0 } else { 2 };
    let mut bytes = Vec::with_capacity(pixels.values.len() / 2 + 1024);
    bytes.extend(SIGNATURE);
    let mut header = [0; 13];
    header[..4].copy_from_slice(&width);
    header[4..8].copy_from_slice(&height);
    header[8..10].copy_from_slice(&[8, color]);
    chunk(&mut bytes, b"IHDR", |mut bytes| {
        bytes.extend(header);
        bytes
    })?;
    chunk(&mut bytes, b"IDAT", |bytes| compress(pixels, bytes))?;
    chunk(&mut bytes, b"IEND", |bytes| bytes)?;
    Ok(bytes)
}

/// Appends a chunk, whose data `write` appends.
fn chunk(
    bytes: &mut Vec<u8>,
    name: &[u8; 4],
    write: impl FnOnce(Vec<u8>) -> Vec<u8>,
) -> Result<(), String> {
    let start = bytes.len();
    bytes.extend([0; 4]);
    bytes.extend(name);
    *bytes = write(std::mem::take(bytes));
    let size = bytes.len() - start - 8;
    let size = i32::try_from(size)
        .map_err(|_| format!("{size} bytes, more than a chunk of a PNG holds"))?;
    bytes[start..start + 4].copy_from_slice(&size.to_be_bytes());
    let mut crc = Crc::new();
    crc.update(&bytes[start + 4..]);
    bytes.extend(crc.sum().to_be_bytes());
    Ok(())
}

/// Appends the filtered and compressed rows.
fn compress(pixels: Pixels, bytes: Vec<u8>) -> Vec<u8> {
    let stride = pixels.width * pixels.channels;
    let rows = || pixels.values.chunks_exact(stride);
    let first = vec![0; stride];
    let with_above = || rows().zip(std::iter::once(first.as_slice()).chain(rows()));
    let mut filtered = vec![0; (stride + 1) * (PART / stride).max(1)];
    let filter = |row: &[u8], above: &[u8], out: &mut [u8]| {
        out[0] = PAETH;
        paeth(row, above, pixels.channels, &mut out[1..]);
    };

    let mut counts = SymbolCounts::new();
    for (row, above) in with_above().step_by(COUNTED) {
        filter(row, above, &mut filtered[..=stride]);
        counts.add(&filtered[..=stride]);
    }
    let mut stream = Deflate::new(bytes, &counts);
    let mut rows = with_above().peekable();
    while rows.peek().is_some() {
        let mut size = 0;
        for (out, (row, above)) in filtered.chunks_exact_mut(stride + 1).zip(rows.by_ref()) {
            filter(row, above, out);
            size += out.len();
        }
        stream.write(&filtered[..size]);
    }
    stream.finish()
}

vectorised! {
    /// Each value less the one of its left, upper and upper left that is nearest to left + upper - upper left.
    fn paeth(row: &[u8], above: &[u8], channels: usize, out: &mut [u8]) {
        let (first, out) = out.split_at_mut(channels.min(row.len()));
        for ((out, value), upper) in first.iter_mut().zip(row).zip(above) {
            *out = value.wrapping_sub(*upper);
        }
        let left = row.iter().zip(above);
        let here = row.iter().zip(above).skip(channels);
        for (out, ((value, upper), (left, corner))) in out.iter_mut().zip(here.zip(left)) {
            let [a, b, c] = [*left, *upper, *corner].map(i16::from);
            let (from_left, from_upper) = ((b - c).abs(), (a - c).abs());
            let from_corner = (a + b - c - c).abs();
            let nearest = if from_left <= from_upper && from_left <= from_corner {
                *left
            } else if from_upper <= from_corner {
                *upper
            } else {
                *corner
            };
            *out = value.wrapping_sub(nearest);
        }
    }
}

#[cfg(test)]
mod tests {
    use image::codecs::png::{CompressionType, FilterType, PngEncoder};
    use image::{ExtendedColorType, ImageEncoder};
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn values((width, height, channels): (usize, usize, usize), noise: u8, seed: u64) -> Vec<u8> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut value = |at: usize| {
            let (x, y) = (at / channels % width, at / channels / width);
            let smooth = (x * (1 + at % channels) / 2 + y / 3) as u8;
            smooth.wrapping_add(rng.random_range(0..=noise))
        };
        (0..width * height * channels).map(&mut value).collect()
    }

    fn check(size: (usize, usize, usize), noise: u8, seed: u64) -> usize {
        let (width, height, channels) = size;
        let values = values(size, noise, seed);
        let pixels = Pixels {
            values: &values,
            width,
            height,
            channels,
        };
        let bytes = encode(pixels).unwrap();
        let image = image::load_from_memory_with_format(&bytes, image::ImageFormat::Png).unwrap();
        assert_eq!(
            (image.width() as usize, image.height() as usize),
            (width, height)
        );
        let color = if channels == 1 {
            image::ColorType::L8
        } else {
            image::ColorType::Rgb8
        };
        assert_eq!(image.color(), color);
        assert!(
            image.into_bytes() == values,
            "{size:?}, noise {noise}, seed {seed}"
        );
        bytes.len()
    }

    #[test]
    fn files_are_no_larger_than_those_of_the_image_crate() {
        for (noise, channels) in [(0, 3), (3, 3), (20, 1), (20, 3), (120, 3)] {
            let (width, height) = (300, 200);
            let values = values((width, height, channels), noise, 1);
            let color = if channels == 1 {
                ExtendedColorType::L8
            } else {
                ExtendedColorType::Rgb8
            };
            let mut theirs = Vec::new();
            PngEncoder::new_with_quality(&mut theirs, CompressionType::Fast, FilterType::Paeth)
                .write_image(&values, 300, 200, color)
                .unwrap();
            let ours = check((width, height, channels), noise, 1);
            assert!(
                ours <= theirs.len(),
                "{noise}: {ours} bytes, {} by the crate",
                theirs.len()
            );
        }
    }

    proptest! {
        #[test]
        fn every_size_is_read_back(
            width in 1usize..90, height in 1usize..60, grey: bool, noise in prop_oneof![Just(0_u8), any::<u8>()], seed: u64
        ) {
            check((width, height, if grey { 1 } else { 3 }), noise, seed);
        }
    }

    #[test]
    fn rows_longer_than_a_part_are_read_back() {
        check((20_011, 3, 3), 9, 2);
        check((3, 20_011, 1), 9, 3);
    }

    #[test]
    fn what_no_png_can_have_is_refused() {
        for (width, said) in [
            (0, "0 pixels a side"),
            (1 << 31, "2147483648 pixels a side"),
        ] {
            let pixels = Pixels {
                values: &[],
                width,
                height: 1,
                channels: 1,
            };
            let error = encode(pixels).unwrap_err();
            assert!(error.starts_with(said), "{error}");
        }
    }
}
