//! Weighted nearest neighbours: a training image votes for its class with `exp(cosine / tau)`.
//!
//! VISSL's `vissl/utils/knn_utils.py`, after Wu et al. (arXiv:1805.01978), on features divided by
//! their L2 norm.

use std::collections::BTreeMap;

use pirl_core::{SettingError, check};
use pirl_model::Layer;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{EvalError, Result};
use crate::feature_set::{FeatureSet, LayerFeatures};
use crate::nearest::{Candidate, QUERIES, nearest, normalised};
use crate::probe::{Best, Labels, Probe, comparable, percent};

/// Settings of [`Knn`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KnnConfig {
    /// Neighbours that vote; 200 by default.
    pub k: usize,
    /// Temperature tau of their votes, above 0; 0.07 by default, as in the paper of NPID.
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

impl KnnConfig {
    /// # Errors
    /// Names the first field whose value cannot work.
    pub fn check(&self) -> Result<(), SettingError> {
        check("k", self.k, self.k > 0, "must be at least 1")?;
        let temperature = self.temperature;
        let fits = temperature > 0.0 && temperature.is_finite();
        check(
            "temperature",
            temperature,
            fits,
            "must be finite and positive",
        )
    }
}

/// The result of weighted nearest neighbours. Accuracies are in percent of the test set.
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
    /// [`EvalError::Setting`](crate::EvalError::Setting) as [`KnnConfig::check`].
    pub fn new(config: KnnConfig) -> Result<Self> {
        config.check()?;
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
        // A few blocks of queries at a time, so that progress can be reported between them.
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

    fn vote(&self, neighbours: &[Candidate], labels: &Labels) -> u32 {
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

    /// Adds [`EvalError::Setting`](crate::EvalError::Setting) for a `k` above the number of training
    /// samples.
    fn evaluate(
        &self,
        train: &FeatureSet,
        test: &FeatureSet,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<KnnReport> {
        let labels = comparable(train, test)?;
        let k = self.config.k;
        let samples = labels.train.len();
        let expected = format!("must be at most {samples}, the training samples");
        check("k", k, k <= samples, &expected)?;
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
                train.layer().clone(),
                Accuracy {
                    top1: percent(right, queries),
                },
            );
        }
        let best = Best::of(
            layers
                .iter()
                .map(|(layer, accuracy)| (layer.clone(), accuracy.top1)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_named() {
        let error = Knn::new(KnnConfig {
            k: 0,
            ..Default::default()
        })
        .unwrap_err();
        assert!(error.to_string().contains("k = 0"), "{error}");
        for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = Knn::new(KnnConfig {
                temperature,
                ..Default::default()
            })
            .unwrap_err();
            assert!(error.to_string().contains("temperature"), "{error}");
        }
    }
}
