//! PNG, by the `png` crate.

use std::io::Cursor;

use image::codecs::png::PngDecoder;
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageError};

use super::{check_size, make_room, other, spread_grey};
use crate::Image;
use crate::image::join_planes;
use crate::orientation::{orientation, upright_size};

pub(super) fn open(bytes: &[u8]) -> Result<PngDecoder<Cursor<&[u8]>>, String> {
    PngDecoder::new(Cursor::new(bytes)).map_err(|error| error.to_string())
}

/// Decodes without turning; returns the turn that is still to do.
pub(super) fn decode(bytes: &[u8], limit: usize, out: &mut Image) -> Result<Orientation, String> {
    let decoder = open(bytes)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    check_size(width, height, limit)?;
    let failed = |error: ImageError| error.to_string();
    let total = decoder.total_bytes();
    make_room(out, width, height);
    match decoder.color_type() {
        ColorType::Rgb8 if total == out.pixels.len() as u64 => {
            decoder.read_image(&mut out.pixels).map_err(failed)?;
        }
        ColorType::L8 if total == (width * height) as u64 => {
            let grey = &mut out.pixels[..width * height];
            decoder.read_image(grey).map_err(failed)?;
            spread_grey(out);
        }
        _ => {
            let image = DynamicImage::from_decoder(decoder).map_err(failed)?;
            other::to_rgb(image, out)?;
        }
    }
    Ok(turned(bytes))
}

/// Decodes a grey PNG of `channels` planes below each other. Together they have at most `limit` values.
pub(super) fn decode_planes(
    bytes: &[u8],
    channels: usize,
    limit: usize,
    out: &mut Image,
) -> Result<(), String> {
    let decoder = open(bytes)?;
    let (width, rows) = decoder.dimensions();
    let (width, rows) = (width as usize, rows as usize);
    check_size(width, rows, limit)?;
    let height = rows_of_planes(rows, channels)?;
    if decoder.color_type() != ColorType::L8 || decoder.total_bytes() != (width * rows) as u64 {
        return Err(format!("{:?} pixels, expected L8", decoder.color_type()));
    }
    out.set_size(width, height, channels);
    if channels == 1 {
        return decoder
            .read_image(&mut out.pixels)
            .map_err(|error| error.to_string());
    }
    let mut planes = vec![0; width * rows];
    decoder
        .read_image(&mut planes)
        .map_err(|error| error.to_string())?;
    join_planes(&planes, out);
    Ok(())
}

/// The height of an image whose channels, one below the other, have so many rows.
pub(super) fn rows_of_planes(rows: usize, channels: usize) -> Result<usize, String> {
    match channels > 0 && rows.is_multiple_of(channels) {
        true => Ok(rows / channels),
        false => Err(format!("{rows} rows are not those of {channels} channels")),
    }
}

/// Width and height of the upright image, from the header.
pub(super) fn size(bytes: &[u8]) -> Result<(usize, usize), String> {
    let (width, height) = open(bytes)?.dimensions();
    Ok(upright_size(
        (width as usize, height as usize),
        turned(bytes),
    ))
}

/// The orientation in an `eXIf` or XMP chunk, before the pixels or behind them.
pub(super) fn turned(bytes: &[u8]) -> Orientation {
    const XMP: &[u8] = b"XML:com.adobe.xmp\0\0";
    let (mut exif, mut xmp) = (None, None);
    let mut rest = bytes.get(8..).unwrap_or_default();
    while let Some((length, tail)) = rest.split_first_chunk() {
        let length = u32::from_be_bytes(*length) as usize;
        let Some((kind, tail)) = tail.split_first_chunk::<4>() else {
            break;
        };
        let Some((body, tail)) = tail.split_at_checked(length) else {
            break;
        };
        match kind {
            b"eXIf" => exif = Some(body),
            b"iTXt" if body.starts_with(XMP) => xmp = Some(body),
            b"IEND" => break,
            _ => {}
        }
        rest = tail.get(4..).unwrap_or_default(); // the checksum
    }
    orientation(exif, xmp)
}
