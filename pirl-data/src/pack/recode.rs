//! Images encoded again: as PNG, or as JPEG from brightness and colours apart.

use super::jpeg::{JpegEncoder, Plane};
use super::png::{self, Pixels};
use crate::Image;
use crate::transform::{Colors, split_planes, write_planes};

/// A PNG of an image in RGB.
pub(super) fn png(image: &Image) -> Result<Vec<u8>, String> {
    png::encode(Pixels {
        values: &image.pixels,
        width: image.width,
        height: image.height,
        channels: 3,
    })
}

/// A grey PNG of the channels of an image, one below the other.
pub(super) fn png_of_planes(image: &Image) -> Result<Vec<u8>, String> {
    let mut planes = vec![0; image.pixels.len()];
    write_planes(image, &mut planes);
    png::encode(Pixels {
        values: &planes,
        width: image.width,
        height: image.height * image.channels,
        channels: 1,
    })
}

/// Brightness and two colour differences, which are half as wide and high, rounded up; and what encodes them.
#[derive(Debug, Default)]
pub(super) struct Planes {
    luma: Vec<u8>,
    chroma: [Vec<u8>; 2],
    encoder: Option<JpegEncoder>,
}

impl Planes {
    /// A JPEG of this quality of an image of three channels, its colours at half the resolution as Pillow's and
    /// libjpeg's defaults have it.
    pub(super) fn jpeg(
        &mut self,
        image: &Image,
        colors: impl Colors,
        quality: u8,
    ) -> Result<Vec<u8>, String> {
        let (width, height) = (image.width, image.height);
        split_planes(image, colors, &mut self.luma, &mut self.chroma);
        let encoder = match self.encoder.take() {
            Some(encoder) if encoder.quality() == quality => encoder,
            _ => JpegEncoder::new(quality)?,
        };
        let luma = Plane {
            pixels: &self.luma,
            width,
            height,
        };
        let chroma = self.chroma.each_ref().map(|pixels| Plane {
            pixels,
            width: width.div_ceil(2),
            height: height.div_ceil(2),
        });
        self.encoder.insert(encoder).encode(luma, chroma)
    }
}
