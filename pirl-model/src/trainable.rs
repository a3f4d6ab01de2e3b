//! What optimisers, checkpoints and copies on other devices need of a network.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use pirl_core::SettingError;

use crate::error::Result;
use crate::params::{Buffers, ParamSet};
use crate::peers::Peers;
use crate::weights::load::{LoadReport, load_into};

/// A network whose parameters can be trained, saved and loaded.
pub trait Trainable: Send + Sync {
    /// Its parameters, always in the same order. A clone of a [`ParamSet`] shares the numbers.
    fn parameter_sets(&self) -> Vec<ParamSet>;

    /// The running statistics of its batch norms; none unless implemented. Statistics that are
    /// variables themselves, as `candle_nn`'s, are among the parameters.
    fn buffer_sets(&self) -> Vec<Buffers> {
        Vec::new()
    }

    /// Where its parameters are.
    fn device(&self) -> Device {
        let sets = self.parameter_sets();
        sets.first()
            .map_or(Device::Cpu, |set| set.var().device().clone())
    }

    /// A copy of every parameter and statistic by its name.
    ///
    /// # Errors
    /// Only if Candle cannot copy a tensor.
    fn state(&self) -> Result<HashMap<String, Tensor>> {
        let mut state = HashMap::new();
        for set in self.parameter_sets() {
            for param in set.params() {
                state.insert(param.name.clone(), set.get(&param.name)?);
            }
        }
        for buffers in self.buffer_sets() {
            state.extend(buffers.entries()?);
        }
        Ok(state)
    }

    /// Loads parameters and statistics by name. Entries that the network does not have are reported,
    /// not loaded; what `state` lacks keeps its value.
    ///
    /// # Errors
    /// [`ModelError::WrongShape`](crate::ModelError::WrongShape), before anything is loaded.
    fn load(&self, state: &HashMap<String, Tensor>) -> Result<LoadReport> {
        load_into(state, &self.parameter_sets(), &self.buffer_sets())
    }

    /// Has its batch norms, in [`Mode::Train`](crate::Mode::Train) alone and where `peers` has
    /// [any](Peers::any), normalise by mean and variance over the own part of a batch and those of `peers`, and
    /// move the running statistics towards these. Gradients flow through them to all parts: what is
    /// differentiated is the sum of the parts' losses.
    ///
    /// A module without batch norm implements it as `Ok(())`.
    ///
    /// # Errors
    /// [`ModelError::Setting`](crate::ModelError::Setting) unless implemented.
    fn sync_batch_norm(&self, peers: Arc<dyn Peers>) -> Result<()> {
        let _ = peers;
        let names = self.parameter_sets();
        let first = names.first().and_then(|set| set.params().first());
        let module = first.map_or_else(String::new, |param| format!(" with {}", param.name));
        Err(SettingError::new(
            "batch_norm",
            "synced",
            format!(
                "must be local: the module{module} does not implement Trainable::sync_batch_norm"
            ),
        )
        .into())
    }
}

impl<T: Trainable + ?Sized> Trainable for Box<T> {
    fn parameter_sets(&self) -> Vec<ParamSet> {
        (**self).parameter_sets()
    }

    fn buffer_sets(&self) -> Vec<Buffers> {
        (**self).buffer_sets()
    }

    fn device(&self) -> Device {
        (**self).device()
    }

    fn sync_batch_norm(&self, peers: Arc<dyn Peers>) -> Result<()> {
        (**self).sync_batch_norm(peers)
    }
}

impl Trainable for ParamSet {
    fn parameter_sets(&self) -> Vec<ParamSet> {
        vec![self.clone()]
    }

    fn sync_batch_norm(&self, _: Arc<dyn Peers>) -> Result<()> {
        Ok(())
    }
}
