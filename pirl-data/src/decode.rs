//! From encoded bytes to an [`Image`].

use std::io::Cursor;

use image::{ColorType, DynamicImage, ImageDecoder, ImageError};
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;
use zune_jpeg::{JpegDecoder, SampleRatios};

use crate::orientation::{make_upright, upright_size};
use crate::{Encoding, Image};

/// Images with more pixels than this are refused before anything is allocated for them.
const MAX_PIXELS: usize = 100_000_000;

/// JPEG or PNG, by the first bytes; `None` for anything else.
pub(crate) fn sniff(bytes: &[u8]) -> Option<Encoding> {
    if bytes.starts_with(&[0xFF, 0xD8, 0xFF]) {
        Some(Encoding::Jpeg)
    } else if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        Some(Encoding::Png)
    } else {
        None
    }
}

/// The encoding of a sample in a pack of `encoding`; damaged bytes stay [`Encoding::Mixed`].
pub(crate) fn of_sample(bytes: &[u8], encoding: Encoding) -> Encoding {
    match encoding {
        Encoding::Mixed => sniff(bytes).unwrap_or(Encoding::Mixed),
        encoding => encoding,
    }
}

/// Decodes to 8-bit RGB as Pillow's `ImageOps.exif_transpose(image).convert("RGB")` does: grey is
/// repeated, palettes are looked up, alpha is dropped, CMYK is converted without a colour profile,
/// and an orientation in the Exif data is applied. Of 16 bits the upper 8 are kept, in grey images
/// too, which Pillow would clip at 255.
///
/// A damaged or truncated image is an error here, never a picture with a grey lower half.
pub(crate) fn decode(bytes: &[u8], encoding: Encoding) -> Result<Image, String> {
    let mut image = Image::empty();
    decode_into(bytes, encoding, &mut image)?;
    Ok(image)
}

/// The same, into an image whose buffer is reused; after an error its content is unspecified.
pub(crate) fn decode_into(bytes: &[u8], encoding: Encoding, out: &mut Image) -> Result<(), String> {
    match encoding {
        Encoding::Jpeg => decode_jpeg(bytes, out),
        Encoding::Png => decode_png(bytes, out),
        Encoding::Mixed => match sniff(bytes) {
            Some(encoding) => decode_into(bytes, encoding, out),
            None => Err("neither JPEG nor PNG".to_owned()),
        },
        Encoding::Raw {
            height,
            width,
            channels,
        } => decode_raw(bytes, height as usize, width as usize, channels, out),
    }
}

/// Width and height of the image that [`decode`] would make of these bytes, or its error. Faster, since
/// colours are not computed. The content of `out` is unspecified afterwards.
pub(crate) fn check(
    bytes: &[u8],
    encoding: Encoding,
    out: &mut Image,
) -> Result<(usize, usize), String> {
    match (encoding, sniff(bytes)) {
        (Encoding::Jpeg, _) | (Encoding::Mixed, Some(Encoding::Jpeg)) => check_jpeg(bytes, out),
        _ => {
            decode_into(bytes, encoding, out)?;
            Ok((out.width, out.height))
        }
    }
}

/// Width and height of the decoded image, read from the header alone.
pub(crate) fn size(bytes: &[u8], encoding: Encoding) -> Result<(usize, usize), String> {
    match encoding {
        Encoding::Jpeg => {
            let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), jpeg_options());
            let headers = decoder.decode_headers();
            headers.map_err(|error| error.to_string())?;
            let size = decoder.dimensions().ok_or("no size in its header")?;
            Ok(upright_size(size, decoder.exif().map(Vec::as_slice)))
        }
        Encoding::Png => {
            let mut decoder = image::codecs::png::PngDecoder::new(Cursor::new(bytes))
                .map_err(|error| error.to_string())?;
            let (width, height) = decoder.dimensions();
            let exif = decoder.exif_metadata().unwrap_or_default();
            let size = (width as usize, height as usize);
            Ok(upright_size(size, exif.as_deref()))
        }
        Encoding::Mixed => match sniff(bytes) {
            Some(encoding) => size(bytes, encoding),
            None => Err("neither JPEG nor PNG".to_owned()),
        },
        Encoding::Raw { height, width, .. } => Ok((width as usize, height as usize)),
    }
}

/// Strict, or damaged data would decode to grey with no more than a log line.
fn jpeg_options() -> DecoderOptions {
    DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_out_colorspace(ColorSpace::RGB)
}

type Decoder<'a> = JpegDecoder<ZCursor<&'a [u8]>>;

/// A decoder that has read the header of a whole file, and the image's width and height.
fn open_jpeg(bytes: &[u8]) -> Result<(Decoder<'_>, usize, usize), String> {
    jpeg_is_whole(bytes)?;
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), jpeg_options());
    decoder
        .decode_headers()
        .map_err(|error| error.to_string())?;
    let (width, height) = decoder.dimensions().ok_or("no size in its header")?;
    check_size(width, height)?;
    Ok((decoder, width, height))
}

fn decode_jpeg(bytes: &[u8], out: &mut Image) -> Result<(), String> {
    let (mut decoder, width, height) = open_jpeg(bytes)?;
    make_room(out, width, height);
    if decoder.input_colorspace() == Some(ColorSpace::Luma) {
        decode_luma(&mut decoder, out)?;
        spread_grey(out);
    } else {
        decoder
            .decode_into(&mut out.pixels)
            .map_err(|error| error.to_string())?;
    }
    make_upright(out, decoder.exif().map(Vec::as_slice));
    Ok(())
}

/// Decodes a YCbCr JPEG without converting its colours: the channels of `out` are then Y, Cb and Cr,
/// where 128 is no colour. Returns `false` for any other image; the content of `out` is then
/// unspecified.
pub(crate) fn decode_ycbcr_into(
    bytes: &[u8],
    encoding: Encoding,
    out: &mut Image,
) -> Result<bool, String> {
    match (encoding, sniff(bytes)) {
        (Encoding::Jpeg, _) | (Encoding::Mixed, Some(Encoding::Jpeg)) => {}
        _ => return Ok(false),
    }
    let (mut decoder, width, height) = open_jpeg(bytes)?;
    if decoder.input_colorspace() != Some(ColorSpace::YCbCr) {
        return Ok(false);
    }
    decoder.set_options(jpeg_options().jpeg_set_out_colorspace(ColorSpace::YCbCr));
    make_room(out, width, height);
    decoder
        .decode_into(&mut out.pixels)
        .map_err(|error| error.to_string())?;
    make_upright(out, decoder.exif().map(Vec::as_slice));
    Ok(true)
}

/// All of the entropy-coded data is read, which is where damage shows; of a colour image in one of
/// the usual samplings only the brightness is computed from it.
fn check_jpeg(bytes: &[u8], out: &mut Image) -> Result<(usize, usize), String> {
    let (mut decoder, width, height) = open_jpeg(bytes)?;
    let usual = decoder.info().is_some_and(|info| {
        let sampling = info.sample_ratio;
        matches!(
            sampling,
            SampleRatios::None | SampleRatios::H | SampleRatios::HV
        )
    });
    make_room(out, width, height);
    if usual && decoder.input_colorspace() == Some(ColorSpace::YCbCr) {
        decode_luma(&mut decoder, out)?;
    } else {
        decoder
            .decode_into(&mut out.pixels)
            .map_err(|error| error.to_string())?;
    }
    let exif = decoder.exif().map(Vec::as_slice);
    Ok(upright_size((width, height), exif))
}

/// Decodes the brightness alone into the first third of `out`.
fn decode_luma(decoder: &mut Decoder<'_>, out: &mut Image) -> Result<(), String> {
    decoder.set_options(jpeg_options().jpeg_set_out_colorspace(ColorSpace::Luma));
    let area = out.width * out.height;
    decoder
        .decode_into(&mut out.pixels[..area])
        .map_err(|error| error.to_string())
}

/// Walks the markers up to the end-of-image one, which a truncated file lacks.
///
/// The decoder alone does not notice when only the last rows are missing.
fn jpeg_is_whole(bytes: &[u8]) -> Result<(), String> {
    let truncated = || {
        format!(
            "truncated: its {} bytes end before the image does",
            bytes.len()
        )
    };
    let mut rest = bytes.get(2..).ok_or_else(truncated)?;
    loop {
        let is_marker = |at: &usize| {
            let next = rest.get(at + 1);
            next.is_some_and(|next| !matches!(next, 0x00 | 0xFF | 0xD0..=0xD7))
        };
        let marker_at = memchr::memchr_iter(0xFF, rest)
            .find(is_marker)
            .ok_or_else(truncated)?;
        let marker = rest.get(marker_at + 1).ok_or_else(truncated)?;
        rest = rest.get(marker_at + 2..).ok_or_else(truncated)?;
        match marker {
            0xD9 => return Ok(()),
            // Markers without a segment.
            0x01 | 0xD8 => {}
            _ => {
                let length = rest.first_chunk().ok_or_else(truncated)?;
                let length = usize::from(u16::from_be_bytes(*length));
                rest = rest.get(length..).ok_or_else(truncated)?;
            }
        }
    }
}

fn decode_png(bytes: &[u8], out: &mut Image) -> Result<(), String> {
    let mut decoder = image::codecs::png::PngDecoder::new(Cursor::new(bytes))
        .map_err(|error| error.to_string())?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    check_size(width, height)?;
    // Exif that cannot be read is none, as in a JPEG.
    let exif = decoder.exif_metadata().unwrap_or_default();
    let failed = |error: ImageError| error.to_string();
    let bytes = decoder.total_bytes();
    make_room(out, width, height);
    match decoder.color_type() {
        ColorType::Rgb8 if bytes == out.pixels.len() as u64 => {
            decoder.read_image(&mut out.pixels).map_err(failed)?;
        }
        ColorType::L8 if bytes == (width * height) as u64 => {
            let grey = &mut out.pixels[..width * height];
            decoder.read_image(grey).map_err(failed)?;
            spread_grey(out);
        }
        _ => {
            let image = DynamicImage::from_decoder(decoder).map_err(failed)?;
            out.pixels = match image {
                DynamicImage::ImageLuma16(_)
                | DynamicImage::ImageLumaA16(_)
                | DynamicImage::ImageRgb16(_)
                | DynamicImage::ImageRgba16(_) => {
                    let deep = image.into_rgb16().into_raw();
                    deep.into_iter().map(|value| (value >> 8) as u8).collect()
                }
                _ => image.into_rgb8().into_raw(),
            };
            out.check().map_err(|error| error.to_string())?;
        }
    }
    make_upright(out, exif.as_deref());
    Ok(())
}

fn decode_raw(
    bytes: &[u8],
    height: usize,
    width: usize,
    channels: u32,
    out: &mut Image,
) -> Result<(), String> {
    check_size(width, height)?;
    match channels {
        1 => fill_grey(out, width, height, bytes),
        3 => {
            out.width = width;
            out.height = height;
            out.pixels.clear();
            out.pixels.extend_from_slice(bytes);
            out.check().map_err(|error| error.to_string())
        }
        _ => Err(format!("{channels} channels, expected 1 or 3")),
    }
}

fn check_size(width: usize, height: usize) -> Result<(), String> {
    match width.checked_mul(height) {
        Some(pixels) if (1..=MAX_PIXELS).contains(&pixels) => Ok(()),
        _ => Err(format!(
            "{width} x {height} pixels; 1 to {MAX_PIXELS} are allowed"
        )),
    }
}

/// Resizes the buffer of `out` to so many pixels.
fn make_room(out: &mut Image, width: usize, height: usize) {
    out.width = width;
    out.height = height;
    out.pixels.resize(width * height * 3, 0);
}

/// Writes each value to three channels.
fn fill_grey(out: &mut Image, width: usize, height: usize, grey: &[u8]) -> Result<(), String> {
    if grey.len() != width * height {
        return Err(format!(
            "{} bytes of {width} x {height} grey pixels",
            grey.len()
        ));
    }
    make_room(out, width, height);
    for (pixel, value) in out.pixels.chunks_exact_mut(3).zip(grey) {
        pixel.fill(*value);
    }
    Ok(())
}

/// The same where the values are the first third of the image.
fn spread_grey(out: &mut Image) {
    // From the end: no value is overwritten before it is read.
    for place in (0..out.pixels.len() / 3).rev() {
        let value = out.pixels[place];
        out.pixels[place * 3..place * 3 + 3].fill(value);
    }
}
