//! Settings of a detector.

use pirl_core::{SettingError, check};
use pirl_model::{C4Config, OptimConfig, OptimKind};
use serde::{Deserialize, Serialize};

use super::anchors::AnchorConfig;
use super::voc_metrics::DetectMetric;

/// How a detector is trained and tested. Its default is PIRL's on VOC07+12 (arXiv:1912.01991,
/// section 4.1); what the paper does not say is as in detectron2's Faster R-CNN R50-C4.
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
    /// How the head's outputs become detections.
    pub test: DetectTest,
}

/// SGD with momentum, linear warm-up, and drops.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DetectOptim {
    /// Learning rate; 0.003 by default.
    pub lr: f64,
    /// Momentum in `0..1`; 0.9 by default.
    pub momentum: f64,
    /// L2 penalty on all parameters except those of batch norm; 1e-4 by default.
    pub weight_decay: f64,
    /// Steps in which the rate rises linearly; 1,000 by default.
    pub warmup_steps: usize,
    /// Where it begins, as a fraction of `lr`; 1/3 by default.
    pub warmup_start: f64,
    /// Steps at which the rate drops; 17,000 by default.
    pub milestones: Vec<usize>,
    /// Factor at each milestone; 0.1 by default.
    pub gamma: f64,
}

/// How the detector sees images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InputConfig {
    /// Shorter sides in training, pixels, one of which is drawn for each image; 480 to 800 in steps of
    /// 32 by default.
    pub train_sizes: Vec<usize>,
    /// Shorter side in tests, pixels; 800 by default.
    pub test_size: usize,
    /// Largest longer side, pixels; an image that would exceed it is made smaller; 1333 by default.
    pub max_size: usize,
    /// Probability that a training image is mirrored; 0.5 by default.
    pub flip: f64,
}

/// The region proposal network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RpnConfig {
    /// An anchor is positive if its IoU with an object is at least this; 0.7 by default. The best anchor
    /// of each object is always positive.
    pub positive_iou: f64,
    /// An anchor is background if its IoU with every object is below this; 0.3 by default.
    pub negative_iou: f64,
    /// Anchors of an image in the loss; 256 by default.
    pub samples: usize,
    /// Largest share of positive ones among them; 0.5 by default.
    pub positive_fraction: f64,
    /// Of two proposals with a larger IoU the one with the lower score is dropped; 0.7 by default.
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

/// The head on each region.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RoiConfig {
    /// A proposal shows an object if their IoU is at least this; 0.5 by default.
    pub positive_iou: f64,
    /// Proposals of an image in the loss; 512 by default.
    pub samples: usize,
    /// Largest share of those that show objects among them; 0.25 by default.
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

/// How the head's outputs become detections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DetectTest {
    /// Detections of this score or less are left out; 0.05 by default.
    pub score_threshold: f64,
    /// Of two detections of a class with a larger IoU the one with the lower score is dropped; 0.5 by
    /// default.
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
    /// Checks all tables; the fields of inner ones are named as `rpn.samples`.
    ///
    /// # Errors
    /// Names the first field whose value cannot work.
    pub fn check(&self) -> Result<(), SettingError> {
        check_counts(&[("steps", self.steps), ("batch_size", self.batch_size)])?;
        let tables = [
            ("optim", self.optim.check()),
            ("input", self.input.check()),
            ("backbone", self.backbone.check()),
            ("anchors", self.anchors.check()),
            ("rpn", self.rpn.check()),
            ("roi", self.roi.check()),
            ("test", self.test.check()),
        ];
        for (table, checked) in tables {
            checked.map_err(|error| error.within(table))?;
        }
        Ok(())
    }
}

impl DetectOptim {
    /// # Errors
    /// Names the first field whose value cannot work.
    pub fn check(&self) -> Result<(), SettingError> {
        self.sgd().check()?;
        check_fractions(&[("warmup_start", self.warmup_start)])?;
        let gamma = self.gamma;
        let fits = gamma > 0.0 && gamma.is_finite();
        check("gamma", gamma, fits, "must be finite and positive")?;
        let milestones = &self.milestones;
        let rise = milestones.is_sorted_by(|a, b| a < b);
        check("milestones", format!("{milestones:?}"), rise, "must rise")
    }

    /// The optimiser without its schedule.
    pub(super) fn sgd(&self) -> OptimConfig {
        OptimConfig {
            kind: OptimKind::Sgd,
            lr: self.lr,
            momentum: self.momentum,
            weight_decay: self.weight_decay,
            ..OptimConfig::default()
        }
    }
}

impl InputConfig {
    /// # Errors
    /// Names the first field whose value cannot work.
    pub fn check(&self) -> Result<(), SettingError> {
        let sizes = &self.train_sizes;
        let fits = !sizes.is_empty() && !sizes.contains(&0);
        let expected = "must be one or more sizes of at least 1";
        check("train_sizes", format!("{sizes:?}"), fits, expected)?;
        check_counts(&[("test_size", self.test_size), ("max_size", self.max_size)])?;
        check_fractions(&[("flip", self.flip)])
    }
}

impl RpnConfig {
    /// # Errors
    /// Names the first field whose value cannot work.
    pub fn check(&self) -> Result<(), SettingError> {
        check_counts(&[
            ("samples", self.samples),
            ("pre_nms_train", self.pre_nms_train),
            ("pre_nms_test", self.pre_nms_test),
            ("post_nms_train", self.post_nms_train),
            ("post_nms_test", self.post_nms_test),
        ])?;
        check_fractions(&[
            ("positive_iou", self.positive_iou),
            ("negative_iou", self.negative_iou),
            ("positive_fraction", self.positive_fraction),
            ("nms_iou", self.nms_iou),
        ])?;
        check(
            "negative_iou",
            self.negative_iou,
            self.negative_iou <= self.positive_iou,
            "must be at most positive_iou",
        )?;
        check_sizes(&[
            ("min_box_size", self.min_box_size),
            ("smooth_l1_beta", self.smooth_l1_beta),
        ])
    }
}

impl RoiConfig {
    /// # Errors
    /// Names the first field whose value cannot work.
    pub fn check(&self) -> Result<(), SettingError> {
        check_counts(&[("samples", self.samples), ("pool_size", self.pool_size)])?;
        check_fractions(&[
            ("positive_iou", self.positive_iou),
            ("positive_fraction", self.positive_fraction),
        ])?;
        check_sizes(&[("smooth_l1_beta", self.smooth_l1_beta)])?;
        let weights = &self.box_weights;
        let fits = weights.iter().all(|w| *w > 0.0 && w.is_finite());
        let found = format!("{weights:?}");
        check("box_weights", found, fits, "must be four numbers above 0")
    }
}

impl DetectTest {
    /// # Errors
    /// Names the first field whose value cannot work.
    pub fn check(&self) -> Result<(), SettingError> {
        check_counts(&[("detections", self.detections)])?;
        check_fractions(&[
            ("score_threshold", self.score_threshold),
            ("nms_iou", self.nms_iou),
        ])
    }
}

fn check_counts(fields: &[(&str, usize)]) -> Result<(), SettingError> {
    fields
        .iter()
        .try_for_each(|(field, count)| check(field, count, *count > 0, "must be at least 1"))
}

fn check_fractions(fields: &[(&str, f64)]) -> Result<(), SettingError> {
    fields.iter().try_for_each(|(field, fraction)| {
        let fits = (0.0..=1.0).contains(fraction);
        check(field, fraction, fits, "must lie in [0, 1]")
    })
}

fn check_sizes(fields: &[(&str, f64)]) -> Result<(), SettingError> {
    fields.iter().try_for_each(|(field, size)| {
        let fits = *size >= 0.0 && size.is_finite();
        check(field, size, fits, "must be finite and at least 0")
    })
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
            config.check().unwrap_err().to_string()
        };
        assert!(DetectConfig::default().check().is_ok());
        assert!(refused(|c| c.steps = 0).contains("steps = 0"));
        assert!(refused(|c| c.input.train_sizes.clear()).contains("train_sizes"));
        assert!(refused(|c| c.rpn.negative_iou = 0.8).contains("rpn.negative_iou"));
        assert!(refused(|c| c.roi.positive_iou = f64::NAN).contains("roi.positive_iou"));
        assert!(refused(|c| c.roi.box_weights[2] = 0.0).contains("box_weights"));
        assert!(refused(|c| c.optim.milestones = vec![5, 5]).contains("milestones"));
        assert!(refused(|c| c.anchors.sizes = vec![-1.0]).contains("anchors.sizes"));
    }
}
