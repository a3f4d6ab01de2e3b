//! Settings that the evaluations share, with those of each.

use pirl_core::{SettingError, check};
use pirl_model::Layer;
use serde::{Deserialize, Serialize};

use crate::detect::DetectConfig;
use crate::{FinetuneConfig, KnnConfig, LinearConfig, LowShotConfig, Pools, SvmConfig};

/// How images are seen, where features are read, and the settings of each evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalConfig {
    /// Images in one forward pass of a feature extraction; 256 by default.
    pub batch_size: usize,
    /// Shorter side in pixels before the centre crop; 256 by default.
    pub resize: usize,
    /// Side of the centre crop in pixels; 0, the default, for that of the views of pre-training.
    pub crop: usize,
    /// Epochs of a pre-training from one measurement with nearest neighbours to the next; 5 by default.
    pub every: usize,
    /// Training images over which running batch-norm statistics are recomputed first; 0, the
    /// default, for none.
    pub precise_batch_norm: usize,
    /// Where features are read; res2 to res5 by default. A name such as `res4+res5` joins the features of layers.
    pub layers: Vec<Layer>,
    /// How a feature map becomes a vector: in one way, or in several that are chosen from.
    pub pool: Pools,
    /// Random crops of training views: share of the image's area in `(0, 1]`, least and most.
    pub crop_scale: [f64; 2],
    /// Probability that a training view is mirrored; 0.5 by default.
    pub flip: f64,
    /// Whether linear probes on plain views, nearest neighbours and low-shot evaluations are also run on
    /// [`Baselines`](crate::Baselines): raw pixels and the untrained network; on by default.
    pub baselines: bool,
    /// Linear probes.
    pub linear: LinearConfig,
    /// Nearest neighbours.
    pub knn: KnnConfig,
    /// Faster R-CNN.
    pub detect: DetectConfig,
    /// Support vector machines.
    pub svm: SvmConfig,
    /// A few labels of each class.
    pub low_shot: LowShotConfig,
    /// Fine-tuning of the whole network.
    pub finetune: FinetuneConfig,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            batch_size: 256,
            resize: 256,
            crop: 0,
            every: 5,
            precise_batch_norm: 0,
            layers: vec![Layer::RES2, Layer::RES3, Layer::RES4, Layer::RES5],
            pool: Pools::default(),
            crop_scale: [0.08, 1.0],
            flip: 0.5,
            baselines: true,
            linear: LinearConfig::default(),
            knn: KnnConfig::default(),
            detect: DetectConfig::default(),
            svm: SvmConfig::default(),
            low_shot: LowShotConfig::default(),
            finetune: FinetuneConfig::default(),
        }
    }
}

impl EvalConfig {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// Fails with the first field that is out of its range.
    pub fn check(&self) -> Result<(), SettingError> {
        let images = self.batch_size;
        check("batch_size", images, images > 0, "must be at least 1")?;
        check("every", self.every, self.every > 0, "must be at least 1")?;
        let named = !self.layers.is_empty();
        check(
            "layers",
            "[]",
            named,
            "must name at least one layer, such as res5",
        )?;
        let [least, most] = self.crop_scale;
        check(
            "crop_scale",
            format!("{:?}", self.crop_scale),
            0.0 < least && least <= most && most <= 1.0,
            "must be two numbers within (0, 1], the least first",
        )?;
        let fits = (0.0..=1.0).contains(&self.flip);
        check("flip", self.flip, fits, "must lie in [0, 1]")?;
        let tables = [
            ("linear", self.linear.check()),
            ("knn", self.knn.check()),
            ("detect", self.detect.check()),
            ("svm", self.svm.check()),
            ("low_shot", self.low_shot.check()),
            ("finetune", self.finetune.check()),
        ];
        for (table, checked) in tables {
            checked.map_err(|error| error.within(table))?;
        }
        Ok(())
    }
}
