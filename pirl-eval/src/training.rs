//! What evaluations that train have in common.

use std::path::Path;

use pirl_data::{Batch, Loader};

use crate::error::Result;

/// An evaluation that is trained step by step, on the batches of a loader. All chance of a step comes
/// from the seed and the step's number, so going on after a break, or from a checkpoint, changes
/// nothing about the result.
pub trait Training {
    /// What it is called.
    const WHAT: &'static str;

    /// Makes the batches, one for each step.
    fn loader(&self) -> &Loader;

    /// Steps of the whole training.
    fn steps(&self) -> usize;

    /// Steps done.
    fn done(&self) -> usize;

    /// The next step, on its batch. Returns its loss, in nats.
    ///
    /// # Errors
    /// Those of the implementation; nothing of the step is kept then.
    fn step(&mut self, batch: &Batch) -> Result<f64>;

    /// Writes what [`Training::restore`] goes on from into `folder`.
    ///
    /// # Errors
    /// [`EvalError::Model`](crate::EvalError::Model) if a file cannot be written.
    fn save(&mut self, folder: &Path) -> Result<()>;

    /// Goes on from what [`Training::save`] wrote after `done` steps.
    ///
    /// # Errors
    /// [`EvalError::Model`](crate::EvalError::Model) if a file cannot be read,
    /// [`EvalError::Checkpoint`](crate::EvalError::Checkpoint) if it is of another training or `done`
    /// is past the last step.
    fn restore(&mut self, folder: &Path, done: usize) -> Result<()>;

    /// Steps of one pass over the images.
    fn steps_per_epoch(&self) -> usize {
        self.loader().steps_per_epoch()
    }

    /// Trains until the last step, or until `pause`, which is told the steps done and the loss of the
    /// last of them, asks for a break by returning true.
    ///
    /// # Errors
    /// [`EvalError::Data`](crate::EvalError::Data) for an image that cannot be decoded; those of
    /// [`Training::step`].
    fn train(&mut self, pause: &mut dyn FnMut(usize, f64) -> bool) -> Result<()> {
        let epoch = self.steps_per_epoch();
        while self.done() < self.steps() {
            let (number, start) = ((self.done() / epoch) as u64, self.done() % epoch);
            for batch in self.loader().epoch(number, start) {
                let loss = self.step(&batch?)?;
                if pause(self.done(), loss) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
