//! An image with as many channels as are asked for, of values that may have more than 8 bits.

use image::{DynamicImage, ImageDecoder};

use super::{Looked, check_size, other, png, tiff, webp};
use crate::orientation::make_upright;
use crate::{Depth, Encoding, Image, OtherFormat};

/// What the channels of an image mean, which decides what may become of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Grey or red, green and blue, with an alpha channel at the end or without.
    Colors { alpha: bool },
    /// Anything.
    Bands,
}

/// The values of an image, channels between each other.
#[derive(Debug)]
pub(super) enum Values {
    Bytes(Vec<u8>),
    /// Numbers of more than 8 bits; `whole` says how many values there are of unsigned ones.
    Deep {
        numbers: Vec<f32>,
        whole: Option<f32>,
    },
}

/// An image as its file has it, not yet turned.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) channels: usize,
    pub(super) meaning: Meaning,
    pub(super) values: Values,
    pub(super) orientation: image::metadata::Orientation,
}

/// What is asked of [`decode_channels`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Channels {
    /// How many.
    pub(crate) channels: usize,
    /// How more than 8 bits become 8.
    pub(crate) depth: Depth,
    /// The most values of an image.
    pub(crate) limit: usize,
}

/// Decodes with so many channels: those that the file has, grey for red, green and blue, or the other way,
/// alpha left out. Returns whether values had more than 8 bits.
///
/// # Errors
/// When the image is damaged, too large, or has other channels.
pub(crate) fn decode_channels(
    bytes: &[u8],
    encoding: Encoding,
    wanted: Channels,
    out: &mut Image,
) -> Result<(Looked, bool), String> {
    let stored = read(bytes, encoding, wanted)?;
    let Stored {
        width,
        height,
        channels,
        meaning,
        values,
        orientation,
    } = stored;
    let deep = matches!(values, Values::Deep { .. });
    let values = match values {
        Values::Bytes(values) => values,
        Values::Deep { numbers, whole } => to_bytes(&numbers, channels, whole, wanted.depth)?,
    };
    let pixels = values.chunks_exact(channels);
    out.pixels = match (channels, wanted.channels, meaning) {
        (found, wanted, _) if found == wanted => values,
        (2, 1, Meaning::Colors { alpha: true }) => pixels.map(|pixel| pixel[0]).collect(),
        (4, 3, Meaning::Colors { alpha: true }) => pixels
            .flat_map(|pixel| [pixel[0], pixel[1], pixel[2]])
            .collect(),
        (3, 1, Meaning::Colors { .. }) | (4, 1, Meaning::Colors { alpha: true }) => pixels
            .map(|pixel| crate::transform::luma(pixel[0], pixel[1], pixel[2]) as u8)
            .collect(),
        (1, 3, _) | (2, 3, Meaning::Colors { alpha: true }) => {
            pixels.flat_map(|pixel| [pixel[0]; 3]).collect()
        }
        (found, wanted, _) => {
            return Err(format!("it has {found} channels, asked for are {wanted}"));
        }
    };
    (out.width, out.height, out.channels) = (width, height, wanted.channels);
    out.check().map_err(|error| error.to_string())?;
    make_upright(out, orientation);
    let looked = Looked {
        size: (out.width, out.height),
        orientation,
    };
    Ok((looked, deep))
}

fn read(bytes: &[u8], encoding: Encoding, wanted: Channels) -> Result<Stored, String> {
    let encoding = match encoding {
        Encoding::Mixed => super::sniff(bytes).ok_or_else(|| super::unknown(bytes))?,
        encoding => encoding,
    };
    match encoding {
        Encoding::Other(OtherFormat::Tiff) => match tiff::read(bytes, wanted)? {
            Some(stored) => Ok(stored),
            None => as_rgb(bytes, encoding, wanted),
        },
        Encoding::Png => {
            let decoder = png::open(bytes)?;
            dynamic(decoder, wanted, |_| png::turned(bytes))
        }
        Encoding::WebP => dynamic(webp::open(bytes)?, wanted, |decoder| other::turned(decoder)),
        Encoding::Other(format) => {
            let decoder = other::open(bytes, format)?;
            dynamic(decoder, wanted, |decoder| other::turned(decoder))
        }
        Encoding::Raw {
            height,
            width,
            channels: channels @ (1 | 3),
        } => {
            check_size(width as usize, height as usize, wanted.limit)?;
            let (width, height, channels) = (width as usize, height as usize, channels as usize);
            if bytes.len() != width * height * channels {
                return Err(format!("{} bytes of {encoding}", bytes.len()));
            }
            Ok(Stored {
                width,
                height,
                channels,
                meaning: Meaning::Colors { alpha: false },
                values: Values::Bytes(bytes.to_vec()),
                orientation: image::metadata::Orientation::NoTransforms,
            })
        }
        _ => as_rgb(bytes, encoding, wanted),
    }
}

/// Decoded as images usually are.
fn as_rgb(bytes: &[u8], encoding: Encoding, wanted: Channels) -> Result<Stored, String> {
    let mut image = Image::empty();
    let looked = super::decode_into(bytes, encoding, wanted.limit, &mut image)?;
    Ok(Stored {
        width: looked.size.0,
        height: looked.size.1,
        channels: 3,
        meaning: Meaning::Colors { alpha: false },
        values: Values::Bytes(image.pixels),
        orientation: image::metadata::Orientation::NoTransforms,
    })
}

fn dynamic<D: ImageDecoder>(
    mut decoder: D,
    wanted: Channels,
    turned: impl FnOnce(&mut D) -> image::metadata::Orientation,
) -> Result<Stored, String> {
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    let color = decoder.color_type();
    check_size(
        width,
        height,
        wanted.limit / usize::from(color.channel_count()).max(1),
    )?;
    other::limit_memory(&mut decoder, wanted.limit)?;
    let orientation = turned(&mut decoder);
    let deep = |numbers: Vec<u16>| Values::Deep {
        numbers: numbers.into_iter().map(f32::from).collect(),
        whole: Some(65_536.0),
    };
    let image = DynamicImage::from_decoder(decoder).map_err(|error| error.to_string())?;
    let alpha = color.has_alpha();
    let channels = usize::from(image.color().channel_count());
    let values = match image {
        DynamicImage::ImageLuma8(image) => Values::Bytes(image.into_raw()),
        DynamicImage::ImageLumaA8(image) => Values::Bytes(image.into_raw()),
        DynamicImage::ImageRgb8(image) => Values::Bytes(image.into_raw()),
        DynamicImage::ImageRgba8(image) => Values::Bytes(image.into_raw()),
        DynamicImage::ImageLuma16(image) => deep(image.into_raw()),
        DynamicImage::ImageLumaA16(image) => deep(image.into_raw()),
        DynamicImage::ImageRgb16(image) => deep(image.into_raw()),
        DynamicImage::ImageRgba16(image) => deep(image.into_raw()),
        other => return Err(format!("{:?} pixels are not read", other.color())),
    };
    Ok(Stored {
        width,
        height,
        channels,
        meaning: Meaning::Colors { alpha },
        values,
        orientation,
    })
}

/// Brings numbers to 8 bits. What is no number becomes 0.
fn to_bytes(
    numbers: &[f32],
    channels: usize,
    whole: Option<f32>,
    depth: Depth,
) -> Result<Vec<u8>, String> {
    let spread = |[least, most]: [f64; 2]| {
        let scale = 255.0 / (most - least);
        move |number: &f32| ((f64::from(*number) - least) * scale).round() as u8
    };
    match depth {
        Depth::Upper => match whole {
            // A cast cuts off, at both ends, too.
            Some(whole) => {
                let step = whole / 256.0;
                Ok(numbers.iter().map(|number| (number / step) as u8).collect())
            }
            None => Err(
                "its values are signed or floating-point numbers of a range that it does not say; \
                 give it (--range LEAST..MOST, or --range image)"
                    .to_owned(),
            ),
        },
        Depth::Range { least, most } => Ok(numbers.iter().map(spread([least, most])).collect()),
        Depth::Image => {
            let mut bytes = vec![0; numbers.len()];
            for channel in 0..channels {
                let values = numbers.iter().skip(channel).step_by(channels);
                let finite = || values.clone().filter(|value| value.is_finite());
                let (least, most) = finite().fold((f32::INFINITY, f32::NEG_INFINITY), |ends, x| {
                    (ends.0.min(*x), ends.1.max(*x))
                });
                if least >= most {
                    continue; // one value, or none
                }
                let byte = spread([f64::from(least), f64::from(most)]);
                let places = bytes.iter_mut().skip(channel).step_by(channels);
                for (place, number) in places.zip(values) {
                    *place = byte(number);
                }
            }
            Ok(bytes)
        }
    }
}
