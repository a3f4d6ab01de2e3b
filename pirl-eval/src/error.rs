//! What can go wrong in an evaluation.

use std::path::PathBuf;

use pirl_core::SettingError;
use pirl_data::DataError;
use pirl_model::{Layer, ModelError};
use pirl_train::TrainError;

/// A result, with this crate's error unless another is named.
pub type Result<T, E = EvalError> = std::result::Result<T, E>;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// Reading or decoding images failed.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The backbone refused a batch.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A training went wrong, or its checkpoint does not fit.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// Reading a feature map failed.
    #[error("cannot read the feature maps: {0}")]
    Tensor(#[from] candle_core::Error),
    /// A sample has no label, and a probe needs one.
    #[error(
        "sample {index} of the {set} set has no label; a probe needs packs made from labelled \
         images (class sub-folders, or a list with labels)"
    )]
    Unlabelled {
        /// "training" or "test".
        set: &'static str,
        /// The first such sample.
        index: usize,
    },
    /// The packs have one class, which any answer gets right.
    #[error(
        "the packs have one class, {name:?}, and every answer would be right: were they packed from a \
         folder around the folders of classes?"
    )]
    OneClass {
        /// Its name.
        name: String,
    },
    /// A label outside the list of classes.
    #[error("sample {index} has label {label}, but there are {classes} classes")]
    Label {
        /// The sample.
        index: usize,
        /// Its label.
        label: u32,
        /// Labels allowed are `0..classes`.
        classes: usize,
    },
    /// The two packs do not number the same classes.
    #[error(
        "the training pack's classes are {train}, the test pack's {test}; pack both from folders \
         with the same class names"
    )]
    Classes {
        /// How many, and the first that differs.
        train: String,
        /// How many, and the first that differs.
        test: String,
    },
    /// Training and test features are not of the same layers and sizes.
    #[error("the training features are {train}, the test features {test}")]
    Layers {
        /// Layers and dimensions.
        train: String,
        /// Layers and dimensions.
        test: String,
    },
    /// A table of features that is not rectangular, or a set without samples, layers or classes.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// The table.
        what: String,
        /// Sizes needed.
        expected: String,
        /// Sizes found.
        found: String,
    },
    /// A feature that is infinite or not a number.
    #[error("{layer}: feature {column} of sample {row} is {value}; did pre-training diverge?")]
    NotFinite {
        /// The layer.
        layer: Layer,
        /// The sample.
        row: usize,
        /// The feature.
        column: usize,
        /// Its value.
        value: f32,
    },
    /// A setting has a value that cannot work.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// Rank 0 reads the features of other images than this rank has.
    #[error(
        "rank 0 reads images that rank {rank} does not have, or by other settings: give all ranks the same packs \
         and settings"
    )]
    OtherImages {
        /// This rank.
        rank: usize,
    },
    /// No protocol is published for this.
    #[error(
        "there are no published settings for {protocol} on {dataset}; choose them yourself instead"
    )]
    NoProtocol {
        /// The data set.
        dataset: &'static str,
        /// The evaluation.
        protocol: String,
    },
    /// A name that no data set has.
    #[error("no published data set is called {name:?}; there are {known}")]
    NoDataset {
        /// The name.
        name: String,
        /// All names.
        known: String,
    },
    /// Too few images show a class.
    #[error(
        "class {class:?} is in {found} images of the {set} set, and at least {least} are needed; \
         leave the class out of both packs, or add images of it"
    )]
    NoPositives {
        /// Its name.
        class: String,
        /// "training" or "test".
        set: &'static str,
        /// Images that show it.
        found: usize,
        /// Images needed.
        least: usize,
    },
    /// Features do not fit into memory or on the disk.
    #[error(
        "the features need {needed} MiB {place}, where {free} are free; read fewer layers, average \
         each map to one vector, or use a smaller pack"
    )]
    Memory {
        /// "in memory", or "in" a folder.
        place: String,
        /// MiB needed.
        needed: u64,
        /// MiB free.
        free: u64,
    },
    /// At every learning rate the weights left the finite numbers.
    #[error("{layer}: the probe diverged at every learning rate of {lrs:?}; try smaller ones")]
    Diverged {
        /// The layer.
        layer: Layer,
        /// The rates tried.
        lrs: Vec<f64>,
    },
    /// A pack for detection without a single object to find.
    #[error(
        "none of the {images} images of the {set} set has an annotated object; pack a detection \
         data set, as with `pirl data pack --format voc`"
    )]
    NoObjects {
        /// "training" or "test".
        set: &'static str,
        /// Images in the pack.
        images: usize,
    },
    /// A list of labelled images cannot be used.
    #[error("line {line}: {reason}")]
    LabelList {
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of features cannot be written in the format of its ending.
    #[error("{path}: {reason}")]
    EmbedFile {
        /// The file.
        path: PathBuf,
        /// What it cannot hold, and the way out.
        reason: String,
    },
    /// A file of features, or the folder for them, cannot be written.
    #[error("cannot write {path}: {reason}")]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        reason: String,
    },
}
