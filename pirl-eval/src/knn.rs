//! Weighted nearest neighbours: a training image votes for its class with `exp(cosine / tau)`.
//!
//! VISSL's `vissl/utils/knn_utils.py`, after Wu et al. (arXiv:1805.01978), on features divided by
//! their L2 norm.

use std::collections::BTreeMap;

use pirl_core::{SettingError, check};
use pirl_model::Layer;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::classification::{Classification, Prediction, share_right};
use crate::error::{EvalError, Result};
use crate::feature_set::{FeatureSet, LayerFeatures};
use crate::nearest::{Candidate, Gallery, QUERIES, UnitRows};
use crate::pool::Pool;
use crate::probe::{
    Best, Labels, Probe, check_held_out, comparable, highest, hold_out, rows_held_out,
};
use crate::table::{ReportTable, headline};

/// Settings of [`Knn`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KnnConfig {
    /// Numbers of neighbours that vote, all tried in one pass; 10, 20 and 200 by default.
    pub k: Vec<usize>,
    /// Temperature tau of their votes, above 0; 0.07 by default, as in the paper of NPID.
    pub temperature: f64,
    /// Part of the training set held out for the choice of a layer and a `k`, in `(0, 1)`; a tenth by
    /// default.
    pub held_out: f64,
}

impl Default for KnnConfig {
    fn default() -> Self {
        Self {
            k: vec![10, 20, 200],
            temperature: 0.07,
            held_out: 0.1,
        }
    }
}

impl KnnConfig {
    /// # Errors
    /// Names the first field whose value cannot work.
    pub fn check(&self) -> Result<(), SettingError> {
        let fits = !self.k.is_empty() && self.k.iter().all(|k| *k > 0);
        let found = format!("{:?}", self.k);
        check(
            "k",
            found,
            fits,
            "must be one or more numbers of at least 1",
        )?;
        let temperature = self.temperature;
        let fits = temperature > 0.0 && temperature.is_finite();
        check(
            "temperature",
            temperature,
            fits,
            "must be finite and positive",
        )?;
        check_held_out(self.held_out)
    }

    /// The numbers of neighbours that `samples` training samples have enough of once part is held out,
    /// rising; larger ones are left out.
    ///
    /// # Errors
    /// Names `k` if all are too large.
    pub fn usable(&self, samples: usize) -> Result<Vec<usize>, SettingError> {
        let most = samples - rows_held_out(samples, self.held_out).min(samples);
        let mut usable: Vec<usize> = self.k.iter().copied().filter(|k| *k <= most).collect();
        let expected = format!(
            "the smallest must be at most {most}, the {samples} training samples less those held \
             out; give a smaller one or more samples"
        );
        check("k", format!("{:?}", self.k), !usable.is_empty(), &expected)?;
        usable.sort_unstable();
        usable.dedup();
        Ok(usable)
    }
}

/// The result of weighted nearest neighbours. Accuracies are in percent, of the test set unless they
/// are called held out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KnnReport {
    /// The headline: the layer, the pooling and the number of neighbours that are most accurate on the
    /// held-out part of the training set, with their accuracy on the test set.
    pub chosen: KnnChoice,
    /// Accuracy of `chosen`.
    pub top1: f64,
    /// Neighbours that voted for it.
    pub k: usize,
    /// The result of each layer.
    pub layers: BTreeMap<Layer, KnnLayer>,
    /// The layer with the highest accuracy on the test set.
    pub best: Best,
    /// `chosen`, class by class.
    #[serde(flatten)]
    pub classification: Classification,
}

/// What nearest neighbours chose without the test set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KnnChoice {
    /// The layer; of equal ones the lowest.
    pub layer: Layer,
    /// How its maps are pooled, where there was a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<Pool>,
    /// Neighbours that vote; of equally good numbers the smallest.
    pub k: usize,
    /// The accuracy that all were chosen by; `None` if there was nothing to choose.
    pub held_out: Option<f64>,
    /// Accuracy on the test set.
    pub top1: f64,
}

/// The result of nearest neighbours at one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KnnLayer {
    /// Accuracy at `k`.
    pub top1: f64,
    /// The number of neighbours that is most accurate on the held-out part; of equal ones the smallest.
    pub k: usize,
    /// Its accuracy there; `None` as in [`KnnChoice`].
    pub held_out: Option<f64>,
    /// How its maps were pooled, where there was a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<Pool>,
    /// Features of an image.
    pub dim: usize,
    /// The accuracies of every number of neighbours.
    pub by_k: BTreeMap<usize, KnnAccuracy>,
}

/// The accuracies of one number of neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct KnnAccuracy {
    /// On the held-out part of the training set; `None` as in [`KnnChoice`].
    pub held_out: Option<f64>,
    /// On the test set.
    pub top1: f64,
}

/// The weighted nearest-neighbour classifier.
#[derive(Clone, Debug)]
pub struct Knn {
    config: KnnConfig,
    seed: u64,
}

/// Rows and their labels.
pub(crate) struct Rows<'a> {
    rows: UnitRows<'a>,
    labels: Vec<u32>,
}

impl<'a> Rows<'a> {
    /// Those of the given numbers.
    pub(crate) fn of(features: &'a LayerFeatures, labels: &[u32], numbers: Vec<u32>) -> Self {
        let of_rows = numbers.iter().map(|number| labels[*number as usize]);
        Self {
            labels: of_rows.collect(),
            rows: UnitRows::of(features, numbers),
        }
    }

    /// All of them.
    pub(crate) fn all(features: &'a LayerFeatures, labels: &[u32]) -> Self {
        Self::of(features, labels, (0..features.rows() as u32).collect())
    }
}

impl Knn {
    /// `seed` says which part of the training set is held out.
    ///
    /// # Errors
    /// [`EvalError::Setting`](crate::EvalError::Setting) as [`KnnConfig::check`].
    pub fn new(config: KnnConfig, seed: u64) -> Result<Self> {
        config.check()?;
        Ok(Self { config, seed })
    }

    /// What `queries` are taken for with each of `ks` neighbours of `bank`; `ks` rise, the last at most the
    /// rows of `bank`.
    ///
    /// Of equally near neighbours the one with the lower index counts as nearer; of classes with
    /// equal votes the lower wins.
    fn predictions(
        &self,
        (bank, queries): (&Rows<'_>, &Rows<'_>),
        ks: &[usize],
        classes: usize,
        progress: &mut dyn FnMut(usize),
    ) -> Vec<Vec<Prediction>> {
        let (len, most) = (queries.labels.len(), ks.last().copied().unwrap_or(0));
        let gallery = Gallery::new(&bank.rows);
        let mut predictions = vec![Vec::with_capacity(len); ks.len()];
        // A few blocks of queries at a time, so that progress can be reported between them.
        for first in (0..len).step_by(QUERIES * 32) {
            let group = first..len.min(first + QUERIES * 32);
            let blocks = group.clone().into_par_iter().step_by(QUERIES);
            let found: Vec<u32> = blocks
                .flat_map_iter(|first| {
                    let block = first..group.end.min(first + QUERIES);
                    gallery.nearest(&queries.rows, block, most)
                })
                .flat_map_iter(|neighbours| self.votes(&neighbours, &bank.labels, classes, ks))
                .collect();
            let labels = &queries.labels[group.clone()];
            for (found, label) in found.chunks_exact(ks.len()).zip(labels) {
                for (predictions, class) in predictions.iter_mut().zip(found) {
                    predictions.push(Prediction {
                        label: *label,
                        predicted: *class,
                        confidence: None,
                    });
                }
            }
            progress(group.end);
        }
        predictions
    }

    /// For each number of neighbours, of a few rows at most all, the accuracies on two sets of queries.
    pub(crate) fn few(
        &self,
        bank: &Rows<'_>,
        queries: &[Rows<'_>; 2],
        classes: usize,
    ) -> Vec<(f64, [f64; 2])> {
        let rows = bank.labels.len();
        let mut ks: Vec<usize> = self.config.k.iter().map(|k| (*k).min(rows)).collect();
        ks.sort_unstable();
        ks.dedup();
        let [first, second] = queries
            .each_ref()
            .map(|queries| self.predictions((bank, queries), &ks, classes, &mut |_| {}));
        let pairs = first.into_iter().zip(second);
        let ks = ks.into_iter().map(|k| k as f64);
        ks.zip(pairs.map(|(first, second)| [share_right(&first), share_right(&second)]))
            .collect()
    }

    /// The class that the first `k` neighbours vote for, for each of `ks`, which rise.
    fn votes(&self, near: &[Candidate], labels: &[u32], classes: usize, ks: &[usize]) -> Vec<u32> {
        let mut votes = vec![0f64; classes];
        let mut counted = 0;
        let winners = ks.iter().map(|&k| {
            for neighbour in &near[counted..k] {
                // Cosines are at most 1, so this cannot overflow before temperatures of 1/700.
                let vote =
                    ((f64::from(neighbour.similarity) - 1.0) / self.config.temperature).exp();
                votes[labels[neighbour.index as usize] as usize] += vote;
            }
            counted = k;
            let mut best = 0;
            for (class, vote) in votes.iter().enumerate() {
                if *vote > votes[best] {
                    best = class;
                }
            }
            best as u32
        });
        winners.collect()
    }

    /// `split`: the training rows kept and those held out, where something is to be chosen.
    fn probe_layer(
        &self,
        (train, test): (&LayerFeatures, &LayerFeatures),
        labels: &Labels,
        ks: &[usize],
        split: Option<&(Vec<u32>, Vec<u32>)>,
        progress: &mut dyn FnMut(usize),
    ) -> Option<(KnnLayer, Vec<Prediction>)> {
        let classes = labels.classes;
        let held_out: Option<Vec<f64>> = split.map(|(kept, held_out)| {
            let rows = |numbers: &Vec<u32>| Rows::of(train, &labels.train, numbers.clone());
            let found = self.predictions((&rows(kept), &rows(held_out)), ks, classes, progress);
            found.iter().map(|found| share_right(found)).collect()
        });
        let before = split.map_or(0, |(_, held_out)| held_out.len());
        let bank = Rows::all(train, &labels.train);
        let queries = Rows::all(test, &labels.test);
        let mut tested = self.predictions((&bank, &queries), ks, classes, &mut |done| {
            progress(before + done);
        });
        let accuracies = ks.iter().zip(&tested).enumerate().map(|(at, (k, tested))| {
            let held_out = held_out.as_ref().map(|held_out| held_out[at]);
            let top1 = share_right(tested);
            (*k, KnnAccuracy { held_out, top1 })
        });
        let by_k: BTreeMap<usize, KnnAccuracy> = accuracies.collect();
        let (k, chosen) = highest(by_k.iter(), |(_, accuracy)| accuracy.held_out)?;
        let predictions = tested.swap_remove(ks.iter().position(|other| other == k)?);
        let layer = KnnLayer {
            top1: chosen.top1,
            k: *k,
            held_out: chosen.held_out,
            pool: train.pool(),
            dim: train.dim(),
            by_k,
        };
        Some((layer, predictions))
    }
}

impl Probe for Knn {
    type Report = KnnReport;

    /// Adds [`EvalError::Setting`](crate::EvalError::Setting) as [`KnnConfig::usable`].
    fn evaluate(
        &self,
        train: &FeatureSet,
        test: &FeatureSet,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<KnnReport> {
        let labels = comparable(train, test)?;
        let samples = labels.train.len();
        let ks = self.config.usable(samples)?;
        let split = if ks.len() * train.layers().len() > 1 {
            let (mut kept, held_out) = hold_out(samples, self.config.held_out, self.seed)?;
            kept.sort_unstable(); // of equally near neighbours the lower index is the nearer
            Some((kept, held_out))
        } else {
            None
        };
        let each = labels.test.len() + split.as_ref().map_or(0, |(_, held_out)| held_out.len());
        let total = each * train.layers().len();
        let none = || EvalError::Layers {
            train: train.describe(),
            test: test.describe(),
        };
        let (mut layers, mut predictions) = (BTreeMap::new(), BTreeMap::new());
        for (number, pair) in train.layers().iter().zip(test.layers()).enumerate() {
            let mut done = |done| progress(number * each + done, total);
            let found = self.probe_layer(pair, &labels, &ks, split.as_ref(), &mut done);
            let (row, predicted) = found.ok_or_else(none)?;
            layers.insert(pair.0.layer().clone(), row);
            predictions.insert(pair.0.layer().clone(), predicted);
        }
        let best = Best::of(layers.iter().map(|(layer, row)| (layer.clone(), row.top1)));
        let (layer, row) = highest(layers.iter(), |(_, row)| row.held_out).ok_or_else(none)?;
        let chosen = KnnChoice {
            layer: layer.clone(),
            pool: row.pool,
            k: row.k,
            held_out: row.held_out,
            top1: row.top1,
        };
        let predictions = predictions.get(layer).ok_or_else(none)?;
        Ok(KnnReport {
            classification: Classification::new(predictions, train.class_names())?,
            top1: chosen.top1,
            k: chosen.k,
            chosen,
            best: best.ok_or_else(none)?,
            layers,
        })
    }
}

impl ReportTable for KnnReport {
    fn heading(&self) -> String {
        let first = self.layers.values().next();
        let columns = first.into_iter().flat_map(|row| row.by_k.keys());
        columns
            .map(|k| format!("  {:>8}", format!("k = {k}")))
            .collect()
    }

    fn rows(&self) -> Vec<(&Layer, String)> {
        let row = |row: &KnnLayer| {
            let columns = row
                .by_k
                .values()
                .map(|found| format!("  {:>8.2}", found.top1));
            columns.collect()
        };
        self.layers
            .iter()
            .map(|(layer, found)| (layer, row(found)))
            .collect()
    }

    fn classification(&self) -> Option<&Classification> {
        Some(&self.classification)
    }

    fn headline(&self) -> String {
        let KnnChoice {
            layer,
            k,
            held_out,
            top1,
            ..
        } = &self.chosen;
        let choice = format!("{layer} with {k} neighbours");
        headline(
            &choice,
            *top1,
            *held_out,
            self.layers.iter().map(|(layer, row)| (layer, row.top1)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_named() {
        let refused = |config: KnnConfig| Knn::new(config, 0).unwrap_err().to_string();
        for (k, found) in [
            (vec![0], "k = [0]"),
            (vec![3, 0], "k = [3, 0]"),
            (vec![], "k = []"),
        ] {
            let error = refused(KnnConfig {
                k,
                ..Default::default()
            });
            assert!(error.contains(found), "{error}");
        }
        for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = refused(KnnConfig {
                temperature,
                ..Default::default()
            });
            assert!(error.contains("temperature"), "{error}");
        }
        let error = refused(KnnConfig {
            held_out: 1.0,
            ..Default::default()
        });
        assert!(error.contains("held_out = 1"), "{error}");
    }

    #[test]
    fn numbers_of_neighbours_that_there_are_not_are_left_out() {
        let config = KnnConfig {
            k: vec![200, 9, 4, 9, 10],
            ..Default::default()
        };
        assert_eq!(config.usable(1000).unwrap(), [4, 9, 10, 200]);
        assert_eq!(config.usable(10).unwrap(), [4, 9]);
        for samples in [0, 1, 4] {
            let error = config.usable(samples).unwrap_err().to_string();
            let most = samples.saturating_sub(1);
            assert!(error.contains(&format!("at most {most}")), "{error}");
        }
    }
}
