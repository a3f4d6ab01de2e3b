//! Images encoded again: as PNG, or as JPEG from brightness and colours apart.

use image::ImageEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use jpeg_encoder::{ChromaSubsamplingMethod, Encoder, ImageBuffer, JpegColorType, SamplingFactor};

use crate::Image;
use crate::transform::{Colors, split_planes, write_planes};

/// A PNG of an image in RGB.
pub(super) fn png(image: &Image) -> Result<Vec<u8>, String> {
    filtered(
        &image.pixels,
        (image.width, image.height),
        image::ExtendedColorType::Rgb8,
    )
}

/// A grey PNG of the channels of an image, one below the other.
pub(super) fn png_of_planes(image: &Image) -> Result<Vec<u8>, String> {
    let mut planes = vec![0; image.pixels.len()];
    write_planes(image, &mut planes);
    let rows = image.height * image.channels;
    filtered(&planes, (image.width, rows), image::ExtendedColorType::L8)
}

/// Every row is filtered alike: choosing a filter for each takes a quarter of the time, and saves a hundredth of
/// the bytes (benches/RESULTS.md).
fn filtered(
    pixels: &[u8],
    (width, rows): (usize, usize),
    color: image::ExtendedColorType,
) -> Result<Vec<u8>, String> {
    let side = |side: usize| u32::try_from(side).map_err(|error| error.to_string());
    let mut bytes = Vec::with_capacity(pixels.len());
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Paeth)
        .write_image(pixels, side(width)?, side(rows)?, color)
        .map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// Brightness and two colour differences, which are half as wide and high, rounded up.
#[derive(Debug, Default)]
pub(super) struct Planes {
    width: usize,
    height: usize,
    luma: Vec<u8>,
    chroma: [Vec<u8>; 2],
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
        (self.width, self.height) = (image.width, image.height);
        split_planes(image, colors, &mut self.luma, &mut self.chroma);
        self.encode(quality)
    }

    fn encode(&self, quality: u8) -> Result<Vec<u8>, String> {
        let rows = Rows {
            planes: self,
            sides: jpeg_sides(self.width, self.height)?,
        };
        let mut bytes = Vec::with_capacity(self.luma.len());
        let mut encoder = Encoder::new(&mut bytes, quality);
        encoder.set_sampling_factor(SamplingFactor::R_4_2_0);
        // The encoder asks for whole rows and keeps every other pixel of every other row.
        encoder.set_chroma_subsampling_method(ChromaSubsamplingMethod::Nearest);
        let encoded = encoder.encode_image(rows);
        encoded.map_err(|error| error.to_string())?;
        Ok(bytes)
    }
}

/// Width and height as a JPEG has them.
fn jpeg_sides(width: usize, height: usize) -> Result<(u16, u16), String> {
    let side = |side: usize| {
        u16::try_from(side).map_err(|_| format!("{side} pixels a side, more than a JPEG can have"))
    };
    Ok((side(width)?, side(height)?))
}

/// The planes as the encoder reads them.
struct Rows<'a> {
    planes: &'a Planes,
    sides: (u16, u16),
}

impl ImageBuffer for Rows<'_> {
    fn get_jpeg_color_type(&self) -> JpegColorType {
        JpegColorType::Ycbcr
    }

    fn width(&self) -> u16 {
        self.sides.0
    }

    fn height(&self) -> u16 {
        self.sides.1
    }

    fn fill_buffers(&self, y: u16, buffers: &mut [Vec<u8>; 4]) {
        let (y, width) = (usize::from(y), self.planes.width);
        let half = width.div_ceil(2);
        let [luma, chroma @ .., _] = buffers;
        luma.extend_from_slice(&self.planes.luma[y * width..(y + 1) * width]);
        for (buffer, plane) in chroma.iter_mut().zip(&self.planes.chroma) {
            let start = buffer.len();
            buffer.resize(start + 2 * half, 0);
            let pairs = buffer[start..].as_chunks_mut::<2>().0.iter_mut();
            for (pair, value) in pairs.zip(&plane[y / 2 * half..(y / 2 + 1) * half]) {
                *pair = [*value; 2];
            }
            buffer.truncate(start + width);
        }
    }
}
