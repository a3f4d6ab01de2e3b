//! Object detection with Faster R-CNN on a pre-trained backbone.
//!
//! A [`DetectTrainer`] puts a region proposal network and a box head on a copy of a backbone, trains
//! them on a pack with annotated objects and runs the detector over another; [`voc_metrics()`] and
//! [`coco_metrics()`] evaluate its detections. The geometry and the ops it is made of are public as
//! well. Behaviour, orders and defaults are detectron2's (Faster R-CNN R50-C4), whose VOC figures PIRL
//! reports.
//!
//! A box is [`BBox`]: `xmin, ymin, xmax, ymax` in pixels, with the origin at the outer corner of the
//! first pixel, so that a box over a whole image of `w` columns has `xmin = 0` and `xmax = w`.

mod anchors;
mod box_coder;
mod boxes;
mod coco_metrics;
mod config;
mod data;
mod detection;
mod detector;
mod loss;
mod matcher;
mod nms;
mod proposals;
mod random;
mod report;
mod roi_align;
mod roi_heads;
mod rpn;
mod sample;
mod train;
mod voc_metrics;

pub use anchors::AnchorConfig;
pub use box_coder::BoxCoder;
pub use boxes::{BBox, IouMatrix, area, clip, iou, is_larger_than, pairwise_iou};
pub use coco_metrics::{CocoReport, coco_metrics};
pub use config::{DetectConfig, DetectOptim, DetectTest, InputConfig, RoiConfig, RpnConfig};
pub use detection::{CocoResult, Detection};
pub use detector::DetectLosses;
pub use matcher::{MatchLabel, Matcher, Matches};
pub use nms::{batched_nms, nms, nms_reference};
pub use proposals::{ProposalConfig, Proposals, RpnLevel, select_proposals};
pub use report::{DetectReport, RecomputedStatistics};
pub use roi_align::{Roi, RoiAlignConfig, roi_align, roi_align_reference};
pub use sample::{Sample, subsample};
pub use train::{DetectTrainer, check_detection_packs};
pub use voc_metrics::{DetectMetric, PrecisionRecall, VocClass, VocReport, voc_metrics};
