//! Faster R-CNN on the res4 maps of a ResNet.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use pirl_core::check;
use pirl_model::{C4, Mode, ParamSet, ResNet, Trainable, strip_prefix};
use rand::Rng;
use serde::Serialize;

use super::config::DetectConfig;
use super::data::DetectBatch;
use super::detection::Detection;
use super::random::Stream;
use super::roi_heads::RoiHeads;
use super::rpn::Rpn;
use crate::error::Result;

/// The losses of one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct DetectLosses {
    /// Whether an anchor shows an object: binary cross-entropy.
    pub rpn_objectness: f64,
    /// Offsets of the boxes from the anchors: smooth L1.
    pub rpn_box: f64,
    /// The class of a region: cross-entropy.
    pub class: f64,
    /// Offsets of the boxes from the regions: smooth L1.
    pub r#box: f64,
}

impl DetectLosses {
    /// Their sum.
    pub fn total(&self) -> f64 {
        self.rpn_objectness + self.rpn_box + self.class + self.r#box
    }

    /// The four of them, for [`DetectLosses::of`].
    pub(super) fn values(&self) -> [f64; 4] {
        [self.rpn_objectness, self.rpn_box, self.class, self.r#box]
    }

    pub(super) fn of(values: &[f64]) -> Self {
        let of = |place: usize| values.get(place).copied().unwrap_or(f64::NAN);
        Self {
            rpn_objectness: of(0),
            rpn_box: of(1),
            class: of(2),
            r#box: of(3),
        }
    }

    pub(super) fn add(&mut self, share: f64, other: &Self) {
        self.rpn_objectness += share * other.rpn_objectness;
        self.rpn_box += share * other.rpn_box;
        self.class += share * other.class;
        self.r#box += share * other.r#box;
    }
}

/// Names of the two heads' parameters begin as detectron2's do.
const RPN: &str = "proposal_generator.rpn_head.";
const PREDICTOR: &str = "roi_heads.box_predictor.";

/// A backbone with a region proposal network and a box head.
pub(super) struct Detector {
    c4: C4,
    rpn: Rpn,
    heads: RoiHeads,
    config: DetectConfig,
}

impl Detector {
    /// Copies the backbone; the heads start from the seed.
    ///
    /// # Errors
    /// [`EvalError::Setting`], [`EvalError::Model`].
    pub(super) fn new(
        backbone: &ResNet,
        classes: usize,
        config: &DetectConfig,
        seed: u64,
    ) -> Result<Self> {
        config.check()?;
        let c4 = C4::new(backbone, &config.backbone)?;
        let (stride, expected) = (config.anchors.stride, c4.stride());
        check(
            "anchors.stride",
            stride,
            stride == expected,
            &format!("must be {expected}, the stride of res4 after the stem of this backbone"),
        )?;
        let (model, device) = (backbone.config(), backbone.parameters().var().device());
        let rpn_seed = Stream::Rpn.seed(seed);
        let predictor_seed = Stream::Predictor.seed(seed);
        Ok(Self {
            rpn: Rpn::new(
                &config.rpn,
                &config.anchors,
                c4.channels(),
                rpn_seed,
                (model, device),
            )?,
            heads: RoiHeads::new(
                &config.roi,
                classes,
                &c4,
                predictor_seed,
                (model.ops, device),
            )?,
            c4,
            config: config.clone(),
        })
    }

    pub(super) fn c4(&self) -> &C4 {
        &self.c4
    }

    pub(super) fn device(&self) -> Device {
        self.rpn.params().var().device().clone()
    }

    /// The parameters that are trained.
    pub(super) fn trained(&self) -> Vec<ParamSet> {
        let mut sets = self.c4.trained();
        sets.extend([self.rpn.params().clone(), self.heads.params().clone()]);
        sets
    }

    /// All parameters and statistics by prefix.
    pub(super) fn modules(&self) -> [(&'static str, &dyn Trainable); 3] {
        [
            ("", &self.c4),
            (RPN, self.rpn.params()),
            (PREDICTOR, self.heads.params()),
        ]
    }

    /// Takes all parameters and statistics by name, and returns the names that `state` lacks.
    pub(super) fn load(&self, state: &HashMap<String, Tensor>) -> Result<Vec<String>> {
        let mut missing = Vec::new();
        for (prefix, module) in self.modules() {
            let report = module.load(&strip_prefix(state, prefix))?;
            let names = report.missing.into_iter();
            missing.extend(names.map(|name| format!("{prefix}{name}")));
        }
        Ok(missing)
    }

    /// The losses of a batch, and the sum to differentiate.
    pub(super) fn losses(
        &self,
        batch: &DetectBatch,
        mode: Mode,
        rng: &mut dyn Rng,
    ) -> Result<(DetectLosses, Tensor)> {
        let features = self.c4.features(&batch.images, mode)?;
        let output = self.rpn.forward(&features)?;
        let rpn = self.rpn.loss(&output, &batch.targets, rng)?;
        let proposals = self.rpn.proposals(&output, &batch.sizes, true)?;
        let proposals: Vec<_> = proposals.into_iter().map(|found| found.boxes).collect();
        let (c4, targets) = (&self.c4, &batch.targets);
        let heads = self
            .heads
            .loss(c4, &features, &proposals, targets, mode, rng)?;
        let mut losses = DetectLosses {
            rpn_objectness: rpn.objectness,
            rpn_box: rpn.boxes,
            ..DetectLosses::default()
        };
        let graph = match heads {
            Some(heads) => {
                (losses.class, losses.r#box) = (heads.class, heads.boxes);
                (rpn.graph + heads.graph)?
            }
            None => rpn.graph,
        };
        Ok((losses, graph))
    }

    /// What is found in each image of a batch, in pixels of the batch.
    pub(super) fn detect(&self, batch: &DetectBatch) -> Result<Vec<Vec<Detection>>> {
        let features = self.c4.features(&batch.images, Mode::Eval)?;
        let output = self.rpn.forward(&features)?;
        let proposals = self.rpn.proposals(&output, &batch.sizes, false)?;
        let proposals: Vec<_> = proposals.into_iter().map(|found| found.boxes).collect();
        let (sizes, test) = (&batch.sizes, &self.config.test);
        self.heads
            .detect(&self.c4, &features, &proposals, sizes, test)
    }
}
