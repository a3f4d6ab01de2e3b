//! Training a detector, step by step, and running it over a test set.

use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use pirl_core::{SettingError, check};
use pirl_data::Pack;
use pirl_model::{Mode, Optimizer, ResNet, load_state_dict, save_state_dict, save_tensors};
use pirl_train::{
    MODEL, Metric, OPTIMIZER, Ranks, State, Step, TrainError, Training, any, ensure_alike,
    share_optimizer, share_state, share_steps, sum_gradients, sum_values,
};

use super::boxes::{clip, is_larger_than};
use super::config::DetectConfig;
use super::data::{Draw, Input, Order};
use super::detection::Detection;
use super::detector::{DetectLosses, Detector};
use super::random::Stream;
use crate::error::{EvalError, Result};
use crate::gather::{gather, unreadable};
use crate::probe::same_classes;

/// Checks that a detector trained on one pack can be tested on another.
///
/// # Errors
/// [`EvalError::Setting`] for images that are not RGB, [`EvalError::Classes`], [`EvalError::NoObjects`].
pub fn check_detection_packs(train: &Pack, test: &Pack) -> Result<()> {
    let sets = [("training", train), ("test", test)];
    for (set, pack) in sets {
        check_rgb(set, pack.channels())?;
    }
    same_classes(train.class_names(), test.class_names())?;
    for (set, pack) in sets {
        let has_some = |index| pack.objects(index).is_some_and(|found| !found.is_empty());
        if !(0..pack.len()).any(has_some) {
            let images = pack.len();
            return Err(EvalError::NoObjects { set, images });
        }
    }
    Ok(())
}

/// An error unless the images of a set have three channels.
fn check_rgb(set: &str, channels: usize) -> Result<()> {
    match channels {
        3 => Ok(()),
        _ => {
            let expected = format!(
                "must be 3 in the {set} images: detectors take red, green and blue, and no others"
            );
            Err(SettingError::new("channels", channels, expected).into())
        }
    }
}

/// A detector being trained.
///
/// All randomness of a step comes from the seed and the step's number, so training that goes on from a
/// checkpoint is, to the bit, training that was never interrupted.
pub struct DetectTrainer<'a> {
    detector: Detector,
    optimizer: Optimizer,
    config: DetectConfig,
    input: Input,
    train: &'a Pack,
    order: Order,
    seed: u64,
    done: usize,
    ranks: Ranks,
}

impl<'a> DetectTrainer<'a> {
    /// A detector on a copy of `backbone`, with untrained heads, for the classes of `train`. `mean`
    /// and `std` normalise red, green and blue in `0..=1`. Each of `ranks` makes one, and they share every
    /// batch, a part of it at least for each.
    ///
    /// # Errors
    /// [`EvalError::Setting`], also for images that are not RGB; [`EvalError::NoObjects`]; [`EvalError::Data`] for an image whose
    /// header cannot be read.
    pub fn new(
        backbone: &ResNet,
        train: &'a Pack,
        (mean, std): (&[f32], &[f32]),
        config: &DetectConfig,
        seed: u64,
        ranks: &Ranks,
    ) -> Result<Self> {
        check_rgb("training", train.channels())?;
        let (Ok(mean), Ok(std)) = (<[f32; 3]>::try_from(mean), <[f32; 3]>::try_from(std)) else {
            let expected =
                "must be 3 in mean and std: detectors take red, green and blue, and no others";
            return Err(SettingError::new("channels", mean.len(), expected).into());
        };
        let detector = Detector::new(backbone, train.class_names().len(), config, seed)?;
        let (size, batch_size) = (ranks.size(), config.batch_size);
        let parts = ranges(batch_size, config.micro_batch, size).len();
        let expected = format!("must come in {size} parts or more, one for each rank");
        check("batch_size", batch_size, parts >= size, &expected)?;
        Ok(Self {
            optimizer: Optimizer::new(&config.optim.sgd(), detector.trained())?
                .with_ops(backbone.config().ops),
            input: Input::new(&config.input, mean, std, detector.c4().stride()),
            detector,
            order: Order::new(train, config.batch_size, seed)?,
            config: config.clone(),
            train,
            seed,
            done: 0,
            ranks: Ranks::clone(ranks),
        })
    }

    /// Number of training images in use: those with objects.
    pub fn images(&self) -> usize {
        self.order.len()
    }

    /// A batch as it goes through the network, in parts with their numbers.
    fn parts<'d>(&self, draws: &'d [Draw]) -> Vec<(usize, &'d [Draw])> {
        let parts = ranges(draws.len(), self.config.micro_batch, self.ranks.size());
        let parts = parts.into_iter().map(|part| &draws[part]);
        parts.enumerate().collect()
    }

    /// Those of them that are this rank's.
    fn own_parts<'d>(&self, draws: &'d [Draw]) -> Vec<(usize, &'d [Draw])> {
        let mut parts = self.parts(draws);
        let (rank, size, count) = (self.ranks.rank(), self.ranks.size(), parts.len());
        parts
            .drain(rank * count / size..(rank + 1) * count / size)
            .collect()
    }

    /// Replaces the statistics of trained batch norm by their average over
    /// `config.precise_batch_norm` training batches, computed with the present weights. Does nothing
    /// where batch norm is frozen. Returns the number of batches used.
    ///
    /// # Errors
    /// [`EvalError::Data`].
    pub fn recompute_batch_norm(&self) -> Result<usize> {
        let batches = self.config.precise_batch_norm;
        if batches == 0 || !self.detector.c4().trains_norm() {
            return Ok(0);
        }
        let seed = Stream::Calibrate.seed(self.seed);
        let mut order = Order::new(self.train, self.config.batch_size, seed)?;
        let device = self.detector.device();
        self.detector.c4().reset_statistics();
        for number in 0..batches {
            let draws = order.next_batch();
            for (part, draws) in self.parts(&draws) {
                let mut rng = Stream::Calibrate.generator(seed, number as u64, part as u64);
                let batch = self.input.training(self.train, draws, seed, &device)?;
                self.detector.losses(&batch, Mode::Calibrate, &mut rng)?;
            }
        }
        Ok(batches)
    }

    /// What is found in every image of `test`, in pixels of the stored images, by falling score.
    /// Calls `progress` with the images done and the images in all. All ranks call this, and have the same
    /// result.
    ///
    /// # Errors
    /// [`EvalError::Setting`] for images that are not RGB; [`EvalError::Data`] for an image that cannot be decoded.
    pub fn detect(
        &self,
        test: &Pack,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<Vec<Detection>>> {
        check_rgb("test", test.channels())?;
        let device = self.detector.device();
        let ranks = self.ranks.as_ref();
        // Running statistics are those of each rank's own parts.
        for (_, module) in self.detector.modules() {
            share_state(ranks, module)?;
        }
        let (rank, size) = (ranks.rank(), ranks.size());
        let mut own = Vec::new();
        for index in (rank..test.len()).step_by(size) {
            let batch = self.input.test(test, index, &device)?;
            let (width, height) = test.image_size(index)?;
            let (seen_height, seen_width) = batch.sizes[0];
            let x = width as f32 / seen_width as f32;
            let y = height as f32 / seen_height as f32;
            let in_stored = |found: Detection| {
                let [x0, y0, x1, y1] = found.bbox;
                let bbox = clip([x0 * x, y0 * y, x1 * x, y1 * y], (height, width));
                Detection { bbox, ..found }
            };
            let found = self.detector.detect(&batch)?.into_iter().flatten();
            // Scaled and clipped, a box may have lost its area, as in detectron2.
            let found = found.map(in_stored);
            let found = found.filter(|found| is_larger_than(found.bbox, 0.0));
            own.push(found.flat_map(Detection::to_words).collect());
            progress((index + size).min(test.len()), test.len());
        }
        let all = gather(ranks, test.len(), own)?.into_iter().map(|words| {
            let (found, rest) = words.as_chunks();
            match rest {
                [] => Ok(found.iter().copied().map(Detection::from_words).collect()),
                _ => Err(unreadable()),
            }
        });
        all.collect()
    }
}

impl DetectTrainer<'_> {
    fn try_step(&mut self) -> Result<Step> {
        let draws = self.order.next_batch();
        let lr = self.config.optim.rate(self.done);
        let step = self.done as u64 + 1;
        let mut own = DetectLosses::default();
        let mut waited = Duration::ZERO;
        for (number, part) in self.own_parts(&draws) {
            let mut rng = Stream::Sample.generator(self.seed, step, number as u64);
            let device = self.detector.device();
            let waiting = Instant::now();
            let batch = self.input.training(self.train, part, self.seed, &device)?;
            waited += waiting.elapsed();
            let (losses, graph) = self.detector.losses(&batch, Mode::Train, &mut rng)?;
            let share = part.len() as f64 / draws.len() as f64;
            own.add(share, &losses);
            self.optimizer.backward(&(graph * share)?)?;
        }
        let ranks = self.ranks.as_ref();
        let losses = DetectLosses::of(&sum_values(ranks, &own.values())?);
        let loss = losses.total() as f32;
        if !loss.is_finite() {
            return Err(TrainError::LossNotFinite { step, loss, lr }.into());
        }
        sum_gradients(ranks, &mut self.optimizer)?;
        self.optimizer.step(lr)?;
        ensure_alike(ranks, step, &self.detector.trained())?;
        self.done += 1;
        let terms = [
            ("loss_rpn_objectness", losses.rpn_objectness),
            ("loss_rpn_box", losses.rpn_box),
            ("loss_class", losses.class),
            ("loss_box", losses.r#box),
        ];
        Ok(Step {
            loss,
            lr,
            images: draws.len(),
            waited,
            metrics: terms
                .map(|(key, loss)| (key, Metric::Real(loss as f32)))
                .to_vec(),
        })
    }
}

impl Training for DetectTrainer<'_> {
    type Error = EvalError;

    fn name(&self) -> &'static str {
        "training the detector"
    }

    fn steps(&self) -> u64 {
        self.config.steps as u64
    }

    /// A pass over the images that have objects, rounded down to whole steps.
    fn steps_per_epoch(&self) -> u64 {
        (self.images() / self.config.batch_size.max(1)).max(1) as u64
    }

    fn done(&self) -> u64 {
        self.done as u64
    }

    /// Gives all ranks what rank 0 has.
    fn begin(&mut self) -> Result<()> {
        let ranks = self.ranks.as_ref();
        if ranks.size() == 1 {
            return Ok(());
        }
        self.done = share_steps(ranks, self.done as u64)? as usize;
        self.order = order_after(self.train, &self.config, self.seed, self.done)?;
        for (_, module) in self.detector.modules() {
            share_state(ranks, module)?;
        }
        Ok(share_optimizer(ranks, &mut self.optimizer)?)
    }

    /// [`TrainError::LossNotFinite`], and the parameters are as before; [`EvalError::Data`] for an
    /// image that cannot be decoded.
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

    /// Writes weights and statistics, and the optimiser's momentum.
    fn save(&self, folder: &Path, _: &mut State) -> Result<()> {
        save_state_dict(&folder.join(MODEL), &self.detector.modules())?;
        save_tensors(&folder.join(OPTIMIZER), &self.optimizer.state()?)?;
        Ok(())
    }

    fn restore(&mut self, folder: &Path, state: &State) -> Result<()> {
        let path = folder.join(MODEL);
        let bad = |reason| TrainError::Checkpoint {
            path: path.clone(),
            reason,
        };
        let missing = self.detector.load(&load_state_dict(&path)?)?;
        if let Some(first) = missing.first() {
            let count = missing.len();
            let reason = format!("it lacks {count} tensors, {first} the first");
            return Err(bad(reason).into());
        }
        let momentum = load_state_dict(&folder.join(OPTIMIZER))?;
        self.optimizer.load_state(&momentum)?;
        self.done = state.step as usize;
        self.order = order_after(self.train, &self.config, self.seed, self.done)?;
        Ok(())
    }
}

/// The places of the parts of a batch of `len` images: of at most `most`, or if that is 0 one for each of
/// `ranks`.
fn ranges(len: usize, most: usize, ranks: usize) -> Vec<Range<usize>> {
    let most = match most {
        0 => len.div_ceil(ranks),
        most => most,
    };
    let parts = len.div_ceil(most.max(1)).max(1);
    let places = (0..parts).map(|part| part * len / parts..(part + 1) * len / parts);
    places.collect()
}

/// The batches of the steps after the first `done`.
fn order_after(train: &Pack, config: &DetectConfig, seed: u64, done: usize) -> Result<Order> {
    let mut order = Order::new(train, config.batch_size, seed)?;
    for _ in 0..done {
        order.next_batch();
    }
    Ok(order)
}
