//! From encoded bytes to an [`Image`].

mod channels;
mod jpeg;
mod jpeg_markers;
mod jpeg_shrunk;
#[cfg(feature = "jxl")]
mod jxl;
mod lzw;
mod other;
mod png;
mod tiff;
mod tiff_strips;
mod webp;

use image::metadata::Orientation;

use crate::orientation::make_upright;
use crate::{Encoding, Image, OtherFormat};

pub(crate) use channels::{Channels, decode_channels};
pub(crate) use jpeg::decode_ycbcr_into;

/// Images with more pixels than this are refused before anything is allocated for them, unless packing
/// is told another limit.
pub(crate) const MAX_PIXELS: usize = 100_000_000;

/// The format of a file by its first bytes; `None` for what is no image that can be read.
pub(crate) fn sniff(bytes: &[u8]) -> Option<Encoding> {
    let other = |format| Some(Encoding::Other(format));
    match bytes {
        [0xFF, 0xD8, 0xFF, ..] => Some(Encoding::Jpeg),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => Some(Encoding::Png),
        [
            b'R',
            b'I',
            b'F',
            b'F',
            _,
            _,
            _,
            _,
            b'W',
            b'E',
            b'B',
            b'P',
            ..,
        ] => Some(Encoding::WebP),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => other(OtherFormat::Gif),
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => other(OtherFormat::Tiff),
        [b'q', b'o', b'i', b'f', ..] => other(OtherFormat::Qoi),
        // The codestream, and the file that holds one.
        [0xFF, 0x0A, ..] => other(OtherFormat::JpegXl),
        [
            0,
            0,
            0,
            0x0C,
            b'J',
            b'X',
            b'L',
            b' ',
            b'\r',
            b'\n',
            0x87,
            b'\n',
            ..,
        ] => other(OtherFormat::JpegXl),
        // Two letters alone would be found in text: the reserved words and the header's size, too.
        [
            b'B',
            b'M',
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            12..=124,
            0,
            0,
            0,
            ..,
        ] => other(OtherFormat::Bmp),
        [b'P', b'1'..=b'7', b' ' | b'\t' | b'\r' | b'\n' | b'#', ..] => other(OtherFormat::Pnm),
        _ => None,
    }
}

/// What a file is that [`sniff`] does not know, for a message: an image format that is not read and what turns it
/// into one that is, or its first bytes.
pub(crate) fn unknown(bytes: &[u8]) -> String {
    const READ: &str = "JPEG, PNG, WebP, BMP, TIFF, GIF, PNM, QOI and JPEG XL are read";
    let has = |wanted: &[&[u8; 4]]| brands(bytes).any(|brand| wanted.contains(&brand));
    let (known, by) = if has(&[b"avif", b"avis"]) {
        ("AVIF", " (avifdec IN.avif OUT.png, of libavif)")
    } else if has(&[
        b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1",
    ]) {
        ("HEIC", " (heif-convert IN.heic OUT.png, of libheif)")
    } else {
        match bytes {
            [0, 0, 0, 0x0C, b'j', b'P', ..] | [0xFF, 0x4F, 0xFF, 0x51, ..] => (
                "JPEG 2000",
                " (opj_decompress -i IN.jp2 -o OUT.png, of OpenJPEG)",
            ),
            [b'I', b'I', 43, 0, ..] | [b'M', b'M', 0, 43, ..] => ("BigTIFF", ""),
            [b'<', b's', b'v', b'g', ..] => ("SVG", ""),
            [] => return "an empty file".to_owned(),
            _ => {
                let first = bytes.get(..12).unwrap_or(bytes).escape_ascii();
                let count = bytes.len();
                return format!("no image: {count} bytes that begin with \"{first}\"; {READ}");
            }
        }
    };
    format!("{known} is not read: turn it into a PNG{by} or a JPEG; {READ}")
}

/// What a file of ISO's base media format says that it can be read as (ISO/IEC 14496-12, 4.3); nothing of any
/// other.
fn brands(bytes: &[u8]) -> impl Iterator<Item = &[u8; 4]> {
    let first = bytes.as_chunks::<4>().0;
    let [size, [b'f', b't', b'y', b'p'], major, _version, others @ ..] = first else {
        return [].iter().chain(&[]);
    };
    let count = (u32::from_be_bytes(*size) as usize / 4).saturating_sub(4);
    let others = &others[..count.min(others.len())];
    std::slice::from_ref(major).iter().chain(others)
}

/// The encoding of a sample in a pack of `encoding`; damaged bytes stay [`Encoding::Mixed`].
pub(crate) fn of_sample(bytes: &[u8], encoding: Encoding) -> Encoding {
    match encoding {
        Encoding::Mixed => sniff(bytes).unwrap_or(Encoding::Mixed),
        encoding => encoding,
    }
}

/// Whether a WebP has frames, of which the first is the image.
pub(crate) fn is_animated_webp(bytes: &[u8]) -> bool {
    webp::is_animated(bytes)
}

/// What is known of an image once it has been decoded or checked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Looked {
    /// Width and height of the upright image.
    pub(crate) size: (usize, usize),
    /// How the stored pixels were turned to stand upright.
    pub(crate) orientation: Orientation,
}

/// Decodes to 8-bit RGB as Pillow's `ImageOps.exif_transpose(image).convert("RGB")` does: grey is
/// repeated, palettes are looked up, alpha is dropped, CMYK is converted without a colour profile,
/// and an orientation in the Exif or XMP data is applied; of an animation the first frame is taken. Of
/// 16 bits the upper 8 are kept, in grey images too, which Pillow would clip at 255.
///
/// A damaged or truncated image is an error here, never a picture with a grey lower half.
pub(crate) fn decode(bytes: &[u8], encoding: Encoding) -> Result<Image, String> {
    let mut image = Image::empty();
    decode_into(bytes, encoding, MAX_PIXELS, &mut image)?;
    Ok(image)
}

/// The same, into an image whose buffer is reused; after an error its content is unspecified. An
/// image of more than `limit` pixels is refused.
pub(crate) fn decode_into(
    bytes: &[u8],
    encoding: Encoding,
    limit: usize,
    out: &mut Image,
) -> Result<Looked, String> {
    let orientation = match encoding {
        Encoding::Jpeg => jpeg::decode(bytes, limit, out)?,
        Encoding::Png => png::decode(bytes, limit, out)?,
        Encoding::WebP => webp::decode(bytes, limit, out)?,
        Encoding::Other(format) => other::decode(bytes, format, limit, out)?,
        Encoding::Planes { channels } => {
            png::decode_planes(bytes, channels as usize, limit, out)?;
            Orientation::NoTransforms
        }
        Encoding::Mixed => {
            let encoding = sniff(bytes).ok_or_else(|| unknown(bytes))?;
            return decode_into(bytes, encoding, limit, out);
        }
        Encoding::Raw {
            height,
            width,
            channels,
        } => {
            decode_raw(
                bytes,
                (width as usize, height as usize),
                channels,
                limit,
                out,
            )?;
            Orientation::NoTransforms
        }
    };
    make_upright(out, orientation);
    Ok(Looked {
        size: (out.width, out.height),
        orientation,
    })
}

/// What [`decode_into`] would find of these bytes, or its error. Faster, since colours are not
/// computed. The content of `out` is unspecified afterwards.
pub(crate) fn check(
    bytes: &[u8],
    encoding: Encoding,
    limit: usize,
    out: &mut Image,
) -> Result<Looked, String> {
    match (encoding, sniff(bytes)) {
        (Encoding::Jpeg, _) | (Encoding::Mixed, Some(Encoding::Jpeg)) => {
            jpeg::check(bytes, limit, out)
        }
        _ => decode_into(bytes, encoding, limit, out),
    }
}

/// Width and height of the decoded image, read from the header alone.
pub(crate) fn size(bytes: &[u8], encoding: Encoding) -> Result<(usize, usize), String> {
    match encoding {
        Encoding::Jpeg => jpeg::size(bytes),
        Encoding::Png => png::size(bytes),
        Encoding::WebP => webp::size(bytes),
        Encoding::Other(format) => other::size(bytes, format),
        Encoding::Planes { channels } => {
            let (width, rows) = png::size(bytes)?;
            Ok((width, png::rows_of_planes(rows, channels as usize)?))
        }
        Encoding::Mixed => {
            let encoding = sniff(bytes).ok_or_else(|| unknown(bytes))?;
            size(bytes, encoding)
        }
        Encoding::Raw { height, width, .. } => Ok((width as usize, height as usize)),
    }
}

fn decode_raw(
    bytes: &[u8],
    (width, height): (usize, usize),
    channels: u32,
    limit: usize,
    out: &mut Image,
) -> Result<(), String> {
    check_size(width, height, limit)?;
    match channels {
        1 => fill_grey(out, width, height, bytes),
        3 => {
            (out.width, out.height, out.channels) = (width, height, 3);
            out.pixels.clear();
            out.pixels.extend_from_slice(bytes);
            out.check().map_err(|error| error.to_string())
        }
        _ => Err(format!("{channels} channels, expected 1 or 3")),
    }
}

fn check_size(width: usize, height: usize, limit: usize) -> Result<(), String> {
    match width.checked_mul(height) {
        Some(pixels) if (1..=limit).contains(&pixels) => Ok(()),
        _ => Err(format!(
            "{width} x {height} pixels; 1 to {limit} are allowed"
        )),
    }
}

/// Makes `out` an RGB image of so many pixels, whose values are unspecified.
fn make_room(out: &mut Image, width: usize, height: usize) {
    out.set_size(width, height, 3);
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
