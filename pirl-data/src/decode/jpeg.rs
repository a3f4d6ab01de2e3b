//! JPEG, by zune-jpeg.

use image::metadata::Orientation;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;
use zune_jpeg::{JpegDecoder, SampleRatios};

use super::{Looked, check_size, jpeg_markers, jpeg_shrunk, make_room, spread_grey};
use crate::orientation::{make_upright, orientation, upright_box, upright_size};
use crate::{Encoding, Image};

/// Strict, or damaged data would decode to grey with no more than a log line.
fn options() -> DecoderOptions {
    DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_out_colorspace(ColorSpace::RGB)
}

type Decoder<'a> = JpegDecoder<ZCursor<&'a [u8]>>;

/// A decoder that has read the header, and the image's width and height.
fn open(bytes: &[u8], limit: usize) -> Result<(Decoder<'_>, usize, usize), String> {
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options());
    decoder
        .decode_headers()
        .map_err(|error| error.to_string())?;
    let (width, height) = decoder.dimensions().ok_or("no size in its header")?;
    check_size(width, height, limit)?;
    Ok((decoder, width, height))
}

fn turned(decoder: &Decoder<'_>) -> Orientation {
    let exif = decoder.exif().map(Vec::as_slice);
    orientation(exif, decoder.xmp().map(Vec::as_slice))
}

/// Decodes without turning; returns the turn that is still to do.
pub(super) fn decode(bytes: &[u8], limit: usize, out: &mut Image) -> Result<Orientation, String> {
    let bytes = jpeg_markers::mended(bytes)?;
    let (mut decoder, width, height) = open(&bytes, limit)?;
    make_room(out, width, height);
    if decoder.input_colorspace() == Some(ColorSpace::Luma) {
        decode_luma(&mut decoder, out)?;
        spread_grey(out);
    } else {
        decoder
            .decode_into(&mut out.pixels)
            .map_err(|error| error.to_string())?;
    }
    Ok(turned(&decoder))
}

/// A JPEG in its own colours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OwnColors {
    pub(crate) looked: Looked,
    /// Where it was made smaller on the way, the part of the decoded image that it fills: left, top, width,
    /// height. There is less than a pixel beside it.
    pub(crate) part: Option<[f64; 4]>,
}

/// Decodes a YCbCr JPEG without converting its colours: the channels of `out` are then Y, Cb and Cr,
/// where 128 is no colour, and the image is upright. Returns `None` for any other image; the content of
/// `out` is then unspecified.
///
/// With `shorter`, the pixels that the shorter side will have at most, a large image is decoded at an eighth, a
/// quarter or half of its size if that leaves twice as many.
pub(crate) fn decode_ycbcr_into(
    bytes: &[u8],
    encoding: Encoding,
    limit: usize,
    shorter: Option<usize>,
    out: &mut Image,
) -> Result<Option<OwnColors>, String> {
    match (encoding, super::sniff(bytes)) {
        (Encoding::Jpeg, _) | (Encoding::Mixed, Some(Encoding::Jpeg)) => {}
        _ => return Ok(None),
    }
    let bytes = jpeg_markers::mended(bytes)?;
    let (mut decoder, width, height) = open(&bytes, limit)?;
    if decoder.input_colorspace() != Some(ColorSpace::YCbCr) {
        return Ok(None);
    }
    let by = shorter.and_then(|shorter| jpeg_shrunk::factor((width, height), shorter));
    let part = by.and_then(|by| {
        jpeg_shrunk::decode(&bytes, (width, height), by, out)?;
        let side = |side: usize| side as f32 / by as f32;
        Some([0.0, 0.0, side(width), side(height)])
    });
    if part.is_none() {
        decoder.set_options(options().jpeg_set_out_colorspace(ColorSpace::YCbCr));
        make_room(out, width, height);
        decoder
            .decode_into(&mut out.pixels)
            .map_err(|error| error.to_string())?;
    }
    let orientation = turned(&decoder);
    let part = part.map(|part| {
        let part = upright_box(part, (out.width, out.height), orientation);
        let [x0, y0, x1, y1] = part.map(f64::from);
        [x0, y0, x1 - x0, y1 - y0]
    });
    make_upright(out, orientation);
    let size = upright_size((width, height), orientation);
    let looked = Looked { size, orientation };
    Ok(Some(OwnColors { looked, part }))
}

/// All of the entropy-coded data is read, which is where damage shows; of a colour image in one of
/// the usual samplings only the brightness is computed from it.
pub(super) fn check(bytes: &[u8], limit: usize, out: &mut Image) -> Result<Looked, String> {
    let bytes = jpeg_markers::mended(bytes)?;
    let (mut decoder, width, height) = open(&bytes, limit)?;
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
    let orientation = turned(&decoder);
    Ok(Looked {
        size: upright_size((width, height), orientation),
        orientation,
    })
}

/// Width and height of the upright image, from the header.
pub(super) fn size(bytes: &[u8]) -> Result<(usize, usize), String> {
    let header = jpeg_markers::mended_header(bytes)?;
    let (decoder, width, height) = open(&header, usize::MAX)?;
    Ok(upright_size((width, height), turned(&decoder)))
}

/// Decodes the brightness alone into the first third of `out`.
fn decode_luma(decoder: &mut Decoder<'_>, out: &mut Image) -> Result<(), String> {
    decoder.set_options(options().jpeg_set_out_colorspace(ColorSpace::Luma));
    let area = out.width * out.height;
    decoder
        .decode_into(&mut out.pixels[..area])
        .map_err(|error| error.to_string())
}
