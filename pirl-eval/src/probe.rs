//! What every probe has in common.

use pirl_data::Pack;
use pirl_model::Layer;
use serde::Serialize;

use crate::error::{EvalError, Result};
use crate::feature_set::FeatureSet;

/// An evaluation of frozen features by labelled images.
pub trait Probe {
    /// Its result.
    type Report: Serialize;

    /// Trains on `train` and tests on `test`; calls `progress` with the units of work done and those in
    /// all.
    ///
    /// # Errors
    /// [`EvalError::Unlabelled`], [`EvalError::Classes`] or [`EvalError::Layers`] if the two sets
    /// cannot be compared, and what the probe itself adds.
    fn evaluate(
        &self,
        train: &FeatureSet,
        test: &FeatureSet,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self::Report>;
}

/// The layer with the highest test accuracy, as the paper reports it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Best {
    /// The layer; of equal ones the lowest.
    pub layer: Layer,
    /// Its accuracy on the test set, in percent.
    pub top1: f64,
}

impl Best {
    /// `None` without any accuracy.
    pub(crate) fn of(accuracies: impl IntoIterator<Item = (Layer, f64)>) -> Option<Self> {
        accuracies
            .into_iter()
            .map(|(layer, top1)| Self { layer, top1 })
            .reduce(|best, next| if next.top1 > best.top1 { next } else { best })
    }
}

/// The labels of two sets that can be compared.
pub(crate) struct Labels {
    pub(crate) train: Vec<u32>,
    pub(crate) test: Vec<u32>,
    pub(crate) classes: usize,
}

/// Checks, before features are read, that both packs are labelled with the same classes.
///
/// # Errors
/// [`EvalError::Classes`], [`EvalError::Unlabelled`].
pub fn check_packs(train: &Pack, test: &Pack) -> Result<()> {
    same_classes(train.class_names(), test.class_names())?;
    for (set, pack) in [("training", train), ("test", test)] {
        if let Some(index) = (0..pack.len()).find(|index| pack.label(*index).is_none()) {
            return Err(EvalError::Unlabelled { set, index });
        }
    }
    Ok(())
}

/// Checks that a classifier trained on `train` can be tested on `test`.
pub(crate) fn comparable(train: &FeatureSet, test: &FeatureSet) -> Result<Labels> {
    same_classes(train.class_names(), test.class_names())?;
    same_layers(train, test)?;
    Ok(Labels {
        train: train.labelled("training")?,
        test: test.labelled("test")?,
        classes: train.class_names().len(),
    })
}

/// Checks that both sets have the same layers of the same sizes.
pub(crate) fn same_layers(train: &FeatureSet, test: &FeatureSet) -> Result<()> {
    let sizes = |set: &FeatureSet| -> Vec<_> {
        let layers = set.layers().iter();
        layers
            .map(|layer| (layer.layer().clone(), layer.dim(), layer.cells()))
            .collect()
    };
    if sizes(train) != sizes(test) {
        return Err(EvalError::Layers {
            train: train.describe(),
            test: test.describe(),
        });
    }
    Ok(())
}

/// Checks that labels mean the same in two sets.
pub(crate) fn same_classes(train: &[String], test: &[String]) -> Result<()> {
    if train == test {
        return Ok(());
    }
    let (train, test) = difference(train, test);
    Err(EvalError::Classes { train, test })
}

fn difference(train: &[String], test: &[String]) -> (String, String) {
    let at = train.iter().zip(test).take_while(|(a, b)| a == b).count();
    let words = |names: &[String]| match names.get(at) {
        Some(name) => format!("{} with {name:?} as number {at}", names.len()),
        None => format!("{}, none as number {at}", names.len()),
    };
    (words(train), words(test))
}

/// `part` of `whole` in percent.
pub(crate) fn percent(part: usize, whole: usize) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_equal_layers_the_lowest_is_best() {
        let best = Best::of([
            (Layer::RES2, 50.0),
            (Layer::RES3, 60.0),
            (Layer::RES4, 60.0),
        ]);
        assert_eq!(
            best,
            Some(Best {
                layer: Layer::RES3,
                top1: 60.0
            })
        );
        assert_eq!(Best::of([]), None);
    }
}
