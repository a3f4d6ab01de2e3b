//! Pictures to look at: a canvas, and charts on it.

mod canvas;
mod chart;

use image::RgbImage;
use image::imageops::{FilterType, resize};
use pirl_data::Image;

use crate::error::Result;

pub(crate) use canvas::{Canvas, Color, INK, LETTER, PAPER, color};
pub(crate) use chart::Chart;
#[cfg(test)]
pub(crate) use chart::{MARGIN, PLOT};

/// The image resized so that its longer side has `panel` pixels, and by how much.
pub(crate) fn fit(image: &Image, panel: usize) -> Result<(Image, f64)> {
    let image = Image::new(image.width, image.height, image.pixels.clone())?;
    let scale = panel as f64 / image.width.max(image.height) as f64;
    let scaled = |side: usize| ((side as f64 * scale).round() as usize).clamp(1, panel);
    let (width, height) = (scaled(image.width), scaled(image.height));
    let whole = RgbImage::from_raw(image.width as u32, image.height as u32, image.pixels);
    let resized = whole.map(|whole| {
        let filter = FilterType::Triangle;
        resize(&whole, width as u32, height as u32, filter).into_raw()
    });
    let image = Image::new(width, height, resized.unwrap_or_default())?;
    Ok((image, scale))
}
