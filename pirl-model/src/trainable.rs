//! What optimisers, checkpoints and copies on other devices need of a network.

use std::collections::HashMap;

use candle_core::{Device, Tensor};

use crate::error::Result;
use crate::params::{Buffers, ParamSet};
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
}

impl Trainable for ParamSet {
    fn parameter_sets(&self) -> Vec<ParamSet> {
        vec![self.clone()]
    }
}
