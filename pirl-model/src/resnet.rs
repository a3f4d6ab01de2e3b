//! ResNets with torchvision's structure, names and initialisation.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use crate::config::{ModelConfig, Precision};
use crate::engine::{Engine, Network, Traced};
use crate::error::{ModelError, Result};
use crate::mode::Mode;
use crate::params::{Buffers, Builder, ParamSet};
use crate::residual::{Stage, Stem, stage_channels};
use crate::weights::{self, LoadReport};

/// A place inside a backbone whose maps a probe can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layer {
    /// The stem's convolution, after batch norm and ReLU, before any pooling.
    Conv1,
    /// Torchvision's `layer1`.
    Res2,
    /// Torchvision's `layer2`.
    Res3,
    /// Torchvision's `layer3`.
    Res4,
    /// Torchvision's `layer4`.
    Res5,
    /// The average of [`Layer::Res5`]: torchvision's `avgpool`, a map of one pixel.
    Res5Avg,
}

impl Layer {
    /// Every layer, from the image upwards.
    pub const ALL: [Self; 6] = [
        Self::Conv1,
        Self::Res2,
        Self::Res3,
        Self::Res4,
        Self::Res5,
        Self::Res5Avg,
    ];
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Conv1 => "conv1",
            Self::Res2 => "res2",
            Self::Res3 => "res3",
            Self::Res4 => "res4",
            Self::Res5 => "res5",
            Self::Res5Avg => "res5avg",
        })
    }
}

impl FromStr for Layer {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL
            .into_iter()
            .find(|layer| layer.to_string() == name);
        found.ok_or_else(|| ModelError::Config {
            key: "layer",
            value: name.to_owned(),
            expected: "must be conv1, res2, res3, res4, res5 or res5avg".to_owned(),
        })
    }
}

/// A network from images to feature vectors.
pub trait Backbone: Send + Sync {
    /// Length of a feature vector.
    fn feature_dim(&self) -> usize;

    /// `images`: `(b, 3, h, w)`. Returns `(b, feature_dim)`, the average-pooled last maps.
    ///
    /// # Errors
    /// [`ModelError::Input`] for another shape; [`ModelError::SingleValue`] if batch statistics
    /// are asked of a single value.
    fn forward(&self, images: &Tensor, mode: Mode) -> Result<Tensor>;

    /// The maps of `layers` in evaluation mode, without gradient, from the image upwards:
    /// `(b, c, h, w)` tensors, which may be strided views.
    ///
    /// # Errors
    /// As [`Backbone::forward`].
    fn feature_maps(&self, images: &Tensor, layers: &[Layer]) -> Result<Vec<(Layer, Tensor)>>;

    /// The trainable parameters.
    fn parameters(&self) -> &ParamSet;

    /// The batch-norm statistics.
    fn buffers(&self) -> &Buffers;
}

/// A ResNet without its classifier.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use pirl_model::{Arch, Backbone, Mode, ModelConfig, ResNet, Stem};
///
/// let config = ModelConfig { arch: Arch::Resnet18, width: 0.25, stem: Stem::Small, ..Default::default() };
/// let network = ResNet::new(&config, 0, &Device::Cpu)?;
/// let images = Tensor::zeros((2, 3, 16, 16), DType::F32, &Device::Cpu)?;
/// assert_eq!(network.forward(&images, Mode::Eval)?.dims(), [2, 128]);
/// # Ok::<(), pirl_model::ModelError>(())
/// ```
pub struct ResNet {
    traced: Traced<Plan>,
    config: ModelConfig,
}

impl ResNet {
    /// An untrained network; the same `seed` gives the same weights.
    ///
    /// # Errors
    /// [`ModelError::Config`] for a width out of range.
    pub fn new(config: &ModelConfig, seed: u64, device: &Device) -> Result<Self> {
        let mut builder = Builder::new(ChaCha8Rng::seed_from_u64(seed));
        let plan = Plan::new(config, &mut builder)?;
        Ok(Self {
            traced: Traced::new(plan, builder, config.ops, device)?,
            config: config.clone(),
        })
    }

    /// What it was built from.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The network with activations stored in `precision`: those of [`Backbone::forward`], in every
    /// mode; [`Backbone::feature_maps`] are always computed in `f32`, the default.
    ///
    /// # Errors
    /// [`ModelError::Config`] for another than `f32` without this crate's fast ops.
    pub fn with_precision(mut self, precision: Precision) -> Result<Self> {
        self.traced.set_precision(precision)?;
        Ok(self)
    }

    /// Takes the weights and statistics of a torchvision state dict. Entries the network does not
    /// have (such as `fc.weight`) are reported, not loaded; what the dict lacks keeps its value.
    ///
    /// # Errors
    /// [`ModelError::WrongShape`], before anything is loaded.
    pub fn load(&self, state: &HashMap<String, Tensor>) -> Result<LoadReport> {
        weights::load_into(state, self.traced.params(), self.traced.buffers())
    }

    fn check(&self, images: &Tensor) -> Result<()> {
        match *images.dims() {
            [b, 3, h, w] if b > 0 && h > 0 && w > 0 => Ok(()),
            _ => Err(ModelError::Input {
                module: "the backbone".to_owned(),
                expected: "images of shape (batch, 3, height, width), none of them 0".to_owned(),
                found: images.dims().to_vec(),
            }),
        }
    }
}

impl Backbone for ResNet {
    fn feature_dim(&self) -> usize {
        self.traced.network().features
    }

    fn forward(&self, images: &Tensor, mode: Mode) -> Result<Tensor> {
        self.check(images)?;
        self.traced.forward(images, mode)
    }

    fn feature_maps(&self, images: &Tensor, layers: &[Layer]) -> Result<Vec<(Layer, Tensor)>> {
        self.check(images)?;
        self.traced.maps(images, layers)
    }

    fn parameters(&self) -> &ParamSet {
        self.traced.params()
    }

    fn buffers(&self) -> &Buffers {
        self.traced.buffers()
    }
}

/// The structure of a ResNet.
struct Plan {
    stem: Stem,
    stages: [Stage; 4],
    features: usize,
}

impl Plan {
    fn new(config: &ModelConfig, builder: &mut Builder) -> Result<Self> {
        let stem = Stem::new(config, builder)?;
        let mut stage = |index| Stage::new(config, index, builder);
        Ok(Self {
            stem,
            stages: [stage(0)?, stage(1)?, stage(2)?, stage(3)?],
            features: stage_channels(config, 3)?,
        })
    }
}

impl Network for Plan {
    fn forward<E: Engine>(
        &self,
        engine: &mut E,
        images: &E::Value,
        show: &mut dyn FnMut(Layer, &E::Value),
    ) -> Result<E::Value> {
        let mut x = self.stem.forward(engine, images)?;
        show(Layer::Conv1, &x);
        if self.stem.pool {
            x = engine.max_pool(&x)?;
        }
        let layers = [Layer::Res2, Layer::Res3, Layer::Res4, Layer::Res5];
        for (layer, stage) in layers.into_iter().zip(&self.stages) {
            x = stage.forward(engine, x)?;
            show(layer, &x);
        }
        let average = engine.average_pool(&x)?;
        show(Layer::Res5Avg, &average);
        Ok(average)
    }
}
