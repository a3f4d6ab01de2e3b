//! A contact sheet: images, their views and their shuffled patches, to look at.

use crate::pretext::Pretext;
use crate::random::{Use, below, stream};
use crate::transform::{Crop, ImageView, Resizer, Scratch, resize};
use crate::{DataError, Image, Pack};

/// Side of a panel at least, in pixels: small views are enlarged by a whole factor.
const PANEL: usize = 192;
/// Pixels between panels, and between patches.
const GAP: usize = 4;
const PAPER: u8 = 255;

/// Draws `count` images of `pack`, a row for each: the image itself, a view of it as the network
/// sees it, and the views of the pretext task in the order the network gets them.
///
/// # Errors
/// [`DataError::Setting`] when `count` is 0; otherwise what decoding and the transforms report.
pub fn preview_sheet(
    pack: &Pack,
    view: &ImageView,
    pretext: Option<&dyn Pretext>,
    count: usize,
    seed: u64,
) -> Result<Image, DataError> {
    if count == 0 || pack.is_empty() {
        return Err(DataError::Setting {
            key: "count",
            reason: "a sheet shows at least 1 image".into(),
        });
    }
    let pretext = pretext.filter(|pretext| pretext.views() > 0);
    let mut rng = stream(seed, Use::Preview, 0, 0);
    let mut scratch = Scratch::default();
    let mut rows = Vec::with_capacity(count);
    for _ in 0..count {
        let image = pack.decode(below(&mut rng, pack.len()))?;
        let size = view.size();
        let mut seen = vec![0.0; 3 * size * size];
        view.apply(&image, &mut rng, &mut scratch, &mut seen)?;
        let mut row = vec![
            fit(&image)?,
            enlarge(&view.normalize().restore(&seen, size)),
        ];
        if let Some(pretext) = pretext {
            let side = pretext.view_size();
            let mut views = vec![0.0; pretext.views() * 3 * side * side];
            pretext.apply(&image, &mut rng, &mut scratch, &mut views)?;
            let patches: Vec<Image> = views
                .chunks_exact(3 * side * side)
                .map(|patch| view.normalize().restore(patch, side))
                .collect();
            row.push(enlarge(&tile(&patches, patches.len().isqrt())));
        }
        rows.push(tile(&row, row.len()));
    }
    Ok(tile(&rows, 1))
}

/// The image within a panel, its sides in proportion.
fn fit(image: &Image) -> Result<Image, DataError> {
    let longer = image.width.max(image.height);
    let scaled = |side: usize| (side * PANEL / longer).max(1);
    let mut out = image.clone();
    resize(
        &mut Resizer::default(),
        image,
        Crop::whole(image),
        scaled(image.width),
        scaled(image.height),
        &mut out,
    )?;
    Ok(out)
}

/// Repeats pixels until the panel is large enough to look at.
fn enlarge(image: &Image) -> Image {
    let factor = PANEL.div_ceil(image.width.max(image.height));
    let (width, height) = (image.width * factor, image.height * factor);
    let mut pixels = Vec::with_capacity(width * height * 3);
    for row in image.pixels.chunks_exact(image.width * 3) {
        let wide: Vec<u8> = row
            .chunks_exact(3)
            .flat_map(|pixel| pixel.repeat(factor))
            .collect();
        pixels.extend(wide.repeat(factor));
    }
    Image {
        width,
        height,
        pixels,
    }
}

/// Sets images on paper, `columns` in a row, each in a place as large as the largest.
fn tile(images: &[Image], columns: usize) -> Image {
    let columns = columns.max(1);
    let rows = images.len().div_ceil(columns);
    let wide = images.iter().map(|image| image.width).max().unwrap_or(1);
    let high = images.iter().map(|image| image.height).max().unwrap_or(1);
    let width = columns * (wide + GAP) - GAP;
    let height = rows * (high + GAP) - GAP;
    let mut pixels = vec![PAPER; width * height * 3];
    for (place, image) in images.iter().enumerate() {
        let left = place % columns * (wide + GAP);
        let top = place / columns * (high + GAP);
        let sheet = pixels.chunks_exact_mut(width * 3).skip(top);
        for (to, from) in sheet.zip(image.pixels.chunks_exact(image.width * 3)) {
            to[left * 3..(left + image.width) * 3].copy_from_slice(from);
        }
    }
    Image {
        width,
        height,
        pixels,
    }
}
