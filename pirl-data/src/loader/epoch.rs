//! The batches of one epoch, made ahead of their use by threads that take turns.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::assembler::{Assembler, Request, catch_panic};
use super::batch::Batch;
use crate::DataError;

/// The batches of one epoch, in order: see [`Loader::epoch`](crate::Loader::epoch).
pub struct EpochIter {
    producers: Vec<Running>,
    stop: Arc<AtomicBool>,
    /// The next part, counted in parts of batches from the beginning of the epoch.
    next: usize,
    start: usize,
    end: usize,
}

/// A producer's thread, and where its parts come out.
struct Running {
    parts: Receiver<Result<Batch, DataError>>,
    thread: JoinHandle<()>,
}

/// A thread that makes every `stride`-th part of an epoch, and hands them over in order.
struct Producer {
    assembler: Arc<Assembler>,
    order: Arc<Vec<u32>>,
    stop: Arc<AtomicBool>,
    epoch: u64,
    /// Its first part.
    start: usize,
    /// The end of the epoch, in parts.
    end: usize,
    stride: usize,
    sender: Sender<Result<Batch, DataError>>,
}

impl EpochIter {
    /// The parts `start..end` of `epoch`, made by at most `producers` threads, `look_ahead` of them
    /// ahead of the one in use.
    ///
    /// # Errors
    /// [`DataError::Worker`] if a thread cannot be started.
    pub(super) fn start(
        assembler: &Arc<Assembler>,
        epoch: u64,
        (start, end): (usize, usize),
        producers: usize,
        look_ahead: usize,
    ) -> Result<Self, DataError> {
        let order = Arc::new(assembler.order(epoch));
        // Dropped on an error, it ends the threads that have been started.
        let mut epoch_iter = Self {
            producers: Vec::with_capacity(producers),
            stop: Arc::new(AtomicBool::new(false)),
            next: start,
            start,
            end,
        };
        for number in 0..producers.min(end.saturating_sub(start)) {
            // A producer holds one part in the making and its share of those ahead.
            let ahead = (look_ahead + producers - 1 - number) / producers;
            let (sender, parts) = bounded(ahead.saturating_sub(1));
            let producer = Producer {
                assembler: Arc::clone(assembler),
                order: Arc::clone(&order),
                stop: Arc::clone(&epoch_iter.stop),
                epoch,
                start: start + number,
                end,
                stride: producers,
                sender,
            };
            let thread = Builder::new()
                .name(format!("pirl-producer-{number}"))
                .spawn(move || producer.run())
                .map_err(|error| DataError::Worker {
                    index: None,
                    reason: format!("a thread that makes batches cannot be started: {error}"),
                })?;
            epoch_iter.producers.push(Running { parts, thread });
        }
        Ok(epoch_iter)
    }
}

impl fmt::Debug for EpochIter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EpochIter")
            .field("next", &self.next)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl Iterator for EpochIter {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.end {
            return None;
        }
        let count = self.producers.len();
        let producer = self
            .producers
            .get((self.next - self.start) % count.max(1))?;
        let part = producer.parts.recv().unwrap_or_else(|_| {
            Err(DataError::Worker {
                index: None,
                reason: "a thread ended before its batch".into(),
            })
        });
        self.next = if part.is_ok() {
            self.next + 1
        } else {
            self.end
        };
        Some(part)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.end.saturating_sub(self.next);
        (left.min(1), Some(left))
    }
}

impl Drop for EpochIter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for Running { parts, thread } in self.producers.drain(..) {
            // A producer that waits to hand over a part wakes up when nobody can take it.
            drop(parts);
            // Producers catch panics, so there is nothing to report.
            let _ = thread.join();
        }
    }
}

impl Producer {
    fn run(self) {
        self.assembler.prefetch(&self.order, self.start);
        for part in (self.start..self.end).step_by(self.stride) {
            self.assembler.prefetch(&self.order, part + self.stride);
            let (step, places) = self.assembler.locate(part);
            let made = catch_panic(None, || {
                self.assembler.assemble(&Request {
                    order: &self.order,
                    epoch: self.epoch,
                    step,
                    places,
                    stop: &self.stop,
                })
            });
            let last = made.is_err();
            if self.stop.load(Ordering::Relaxed) || self.sender.send(made).is_err() || last {
                return;
            }
        }
    }
}
