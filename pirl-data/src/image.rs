use crate::config::check_channels;
use crate::decode::{Channels, MAX_PIXELS, decode_channels};
use crate::{DataError, Depth, Encoding};

/// A decoded image of 8-bit values: RGB, or as many channels as its pack has; rows from top to bottom.
///
/// Of a pack of RGB, grey images have three equal channels, so that later stages treat all images alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Pixels in a row, at least 1.
    pub width: usize,
    /// Rows, at least 1.
    pub height: usize,
    /// Values of a pixel, from 1 to [`Image::MAX_CHANNELS`]; 3 are red, green and blue.
    pub channels: usize,
    /// `height * width * channels` bytes: row, then column, then channel.
    pub pixels: Vec<u8>,
}

impl Image {
    /// The most channels that are read.
    pub const MAX_CHANNELS: usize = 16;

    /// An RGB image of `height * width * 3` bytes laid out as [`Image::pixels`] says.
    ///
    /// # Errors
    /// [`DataError::ImageSize`] when a side is zero or the number of bytes is another.
    pub fn new(width: usize, height: usize, pixels: Vec<u8>) -> Result<Self, DataError> {
        Self::with_channels(width, height, 3, pixels)
    }

    /// An image of `height * width * channels` bytes laid out as [`Image::pixels`] says.
    ///
    /// # Errors
    /// [`DataError::ImageSize`] when a side is zero, there are no channels or too many, or the number of
    /// bytes is another.
    pub fn with_channels(
        width: usize,
        height: usize,
        channels: usize,
        pixels: Vec<u8>,
    ) -> Result<Self, DataError> {
        let image = Self {
            width,
            height,
            channels,
            pixels,
        };
        image.check()?;
        Ok(image)
    }

    /// The image that a view holds: all of the first channel, then all of the next, each row by row. There
    /// are as many channels as there are bytes for.
    ///
    /// # Errors
    /// As [`Image::with_channels`].
    pub fn from_planes(width: usize, height: usize, planes: &[u8]) -> Result<Self, DataError> {
        let area = width.saturating_mul(height);
        let channels = planes.len() / area.max(1);
        let whole = Self::with_channels(width, height, channels, planes.to_vec())?;
        let mut image = Self::empty();
        image.set_size(width, height, channels);
        join_planes(&whole.pixels, &mut image);
        Ok(image)
    }

    /// An image of no pixels, to be filled.
    pub(crate) fn empty() -> Self {
        Self {
            width: 0,
            height: 0,
            channels: 3,
            pixels: Vec::new(),
        }
    }

    /// Decodes an image file to 8-bit RGB, upright.
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

    /// Decodes an image file, upright, to so many channels, as
    /// [`PackOptions::channels`](crate::PackOptions::channels) says; `depth` says how more than 8 bits become
    /// 8.
    ///
    /// # Errors
    /// [`DataError::Setting`] for a number of channels out of range; [`DataError::Decode`] when the bytes are
    /// damaged or of another format, have other channels, or more than 100 million values.
    pub fn decode_channels(bytes: &[u8], channels: usize, depth: Depth) -> Result<Self, DataError> {
        check_channels(channels)?;
        let wanted = Channels {
            channels,
            depth,
            limit: MAX_PIXELS,
        };
        let mut image = Self::empty();
        decode_channels(bytes, Encoding::Mixed, wanted, &mut image).map_err(|reason| {
            DataError::Decode {
                name: format!("an image of {} bytes", bytes.len()),
                reason,
            }
        })?;
        Ok(image)
    }

    /// Whether the pixels fill the sides: the fields are public, so they need not agree, and operations
    /// that rely on it ask first.
    ///
    /// # Errors
    /// [`DataError::ImageSize`] when a side is zero or the number of bytes is another.
    pub fn check(&self) -> Result<(), DataError> {
        let (width, height, channels) = (self.width, self.height, self.channels);
        let found = self.pixels.len();
        let expected = width
            .checked_mul(height)
            .and_then(|area| area.checked_mul(channels));
        let some = width > 0 && height > 0 && (1..=Self::MAX_CHANNELS).contains(&channels);
        if !some || expected != Some(found) {
            return Err(DataError::ImageSize {
                width,
                height,
                channels,
                found,
            });
        }
        Ok(())
    }

    /// Red, green and blue of the pixel in column `x` of row `y` as people are shown it; `None` outside the
    /// image. Of one or two channels the first is shown as grey, of more than three the first three.
    pub fn pixel(&self, x: usize, y: usize) -> Option<[u8; 3]> {
        if x >= self.width || y >= self.height {
            return None;
        }
        let start = (y * self.width + x) * self.channels;
        let values = self.pixels.get(start..start + self.channels)?;
        match values {
            [] => None,
            [red, green, blue, ..] => Some([*red, *green, *blue]),
            [grey, ..] => Some([*grey; 3]),
        }
    }

    /// The image as people are shown it, pixel by pixel as [`Image::pixel`]; the same of one in RGB.
    pub fn to_rgb(&self) -> Self {
        let shown = |values: &[u8]| match *values {
            [red, green, blue, ..] => [red, green, blue],
            [grey, ..] => [grey; 3],
            [] => [0; 3],
        };
        let pixels = self.pixels.chunks_exact(self.channels.max(1));
        Self {
            channels: 3,
            pixels: match self.channels {
                3 => self.pixels.clone(),
                _ => pixels.flat_map(shown).collect(),
            },
            ..*self
        }
    }

    /// Makes room for so many pixels; their values are unspecified.
    pub(crate) fn set_size(&mut self, width: usize, height: usize, channels: usize) {
        (self.width, self.height, self.channels) = (width, height, channels);
        self.pixels.resize(width * height * channels, 0);
    }
}

/// Writes channels that lie one after the other between each other, into an image of that size.
pub(crate) fn join_planes(planes: &[u8], image: &mut Image) {
    let (area, channels) = (image.width * image.height, image.channels.max(1));
    for (channel, plane) in planes.chunks_exact(area.max(1)).enumerate() {
        let places = image.pixels.iter_mut().skip(channel).step_by(channels);
        for (place, value) in places.zip(plane) {
            *place = *value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_of_another_size_are_refused() {
        let image = Image::from_planes(2, 1, &[1, 2, 3, 4, 5, 6]).unwrap();
        assert_eq!(image.pixels, [1, 3, 5, 2, 4, 6]);
        let four = Image::from_planes(2, 1, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        assert_eq!(
            (four.channels, &*four.pixels),
            (4, &[1, 3, 5, 7, 2, 4, 6, 8][..])
        );
        assert_eq!(four.to_rgb().pixels, [1, 3, 5, 2, 4, 6]);
        let one = Image::from_planes(2, 1, &[7, 9]).unwrap();
        assert_eq!((one.pixel(1, 0), one.pixel(2, 0)), (Some([9; 3]), None));
        assert_eq!(one.to_rgb().pixels, [7, 7, 7, 9, 9, 9]);
        for (width, height, bytes) in [(2, 1, 5), (2, 1, 7), (2, 1, 34), (0, 1, 0), (1, 1, 0)] {
            let found = Image::from_planes(width, height, &vec![0; bytes]);
            assert!(matches!(found, Err(DataError::ImageSize { .. })), "{bytes}");
        }
    }
}
