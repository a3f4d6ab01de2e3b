//! What happens to a sample between its source and the pack.

use std::borrow::Cow;

use image::ImageEncoder;

use super::{PackOptions, Skipped};
use crate::objects::within;
use crate::transform::{Crop, Resizer, resize};
use crate::{DataError, Encoding, Image, Objects, RawSample, Source};

/// Quality of JPEGs encoded again where none is asked for, as ImageNet copies of 256 pixels have.
const JPEG_QUALITY: u8 = 95;

/// A sample as it will be packed, and which of its objects will not.
pub(super) struct Prepared<'a> {
    pub(super) sample: RawSample<'a>,
    pub(super) left_out: Vec<Skipped>,
}

/// Reads a sample, decodes it, and shrinks it if asked; its boxes go with it.
pub(super) fn prepare<'a>(
    source: &'a dyn Source,
    index: usize,
    options: &PackOptions,
) -> Result<Prepared<'a>, DataError> {
    let mut sample = source.read(index)?;
    let decode_error = |reason| DataError::Decode {
        name: sample.name.clone(),
        reason,
    };
    let image = crate::decode::decode(&sample.bytes, sample.encoding).map_err(decode_error)?;
    if let Encoding::Raw { .. } = sample.encoding
        && (options.resize_shorter.is_some() || options.quality.is_some())
    {
        return Err(DataError::Setting {
            key: "resize_shorter, quality",
            reason: "this source has raw images of one size, which are packed as they are"
                .to_owned(),
        });
    }
    let shorter = image.width.min(image.height);
    let small = match options.resize_shorter {
        Some(target) if shorter > target as usize => {
            Some(shrink(&image, target as usize, shorter).map_err(decode_error)?)
        }
        _ => None,
    };
    let again = options.quality.is_some() && sample.encoding == Encoding::Jpeg;
    if small.is_some() || again {
        let quality = options.quality.unwrap_or(JPEG_QUALITY);
        let image = small.as_ref().unwrap_or(&image);
        let bytes = encode(image, sample.encoding, quality).map_err(decode_error)?;
        sample.bytes = Cow::Owned(bytes);
    }
    let size = small.map_or((image.width, image.height), |s| (s.width, s.height));
    let mut left_out = Vec::new();
    if let Some(objects) = &mut sample.objects {
        if objects.labels.len() != objects.len() || objects.difficult.len() != objects.len() {
            return Err(DataError::Annotation {
                name: sample.name,
                reason: "its objects are not as many boxes, labels and flags".to_owned(),
            });
        }
        (*objects, left_out) = fit(objects, &image, size, |bounds, label| {
            let class = source.class_names().get(label as usize);
            let class = class.map_or("object", String::as_str);
            format!("{}, {class} at {bounds:?}", sample.name)
        });
    }
    Ok(Prepared { sample, left_out })
}

/// The objects whose boxes fit the image, scaled to `size`, and the others by `name`.
fn fit(
    objects: &Objects,
    image: &Image,
    size: (usize, usize),
    name: impl Fn([f32; 4], u32) -> String,
) -> (Objects, Vec<Skipped>) {
    let x = size.0 as f32 / image.width as f32;
    let y = size.1 as f32 / image.height as f32;
    let mut kept = Objects::default();
    let mut left_out = Vec::new();
    for (bounds, label, difficult) in objects.iter() {
        let scaled = within(bounds, image.width, image.height)
            .map(|[xmin, ymin, xmax, ymax]| [xmin * x, ymin * y, xmax * x, ymax * y])
            .and_then(|scaled| within(scaled, size.0, size.1));
        match scaled {
            Ok(scaled) => kept.push(scaled, label, difficult),
            Err(reason) => left_out.push(Skipped {
                name: name(bounds, label),
                reason,
            }),
        }
    }
    (kept, left_out)
}

/// Shrinks so that the `shorter` side becomes `target`; the other is rounded down, as torchvision's
/// `Resize` does.
fn shrink(image: &Image, target: usize, shorter: usize) -> Result<Image, String> {
    let scaled = |side: usize| side * target / shorter;
    let (width, height) = (scaled(image.width), scaled(image.height));
    let mut small = Image {
        width,
        height,
        pixels: Vec::new(),
    };
    let resizer = &mut Resizer::default();
    resize(
        resizer,
        image,
        Crop::whole(image),
        width,
        height,
        &mut small,
    )
    .map_err(|error| error.to_string())?;
    Ok(small)
}

fn encode(image: &Image, encoding: Encoding, quality: u8) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let (width, height) = (image.width as u32, image.height as u32);
    let color = image::ExtendedColorType::Rgb8;
    match encoding {
        Encoding::Png => image::codecs::png::PngEncoder::new(&mut bytes).write_image(
            &image.pixels,
            width,
            height,
            color,
        ),
        _ => image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, quality).write_image(
            &image.pixels,
            width,
            height,
            color,
        ),
    }
    .map_err(|error| error.to_string())?;
    Ok(bytes)
}
