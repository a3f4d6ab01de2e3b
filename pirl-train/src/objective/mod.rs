//! What a backbone is trained for.

pub(crate) mod bank;
pub(crate) mod covariant;
mod embeddings;
mod estimated_nce;
pub(crate) mod negatives;
pub(crate) mod pirl;
pub(crate) mod sharded;
pub(crate) mod supervised;

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use pirl_data::Batch;
use pirl_model::{Head, ModelError, Trainable};

use crate::checkpoint::State;
use crate::collective::{Collective, Ranks};
use crate::error::Result;
use crate::networks::Networks;
use crate::training::Metric;

/// Makes a head on a device, for features of so many numbers: the same head on every device.
pub(crate) type HeadFactory =
    Arc<dyn Fn(usize, &Device) -> std::result::Result<Box<dyn Head>, ModelError> + Send + Sync>;

/// A module by the prefix that checkpoints give its tensors, which ends in a dot: `head.f.`.
pub type Module<'a> = (&'static str, &'a dyn Trainable);

/// What a backbone is trained for: which heads stand on it, and which loss a batch has.
///
/// A batch comes in parts, which go through the networks one after the other, on several devices at the
/// same time. For each step a [`Learner`](crate::Learner) calls [`Objective::begin_step`], then for
/// each part [`Objective::target`] (in order, on its own thread) and [`Objective::forward`] (on the
/// thread of the part's device), and after the optimiser's step [`Objective::end_step`].
pub trait Objective: Send + Sized + 'static {
    /// What stands on the backbone, on each device.
    type Heads: Send + 'static;
    /// What the images of a part are compared with, on the part's device.
    type Target: Send + 'static;
    /// What [`Objective::end_step`] needs to know of a part.
    type Outcome: Send + 'static;

    /// New heads on `device` for features of so many numbers, the same on every device.
    ///
    /// # Errors
    /// Those of the heads.
    fn heads(&self, features: usize, device: &Device) -> Result<Self::Heads>;

    /// The heads' modules, by the prefixes that checkpoints give them, always in the same order.
    fn modules(heads: &Self::Heads) -> Vec<Module<'_>>;

    /// Begins step number `step`, counted from 1. What is random about a step must depend on it and on
    /// a seed alone, so that a resumed run draws the same.
    ///
    /// # Errors
    /// Those of the implementation.
    fn begin_step(&mut self, step: u64) -> Result<()> {
        let _ = step;
        Ok(())
    }

    /// What `part` is compared with.
    ///
    /// # Errors
    /// Those of the implementation.
    fn target(&mut self, part: &Batch, device: &Device) -> Result<Self::Target>;

    /// Computes the terms of the loss of `part`, in training mode, and hands each to `terms` as soon as
    /// it is there: so memory holds the maps of one alone.
    ///
    /// # Errors
    /// Those of the networks and the loss.
    fn forward(
        networks: &mut Networks<Self::Heads>,
        part: &Batch,
        target: Self::Target,
        terms: &mut Terms<'_>,
    ) -> Result<Self::Outcome>;

    /// Ends the step, after the optimiser's: whatever follows the networks is updated. Returns what to
    /// log of it, by the keys of `metrics.jsonl`.
    ///
    /// # Errors
    /// Those of the implementation.
    fn end_step(
        &mut self,
        outcomes: Vec<PartOutcome<Self::Outcome>>,
    ) -> Result<Vec<(&'static str, Metric)>>;

    /// Is told the ranks of the run, before anything else: an objective that looks at a whole batch
    /// ([`Objective::end_step`] and [`Objective::calibrate`] have the parts of this rank alone) gathers
    /// it from them.
    ///
    /// # Errors
    /// If the objective cannot be trained by several ranks.
    fn join(&mut self, ranks: &Ranks) -> Result<()> {
        let _ = ranks;
        Ok(())
    }

    /// Takes over what rank 0 keeps beside the networks, before the first step; called once.
    ///
    /// # Errors
    /// If a rank has ended.
    fn begin_alike(&mut self, ranks: &dyn Collective) -> Result<()> {
        let _ = ranks;
        Ok(())
    }

    /// Whether [`Objective::calibrate`] is to be called before the next step.
    fn needs_calibration(&self) -> bool {
        false
    }

    /// Estimates from all parts of a batch, before its step, what the loss needs to know beforehand.
    /// The networks' statistics are put back afterwards.
    ///
    /// # Errors
    /// Those of the networks.
    fn calibrate(&mut self, networks: &mut Networks<Self::Heads>, parts: &[Batch]) -> Result<()> {
        let _ = (networks, parts);
        Ok(())
    }

    /// Writes what [`Objective::restore`] needs beside the networks into the folder of a checkpoint.
    ///
    /// # Errors
    /// If a file cannot be written.
    fn save(&self, folder: &Path, state: &mut State) -> Result<()> {
        let _ = (folder, state);
        Ok(())
    }

    /// Called on the ranks that do not write while rank 0 does [`Objective::save`]: whatever is shared
    /// out over ranks is written by its owners.
    ///
    /// # Errors
    /// If a file cannot be written, or a rank has ended.
    fn assist(&self) -> Result<()> {
        Ok(())
    }

    /// Brings back what [`Objective::save`] wrote.
    ///
    /// # Errors
    /// If a file cannot be read or does not fit.
    fn restore(&mut self, folder: &Path, state: &State) -> Result<()> {
        let _ = (folder, state);
        Ok(())
    }
}

/// What came of a part of a batch.
pub struct PartOutcome<T> {
    /// Its images, by their places in the pack.
    pub indices: Vec<u32>,
    /// What [`Objective::forward`] returned.
    pub outcome: T,
    /// Its share of the batch's images.
    pub(crate) share: f64,
    /// Broken images in it that others replaced.
    pub(crate) skipped: usize,
    pub(crate) terms: Vec<Term>,
}

/// A term of the loss of a part.
pub(crate) struct Term {
    pub(crate) name: &'static str,
    /// In the loss of the part.
    pub(crate) weight: f64,
    /// The mean over the part's images, still on the device, without history.
    pub(crate) loss: Tensor,
}

/// Takes the terms of the loss of a part, and differentiates each at once.
pub struct Terms<'a> {
    share: f64,
    backward: &'a mut dyn FnMut(&Tensor) -> Result<()>,
    pub(crate) seen: Vec<Term>,
}

impl<'a> Terms<'a> {
    /// Of a part with this share of the batch's images.
    pub(crate) fn new(share: f64, backward: &'a mut dyn FnMut(&Tensor) -> Result<()>) -> Self {
        Self {
            share,
            backward,
            seen: Vec::new(),
        }
    }

    /// Adds `weight * loss` to the loss: `loss` is a scalar, the mean over the part's images. The key
    /// `name`, such as `loss_image`, is logged with the mean over the batch.
    ///
    /// # Errors
    /// If it cannot be differentiated.
    pub fn add(&mut self, name: &'static str, weight: f64, loss: &Tensor) -> Result<()> {
        (self.backward)(&(loss * (weight * self.share))?)?;
        self.seen.push(Term {
            name,
            weight,
            loss: loss.detach(),
        });
        Ok(())
    }
}

pub(crate) fn scalar(loss: &Tensor) -> Result<f64> {
    Ok(loss.to_dtype(DType::F64)?.to_scalar::<f64>()?)
}

/// A factory of boxed heads.
pub(crate) fn boxed<H: Head + 'static>(
    head: impl Fn(usize, &Device) -> std::result::Result<H, ModelError> + Send + Sync + 'static,
) -> HeadFactory {
    Arc::new(move |features, device| Ok(Box::new(head(features, device)?) as Box<dyn Head>))
}
