//! What every training has in common.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::checkpoint::State;
use crate::error::TrainError;

/// A number to log.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Metric {
    /// How often something happened.
    Count(u64),
    /// Anything else: a loss, a percentage.
    Real(f32),
}

/// What one step came to.
#[derive(Clone, Debug)]
pub struct Step {
    /// The loss of the step's batch.
    pub loss: f32,
    /// Its learning rate.
    pub lr: f64,
    /// Images of the batch.
    pub images: usize,
    /// How long the batch was waited for.
    pub waited: Duration,
    /// More to log, by the keys of `metrics.jsonl`.
    pub metrics: Vec<(&'static str, Metric)>,
}

/// A training, step by step, with everything it needs; [`run`](crate::run) takes it to its last step.
///
/// All chance of a step comes from a seed and the step's number, so going on from a checkpoint changes
/// nothing about the result.
pub trait Training {
    /// What can go wrong.
    type Error: From<TrainError>;

    /// What it is called, such as "fine-tuning".
    fn name(&self) -> &'static str;

    /// Steps of the whole training.
    fn steps(&self) -> u64;

    /// Steps of one pass over the images, at least 1.
    fn steps_per_epoch(&self) -> u64;

    /// Steps done.
    fn done(&self) -> u64;

    /// Called before the first step that this process does, after [`Training::restore`].
    ///
    /// # Errors
    /// If a rank has ended.
    fn begin(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }

    /// Does the next step.
    ///
    /// # Errors
    /// Those of the implementation; nothing of the step is kept then.
    fn step(&mut self) -> Result<Step, Self::Error>;

    /// Whether `flag` is set on any rank of the training, on each of which this is called after the same
    /// step.
    ///
    /// # Errors
    /// If a rank has ended.
    fn any(&self, flag: bool) -> Result<bool, Self::Error> {
        Ok(flag)
    }

    /// Writes what [`Training::restore`] needs into the folder of a checkpoint, and into its `state`.
    ///
    /// # Errors
    /// If a file cannot be written.
    fn save(&self, folder: &Path, state: &mut State) -> Result<(), Self::Error>;

    /// Called on the ranks that do not write while another does [`Training::save`].
    ///
    /// # Errors
    /// If a file cannot be written, or a rank has ended.
    fn assist(&self) -> Result<(), Self::Error> {
        Ok(())
    }

    /// Goes on from what [`Training::save`] wrote after [`State::step`] steps.
    ///
    /// # Errors
    /// If a file cannot be read, or is of another training.
    fn restore(&mut self, folder: &Path, state: &State) -> Result<(), Self::Error>;
}
