//! A ResNet cut in two for Faster R-CNN: the maps of res4 for a whole image, and res5 as the head on
//! each region (the C4 detector of Ren et al., arXiv:1506.01497, as detectron2 builds it).

use candle_core::Tensor;
use pirl_core::{SettingError, check};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use crate::backbone::Backbone;
use crate::config::Stem;
use crate::engine::{Engine, Network, Norm, Traced};
use crate::error::{ModelError, Result};
use crate::layer::Layer;
use crate::mode::Mode;
use crate::params::{Buffers, Builder, ParamSet};
use crate::residual::{Stage, StemConv, stage_channels};
use crate::resnet::ResNet;
use crate::trainable::Trainable;

/// What batch norm does while a detector is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum C4Norm {
    /// Statistics, scale and shift stay as pre-training left them (detectron2's `FrozenBN`).
    Frozen,
    /// Batches are normalised by their own statistics; scale and shift are trained.
    Train,
}

/// How a backbone becomes part of a detector. The default is PIRL's: batch norm frozen, stem and res2
/// as well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct C4Config {
    /// How much is frozen: 0 nothing, 1 the stem, 2 stem and res2, up to 4 all but res5 (detectron2's
    /// `FREEZE_AT`); 2 by default.
    pub frozen_stages: usize,
    /// Batch norm of what is not frozen as a whole; `frozen` by default.
    pub norm: C4Norm,
    /// A batch norm after res5, before its average (MoCo's detectors); needs `norm = "train"`.
    pub extra_norm: bool,
}

impl Default for C4Config {
    fn default() -> Self {
        Self {
            frozen_stages: 2,
            norm: C4Norm::Frozen,
            extra_norm: false,
        }
    }
}

impl C4Config {
    /// # Errors
    /// Names the first field whose value cannot work.
    pub fn check(&self) -> Result<(), SettingError> {
        let frozen = self.frozen_stages;
        check("frozen_stages", frozen, frozen <= 4, "must be at most 4")?;
        check(
            "extra_norm",
            self.extra_norm,
            !self.extra_norm || self.norm == C4Norm::Train,
            "must be false unless norm is train: a norm that was never trained cannot be frozen",
        )
    }
}

/// The two halves of a ResNet in a C4 detector.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use pirl_model::{Arch, C4, C4Config, Mode, ModelConfig, ResNet};
///
/// let config = ModelConfig { arch: Arch::Resnet18, width: 0.25, ..Default::default() };
/// let c4 = C4::new(&ResNet::new(&config, 0, &Device::Cpu)?, &C4Config::default())?;
/// let images = Tensor::randn(0f32, 1.0, (1, 3, 64, 96), &Device::Cpu)?;
/// let maps = c4.features(&images, Mode::Train)?;
/// assert_eq!(maps.dims(), [1, 64, 4, 6]);
/// let region = maps.narrow(2, 0, 4)?.narrow(3, 1, 4)?;
/// assert_eq!(c4.region_features(&region, Mode::Train)?.dims(), [1, 128]);
/// # Ok::<(), pirl_model::ModelError>(())
/// ```
pub struct C4 {
    /// The stem and stages that are left as they are; always run in evaluation mode.
    frozen: Option<Traced<Part>>,
    trunk: Option<Traced<Part>>,
    res5: Traced<Part>,
    norm: C4Norm,
    stride: usize,
    channels: usize,
    feature_dim: usize,
}

impl C4 {
    /// Copies the weights and statistics of `backbone`, which is not changed.
    ///
    /// # Errors
    /// [`ModelError::Setting`] as [`C4Config::check`].
    pub fn new(backbone: &ResNet, config: &C4Config) -> Result<Self> {
        config.check()?;
        let model = backbone.config();
        let device = backbone.parameters().var().device();
        // Parts are numbered from the stem, 0, to res5, 4.
        let part = |parts: std::ops::Range<usize>, frozen: bool| -> Result<Traced<Part>> {
            // What is drawn here is replaced below, but for the extra norm, which is constant.
            let mut builder = Builder::new(ChaCha8Rng::seed_from_u64(0));
            if frozen {
                builder.freeze_norms();
            }
            let stem = parts.contains(&0);
            let stem = stem
                .then(|| StemConv::new(model, &mut builder))
                .transpose()?;
            let stages = parts.clone().filter(|part| *part > 0);
            let stages = stages.map(|part| Stage::new(model, part - 1, &mut builder));
            let stages = stages.collect::<Result<_>>()?;
            let head = parts.contains(&4);
            let dim = backbone.feature_dim();
            let norm = head && config.extra_norm;
            let plan = Part {
                stem,
                stages,
                norm: norm.then(|| Norm::new(&mut builder, EXTRA_NORM, dim)),
                average: head,
            };
            Traced::new(plan, builder, model.ops, model.winograd, device)
        };
        let cut = config.frozen_stages;
        let frozen = config.norm == C4Norm::Frozen;
        let c4 = Self {
            frozen: (cut > 0).then(|| part(0..cut, true)).transpose()?,
            trunk: (cut < 4).then(|| part(cut..4, frozen)).transpose()?,
            res5: part(4..5, frozen)?,
            norm: config.norm,
            stride: match model.stem {
                Stem::Imagenet => 16,
                Stem::Medium => 8,
                Stem::Small => 4,
            },
            channels: stage_channels(model, 2)?,
            feature_dim: backbone.feature_dim(),
        };
        c4.load(&backbone.state()?)?;
        Ok(c4)
    }

    /// Pixels of the image from one cell of res4's maps to the next: 16, or 4 with the small stem.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Channels of res4's maps.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Length of a region's feature vector.
    pub fn feature_dim(&self) -> usize {
        self.feature_dim
    }

    /// `images`: `(n, 3, h, w)`. Returns the maps of res4, `(n, channels, h / stride, w / stride)`
    /// rounded up. Gradients reach the trained parameters alone.
    ///
    /// [`Mode::Train`] and [`Mode::Calibrate`] leave frozen batch norm frozen.
    ///
    /// # Errors
    /// [`ModelError::Input`] for another shape; [`ModelError::SingleValue`] if batch statistics are
    /// asked of a single value.
    pub fn features(&self, images: &Tensor, mode: Mode) -> Result<Tensor> {
        let expected = "images of shape (batch, 3, height, width), none of them 0";
        check_shape(images, 3, "the backbone", expected)?;
        let mut x = images.clone();
        if let Some(frozen) = &self.frozen {
            x = frozen.forward(&x, Mode::Eval)?;
        }
        if let Some(trunk) = &self.trunk {
            x = trunk.forward(&x, self.mode(mode))?;
        }
        Ok(x)
    }

    /// `regions`: `(r, channels, s, s)`, pooled from res4's maps. Returns `(r, feature_dim)`: res5,
    /// the extra norm if there is one, and the average. Gradients reach `regions` too.
    ///
    /// # Errors
    /// As [`C4::features`].
    pub fn region_features(&self, regions: &Tensor, mode: Mode) -> Result<Tensor> {
        let expected = "at least one region of shape (channels of res4, height, width)";
        check_shape(regions, self.channels, "the head of res5", expected)?;
        self.res5.forward(regions, self.mode(mode))
    }

    /// The parameters that training changes.
    pub fn trained(&self) -> Vec<ParamSet> {
        let parts = self.trunk.iter().chain([&self.res5]);
        parts.map(|part| part.params().clone()).collect()
    }

    /// Whether training changes the statistics of batch norm.
    pub fn trains_norm(&self) -> bool {
        self.norm == C4Norm::Train
    }

    /// Resets the statistics that training changed, before [`Mode::Calibrate`] averages new ones.
    pub fn reset_statistics(&self) {
        if self.trains_norm() {
            for part in self.trunk.iter().chain([&self.res5]) {
                part.buffers().reset();
            }
        }
    }

    fn parts(&self) -> impl Iterator<Item = &Traced<Part>> {
        self.frozen.iter().chain(&self.trunk).chain([&self.res5])
    }

    fn mode(&self, mode: Mode) -> Mode {
        match (self.norm, mode) {
            (C4Norm::Frozen, Mode::Train) => Mode::Frozen,
            (C4Norm::Frozen, Mode::Calibrate) => Mode::Eval,
            _ => mode,
        }
    }
}

/// All parameters and statistics, under torchvision's names; those of the extra norm begin with
/// `layer4.norm`.
impl Trainable for C4 {
    fn parameter_sets(&self) -> Vec<ParamSet> {
        self.parts().map(|part| part.params().clone()).collect()
    }

    fn buffer_sets(&self) -> Vec<Buffers> {
        self.parts().map(|part| part.buffers().clone()).collect()
    }
}

const EXTRA_NORM: &str = "layer4.norm";

fn check_shape(x: &Tensor, channels: usize, module: &str, expected: &str) -> Result<()> {
    match *x.dims() {
        [n, c, h, w] if n > 0 && c == channels && h > 0 && w > 0 => Ok(()),
        _ => Err(ModelError::Input {
            module: module.to_owned(),
            expected: expected.to_owned(),
            found: x.dims().to_vec(),
        }),
    }
}

/// Neighbouring parts of a ResNet, and the layers after the last.
struct Part {
    stem: Option<StemConv>,
    stages: Vec<Stage>,
    norm: Option<Norm>,
    average: bool,
}

impl Network for Part {
    fn returns_maps(&self) -> bool {
        !self.average
    }

    fn forward<E: Engine>(
        &self,
        engine: &mut E,
        x: &E::Value,
        _: &mut dyn FnMut(Layer, &E::Value),
    ) -> Result<E::Value> {
        let mut x = x.clone();
        if let Some(stem) = &self.stem {
            x = stem.forward(engine, &x)?;
            if stem.pool {
                x = engine.max_pool(&x)?;
            }
        }
        for stage in &self.stages {
            x = stage.forward(engine, x)?;
        }
        if let Some(norm) = &self.norm {
            x = engine.batch_norm(norm, &x, None, false)?;
        }
        if self.average {
            x = engine.average_pool(&x)?;
        }
        Ok(x)
    }
}
