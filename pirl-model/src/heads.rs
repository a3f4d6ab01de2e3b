//! Heads on a backbone during pre-training: the paper's f and g, and the classifiers of the covariant
//! baselines.

use std::sync::Arc;

use candle_core::{D, Device, Tensor};
use pirl_core::check;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::config::{HeadKind, ModelConfig};
use crate::engine::{Engine, Linear, Network, Norm, Traced};
use crate::error::{ModelError, Result};
use crate::layer::Layer;
use crate::mode::Mode;
use crate::params::{Buffers, Builder, ParamSet};
use crate::peers::Peers;
use crate::trainable::Trainable;

/// A network from feature vectors to embeddings or logits.
pub trait Head: Trainable {
    /// `features`: `(b * views, c)`, the views of an image in neighbouring rows. Returns
    /// `(b, outputs)`.
    ///
    /// # Errors
    /// [`ModelError::Input`] for another shape.
    fn forward(&self, features: &Tensor, mode: Mode) -> Result<Tensor>;
}

impl<T: Head + ?Sized> Head for Box<T> {
    fn forward(&self, features: &Tensor, mode: Mode) -> Result<Tensor> {
        (**self).forward(features, mode)
    }
}

/// Rows scaled to unit length, as `torch.nn.functional.normalize` does: `x / max(|x|, 1e-12)`.
///
/// `x`: `(b, d)`. A zero row stays zero.
///
/// # Errors
/// Only if Candle cannot compute it.
pub fn l2_normalize(x: &Tensor) -> Result<Tensor> {
    // The floor comes before the root: the root of 0 has an infinite slope.
    let squares = x.sqr()?.sum_keepdim(D::Minus1)?;
    let norm = squares.maximum(1e-24)?.sqrt()?;
    Ok(x.broadcast_div(&norm)?)
}

/// f of the paper, and g for a single view (rotation): `(b, c)` features to `(b, dim)` unit rows.
pub struct ProjectionHead(HeadModule);

/// g of the paper for patches: each patch's `(c)` features projected to `dim`, the patches joined in
/// the order given, and a linear layer to `dim`. `(b * patches, c)` to `(b, dim)` unit rows.
pub struct JigsawHead(HeadModule);

/// Logits of the covariant baselines: for one view a linear layer, for patches `c - 1000 - batch
/// norm - ReLU` on each, joined, and a linear layer. `(b * views, c)` to `(b, classes)`.
pub struct ClassifierHead(HeadModule);

/// Width of a patch's hidden layer in the covariant jigsaw (VISSL's `jigsaw_8gpu_resnet`).
const PATCH_HIDDEN: usize = 1000;

impl ProjectionHead {
    /// `config.head` chooses linear or MLP; `features` is the backbone's `feature_dim`.
    ///
    /// # Errors
    /// [`ModelError::Setting`] if a size is 0.
    pub fn new(
        config: &ModelConfig,
        features: usize,
        dim: usize,
        seed: u64,
        device: &Device,
    ) -> Result<Self> {
        let mut builder = builder(seed, 1);
        let each = Vec::new();
        let joined = match config.head {
            HeadKind::Linear => vec![Step::Linear(Linear::new(&mut builder, "fc", features, dim))],
            HeadKind::Mlp => vec![
                Step::Linear(Linear::new(&mut builder, "fc1", features, features)),
                Step::Relu,
                Step::Linear(Linear::new(&mut builder, "fc2", features, dim)),
            ],
        };
        let layers = HeadLayers {
            views: 1,
            features,
            each,
            joined,
        };
        HeadModule::new(
            "the projection head",
            layers,
            builder,
            true,
            dim,
            config,
            device,
        )
        .map(Self)
    }
}

impl JigsawHead {
    /// `config.head` chooses linear or MLP (`c - c - ReLU - dim - ReLU` on each patch).
    ///
    /// # Errors
    /// [`ModelError::Setting`] if a size is 0.
    pub fn new(
        config: &ModelConfig,
        features: usize,
        patches: usize,
        dim: usize,
        seed: u64,
        device: &Device,
    ) -> Result<Self> {
        let mut builder = builder(seed, 2);
        let each = match config.head {
            HeadKind::Linear => {
                vec![Step::Linear(Linear::new(
                    &mut builder,
                    "patch.fc",
                    features,
                    dim,
                ))]
            }
            HeadKind::Mlp => vec![
                Step::Linear(Linear::new(&mut builder, "patch.fc1", features, features)),
                Step::Relu,
                Step::Linear(Linear::new(&mut builder, "patch.fc2", features, dim)),
                Step::Relu,
            ],
        };
        let joined = vec![Step::Linear(Linear::new(
            &mut builder,
            "fc",
            patches * dim,
            dim,
        ))];
        let layers = HeadLayers {
            views: patches,
            features,
            each,
            joined,
        };
        HeadModule::new(
            "the jigsaw head",
            layers,
            builder,
            true,
            dim,
            config,
            device,
        )
        .map(Self)
    }
}

impl ClassifierHead {
    /// `views` of 1 gives the linear classifier, more the covariant jigsaw's.
    ///
    /// # Errors
    /// [`ModelError::Setting`] if a size is 0.
    pub fn new(
        config: &ModelConfig,
        features: usize,
        views: usize,
        classes: usize,
        seed: u64,
        device: &Device,
    ) -> Result<Self> {
        let mut builder = builder(seed, 3);
        let (each, joined) = if views == 1 {
            (Vec::new(), features)
        } else {
            let fc = Linear::new(&mut builder, "patch.fc", features, PATCH_HIDDEN);
            let bn = Norm::new(&mut builder, "patch.bn", PATCH_HIDDEN);
            (
                vec![Step::Linear(fc), Step::NormRelu(bn)],
                views * PATCH_HIDDEN,
            )
        };
        let joined = vec![Step::Linear(Linear::new(
            &mut builder,
            "fc",
            joined,
            classes,
        ))];
        let layers = HeadLayers {
            views,
            features,
            each,
            joined,
        };
        HeadModule::new(
            "the classifier",
            layers,
            builder,
            false,
            classes,
            config,
            device,
        )
        .map(Self)
    }
}

/// The heads of one seed draw from different streams of random numbers.
fn builder(seed: u64, stream: u64) -> Builder {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    Builder::new(rng)
}

enum Step {
    Linear(Linear),
    NormRelu(Norm),
    Relu,
}

/// Layers on each view, then layers on the joined views.
struct HeadLayers {
    views: usize,
    features: usize,
    each: Vec<Step>,
    joined: Vec<Step>,
}

impl Step {
    fn forward<E: Engine>(&self, engine: &mut E, x: &E::Value) -> Result<E::Value> {
        match self {
            Self::Linear(layer) => engine.linear(layer, x),
            Self::NormRelu(layer) => engine.batch_norm(layer, x, None, true),
            Self::Relu => engine.relu(x),
        }
    }
}

impl Network for HeadLayers {
    fn forward<E: Engine>(
        &self,
        engine: &mut E,
        features: &E::Value,
        _: &mut dyn FnMut(Layer, &E::Value),
    ) -> Result<E::Value> {
        let mut x = features.clone();
        for step in &self.each {
            x = step.forward(engine, &x)?;
        }
        x = engine.join(&x, self.views)?;
        for step in &self.joined {
            x = step.forward(engine, &x)?;
        }
        Ok(x)
    }
}

/// A head's network with its name and whether its output is normalised.
struct HeadModule {
    name: &'static str,
    normalize: bool,
    traced: Traced<HeadLayers>,
}

impl HeadModule {
    fn new(
        name: &'static str,
        layers: HeadLayers,
        builder: Builder,
        normalize: bool,
        outputs: usize,
        config: &ModelConfig,
        device: &Device,
    ) -> Result<Self> {
        for (argument, size) in [
            ("views", layers.views),
            ("features", layers.features),
            ("outputs", outputs),
        ] {
            let expected = format!("must be at least 1 in {name}");
            check(argument, size, size > 0, &expected)?;
        }
        let traced = Traced::new(layers, builder, config.ops, config.winograd, device)?;
        Ok(Self {
            name,
            normalize,
            traced,
        })
    }

    fn forward(&self, features: &Tensor, mode: Mode) -> Result<Tensor> {
        let layers = self.traced.network();
        match *features.dims() {
            [rows, c] if rows > 0 && rows % layers.views == 0 && c == layers.features => {}
            _ => {
                return Err(ModelError::Input {
                    module: self.name.to_owned(),
                    expected: format!(
                        "features of shape (batch * {}, {})",
                        layers.views, layers.features
                    ),
                    found: features.dims().to_vec(),
                });
            }
        }
        let out = self.traced.forward(features, mode)?;
        if self.normalize {
            l2_normalize(&out)
        } else {
            Ok(out)
        }
    }
}

macro_rules! head {
    ($($name:ident),*) => {$(
        impl Head for $name {
            fn forward(&self, features: &Tensor, mode: Mode) -> Result<Tensor> {
                self.0.forward(features, mode)
            }

        }

        impl $name {
            /// Its parameters, all in one flat tensor.
            pub fn parameters(&self) -> &ParamSet {
                self.0.traced.params()
            }

            /// The statistics of its batch norms.
            pub fn buffers(&self) -> &Buffers {
                self.0.traced.buffers()
            }
        }

        impl Trainable for $name {
            fn parameter_sets(&self) -> Vec<ParamSet> {
                vec![self.parameters().clone()]
            }

            fn buffer_sets(&self) -> Vec<Buffers> {
                vec![self.buffers().clone()]
            }

            fn sync_batch_norm(&self, peers: Arc<dyn Peers>) -> Result<()> {
                self.0.traced.sync_batch_norm(peers);
                Ok(())
            }
        }
    )*};
}

head!(ProjectionHead, JigsawHead, ClassifierHead);
