//! From the region proposal network's outputs to proposals.

use candle_core::{Device, Result};

use super::box_coder::BoxCoder;
use super::boxes::{BBox, clip, is_larger_than};
use super::nms::{batched_nms_on, by_falling_score, falling};

/// How many proposals stay, and which; detectron2's `RPN` settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProposalConfig {
    /// Boxes of each level that enter non-maximum suppression, by score; 12,000 in training, 6,000
    /// in tests.
    pub pre_nms_topk: usize,
    /// Boxes that leave it, over all levels; 2,000 in training, 1,000 in tests.
    pub post_nms_topk: usize,
    /// IoU beyond which the lower score goes; 0.7.
    pub nms_threshold: f64,
    /// Both sides of a proposal are longer than this after clipping, pixels; 0.
    pub min_box_size: f32,
}

/// The network's outputs for one image and one feature map, in the order of
/// [`AnchorConfig::anchors`](super::AnchorConfig::anchors): the channels of a cell are its anchors,
/// so a map `(a, h, w)` of logits is read as `(h, w, a)`.
#[derive(Clone, Copy, Debug)]
pub struct RpnLevel<'a> {
    /// The anchors.
    pub anchors: &'a [BBox],
    /// Objectness of each anchor, as a logit.
    pub logits: &'a [f32],
    /// `dx, dy, dw, dh` of each anchor.
    pub offsets: &'a [[f32; 4]],
}

/// Proposals for one image.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Proposals {
    /// Boxes inside the image, by falling objectness.
    pub boxes: Vec<BBox>,
    /// Their objectness logits.
    pub logits: Vec<f32>,
    /// Boxes left out because they or their logits were infinite or NaN. Above 0 in training means
    /// that it has diverged.
    pub not_finite: usize,
}

/// Detectron2's `find_top_rpn_proposals` for one image of `(height, width)` pixels: of each level
/// the anchors with the highest logits, moved by their offsets, clipped, without those too small,
/// suppressed level by level, and of those that stay the best.
///
/// Of equal logits the anchor that comes first is preferred. Many boxes are suppressed on `device` if
/// it is a CUDA device and this was built with the feature `cuda`; the result is the same.
///
/// # Errors
/// Only if a CUDA device fails.
pub fn select_proposals(
    levels: &[RpnLevel<'_>],
    coder: &BoxCoder,
    image_size: (usize, usize),
    config: &ProposalConfig,
    device: &Device,
) -> Result<Proposals> {
    let (mut boxes, mut logits, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
    let mut not_finite = 0;
    for (number, level) in levels.iter().enumerate() {
        let count = level.logits.len().min(level.offsets.len());
        let logits_of_level = &level.logits[..count.min(level.anchors.len())];
        for index in highest(logits_of_level, config.pre_nms_topk) {
            let bbox = coder.decode(level.offsets[index], level.anchors[index]);
            let logit = level.logits[index];
            if !(logit.is_finite() && bbox.iter().all(|x| x.is_finite())) {
                not_finite += 1;
                continue;
            }
            let bbox = clip(bbox, image_size);
            if is_larger_than(bbox, config.min_box_size) {
                boxes.push(bbox);
                logits.push(logit);
                numbers.push(number);
            }
        }
    }
    let kept = batched_nms_on(
        device,
        &boxes,
        &logits,
        &numbers,
        config.nms_threshold,
        config.post_nms_topk,
    )?;
    Ok(Proposals {
        boxes: kept.iter().map(|&index| boxes[index]).collect(),
        logits: kept.iter().map(|&index| logits[index]).collect(),
        not_finite,
    })
}

/// Indices of the `most` highest scores, highest first.
fn highest(scores: &[f32], most: usize) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..scores.len()).collect();
    if most < indices.len() {
        indices.select_nth_unstable_by(most, |&a, &b| falling(scores, a, b));
        indices.truncate(most);
    }
    by_falling_score(indices, scores)
}
