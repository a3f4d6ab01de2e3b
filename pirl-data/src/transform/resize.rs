//! Antialiased bilinear resizing, as Pillow's `resize(.., BILINEAR)` of a crop.

use std::fmt;

use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::{InnerPixel, U8, U8x3};
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeOptions};

use super::crop::Crop;
use crate::{DataError, Image};

/// Buffers for resizing. Keep one for each thread and reuse it.
pub struct Resizer {
    resizer: fast_image_resize::Resizer,
    /// One channel of an image, and what becomes of it.
    plane: (Image, Image),
}

impl Default for Resizer {
    fn default() -> Self {
        Self {
            resizer: fast_image_resize::Resizer::default(),
            plane: (Image::empty(), Image::empty()),
        }
    }
}

impl fmt::Debug for Resizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resizer").finish_non_exhaustive()
    }
}

/// Resizes the part `crop` of `image` to `width` x `height` pixels, into `out`, whose buffer is
/// reused.
///
/// Pixels outside the crop have no influence; a crop of that very size is copied.
///
/// # Errors
/// [`DataError::Crop`] when the crop or the result is empty, or the crop leaves the image.
pub fn resize(
    resizer: &mut Resizer,
    image: &Image,
    crop: Crop,
    width: usize,
    height: usize,
    out: &mut Image,
) -> Result<(), DataError> {
    let failed = |reason: String| DataError::Crop {
        crop,
        image: (image.width, image.height),
        size: (width, height),
        reason,
    };
    let whole = |side: usize| u32::try_from(side).ok().filter(|side| *side > 0);
    let sides = [
        crop.width,
        crop.height,
        width,
        height,
        image.width,
        image.height,
    ]
    .map(whole);
    let [
        Some(crop_width),
        Some(crop_height),
        Some(out_width),
        Some(out_height),
        Some(image_width),
        Some(image_height),
    ] = sides
    else {
        return Err(failed("a side is 0".into()));
    };
    let inside = |start: usize, length: usize, side: usize| {
        start.checked_add(length).is_some_and(|end| end <= side)
    };
    if !inside(crop.left, crop.width, image.width) || !inside(crop.top, crop.height, image.height) {
        return Err(failed("the crop leaves the image".into()));
    }
    if !at_once(image.channels) {
        return by_planes(
            resizer,
            image,
            crop,
            (width, height),
            out,
            |resizer, plane, out| resize(resizer, plane, Crop::whole(plane), width, height, out),
        );
    }
    out.set_size(width, height, image.channels);
    let sizes = ((image_width, image_height), (out_width, out_height));
    let part = Part::Alone([crop.left as u32, crop.top as u32, crop_width, crop_height]);
    run_any(&mut resizer.resizer, image, sizes, part, out).map_err(failed)
}

/// As [`resize`] of a part of `image` whose sides need not be whole pixels: left, top, width, height. Where
/// the part ends within the image, pixels beside it have an influence, as if more had been resized.
///
/// # Errors
/// [`DataError::Crop`] when the part or the result is empty, or the part leaves the image.
pub(crate) fn resize_part(
    resizer: &mut Resizer,
    image: &Image,
    [left, top, wide, high]: [f64; 4],
    (width, height): (usize, usize),
    out: &mut Image,
) -> Result<(), DataError> {
    let failed = |reason: String| DataError::Crop {
        crop: Crop::whole(image),
        image: (image.width, image.height),
        size: (width, height),
        reason,
    };
    if !at_once(image.channels) {
        let whole = Crop::whole(image);
        return by_planes(
            resizer,
            image,
            whole,
            (width, height),
            out,
            |resizer, plane, out| {
                resize_part(
                    resizer,
                    plane,
                    [left, top, wide, high],
                    (width, height),
                    out,
                )
            },
        );
    }
    out.set_size(width, height, image.channels);
    let side = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
    let sizes = (
        (side(image.width), side(image.height)),
        (side(width), side(height)),
    );
    let part = Part::Within([left, top, wide, high]);
    run_any(&mut resizer.resizer, image, sizes, part, out).map_err(failed)
}

/// Resizes the channels of the part `crop` one by one, each by `resize`.
fn by_planes(
    resizer: &mut Resizer,
    image: &Image,
    crop: Crop,
    (width, height): (usize, usize),
    out: &mut Image,
    resize: impl Fn(&mut Resizer, &Image, &mut Image) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let channels = image.channels;
    out.set_size(width, height, channels);
    let empty = (Image::empty(), Image::empty());
    let (mut plane, mut small) = std::mem::replace(&mut resizer.plane, empty);
    for channel in 0..channels {
        plane.set_size(crop.width, crop.height, 1);
        let rows = image.pixels.chunks_exact(image.width * channels);
        let rows = rows.skip(crop.top).take(crop.height);
        for (row, to) in rows.zip(plane.pixels.chunks_exact_mut(crop.width)) {
            let values = row[crop.left * channels + channel..].iter();
            for (value, to) in values.step_by(channels).zip(to) {
                *to = *value;
            }
        }
        resize(resizer, &plane, &mut small)?;
        let places = out.pixels.iter_mut().skip(channel).step_by(channels);
        for (place, value) in places.zip(&small.pixels) {
            *place = *value;
        }
    }
    resizer.plane = (plane, small);
    Ok(())
}

/// Which part of an image is resized: left, top, width, height.
#[derive(Clone, Copy)]
enum Part {
    /// Pixels around it have no influence.
    Alone([u32; 4]),
    /// They have.
    Within([f64; 4]),
}

/// Width and height of an image, and those of its resized part.
type Sizes = ((u32, u32), (u32, u32));

/// Whether so many channels are resized together. Of each kind of pixel the compiler makes hundreds of
/// functions, so there are two, of the images that most sets have; others go channel by channel.
fn at_once(channels: usize) -> bool {
    matches!(channels, 1 | 3)
}

/// Resizes an image of 1 or 3 channels.
fn run_any(
    resizer: &mut fast_image_resize::Resizer,
    image: &Image,
    sizes: Sizes,
    part: Part,
    out: &mut Image,
) -> Result<(), String> {
    match image.channels {
        1 => run::<U8>(resizer, image, sizes, part, out),
        _ => run::<U8x3>(resizer, image, sizes, part, out),
    }
}

fn run<P: PixelTrait + InnerPixel>(
    resizer: &mut fast_image_resize::Resizer,
    image: &Image,
    (from, to): Sizes,
    part: Part,
    out: &mut Image,
) -> Result<(), String> {
    let source = TypedImageRef::<P>::from_buffer(from.0, from.1, &image.pixels)
        .map_err(|error| error.to_string())?;
    let mut target = TypedImage::<P>::from_buffer(to.0, to.1, &mut out.pixels)
        .map_err(|error| error.to_string())?;
    // The whole as a crop too: another type of source would double what the compiler makes.
    let (alone, options) = match part {
        Part::Alone(part) => (part, options()),
        Part::Within([left, top, width, height]) => (
            [0, 0, from.0, from.1],
            options().crop(left, top, width, height),
        ),
    };
    let [left, top, width, height] = alone;
    let source = TypedCroppedImage::new(source, left, top, width, height)
        .map_err(|error| error.to_string())?;
    let resized = resizer.resize_typed(&source, &mut target, &options);
    resized.map_err(|error| error.to_string())
}

fn options() -> ResizeOptions {
    ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
        .use_alpha(false)
}
