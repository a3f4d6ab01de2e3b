//! Evaluations of a backbone: probes of frozen features, fine-tuning, and Faster R-CNN.
//!
//! The features of a labelled training and a labelled test pack are extracted once
//! ([`extract_features`]) and every [`Probe`] then works on the two [`FeatureSet`]s:
//! [`LinearProbe`] trains softmax classifiers on each layer, [`Knn`] lets the nearest training
//! images vote. What they choose (a layer, a learning rate, a number of neighbours) is chosen on a
//! held-out part of the training images. [`BaselineInputs`] runs the same probe on raw pixels and on
//! the untrained network, without which an accuracy says little. [`RandomCropProbe`] is the linear
//! probe as published, on new random crops in each epoch, whose features are computed for each batch
//! anew. [`LowShot`] learns from a few labels of each class, in several draws. None changes the backbone, so a probe
//! measures the representation alone. [`Svm`] does the same for images that show several classes, given
//! as a [`Presence`]. [`Finetune`] trains the backbone too, on all labels or on a [`LabelSubset`], and
//! [`detect`] makes it the trunk of a detector.
//!
//! Two analyses are for people to look at: [`nearest_neighbours`] finds similar images, and
//! [`invariance()`] measures how far a change of an image moves its features. [`embed()`] writes the features
//! of a pack to a file for other programs; [`Embedder`] has the embeddings of the head f among its layers.
//!
//! ```
//! use pirl_eval::{FeatureSet, Knn, KnnConfig, LayerFeatures, LinearConfig, LinearProbe, Probe};
//! use pirl_model::Layer;
//!
//! // The sign of the first of two features says which of two classes an image is of.
//! let set = |rows: usize| {
//!     let sign = |row: usize| if row % 2 == 0 { 1.0 } else { -1.0 };
//!     let values = (0..rows).flat_map(|row| [sign(row), 0.1 * (row % 5) as f32]).collect();
//!     let labels = (0..rows).map(|row| Some((row % 2) as u32)).collect();
//!     let classes = vec!["left".to_owned(), "right".to_owned()];
//!     FeatureSet::new(vec![LayerFeatures::new(Layer::RES5, rows, 2, values)?], labels, classes)
//! };
//! let (train, test) = (set(200)?, set(20)?);
//!
//! let linear = LinearProbe::new(LinearConfig { batch_size: 20, ..Default::default() }, 0)?;
//! assert_eq!(linear.evaluate(&train, &test, &mut |_, _| {})?.best.top1, 100.0);
//! let knn = Knn::new(KnnConfig { k: vec![5], ..Default::default() }, 0)?;
//! assert_eq!(knn.evaluate(&train, &test, &mut |_, _| {})?.top1, 100.0);
//! # Ok::<(), pirl_eval::EvalError>(())
//! ```

mod accuracy;
mod baselines;
mod cache;
mod classification;
mod config;
pub mod detect;
mod embed;
mod embedder;
mod error;
mod extract;
mod feature_set;
mod finetune;
mod gather;
mod helpers;
mod invariance;
mod knn;
mod label_subset;
mod linear;
mod low_shot;
mod map;
mod memory;
mod monitor;
mod nearest;
mod neighbours;
mod pool;
mod presence;
mod probe;
mod published;
mod svm;
mod table;

pub use baselines::{BaselineInputs, Baselines, Untrained, WithBaselines, pixel_features};
pub use cache::{FeatureCache, features, weights_fingerprint};
pub use classification::{
    Calibration, CalibrationBin, ClassAccuracy, Classification, Confusion, ConfusionCell,
    Prediction,
};
pub use config::EvalConfig;
pub use embed::{EmbedFormat, Embedded, embed};
pub use embedder::Embedder;
pub use error::{EvalError, Result};
pub use extract::{Extraction, extract_features, recompute_batch_norm};
pub use feature_set::{FeatureSet, LayerFeatures};
pub use finetune::{Finetune, FinetuneConfig, FinetuneReport};
pub use helpers::Helpers;
pub use invariance::{ANOTHER_IMAGE, Change, Distances, invariance};
pub use knn::{Knn, KnnAccuracy, KnnChoice, KnnConfig, KnnLayer, KnnReport};
pub use label_subset::LabelSubset;
pub use linear::{
    Crops, LayerReport, LinearChoice, LinearConfig, LinearProbe, LinearReport, ProbeEstimate,
    RandomCropProbe, RateReport, Select,
};
pub use low_shot::{
    LowShot, LowShotChoice, LowShotConfig, LowShotLayer, LowShotMethod, LowShotReport,
    LowShotResult, Spread,
};
pub use map::{FeatureMap, MapConfig, map_features, silhouette};
pub use memory::feature_bytes;
pub use monitor::Monitor;
pub use neighbours::{
    ImageName, Neighbour, NeighbourName, NeighbourReport, QueryReport, draw_images,
    nearest_neighbours,
};
pub use pool::{Pool, Pools};
pub use presence::Presence;
pub use probe::{Best, Probe, check_packs};
pub use published::{Dataset, Protocol, Published};
pub use svm::{Svm, SvmBest, SvmChoice, SvmConfig, SvmLayer, SvmReport};
pub use table::ReportTable;
