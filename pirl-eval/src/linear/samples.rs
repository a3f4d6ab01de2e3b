//! What linear classifiers are trained and tested on.

use super::batch_norm::Standardizer;
use crate::feature_set::LayerFeatures;

/// Features of one layer with what standardises them, and the label of each row.
pub(crate) struct Samples<'a> {
    pub(crate) features: &'a LayerFeatures,
    pub(crate) standardizer: &'a Standardizer,
    pub(crate) labels: &'a [u32],
    pub(crate) classes: usize,
}
