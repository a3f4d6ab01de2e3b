//! What a detector returns, and what it is compared with.

use pirl_data::Objects;
use serde::Serialize;

use super::boxes::BBox;
use crate::error::{EvalError, Result};

/// An object that was found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Detection {
    /// Its box, in pixels of the image.
    #[serde(rename = "box")]
    pub bbox: BBox,
    /// Its class.
    pub label: usize,
    /// The probability of that class.
    pub score: f32,
}

impl Detection {
    /// As numbers, for [`Detection::from_words`].
    pub(super) fn to_words(self) -> [u32; 6] {
        let [x0, y0, x1, y1] = self.bbox.map(f32::to_bits);
        [x0, y0, x1, y1, self.label as u32, self.score.to_bits()]
    }

    pub(super) fn from_words([x0, y0, x1, y1, label, score]: [u32; 6]) -> Self {
        Self {
            bbox: [x0, y0, x1, y1].map(f32::from_bits),
            label: label as usize,
            score: f32::from_bits(score),
        }
    }
}

/// A detection as COCO's tools take it; in JSON it has their keys.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CocoResult {
    /// The image's place in the pack.
    pub image_id: usize,
    /// The class.
    pub category_id: usize,
    /// Left, top, width and height, in pixels of the image.
    pub bbox: [f32; 4],
    /// The probability of that class.
    pub score: f32,
}

impl CocoResult {
    /// The detections in each image of a pack.
    pub fn of(detections: &[Vec<Detection>]) -> Vec<Self> {
        let images = detections.iter().enumerate();
        images
            .flat_map(|(image, found)| found.iter().map(move |found| (image, found)))
            .map(|(image_id, found)| {
                let [x0, y0, x1, y1] = found.bbox;
                Self {
                    image_id,
                    category_id: found.label,
                    bbox: [x0, y0, x1 - x0, y1 - y0],
                    score: found.score,
                }
            })
            .collect()
    }
}

/// Checks the arguments of both metrics: the same number of images on both sides, existing classes,
/// finite numbers.
pub(super) fn check(
    detections: &[Vec<Detection>],
    objects: &[Objects],
    classes: usize,
) -> Result<()> {
    if detections.len() != objects.len() {
        return Err(EvalError::Shape {
            what: "images with detections".to_owned(),
            expected: format!("{}, as many as are annotated", objects.len()),
            found: detections.len().to_string(),
        });
    }
    for (index, objects) in objects.iter().enumerate() {
        if let Some(&label) = objects
            .labels
            .iter()
            .find(|&&label| label as usize >= classes)
        {
            return Err(EvalError::Label {
                index,
                label,
                classes,
            });
        }
    }
    for (image, found) in detections.iter().enumerate() {
        for (index, found) in found.iter().enumerate() {
            let finite = found.score.is_finite() && found.bbox.iter().all(|x| x.is_finite());
            if found.label >= classes || !finite {
                return Err(EvalError::Shape {
                    what: format!("detection {index} of image {image}"),
                    expected: format!("a class below {classes}, finite corners and score"),
                    found: format!("{found:?}"),
                });
            }
        }
    }
    Ok(())
}

/// The mean; 0 of nothing.
pub(super) fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1);
    values.sum::<f64>() / count as f64
}
