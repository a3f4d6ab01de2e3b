//! Linear probes that see new random crops in every epoch: the published protocol.
//!
//! VISSL's `linear_image_classification`: the backbone in evaluation mode, random resized crops and
//! flips, batch norm over each batch of pooled features with running statistics for the test, SGD; the
//! probes of all layers take their step on the same batch. Features are read anew for each batch and
//! never kept. Classifiers start at zero.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use pirl_core::check;
use pirl_data::{Batch, ImageView, Loader, LoaderConfig, OnCorrupt, Pack, Share, eval_batches};
use pirl_model::{Backbone, Layer, Schedule, load_state_dict, save_tensors};
use pirl_train::{
    Batches, Ranks, State, Step, TrainError, Training, any, share_state, share_steps,
};

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
use crate::feature_set::{LayerFeatures, from_bytes, to_bytes};
use crate::gather::{Words, gather, unreadable};
use crate::memory::{check_memory, feature_sizes, images_per_second};

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
    ranks: Ranks,
    steps: u64,
    done: u64,
}

/// How much work probes on random crops are. Displayed, it is a line that says so.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProbeEstimate {
    /// Passes over the training images.
    pub epochs: usize,
    /// Training images.
    pub train: usize,
    /// Test images.
    pub test: usize,
    /// Images that go through the backbone in all.
    pub passes: usize,
    /// How many do in a second, measured on black ones.
    pub images_per_second: f64,
    /// Of the classifiers and their momentum.
    pub bytes: u64,
}

impl fmt::Display for ProbeEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.images_per_second;
        write!(
            f,
            "linear probes on random crops: {} epochs of {} images and a test on {}, {:.1} hours at {rate:.0} \
             images a second; {} MiB of classifiers and their momentum",
            self.epochs,
            self.train,
            self.test,
            self.passes as f64 / rate / 3600.0,
            self.bytes >> 20
        )
    }
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
    /// randomness comes from `seed`. Of several `ranks` each reads the features of its part of a batch, and
    /// all take the same step on the features of the whole batch: the step of a process that is alone.
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
        ranks: &Ranks,
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
                micro_batch: config.batch_size.div_ceil(ranks.size()),
                workers: extraction.workers,
                seed,
                on_corrupt: OnCorrupt::Fail,
                share: Share {
                    rank: ranks.rank(),
                    ranks: ranks.size(),
                },
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
            ranks: Ranks::clone(ranks),
        })
    }

    /// Bytes of the classifiers with their momentum.
    fn bytes(&self) -> u64 {
        let numbers = self.probes.iter().map(|probe| probe.classifiers.numbers());
        (numbers.sum::<usize>() * size_of::<f32>()) as u64
    }

    /// What is about to begin, with a test on `test`.
    ///
    /// # Errors
    /// [`EvalError::Memory`] if the classifiers do not fit into memory; as [`feature_bytes`](crate::feature_bytes).
    pub fn estimate(&self, test: &Pack) -> Result<ProbeEstimate> {
        let bytes = self.bytes();
        check_memory(bytes, None)?;
        let rate = images_per_second(self.backbone, &self.extraction)?;
        Ok(ProbeEstimate {
            epochs: self.config.epochs,
            train: self.labels.len(),
            test: test.len(),
            passes: self.steps as usize * self.config.batch_size + test.len(),
            images_per_second: rate * self.ranks.size() as f64,
            bytes,
        })
    }

    /// The accuracy on `test`; `progress` is called with the images done and the images in all. Of
    /// several learning rates the best one on `test` is reported. All ranks call this, and have the same
    /// result.
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
        let Extraction {
            view,
            batch_size,
            workers,
            ..
        } = &self.extraction;
        let device = &self.backbone.device();
        let (rank, size) = (self.ranks.rank(), self.ranks.size());
        let batches = eval_batches(test, view, *batch_size, *workers, device)?;
        let mut own = Vec::new();
        for (turn, batch) in batches.skip(rank).step_by(size).enumerate() {
            let (images, labels) = batch?;
            let first = (turn * size + rank) * batch_size;
            let labels = labels.into_iter().enumerate().map(|(row, label)| {
                let (set, index) = ("test", first + row);
                label.ok_or(EvalError::Unlabelled { set, index })
            });
            let labels: Vec<u32> = labels.collect::<Result<_>>()?;
            let number = |row| first + row;
            let read = read_features(self.backbone, &images, &self.extraction, number)?;
            let rows: Vec<u32> = (0..labels.len() as u32).collect();
            let mut found = Vec::new();
            for (place, (probe, features)) in self.probes.iter().zip(&read).enumerate() {
                let samples = Samples {
                    features,
                    standardizer: &standardizers[place],
                    labels: &labels,
                    classes: self.classes,
                };
                for tally in accuracy(&samples, &rows, &probe.classifiers.folded()) {
                    found.push(u32::from(tally.is_some()));
                    found.extend(tally.map_or_else(Vec::new, |tally| tally.to_words()));
                }
            }
            own.push(found);
            progress((first + size * batch_size).min(test.len()), test.len());
        }
        let count = test.len().div_ceil(*batch_size);
        for found in gather(self.ranks.as_ref(), count, own)? {
            let mut words = found.into_iter();
            for tally in tallies.iter_mut().flatten() {
                let finite = words.next().ok_or_else(unreadable)? == 1;
                let found = finite.then(|| Tally::from_words(&mut words).ok_or_else(unreadable));
                let found = found.transpose()?;
                *tally = tally.take().zip(found).map(|(a, b)| a.merge(b));
            }
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

impl RandomCropProbe<'_> {
    /// The images of a batch, of which this rank has `part`, and their features at each layer.
    fn read(&self, part: Batch) -> Result<(Vec<u32>, Vec<LayerFeatures>)> {
        let indices = part.indices;
        let number = |row: usize| indices[row] as usize;
        let device = &self.backbone.device();
        let images = part.normalize.apply(&part.images, device)?;
        let mut read = read_features(self.backbone, &images, &self.extraction, number)?;
        if self.ranks.size() == 1 {
            return Ok((indices, read));
        }
        let kinds: Vec<LayerFeatures> = read.iter().map(LayerFeatures::kind).collect();
        let own = indices.iter().flat_map(|index| index.to_le_bytes());
        let all = self.ranks.all_gather(own.collect())?;
        let features = self.ranks.all_gather(to_bytes(&read))?;
        let mut indices = Vec::new();
        read.clear();
        for (own, features) in all.iter().zip(&features) {
            let own: Vec<u32> = Words::of(own).collect();
            let found = from_bytes(&kinds, own.len(), features)?;
            match read.is_empty() {
                true => read = found,
                false => {
                    let pairs = read.iter_mut().zip(found);
                    pairs.for_each(|(before, found)| before.append(found));
                }
            }
            indices.extend(own);
        }
        Ok((indices, read))
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

    /// Gives all ranks what rank 0 has.
    fn begin(&mut self) -> Result<()> {
        let ranks = self.ranks.as_ref();
        if ranks.size() == 1 {
            return Ok(());
        }
        self.done = share_steps(ranks, self.done)?;
        self.batches.seek(self.done);
        share_state(ranks, self.backbone)?;
        for probe in &mut self.probes {
            for values in probe.classifiers.parts_mut() {
                let bytes = values.iter().flat_map(|value| value.to_le_bytes());
                let bytes = ranks.broadcast(0, bytes.collect())?;
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            for values in probe.running.parts_mut() {
                let bytes = values.iter().flat_map(|value| value.to_le_bytes());
                let bytes = ranks.broadcast(0, bytes.collect())?;
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                    *value = f64::from_le_bytes(*bytes);
                }
            }
        }
        Ok(())
    }

    /// The loss is the mean over layers and rates, the learning rate the first.
    fn step(&mut self) -> Result<Step> {
        let (batch, waited) = self.batches.timed_next()?;
        let share = self.schedule.lr(self.done as usize);
        let rates: Vec<f64> = self.config.lrs.iter().map(|lr| lr * share).collect();
        let (indices, read) = self.read(batch)?;
        let labels = indices.iter().map(|index| self.labels[*index as usize]);
        let labels: Vec<u32> = labels.collect();
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

    fn any(&self, flag: bool) -> Result<bool> {
        Ok(any(self.ranks.as_ref(), flag)?)
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
