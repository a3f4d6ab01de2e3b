//! The `[eval.detect]` table of a recipe.

use pirl_model::C4Config;
use serde::{Deserialize, Serialize};

use super::anchors::AnchorConfig;
use super::voc_metrics::DetectMetric;
use crate::error::{EvalError, Result};

/// How a detector is trained and tested. Its default is PIRL's on VOC07+12 (arXiv:1912.01991,
/// section 4.1), and what the paper leaves unsaid is detectron2's Faster R-CNN R50-C4.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DetectConfig {
    /// Training steps; 25,000 by default.
    pub steps: usize,
    /// Images of a step; 16 by default.
    pub batch_size: usize,
    /// Images that go through the network at once, as on one of the reference's 8 GPUs: memory holds
    /// the maps of these, and trained batch norm sees these; 0 for the whole batch. 2 by default.
    pub micro_batch: usize,
    /// Steps from one evaluation to the next; 0, the default, for one at the end alone.
    pub evaluate_every: usize,
    /// Training batches over which trained batch norm's statistics are recomputed before each
    /// evaluation; 0, the default, for none.
    pub precise_batch_norm: usize,
    /// The optimiser and its schedule.
    pub optim: DetectOptim,
    /// How images are seen.
    pub input: InputConfig,
    /// What of the backbone is frozen.
    pub backbone: C4Config,
    /// The anchors.
    pub anchors: AnchorConfig,
    /// The region proposal network.
    pub rpn: RpnConfig,
    /// The head on each region.
    pub roi: RoiConfig,
    /// What becomes of the head's outputs.
    pub test: DetectTest,
}

/// `[eval.detect.optim]`: SGD with momentum, linear warm-up, and drops.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DetectOptim {
    /// Learning rate; 0.003 by default.
    pub lr: f64,
    /// Momentum in `0..1`; 0.9 by default.
    pub momentum: f64,
    /// L2 penalty on all but batch norm; 1e-4 by default.
    pub weight_decay: f64,
    /// Steps in which the rate rises linearly; 1,000 by default.
    pub warmup_steps: usize,
    /// Where it begins, as a fraction of `lr`; 1/3 by default.
    pub warmup_start: f64,
    /// Steps at which the rate drops; 17,000 by default.
    pub milestones: Vec<usize>,
    /// What a drop multiplies by; 0.1 by default.
    pub gamma: f64,
}

/// `[eval.detect.input]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InputConfig {
    /// Shorter sides in training, pixels, one of which is drawn for each image; 480 to 800 in steps of
    /// 32 by default.
    pub train_sizes: Vec<usize>,
    /// Shorter side in tests, pixels; 800 by default.
    pub test_size: usize,
    /// Longest side, pixels, to which the shorter one gives way; 1333 by default.
    pub max_size: usize,
    /// Probability of a mirrored training image; 0.5 by default.
    pub flip: f64,
}

/// `[eval.detect.rpn]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RpnConfig {
    /// IoU from which an anchor is an object's; 0.7 by default. The best anchor of each object is
    /// always.
    pub positive_iou: f64,
    /// IoU below which an anchor is background; 0.3 by default.
    pub negative_iou: f64,
    /// Anchors of an image in the loss; 256 by default.
    pub samples: usize,
    /// Share of them that are objects' at most; 0.5 by default.
    pub positive_fraction: f64,
    /// IoU beyond which the lower-scored of two proposals goes; 0.7 by default.
    pub nms_iou: f64,
    /// Proposals before suppression in training; 12,000 by default.
    pub pre_nms_train: usize,
    /// Proposals before suppression in tests; 6,000 by default.
    pub pre_nms_test: usize,
    /// Proposals after it in training; 2,000 by default.
    pub post_nms_train: usize,
    /// Proposals after it in tests; 1,000 by default.
    pub post_nms_test: usize,
    /// Proposals with a side not longer than this, pixels, are left out; 0 by default.
    pub min_box_size: f64,
    /// Where the box loss turns from quadratic to linear; 0, the default, for plain L1.
    pub smooth_l1_beta: f64,
}

/// `[eval.detect.roi]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RoiConfig {
    /// IoU from which a proposal shows an object; 0.5 by default.
    pub positive_iou: f64,
    /// Proposals of an image in the loss; 512 by default.
    pub samples: usize,
    /// Share of them that show objects at most; 0.25 by default.
    pub positive_fraction: f64,
    /// Side of a pooled region, cells of res4; 14 by default. res5 halves it.
    pub pool_size: usize,
    /// Samples of a cell along each axis; 0, the default, for as many as it covers.
    pub sampling_ratio: usize,
    /// Weights of dx, dy, dw, dh; 10, 10, 5, 5 by default.
    pub box_weights: [f32; 4],
    /// Where the box loss turns from quadratic to linear; 0, the default, for plain L1.
    pub smooth_l1_beta: f64,
}

/// `[eval.detect.test]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DetectTest {
    /// Detections of this score or less are left out; 0.05 by default.
    pub score_threshold: f64,
    /// IoU beyond which the lower-scored of two detections of a class goes; 0.5 by default.
    pub nms_iou: f64,
    /// Detections of an image at most; 100 by default.
    pub detections: usize,
    /// Average precision by VOC 2007's 11 points, as the paper's, or by the area under the curve;
    /// `voc2007` by default.
    pub metric: DetectMetric,
}

impl Default for DetectConfig {
    fn default() -> Self {
        Self {
            steps: 25_000,
            batch_size: 16,
            micro_batch: 2,
            evaluate_every: 0,
            precise_batch_norm: 0,
            optim: DetectOptim::default(),
            input: InputConfig::default(),
            backbone: C4Config::default(),
            anchors: AnchorConfig::default(),
            rpn: RpnConfig::default(),
            roi: RoiConfig::default(),
            test: DetectTest::default(),
        }
    }
}

impl Default for DetectOptim {
    fn default() -> Self {
        Self {
            lr: 0.003,
            momentum: 0.9,
            weight_decay: 1e-4,
            warmup_steps: 1000,
            warmup_start: 1.0 / 3.0,
            milestones: vec![17_000],
            gamma: 0.1,
        }
    }
}

impl Default for InputConfig {
    fn default() -> Self {
        Self {
            train_sizes: (480..=800).step_by(32).collect(),
            test_size: 800,
            max_size: 1333,
            flip: 0.5,
        }
    }
}

impl Default for RpnConfig {
    fn default() -> Self {
        Self {
            positive_iou: 0.7,
            negative_iou: 0.3,
            samples: 256,
            positive_fraction: 0.5,
            nms_iou: 0.7,
            pre_nms_train: 12_000,
            pre_nms_test: 6_000,
            post_nms_train: 2_000,
            post_nms_test: 1_000,
            min_box_size: 0.0,
            smooth_l1_beta: 0.0,
        }
    }
}

impl Default for RoiConfig {
    fn default() -> Self {
        Self {
            positive_iou: 0.5,
            samples: 512,
            positive_fraction: 0.25,
            pool_size: 14,
            sampling_ratio: 0,
            box_weights: [10.0, 10.0, 5.0, 5.0],
            smooth_l1_beta: 0.0,
        }
    }
}

impl Default for DetectTest {
    fn default() -> Self {
        Self {
            score_threshold: 0.05,
            nms_iou: 0.5,
            detections: 100,
            metric: DetectMetric::Voc2007,
        }
    }
}

impl DetectConfig {
    /// # Errors
    /// [`EvalError::Setting`], which names the first setting that cannot work.
    pub fn validate(&self) -> Result<()> {
        let wrong = |key, found: String, expected| {
            Err(EvalError::Setting {
                key,
                found,
                expected,
            })
        };
        let counts = [
            ("eval.detect.steps", self.steps),
            ("eval.detect.batch_size", self.batch_size),
            ("eval.detect.input.test_size", self.input.test_size),
            ("eval.detect.input.max_size", self.input.max_size),
            ("eval.detect.rpn.samples", self.rpn.samples),
            ("eval.detect.rpn.pre_nms_train", self.rpn.pre_nms_train),
            ("eval.detect.rpn.pre_nms_test", self.rpn.pre_nms_test),
            ("eval.detect.rpn.post_nms_train", self.rpn.post_nms_train),
            ("eval.detect.rpn.post_nms_test", self.rpn.post_nms_test),
            ("eval.detect.roi.samples", self.roi.samples),
            ("eval.detect.roi.pool_size", self.roi.pool_size),
            ("eval.detect.test.detections", self.test.detections),
        ];
        for (key, count) in counts {
            if count == 0 {
                return wrong(key, "0".to_owned(), "at least 1");
            }
        }
        let sizes = &self.input.train_sizes;
        if sizes.is_empty() || sizes.contains(&0) {
            let key = "eval.detect.input.train_sizes";
            return wrong(key, format!("{sizes:?}"), "one or more sizes of at least 1");
        }
        let (rpn, roi, optim) = (&self.rpn, &self.roi, &self.optim);
        let fractions = [
            ("eval.detect.optim.warmup_start", optim.warmup_start),
            ("eval.detect.input.flip", self.input.flip),
            ("eval.detect.rpn.positive_iou", rpn.positive_iou),
            ("eval.detect.rpn.negative_iou", rpn.negative_iou),
            ("eval.detect.rpn.positive_fraction", rpn.positive_fraction),
            ("eval.detect.rpn.nms_iou", rpn.nms_iou),
            ("eval.detect.roi.positive_iou", roi.positive_iou),
            ("eval.detect.roi.positive_fraction", roi.positive_fraction),
            (
                "eval.detect.test.score_threshold",
                self.test.score_threshold,
            ),
            ("eval.detect.test.nms_iou", self.test.nms_iou),
        ];
        for (key, fraction) in fractions {
            if !(0.0..=1.0).contains(&fraction) {
                return wrong(key, fraction.to_string(), "a number in 0..=1");
            }
        }
        if rpn.negative_iou > rpn.positive_iou {
            let key = "eval.detect.rpn.negative_iou";
            return wrong(
                key,
                rpn.negative_iou.to_string(),
                "at most rpn.positive_iou",
            );
        }
        let sizes = [
            ("eval.detect.rpn.min_box_size", rpn.min_box_size),
            ("eval.detect.rpn.smooth_l1_beta", rpn.smooth_l1_beta),
            ("eval.detect.roi.smooth_l1_beta", roi.smooth_l1_beta),
        ];
        for (key, size) in sizes {
            if !(size >= 0.0 && f64::is_finite(size)) {
                return wrong(key, size.to_string(), "at least 0");
            }
        }
        if !(optim.gamma > 0.0 && optim.gamma.is_finite()) {
            let key = "eval.detect.optim.gamma";
            return wrong(key, optim.gamma.to_string(), "a positive number");
        }
        if !optim.milestones.is_sorted_by(|a, b| a < b) {
            let key = "eval.detect.optim.milestones";
            return wrong(key, format!("{:?}", optim.milestones), "rising steps");
        }
        if !roi.box_weights.iter().all(|w| *w > 0.0 && w.is_finite()) {
            let key = "eval.detect.roi.box_weights";
            return wrong(key, format!("{:?}", roi.box_weights), "positive numbers");
        }
        self.anchors.validate()
    }
}

impl DetectOptim {
    /// The rate of step `step`, counted from 0 (detectron2's `WarmupMultiStepLR`).
    pub(super) fn rate(&self, step: usize) -> f64 {
        let drops = self.milestones.iter().filter(|at| step >= **at).count();
        let rate = self.lr * self.gamma.powi(drops as i32);
        if step >= self.warmup_steps {
            return rate;
        }
        let risen = step as f64 / self.warmup_steps as f64;
        rate * (self.warmup_start * (1.0 - risen) + risen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_and_drops_as_the_papers() {
        let optim = DetectOptim::default();
        let near = |step, rate: f64| assert!((optim.rate(step) - rate).abs() < 1e-12, "{step}");
        near(0, 0.001);
        near(500, 0.002);
        near(1000, 0.003);
        near(16_999, 0.003);
        near(17_000, 0.0003);
        near(24_999, 0.0003);
    }

    #[test]
    fn a_setting_that_cannot_work_is_named() {
        let refused = |change: fn(&mut DetectConfig)| {
            let mut config = DetectConfig::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert!(DetectConfig::default().validate().is_ok());
        assert!(refused(|c| c.steps = 0).contains("eval.detect.steps"));
        assert!(refused(|c| c.input.train_sizes.clear()).contains("train_sizes"));
        assert!(refused(|c| c.rpn.negative_iou = 0.8).contains("rpn.negative_iou"));
        assert!(refused(|c| c.roi.positive_iou = f64::NAN).contains("roi.positive_iou"));
        assert!(refused(|c| c.roi.box_weights[2] = 0.0).contains("box_weights"));
        assert!(refused(|c| c.optim.milestones = vec![5, 5]).contains("milestones"));
        assert!(refused(|c| c.anchors.sizes = vec![-1.0]).contains("anchors.sizes"));
    }
}
