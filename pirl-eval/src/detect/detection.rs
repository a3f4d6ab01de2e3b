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
