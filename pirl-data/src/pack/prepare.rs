//! What happens to a sample between its source and the pack.

use std::borrow::Cow;

use pirl_core::SettingError;

use super::recode::{Planes, png, png_of_planes};
use super::{Depth, PackOptions, Reencode, Skipped};
use crate::decode::{Channels, Looked, MAX_PIXELS, decode_channels};
use crate::objects::{Cut, cut};
use crate::orientation::{upright_box, upright_size};
use crate::transform::{AsTheyAre, Crop, FromRgb, Resizer, resize, resize_part};
use crate::{DataError, Encoding, Image, Objects, RawSample, Source};

/// Quality of re-encoded JPEGs unless the options name one; that of common 256-pixel copies of ImageNet.
const JPEG_QUALITY: u8 = 95;

/// A sample as it will be packed, and what happened to it.
pub(super) struct Prepared<'a> {
    pub(super) sample: RawSample<'a>,
    /// The encoding that it came in.
    pub(super) came: Encoding,
    /// Width and height as packed.
    pub(super) size: (usize, usize),
    /// Those of its objects that are left out.
    pub(super) left_out: Vec<Skipped>,
    /// What was changed in its objects.
    pub(super) notes: Vec<Skipped>,
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
    let left_out = |name: &str, reason: String| DataError::Decode {
        name: name.to_owned(),
        reason,
    };
    let changed = change(&sample, options, workspace);
    let Changed {
        from,
        size,
        bytes,
        deep,
    } = changed.map_err(|reason| left_out(&sample.name, reason))?;
    let came = sample.encoding;
    if let Some(bytes) = bytes {
        sample.bytes = Cow::Owned(bytes);
        sample.encoding = packed_as(came, options);
    }
    let mut notes = Vec::new();
    if deep {
        let how = match options.depth {
            Depth::Upper => "their upper 8 bits".to_owned(),
            Depth::Image => "from the least to the greatest of each channel".to_owned(),
            Depth::Range { least, most } => format!("from {least} to {most}"),
        };
        notes.push(Skipped {
            name: sample.name.clone(),
            reason: format!("its values of more than 8 bits became 8: {how}"),
        });
    }
    let mut prepared = Prepared {
        sample,
        came,
        size,
        left_out: Vec::new(),
        notes,
    };
    if let Some(mut objects) = prepared.sample.objects.take() {
        let name = &prepared.sample.name;
        if objects.labels.len() != objects.len() || objects.difficult.len() != objects.len() {
            return Err(DataError::Annotation {
                name: name.clone(),
                reason: "its objects are not as many boxes, labels and flags".to_owned(),
            });
        }
        let annotated = source.annotated_size(index);
        if turn(&mut objects, annotated, from).map_err(|reason| left_out(name, reason))? {
            prepared.notes.push(Skipped {
                name: name.clone(),
                reason: "its boxes are turned as its Exif data turn the image".to_owned(),
            });
        }
        let fitted = fit(&objects, from.size, size, |bounds, label| {
            let class = source.class_names().get(label as usize);
            let class = class.map_or("object", String::as_str);
            format!("{name}, {class} at {bounds:?}")
        });
        let fitted = fitted.map_err(|reason| left_out(name, reason))?;
        prepared.sample.objects = Some(fitted.kept);
        prepared.left_out = fitted.left_out;
        prepared.notes.extend(fitted.cut);
    }
    Ok(prepared)
}

/// What a sample is encoded in once it is packed.
fn packed_as(came: Encoding, options: &PackOptions) -> Encoding {
    if options.channels != 3 {
        let channels = options.channels as u32;
        return Encoding::Planes { channels };
    }
    match (came, options.reencode.unwrap_or_default()) {
        (Encoding::WebP | Encoding::Other(_), Reencode::Png) => Encoding::Png,
        (Encoding::WebP | Encoding::Other(_), Reencode::Jpeg) => Encoding::Jpeg,
        (came, _) => came,
    }
}

/// Whether an image is encoded again whatever its size.
fn encodes_again(bytes: &[u8], encoding: Encoding, options: &PackOptions) -> bool {
    match encoding {
        Encoding::Jpeg => options.quality.is_some(),
        Encoding::WebP => options.reencode.is_some() || crate::decode::is_animated_webp(bytes),
        Encoding::Other(_) => true,
        _ => false,
    }
}

/// Turns boxes that were drawn on the image as it is stored. Returns whether they had to be turned.
///
/// # Errors
/// When the annotation is of an image of another size.
fn turn(
    objects: &mut Objects,
    annotated: Option<(usize, usize)>,
    image: Looked,
) -> Result<bool, String> {
    let Some((width, height)) = annotated.filter(|(width, height)| *width > 0 && *height > 0)
    else {
        return Ok(false);
    };
    let stored = upright_size(image.size, image.orientation);
    if (width, height) == image.size {
        return Ok(false);
    }
    if (width, height) != stored {
        return Err(format!(
            "its boxes are of an image of {width} x {height} pixels, it has {} x {}",
            image.size.0, image.size.1
        ));
    }
    for bounds in &mut objects.boxes {
        *bounds = upright_box(*bounds, stored, image.orientation);
    }
    Ok(true)
}

/// An image after [`change`].
struct Changed {
    /// What it was before.
    from: Looked,
    /// Width and height after.
    size: (usize, usize),
    /// The new bytes; `None` if the sample is packed as it is.
    bytes: Option<Vec<u8>>,
    /// Whether values of more than 8 bits became 8 by the rule of the options.
    deep: bool,
}

/// Shrinks an image and encodes it again, where the options or its format ask for it; otherwise only
/// checks that it decodes.
fn change(
    sample: &RawSample,
    options: &PackOptions,
    workspace: &mut Workspace,
) -> Result<Changed, String> {
    let (bytes, encoding) = (&sample.bytes, sample.encoding);
    let limit = options.max_pixels;
    if options.channels != 3 || options.depth != Depth::Upper && may_be_deep(encoding) {
        let (from, deep) = decode_channels(
            bytes,
            encoding,
            Channels {
                channels: options.channels,
                depth: options.depth,
                limit,
            },
            &mut workspace.decoded,
        )?;
        if deep || options.channels != 3 {
            return encoded_anew(encoding, options, workspace, from, deep);
        }
    }
    let again = encodes_again(bytes, encoding, options);
    if options.resize_shorter.is_none() && !again {
        let limit = limit.min(MAX_PIXELS);
        let from = crate::decode::check(bytes, encoding, limit, &mut workspace.decoded)?;
        return Ok(Changed {
            from,
            size: from.size,
            bytes: None,
            deep: false,
        });
    }
    let decoded = &mut workspace.decoded;
    let shorter = options.resize_shorter.map(|side| side as usize);
    let own_colors = crate::decode::decode_ycbcr_into(bytes, encoding, limit, shorter, decoded)?;
    let (from, part) = match own_colors {
        Some(found) => (found.looked, found.part),
        None => {
            let looked = crate::decode::decode_into(bytes, encoding, limit, decoded)?;
            (looked, None)
        }
    };
    let size = target_size(from.size, options)?;
    let quality = options.quality.unwrap_or(JPEG_QUALITY);
    let changed = again || size != from.size;
    let bytes = changed.then(|| {
        let Workspace {
            decoded,
            small,
            planes,
            resizer,
        } = workspace;
        let image = resized(decoded, part, size, resizer, small)?;
        match own_colors {
            Some(_) => planes.jpeg(image, AsTheyAre, quality),
            None => encode(image, packed_as(encoding, options), quality, planes),
        }
    });
    let bytes = bytes.transpose()?;
    Ok(Changed {
        from,
        size,
        bytes,
        deep: false,
    })
}

/// Whether a format has values of more than 8 bits.
fn may_be_deep(encoding: Encoding) -> bool {
    use crate::OtherFormat::{JpegXl, Pnm, Tiff};
    matches!(
        encoding,
        Encoding::Png | Encoding::Mixed | Encoding::Other(Pnm | Tiff | JpegXl)
    )
}

/// Shrinks the decoded image if the options say so, and encodes it.
fn encoded_anew(
    came: Encoding,
    options: &PackOptions,
    workspace: &mut Workspace,
    from: Looked,
    deep: bool,
) -> Result<Changed, String> {
    let size = target_size(from.size, options)?;
    let Workspace {
        decoded,
        small,
        planes,
        resizer,
    } = workspace;
    let image = resized(decoded, None, size, resizer, small)?;
    let quality = options.quality.unwrap_or(JPEG_QUALITY);
    let bytes = encode(image, packed_as(came, options), quality, planes)?;
    Ok(Changed {
        from,
        size,
        bytes: Some(bytes),
        deep,
    })
}

/// The size that an image is packed in.
fn target_size(from: (usize, usize), options: &PackOptions) -> Result<(usize, usize), String> {
    let size = shrunk(from, options.resize_shorter);
    // Of three channels pixels are counted, of others values.
    let (each, what) = match options.channels {
        3 => (1, "pixels"),
        channels => (channels, "values in all channels together"),
    };
    if size.0.saturating_mul(size.1).saturating_mul(each) > MAX_PIXELS {
        return Err(format!(
            "{} x {} pixels; a pack holds images of up to {MAX_PIXELS} {what}: shrink it",
            size.0, size.1
        ));
    }
    Ok(size)
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

/// The image, or this part of it, in this size: itself, or in `small`.
fn resized<'a>(
    image: &'a Image,
    part: Option<[f64; 4]>,
    (width, height): (usize, usize),
    resizer: &mut Resizer,
    small: &'a mut Image,
) -> Result<&'a Image, String> {
    if (width, height) == (image.width, image.height) {
        return Ok(image);
    }
    match part {
        Some(part) => resize_part(resizer, image, part, (width, height), small),
        None => resize(resizer, image, Crop::whole(image), width, height, small),
    }
    .map_err(|error| error.to_string())?;
    Ok(small)
}

/// The objects of an image after [`fit`].
struct Fitted {
    kept: Objects,
    /// Those of which nothing lies in the image.
    left_out: Vec<Skipped>,
    /// Those of `kept` that were cut at its edges.
    cut: Vec<Skipped>,
}

/// Cuts boxes at the edges of an image of the size `from` and scales them to `size`; `name` names an
/// object.
///
/// # Errors
/// When something is no box.
fn fit(
    objects: &Objects,
    from: (usize, usize),
    size: (usize, usize),
    name: impl Fn([f32; 4], u32) -> String,
) -> Result<Fitted, String> {
    let x = size.0 as f32 / from.0 as f32;
    let y = size.1 as f32 / from.1 as f32;
    let mut fitted = Fitted {
        kept: Objects::default(),
        left_out: Vec::new(),
        cut: Vec::new(),
    };
    let pixels = format!("the image of {} x {} pixels", from.0, from.1);
    for (bounds, label, difficult) in objects.iter() {
        let entry = |reason: String| Skipped {
            name: name(bounds, label),
            reason,
        };
        let found = cut(bounds, from.0, from.1)
            .map_err(|reason| format!("{}: {reason}", name(bounds, label)))?;
        let inside = match found {
            Cut::Whole(inside) => inside,
            Cut::Part(inside) => {
                fitted
                    .cut
                    .push(entry(format!("its box is cut at the edge of {pixels}")));
                inside
            }
            Cut::Nothing => {
                fitted
                    .left_out
                    .push(entry(format!("nothing of its box lies in {pixels}")));
                continue;
            }
        };
        let [xmin, ymin, xmax, ymax] = inside;
        match cut([xmin * x, ymin * y, xmax * x, ymax * y], size.0, size.1)? {
            Cut::Whole(scaled) | Cut::Part(scaled) => fitted.kept.push(scaled, label, difficult),
            Cut::Nothing => fitted
                .left_out
                .push(entry("nothing is left of its box".to_owned())),
        }
    }
    Ok(fitted)
}

/// PNG as PNG, channels that are not RGB as a PNG of planes, all else as JPEG of this quality.
fn encode(
    image: &Image,
    encoding: Encoding,
    quality: u8,
    planes: &mut Planes,
) -> Result<Vec<u8>, String> {
    match encoding {
        Encoding::Planes { .. } => png_of_planes(image),
        Encoding::Png => png(image),
        _ => planes.jpeg(image, FromRgb, quality),
    }
}
