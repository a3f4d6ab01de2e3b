//! Images set beside each other, to be looked at.

use super::canvas::{Canvas, Color, LETTER};
use crate::transform::{Crop, Resizer, resize};
use crate::{DataError, Image};

/// The image resized so that its longer side has `longer` pixels, and by how much; its sides stay in
/// proportion, to a pixel, and have at least one.
///
/// # Errors
/// [`DataError::ImageSize`] when the image's pixels do not fill it.
pub fn fit(image: &Image, longer: usize) -> Result<(Image, f64), DataError> {
    image.check()?;
    let scale = longer as f64 / image.width.max(image.height) as f64;
    let scaled = |side: usize| ((side as f64 * scale).round() as usize).max(1);
    let (width, height) = (scaled(image.width), scaled(image.height));
    let mut out = Image::empty();
    let whole = Crop::whole(image);
    resize(
        &mut Resizer::default(),
        image,
        whole,
        width,
        height,
        &mut out,
    )?;
    Ok((out, scale))
}

/// The image with each pixel repeated `factor` times along both axes, at least once.
///
/// # Errors
/// [`DataError::ImageSize`] when the image's pixels do not fill it.
pub fn enlarge(image: &Image, factor: usize) -> Result<Image, DataError> {
    image.check()?;
    let factor = factor.max(1);
    let (width, height) = (image.width * factor, image.height * factor);
    let mut pixels = Vec::with_capacity(width * height * 3);
    for row in image.pixels.chunks_exact(image.width * 3) {
        let wide: Vec<u8> = row
            .chunks_exact(3)
            .flat_map(|pixel| pixel.repeat(factor))
            .collect();
        pixels.extend(wide.repeat(factor));
    }
    Image::new(width, height, pixels)
}

/// The image under a line of words in `color`, which is cut where the image ends.
pub fn caption(image: &Image, text: &str, color: Color) -> Image {
    const LINE: usize = LETTER + 4;
    let text: String = text.chars().take(image.width / LETTER).collect();
    let mut canvas = Canvas::new(image.width, image.height + LINE);
    canvas.text((0, 2), &text, color);
    canvas.paste((0, LINE as i64), image);
    canvas.into_image()
}

/// A contact sheet: images on paper, `columns` in a row and `gap` pixels apart, each in a place as
/// large as the largest.
pub fn contact_sheet(images: &[Image], columns: usize, gap: usize) -> Image {
    let columns = columns.clamp(1, images.len().max(1));
    let rows = images.len().div_ceil(columns);
    let wide = images.iter().map(|image| image.width).max().unwrap_or(1);
    let high = images.iter().map(|image| image.height).max().unwrap_or(1);
    let side = |count: usize, each: usize| (count * (each + gap)).saturating_sub(gap);
    let mut sheet = Canvas::new(side(columns, wide), side(rows, high));
    for (place, image) in images.iter().enumerate() {
        let left = place % columns * (wide + gap);
        let top = place / columns * (high + gap);
        sheet.paste((left as i64, top as i64), image);
    }
    sheet.into_image()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::{INK, PAPER};

    fn flat(width: usize, height: usize, value: u8) -> Image {
        Image::new(width, height, vec![value; 3 * width * height]).unwrap()
    }

    #[test]
    fn fitted_images_keep_their_proportions() {
        for (width, height, expected) in
            [(80, 64, (320, 256)), (3, 500, (2, 320)), (1, 1, (320, 320))]
        {
            let (image, scale) = fit(&flat(width, height, 9), 320).unwrap();
            assert_eq!((image.width, image.height), expected);
            assert!((scale - 320.0 / width.max(height) as f64).abs() < 1e-12);
        }
        assert_eq!(fit(&flat(4, 4, 9), 0).unwrap().0.width, 1);
        let mut broken = flat(4, 4, 9);
        broken.pixels.pop();
        assert!(fit(&broken, 8).is_err() && enlarge(&broken, 2).is_err());
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
        let sheet = contact_sheet(&images, 2, 1);
        assert_eq!((sheet.width, sheet.height), (9, 11));
        let pixel = |x, y| sheet.pixel(x, y).unwrap();
        assert_eq!(
            [pixel(3, 1), pixel(7, 4), pixel(0, 6)],
            [[1; 3], [2; 3], [3; 3]]
        );
        assert_eq!([pixel(4, 0), pixel(3, 2), pixel(5, 6)], [PAPER; 3]);
        assert_eq!(contact_sheet(&[], 0, 3).pixels, PAPER);
    }

    #[test]
    fn captions_stand_above_and_are_cut() {
        let image = caption(&flat(LETTER * 2, 3, 9), "III", INK);
        assert_eq!((image.width, image.height), (2 * LETTER, 3 + LETTER + 4));
        let inked = |x: usize| {
            (0..LETTER + 4)
                .filter(|&y| image.pixel(x, y) == Some(INK))
                .count()
        };
        assert!((0..LETTER).any(|x| inked(x) > 0) && (LETTER..2 * LETTER).any(|x| inked(x) > 0));
        assert_eq!(image.pixel(0, LETTER + 4), Some([9; 3]));
    }
}
