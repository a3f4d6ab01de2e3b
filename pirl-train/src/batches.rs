//! The batches of a run, whatever epoch they are in.

use std::time::{Duration, Instant};

use pirl_data::{Batch, DataError, EpochIter, Loader};

/// The parts of the batches of a loader, from any step of a run on, epoch after epoch without an end.
pub struct Batches {
    loader: Loader,
    /// The epoch that is under way.
    current: Option<EpochIter>,
    /// The epoch after it, and its first step.
    next: (u64, usize),
}

impl Batches {
    /// Those of the steps after the first `done`.
    pub fn after(loader: Loader, done: u64) -> Self {
        let mut batches = Self {
            loader,
            current: None,
            next: (0, 0),
        };
        batches.seek(done);
        batches
    }

    /// Goes on with the step after the first `done`.
    pub fn seek(&mut self, done: u64) {
        let steps = self.loader.steps_per_epoch().max(1) as u64;
        self.current = None;
        self.next = (done / steps, (done % steps) as usize);
    }

    /// The next part, and how long it was waited for.
    ///
    /// # Errors
    /// As [`Loader::epoch`] and its items.
    pub fn timed_next(&mut self) -> Result<(Batch, Duration), DataError> {
        let waiting = Instant::now();
        let part = self.next_part()?;
        Ok((part, waiting.elapsed()))
    }

    fn next_part(&mut self) -> Result<Batch, DataError> {
        loop {
            if let Some(part) = self.current.as_mut().and_then(Iterator::next) {
                return part;
            }
            // A pack has at least one whole batch, so every epoch has one.
            let (epoch, step) = self.next;
            self.current = Some(self.loader.epoch(epoch, step)?);
            self.next = (epoch + 1, 0);
        }
    }

    /// What makes them.
    pub fn loader(&self) -> &Loader {
        &self.loader
    }
}
