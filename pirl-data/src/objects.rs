//! The annotated objects of an image: boxes, their classes, and which are hard to see.

use xxhash_rust::xxh3::Xxh3;

/// How far a box may reach beyond the image without a word of it: annotation tools that count pixels
/// from 0 write a box one pixel outside of those that count from 1.
const SLACK: f32 = 1.0;

/// The annotated objects of one image; the three lists are equally long.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    /// `[xmin, ymin, xmax, ymax]` in pixels, zero-based: 0 is the left or upper edge of the image,
    /// its width or height the right or lower edge; `xmin < xmax` and `ymin < ymax`.
    pub boxes: Vec<[f32; 4]>,
    /// The class of each, an index into the class names.
    pub labels: Vec<u32>,
    /// Whether an object is hard to recognise; VOC's evaluation does not count these.
    pub difficult: Vec<bool>,
}

impl Objects {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.boxes.len()
    }

    /// Whether nothing is annotated.
    pub fn is_empty(&self) -> bool {
        self.boxes.is_empty()
    }

    /// Adds an object.
    pub fn push(&mut self, bounds: [f32; 4], label: u32, difficult: bool) {
        self.boxes.push(bounds);
        self.labels.push(label);
        self.difficult.push(difficult);
    }

    /// The objects one by one: box, class, difficult.
    pub fn iter(&self) -> impl Iterator<Item = ([f32; 4], u32, bool)> {
        let boxes = self.boxes.iter().zip(&self.labels);
        boxes
            .zip(&self.difficult)
            .map(|((bounds, label), difficult)| (*bounds, *label, *difficult))
    }

    pub(crate) fn hash(&self, hash: &mut Xxh3) {
        hash.update(&(self.len() as u64).to_le_bytes());
        for (bounds, label, difficult) in self.iter() {
            for side in bounds {
                hash.update(&side.to_le_bytes());
            }
            hash.update(&label.to_le_bytes());
            hash.update(&[u8::from(difficult)]);
        }
    }
}

/// A box with finite corners in the right order.
pub(crate) fn is_box([xmin, ymin, xmax, ymax]: [f32; 4]) -> bool {
    // A comparison with NaN is false.
    xmin >= 0.0 && ymin >= 0.0 && xmin < xmax && ymin < ymax && xmax.is_finite() && ymax.is_finite()
}

/// A box once it has been cut at the edges of its image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Cut {
    /// It lay within, but for a pixel.
    Whole([f32; 4]),
    /// What is left of one that reached further.
    Part([f32; 4]),
    /// Nothing is left: it lay outside, or has no area.
    Nothing,
}

/// Cuts a box at the edges of its image.
///
/// # Errors
/// The reason when it is no box: inverted, or not of numbers.
pub(crate) fn cut(bounds: [f32; 4], width: usize, height: usize) -> Result<Cut, String> {
    let (wide, high) = (width as f32, height as f32);
    let [xmin, ymin, xmax, ymax] = bounds;
    if xmin > xmax || ymin > ymax || bounds.iter().any(|side| !side.is_finite()) {
        return Err("its box is inverted or not of numbers".to_owned());
    }
    let cut = [xmin.max(0.0), ymin.max(0.0), xmax.min(wide), ymax.min(high)];
    let inside = xmin >= -SLACK && ymin >= -SLACK && xmax <= wide + SLACK && ymax <= high + SLACK;
    Ok(match is_box(cut) {
        false => Cut::Nothing,
        true if inside => Cut::Whole(cut),
        true => Cut::Part(cut),
    })
}
