//! Loading a state dict into a network's tensors.

use std::collections::{HashMap, HashSet};

use candle_core::Tensor;

use super::names::{self, Shapes};
use crate::config::ModelConfig;
use crate::error::{ModelError, Result};
use crate::params::{Buffers, ParamSet};

/// What became of the entries of a state dict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Names loaded.
    pub matched: Vec<String>,
    /// Names the network has and the state dict lacks; these kept their values.
    pub missing: Vec<String>,
    /// Names the state dict has and the network lacks.
    pub unexpected: Vec<String>,
}

impl LoadReport {
    /// An error unless the state dict had all the network's tensors and no other. Counts of batches may
    /// be missing, which PyTorch has kept since 0.4.1 and evaluations do not use.
    ///
    /// # Errors
    /// [`ModelError::Missing`], [`ModelError::Unexpected`].
    pub fn ensure_whole(&self) -> Result<()> {
        let is_count = |name: &&String| name.ends_with(".num_batches_tracked");
        let missing = self.missing.iter().filter(|name| !is_count(name));
        let count = missing.clone().count();
        if let Some(first) = missing.clone().next() {
            let first = first.clone();
            return Err(ModelError::Missing { count, first });
        }
        match self.unexpected.first() {
            Some(first) => Err(ModelError::Unexpected {
                count: self.unexpected.len(),
                first: first.clone(),
            }),
            None => Ok(()),
        }
    }
}

/// Takes the tensors of `state` by name: every shape is checked before any is loaded.
pub(crate) fn load_into(
    state: &HashMap<String, Tensor>,
    params: &[ParamSet],
    buffers: &[Buffers],
) -> Result<LoadReport> {
    let mut report = LoadReport::default();
    let mut check = |name: &str, shape: &[usize]| match state.get(name) {
        None => {
            report.missing.push(name.to_owned());
            Ok(false)
        }
        Some(tensor) if tensor.dims() == shape => {
            report.matched.push(name.to_owned());
            Ok(true)
        }
        Some(tensor) => Err(ModelError::WrongShape {
            name: name.to_owned(),
            expected: shape.to_vec(),
            found: tensor.dims().to_vec(),
            hint: describe(state),
        }),
    };
    let (mut of_params, mut of_buffers) = (Vec::new(), Vec::new());
    for set in params {
        for param in set.params() {
            if check(&param.name, &param.shape)? {
                of_params.push((set, param.name.as_str()));
            }
        }
    }
    for set in buffers {
        for (name, shape) in set.names() {
            if check(&name, &shape)? {
                of_buffers.push((set, name));
            }
        }
    }
    let known: HashSet<_> = report.matched.iter().collect();
    let unexpected = state.keys().filter(|name| !known.contains(name));
    report.unexpected = unexpected.cloned().collect();
    report.unexpected.sort();
    for (set, name) in of_params {
        set.set(name, &state[name])?;
    }
    for (set, name) in of_buffers {
        set.set(&name, &state[&name])?;
    }
    Ok(report)
}

/// Which ResNet a state dict looks like, as the end of an error message; empty if it is none.
fn describe(state: &HashMap<String, Tensor>) -> String {
    let shapes = shapes(state);
    let looks_like = |config: ModelConfig| format!("; the file looks like {}", config.network());
    names::infer(&shapes).map_or_else(|_| String::new(), looks_like)
}

pub(super) fn shapes(state: &HashMap<String, Tensor>) -> Shapes {
    let shape = |(name, tensor): (&String, &Tensor)| (name.clone(), tensor.dims().to_vec());
    state.iter().map(shape).collect()
}
