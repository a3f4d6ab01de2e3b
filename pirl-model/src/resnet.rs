//! ResNets with torchvision's structure, names and initialisation.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use crate::config::{ModelConfig, Stem};
use crate::engine::{Conv, Engine, Network, Norm, Traced};
use crate::error::{ModelError, Result};
use crate::mode::Mode;
use crate::params::{Buffers, Builder, ParamSet};
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
}

impl Layer {
    /// Every layer, from the image upwards.
    pub const ALL: [Self; 5] = [Self::Conv1, Self::Res2, Self::Res3, Self::Res4, Self::Res5];
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Conv1 => "conv1",
            Self::Res2 => "res2",
            Self::Res3 => "res3",
            Self::Res4 => "res4",
            Self::Res5 => "res5",
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
            expected: "must be conv1, res2, res3, res4 or res5".to_owned(),
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

    /// The maps of every [`Layer`] in evaluation mode, without gradient: `(b, c, h, w)` tensors,
    /// which may be strided views.
    ///
    /// # Errors
    /// As [`Backbone::forward`].
    fn feature_maps(&self, images: &Tensor) -> Result<Vec<(Layer, Tensor)>>;

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
        })
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

    fn feature_maps(&self, images: &Tensor) -> Result<Vec<(Layer, Tensor)>> {
        self.check(images)?;
        self.traced.maps(images)
    }

    fn parameters(&self) -> &ParamSet {
        self.traced.params()
    }

    fn buffers(&self) -> &Buffers {
        self.traced.buffers()
    }
}

/// A convolution and its batch norm.
struct Unit {
    conv: Conv,
    norm: Norm,
}

/// A residual block: the units of its branch, and the projection of its shortcut, if it has one.
struct Block {
    branch: Vec<Unit>,
    shortcut: Option<Unit>,
}

/// The structure of a ResNet.
struct Plan {
    stem: Unit,
    pool: bool,
    stages: [Vec<Block>; 4],
    features: usize,
}

impl Plan {
    fn new(config: &ModelConfig, builder: &mut Builder) -> Result<Self> {
        let width = config.stem_channels()?;
        let (kernel, stride) = match config.stem {
            Stem::Imagenet => (7, 2),
            Stem::Small => (3, 1),
        };
        let stem = Unit {
            conv: Conv::new(builder, "conv1", (3, width), kernel, stride),
            norm: Norm::new(builder, "bn1", width),
        };
        let mut c_in = width;
        let blocks = config.arch.blocks();
        let stages = std::array::from_fn(|stage| {
            let planes = width << stage;
            let build = |block: usize| {
                let stride = if block == 0 && stage > 0 { 2 } else { 1 };
                let name = format!("layer{}.{block}", stage + 1);
                let (block, c_out) = if config.arch.bottleneck() {
                    (bottleneck(builder, &name, c_in, planes, stride), planes * 4)
                } else {
                    (basic(builder, &name, c_in, planes, stride), planes)
                };
                c_in = c_out;
                block
            };
            (0..blocks[stage]).map(build).collect()
        });
        Ok(Self {
            stem,
            pool: config.stem == Stem::Imagenet,
            stages,
            features: c_in,
        })
    }
}

/// Unit `index` of a block, counted from 1 as torchvision does.
fn unit(
    builder: &mut Builder,
    block: &str,
    index: usize,
    channels: (usize, usize),
    kernel: usize,
    stride: usize,
) -> Unit {
    Unit {
        conv: Conv::new(
            builder,
            &format!("{block}.conv{index}"),
            channels,
            kernel,
            stride,
        ),
        norm: Norm::new(builder, &format!("{block}.bn{index}"), channels.1),
    }
}

/// The shortcut's projection, needed where the shape changes.
fn projection(
    builder: &mut Builder,
    block: &str,
    channels: (usize, usize),
    stride: usize,
) -> Option<Unit> {
    (stride != 1 || channels.0 != channels.1).then(|| Unit {
        conv: Conv::new(
            builder,
            &format!("{block}.downsample.0"),
            channels,
            1,
            stride,
        ),
        norm: Norm::new(builder, &format!("{block}.downsample.1"), channels.1),
    })
}

fn basic(builder: &mut Builder, name: &str, c_in: usize, planes: usize, stride: usize) -> Block {
    Block {
        branch: vec![
            unit(builder, name, 1, (c_in, planes), 3, stride),
            unit(builder, name, 2, (planes, planes), 3, 1),
        ],
        shortcut: projection(builder, name, (c_in, planes), stride),
    }
}

/// The stride is in the 3x3 convolution, as in torchvision.
fn bottleneck(
    builder: &mut Builder,
    name: &str,
    c_in: usize,
    planes: usize,
    stride: usize,
) -> Block {
    let c_out = planes * 4;
    Block {
        branch: vec![
            unit(builder, name, 1, (c_in, planes), 1, 1),
            unit(builder, name, 2, (planes, planes), 3, stride),
            unit(builder, name, 3, (planes, c_out), 1, 1),
        ],
        shortcut: projection(builder, name, (c_in, c_out), stride),
    }
}

impl Unit {
    fn forward<E: Engine>(
        &self,
        engine: &mut E,
        x: &E::Value,
        residual: Option<&E::Value>,
        relu: bool,
    ) -> Result<E::Value> {
        let x = engine.conv2d(&self.conv, x)?;
        engine.batch_norm(&self.norm, &x, residual, relu)
    }
}

impl Block {
    fn forward<E: Engine>(&self, engine: &mut E, x: E::Value) -> Result<E::Value> {
        let shortcut = match &self.shortcut {
            Some(unit) => unit.forward(engine, &x, None, false)?,
            None => x.clone(),
        };
        let mut x = x;
        for (i, unit) in self.branch.iter().enumerate() {
            let residual = (i + 1 == self.branch.len()).then_some(&shortcut);
            x = unit.forward(engine, &x, residual, true)?;
        }
        Ok(x)
    }
}

impl Network for Plan {
    fn forward<E: Engine>(
        &self,
        engine: &mut E,
        images: &E::Value,
        show: &mut dyn FnMut(Layer, &E::Value),
    ) -> Result<E::Value> {
        let mut x = self.stem.forward(engine, images, None, true)?;
        show(Layer::Conv1, &x);
        if self.pool {
            x = engine.max_pool(&x)?;
        }
        let layers = [Layer::Res2, Layer::Res3, Layer::Res4, Layer::Res5];
        for (layer, stage) in layers.into_iter().zip(&self.stages) {
            for block in stage {
                x = block.forward(engine, x)?;
            }
            show(layer, &x);
        }
        engine.average_pool(&x)
    }
}
