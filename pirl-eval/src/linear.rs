//! Linear classifiers on frozen features: batch norm, then softmax regression, trained by SGD.
//!
//! The protocol is that of the linear probes of VISSL and of Goyal et al. (arXiv:1905.01235), which
//! see new random crops in every epoch: that is [`RandomCropProbe`]. [`LinearProbe`] is the quick
//! one, with these differences, which fixed features make possible. Batch norm uses the exact mean and
//! (biased) variance of each channel over the training set, to which its running statistics would
//! converge, rather than noisy ones of each batch. The features are those of the plain view of each
//! image, extracted once, rather than of a fresh crop in each epoch. Weights start at zero: the
//! problem is convex. Several learning rates are trained in one pass over the same shuffled
//! batches, and the choice among them is made on a held-out part of the training set, after which
//! the chosen rate is trained on all of it.

use std::collections::BTreeMap;

use pirl_core::{SettingError, check};
use pirl_model::{Layer, Schedule, ScheduleConfig, ScheduleKind};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::accuracy::Tally;
use crate::error::{EvalError, Result};
use crate::feature_set::{FeatureSet, LayerFeatures};
use crate::probe::{Best, Labels, Probe, comparable};

mod accuracy;
mod gradient;
mod random_crops;
mod sgd;
mod standard;

pub(crate) use gradient::softmax_minus_target;
pub use random_crops::RandomCropProbe;
use sgd::Classifiers;
use standard::Standard;

/// Settings of linear probes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LinearConfig {
    /// What is learnt from; the plain view of each image by default.
    pub crops: Crops,
    /// Passes over the training images; 28 by default.
    pub epochs: usize,
    /// Features in a step; 256 by default. The last step of an epoch takes what is left.
    pub batch_size: usize,
    /// Learning rates tried in one pass; 0.01 by default, VISSL's for a batch of 256.
    pub lrs: Vec<f64>,
    /// How they fall: `multi-step` (x `gamma` after each milestone; the default), `cosine` (to
    /// zero) or `constant`.
    pub schedule: ScheduleKind,
    /// Epochs after which a `multi-step` rate falls; 8, 16, 24 by default.
    pub milestones: Vec<usize>,
    /// What it falls by; a tenth by default.
    pub gamma: f64,
    /// Nesterov momentum in `[0, 1)`; 0.9 by default.
    pub momentum: f64,
    /// L2 decay of weights and biases, not of batch norm's scale and shift; 5e-4 by default.
    pub weight_decay: f64,
    /// Whether batch norm learns a scale and a shift for each channel; off by default (Goyal et
    /// al.), on in VISSL. A linear classifier can express neither more nor less with it.
    pub affine: bool,
    /// What the learning rate is chosen by.
    pub select: Select,
    /// Part of the training set held out for that choice, in `(0, 1)`; a tenth by default.
    pub held_out: f64,
}

impl Default for LinearConfig {
    fn default() -> Self {
        Self {
            crops: Crops::default(),
            epochs: 28,
            batch_size: 256,
            lrs: vec![0.01],
            schedule: ScheduleKind::MultiStep,
            milestones: vec![8, 16, 24],
            gamma: 0.1,
            momentum: 0.9,
            weight_decay: 5e-4,
            affine: false,
            select: Select::Validation,
            held_out: 0.1,
        }
    }
}

impl LinearConfig {
    /// # Errors
    /// Names the first field whose value cannot work.
    pub fn check(&self) -> Result<(), SettingError> {
        for (field, value) in [("epochs", self.epochs), ("batch_size", self.batch_size)] {
            check(field, value, value > 0, "must be at least 1")?;
        }
        let positive = |x: f64| x > 0.0 && x.is_finite();
        let lrs = &self.lrs;
        let fits = !lrs.is_empty() && lrs.iter().all(|lr| positive(*lr));
        let found = format!("{lrs:?}");
        check("lrs", found, fits, "must be one or more numbers above 0")?;
        let momentum = self.momentum;
        let fits = (0.0..1.0).contains(&momentum);
        check("momentum", momentum, fits, "must lie in [0, 1)")?;
        let decay = self.weight_decay;
        let fits = decay >= 0.0 && decay.is_finite();
        check("weight_decay", decay, fits, "must be finite and at least 0")?;
        let held_out = self.held_out;
        let fits = held_out > 0.0 && held_out < 1.0;
        check("held_out", held_out, fits, "must be above 0 and below 1")?;
        self.schedule_config().check()
    }

    fn schedule_config(&self) -> ScheduleConfig {
        ScheduleConfig {
            kind: self.schedule,
            milestones: self.milestones.clone(),
            gamma: self.gamma,
            final_lr_ratio: 0.0,
            ..ScheduleConfig::default()
        }
    }

    /// What each rate is multiplied by: the schedules are all the same but for where they start.
    fn schedule(&self, steps_per_epoch: usize) -> Result<Schedule> {
        let config = self.schedule_config();
        Ok(Schedule::new(&config, 1.0, steps_per_epoch, self.epochs)?)
    }
}

/// Which views of the training images a linear probe learns from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Crops {
    /// The plain view of each image, read once and learnt from in every epoch: [`LinearProbe`].
    #[default]
    Centre,
    /// New random crops and flips in each epoch, read as they are needed, as published:
    /// [`RandomCropProbe`].
    Random,
}

/// What the learning rate is chosen by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Select {
    /// Accuracy on a seeded, held-out part of the training set; the test set stays unseen.
    #[default]
    Validation,
    /// Accuracy on the test set itself, as is often published: optimistic.
    Test,
}

/// What linear probes found. Accuracies are in percent of the test set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinearReport {
    /// Each layer's.
    pub layers: BTreeMap<Layer, LayerReport>,
    /// The best layer.
    pub best: Best,
}

/// The linear probe of one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerReport {
    /// How often the right class came first, in percent.
    pub top1: f64,
    /// How often it was among the first five, in percent.
    pub top5: f64,
    /// The learning rate chosen.
    pub lr: f64,
    /// Features of an image.
    pub dim: usize,
    /// What the choice was made by: an entry for each learning rate; none when there was one only.
    pub rates: Vec<RateReport>,
}

/// How one learning rate did where it was judged.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RateReport {
    /// The learning rate.
    pub lr: f64,
    /// Accuracy on the held-out part ([`Select::Validation`]) or the test set, in percent.
    pub top1: f64,
}

/// Linear classifiers on every layer of frozen features.
#[derive(Clone, Debug)]
pub struct LinearProbe {
    config: LinearConfig,
    seed: u64,
}

/// Which rows of which features are learnt from.
struct Task<'a> {
    features: &'a LayerFeatures,
    standard: &'a Standard,
    labels: &'a [u32],
    classes: usize,
}

/// Streams of the probe's randomness.
const HOLD_OUT: u64 = 1;
const SHUFFLE: u64 = 2;

impl LinearProbe {
    /// All randomness (the part held out, the order of the batches) comes from `seed`.
    ///
    /// # Errors
    /// [`EvalError::Setting`] for a setting outside its range.
    pub fn new(config: LinearConfig, seed: u64) -> Result<Self> {
        config.check()?;
        Ok(Self { config, seed })
    }

    /// Trains one classifier for each of `lrs` on `rows`.
    fn train(
        &self,
        task: &Task<'_>,
        rows: &[u32],
        lrs: &[f64],
        epoch_done: &mut dyn FnMut(),
    ) -> Result<Classifiers> {
        let config = &self.config;
        let steps = rows.len().div_ceil(config.batch_size);
        let schedule = config.schedule(steps)?;
        let sizes = (task.features.dim(), task.features.cells());
        let mut classifiers = Classifiers::zero(sizes, task.classes, lrs.len(), config.affine);
        let mut order = rows.to_vec();
        let mut step = 0;
        for epoch in 0..config.epochs {
            order.copy_from_slice(rows);
            order.shuffle(&mut self.rng(SHUFFLE, epoch as u64));
            for batch in order.chunks(config.batch_size) {
                let gradient = gradient::gradient(task, batch, &classifiers);
                let rates: Vec<f64> = lrs.iter().map(|lr| lr * schedule.lr(step)).collect();
                classifiers.step(&gradient, &rates, config.momentum, config.weight_decay);
                step += 1;
            }
            epoch_done();
        }
        Ok(classifiers)
    }

    fn probe_layer(
        &self,
        train: &LayerFeatures,
        test: &LayerFeatures,
        labels: &Labels,
        epoch_done: &mut dyn FnMut(),
    ) -> Result<LayerReport> {
        let standard = Standard::of(train);
        let learn = Task {
            features: train,
            standard: &standard,
            labels: &labels.train,
            classes: labels.classes,
        };
        let judge = Task {
            features: test,
            standard: &standard,
            labels: &labels.test,
            classes: labels.classes,
        };
        let lrs = &self.config.lrs;
        let all: Vec<u32> = (0..train.rows() as u32).collect();
        let every: Vec<u32> = (0..test.rows() as u32).collect();
        let diverged = || EvalError::Diverged {
            layer: train.layer().clone(),
            lrs: lrs.clone(),
        };

        let (lr, rates, tested) = if lrs.len() > 1 && self.config.select == Select::Validation {
            let (kept, held_out) = self.hold_out(&all)?;
            let classifiers = self.train(&learn, &kept, lrs, epoch_done)?;
            let rates = rates(lrs, &accuracy::accuracy(&learn, &held_out, &classifiers));
            let lr = choose(&rates).ok_or_else(diverged)?.lr;
            let chosen = self.train(&learn, &all, &[lr], epoch_done)?;
            (
                lr,
                rates,
                accuracy::accuracy(&judge, &every, &chosen)
                    .into_iter()
                    .next()
                    .flatten(),
            )
        } else {
            let classifiers = self.train(&learn, &all, lrs, epoch_done)?;
            let tested = accuracy::accuracy(&judge, &every, &classifiers);
            let rates = rates(lrs, &tested);
            let lr = choose(&rates).ok_or_else(diverged)?.lr;
            let at = lrs.iter().position(|other| *other == lr);
            let rates = if lrs.len() > 1 { rates } else { Vec::new() };
            (
                lr,
                rates,
                at.and_then(|at| tested.get(at).cloned().flatten()),
            )
        };
        let tested = tested.ok_or_else(diverged)?;
        Ok(LayerReport {
            top1: tested.top1(),
            top5: tested.top5(),
            lr,
            dim: train.dim(),
            rates,
        })
    }

    /// Splits `rows` into those learnt from and those held out, at least one of each.
    fn hold_out(&self, rows: &[u32]) -> Result<(Vec<u32>, Vec<u32>)> {
        if rows.len() < 2 {
            return Err(EvalError::Shape {
                what: "a training set that part is held out of".to_owned(),
                expected: "at least 2 samples".to_owned(),
                found: rows.len().to_string(),
            });
        }
        let wanted = (rows.len() as f64 * self.config.held_out).round() as usize;
        let mut shuffled = rows.to_vec();
        shuffled.shuffle(&mut self.rng(HOLD_OUT, 0));
        let kept = shuffled.split_off(wanted.clamp(1, rows.len() - 1));
        Ok((kept, shuffled))
    }

    /// The generator of one purpose and one epoch.
    fn rng(&self, stream: u64, epoch: u64) -> ChaCha8Rng {
        let mut seed = [0; 32];
        for (bytes, word) in seed.chunks_exact_mut(8).zip([self.seed, stream, epoch, 0]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        ChaCha8Rng::from_seed(seed)
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
        let passes = match (self.config.lrs.len(), self.config.select) {
            (1, _) | (_, Select::Test) => 1,
            _ => 2,
        };
        let total = train.layers().len() * passes * self.config.epochs;
        let mut done = 0;
        let mut epoch_done = || {
            done += 1;
            progress(done, total);
        };
        let mut layers = BTreeMap::new();
        for (train, test) in train.layers().iter().zip(test.layers()) {
            let report = self.probe_layer(train, test, &labels, &mut epoch_done)?;
            layers.insert(train.layer().clone(), report);
        }
        let best = Best::of(
            layers
                .iter()
                .map(|(layer, report)| (layer.clone(), report.top1)),
        );
        let best = best.ok_or_else(|| EvalError::Layers {
            train: train.describe(),
            test: test.describe(),
        })?;
        Ok(LinearReport { layers, best })
    }
}

/// Pairs learning rates with their accuracies; a diverged one has none right.
fn rates(lrs: &[f64], tallies: &[Option<Tally>]) -> Vec<RateReport> {
    let top1 = |tally: &Option<Tally>| tally.as_ref().map_or(0.0, Tally::top1);
    lrs.iter()
        .zip(tallies)
        .map(|(lr, a)| RateReport {
            lr: *lr,
            top1: top1(a),
        })
        .collect()
}

/// The rate with the highest accuracy; of equal ones the first. `None` if all are zero.
fn choose(rates: &[RateReport]) -> Option<RateReport> {
    let better =
        |best: RateReport, next: RateReport| if next.top1 > best.top1 { next } else { best };
    rates.iter().copied().reduce(better)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_named() {
        let good = LinearConfig::default;
        let bad = [
            (
                "epochs",
                LinearConfig {
                    epochs: 0,
                    ..good()
                },
            ),
            (
                "batch_size",
                LinearConfig {
                    batch_size: 0,
                    ..good()
                },
            ),
            (
                "lrs",
                LinearConfig {
                    lrs: vec![],
                    ..good()
                },
            ),
            (
                "lrs",
                LinearConfig {
                    lrs: vec![0.1, f64::NAN],
                    ..good()
                },
            ),
            (
                "gamma",
                LinearConfig {
                    gamma: -1.0,
                    ..good()
                },
            ),
            (
                "momentum",
                LinearConfig {
                    momentum: 1.0,
                    ..good()
                },
            ),
            (
                "weight_decay",
                LinearConfig {
                    weight_decay: -1.0,
                    ..good()
                },
            ),
            (
                "held_out",
                LinearConfig {
                    held_out: 1.0,
                    ..good()
                },
            ),
        ];
        for (key, config) in bad {
            let error = LinearProbe::new(config, 0).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{key} = ")), "{error}");
        }
        assert!(LinearProbe::new(good(), 0).is_ok());
    }

    #[test]
    fn the_part_held_out_is_seeded_and_disjoint() {
        let rows: Vec<u32> = (0..50).collect();
        let split = |seed| {
            LinearProbe::new(LinearConfig::default(), seed)
                .unwrap()
                .hold_out(&rows)
                .unwrap()
        };
        let (kept, held_out) = split(1);
        assert_eq!(held_out.len(), 5);
        let mut together = [kept, held_out.clone()].concat();
        together.sort_unstable();
        assert_eq!(together, rows);
        assert_eq!(split(1).1, held_out);
        assert_ne!(split(2).1, held_out);
    }

    /// Logits of all rows after training on all rows as one batch, so that their order is no matter.
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
        let standard = Standard::of(features);
        let task = Task {
            features,
            standard: &standard,
            labels,
            classes,
        };
        let (weight, bias) = probe
            .train(&task, &rows, &lrs, &mut || {})
            .unwrap()
            .effective();
        let [logits, _] = gradient::logits(&task, &rows, &weight, &bias);
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
            let expected = golden(include_str!("../tests/golden/sgd.json"), key);
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
        let expected = golden(include_str!("../tests/golden/probes.json"), "optimum");
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
