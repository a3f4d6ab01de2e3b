//! TIFF files as most programs write them, 8-bit RGB in strips, uncompressed or LZW, straight into the image.
//!
//! The `tiff` crate reads them too, by way of a buffer of its own, and LZW more slowly. Whatever is unusual or damaged is
//! left to it, and it says what is wrong.

use std::io::Cursor;

use ::tiff::ColorType;
use ::tiff::decoder::{ChunkType, Decoder};
use ::tiff::tags::{CompressionMethod, PlanarConfiguration, Predictor, Tag};

use super::lzw::Lzw;
use super::make_room;
use crate::Image;

/// Bytes of a pixel.
const PIXEL: usize = 3;

/// Decodes the first page, of unsigned values and of so many pixels. `None` for what is left to others; the content
/// of `out` is unspecified then.
pub(super) fn decode(bytes: &[u8], (width, height): (usize, usize), out: &mut Image) -> Option<()> {
    let mut decoder = Decoder::new(Cursor::new(bytes)).ok()?;
    let mut number = |tag, default: u16| {
        let found = decoder.find_tag_unsigned(tag).ok()?;
        Some(found.unwrap_or(default))
    };
    let interleaved = number(Tag::PlanarConfiguration, 1)? == PlanarConfiguration::Chunky.to_u16();
    let samples = number(Tag::SamplesPerPixel, 1)?;
    let compression = CompressionMethod::from_u16(number(Tag::Compression, 1)?)?;
    let predictor = Predictor::from_u16(number(Tag::Predictor, 1)?)?;
    let found = decoder.dimensions().ok()?;
    let usual = (found.0 as usize, found.1 as usize) == (width, height)
        && interleaved
        && usize::from(samples) == PIXEL
        && decoder.colortype().ok()? == ColorType::RGB(8)
        && decoder.get_chunk_type() == ChunkType::Strip;
    if !usual {
        return None;
    }
    let rows = decoder.chunk_dimensions().1 as usize;
    let starts = decoder.get_tag_u64_vec(Tag::StripOffsets).ok()?;
    let lengths = decoder.get_tag_u64_vec(Tag::StripByteCounts).ok()?;
    let strips = starts.into_iter().zip(lengths).map(|(start, length)| {
        let start = usize::try_from(start).ok()?;
        bytes.get(start..)?.get(..usize::try_from(length).ok()?)
    });
    let strips: Vec<&[u8]> = strips.collect::<Option<_>>()?;
    if strips.len() != height.div_ceil(rows.max(1)) {
        return None;
    }
    make_room(out, width, height);
    let row = width * PIXEL;
    let parts = out.pixels.chunks_mut(rows.saturating_mul(row));
    match (compression, predictor) {
        (CompressionMethod::None, Predictor::None) => {
            for (strip, part) in strips.into_iter().zip(parts) {
                part.copy_from_slice(strip.get(..part.len())?);
            }
        }
        (CompressionMethod::LZW, Predictor::None | Predictor::Horizontal) => {
            let mut lzw = Lzw::new();
            for (strip, part) in strips.into_iter().zip(parts) {
                lzw.decode(strip, part)?;
                if predictor == Predictor::Horizontal {
                    part.chunks_exact_mut(row).for_each(add_up);
                }
            }
        }
        _ => return None,
    }
    Some(())
}

/// Turns the differences of a row's pixels into pixels.
fn add_up(row: &mut [u8]) {
    let mut sum = [0_u8; PIXEL];
    for pixel in row.as_chunks_mut::<PIXEL>().0 {
        for (sum, value) in sum.iter_mut().zip(pixel) {
            *sum = sum.wrapping_add(*value);
            *value = *sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use ::tiff::encoder::{Compression, TiffEncoder, colortype};
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::super::other::by_image;
    use super::*;
    use crate::OtherFormat;

    /// Runs and noise, so that LZW codes of all lengths occur.
    fn picture(width: usize, height: usize, noise: u8) -> Vec<u8> {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let values = (0..width * height * PIXEL).map(|at| {
            let noise = rng.random_range(0..=noise);
            (at / 97 * 31 % 256) as u8 ^ noise
        });
        values.collect()
    }

    fn file(
        (width, height): (usize, usize),
        rows: usize,
        compression: Compression,
        predictor: Predictor,
        noise: u8,
    ) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        let encoder = TiffEncoder::new(&mut bytes).unwrap();
        let mut encoder = encoder
            .with_compression(compression)
            .with_predictor(predictor);
        let mut image = encoder
            .new_image::<colortype::RGB8>(width as u32, height as u32)
            .unwrap();
        image.rows_per_strip(rows as u32).unwrap();
        image.write_data(&picture(width, height, noise)).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn strips_decode_to_what_was_written() {
        let mut out = Image::empty();
        for (width, height, rows) in [
            (1, 1, 1),
            (50, 40, 40),
            (61, 43, 7),
            (3, 90, 1),
            (200, 90, 64),
        ] {
            for (compression, predictor) in [
                (Compression::Uncompressed, Predictor::None),
                (Compression::Lzw, Predictor::None),
                (Compression::Lzw, Predictor::Horizontal),
            ] {
                for noise in [0, 3, 255] {
                    let bytes = file((width, height), rows, compression, predictor, noise);
                    assert!(decode(&bytes, (width, height), &mut out).is_some());
                    assert_eq!((out.width, out.height), (width, height));
                    assert!(
                        out.pixels == picture(width, height, noise),
                        "{width} x {height}"
                    );
                }
            }
        }
    }

    #[test]
    fn other_files_are_left_to_others() {
        let size = (20, 30);
        let mut out = Image::empty();
        let packbits = file(size, 9, Compression::Packbits, Predictor::None, 3);
        assert!(decode(&packbits, size, &mut out).is_none());
        let mut whole = file(size, 9, Compression::Lzw, Predictor::None, 3);
        assert!(decode(&whole, (20, 3), &mut out).is_none(), "another size");
        whole.truncate(whole.len() / 2);
        assert!(decode(&whole, size, &mut out).is_none());
        let mut grey = Cursor::new(Vec::new());
        let mut encoder = TiffEncoder::new(&mut grey).unwrap();
        encoder
            .write_image::<colortype::Gray8>(4, 3, &[9; 12])
            .unwrap();
        assert!(decode(&grey.into_inner(), (4, 3), &mut out).is_none());
    }

    /// Whatever is accepted, the `tiff` crate accepts, and makes the same of it.
    #[test]
    fn damage_is_not_decoded() {
        let size = (37, 29);
        let kinds = [Compression::Uncompressed, Compression::Lzw];
        let files = kinds.map(|kind| file(size, 8, kind, Predictor::None, 15));
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let mut out = Image::empty();
        let (mut accepted, mut refused) = (0, 0);
        for number in 0..4_000 {
            let mut bytes = files[number % 2].clone();
            for _ in 0..1 + number % 3 {
                let at = rng.random_range(8..bytes.len());
                match rng.random_range(0..4) {
                    0 => bytes[at] ^= 1 << rng.random_range(0..8),
                    1 => bytes[at] = rng.random(),
                    2 => drop(bytes.drain(at..(at + 9).min(bytes.len()))),
                    _ => bytes.truncate(at.max(9)),
                }
            }
            let expected = by_image(&bytes, OtherFormat::Tiff);
            let found = decode(&bytes, size, &mut out).map(|()| out.pixels.clone());
            match (found, expected) {
                (Some(found), Some(expected)) => {
                    assert!(found == expected.pixels, "{number}");
                    accepted += 1;
                }
                (Some(_), None) => panic!("{number}: damage is accepted"),
                (None, _) => refused += 1,
            }
        }
        eprintln!("{accepted} accepted, {refused} refused");
        assert!(accepted > 400 && refused > 400, "{accepted}, {refused}");
    }
}
