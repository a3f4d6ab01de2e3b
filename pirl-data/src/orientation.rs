//! The orientation in the Exif data of a photograph.

use image::metadata::Orientation;

use crate::Image;
use crate::transform::{flip, quarter_turns};

/// Turns and mirrors an image as the Exif data of its file asks; without a valid orientation there
/// it stays as it is.
pub(crate) fn make_upright(image: &mut Image, exif: Option<&[u8]>) {
    let orientation = exif.and_then(Orientation::from_exif_chunk);
    // Counter-clockwise quarter turns, then whether left and right change places.
    let (turns, mirrored) = match orientation.unwrap_or(Orientation::NoTransforms) {
        Orientation::NoTransforms => (0, false),
        Orientation::FlipHorizontal => (0, true),
        Orientation::Rotate180 => (2, false),
        Orientation::FlipVertical => (2, true),
        Orientation::Rotate90FlipH => (3, true),
        Orientation::Rotate90 => (3, false),
        Orientation::Rotate270FlipH => (1, true),
        Orientation::Rotate270 => (1, false),
    };
    if turns > 0 {
        let mut turned = Image::empty();
        quarter_turns(image, turns, &mut turned);
        *image = turned;
    }
    if mirrored {
        flip(image);
    }
}

/// Width and height of an image of `size` once it is upright.
pub(crate) fn upright_size(size: (usize, usize), exif: Option<&[u8]>) -> (usize, usize) {
    let (width, height) = size;
    match exif.and_then(Orientation::from_exif_chunk) {
        Some(
            Orientation::Rotate90
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270
            | Orientation::Rotate270FlipH,
        ) => (height, width),
        _ => (width, height),
    }
}
