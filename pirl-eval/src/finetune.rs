//! Fine-tuning: the whole network and a linear classifier on it, trained on some or all labels.
//!
//! VISSL's protocol (`configs/config/benchmark/semi_supervised/imagenet1k` and
//! `.../fulltune/imagenet1k`): random crops and flips, batch norm in training mode, SGD with
//! Nesterov momentum, a rate that falls in steps; then the plain view of each test image.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use candle_core::{Device, Tensor};
use pirl_core::{SettingError, check};
use pirl_data::{
    Batch, EvalView, ImageView, Loader, LoaderConfig, OnCorrupt, Pack, Share, eval_batches,
};
use pirl_model::{
    Backbone, ClassifierHead, Head, Mode, ModelConfig, Ops, OptimConfig, Optimizer, ParamSet,
    Schedule, ScheduleConfig, ScheduleKind, Trainable, load_state_dict, save_state_dict,
    save_tensors,
};
use pirl_train::{
    Batches, MODEL, OPTIMIZER, Ranks, State, Step, TrainError, Training, any, ensure_alike,
    share_optimizer, share_state, share_steps, sum_gradients, sum_values,
};
use serde::{Deserialize, Serialize};

use crate::accuracy::Tally;
use crate::classification::Classification;
use crate::error::{EvalError, Result};
use crate::gather::{gather, unreadable};
use crate::label_subset::check_label_fraction;
use crate::linear::softmax_minus_target;

/// Settings of [`Finetune`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FinetuneConfig {
    /// Part of the training labels used, in `(0, 1]`; all by default. It is only reported here:
    /// [`crate::LabelSubset`] chooses the images.
    pub label_fraction: f64,
    /// Passes over the labelled images; 70 by default.
    pub epochs: usize,
    /// Images in a step; 256 by default. An epoch has whole batches only; the images left over are not
    /// used in it.
    pub batch_size: usize,
    /// Most images that go through the network at once, which is what batch norm sees: a batch comes in as few
    /// parts as that allows. 0, the default: all of it, or of several ranks each one's share.
    pub micro_batch: usize,
    /// Learning rate; 0.01 by default, VISSL's for PIRL's lists of 1 % and 10 % of ImageNet.
    pub lr: f64,
    /// How it falls: `multi-step` (x `gamma` after each milestone; the default), `cosine` (to
    /// zero) or `constant`.
    pub schedule: ScheduleKind,
    /// Epochs after which a `multi-step` rate falls; 30 by default.
    pub milestones: Vec<usize>,
    /// Factor at each milestone; 0.1 by default.
    pub gamma: f64,
    /// Nesterov momentum in `(0, 1)`; 0.9 by default.
    pub momentum: f64,
    /// L2 decay of all parameters except those of batch norm and biases; 0 by default.
    pub weight_decay: f64,
}

impl Default for FinetuneConfig {
    fn default() -> Self {
        Self {
            label_fraction: 1.0,
            epochs: 70,
            batch_size: 256,
            micro_batch: 0,
            lr: 0.01,
            schedule: ScheduleKind::MultiStep,
            milestones: vec![30],
            gamma: 0.1,
            momentum: 0.9,
            weight_decay: 0.0,
        }
    }
}

impl FinetuneConfig {
    /// # Errors
    /// Names the first field whose value cannot work.
    pub fn check(&self) -> Result<(), SettingError> {
        check_label_fraction(self.label_fraction)?;
        for (field, value) in [("epochs", self.epochs), ("batch_size", self.batch_size)] {
            check(field, value, value > 0, "must be at least 1")?;
        }
        self.optim().check()?;
        self.schedule_config().check()
    }

    fn optim(&self) -> OptimConfig {
        OptimConfig {
            lr: self.lr,
            momentum: self.momentum,
            nesterov: true,
            weight_decay: self.weight_decay,
            ..OptimConfig::default()
        }
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
}

/// The result of fine-tuning. Accuracies are in percent of the test set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FinetuneReport {
    /// Share of test images whose right class is predicted first.
    pub top1: f64,
    /// Share of test images whose right class is among the first five.
    pub top5: f64,
    /// [`FinetuneConfig::label_fraction`], the part of the training labels used.
    pub label_fraction: f64,
    /// Number of training images.
    pub labelled_images: usize,
    /// Steps of training.
    pub steps: usize,
    /// Class by class.
    #[serde(flatten)]
    pub classification: Classification,
}

impl fmt::Display for FinetuneReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            top1,
            top5,
            labelled_images,
            steps,
            ..
        } = self;
        let part = 100.0 * self.label_fraction;
        write!(
            f,
            "fine-tuned on {labelled_images} labelled images ({part:.3}% of them), {steps} steps: top-1 \
             {top1:.2}%, top-5 {top5:.2}%"
        )
    }
}

/// A network that is being fine-tuned. It changes the backbone it was made with.
pub struct Finetune<'a> {
    backbone: &'a dyn Backbone,
    head: ClassifierHead,
    optimizer: Optimizer,
    batches: Batches,
    schedule: Schedule,
    pack: Arc<Pack>,
    device: Device,
    label_fraction: f64,
    ranks: Ranks,
    steps: u64,
    done: u64,
}

impl<'a> Finetune<'a> {
    /// Fine-tunes `backbone` on all images of `pack`, seen through `view`. `ops` computes classifier and
    /// optimiser. `workers` threads decode (0: one for each core). All randomness (the classifier's first
    /// weights, the order, the views) comes from `seed`. Each of `ranks` makes one, and they share every
    /// batch.
    ///
    /// # Errors
    /// [`EvalError::Setting`], [`EvalError::Model`] or [`EvalError::Data`] for a setting outside
    /// its range, [`EvalError::Unlabelled`].
    pub fn new(
        config: &FinetuneConfig,
        backbone: &'a dyn Backbone,
        ops: Ops,
        (pack, view): (Pack, ImageView),
        workers: usize,
        seed: u64,
        ranks: &Ranks,
    ) -> Result<Self> {
        config.check()?;
        let images = pack.len();
        check(
            "batch_size",
            config.batch_size,
            config.batch_size <= images,
            &format!("must be at most {images}, the labelled images"),
        )?;
        let unlabelled = (0..pack.len()).find(|index| pack.label(*index).is_none());
        if let Some(index) = unlabelled {
            let set = "training";
            return Err(EvalError::Unlabelled { set, index });
        }
        let pack = Arc::new(pack);
        let loader = Loader::new(
            Arc::clone(&pack),
            view,
            None,
            LoaderConfig {
                batch_size: config.batch_size,
                micro_batch: match config.micro_batch {
                    0 => config.batch_size.div_ceil(ranks.size()),
                    images => images,
                },
                workers,
                seed,
                on_corrupt: OnCorrupt::Fail,
                share: Share {
                    rank: ranks.rank(),
                    ranks: ranks.size(),
                },
                ..LoaderConfig::default()
            },
        )?;
        let device = backbone.device();
        let (features, classes) = (backbone.feature_dim(), pack.class_names().len());
        let model = ModelConfig {
            ops,
            ..ModelConfig::default()
        };
        let head = ClassifierHead::new(&model, features, 1, classes, seed, &device)?;
        let trained = parameters(backbone, &head);
        let epoch = loader.steps_per_epoch();
        Ok(Self {
            optimizer: Optimizer::new(&config.optim(), trained)?.with_ops(ops),
            schedule: Schedule::new(&config.schedule_config(), config.lr, epoch, config.epochs)?,
            steps: (epoch * config.epochs) as u64,
            label_fraction: config.label_fraction,
            done: 0,
            backbone,
            head,
            batches: Batches::after(loader, 0),
            pack,
            device,
            ranks: Ranks::clone(ranks),
        })
    }

    /// The accuracy on `test`, seen through `view`, `batch_size` images at a time; `progress` is
    /// called with the images done and the images in all. All ranks call this, and have the same result.
    ///
    /// # Errors
    /// [`EvalError::Data`] for an image that cannot be decoded, [`EvalError::Unlabelled`],
    /// [`TrainError::LossNotFinite`] if an output is not a number.
    pub fn evaluate(
        &self,
        test: &Pack,
        view: &EvalView,
        batch_size: usize,
        workers: usize,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<FinetuneReport> {
        let ranks = self.ranks.as_ref();
        // Running statistics are those of each rank's own parts.
        share_state(ranks, self.backbone)?;
        let (rank, size) = (ranks.rank(), ranks.size());
        let batches = eval_batches(test, view, batch_size, workers, &self.device)?;
        let mut own = Vec::new();
        for (turn, batch) in batches.skip(rank).step_by(size).enumerate() {
            let (images, labels) = batch?;
            let first = (turn * size + rank) * batch_size;
            let features = self.backbone.forward(&images, Mode::Eval)?;
            let logits = self.head.forward(&features, Mode::Eval)?;
            let classes = logits.dims2()?.1;
            let logits = logits.flatten_all()?.to_vec1::<f32>()?;
            let mut tally = Tally::default();
            let rows = logits.chunks_exact(classes).zip(labels);
            for (row, (z, label)) in rows.enumerate() {
                let (set, index) = ("test", first + row);
                let label = label.ok_or(EvalError::Unlabelled { set, index })?;
                tally
                    .add(z, label as usize)
                    .ok_or(TrainError::LossNotFinite {
                        step: self.done,
                        loss: f32::NAN,
                        lr: self.schedule.lr(self.done as usize),
                    })?;
            }
            own.push(tally.to_words());
            progress((first + size * batch_size).min(test.len()), test.len());
        }
        let mut tally = Tally::default();
        for words in gather(ranks, test.len().div_ceil(batch_size), own)? {
            let found = Tally::from_words(&mut words.into_iter());
            tally = tally.merge(found.ok_or_else(unreadable)?);
        }
        Ok(FinetuneReport {
            top1: tally.top1(),
            top5: tally.top5(),
            label_fraction: self.label_fraction,
            labelled_images: self.pack.len(),
            steps: self.done as usize,
            classification: tally.classification(test.class_names())?,
        })
    }
}

/// What is trained.
fn parameters(backbone: &dyn Backbone, head: &ClassifierHead) -> Vec<ParamSet> {
    let mut trained = backbone.parameter_sets();
    trained.extend(head.parameter_sets());
    trained
}

impl Finetune<'_> {
    fn try_step(&mut self) -> Result<Step> {
        let lr = self.schedule.lr(self.done as usize);
        let (mut sum, mut images, mut waited) = (0.0, 0, Duration::ZERO);
        for _ in 0..self.batches.loader().parts() {
            let (part, time) = self.batches.timed_next()?;
            waited += time;
            images = part.batch_size;
            sum += self.differentiate(&part)?;
        }
        let sum: f64 = sum_values(self.ranks.as_ref(), &[sum])?.iter().sum();
        let loss = (sum / images as f64) as f32;
        let step = self.done + 1;
        if !loss.is_finite() {
            return Err(TrainError::LossNotFinite { step, loss, lr }.into());
        }
        let ranks = self.ranks.as_ref();
        sum_gradients(ranks, &mut self.optimizer)?;
        self.optimizer.step(lr)?;
        ensure_alike(ranks, step, &parameters(self.backbone, &self.head))?;
        self.done = step;
        Ok(Step {
            loss,
            lr,
            images,
            waited,
            metrics: Vec::new(),
        })
    }

    /// Adds the gradient of a part of a batch, whose loss is the mean over the whole batch. Returns the sum
    /// of its images' losses.
    fn differentiate(&mut self, part: &Batch) -> Result<f64> {
        let images = part.normalize.apply(&part.images, &self.device)?;
        let features = self.backbone.forward(&images, Mode::Train)?;
        let logits = self.head.forward(&features, Mode::Train)?;
        let (rows, classes) = logits.dims2()?;
        // dL/dlogits in closed form, as the linear probes have it.
        let mut gradient = logits.flatten_all()?.to_vec1::<f32>()?;
        let mut sum = 0.0;
        for (z, index) in gradient.chunks_exact_mut(classes).zip(&part.indices) {
            let set = "training";
            let index = *index as usize;
            let label = self.pack.label(index);
            let label = label.ok_or(EvalError::Unlabelled { set, index })? as usize;
            sum += softmax_minus_target(z, label, 1.0 / part.batch_size as f32);
        }
        let gradient = Tensor::from_vec(gradient, (rows, classes), &self.device)?;
        self.optimizer.backward(&(logits * gradient)?.sum_all()?)?;
        Ok(sum)
    }
}

impl Training for Finetune<'_> {
    type Error = EvalError;

    fn name(&self) -> &'static str {
        "fine-tuning"
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
        self.done = share_steps(ranks, self.done)?;
        self.batches.seek(self.done);
        share_state(ranks, self.backbone)?;
        share_state(ranks, &self.head)?;
        Ok(share_optimizer(ranks, &mut self.optimizer)?)
    }

    fn step(&mut self) -> Result<Step> {
        let step = self.try_step();
        if step.is_err() {
            // Gradients of a step that was not taken are not those of the next.
            self.optimizer.discard();
        }
        step
    }

    fn any(&self, flag: bool) -> Result<bool> {
        Ok(any(self.ranks.as_ref(), flag)?)
    }

    /// Writes weights, statistics and momentum: `model.safetensors`, with the backbone's names, and
    /// torchvision's `fc` for the classifier, and `optimizer.safetensors`.
    fn save(&self, folder: &Path, _: &mut State) -> Result<()> {
        // The classifier's layer is called `fc`, as torchvision's: it needs no prefix.
        let modules = [("", self.backbone as &dyn Trainable), ("", &self.head)];
        save_state_dict(&folder.join(MODEL), &modules)?;
        let momentum = self.optimizer.state()?;
        Ok(save_tensors(&folder.join(OPTIMIZER), &momentum)?)
    }

    fn restore(&mut self, folder: &Path, state: &State) -> Result<()> {
        let bad = |reason| TrainError::Checkpoint {
            path: folder.to_owned(),
            reason,
        };
        let saved = load_state_dict(&folder.join(MODEL))?;
        let missing = [self.backbone.load(&saved)?, self.head.load(&saved)?]
            .into_iter()
            .flat_map(|report| report.missing)
            .next();
        if let Some(name) = missing {
            return Err(bad(format!("it has no tensor {name}")).into());
        }
        let momentum = load_state_dict(&folder.join(OPTIMIZER))?;
        self.optimizer.load_state(&momentum)?;
        self.done = state.step;
        self.batches.seek(self.done);
        Ok(())
    }
}
