//! `bank.init = "features"`: the bank begins with what the untrained f makes of every image.

use anyhow::{Result, bail};
use candle_core::Tensor;
use pirl_bank::MemoryBank;
use pirl_data::eval_batches;
use pirl_model::{Backbone, Head, Mode, Ops};

use super::plan::Plan;
use super::replica::Heads;
use super::step::{Learner, Task};
use crate::device::moved;
use crate::interrupt::{Interrupt, Interrupted};
use crate::progress::Progress;

impl Learner {
    /// Fills the bank by one pass of f over all images, as evaluations see them.
    ///
    /// The pass is in training mode: an untrained network's running statistics say nothing, so
    /// each batch is normalised by its own, and the running ones move towards the data's.
    pub(crate) fn fill_bank(&mut self, plan: &Plan, interrupt: &Interrupt) -> Result<()> {
        let (Task::Invariant(task), Heads::Invariant { f, .. }) =
            (&mut self.task, &self.main.heads)
        else {
            return Ok(());
        };
        let images = plan.pack.len();
        let batch_size = plan.recipe.train.batch_size;
        let (view, workers) = (plan.recipe.eval_view(), plan.recipe.loader.workers);
        let mut progress = Progress::new("filling the bank", "images", images as u64, 0);
        let mut rows: Vec<Tensor> = Vec::new();
        let (mut done, mut before) = (0, None::<Tensor>);
        for batch in eval_batches(&plan.pack, &view, batch_size, workers, self.main.device())? {
            if interrupt.seen() {
                progress.finish();
                bail!(Interrupted(
                    "the first step was not reached; run the same command again with --resume"
                        .to_owned()
                ));
            }
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
            let features = self.main.backbone.forward(&batch, Mode::Train)?;
            let embeddings = f.forward(&features, Mode::Train)?.detach();
            let embeddings = embeddings.narrow(0, size - fresh, fresh)?;
            rows.push(moved(&embeddings, task.bank.rows().device())?);
            done += fresh;
            progress.at(done as u64, String::new);
            before = Some(batch);
        }
        progress.finish();
        let fast = self.main.backbone.config().ops == Ops::Fast;
        let rows = Tensor::cat(&rows, 0)?;
        task.bank = MemoryBank::from_rows(rows, task.bank.momentum())?.fast(fast);
        Ok(())
    }
}
