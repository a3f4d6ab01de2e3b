//! What happens to a sample between its source and the pack.

use std::borrow::Cow;

use image::ImageEncoder;
use image::codecs::png::PngEncoder;
use jpeg_encoder::{ChromaSubsamplingMethod, ColorType, Encoder, SamplingFactor};
use pirl_core::SettingError;

use super::recode::{Planes, jpeg_sides};
use super::{PackOptions, Skipped};
use crate::objects::within;
use crate::transform::{Crop, Resizer, resize};
use crate::{DataError, Encoding, Image, Objects, RawSample, Source};

/// Quality of re-encoded JPEGs unless the options name one; that of common 256-pixel copies of ImageNet.
const JPEG_QUALITY: u8 = 95;

/// A sample as it will be packed, and those of its objects that are left out.
pub(super) struct Prepared<'a> {
    pub(super) sample: RawSample<'a>,
    pub(super) left_out: Vec<Skipped>,
}

/// Buffers for preparing samples; one for each thread, so that pixels are allocated once.
#[derive(Debug)]
pub(super) struct Workspace {
    decoded: Image,
    small: Image,
    planes: Planes,
    resizer: Resizer,
}

impl Default for Workspace {
    fn default() -> Self {
        Self {
            decoded: Image::empty(),
            small: Image::empty(),
            planes: Planes::default(),
            resizer: Resizer::default(),
        }
    }
}

/// Reads a sample and decodes it; shrinks it and encodes it again if the options say so, and scales its
/// boxes with it.
pub(super) fn prepare<'a>(
    source: &'a dyn Source,
    index: usize,
    options: &PackOptions,
    workspace: &mut Workspace,
) -> Result<Prepared<'a>, DataError> {
    let mut sample = source.read(index)?;
    if matches!(sample.encoding, Encoding::Raw { .. }) {
        let expected = "must be left out: this source has raw images of one size, which are packed as \
                        they are";
        if let Some(side) = options.resize_shorter {
            return Err(SettingError::new("resize_shorter", side, expected).into());
        }
        if let Some(quality) = options.quality {
            return Err(SettingError::new("quality", quality, expected).into());
        }
    }
    let changed = change(&sample, options, workspace).map_err(|reason| DataError::Decode {
        name: sample.name.clone(),
        reason,
    })?;
    let Changed { from, size, bytes } = changed;
    if let Some(bytes) = bytes {
        sample.bytes = Cow::Owned(bytes);
    }
    let mut left_out = Vec::new();
    if let Some(objects) = &mut sample.objects {
        if objects.labels.len() != objects.len() || objects.difficult.len() != objects.len() {
            return Err(DataError::Annotation {
                name: sample.name,
                reason: "its objects are not as many boxes, labels and flags".to_owned(),
            });
        }
        (*objects, left_out) = fit(objects, from, size, |bounds, label| {
            let class = source.class_names().get(label as usize);
            let class = class.map_or("object", String::as_str);
            format!("{}, {class} at {bounds:?}", sample.name)
        });
    }
    Ok(Prepared { sample, left_out })
}

/// An image after [`change`].
struct Changed {
    /// Width and height before.
    from: (usize, usize),
    /// Width and height after.
    size: (usize, usize),
    /// The new bytes; `None` if the sample is packed as it is.
    bytes: Option<Vec<u8>>,
}

/// Shrinks an image and encodes it again, where the options say so; otherwise only checks that it
/// decodes.
fn change(
    sample: &RawSample,
    options: &PackOptions,
    workspace: &mut Workspace,
) -> Result<Changed, String> {
    let (bytes, encoding) = (&sample.bytes, sample.encoding);
    let again = options.quality.is_some() && encoding == Encoding::Jpeg;
    if options.resize_shorter.is_none() && !again {
        let size = crate::decode::check(bytes, encoding, &mut workspace.decoded)?;
        return Ok(Changed {
            from: size,
            size,
            bytes: None,
        });
    }
    let own_colors = crate::decode::decode_ycbcr_into(bytes, encoding, &mut workspace.decoded)?;
    if !own_colors {
        crate::decode::decode_into(bytes, encoding, &mut workspace.decoded)?;
    }
    let from = (workspace.decoded.width, workspace.decoded.height);
    let size = shrunk(from, options.resize_shorter);
    let quality = options.quality.unwrap_or(JPEG_QUALITY);
    let changed = again || size != from;
    let bytes = changed.then(|| {
        let Workspace {
            decoded,
            small,
            planes,
            resizer,
        } = workspace;
        let image = resized(decoded, size, resizer, small)?;
        if own_colors {
            planes.fill(image);
            planes.encode(quality)
        } else {
            encode(image, encoding, quality)
        }
    });
    let bytes = bytes.transpose()?;
    Ok(Changed { from, size, bytes })
}

/// The size with the shorter side at most `target`; the other is rounded down, as torchvision's
/// `Resize` does.
fn shrunk((width, height): (usize, usize), target: Option<u32>) -> (usize, usize) {
    let shorter = width.min(height);
    match target.map(|target| target as usize) {
        Some(target) if shorter > target => (width * target / shorter, height * target / shorter),
        _ => (width, height),
    }
}

/// The image in this size: itself, or in `small`.
fn resized<'a>(
    image: &'a Image,
    (width, height): (usize, usize),
    resizer: &mut Resizer,
    small: &'a mut Image,
) -> Result<&'a Image, String> {
    if (width, height) == (image.width, image.height) {
        return Ok(image);
    }
    resize(resizer, image, Crop::whole(image), width, height, small)
        .map_err(|error| error.to_string())?;
    Ok(small)
}

/// The objects whose boxes fit an image of the size `from`, scaled to `size`, and the others by
/// `name`.
fn fit(
    objects: &Objects,
    from: (usize, usize),
    size: (usize, usize),
    name: impl Fn([f32; 4], u32) -> String,
) -> (Objects, Vec<Skipped>) {
    let x = size.0 as f32 / from.0 as f32;
    let y = size.1 as f32 / from.1 as f32;
    let mut kept = Objects::default();
    let mut left_out = Vec::new();
    for (bounds, label, difficult) in objects.iter() {
        let scaled = within(bounds, from.0, from.1)
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

/// PNG as PNG, all else as JPEG of this quality, its colours at half the resolution as Pillow's and
/// libjpeg's defaults have it.
fn encode(image: &Image, encoding: Encoding, quality: u8) -> Result<Vec<u8>, String> {
    if encoding == Encoding::Png {
        let mut bytes = Vec::new();
        let (width, height) = (image.width as u32, image.height as u32);
        PngEncoder::new(&mut bytes)
            .write_image(&image.pixels, width, height, image::ExtendedColorType::Rgb8)
            .map_err(|error| error.to_string())?;
        return Ok(bytes);
    }
    let (width, height) = jpeg_sides(image.width, image.height)?;
    let mut bytes = Vec::with_capacity(image.pixels.len() / 4);
    let mut encoder = Encoder::new(&mut bytes, quality);
    encoder.set_sampling_factor(SamplingFactor::R_4_2_0);
    encoder.set_chroma_subsampling_method(ChromaSubsamplingMethod::Average);
    encoder
        .encode(&image.pixels, width, height, ColorType::Rgb)
        .map_err(|error| error.to_string())?;
    Ok(bytes)
}
