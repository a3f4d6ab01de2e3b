//! Weighted nearest neighbours: a training image votes for its class with `exp(cosine / tau)`.
//!
//! VISSL's `vissl/utils/knn_utils.py`, after Wu et al. (arXiv:1805.01978), on features divided by
//! their L2 norm. The product of all test with all training features is never whole in memory: it
//! is made tile by tile, and each test image keeps only its nearest candidates.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use pirl_model::Layer;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{EvalError, Result};
use crate::feature_set::{FeatureSet, LayerFeatures};
use crate::matrix::times_transposed;
use crate::probe::{Best, Labels, Probe, comparable, percent};

/// Test images whose similarities are computed together by one thread.
const QUERIES: usize = 64;
/// Training images in a tile.
const TILE: usize = 1024;
/// Shorter vectors are divided by this instead of their norm, as in PyTorch's `normalize`.
const MIN_NORM: f64 = 1e-12;

/// `[eval.knn]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KnnConfig {
    /// Neighbours that vote; 200 by default.
    pub k: usize,
    /// tau of their votes, above 0; 0.07 by default, as in the paper of NPID.
    pub temperature: f64,
}

impl Default for KnnConfig {
    fn default() -> Self {
        Self {
            k: 200,
            temperature: 0.07,
        }
    }
}

/// What weighted nearest neighbours found. Accuracies are in percent of the test set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KnnReport {
    /// Accuracy at the best layer.
    pub top1: f64,
    /// Neighbours that voted.
    pub k: usize,
    /// Accuracy at each layer, as `{"top1": ..}`.
    pub layers: BTreeMap<Layer, Accuracy>,
    /// The best layer.
    pub best: Best,
}

/// The accuracy of nearest neighbours at one layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Accuracy {
    /// In percent of the test set.
    pub top1: f64,
}

/// The weighted nearest-neighbour classifier.
#[derive(Clone, Debug)]
pub struct Knn {
    config: KnnConfig,
}

impl Knn {
    /// # Errors
    /// [`EvalError::Setting`] for `k` of 0 or a temperature that is not positive and finite.
    pub fn new(config: KnnConfig) -> Result<Self> {
        let temperature = config.temperature;
        if config.k == 0 {
            return Err(EvalError::Setting {
                key: "eval.knn.k",
                found: "0".to_owned(),
                expected: "at least 1",
            });
        }
        if !(temperature > 0.0 && temperature.is_finite()) {
            return Err(EvalError::Setting {
                key: "eval.knn.temperature",
                found: temperature.to_string(),
                expected: "a number above 0",
            });
        }
        Ok(Self { config })
    }

    /// The predicted class of every row of `test`.
    ///
    /// Of equally near neighbours the one with the lower index counts as nearer; of classes with
    /// equal votes the lower wins.
    fn predict(
        &self,
        train: &LayerFeatures,
        test: &LayerFeatures,
        labels: &Labels,
        progress: &mut dyn FnMut(usize),
    ) -> Vec<u32> {
        let (bank, queries) = (normalised(train), normalised(test));
        let dim = train.dim();
        let mut predicted = Vec::with_capacity(test.rows());
        // A few blocks of queries at a time, so that progress can be told between them.
        for group in queries.chunks(QUERIES * 32 * dim) {
            let classes = group.par_chunks(QUERIES * dim).flat_map_iter(|block| {
                let nearest = nearest(block, &bank, dim, self.config.k);
                nearest
                    .into_iter()
                    .map(|neighbours| self.vote(&neighbours, labels))
            });
            predicted.par_extend(classes);
            progress(predicted.len());
        }
        predicted
    }

    fn vote(&self, neighbours: &[Neighbour], labels: &Labels) -> u32 {
        let mut votes = vec![0f64; labels.classes];
        for neighbour in neighbours {
            // Cosines are at most 1, so this cannot overflow before temperatures of 1/700.
            let vote = ((f64::from(neighbour.similarity) - 1.0) / self.config.temperature).exp();
            votes[labels.train[neighbour.index as usize] as usize] += vote;
        }
        let mut best = 0;
        for (class, vote) in votes.iter().enumerate() {
            if *vote > votes[best] {
                best = class;
            }
        }
        best as u32
    }
}

impl Probe for Knn {
    type Report = KnnReport;

    /// Adds [`EvalError::Neighbours`] for a `k` above the number of training samples.
    fn evaluate(
        &self,
        train: &FeatureSet,
        test: &FeatureSet,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<KnnReport> {
        let labels = comparable(train, test)?;
        let k = self.config.k;
        if k > labels.train.len() {
            return Err(EvalError::Neighbours {
                k,
                samples: labels.train.len(),
            });
        }
        let queries = labels.test.len();
        let total = queries * train.layers().len();
        let mut layers = BTreeMap::new();
        for (number, (train, test)) in train.layers().iter().zip(test.layers()).enumerate() {
            let predicted = self.predict(train, test, &labels, &mut |done| {
                progress(number * queries + done, total);
            });
            let right = predicted
                .iter()
                .zip(&labels.test)
                .filter(|(a, b)| a == b)
                .count();
            layers.insert(
                train.layer(),
                Accuracy {
                    top1: percent(right, queries),
                },
            );
        }
        let best = Best::of(
            layers
                .iter()
                .map(|(layer, accuracy)| (*layer, accuracy.top1)),
        );
        let best = best.ok_or_else(|| EvalError::Layers {
            train: train.describe(),
            test: test.describe(),
        })?;
        Ok(KnnReport {
            top1: best.top1,
            k,
            layers,
            best,
        })
    }
}

/// A training image and its cosine to the query.
#[derive(Clone, Copy)]
struct Neighbour {
    similarity: f32,
    index: u32,
}

impl Neighbour {
    /// Nearer first; a total order, so the choice of neighbours has no ties.
    fn nearer(&self, other: &Self) -> Ordering {
        other
            .similarity
            .total_cmp(&self.similarity)
            .then(self.index.cmp(&other.index))
    }
}

/// The `k` nearest seen so far of one query, gathered lazily: candidates pile up to twice `k`, then
/// the farther half goes.
struct Nearest {
    k: usize,
    candidates: Vec<Neighbour>,
    /// Similarity of the k-th nearest when the pile was last cut.
    bound: f32,
}

impl Nearest {
    fn new(k: usize) -> Self {
        Self {
            k,
            candidates: Vec::with_capacity(2 * k),
            bound: f32::NEG_INFINITY,
        }
    }

    fn offer(&mut self, similarities: &[f32], first: usize) {
        for (offset, &similarity) in similarities.iter().enumerate() {
            // Indices only rise, so a later equal of the bound is the farther of the two.
            if similarity > self.bound || self.candidates.len() < self.k {
                self.candidates.push(Neighbour {
                    similarity,
                    index: (first + offset) as u32,
                });
                if self.candidates.len() >= 2 * self.k {
                    self.cut();
                }
            }
        }
    }

    fn cut(&mut self) {
        if self.candidates.len() > self.k {
            self.candidates
                .select_nth_unstable_by(self.k - 1, Neighbour::nearer);
            self.candidates.truncate(self.k);
        }
        if let Some(last) = self.candidates.iter().max_by(|a, b| a.nearer(b)) {
            self.bound = last.similarity;
        }
    }

    fn finish(mut self) -> Vec<Neighbour> {
        self.cut();
        self.candidates.sort_unstable_by(Neighbour::nearer);
        self.candidates
    }
}

/// The `k` nearest rows of `bank` for every row of `block`, nearest first.
fn nearest(block: &[f32], bank: &[f32], dim: usize, k: usize) -> Vec<Vec<Neighbour>> {
    let queries = block.len() / dim;
    let mut nearest: Vec<Nearest> = (0..queries).map(|_| Nearest::new(k)).collect();
    let mut similarities = vec![0f32; queries * TILE];
    for (number, tile) in bank.chunks(TILE * dim).enumerate() {
        let columns = tile.len() / dim;
        let similarities = &mut similarities[..queries * columns];
        times_transposed((queries, columns, dim), block, tile, similarities);
        for (nearest, row) in nearest.iter_mut().zip(similarities.chunks_exact(columns)) {
            nearest.offer(row, number * TILE);
        }
    }
    nearest.into_iter().map(Nearest::finish).collect()
}

/// The rows divided by their L2 norms.
fn normalised(features: &LayerFeatures) -> Vec<f32> {
    let mut values = features.values().to_vec();
    values.par_chunks_mut(features.dim()).for_each(|row| {
        let squares: f64 = row.iter().map(|value| f64::from(*value).powi(2)).sum();
        let norm = squares.sqrt().max(MIN_NORM);
        row.iter_mut()
            .for_each(|value| *value = (f64::from(*value) / norm) as f32);
    });
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_are_exact_with_ties_in_the_order_of_the_bank() {
        // Similarities on a coarse grid, so most are tied; more than one tile; k across the ties.
        let bank: Vec<f32> = benches::fill(3, 2 * TILE + 1)
            .iter()
            .map(|x| (x * 4.0).round() / 4.0)
            .collect();
        for k in [1, 7, 200, bank.len()] {
            let found = &nearest(&[1.0], &bank, 1, k)[0];
            let mut expected: Vec<usize> = (0..bank.len()).collect();
            expected.sort_by(|a, b| bank[*b].total_cmp(&bank[*a]).then(a.cmp(b)));
            let found: Vec<usize> = found.iter().map(|n| n.index as usize).collect();
            assert_eq!(found, expected[..k], "k = {k}");
        }
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let error = Knn::new(KnnConfig {
            k: 0,
            ..Default::default()
        })
        .unwrap_err();
        assert!(error.to_string().contains("eval.knn.k = 0"), "{error}");
        for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = Knn::new(KnnConfig {
                temperature,
                ..Default::default()
            })
            .unwrap_err();
            assert!(
                error.to_string().contains("eval.knn.temperature"),
                "{error}"
            );
        }
    }
}
