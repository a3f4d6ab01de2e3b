//! Antialiased bilinear resizing, as Pillow's `resize(.., BILINEAR)` of a crop.

use std::fmt;

use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions};

use super::crop::Crop;
use crate::{DataError, Image};

/// Buffers for resizing. Keep one for each thread and reuse it.
#[derive(Default)]
pub struct Resizer(fast_image_resize::Resizer);

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
    out.width = width;
    out.height = height;
    out.pixels.resize(width * height * 3, 0);
    let source = TypedImageRef::<U8x3>::from_buffer(image_width, image_height, &image.pixels)
        .map_err(|error| failed(error.to_string()))?;
    let source = TypedCroppedImage::new(
        source,
        crop.left as u32,
        crop.top as u32,
        crop_width,
        crop_height,
    )
    .map_err(|error| failed(error.to_string()))?;
    let mut target = TypedImage::<U8x3>::from_buffer(out_width, out_height, &mut out.pixels)
        .map_err(|error| failed(error.to_string()))?;
    resizer
        .0
        .resize_typed(&source, &mut target, &options())
        .map_err(|error| failed(error.to_string()))
}

/// As [`resize`] of a part of `image` whose sides need not be whole pixels: left, top, width, height. Where
/// the part ends within the image, pixels beside it have an influence, as if more had been resized.
///
/// # Errors
/// [`DataError::Crop`] when the part or the result is empty, or the part leaves the image.
pub(super) fn resize_part(
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
    out.width = width;
    out.height = height;
    out.pixels.resize(width * height * 3, 0);
    let side = |side: usize| u32::try_from(side).unwrap_or(u32::MAX);
    let (image_width, image_height) = (side(image.width), side(image.height));
    let source = TypedImageRef::<U8x3>::from_buffer(image_width, image_height, &image.pixels)
        .map_err(|error| failed(error.to_string()))?;
    let mut target = TypedImage::<U8x3>::from_buffer(side(width), side(height), &mut out.pixels)
        .map_err(|error| failed(error.to_string()))?;
    resizer
        .0
        .resize_typed(&source, &mut target, &options().crop(left, top, wide, high))
        .map_err(|error| failed(error.to_string()))
}

fn options() -> ResizeOptions {
    ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::Bilinear))
        .use_alpha(false)
}
