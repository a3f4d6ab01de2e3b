//! TIFF files as most programs write them, 8-bit RGB in strips, uncompressed or LZW, straight into the image.
//!
//! The `tiff` crate reads them too, by way of a buffer of its own, and LZW by weezl 0.1, which takes several times
//! as long as 0.2. Whatever is unusual or damaged is left to it, and it says what is wrong.

use std::io::Cursor;

use ::tiff::ColorType;
use ::tiff::decoder::{ChunkType, Decoder};
use ::tiff::tags::{CompressionMethod, PlanarConfiguration, Predictor, Tag};
use weezl::decode::Configuration;
use weezl::{BitOrder, LzwStatus};

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
    let usual = interleaved
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
            let lzw = Configuration::with_tiff_size_switch(BitOrder::Msb, 8);
            // As libtiff does: what follows the last pixel is of no account, an end code neither.
            let mut lzw = lzw.with_yield_on_full_buffer(true).build();
            for (strip, part) in strips.into_iter().zip(parts) {
                lzw.reset();
                expand(&mut lzw, strip, part)?;
                if predictor == Predictor::Horizontal {
                    part.chunks_exact_mut(row).for_each(add_up);
                }
            }
        }
        _ => return None,
    }
    Some(())
}

/// Fills `out` from LZW data. `None` if they are damaged or end too soon.
fn expand(lzw: &mut weezl::decode::Decoder, mut data: &[u8], mut out: &mut [u8]) -> Option<()> {
    while !out.is_empty() {
        let done = lzw.decode_bytes(data, out);
        let progress = done.consumed_in + done.consumed_out > 0;
        data = data.get(done.consumed_in..)?;
        out = out.get_mut(done.consumed_out..)?;
        match done.status {
            Ok(LzwStatus::Ok) if progress => {}
            Ok(_) if out.is_empty() => {}
            _ => return None,
        }
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
