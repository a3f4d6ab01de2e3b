//! A JPEG of an image that was never converted from the colours in which JPEGs are stored.

use jpeg_encoder::{ChromaSubsamplingMethod, Encoder, ImageBuffer, JpegColorType, SamplingFactor};

use crate::Image;
use crate::transform::split_planes;

/// Brightness and two colour differences, which are half as wide and high, rounded up.
#[derive(Debug, Default)]
pub(super) struct Planes {
    width: usize,
    height: usize,
    luma: Vec<u8>,
    chroma: [Vec<u8>; 2],
}

impl Planes {
    /// Takes the planes of an image whose channels are Y, Cb and Cr.
    pub(super) fn fill(&mut self, image: &Image) {
        (self.width, self.height) = (image.width, image.height);
        split_planes(image, &mut self.luma, &mut self.chroma);
    }

    /// A JPEG of this quality, its colours at half the resolution.
    pub(super) fn encode(&self, quality: u8) -> Result<Vec<u8>, String> {
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
pub(super) fn jpeg_sides(width: usize, height: usize) -> Result<(u16, u16), String> {
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
