//! From 8-bit pixels to normalised numbers, channels apart.

use crate::Image;

/// `(value / 255 - mean) / std` in `f32`, as torchvision's `ToTensor` and `Normalize`, tabulated.
#[derive(Clone, Debug)]
pub(crate) struct Normalize {
    tables: [[f32; 256]; 3],
}

impl Normalize {
    pub(crate) fn new(mean: [f32; 3], std: [f32; 3]) -> Self {
        Self {
            tables: std::array::from_fn(|channel| {
                std::array::from_fn(|value| (value as f32 / 255.0 - mean[channel]) / std[channel])
            }),
        }
    }

    /// Writes `image` to `out` as `(3, height, width)`; `out` has that many entries.
    pub(crate) fn write(&self, image: &Image, out: &mut [f32]) {
        let area = image.width * image.height;
        debug_assert_eq!(out.len(), 3 * area);
        let (red, rest) = out.split_at_mut(area);
        let (green, blue) = rest.split_at_mut(area);
        let [reds, greens, blues] = &self.tables;
        let planes = red.iter_mut().zip(green).zip(blue);
        for (((red, green), blue), pixel) in planes.zip(image.pixels.chunks_exact(3)) {
            *red = reds[usize::from(pixel[0])];
            *green = greens[usize::from(pixel[1])];
            *blue = blues[usize::from(pixel[2])];
        }
    }

    /// Back to 8 bits: the entry of the table that is nearest to each number.
    pub(crate) fn restore(&self, view: &[f32], side: usize) -> Image {
        let area = side * side;
        let mut pixels = vec![0; area * 3];
        for (channel, (plane, table)) in view.chunks_exact(area).zip(&self.tables).enumerate() {
            for (pixel, number) in pixels.chunks_exact_mut(3).zip(plane) {
                // The table rises with the value.
                pixel[channel] = table.partition_point(|entry| entry < number).min(255) as u8;
            }
        }
        Image {
            width: side,
            height: side,
            pixels,
        }
    }
}
