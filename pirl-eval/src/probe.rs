//! What every probe has in common.

use pirl_core::{SettingError, check, random};
use pirl_data::Pack;
use pirl_model::Layer;
use rand::seq::SliceRandom;
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

/// The layer with the highest accuracy on the test set, as the paper reports it. It is chosen by the
/// test set, so it is a little too good; what a report calls chosen is not.
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

/// The candidate with the highest score, of equal ones the first; the only one if there is no more than
/// one, scored or not. `None` if there is no candidate, or several and one of them without a score.
pub(crate) fn highest<T>(
    candidates: impl IntoIterator<Item = T>,
    score: impl Fn(&T) -> Option<f64>,
) -> Option<T> {
    let mut candidates = candidates.into_iter();
    let mut best = candidates.next()?;
    for next in candidates {
        if score(&next)? > score(&best)? {
            best = next;
        }
    }
    Some(best)
}

/// Purpose of the stream that says which samples are held out.
const HOLD_OUT: u64 = 1;

/// An error unless a part of the training set can be this large.
pub(crate) fn check_held_out(held_out: f64) -> Result<(), SettingError> {
    let fits = held_out > 0.0 && held_out < 1.0;
    check("held_out", held_out, fits, "must be above 0 and below 1")
}

/// How many of `samples` training samples are held out: at least 1 and, of 2 or more, not all.
pub(crate) fn rows_held_out(samples: usize, held_out: f64) -> usize {
    let wanted = (samples as f64 * held_out).round() as usize;
    wanted.min(samples.saturating_sub(1)).max(1)
}

/// The numbers of the training samples kept and of those held out, at least one of each, both in a
/// random order.
pub(crate) fn hold_out(samples: usize, held_out: f64, seed: u64) -> Result<(Vec<u32>, Vec<u32>)> {
    if samples < 2 {
        return Err(EvalError::Shape {
            what: "a training set that part is held out of".to_owned(),
            expected: "at least 2 samples".to_owned(),
            found: samples.to_string(),
        });
    }
    let mut shuffled: Vec<u32> = (0..samples as u32).collect();
    shuffled.shuffle(&mut random::stream(seed, HOLD_OUT, 0, 0));
    let kept = shuffled.split_off(rows_held_out(samples, held_out));
    Ok((kept, shuffled))
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
/// [`EvalError::Classes`], [`EvalError::Unlabelled`], [`EvalError::OneClass`].
pub fn check_packs(train: &Pack, test: &Pack) -> Result<()> {
    same_classes(train.class_names(), test.class_names())?;
    if let [only] = train.class_names() {
        return Err(EvalError::OneClass { name: only.clone() });
    }
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
    fn the_part_held_out_is_seeded_and_disjoint() {
        let split = |seed| hold_out(50, 0.1, seed).unwrap();
        let (kept, held_out) = split(1);
        assert_eq!(held_out.len(), 5);
        let mut together = [kept, held_out.clone()].concat();
        together.sort_unstable();
        assert_eq!(together, (0..50).collect::<Vec<u32>>());
        assert_eq!(split(1).1, held_out);
        assert_ne!(split(2).1, held_out);
        assert_eq!(hold_out(2, 0.9, 0).unwrap().0.len(), 1);
        assert!(hold_out(1, 0.5, 0).is_err());
    }

    #[test]
    fn the_highest_is_the_first_of_equals_and_needs_every_score() {
        let of = |scores: &[Option<f64>]| {
            highest(scores.iter().enumerate(), |(_, score)| **score).map(|(at, _)| at)
        };
        assert_eq!(of(&[Some(1.0), Some(3.0), Some(3.0)]), Some(1));
        assert_eq!(of(&[None]), Some(0));
        assert_eq!(of(&[Some(1.0), None]), None);
        assert_eq!(of(&[]), None);
    }

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
