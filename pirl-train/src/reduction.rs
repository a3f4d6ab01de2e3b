//! The sums of the ranks' gradients, made while the backward pass goes on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::Tensor;
use pirl_core::storage::cpu_slice;
use pirl_model::{GradientWatch, Optimizer, ParamSet};

use crate::collective::{Collective, Pending, Ranks};
use crate::error::{Result, TrainError};

/// Numbers that are summed up together: 25 MB, large enough for a network's full rate, and small enough
/// that most of a network's gradient is under way before its backward pass ends. The first layers have what
/// is left, which nothing can hide.
const BUCKET: usize = 25 << 18;

/// Sums up gradients over ranks, bucket by bucket, from the last parameters to the first: the order in
/// which a backward pass ends them, and the same on every rank, so that nothing is negotiated.
pub(crate) struct Reduction {
    ranks: Ranks,
    /// Parts of a batch, and terms of a part's loss: known after the first step, the same in all.
    shape: Option<(usize, usize)>,
    /// Parts and terms of this step so far.
    seen: (usize, usize),
    early: Arc<Mutex<Early>>,
}

/// Buckets of the first set that are under way before the backward pass has ended.
#[derive(Default)]
pub(crate) struct Early {
    /// The gradients of earlier parts and terms.
    earlier: Option<Tensor>,
    /// Where the last bucket begins that is under way; `None` before the first.
    from: Option<usize>,
    buckets: Vec<Bucket>,
    error: Option<TrainError>,
}

struct Bucket {
    from: usize,
    sum: Pending,
}

impl Reduction {
    pub(crate) fn new(ranks: Ranks) -> Self {
        Self {
            ranks,
            shape: None,
            seen: (0, 0),
            early: Arc::default(),
        }
    }

    /// A part of the batch begins.
    pub(crate) fn part(&mut self) {
        self.seen = (self.seen.0 + 1, 0);
    }

    /// A term of its loss is about to be differentiated. Of the last term of the last part, buckets are
    /// summed up as soon as they are done.
    pub(crate) fn term(&mut self, set: &ParamSet, optimizer: &Optimizer) {
        self.seen.1 += 1;
        if self.ranks.size() == 1 || self.shape != Some(self.seen) {
            return;
        }
        lock(&self.early).earlier = optimizer.gradient(0).cloned();
        let (ranks, early) = (Arc::clone(&self.ranks), Arc::clone(&self.early));
        let watch: GradientWatch = Arc::new(move |done: usize, gradient: &[f32]| {
            let mut early = lock(&early);
            if early.error.is_none()
                && let Err(error) = early.begin(&ranks, done, gradient)
            {
                early.error = Some(error);
            }
        });
        set.watch_gradient(Some(watch));
    }

    /// Ends a step: gives the optimizer the sums over all ranks. `set` is its first.
    pub(crate) fn finish(&mut self, set: &ParamSet, optimizer: &mut Optimizer) -> Result<()> {
        set.watch_gradient(None);
        let early = std::mem::take(&mut *lock(&self.early));
        let seen = std::mem::take(&mut self.seen);
        if self.ranks.size() == 1 {
            return Ok(());
        }
        if let Some(error) = early.error {
            return Err(error);
        }
        if self.shape.is_some_and(|shape| shape != seen) {
            let why = "a batch has another number of parts or terms than the ones before";
            return Err(TrainError::Other(why.into()));
        }
        self.shape = Some(seen);
        sum(self.ranks.as_ref(), early, optimizer)
    }

    /// Forgets a step that failed.
    pub(crate) fn discard(&mut self, set: &ParamSet) {
        set.watch_gradient(None);
        self.seen = (0, 0);
        *lock(&self.early) = Early::default();
    }
}

/// Gives the optimizer the sums over all ranks of what it has accumulated, of whose first set `early` is
/// under way.
pub(crate) fn sum(ranks: &dyn Collective, early: Early, optimizer: &mut Optimizer) -> Result<()> {
    let mut early = Some(early);
    let mut sums = Vec::new();
    for gradient in optimizer.take_gradients() {
        // Those of the first set alone are early.
        let early = early.take().unwrap_or_default();
        sums.push(match gradient {
            None => None,
            Some(gradient) if ranks.all_reduce_on_device(&gradient)? => Some((gradient, None)),
            Some(gradient) => {
                let values = gradient.flatten_all()?.to_vec1::<f32>()?;
                let mut buckets = early.buckets;
                let mut end = early.from.unwrap_or(values.len());
                while let Some(from) = next(end, 0) {
                    let sum = ranks.all_reduce(values[from..end].to_vec())?;
                    buckets.push(Bucket { from, sum });
                    end = from;
                }
                Some((gradient, Some((values, buckets))))
            }
        });
    }
    let mut merged = Vec::with_capacity(sums.len());
    for sum in sums {
        merged.push(match sum {
            None => None,
            Some((gradient, None)) => Some(gradient),
            Some((gradient, Some((mut values, buckets)))) => {
                for Bucket { from, sum } in buckets {
                    let sum = sum.wait()?;
                    values[from..from + sum.len()].copy_from_slice(&sum);
                }
                let (shape, device) = (gradient.shape(), gradient.device());
                Some(Tensor::from_vec(values, shape, device)?)
            }
        });
    }
    Ok(optimizer.merge(merged)?)
}

/// Where the bucket begins that ends at `end`, if all numbers from `done` on are final.
fn next(end: usize, done: usize) -> Option<usize> {
    let from = end.checked_sub(1)?.saturating_sub(BUCKET - 1);
    (done <= from).then_some(from)
}

impl Early {
    /// Begins to sum up the buckets that are done.
    fn begin(&mut self, ranks: &Ranks, done: usize, gradient: &[f32]) -> Result<()> {
        let mut end = self.from.unwrap_or(gradient.len());
        while let Some(from) = next(end, done) {
            let mut values = gradient[from..end].to_vec();
            if let Some(earlier) = &self.earlier {
                let (storage, layout) = earlier.storage_and_layout();
                let earlier: &[f32] = cpu_slice(&storage, layout)?;
                for (value, earlier) in values.iter_mut().zip(&earlier[from..end]) {
                    *value += earlier;
                }
            }
            let sum = ranks.all_reduce(values)?;
            self.buckets.push(Bucket { from, sum });
            self.from = Some(from);
            end = from;
        }
        Ok(())
    }
}

// What is under the lock is whole between any two statements.
fn lock(early: &Mutex<Early>) -> MutexGuard<'_, Early> {
    early.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_full_from_the_end_on_and_wait_for_what_they_hold() {
        for len in [1, BUCKET - 1, BUCKET, BUCKET + 1, 3 * BUCKET + 7] {
            let (mut end, mut buckets) = (len, Vec::new());
            while let Some(from) = next(end, 0) {
                assert_eq!(next(end, from), Some(from));
                assert_eq!(next(end, from + 1), None, "one number is not done");
                buckets.push(end - from);
                end = from;
            }
            assert_eq!((end, buckets.iter().sum::<usize>()), (0, len));
            let (first_layers, full) = buckets.split_last().unwrap();
            assert!(full.iter().all(|bucket| *bucket == BUCKET) && *first_layers <= BUCKET);
        }
    }
}
