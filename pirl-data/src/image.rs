use crate::{DataError, Encoding};

/// A decoded image: 8-bit RGB, rows from top to bottom.
///
/// Grey images have three equal channels, so that later stages treat all images alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Pixels in a row, at least 1.
    pub width: usize,
    /// Rows, at least 1.
    pub height: usize,
    /// `height * width * 3` bytes: row, then column, then red, green, blue in 0..=255.
    pub pixels: Vec<u8>,
}

impl Image {
    /// An image of `height * width * 3` bytes laid out as [`Image::pixels`] says.
    ///
    /// # Errors
    /// [`DataError::ImageSize`] when a side is zero or the number of bytes is another.
    pub fn new(width: usize, height: usize, pixels: Vec<u8>) -> Result<Self, DataError> {
        let image = Self {
            width,
            height,
            pixels,
        };
        image.check()?;
        Ok(image)
    }

    /// The image that a view holds: all of red, then all of green, then all of blue, each row by row.
    ///
    /// # Errors
    /// [`DataError::ImageSize`] when a side is zero or the number of bytes is another.
    pub fn from_planes(width: usize, height: usize, planes: &[u8]) -> Result<Self, DataError> {
        let area = planes.len() / 3;
        let (red, rest) = planes.split_at(area);
        let (green, blue) = rest.split_at(area);
        let pixels = red.iter().zip(green).zip(blue);
        let pixels = pixels.flat_map(|((red, green), blue)| [*red, *green, *blue]);
        // What three channels cannot share is kept, so that the check counts it.
        Self::new(
            width,
            height,
            pixels.chain(blue.iter().skip(area).copied()).collect(),
        )
    }

    /// An image of no pixels, to be filled.
    pub(crate) fn empty() -> Self {
        Self {
            width: 0,
            height: 0,
            pixels: Vec::new(),
        }
    }

    /// Decodes a JPEG or PNG file to 8-bit RGB, upright.
    ///
    /// # Errors
    /// [`DataError::Decode`] when the bytes are damaged or of another format, or have more than
    /// 100 million pixels.
    pub fn decode(bytes: &[u8]) -> Result<Self, DataError> {
        crate::decode::decode(bytes, Encoding::Mixed).map_err(|reason| DataError::Decode {
            name: format!("an image of {} bytes", bytes.len()),
            reason,
        })
    }

    /// Whether the pixels fill the sides: the fields are public, so they need not agree, and operations
    /// that rely on it ask first.
    ///
    /// # Errors
    /// [`DataError::ImageSize`] when a side is zero or the number of bytes is another.
    pub fn check(&self) -> Result<(), DataError> {
        let (width, height, found) = (self.width, self.height, self.pixels.len());
        let expected = width
            .checked_mul(height)
            .and_then(|area| area.checked_mul(3));
        if width == 0 || height == 0 || expected != Some(found) {
            return Err(DataError::ImageSize {
                width,
                height,
                found,
            });
        }
        Ok(())
    }

    /// Red, green and blue of the pixel in column `x` of row `y`; `None` outside the image.
    pub fn pixel(&self, x: usize, y: usize) -> Option<[u8; 3]> {
        if x >= self.width || y >= self.height {
            return None;
        }
        let start = (y * self.width + x) * 3;
        self.pixels.get(start..start + 3)?.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_of_another_size_are_refused() {
        let image = Image::from_planes(2, 1, &[1, 2, 3, 4, 5, 6]).unwrap();
        assert_eq!(image.pixels, [1, 3, 5, 2, 4, 6]);
        for (width, height, bytes) in [(2, 1, 5), (2, 1, 7), (2, 1, 8), (0, 1, 0), (1, 1, 0)] {
            let found = Image::from_planes(width, height, &vec![0; bytes]);
            assert!(matches!(found, Err(DataError::ImageSize { .. })), "{bytes}");
        }
    }
}
