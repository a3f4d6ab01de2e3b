//! Images set beside each other, to be looked at.

use pirl_data::Image;
use pirl_data::transform::{Crop, Resizer, resize};

use crate::canvas::{Canvas, Color};
use crate::error::Result;
use crate::font::Face;
use crate::raster::check_size;

/// The image as large as it can be with sides of at most `side` pixels, and by how much larger it is than
/// it was, in RGB: smaller ones are enlarged by the whole factor that fits, so that their pixels can be seen, larger
/// ones are shrunk in proportion, to at least a pixel.
///
/// # Errors
/// [`ReportError::Data`](crate::ReportError::Data) when the image's pixels do not fill it.
pub(crate) fn panel(image: &Image, side: usize) -> Result<(Image, f64)> {
    image.check()?;
    let image = &image.to_rgb();
    let longer = image.width.max(image.height);
    match side / longer {
        0 => resized(image, side as f64 / longer as f64),
        factor => Ok((enlarge(image, factor)?, factor as f64)),
    }
}

fn resized(image: &Image, scale: f64) -> Result<(Image, f64)> {
    let side = |side: usize| ((side as f64 * scale).round() as usize).max(1);
    let (width, height) = (side(image.width), side(image.height));
    Ok((resize_to(image, width, height)?, scale))
}

/// The image with other sides.
pub(crate) fn resize_to(image: &Image, width: usize, height: usize) -> Result<Image> {
    let mut out = Image::new(1, 1, vec![0; 3])?;
    let whole = Crop::whole(image);
    resize(
        &mut Resizer::default(),
        image,
        whole,
        width,
        height,
        &mut out,
    )?;
    Ok(out)
}

/// The image with each pixel repeated `factor` times along both axes, at least once.
///
/// # Errors
/// [`ReportError::Data`](crate::ReportError::Data) when the image's pixels do not fill it;
/// [`ReportError::TooLarge`](crate::ReportError::TooLarge).
pub(crate) fn enlarge(image: &Image, factor: usize) -> Result<Image> {
    image.check()?;
    let factor = factor.max(1);
    let (width, height) = (
        image.width.saturating_mul(factor),
        image.height.saturating_mul(factor),
    );
    check_size(width, height)?;
    let mut pixels = Vec::with_capacity(width * height * 3);
    for row in image.pixels.chunks_exact(image.width * 3) {
        let wide: Vec<u8> = row
            .chunks_exact(3)
            .flat_map(|pixel| pixel.repeat(factor))
            .collect();
        pixels.extend(wide.repeat(factor));
    }
    Ok(Image::new(width, height, pixels)?)
}

/// Rows that a caption of this face takes.
pub(crate) fn caption_height(face: Face) -> usize {
    face.line()
}

/// The image under a line of words, which is cut where the image ends.
pub(crate) fn caption(image: &Image, text: &str, face: Face, color: Color) -> Result<Image> {
    let line = caption_height(face);
    let mut canvas = Canvas::new(image.width, image.height + line)?;
    canvas.text((0, 1), image.width, text, face, color)?;
    canvas.paste((0, line as i64), image);
    Ok(canvas.into_image())
}

/// The image with `margin` pixels of paper around it.
pub(crate) fn framed(image: &Image, margin: usize) -> Result<Image> {
    let mut canvas = Canvas::new(image.width + 2 * margin, image.height + 2 * margin)?;
    canvas.paste((margin as i64, margin as i64), image);
    Ok(canvas.into_image())
}

/// A contact sheet: images on paper, `columns` in a row and `gap` pixels apart, each in a place as
/// large as the largest.
pub(crate) fn contact_sheet(images: &[Image], columns: usize, gap: usize) -> Result<Image> {
    let columns = columns.clamp(1, images.len().max(1));
    let rows = images.len().div_ceil(columns);
    let wide = images.iter().map(|image| image.width).max().unwrap_or(1);
    let high = images.iter().map(|image| image.height).max().unwrap_or(1);
    let side = |count: usize, each: usize| (count * (each + gap)).saturating_sub(gap);
    let mut sheet = Canvas::new(side(columns, wide), side(rows, high))?;
    for (place, image) in images.iter().enumerate() {
        let left = place % columns * (wide + gap);
        let top = place / columns * (high + gap);
        sheet.paste((left as i64, top as i64), image);
    }
    Ok(sheet.into_image())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ReportError;
    use crate::canvas::{INK, PAPER};

    fn flat(width: usize, height: usize, value: u8) -> Image {
        Image::new(width, height, vec![value; 3 * width * height]).unwrap()
    }

    #[test]
    fn panels_keep_their_proportions() {
        for (width, height, expected, larger) in [
            (80, 64, (320, 256), 4.0),
            (90, 90, (270, 270), 3.0),
            (3, 500, (2, 320), 0.64),
            (1, 1, (320, 320), 320.0),
            (1, 320, (1, 320), 1.0),
        ] {
            let (image, scale) = panel(&flat(width, height, 9), 320).unwrap();
            assert_eq!((image.width, image.height), expected);
            assert!((scale - larger).abs() < 1e-12);
        }
        assert_eq!(panel(&flat(4, 4, 9), 0).unwrap().0.width, 1);
        let mut broken = flat(4, 4, 9);
        broken.pixels.pop();
        assert!(panel(&broken, 8).is_err() && enlarge(&broken, 2).is_err());
    }

    #[test]
    fn enlarging_repeats_pixels() {
        let image = Image::new(2, 1, vec![1, 2, 3, 4, 5, 6]).unwrap();
        let image = enlarge(&image, 2).unwrap();
        assert_eq!((image.width, image.height), (4, 2));
        assert_eq!(image.pixels, [1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6].repeat(2));
    }

    #[test]
    fn a_sheet_has_a_place_for_each_image() {
        let images = [flat(4, 2, 1), flat(3, 5, 2), flat(1, 1, 3)];
        let sheet = contact_sheet(&images, 2, 1).unwrap();
        assert_eq!((sheet.width, sheet.height), (9, 11));
        let pixel = |x, y| sheet.pixel(x, y).unwrap();
        assert_eq!(
            [pixel(3, 1), pixel(7, 4), pixel(0, 6)],
            [[1; 3], [2; 3], [3; 3]]
        );
        assert_eq!([pixel(4, 0), pixel(3, 2), pixel(5, 6)], [PAPER; 3]);
        assert_eq!(contact_sheet(&[], 0, 3).unwrap().pixels, PAPER);
        let framed = framed(&images[0], 2).unwrap();
        assert_eq!((framed.width, framed.height), (8, 6));
        assert_eq!(
            [framed.pixel(1, 2), framed.pixel(2, 2)],
            [Some(PAPER), Some([1; 3])]
        );
    }

    #[test]
    fn a_sheet_too_large_to_look_at_is_refused() {
        let image = flat(1 << 14, 1, 9);
        let refused = contact_sheet(&vec![image; 1000], 1, 1 << 14);
        assert!(matches!(refused, Err(ReportError::TooLarge { .. })));
        assert!(enlarge(&flat(1, 1, 9), usize::MAX).is_err());
    }

    #[test]
    fn captions_stand_above_and_are_cut() {
        const FACE: Face = Face::regular(13.0);
        let line = caption_height(FACE);
        let plain = caption(&flat(24, 3, 9), "", FACE, INK).unwrap();
        let image = caption(&flat(24, 3, 9), "IIIIIIIIIIIIIIIII", FACE, INK).unwrap();
        assert_eq!((image.width, image.height), (24, 3 + line));
        assert_eq!(plain.pixel(3, 4), Some(PAPER));
        let inked = |image: &Image, x: usize| (0..line).any(|y| image.pixel(x, y).unwrap()[0] < 90);
        assert!((0..8).any(|x| inked(&image, x)) && !(0..24).any(|x| inked(&plain, x)));
        assert_eq!(image.pixel(0, line), Some([9; 3]));
        assert_eq!(
            image.pixel(23, line - 1),
            Some(PAPER),
            "nothing reaches the image"
        );
    }
}
