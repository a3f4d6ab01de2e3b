//! A bank of features in place of random rows.

use candle_core::Tensor;
use pirl_bank::MemoryBank;
use pirl_data::{EvalView, Pack, eval_batches};
use pirl_model::Mode;

use super::Pirl;
use crate::error::Result;
use crate::learner::Learner;
use crate::networks::move_to;
use crate::objective::bank::Bank;

impl Learner<Pirl> {
    /// Fills the bank by one pass of f over all images of `pack`, as `view` shows them, `batch_size` at
    /// a time, decoded by `workers` threads (0: one a core).
    ///
    /// The pass is in training mode: an untrained network's running statistics say nothing, so each
    /// batch is normalised by its own, and the running ones move towards the data's.
    ///
    /// `progress` is called with the images done and the images in all; when it returns false, the work
    /// ends, nothing is changed but those statistics, and false is returned.
    ///
    /// # Errors
    /// [`TrainError::Data`](crate::TrainError::Data) for an image that cannot be decoded; those of the
    /// networks.
    pub fn fill_bank(
        &mut self,
        pack: &Pack,
        view: &EvalView,
        batch_size: usize,
        workers: usize,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<bool> {
        let (networks, objective) = self.parts();
        let mut rows: Vec<Tensor> = Vec::new();
        let (mut done, mut before) = (0, None::<Tensor>);
        for batch in eval_batches(pack, view, batch_size, workers, networks.device())? {
            let (batch, _) = batch?;
            let fresh = batch.dim(0)?;
            // A short last batch is filled up from the one before: the statistics of a few images
            // would be far from the data's.
            let batch = match &before {
                Some(before) if fresh < batch_size => {
                    let missing = batch_size - fresh;
                    Tensor::cat(&[&before.narrow(0, fresh, missing)?, &batch], 0)?
                }
                _ => batch,
            };
            let size = batch.dim(0)?;
            let features = networks.backbone().forward(&batch, Mode::Train)?;
            let head = &networks.heads().image;
            let embeddings = head.forward(&features, Mode::Train)?.detach();
            let embeddings = embeddings.narrow(0, size - fresh, fresh)?;
            let embeddings = move_to(&embeddings, objective.bank.device())?;
            let owned = objective
                .sharded
                .as_ref()
                .map(|sharded| &sharded.owned.rows);
            let (start, end) = owned.map_or((done, done + fresh), |owned| {
                (done.max(owned.start), (done + fresh).min(owned.end))
            });
            if start < end {
                // A copy: the rest of a batch is another rank's.
                rows.push(embeddings.narrow(0, start - done, end - start)?.copy()?);
            }
            done += fresh;
            if !progress(done, pack.len()) {
                return Ok(false);
            }
            before = Some(batch);
        }
        let momentum = objective.bank.momentum();
        let bank = MemoryBank::from_rows(Tensor::cat(&rows, 0)?, momentum)?;
        objective.bank = Bank::Memory(bank.with_ops(objective.ops));
        Ok(true)
    }
}
