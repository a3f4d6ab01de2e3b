//! Non-maximum suppression: of boxes that overlap, the one with the highest score stays.

#[cfg(feature = "cuda")]
mod cuda;

use std::cmp::Ordering;

use candle_core::{Device, Result};
use pulp::Arch;

use super::boxes::{BBox, iou};

/// Kept boxes that are compared with a candidate before the result is checked.
const BLOCK: usize = 64;

/// The boxes that stay, by falling score; of equal scores the first comes first. A box goes if its
/// IoU with one that stays exceeds `iou_threshold`.
///
/// Identical to torchvision's `nms` in every rounding: boxes without area stay, and a NaN counts as
/// the highest score. As many `scores` as `boxes`; if one list is longer, the rest of it is
/// ignored.
pub fn nms(boxes: &[BBox], scores: &[f32], iou_threshold: f64) -> Vec<usize> {
    let count = boxes.len().min(scores.len());
    let order = by_falling_score((0..count).collect(), scores);
    suppress(boxes, order, iou_threshold, usize::MAX)
}

/// [`nms`] by its definition, one pair of boxes after the other.
pub fn nms_reference(boxes: &[BBox], scores: &[f32], iou_threshold: f64) -> Vec<usize> {
    let count = boxes.len().min(scores.len());
    let mut kept: Vec<usize> = Vec::new();
    for index in by_falling_score((0..count).collect(), scores) {
        let suppresses =
            |&other: &usize| f64::from(iou(boxes[other], boxes[index])) > iou_threshold;
        if !kept.iter().any(suppresses) {
            kept.push(index);
        }
    }
    kept
}

/// [`nms`] within each class (or level) separately; the boxes that stay, over all classes by falling
/// score, of equal scores the first first.
///
/// Classes are compared on the boxes as they are. Torchvision does so for more than 1,000 boxes, and
/// for fewer moves each class aside by an offset, which rounds: only IoUs within that rounding of
/// the threshold can differ, and the order of equal scores, which torchvision leaves open there.
pub fn batched_nms(
    boxes: &[BBox],
    scores: &[f32],
    classes: &[usize],
    iou_threshold: f64,
) -> Vec<usize> {
    batched_nms_up_to(boxes, scores, classes, iou_threshold, usize::MAX)
}

/// [`batched_nms_up_to`] on `device`, if it is a CUDA device and the boxes are many; the result is
/// the same.
pub(super) fn batched_nms_on(
    device: &Device,
    boxes: &[BBox],
    scores: &[f32],
    classes: &[usize],
    iou_threshold: f64,
    most: usize,
) -> Result<Vec<usize>> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        let count = boxes.len().min(scores.len()).min(classes.len());
        if cuda::takes(count) {
            let order = by_falling_score((0..count).collect(), scores);
            return cuda::suppress(boxes, classes, &order, below(iou_threshold), most, device);
        }
    }
    let _ = device;
    Ok(batched_nms_up_to(
        boxes,
        scores,
        classes,
        iou_threshold,
        most,
    ))
}

/// The first `most` of what [`batched_nms`] returns, found without comparing the rest.
pub(super) fn batched_nms_up_to(
    boxes: &[BBox],
    scores: &[f32],
    classes: &[usize],
    iou_threshold: f64,
    most: usize,
) -> Vec<usize> {
    let count = boxes.len().min(scores.len()).min(classes.len());
    let mut order = by_falling_score((0..count).collect(), scores);
    // Stable, so that classes stay sorted within.
    order.sort_by_key(|&index| classes[index]);
    let kept = order
        .chunk_by(|&a, &b| classes[a] == classes[b])
        .flat_map(|class| suppress(boxes, class.to_vec(), iou_threshold, most))
        .collect();
    let mut kept = by_falling_score(kept, scores);
    kept.truncate(most);
    kept
}

/// Sorts by falling score, then by index.
pub(super) fn by_falling_score(mut indices: Vec<usize>, scores: &[f32]) -> Vec<usize> {
    indices.sort_unstable_by(|&a, &b| falling(scores, a, b));
    indices
}

/// The order of [`by_falling_score`]: total, with NaN above all numbers as in PyTorch's sort.
pub(super) fn falling(scores: &[f32], a: usize, b: usize) -> Ordering {
    let (x, y) = (scores[a], scores[b]);
    let by_score = y.partial_cmp(&x);
    by_score
        .unwrap_or_else(|| y.is_nan().cmp(&x.is_nan()))
        .then(a.cmp(&b))
}

/// The first `most` boxes of `order` that overlap none kept before them by more than the threshold.
fn suppress(boxes: &[BBox], order: Vec<usize>, iou_threshold: f64, most: usize) -> Vec<usize> {
    let mut kept = Kept::default();
    let threshold = below(iou_threshold);
    let arch = Arch::new();
    let mut stay = Vec::new();
    for index in order {
        if stay.len() >= most {
            break;
        }
        let candidate = boxes[index];
        let overlaps = arch.dispatch(
            #[inline(always)]
            || kept.overlaps(candidate, threshold),
        );
        if !overlaps {
            kept.push(candidate);
            stay.push(index);
        }
    }
    stay
}

/// The largest `f32` that is not above `threshold`: exceeding the one is exceeding the other.
fn below(threshold: f64) -> f32 {
    let rounded = threshold as f32;
    if f64::from(rounded) > threshold {
        rounded.next_down()
    } else {
        rounded
    }
}

/// The boxes kept so far, coordinate by coordinate.
#[derive(Default)]
struct Kept {
    x0: Vec<f32>,
    y0: Vec<f32>,
    x1: Vec<f32>,
    y1: Vec<f32>,
    area: Vec<f32>,
}

impl Kept {
    fn push(&mut self, bbox: BBox) {
        let [x0, y0, x1, y1] = bbox;
        self.x0.push(x0);
        self.y0.push(y0);
        self.x1.push(x1);
        self.y1.push(y1);
        self.area.push(signed_area(bbox));
    }

    #[inline(always)]
    fn overlaps(&self, bbox: BBox, threshold: f32) -> bool {
        let [x0, y0, x1, y1] = bbox;
        let area = signed_area(bbox);
        let blocks = self
            .x0
            .chunks(BLOCK)
            .zip(self.y0.chunks(BLOCK))
            .zip(self.x1.chunks(BLOCK))
            .zip(self.y1.chunks(BLOCK))
            .zip(self.area.chunks(BLOCK));
        for ((((kept_x0, kept_y0), kept_x1), kept_y1), kept_area) in blocks {
            let mut any = 0u32;
            for i in 0..kept_x0.len() {
                let w = smaller(x1, kept_x1[i]) - larger(x0, kept_x0[i]);
                let h = smaller(y1, kept_y1[i]) - larger(y0, kept_y0[i]);
                let common = larger(w, 0.0) * larger(h, 0.0);
                let iou = common / (kept_area[i] + area - common);
                any |= u32::from(iou > threshold);
            }
            if any != 0 {
                return true;
            }
        }
        false
    }
}

/// Not clipped at 0, as in torchvision.
fn signed_area([x0, y0, x1, y1]: BBox) -> f32 {
    (x1 - x0) * (y1 - y0)
}

/// A comparison and a choice, which is one instruction where `f32::max` is several.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}
