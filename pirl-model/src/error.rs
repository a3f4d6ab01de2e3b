//! What can go wrong in a model, its optimiser or its weights.

use std::path::PathBuf;

use pirl_core::SettingError;

use crate::layer::Layer;

/// A result, with this crate's error unless another is named.
pub(crate) type Result<T, E = ModelError> = std::result::Result<T, E>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A setting has a value that cannot work.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// A layer that the backbone does not have.
    #[error("the backbone has no layer {layer}; it has {}", names(known))]
    NoLayer {
        /// The layer asked for.
        layer: Layer,
        /// Those there are.
        known: Vec<Layer>,
    },
    /// A module was given a tensor of another shape.
    #[error("{module} needs {expected}, found shape {found:?}")]
    Input {
        /// The module.
        module: String,
        /// What it takes.
        expected: String,
        /// What it was given.
        found: Vec<usize>,
    },
    /// Batch norm in training needs more than one value a channel.
    #[error(
        "{layer}: batch norm saw a single value per channel; use a larger batch or larger images"
    )]
    SingleValue {
        /// The layer.
        layer: String,
    },
    /// Another part of the batch, whose batch norms are synced with these, failed.
    #[error(transparent)]
    Peers(Box<dyn std::error::Error + Send + Sync>),
    /// Batch-norm statistics were to be recomputed from no images at all.
    #[error("no batch of images to recompute batch-norm statistics from")]
    NoBatches,
    /// A tensor that a state dict should have, or that a module does not know.
    #[error("no tensor is named {name:?}{hint}")]
    UnknownTensor {
        /// The name.
        name: String,
        /// More about it, or nothing.
        hint: String,
    },
    /// The weights of a file are of another network.
    #[error("these are weights of {file}, but the network is {network}; set those keys alike")]
    OtherNetwork {
        /// The network of the file.
        file: String,
        /// The network to be filled.
        network: String,
    },
    /// A tensor of a state dict does not fit the network.
    #[error("{name}: expected shape {expected:?}, found {found:?}{hint}")]
    WrongShape {
        /// Name of the tensor.
        name: String,
        /// Shape that the network needs.
        expected: Vec<usize>,
        /// Shape in the state dict.
        found: Vec<usize>,
        /// Which network the state dict looks like, or nothing.
        hint: String,
    },
    /// A state dict lacks tensors of the network.
    #[error("{count} of the network's tensors are not in it, {first} the first")]
    Missing {
        /// How many.
        count: usize,
        /// The first of them.
        first: String,
    },
    /// A state dict has tensors of something else.
    #[error("{count} of its tensors do not belong to the network, {first} the first")]
    Unexpected {
        /// How many.
        count: usize,
        /// The first of them.
        first: String,
    },
    /// A file of weights cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file is not what safetensors writes.
    #[error("{path}: not a whole safetensors file: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// A file is not what `torch.save` writes of a state dict.
    #[error(
        "{path}: {reason}; if you trust the file, load it in Python and save its state dict with \
         safetensors.torch.save_file"
    )]
    Pth {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// A file is not the ONNX export of a ResNet.
    #[error("{path}: {reason}")]
    Onnx {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        reason: String,
    },
    /// A format cannot hold a network.
    #[error(
        "{format} cannot hold a network of {network}: {reason}; --format torchvision holds any network"
    )]
    NotExportable {
        /// The format.
        format: &'static str,
        /// The network, by its keys in a recipe.
        network: String,
        /// What the format has instead.
        reason: String,
    },
    /// A file of weights does not hold one backbone of this crate's.
    #[error("{path}: {reason}")]
    NoBackbone {
        /// The file.
        path: PathBuf,
        /// What it holds instead.
        reason: String,
    },
    /// A weight is NaN or infinite: the training that saved it had failed.
    #[error(
        "{path}: {name} holds numbers that are NaN or infinite; take a checkpoint from before its \
         training failed"
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// An error of Candle.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

fn names(layers: &[Layer]) -> String {
    let names: Vec<&str> = layers.iter().map(Layer::as_str).collect();
    names.join(", ")
}

impl From<ModelError> for candle_core::Error {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::Candle(error) => error,
            error => Self::wrap(error),
        }
    }
}
