//! Linear classifiers on frozen features: batch norm, then softmax regression, trained by SGD.
//!
//! The protocol is that of the linear probes of VISSL and of Goyal et al. (arXiv:1905.01235), which are
//! trained on new random crops in every epoch: that is [`RandomCropProbe`]. [`LinearProbe`] is the quick
//! one, with these differences, which fixed features make possible. Batch norm uses the exact mean and
//! (biased) variance of each channel over the training set, to which its running statistics would
//! converge, rather than noisy ones of each batch. The features are those of the plain view of each
//! image, extracted once, rather than of a fresh crop in each epoch. Weights start at zero: the
//! problem is convex. Several learning rates are trained in one pass over the same shuffled
//! batches, and the choice among them, and among the layers, is made on a held-out part of the training
//! set, after which a classifier is trained on all of it at the chosen rate.

mod accuracy;
mod batch_norm;
mod classifiers;
mod config;
mod gradient;
mod probe;
mod random_crops;
mod report;
mod samples;

pub(crate) use batch_norm::Standardizer;
pub use config::{Crops, LinearConfig, Select};
pub(crate) use gradient::softmax_minus_target;
pub use probe::LinearProbe;
pub use random_crops::{ProbeEstimate, RandomCropProbe};
pub use report::{LayerReport, LinearChoice, LinearReport, RateReport};
