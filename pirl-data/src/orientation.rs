//! The orientation in the Exif or XMP data of a photograph.

use image::metadata::Orientation;

use crate::Image;
use crate::transform::{flip, quarter_turns};

/// What Exif data ask for; when they say nothing of it, XMP data, as Pillow has it.
pub(crate) fn orientation(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Orientation {
    exif.and_then(Orientation::from_exif_chunk)
        .or_else(|| xmp.and_then(in_xmp))
        .unwrap_or(Orientation::NoTransforms)
}

/// The number behind `tiff:Orientation`, an attribute or an element.
fn in_xmp(xmp: &[u8]) -> Option<Orientation> {
    const NAME: &[u8] = b"tiff:Orientation";
    memchr::memmem::find_iter(xmp, NAME).find_map(|at| match xmp.get(at + NAME.len()..)? {
        [b'=', b'"', digit, ..] | [b'>', digit, ..] => {
            Orientation::from_exif(digit.wrapping_sub(b'0'))
        }
        _ => None,
    })
}

/// Counter-clockwise quarter turns that make the image upright, then whether left and right change
/// places.
fn steps(orientation: Orientation) -> (u32, bool) {
    match orientation {
        Orientation::NoTransforms => (0, false),
        Orientation::FlipHorizontal => (0, true),
        Orientation::Rotate180 => (2, false),
        Orientation::FlipVertical => (2, true),
        Orientation::Rotate90FlipH => (3, true),
        Orientation::Rotate90 => (3, false),
        Orientation::Rotate270FlipH => (1, true),
        Orientation::Rotate270 => (1, false),
    }
}

/// Turns and mirrors an image as the data of its file ask.
pub(crate) fn make_upright(image: &mut Image, orientation: Orientation) {
    let (turns, mirrored) = steps(orientation);
    if turns > 0 {
        let mut turned = Image::empty();
        quarter_turns(image, turns, &mut turned);
        *image = turned;
    }
    if mirrored {
        flip(image);
    }
}

/// Width and height of an image of `size` once it is upright, and of an upright one as it is stored.
pub(crate) fn upright_size(
    (width, height): (usize, usize),
    orientation: Orientation,
) -> (usize, usize) {
    match steps(orientation).0 {
        1 | 3 => (height, width),
        _ => (width, height),
    }
}

/// A box of the stored pixels, which are `width` by `height`, in the upright image.
pub(crate) fn upright_box(
    [x0, y0, x1, y1]: [f32; 4],
    (width, height): (usize, usize),
    orientation: Orientation,
) -> [f32; 4] {
    let (turns, mirrored) = steps(orientation);
    let (wide, high) = (width as f32, height as f32);
    let [x0, y0, x1, y1] = match turns {
        1 => [y0, wide - x1, y1, wide - x0],
        2 => [wide - x1, high - y1, wide - x0, high - y0],
        3 => [high - y1, x0, high - y0, x1],
        _ => [x0, y0, x1, y1],
    };
    let wide = upright_size((width, height), orientation).0 as f32;
    if mirrored {
        [wide - x1, y0, wide - x0, y1]
    } else {
        [x0, y0, x1, y1]
    }
}
