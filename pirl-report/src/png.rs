use std::io::Cursor;

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use pirl_data::Image;

use crate::error::{ReportError, Result};

/// The image as the bytes of a PNG file, in RGB.
///
/// # Errors
/// [`ReportError::Data`] when the image's pixels do not fill it; [`ReportError::TooLarge`] where a side
/// does not fit the format.
pub fn png(image: &Image) -> Result<Vec<u8>> {
    image.check()?;
    let image = image.to_rgb();
    let (width, height) = (image.width, image.height);
    let too_large = |_| ReportError::TooLarge { width, height };
    let wide = u32::try_from(width).map_err(too_large)?;
    let high = u32::try_from(height).map_err(too_large)?;
    let mut bytes = Cursor::new(Vec::new());
    PngEncoder::new(&mut bytes)
        .write_image(&image.pixels, wide, high, ExtendedColorType::Rgb8)
        .map_err(|error| ReportError::Draw {
            what: "a PNG file".to_owned(),
            reason: error.to_string(),
        })?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_come_back() {
        let image = Image::new(3, 2, (0..18).collect()).unwrap();
        assert_eq!(Image::decode(&png(&image).unwrap()).unwrap(), image);
        let broken = Image { width: 4, ..image };
        assert!(png(&broken).is_err());
    }
}
