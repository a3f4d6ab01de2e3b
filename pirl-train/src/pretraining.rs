//! A learner that is fed by a loader: pre-training.

use std::path::Path;
use std::time::Duration;

use pirl_core::{SettingError, check};
use pirl_data::Loader;
use pirl_model::{ModelError, Schedule, ScheduleConfig};

use crate::batches::Batches;
use crate::checkpoint::State;
use crate::error::{Result, TrainError};
use crate::learner::Learner;
use crate::objective::Objective;
use crate::shared_training::share_steps;
use crate::training::{Metric, Step, Training};

/// How long a pre-training is, and its learning rate.
#[derive(Clone, Debug)]
pub struct PretrainingConfig {
    /// Passes over the images; 800, the paper's, by default.
    pub epochs: usize,
    /// Stop after this many steps in all; 0, the default, for no such limit.
    pub steps: u64,
    /// Base learning rate, which the schedule scales; 0.12, the paper's for batches of 1,024, by default.
    pub lr: f64,
    /// How it changes.
    pub schedule: ScheduleConfig,
}

impl Default for PretrainingConfig {
    fn default() -> Self {
        Self {
            epochs: 800,
            steps: 0,
            lr: 0.12,
            schedule: ScheduleConfig::default(),
        }
    }
}

impl PretrainingConfig {
    /// # Errors
    /// Names the first field whose value cannot work, those of the schedule as `schedule.gamma`.
    pub fn check(&self) -> Result<(), SettingError> {
        let epochs = self.epochs;
        check("epochs", epochs, epochs > 0, "must be at least 1")?;
        let fits = self.lr.is_finite() && self.lr >= 0.0;
        check("lr", self.lr, fits, "must be finite and at least 0")?;
        let schedule = self.schedule.check();
        schedule.map_err(|error| error.within("schedule"))
    }
}

/// A learner, the batches it learns from, and how far it has come.
pub struct Pretraining<O: Objective> {
    learner: Learner<O>,
    batches: Batches,
    schedule: Schedule,
    steps: u64,
    done: u64,
    /// Broken images replaced by others since this process began.
    skipped: u64,
}

impl<O: Objective> Pretraining<O> {
    /// A pre-training of `learner` on the batches of `loader`.
    ///
    /// # Errors
    /// [`TrainError::Setting`] for a setting out of range, or a warm-up longer than the run.
    pub fn new(learner: Learner<O>, loader: Loader, config: &PretrainingConfig) -> Result<Self> {
        config.check()?;
        let epoch = loader.steps_per_epoch();
        let schedule = Schedule::new(&config.schedule, config.lr, epoch, config.epochs);
        let schedule = schedule.map_err(|error| match error {
            ModelError::Setting(error) => error.within("schedule").into(),
            error => TrainError::from(error),
        })?;
        let whole = (epoch as u64).saturating_mul(config.epochs as u64);
        Ok(Self {
            learner,
            batches: Batches::after(loader, 0),
            schedule,
            steps: match config.steps {
                0 => whole,
                limit => whole.min(limit),
            },
            done: 0,
            skipped: 0,
        })
    }

    /// What learns.
    pub fn learner(&self) -> &Learner<O> {
        &self.learner
    }

    /// The same, to be changed before the first step.
    pub fn learner_mut(&mut self) -> &mut Learner<O> {
        &mut self.learner
    }

    /// Broken images replaced by others since this process began.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }
}

impl<O: Objective> Training for Pretraining<O> {
    type Error = TrainError;

    fn name(&self) -> &'static str {
        "training"
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

    /// Goes on where rank 0 is, with what rank 0 has.
    fn begin(&mut self) -> Result<()> {
        self.done = share_steps(self.learner.ranks(), self.done)?;
        self.batches.seek(self.done);
        self.learner.begin()
    }

    fn step(&mut self) -> Result<Step> {
        let lr = self.schedule.lr(self.done as usize);
        let count = self.batches.loader().parts();
        let batches = &mut self.batches;
        let (mut waited, mut images) = (Duration::ZERO, 0);
        let parts = (0..count).map(|_| {
            let (part, time) = batches.timed_next()?;
            waited += time;
            images = part.batch_size;
            Ok(part)
        });
        let losses = self.learner.step(parts, self.done + 1, lr)?;
        self.done += 1;
        self.skipped += losses.skipped as u64;
        let mut metrics = losses.metrics;
        metrics.push(("skipped", Metric::Count(self.skipped)));
        metrics.extend(self.learner.scale_metrics());
        Ok(Step {
            loss: losses.total,
            lr,
            images,
            waited,
            metrics,
        })
    }

    fn any(&self, flag: bool) -> Result<bool> {
        self.learner.any(flag)
    }

    fn save(&self, folder: &Path, state: &mut State) -> Result<()> {
        self.learner.save(folder, state)
    }

    fn assist(&self) -> Result<()> {
        self.learner.objective().assist()
    }

    fn restore(&mut self, folder: &Path, state: &State) -> Result<()> {
        self.learner.restore(folder, state)?;
        self.done = state.step;
        self.batches.seek(self.done);
        Ok(())
    }
}
