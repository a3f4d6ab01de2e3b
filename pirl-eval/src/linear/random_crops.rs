//! Linear probes that see new random crops in every epoch: the published protocol.
//!
//! VISSL's `linear_image_classification`: the backbone in evaluation mode, random resized crops and
//! flips, batch norm over each batch of pooled features with running statistics for the test, SGD; the
//! probes of all layers take their step on the same batch. Features are read anew for each batch and
//! never kept. Classifiers start at zero.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use pirl_core::check;
use pirl_data::{ImageView, Loader, LoaderConfig, OnCorrupt, Pack, eval_batches};
use pirl_model::{Backbone, Layer, Schedule, load_state_dict, save_tensors};
use pirl_train::{Batches, State, Step, TrainError, Training};

use super::accuracy::accuracy;
use super::batch_norm::{ChannelStatistics, Standardizer};
use super::classifiers::Classifiers;
use super::config::{Crops, LinearConfig, Select};
use super::gradient::gradient;
use super::report::{LayerReport, LinearReport, choose, rates};
use super::samples::Samples;
use crate::accuracy::Tally;
use crate::error::{EvalError, Result};
use crate::extract::{Extraction, read_features};
use crate::feature_set::LayerFeatures;
use crate::memory::feature_sizes;

/// What a checkpoint's folder holds.
const FILE: &str = "linear.safetensors";
/// Weight of a new batch in the running statistics: PyTorch's default.
const MOMENTUM: f64 = 0.1;

/// Linear probes in training.
pub struct RandomCropProbe<'a> {
    config: LinearConfig,
    backbone: &'a dyn Backbone,
    extraction: Extraction,
    batches: Batches,
    schedule: Schedule,
    labels: Vec<u32>,
    classes: usize,
    probes: Vec<Probe>,
    steps: u64,
    done: u64,
}

/// The classifiers of one layer, one for each learning rate, and their batch norm's statistics.
struct Probe {
    layer: Layer,
    dim: usize,
    cells: usize,
    classifiers: Classifiers,
    running: ChannelStatistics,
}

impl Probe {
    /// A step of each classifier on a batch, at its own rate. Returns the mean loss before the step, in
    /// nats.
    fn learn(
        &mut self,
        features: &LayerFeatures,
        (labels, classes): (&[u32], usize),
        rates: &[f64],
        config: &LinearConfig,
    ) -> f64 {
        let statistics = ChannelStatistics::of(features);
        let samples = Samples {
            features,
            standardizer: &statistics.standardizer(self.cells),
            labels,
            classes,
        };
        let rows: Vec<u32> = (0..labels.len() as u32).collect();
        let gradient = gradient(&samples, &rows, &self.classifiers.folded());
        let (momentum, decay) = (config.momentum, config.weight_decay);
        self.classifiers.step(&gradient, rates, momentum, decay);
        self.running.follow(&statistics, MOMENTUM);
        gradient.loss
    }
}

impl<'a> RandomCropProbe<'a> {
    /// Probes of `backbone`'s layers on `pack`. `view` makes the training views; `extraction` says which
    /// layers are read, how they are pooled, how test images are seen, and how many threads decode. All
    /// randomness comes from `seed`.
    ///
    /// # Errors
    /// [`EvalError::Setting`] as [`LinearConfig::check`], for a batch of more images than there are, for
    /// several poolings, and for several learning rates with [`Select::Validation`]; [`EvalError::Unlabelled`];
    /// [`EvalError::Model`] if the backbone cannot take images of that size.
    pub fn new(
        config: &LinearConfig,
        backbone: &'a dyn Backbone,
        pack: Pack,
        view: ImageView,
        extraction: Extraction,
        seed: u64,
    ) -> Result<Self> {
        config.check()?;
        check(
            "crops",
            format!("{:?}", config.crops).to_lowercase(),
            config.crops == Crops::Random,
            "must be random",
        )?;
        check(
            "select",
            format!("{:?}", config.select).to_lowercase(),
            config.lrs.len() == 1 || config.select == Select::Test,
            "must be test where several rates are tried on random crops; or give a single rate",
        )?;
        let pool = &extraction.pool;
        check(
            "pool",
            pool,
            pool.only().is_some(),
            "must be one pooling where probes learn from random crops, which leave none to choose by; give \
             eval.pool=grid, as published, or eval.pool=average",
        )?;
        let images = pack.len();
        check(
            "batch_size",
            config.batch_size,
            (2..=images).contains(&config.batch_size),
            &format!("must lie between 2 and {images}, the images of the pack"),
        )?;
        let labels = (0..pack.len()).map(|index| {
            let set = "training";
            pack.label(index)
                .ok_or(EvalError::Unlabelled { set, index })
        });
        let labels: Vec<u32> = labels.collect::<Result<_>>()?;
        let classes = pack.class_names().len();
        let loader = Loader::new(
            Arc::new(pack),
            view,
            None,
            LoaderConfig {
                batch_size: config.batch_size,
                workers: extraction.workers,
                seed,
                on_corrupt: OnCorrupt::Fail,
                ..LoaderConfig::default()
            },
        )?;
        let epoch = loader.steps_per_epoch();
        let probes = feature_sizes(backbone, &extraction)?.into_iter();
        let probes = probes.map(|(layer, dim, cells)| Probe {
            layer,
            dim,
            cells,
            classifiers: Classifiers::zero((dim, cells), classes, config.lrs.len(), config.affine),
            running: ChannelStatistics::standard(dim / cells),
        });
        Ok(Self {
            probes: probes.collect(),
            schedule: config.schedule(epoch)?,
            steps: (epoch * config.epochs) as u64,
            done: 0,
            config: config.clone(),
            backbone,
            extraction,
            batches: Batches::after(loader, 0),
            labels,
            classes,
        })
    }

    /// Bytes of the classifiers with their momentum.
    pub fn bytes(&self) -> u64 {
        let numbers = self.probes.iter().map(|probe| probe.classifiers.numbers());
        (numbers.sum::<usize>() * size_of::<f32>()) as u64
    }

    /// The accuracy on `test`; `progress` is called with the images done and the images in all. Of
    /// several learning rates the best one on `test` is reported.
    ///
    /// # Errors
    /// [`EvalError::Data`] for an image that cannot be decoded; [`EvalError::Unlabelled`];
    /// [`EvalError::Diverged`] if no rate led to finite weights.
    pub fn evaluate(
        &self,
        test: &Pack,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<LinearReport> {
        let lrs = &self.config.lrs;
        let mut tallies = vec![vec![Some(Tally::default()); lrs.len()]; self.probes.len()];
        let standardizers = self.probes.iter().map(|probe| {
            let Probe { running, cells, .. } = probe;
            running.standardizer(*cells)
        });
        let standardizers: Vec<Standardizer> = standardizers.collect();
        let mut seen = 0;
        let Extraction {
            view,
            batch_size,
            workers,
            ..
        } = &self.extraction;
        let device = &self.backbone.device();
        for batch in eval_batches(test, view, *batch_size, *workers, device)? {
            let (images, labels) = batch?;
            let labels = labels.into_iter().enumerate().map(|(row, label)| {
                let (set, index) = ("test", seen + row);
                label.ok_or(EvalError::Unlabelled { set, index })
            });
            let labels: Vec<u32> = labels.collect::<Result<_>>()?;
            let number = |row| seen + row;
            let read = read_features(self.backbone, &images, &self.extraction, number)?;
            let rows: Vec<u32> = (0..labels.len() as u32).collect();
            for (place, (probe, features)) in self.probes.iter().zip(&read).enumerate() {
                let samples = Samples {
                    features,
                    standardizer: &standardizers[place],
                    labels: &labels,
                    classes: self.classes,
                };
                let found = accuracy(&samples, &rows, &probe.classifiers.folded());
                for (tally, found) in tallies[place].iter_mut().zip(found) {
                    *tally = tally.take().zip(found).map(|(a, b)| a.merge(b));
                }
            }
            seen += labels.len();
            progress(seen, test.len());
        }
        let mut layers = BTreeMap::new();
        for (probe, tallies) in self.probes.iter().zip(&tallies) {
            let diverged = || EvalError::Diverged {
                layer: probe.layer.clone(),
                lrs: lrs.clone(),
            };
            let rates = rates(lrs, tallies);
            let lr = choose(&rates).ok_or_else(diverged)?.lr;
            let tally = lrs.iter().zip(tallies).find(|(other, _)| **other == lr);
            let tally = tally.and_then(|(_, tally)| tally.as_ref());
            let tally = tally.ok_or_else(diverged)?;
            let report = LayerReport {
                top1: tally.top1(),
                top5: tally.top5(),
                lr,
                held_out: None,
                pool: None,
                dim: probe.dim,
                rates: if lrs.len() > 1 { rates } else { Vec::new() },
            };
            layers.insert(probe.layer.clone(), (report, tally.clone()));
        }
        LinearReport::new(layers, self.config.select, test.class_names())
    }
}

impl Training for RandomCropProbe<'_> {
    type Error = EvalError;

    fn name(&self) -> &'static str {
        "training linear probes"
    }

    fn steps(&self) -> u64 {
        self.steps
    }

    fn steps_per_epoch(&self) -> u64 {
        self.batches.loader().steps_per_epoch() as u64
    }

    fn done(&self) -> u64 {
        self.done
    }

    /// The loss is the mean over layers and rates, the learning rate the first.
    fn step(&mut self) -> Result<Step> {
        let (batch, waited) = self.batches.timed_next()?;
        let indices = &batch.indices;
        let labels = indices.iter().map(|index| self.labels[*index as usize]);
        let labels: Vec<u32> = labels.collect();
        let share = self.schedule.lr(self.done as usize);
        let rates: Vec<f64> = self.config.lrs.iter().map(|lr| lr * share).collect();
        let number = |row: usize| indices[row] as usize;
        let device = &self.backbone.device();
        let images = batch.normalize.apply(&batch.images, device)?;
        let read = read_features(self.backbone, &images, &self.extraction, number)?;
        let probes = self.probes.iter_mut().zip(&read);
        let losses = probes.map(|(probe, features)| {
            probe.learn(features, (&labels, self.classes), &rates, &self.config)
        });
        let loss = losses.sum::<f64>() / read.len() as f64;
        self.done += 1;
        Ok(Step {
            loss: loss as f32,
            lr: rates[0],
            images: labels.len(),
            waited,
            metrics: Vec::new(),
        })
    }

    /// Writes classifiers, momentum and running statistics: `linear.safetensors`.
    fn save(&self, folder: &Path, _: &mut State) -> Result<()> {
        let mut tensors = HashMap::new();
        for probe in &self.probes {
            let Probe { layer, running, .. } = probe;
            for (name, values) in probe.classifiers.parts() {
                let values = Tensor::from_slice(values, values.len(), &Device::Cpu)?;
                tensors.insert(format!("{layer}.{name}"), values);
            }
            for (name, values) in running.parts() {
                let values = Tensor::from_slice(values, values.len(), &Device::Cpu)?;
                tensors.insert(format!("{layer}.{name}"), values);
            }
        }
        Ok(save_tensors(&folder.join(FILE), &tensors)?)
    }

    /// Nothing is restored of a file that does not fit.
    fn restore(&mut self, folder: &Path, state: &State) -> Result<()> {
        let path = folder.join(FILE);
        let bad = |reason| TrainError::Checkpoint {
            path: path.clone(),
            reason,
        };
        let saved = load_state_dict(&path)?;
        let find = |name: String, len: usize, dtype: DType| -> Result<Tensor> {
            let tensor = saved.get(&name);
            let tensor = tensor.ok_or_else(|| bad(format!("it has no tensor {name}")))?;
            if tensor.elem_count() != len || tensor.dtype() != dtype {
                let (found, kind) = (tensor.elem_count(), tensor.dtype());
                let reason = format!("{name} has {found} numbers ({kind:?}), expected {len}");
                return Err(bad(reason).into());
            }
            Ok(tensor.flatten_all()?)
        };
        // Everything is read before anything is replaced.
        let mut restored = Vec::with_capacity(self.probes.len());
        for probe in &self.probes {
            let Probe { layer, running, .. } = probe;
            let mut single = Vec::new();
            for (name, values) in probe.classifiers.parts() {
                let tensor = find(format!("{layer}.{name}"), values.len(), DType::F32)?;
                single.push(tensor.to_vec1::<f32>()?);
            }
            let mut double = Vec::new();
            for (name, values) in running.parts() {
                let tensor = find(format!("{layer}.{name}"), values.len(), DType::F64)?;
                double.push(tensor.to_vec1::<f64>()?);
            }
            restored.push((single, double));
        }
        for (probe, (single, double)) in self.probes.iter_mut().zip(restored) {
            for (values, saved) in probe.classifiers.parts_mut().into_iter().zip(single) {
                *values = saved;
            }
            for (values, saved) in probe.running.parts_mut().into_iter().zip(double) {
                *values = saved;
            }
        }
        self.done = state.step;
        self.batches.seek(self.done);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::gradient::logits;
    use super::*;

    #[test]
    fn steps_and_running_statistics_equal_those_of_pytorch() {
        let (rows, dim, cells, classes) = (16, 6, 2, 4);
        let config = LinearConfig {
            weight_decay: 0.01,
            ..LinearConfig::default()
        };
        let features = |seed, rows: usize| {
            let values = benches::fill(seed, rows * dim);
            let values = values.iter().map(|x| x * 2.0 + 1.0).collect();
            LayerFeatures::with_cells(Layer::RES5, rows, dim, cells, values).unwrap()
        };
        let labels: Vec<u32> = (0..rows as u32).map(|i| i * 7 % 11 % 4).collect();
        let mut probe = Probe {
            layer: Layer::RES5,
            dim,
            cells,
            classifiers: Classifiers::zero((dim, cells), classes, 1, true),
            running: ChannelStatistics::standard(dim / cells),
        };
        let of = (&labels[..], classes);
        let losses: Vec<f64> = (0..6)
            .map(|step| probe.learn(&features(51 + step, rows), of, &[0.2], &config))
            .collect();
        let test = features(60, 10);
        let samples = Samples {
            features: &test,
            standardizer: &probe.running.standardizer(cells),
            labels: &labels,
            classes,
        };
        let rows: Vec<u32> = (0..10).collect();
        let [logits, _] = logits(&samples, &rows, &probe.classifiers.folded());
        let golden = include_str!("../../tests/golden/sgd.json");
        let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
        let golden =
            |key: &str| -> Vec<f64> { serde_json::from_value(golden[key].clone()).unwrap() };
        let logits: Vec<f64> = logits.into_iter().map(f64::from).collect();
        for (key, found) in [("batch_losses", losses), ("batch_logits", logits)] {
            let expected = golden(key);
            assert_eq!(found.len(), expected.len(), "{key}");
            for (found, expected) in found.iter().zip(&expected) {
                assert!(
                    (found - expected).abs() < 1e-5,
                    "{key}: {found}, {expected}"
                );
            }
        }
    }
}
