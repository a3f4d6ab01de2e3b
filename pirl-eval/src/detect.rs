//! Object detection with Faster R-CNN: is what a backbone learned of use beyond whole images?
//!
//! The geometry and the ops of a detector, and the metrics it is judged by. Behaviour, orders and
//! defaults are detectron2's (Faster R-CNN R50-C4), whose VOC figures PIRL reports.
//!
//! A box is [`BBox`]: `xmin, ymin, xmax, ymax` in pixels, with the origin at the outer corner of the
//! first pixel, so that a box over a whole image of `w` columns has `xmin = 0` and `xmax = w`.

mod anchors;
mod box_coder;
mod boxes;
mod coco_metrics;
mod detection;
mod draw;
mod matcher;
mod nms;
mod proposals;
mod roi_align;
mod sample;
mod voc_metrics;

pub use anchors::AnchorConfig;
pub use box_coder::BoxCoder;
pub use boxes::{BBox, IouMatrix, area, clip, iou, is_larger_than, pairwise_iou};
pub use coco_metrics::{CocoReport, coco_metrics};
pub use detection::Detection;
pub use draw::{DetectionPanel, detection_sheet, precision_recall_chart};
pub use matcher::{MatchLabel, Matcher, Matches};
pub use nms::{batched_nms, nms};
pub use proposals::{ProposalConfig, Proposals, RpnLevel, select_proposals};
pub use roi_align::{Roi, RoiAlignConfig, roi_align, roi_align_reference};
pub use sample::{Sample, subsample};
pub use voc_metrics::{DetectMetric, PrecisionRecall, VocClass, VocReport, voc_metrics};
