//! The formats that are read, but turned into PNG or JPEG to be packed.

use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;
use image::codecs::gif::GifDecoder;
use image::codecs::pnm::PnmDecoder;
use image::codecs::qoi::QoiDecoder;
use image::codecs::tiff::TiffDecoder;
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageResult, Limits};

use super::{check_size, make_room, tiff, tiff_strips};
use crate::orientation::{orientation, upright_size};
use crate::{Image, OtherFormat};

/// What a decoder may allocate beside the pixels.
const WORKING_BYTES: u64 = 64 << 20;

pub(super) fn open(
    bytes: &[u8],
    format: OtherFormat,
) -> Result<Box<dyn ImageDecoder + '_>, String> {
    let data = Cursor::new(bytes);
    let opened: ImageResult<Box<dyn ImageDecoder + '_>> = match format {
        OtherFormat::Bmp => BmpDecoder::new(data).map(|decoder| Box::new(decoder) as _),
        OtherFormat::Tiff => TiffDecoder::new(data).map(|decoder| Box::new(decoder) as _),
        OtherFormat::Gif => GifDecoder::new(data).map(|decoder| Box::new(decoder) as _),
        OtherFormat::Pnm => PnmDecoder::new(data).map(|decoder| Box::new(decoder) as _),
        OtherFormat::Qoi => QoiDecoder::new(data).map(|decoder| Box::new(decoder) as _),
        OtherFormat::JpegXl => return open_jxl(bytes),
    };
    opened.map_err(|error| match tiff::bands(bytes) {
        Some(bands) if format == OtherFormat::Tiff => {
            format!("it has {bands} channels that are no colours; --channels {bands} packs them")
        }
        _ => error.to_string(),
    })
}

#[cfg(feature = "jxl")]
fn open_jxl(bytes: &[u8]) -> Result<Box<dyn ImageDecoder + '_>, String> {
    Ok(Box::new(super::jxl::open(bytes)?))
}

#[cfg(not(feature = "jxl"))]
fn open_jxl(_: &[u8]) -> Result<Box<dyn ImageDecoder + '_>, String> {
    Err(
        "JPEG XL is read by a build with the feature jxl (cargo install ... --features jxl); or turn it \
         into a PNG (djxl IN.jxl OUT.png, of libjxl) or a JPEG"
            .to_owned(),
    )
}

/// Decodes without turning; returns the turn that is still to do.
pub(super) fn decode(
    bytes: &[u8],
    format: OtherFormat,
    limit: usize,
    out: &mut Image,
) -> Result<Orientation, String> {
    let mut decoder = open(bytes, format)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    check_size(width, height, limit)?;
    limit_memory(&mut *decoder, limit)?;
    let turned = turned(&mut decoder);
    let size = (width, height);
    if format == OtherFormat::Tiff && tiff_strips::decode(bytes, size, out).is_some() {
        return Ok(turned);
    }
    if decoder.color_type() == ColorType::Rgb8 {
        make_room(out, width, height);
        decoder
            .read_image(&mut out.pixels)
            .map_err(|error| error.to_string())?;
    } else {
        let image = DynamicImage::from_decoder(decoder).map_err(|error| error.to_string())?;
        to_rgb(image, out)?;
    }
    Ok(turned)
}

/// Lets a decoder take as much memory as so many pixels need.
pub(super) fn limit_memory(decoder: &mut dyn ImageDecoder, limit: usize) -> Result<(), String> {
    // Alpha at 8 bits is within the limit of pixels, 16 bits of as many are not.
    let (pixels, most) = (decoder.total_bytes(), (limit as u64).saturating_mul(4));
    if pixels > most {
        return Err(format!("{pixels} bytes of pixels; {most} are allowed"));
    }
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(pixels.saturating_add(WORKING_BYTES));
    decoder
        .set_limits(limits)
        .map_err(|error| error.to_string())
}

/// Width and height of the upright image, from the header.
pub(super) fn size(bytes: &[u8], format: OtherFormat) -> Result<(usize, usize), String> {
    Ok(upright(&mut *open(bytes, format)?))
}

/// Width and height of the upright image, as a decoder has them.
pub(super) fn upright(decoder: &mut dyn ImageDecoder) -> (usize, usize) {
    let (width, height) = decoder.dimensions();
    upright_size((width as usize, height as usize), turned(decoder))
}

/// The orientation that the file asks for; data that cannot be read asks for none.
pub(super) fn turned(decoder: &mut dyn ImageDecoder) -> Orientation {
    match decoder.orientation() {
        Ok(Orientation::NoTransforms) | Err(_) => {
            let exif = decoder.exif_metadata().unwrap_or_default();
            let xmp = decoder.xmp_metadata().unwrap_or_default();
            orientation(exif.as_deref(), xmp.as_deref())
        }
        Ok(orientation) => orientation,
    }
}

/// 8-bit RGB: grey repeated, alpha dropped, of 16 bits the upper 8.
pub(super) fn to_rgb(image: DynamicImage, out: &mut Image) -> Result<(), String> {
    (out.width, out.height) = (image.width() as usize, image.height() as usize);
    out.channels = 3;
    out.pixels = match image {
        DynamicImage::ImageLuma16(_)
        | DynamicImage::ImageLumaA16(_)
        | DynamicImage::ImageRgb16(_)
        | DynamicImage::ImageRgba16(_) => {
            let deep = image.into_rgb16().into_raw();
            deep.into_iter().map(|value| (value >> 8) as u8).collect()
        }
        DynamicImage::ImageRgb32F(_) | DynamicImage::ImageRgba32F(_) => {
            return Err(
                "its values are floating-point numbers of a range that it does not say; scale them \
                 to 8 or 16 bits"
                    .to_owned(),
            );
        }
        _ => image.into_rgb8().into_raw(),
    };
    out.check().map_err(|error| error.to_string())
}

/// What `image` alone makes of a file of 8-bit RGB: what the quicker way must agree with.
#[cfg(test)]
pub(super) fn by_image(bytes: &[u8], format: OtherFormat) -> Option<Image> {
    let decoder = open(bytes, format).ok()?;
    let (width, height) = decoder.dimensions();
    if decoder.color_type() != ColorType::Rgb8 || width as usize * height as usize > 1 << 20 {
        return None;
    }
    let mut image = Image::empty();
    make_room(&mut image, width as usize, height as usize);
    decoder.read_image(&mut image.pixels).ok()?;
    Some(image)
}
