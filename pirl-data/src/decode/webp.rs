//! WebP, by image-webp.

use std::io::Cursor;

use image::ImageDecoder;
use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;

use super::{check_size, other};
use crate::Image;

/// Width and height.
type Size = (u32, u32);

/// # Errors
/// When the file is cut off, damaged, or its pixels are not as many as its header says.
pub(super) fn open(bytes: &[u8]) -> Result<WebPDecoder<Cursor<&[u8]>>, String> {
    let (whole, pixels) = chunks(bytes)?;
    let decoder = WebPDecoder::new(Cursor::new(whole)).map_err(|error| error.to_string())?;
    let said = decoder.dimensions();
    match pixels {
        Some((width, height)) if !decoder.has_animation() && (width, height) != said => {
            Err(format!(
                "its header says {} x {} pixels, and it has {width} x {height}",
                said.0, said.1
            ))
        }
        _ => Ok(decoder),
    }
}

/// Whether it has frames, of which the first is the image.
pub(super) fn is_animated(bytes: &[u8]) -> bool {
    open(bytes).is_ok_and(|decoder| decoder.has_animation())
}

/// A WebP without what follows it, once every chunk is known to end within, since the decoder takes as much
/// memory for one as its header says; and the size that the first chunk of pixels has, for which the decoder takes
/// memory before it compares that with the header.
fn chunks(bytes: &[u8]) -> Result<(&[u8], Option<Size>), String> {
    let cut = || {
        format!(
            "truncated: its {} bytes end before the image does",
            bytes.len()
        )
    };
    let length = |bytes: &[u8], at: usize| -> Option<usize> {
        let length = u32::from_le_bytes(*bytes.get(at + 4..)?.first_chunk()?) as usize;
        (at + 8).checked_add(length)
    };
    let end = length(bytes, 0).ok_or_else(cut)?;
    let whole = bytes.get(..end).ok_or_else(cut)?;
    let (mut at, mut pixels) = (12, None);
    while at < end {
        let next = length(whole, at)
            .filter(|next| *next <= end)
            .ok_or_else(cut)?;
        pixels = pixels.or_else(|| size_of_pixels(whole.get(at..next)?));
        at = next + next % 2; // chunks are padded to even lengths
    }
    Ok((whole, pixels))
}

/// Width and height in a chunk of lossy (RFC 6386, 9.1) or lossless pixels (RFC 9649, 3.4).
fn size_of_pixels(chunk: &[u8]) -> Option<Size> {
    let (kind, body) = (chunk.get(..4)?, chunk.get(8..)?);
    match kind {
        b"VP8 " => {
            let side = |at: usize| Some(u16::from_le_bytes(*body.get(at..)?.first_chunk()?));
            Some((u32::from(side(6)? & 0x3FFF), u32::from(side(8)? & 0x3FFF)))
        }
        b"VP8L" => {
            let sides = u32::from_le_bytes(*body.get(1..)?.first_chunk()?);
            Some(((sides & 0x3FFF) + 1, ((sides >> 14) & 0x3FFF) + 1))
        }
        _ => None,
    }
}

/// Decodes without turning; returns the turn that is still to do.
pub(super) fn decode(bytes: &[u8], limit: usize, out: &mut Image) -> Result<Orientation, String> {
    let mut decoder = open(bytes)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    check_size(width, height, limit)?;
    other::limit_memory(&mut decoder, limit)?;
    let turned = other::turned(&mut decoder);
    let channels = usize::from(decoder.color_type().channel_count());
    out.set_size(width, height, channels);
    decoder
        .read_image(&mut out.pixels)
        .map_err(|error| error.to_string())?;
    if channels == 4 {
        drop_alpha(out);
    }
    Ok(turned)
}

/// Moves red, green and blue together, in place.
fn drop_alpha(image: &mut Image) {
    for pixel in 0..image.width * image.height {
        for channel in 0..3 {
            image.pixels[pixel * 3 + channel] = image.pixels[pixel * 4 + channel];
        }
    }
    image.set_size(image.width, image.height, 3);
}

/// Width and height of the upright image, from the header.
pub(super) fn size(bytes: &[u8]) -> Result<(usize, usize), String> {
    Ok(other::upright(&mut open(bytes)?))
}
