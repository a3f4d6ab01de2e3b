//! One item cut out of its image.

use pirl_core::random::{below, uniform};
use pirl_data::transform::{Crop, Resizer, resize};
use pirl_data::{DataError, Image, Pack};
use rand::Rng;

/// Brightness up to which a pixel may be background.
const DARK: u8 = 12;

/// An item and how far each of its pixels hides what is behind it.
pub(crate) struct Item {
    label: u32,
    colors: Image,
    /// Three equal channels, 255 where the item is.
    mask: Image,
}

impl Item {
    /// A random image of the pack, cut to the item.
    pub(crate) fn draw(pack: &Pack, rng: &mut dyn Rng) -> Result<Self, DataError> {
        let index = below(rng, pack.len());
        let image = pack.decode(index)?;
        let mask = foreground(&image);
        let crop = extent(&mask).unwrap_or_else(|| Crop::whole(&image));
        let mut item = Self {
            label: pack.label(index).unwrap_or(0),
            colors: Image::new(1, 1, vec![0; 3])?,
            mask: Image::new(1, 1, vec![0; 3])?,
        };
        let mut resizer = Resizer::default();
        let (width, height) = (crop.width, crop.height);
        resize(&mut resizer, &image, crop, width, height, &mut item.colors)?;
        resize(&mut resizer, &mask, crop, width, height, &mut item.mask)?;
        Ok(item)
    }

    pub(crate) fn label(&self) -> u32 {
        self.label
    }

    /// Width and height.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.colors.width, self.colors.height)
    }

    /// The item with a longer side of `longer` pixels, `brightness` times as bright.
    pub(crate) fn scaled(&self, longer: usize, brightness: f64) -> Result<Self, DataError> {
        let (width, height) = self.size();
        let scale = longer as f64 / width.max(height) as f64;
        let side = |side: usize| ((side as f64 * scale).round() as usize).max(1);
        self.part(
            Crop::whole(&self.colors),
            side(width),
            side(height),
            brightness,
        )
    }

    /// A piece of the item, too little to be one.
    pub(crate) fn fragment(&self, rng: &mut dyn Rng) -> Result<Self, DataError> {
        let (width, height) = self.size();
        let mut side = |side: usize| {
            let part = ((side as f64 * uniform(rng, [0.2, 0.5])) as usize).max(1);
            (part, below(rng, side - part + 1))
        };
        let ((wide, left), (high, top)) = (side(width), side(height));
        let crop = Crop {
            left,
            top,
            width: wide,
            height: high,
        };
        let scale = uniform(rng, [1.0, 3.0]);
        let grown = |side: usize| ((side as f64 * scale) as usize).max(2);
        self.part(crop, grown(wide), grown(high), uniform(rng, [0.3, 1.0]))
    }

    fn part(
        &self,
        crop: Crop,
        width: usize,
        height: usize,
        brightness: f64,
    ) -> Result<Self, DataError> {
        let (mut resizer, mut colors, mut mask) =
            (Resizer::default(), self.colors.clone(), self.mask.clone());
        resize(&mut resizer, &self.colors, crop, width, height, &mut colors)?;
        resize(&mut resizer, &self.mask, crop, width, height, &mut mask)?;
        for value in &mut colors.pixels {
            *value = (f64::from(*value) * brightness).round().min(255.0) as u8;
        }
        Ok(Self {
            label: self.label,
            colors,
            mask,
        })
    }

    /// Every pixel: its place, its colour, and how far it hides what is behind it, in `0..=1`. The
    /// colour is already that share of itself, since background is dark.
    pub(crate) fn pixels(&self) -> impl Iterator<Item = ((usize, usize), [u8; 3], f32)> {
        let width = self.colors.width;
        let colors = self.colors.pixels.as_chunks::<3>().0.iter();
        let masks = self.mask.pixels.as_chunks::<3>().0.iter();
        colors
            .zip(masks)
            .enumerate()
            .map(move |(at, (color, mask))| {
                let place = (at % width, at / width);
                (place, *color, f32::from(mask[0]) / 255.0)
            })
    }
}

/// White where the item is: all that dark pixels do not connect with the image's border.
fn foreground(image: &Image) -> Image {
    let (width, height) = (image.width, image.height);
    let dark: Vec<bool> = image
        .pixels
        .as_chunks::<3>()
        .0
        .iter()
        .map(|color| color.iter().all(|value| *value <= DARK))
        .collect();
    let mut background = vec![false; width * height];
    let on_border = |at: &usize| {
        let (x, y) = (at % width, at / width);
        x == 0 || y == 0 || x + 1 == width || y + 1 == height
    };
    let mut reached: Vec<usize> = (0..width * height).filter(on_border).collect();
    while let Some(at) = reached.pop() {
        if !dark[at] || background[at] {
            continue;
        }
        background[at] = true;
        let (x, y) = (at % width, at / width);
        reached.extend((x > 0).then(|| at - 1));
        reached.extend((x + 1 < width).then(|| at + 1));
        reached.extend((y > 0).then(|| at - width));
        reached.extend((y + 1 < height).then(|| at + width));
    }
    let white = |background: bool| if background { [0; 3] } else { [255; 3] };
    Image {
        width,
        height,
        channels: 3,
        pixels: background.into_iter().flat_map(white).collect(),
    }
}

/// The rectangle around the white pixels; `None` when there is none.
fn extent(mask: &Image) -> Option<Crop> {
    let white = |&(_, mask): &(usize, &[u8; 3])| mask[0] > 0;
    let pixels = mask.pixels.as_chunks::<3>().0.iter().enumerate();
    let mut found: Option<[usize; 4]> = None;
    for (at, _) in pixels.filter(white) {
        let (x, y) = (at % mask.width, at / mask.width);
        let [left, top, right, bottom] = found.unwrap_or([x, y, x, y]);
        found = Some([left.min(x), top.min(y), right.max(x), bottom.max(y)]);
    }
    found.map(|[left, top, right, bottom]| Crop {
        left,
        top,
        width: right - left + 1,
        height: bottom - top + 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_keeps_its_dark_holes_but_not_its_surroundings() {
        // A bright ring with a dark middle, in the lower right of a dark image.
        let mut pixels = vec![3; 8 * 7 * 3];
        for (x, y) in [
            (4, 3),
            (5, 3),
            (6, 3),
            (4, 4),
            (6, 4),
            (4, 5),
            (5, 5),
            (6, 5),
        ] {
            pixels[(y * 8 + x) * 3] = 200;
        }
        let mask = foreground(&Image::new(8, 7, pixels).unwrap());
        let crop = extent(&mask).unwrap();
        assert_eq!((crop.left, crop.top, crop.width, crop.height), (4, 3, 3, 3));
        let white = mask.pixels.iter().filter(|value| **value == 255).count();
        assert_eq!(white, 9 * 3);
        let black = foreground(&Image::new(2, 2, vec![0; 12]).unwrap());
        assert_eq!(extent(&black), None);
    }
}
