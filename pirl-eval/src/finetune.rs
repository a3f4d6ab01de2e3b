//! Fine-tuning: the whole network and a linear classifier on it, trained on some or all labels.
//!
//! VISSL's protocol (`configs/config/benchmark/semi_supervised/imagenet1k` and
//! `.../fulltune/imagenet1k`): random crops and flips, batch norm in training mode, SGD with
//! Nesterov momentum, a rate that falls in steps; then the plain view of each test image.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use pirl_core::{SettingError, check};
use pirl_data::{EvalView, ImageView, Loader, LoaderConfig, Pack, eval_batches};
use pirl_model::{
    Backbone, ClassifierHead, Head, Mode, ModelConfig, Ops, OptimConfig, Optimizer, Schedule,
    ScheduleConfig, ScheduleKind, Trainable, load_state_dict, save_state_dict, save_tensors,
};
use pirl_train::{Batches, MODEL, OPTIMIZER, State, Step, TrainError, Training};
use serde::{Deserialize, Serialize};

use crate::accuracy::Tally;
use crate::classification::Classification;
use crate::error::{EvalError, Result};
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
    steps: u64,
    done: u64,
}

impl<'a> Finetune<'a> {
    /// Fine-tunes `backbone` on all images of `pack`, seen through `view`. `ops` computes classifier and
    /// optimiser. `workers` threads decode (0: one for each core). All randomness (the classifier's first
    /// weights, the order, the views) comes from `seed`.
    ///
    /// # Errors
    /// [`EvalError::Setting`], [`EvalError::Model`] or [`EvalError::Data`] for a setting outside
    /// its range, [`EvalError::Unlabelled`].
    pub fn new(
        config: &FinetuneConfig,
        backbone: &'a dyn Backbone,
        ops: Ops,
        pack: Pack,
        view: ImageView,
        workers: usize,
        seed: u64,
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
                workers,
                seed,
                on_corrupt: pirl_data::OnCorrupt::Fail,
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
        let mut trained = backbone.parameter_sets();
        trained.extend(head.parameter_sets());
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
        })
    }

    /// The accuracy on `test`, seen through `view`, `batch_size` images at a time; `progress` is
    /// called with the images done and the images in all.
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
        let mut tally = Tally::default();
        let mut seen = 0;
        for batch in eval_batches(test, view, batch_size, workers, &self.device)? {
            let (images, labels) = batch?;
            let features = self.backbone.forward(&images, Mode::Eval)?;
            let logits = self.head.forward(&features, Mode::Eval)?;
            let classes = logits.dims2()?.1;
            let logits = logits.flatten_all()?.to_vec1::<f32>()?;
            for (z, label) in logits.chunks_exact(classes).zip(labels) {
                let (set, index) = ("test", seen);
                let label = label.ok_or(EvalError::Unlabelled { set, index })?;
                tally
                    .add(z, label as usize)
                    .ok_or(TrainError::LossNotFinite {
                        step: self.done,
                        loss: f32::NAN,
                        lr: self.schedule.lr(self.done as usize),
                    })?;
                seen += 1;
            }
            progress(seen, test.len());
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

    fn step(&mut self) -> Result<Step> {
        let lr = self.schedule.lr(self.done as usize);
        let (batch, waited) = self.batches.timed_next()?;
        let images = batch.normalize.apply(&batch.images, &self.device)?;
        let features = self.backbone.forward(&images, Mode::Train)?;
        let logits = self.head.forward(&features, Mode::Train)?;
        let (rows, classes) = logits.dims2()?;
        // dL/dlogits in closed form, as the linear probes have it.
        let mut gradient = logits.flatten_all()?.to_vec1::<f32>()?;
        let mut loss = 0.0;
        for (z, index) in gradient.chunks_exact_mut(classes).zip(&batch.indices) {
            let set = "training";
            let index = *index as usize;
            let label = self.pack.label(index);
            let label = label.ok_or(EvalError::Unlabelled { set, index })? as usize;
            loss += softmax_minus_target(z, label, 1.0 / rows as f32);
        }
        let loss = (loss / rows as f64) as f32;
        if !loss.is_finite() {
            let step = self.done + 1;
            return Err(TrainError::LossNotFinite { step, loss, lr }.into());
        }
        let gradient = Tensor::from_vec(gradient, (rows, classes), &self.device)?;
        let backward = (logits * gradient)?.sum_all()?.backward()?;
        self.optimizer.accumulate(&backward)?;
        self.optimizer.step(lr)?;
        self.done += 1;
        Ok(Step {
            loss,
            lr,
            images: rows,
            waited,
            metrics: Vec::new(),
        })
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
