//! The quick linear probe: plain views, whose features are computed once.

use std::collections::BTreeMap;

use pirl_core::random;
use rand::seq::SliceRandom;

use super::accuracy::accuracy;
use super::batch_norm::Standardizer;
use super::classifiers::Classifiers;
use super::config::{LinearConfig, Select};
use super::gradient::gradient;
use super::report::{LayerReport, LinearReport, choose, rates};
use super::samples::Samples;
use crate::accuracy::Tally;
use crate::error::{EvalError, Result};
use crate::feature_set::{FeatureSet, LayerFeatures};
use crate::probe::{Labels, Probe, comparable, hold_out};

/// Linear classifiers on every layer of frozen features.
#[derive(Clone, Debug)]
pub struct LinearProbe {
    config: LinearConfig,
    seed: u64,
}

/// Purpose of the stream that the order of the batches comes from; 1 is that of the part held out.
const SHUFFLE: u64 = 2;

impl LinearProbe {
    /// All randomness (the part held out, the order of the batches) comes from `seed`.
    ///
    /// # Errors
    /// [`EvalError::Setting`] as [`LinearConfig::check`].
    pub fn new(config: LinearConfig, seed: u64) -> Result<Self> {
        config.check()?;
        Ok(Self { config, seed })
    }

    /// Trains one classifier for each of `lrs` on `rows`.
    fn train(
        &self,
        samples: &Samples<'_>,
        rows: &[u32],
        lrs: &[f64],
        epoch_done: &mut dyn FnMut(),
    ) -> Result<Classifiers> {
        let config = &self.config;
        let steps = rows.len().div_ceil(config.batch_size);
        let schedule = config.schedule(steps)?;
        let sizes = (samples.features.dim(), samples.features.cells());
        let mut classifiers = Classifiers::zero(sizes, samples.classes, lrs.len(), config.affine);
        let mut order = rows.to_vec();
        let mut step = 0;
        for epoch in 0..config.epochs {
            order.copy_from_slice(rows);
            order.shuffle(&mut random::stream(self.seed, SHUFFLE, epoch as u64, 0));
            for batch in order.chunks(config.batch_size) {
                let gradient = gradient(samples, batch, &classifiers.folded());
                let rates: Vec<f64> = lrs.iter().map(|lr| lr * schedule.lr(step)).collect();
                classifiers.step(&gradient, &rates, config.momentum, config.weight_decay);
                step += 1;
            }
            epoch_done();
        }
        Ok(classifiers)
    }

    /// Trains on a few rows, in at least so many steps, and returns for each learning rate the top-1 on the
    /// rows held out and on the test set, in percent; 0 where the weights left the finite numbers.
    pub(crate) fn few(
        &self,
        steps: usize,
        (train, test): (&LayerFeatures, &LayerFeatures),
        standardizer: &Standardizer,
        labels: &Labels,
        (rows, held_out): (&[u32], &[u32]),
    ) -> Result<Vec<(f64, [f64; 2])>> {
        let epoch = rows.len().div_ceil(self.config.batch_size).max(1);
        let epochs = self.config.epochs.max(steps.div_ceil(epoch));
        let longer = Self {
            config: LinearConfig {
                epochs,
                ..self.config.clone()
            },
            seed: self.seed,
        };
        let classes = labels.classes;
        let samples = |features, labels| Samples {
            features,
            standardizer,
            labels,
            classes,
        };
        let training = samples(train, &labels.train);
        let lrs = &self.config.lrs;
        let folded = longer.train(&training, rows, lrs, &mut || {})?.folded();
        let every: Vec<u32> = (0..test.rows() as u32).collect();
        let first = rates(lrs, &accuracy(&training, held_out, &folded));
        let second = rates(
            lrs,
            &accuracy(&samples(test, &labels.test), &every, &folded),
        );
        let pairs = first.into_iter().zip(second);
        Ok(pairs
            .map(|(first, second)| (first.lr, [first.top1, second.top1]))
            .collect())
    }

    /// Whether the learning rate or the layer is to be chosen on a held-out part of the training set.
    fn holds_out(&self, layers: usize) -> bool {
        self.config.select == Select::Validation && self.config.lrs.len() * layers > 1
    }

    /// `holds_out`: as [`LinearProbe::holds_out`].
    fn probe_layer(
        &self,
        (train, test): (&LayerFeatures, &LayerFeatures),
        labels: &Labels,
        holds_out: bool,
        epoch_done: &mut dyn FnMut(),
    ) -> Result<(LayerReport, Tally)> {
        let standardizer = Standardizer::of(train);
        let training = Samples {
            features: train,
            standardizer: &standardizer,
            labels: &labels.train,
            classes: labels.classes,
        };
        let testing = Samples {
            features: test,
            standardizer: &standardizer,
            labels: &labels.test,
            classes: labels.classes,
        };
        let lrs = &self.config.lrs;
        let train_rows: Vec<u32> = (0..train.rows() as u32).collect();
        let test_rows: Vec<u32> = (0..test.rows() as u32).collect();
        let diverged = || EvalError::Diverged {
            layer: train.layer().clone(),
            lrs: lrs.clone(),
        };

        let (chosen, held_out, rates, tested) = if holds_out {
            let (kept, held_out) = hold_out(train.rows(), self.config.held_out, self.seed)?;
            let classifiers = self.train(&training, &kept, lrs, epoch_done)?;
            let rates = rates(lrs, &accuracy(&training, &held_out, &classifiers.folded()));
            let chosen = choose(&rates).ok_or_else(diverged)?;
            let classifier = self.train(&training, &train_rows, &[chosen.lr], epoch_done)?;
            let tested = accuracy(&testing, &test_rows, &classifier.folded());
            (chosen, Some(chosen.top1), rates, tested.into_iter().next())
        } else {
            let classifiers = self.train(&training, &train_rows, lrs, epoch_done)?;
            let tested = accuracy(&testing, &test_rows, &classifiers.folded());
            let rates = rates(lrs, &tested);
            let chosen = choose(&rates).ok_or_else(diverged)?;
            let tested = lrs.iter().zip(tested).find(|(lr, _)| **lr == chosen.lr);
            (chosen, None, rates, tested.map(|(_, tested)| tested))
        };
        let tested = tested.flatten().ok_or_else(diverged)?;
        let report = LayerReport {
            top1: tested.top1(),
            top5: tested.top5(),
            lr: chosen.lr,
            held_out,
            pool: train.pool(),
            dim: train.dim(),
            rates: if lrs.len() > 1 { rates } else { Vec::new() },
        };
        Ok((report, tested))
    }
}

impl Probe for LinearProbe {
    type Report = LinearReport;

    /// Adds [`EvalError::Diverged`] if no learning rate led to finite weights.
    fn evaluate(
        &self,
        train: &FeatureSet,
        test: &FeatureSet,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<LinearReport> {
        let labels = comparable(train, test)?;
        let holds_out = self.holds_out(train.layers().len());
        let passes = if holds_out { 2 } else { 1 };
        let total = train.layers().len() * passes * self.config.epochs;
        let mut done = 0;
        let mut epoch_done = || {
            done += 1;
            progress(done, total);
        };
        let mut layers = BTreeMap::new();
        for pair in train.layers().iter().zip(test.layers()) {
            let report = self.probe_layer(pair, &labels, holds_out, &mut epoch_done)?;
            layers.insert(pair.0.layer().clone(), report);
        }
        LinearReport::new(layers, self.config.select, train.class_names())
    }
}

#[cfg(test)]
mod tests {
    use pirl_model::{Layer, ScheduleKind};

    use super::super::gradient::logits;
    use super::*;

    /// Logits of all rows after training on all rows as one batch, so that their order does not matter.
    fn trained_logits(
        config: LinearConfig,
        features: &LayerFeatures,
        labels: &[u32],
        classes: usize,
    ) -> Vec<f32> {
        let rows: Vec<u32> = (0..features.rows() as u32).collect();
        let lrs = config.lrs.clone();
        let probe = LinearProbe::new(
            LinearConfig {
                batch_size: rows.len(),
                ..config
            },
            0,
        )
        .unwrap();
        let standardizer = Standardizer::of(features);
        let samples = Samples {
            features,
            standardizer: &standardizer,
            labels,
            classes,
        };
        let classifiers = probe.train(&samples, &rows, &lrs, &mut || {}).unwrap();
        let [logits, _] = logits(&samples, &rows, &classifiers.folded());
        logits
    }

    fn golden(file: &str, key: &str) -> Vec<f32> {
        let values: serde_json::Value = serde_json::from_str(file).unwrap();
        serde_json::from_value(values[key].clone()).unwrap()
    }

    #[test]
    fn steps_equal_those_of_pytorch() {
        let (rows, dim, cells, classes) = (40, 6, 2, 4);
        let values = benches::fill(21, rows * dim)
            .iter()
            .map(|x| x * 2.0 + 1.0)
            .collect();
        let features = LayerFeatures::with_cells(Layer::RES5, rows, dim, cells, values).unwrap();
        let labels: Vec<u32> = (0..rows as u32).map(|i| i * 7 % 11 % 4).collect();
        for (affine, key) in [(false, "plain"), (true, "affine")] {
            let config = LinearConfig {
                epochs: 12,
                lrs: vec![0.2],
                milestones: vec![5, 9],
                weight_decay: 0.01,
                affine,
                ..Default::default()
            };
            let found = trained_logits(config, &features, &labels, classes);
            let expected = golden(include_str!("../../tests/golden/sgd.json"), key);
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(&expected) {
                assert!(
                    (found - expected).abs() < 1e-5,
                    "{key}: {found}, not {expected}"
                );
            }
        }
    }

    #[test]
    fn training_converges_to_the_optimum_of_scikit_learn_at_every_rate() {
        let (rows, dim, classes) = (200, 5, 3);
        let labels: Vec<u32> = (0..rows as u32).map(|i| i * 7 % 11 % 3).collect();
        let mut values = benches::fill(31, rows * dim);
        for (row, label) in values.chunks_mut(dim).zip(&labels) {
            row[*label as usize] += 0.5;
        }
        let features = LayerFeatures::new(Layer::RES5, rows, dim, values).unwrap();
        let config = LinearConfig {
            epochs: 2000,
            lrs: vec![0.1, 0.3],
            schedule: ScheduleKind::Constant,
            weight_decay: 0.01,
            ..Default::default()
        };
        let found = trained_logits(config, &features, &labels, classes);
        let expected = golden(include_str!("../../tests/golden/probes.json"), "optimum");
        let rows = found.chunks(2 * classes).zip(expected.chunks(classes));
        for (both, expected) in rows {
            for found in both.chunks(classes) {
                // Softmax does not see a shift of all logits.
                let mean = found.iter().sum::<f32>() / classes as f32;
                for (found, expected) in found.iter().zip(expected) {
                    assert!(
                        (found - mean - expected).abs() < 1e-4,
                        "{found} {mean} {expected}"
                    );
                }
            }
        }
    }
}
