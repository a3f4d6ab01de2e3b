//! ResNets with torchvision's structure, names and initialisation.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::backbone::{Backbone, check_layers};
use crate::config::{ModelConfig, Precision};
use crate::engine::{Engine, Network, Traced};
use crate::error::{ModelError, Result};
use crate::layer::Layer;
use crate::mode::Mode;
use crate::params::{Buffers, Builder, ParamSet};
use crate::peers::Peers;
use crate::residual::{Stage, StemConv, stage_channels};
use crate::trainable::Trainable;

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
    traced: Traced<ResNetLayers>,
    config: ModelConfig,
}

impl ResNet {
    /// An untrained network; the same `seed` gives the same weights.
    ///
    /// # Errors
    /// [`ModelError::Setting`] for a width or a number of channels out of range.
    pub fn new(config: &ModelConfig, seed: u64, device: &Device) -> Result<Self> {
        let mut builder = Builder::new(ChaCha8Rng::seed_from_u64(seed));
        let layers = ResNetLayers::new(config, &mut builder)?;
        Ok(Self {
            traced: Traced::new(layers, builder, config.ops, config.winograd, device)?,
            config: config.clone(),
        })
    }

    /// The network of `config` with the weights and statistics that `vb` holds under torchvision's
    /// names, on its device: those of a safetensors file, for instance, for any program of Candle's.
    ///
    /// ```no_run
    /// use candle_core::{DType, Device};
    /// use candle_nn::VarBuilder;
    /// use pirl_model::{ModelConfig, ResNet};
    ///
    /// // SAFETY: nobody writes to the file meanwhile.
    /// let vb = unsafe {
    ///     VarBuilder::from_mmaped_safetensors(&["resnet50.safetensors"], DType::F32, &Device::Cpu)?
    /// };
    /// let backbone = ResNet::from_var_builder(&ModelConfig::default(), vb)?;
    /// # Ok::<(), pirl_model::ModelError>(())
    /// ```
    ///
    /// # Errors
    /// [`ModelError::Setting`] for a width out of range; [`ModelError::Candle`] for a tensor that is
    /// missing or of another shape. `num_batches_tracked` may be missing.
    pub fn from_var_builder(config: &ModelConfig, vb: VarBuilder<'_>) -> Result<Self> {
        let network = Self::new(config, 0, vb.device())?;
        for param in network.parameters().params() {
            let value = vb.get(param.shape.as_slice(), &param.name)?;
            network.parameters().set(&param.name, &value)?;
        }
        for (name, shape) in network.buffers().names() {
            let counts = name.ends_with(".num_batches_tracked");
            if counts && !vb.contains_tensor(&name) {
                continue;
            }
            let value = vb.get(shape.as_slice(), &name)?;
            network.buffers().set(&name, &value)?;
        }
        Ok(network)
    }

    /// Its weights and statistics under torchvision's names, to build another network of Candle's
    /// from, such as `candle_transformers`' ResNet; [`Trainable::state`] has them as tensors.
    ///
    /// # Errors
    /// Only if Candle cannot copy a tensor.
    pub fn var_builder(&self) -> Result<VarBuilder<'static>> {
        let state = self.state()?;
        Ok(VarBuilder::from_tensors(state, DType::F32, &self.device()))
    }

    /// What it was built from.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The network with activations stored in `precision`; see [`Backbone::set_precision`].
    ///
    /// # Errors
    /// [`ModelError::Setting`] for another than `f32` without this crate's fast ops.
    pub fn with_precision(mut self, precision: Precision) -> Result<Self> {
        self.set_precision(precision)?;
        Ok(self)
    }

    /// Its parameters, all in one flat tensor.
    pub fn parameters(&self) -> &ParamSet {
        self.traced.params()
    }

    /// The statistics of its batch norms.
    pub fn buffers(&self) -> &Buffers {
        self.traced.buffers()
    }

    /// What it does, by an engine that writes it down rather than computing it.
    pub(crate) fn record<E: Engine>(
        &self,
        engine: &mut E,
        images: &E::Value,
        show: &mut dyn FnMut(Layer, &E::Value),
    ) -> Result<E::Value> {
        self.traced.network().forward(engine, images, show)
    }

    fn check(&self, images: &Tensor) -> Result<()> {
        let channels = self.config.channels;
        match *images.dims() {
            [b, c, h, w] if c == channels && b > 0 && h > 0 && w > 0 => Ok(()),
            _ => Err(ModelError::Input {
                module: "the backbone".to_owned(),
                expected: format!(
                    "images of shape (batch, {channels}, height, width), none of them 0"
                ),
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

    fn layers(&self) -> Vec<Layer> {
        let mut layers = vec![Layer::CONV1];
        layers.extend(STAGES);
        layers.push(Layer::RES5_AVG);
        layers
    }

    fn feature_maps(&self, images: &Tensor, layers: &[Layer]) -> Result<Vec<(Layer, Tensor)>> {
        self.check(images)?;
        check_layers(layers, &self.layers())?;
        self.traced.maps(images, layers)
    }

    fn set_precision(&mut self, precision: Precision) -> Result<()> {
        self.traced.set_precision(precision)
    }
}

impl Trainable for ResNet {
    fn parameter_sets(&self) -> Vec<ParamSet> {
        vec![self.parameters().clone()]
    }

    fn buffer_sets(&self) -> Vec<Buffers> {
        vec![self.buffers().clone()]
    }

    fn sync_batch_norm(&self, peers: Arc<dyn Peers>) -> Result<()> {
        self.traced.sync_batch_norm(peers);
        Ok(())
    }
}

/// Parameters of the network of `config`, batch norms' included.
pub(crate) fn parameter_count(config: &ModelConfig) -> Result<usize> {
    Builder::count(|builder| ResNetLayers::new(config, builder).map(drop))
}

/// The outputs of the four stages.
const STAGES: [Layer; 4] = [Layer::RES2, Layer::RES3, Layer::RES4, Layer::RES5];

/// The structure of a ResNet.
struct ResNetLayers {
    stem: StemConv,
    stages: [Stage; 4],
    features: usize,
}

impl ResNetLayers {
    fn new(config: &ModelConfig, builder: &mut Builder) -> Result<Self> {
        let stem = StemConv::new(config, builder)?;
        let mut stage = |index| Stage::new(config, index, builder);
        Ok(Self {
            stem,
            stages: [stage(0)?, stage(1)?, stage(2)?, stage(3)?],
            features: stage_channels(config, 3)?,
        })
    }
}

impl Network for ResNetLayers {
    fn forward<E: Engine>(
        &self,
        engine: &mut E,
        images: &E::Value,
        show: &mut dyn FnMut(Layer, &E::Value),
    ) -> Result<E::Value> {
        let mut x = self.stem.forward(engine, images)?;
        show(Layer::CONV1, &x);
        if self.stem.pool {
            x = engine.max_pool(&x)?;
        }
        for (layer, stage) in STAGES.into_iter().zip(&self.stages) {
            x = stage.forward(engine, x)?;
            show(layer, &x);
        }
        let average = engine.average_pool(&x)?;
        show(Layer::RES5_AVG, &average);
        Ok(average)
    }
}
