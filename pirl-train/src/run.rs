//! The loop that every training runs in.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::checkpoint::{Checkpoints, State};
use crate::error::{BoxError, TrainError};
use crate::training::{Metric, Step, Training};

/// How often a run logs and saves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunOptions {
    /// Steps from one [`Row`] to the next, at least 1; the last step has one too.
    pub log_every: u64,
    /// Steps from one checkpoint to the next; 0 for one at the end alone.
    pub checkpoint_every: u64,
}

/// What is logged of a step, a line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Steps done, this one included.
    pub step: u64,
    /// The epoch of this step, counted from 1.
    pub epoch: u64,
    /// The loss of this step's batch.
    pub loss: f32,
    /// Learning rate of this step.
    pub lr: f64,
    /// Over the steps since the last row.
    pub images_per_second: f64,
    /// Seconds spent waiting for batches, over the same steps.
    pub data_wait: f64,
    /// More of this step, by key: the terms of its loss, what an observer found after it.
    #[serde(flatten)]
    pub metrics: BTreeMap<&'static str, Metric>,
}

/// Who wants to know how a training goes.
pub trait Observer<T: Training + ?Sized> {
    /// Called after each step. What it returns, an evaluation's result for instance, is logged with the
    /// step, whether or not it is the turn of a row.
    ///
    /// # Errors
    /// Ends the run with this error, nothing saved.
    fn after_step(
        &mut self,
        training: &T,
        step: &Step,
    ) -> Result<Vec<(&'static str, Metric)>, T::Error> {
        let _ = (training, step);
        Ok(Vec::new())
    }

    /// Called with each row.
    ///
    /// # Errors
    /// Ends the run with this error, nothing saved.
    fn log(&mut self, row: &Row) -> Result<(), BoxError> {
        let _ = row;
        Ok(())
    }

    /// Whether the run is to end early, after the step that is done.
    fn interrupted(&self) -> bool {
        false
    }
}

/// Nobody.
impl<T: Training + ?Sized> Observer<T> for () {}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// Whether it was interrupted, with steps left to do.
    pub interrupted: bool,
    /// Loss of the last step, if this call did one.
    pub loss: Option<f32>,
    /// The checkpoint of the last step; `None` if none are kept.
    pub checkpoint: Option<PathBuf>,
}

/// Restores `training` from its newest checkpoint, and says which; `None` if there is none yet.
///
/// # Errors
/// [`TrainError::OtherTraining`] for a checkpoint of other images, another seed, or whatever else its
/// [`Identity`](crate::Identity) is made of; [`TrainError::Checkpoint`] for one with more steps than
/// there are to do; those of [`Training::restore`].
pub fn resume<T: Training + ?Sized>(
    training: &mut T,
    checkpoints: &Checkpoints,
) -> Result<Option<PathBuf>, T::Error> {
    let Some(path) = checkpoints.newest()? else {
        return Ok(None);
    };
    let state = State::read(&path)?;
    let (found, expected) = (state.identity(), checkpoints.identity().clone());
    if found != expected {
        return Err(TrainError::OtherTraining {
            path,
            found,
            expected,
        }
        .into());
    }
    let (done, steps) = (state.step, training.steps());
    if done > steps {
        let reason =
            format!("it has done {done} steps already, more than the {steps} there are to do");
        return Err(TrainError::Checkpoint { path, reason }.into());
    }
    training.restore(&path, &state)?;
    Ok(Some(path))
}

/// Runs `training` to its last step, or until `observer` interrupts it: logs, saves, and tells
/// `observer`. Interrupted or done, its last step is saved.
///
/// # Errors
/// Those of the training, of the observer and of saving.
pub fn run<T: Training + ?Sized>(
    training: &mut T,
    checkpoints: Option<&Checkpoints>,
    options: &RunOptions,
    observer: &mut dyn Observer<T>,
) -> Result<Ended, T::Error>
where
    T::Error: Into<BoxError>,
{
    training.begin()?;
    let mut meter = Meter::new();
    let mut loss = None;
    let mut interrupted = false;
    while training.done() < training.steps() && !interrupted {
        let step = training.step()?;
        let (done, last) = (training.done(), training.done() == training.steps());
        loss = Some(step.loss);
        meter.add(&step);
        let pace = meter.pace();
        let found = observer.after_step(training, &step)?;
        if done.is_multiple_of(options.log_every) || last || !found.is_empty() {
            let row = row(training, step, pace, found);
            observer.log(&row).map_err(TrainError::Other)?;
            meter = Meter::new();
        }
        interrupted = training.any(observer.interrupted())? && !last;
        // With `checkpoint_every` 0, no step is a multiple of it.
        if done.is_multiple_of(options.checkpoint_every) && !last && !interrupted {
            save(training, checkpoints)?;
        }
    }
    Ok(Ended {
        interrupted,
        loss,
        checkpoint: save(training, checkpoints)?,
    })
}

/// Writes the checkpoint of the last step done, the 0th if none is, unless it is there already, and
/// says where; `None` without `checkpoints`. All ranks must call it after the same step.
///
/// # Errors
/// [`TrainError::NotSaved`]: nothing of it is left.
pub fn save<T: Training + ?Sized>(
    training: &T,
    checkpoints: Option<&Checkpoints>,
) -> Result<Option<PathBuf>, T::Error>
where
    T::Error: Into<BoxError>,
{
    let done = training.done();
    // All ranks come here; one of them has the checkpoints.
    let needed = training.any(checkpoints.is_some_and(|all| !all.has(done)))?;
    let Some(checkpoints) = checkpoints else {
        if needed {
            training.assist()?;
        }
        return Ok(None);
    };
    let epoch = done / training.steps_per_epoch().max(1);
    let path = checkpoints.write(done, epoch, |folder, state| training.save(folder, state))?;
    Ok(Some(path))
}

fn row<T: Training + ?Sized>(
    training: &T,
    step: Step,
    pace: Pace,
    found: Vec<(&'static str, Metric)>,
) -> Row {
    let done = training.done();
    Row {
        step: done,
        epoch: (done - 1) / training.steps_per_epoch().max(1) + 1,
        loss: step.loss,
        lr: step.lr,
        images_per_second: pace.images_per_second,
        data_wait: pace.data_wait,
        metrics: step.metrics.into_iter().chain(found).collect(),
    }
}

/// Speed since the last row.
struct Meter {
    since: Instant,
    images: usize,
    waited: Duration,
}

struct Pace {
    images_per_second: f64,
    data_wait: f64,
}

impl Meter {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            images: 0,
            waited: Duration::ZERO,
        }
    }

    fn add(&mut self, step: &Step) {
        self.images += step.images;
        self.waited += step.waited;
    }

    fn pace(&self) -> Pace {
        let elapsed = self.since.elapsed().as_secs_f64();
        Pace {
            images_per_second: self.images as f64 / elapsed.max(1e-9),
            data_wait: self.waited.as_secs_f64(),
        }
    }
}
