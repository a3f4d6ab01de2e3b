//! Training ops, ResNets, heads, optimisers and weights of PIRL.
//!
//! A [`ResNet`] turns images into features, a [`Head`] turns features into embeddings, and an
//! [`Optimizer`] moves both along a [`Schedule`]. Parameters of a module lie in one flat variable
//! ([`ParamSet`]); a whole module is one node of Candle's graph with a forward and backward pass of
//! its own, on a CPU made of the kernels in [`ops`], on a CUDA device of this crate's ops for its
//! tensors. Elsewhere, and for comparison, it is composed of Candle's own differentiable ops.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use pirl_model::{
//!     Arch, Backbone, Head, Mode, ModelConfig, OptimConfig, Optimizer, ProjectionHead, ResNet, Stem,
//! };
//!
//! let config = ModelConfig { arch: Arch::Resnet18, width: 0.25, stem: Stem::Small, ..Default::default() };
//! let device = Device::Cpu;
//! let backbone = ResNet::new(&config, 0, &device)?;
//! let head = ProjectionHead::new(&config, backbone.feature_dim(), 32, 0, &device)?;
//! let sets = vec![backbone.parameters().clone(), head.parameters().clone()];
//! let mut optimizer = Optimizer::new(&OptimConfig::default(), sets)?;
//!
//! let images = Tensor::randn(0f32, 1.0, (4, 3, 16, 16), &device)?;
//! let features = backbone.forward(&images, Mode::Train)?;
//! let embeddings = head.forward(&features, Mode::Train)?;
//! let loss = embeddings.narrow(1, 0, 1)?.mean_all()?;
//! optimizer.backward(&loss)?;
//! optimizer.step(0.1)?;
//!
//! let moved = head.forward(&backbone.forward(&images, Mode::Train)?, Mode::Eval)?;
//! assert!(moved.narrow(1, 0, 1)?.mean_all()?.to_scalar::<f32>()? < loss.to_scalar::<f32>()?);
//! # Ok::<(), pirl_model::ModelError>(())
//! ```

mod backbone;
mod c4;
mod config;
#[cfg(feature = "cuda")]
pub mod cuda;
mod engine;
mod error;
mod export;
mod heads;
mod layer;
mod mode;
mod onnx;
pub mod ops;
mod optim;
mod params;
mod peers;
mod precise;
mod residual;
mod resnet;
mod single_op;
mod trainable;
mod upload;
mod weights;

pub use backbone::Backbone;
pub use c4::{C4, C4Config, C4Norm};
pub use config::{Arch, BatchNorm, HeadKind, ModelConfig, Precision, Stem};
pub use error::ModelError;
pub use export::{Export, ExportView, Exporter, exporter, exporters};
pub use heads::{ClassifierHead, Head, JigsawHead, ProjectionHead, l2_normalize};
pub use layer::Layer;
pub use mode::Mode;
pub use ops::conv2d::Winograd;
pub use optim::{
    GradientSum, LossScale, OptimConfig, OptimKind, Optimizer, Schedule, ScheduleConfig,
    ScheduleKind,
};
pub use params::{Buffers, GradientWatch, Param, ParamSet};
pub use peers::Peers;
pub use pirl_core::Ops;
pub use precise::precise_batch_norm;
pub use resnet::ResNet;
pub use single_op::SingleOp;
pub use trainable::Trainable;
pub use upload::Upload;
pub use weights::load::LoadReport;
pub use weights::{
    BackboneWeights, Filled, load_state_dict, read_backbone, read_backbone_under, save_backbone,
    save_state_dict, save_tensors, state_dict, strip_prefix,
};
