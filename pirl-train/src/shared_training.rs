//! What a training needs to share its work among ranks: the same numbers on all of them, and sums.
//!
//! A [`Learner`](crate::Learner) does all of this. A [`Training`](crate::Training) with a step of its own
//! begins by [`share_state`] and [`share_optimizer`], computes its share of a batch, and calls
//! [`sum_gradients`] before the optimiser's step.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use pirl_model::{Optimizer, ParamSet, Trainable};

use crate::collective::{Collective, Digest, ensure_equal, from_bytes, to_bytes};
use crate::error::{Result, TrainError};
use crate::reduction;

/// Steps from one comparison of the ranks' weights to the next.
const COMPARE_EVERY: u64 = 100;

/// How many steps rank 0 has done, of which this rank has done `done`.
///
/// # Errors
/// If a rank has ended.
pub fn share_steps(ranks: &dyn Collective, done: u64) -> Result<u64> {
    let bytes = ranks.broadcast(0, done.to_le_bytes().to_vec())?;
    Ok(bytes.as_slice().try_into().map_or(done, u64::from_le_bytes))
}

/// Gives `module` the parameters and running statistics that it has on rank 0.
///
/// # Errors
/// [`TrainError::OtherTensors`] if it is another module there; if a rank has ended.
pub fn share_state(ranks: &dyn Collective, module: &dyn Trainable) -> Result<()> {
    if ranks.size() == 1 {
        return Ok(());
    }
    module.load(&share_tensors(ranks, module.state()?)?)?;
    Ok(())
}

/// Gives `optimizer` the momentum that it has on rank 0.
///
/// # Errors
/// [`TrainError::OtherTensors`] if it is of other parameters there; if a rank has ended.
pub fn share_optimizer(ranks: &dyn Collective, optimizer: &mut Optimizer) -> Result<()> {
    if ranks.size() == 1 {
        return Ok(());
    }
    let state = share_tensors(ranks, optimizer.state()?)?;
    Ok(optimizer.load_state(&state)?)
}

/// What rank 0 has in place of `tensors`.
fn share_tensors(
    ranks: &dyn Collective,
    mut tensors: HashMap<String, Tensor>,
) -> Result<HashMap<String, Tensor>> {
    let mut names: Vec<String> = tensors.keys().cloned().collect();
    names.sort();
    let mut values = Vec::new();
    if ranks.rank() == 0 {
        for name in &names {
            let tensor = tensors[name].to_dtype(DType::F32)?.flatten_all()?;
            values.extend(tensor.to_vec1::<f32>()?);
        }
    }
    let values = from_bytes(&ranks.broadcast(0, to_bytes(&values))?);
    let expected = tensors.values().map(Tensor::elem_count).sum();
    if values.len() != expected {
        return Err(TrainError::OtherTensors {
            found: expected,
            expected: values.len(),
        });
    }
    let mut rest = values.as_slice();
    for name in &names {
        if let Some(tensor) = tensors.get_mut(name) {
            let (own, others) = rest.split_at(tensor.elem_count());
            let shared = Tensor::from_slice(own, tensor.shape(), &Device::Cpu)?;
            *tensor = shared
                .to_dtype(tensor.dtype())?
                .to_device(tensor.device())?;
            rest = others;
        }
    }
    Ok(tensors)
}

/// Adds up over all ranks the gradients that `optimizer` has accumulated: on each rank those of its share
/// of a batch, of a loss that is a mean over the whole batch.
///
/// # Errors
/// If a rank has ended.
pub fn sum_gradients(ranks: &dyn Collective, optimizer: &mut Optimizer) -> Result<()> {
    match ranks.size() {
        1 => Ok(()),
        _ => reduction::sum(ranks, Default::default(), optimizer),
    }
}

/// The sums of as many `values` on every rank, in the order of the ranks.
///
/// # Errors
/// If a rank has ended.
pub fn sum_values(ranks: &dyn Collective, values: &[f64]) -> Result<Vec<f64>> {
    let own = values.iter().flat_map(|value| value.to_le_bytes());
    let mut sums = vec![0.0; values.len()];
    for bytes in ranks.all_gather(own.collect())? {
        let (bytes, _) = bytes.as_chunks();
        for (sum, bytes) in sums.iter_mut().zip(bytes) {
            *sum += f64::from_le_bytes(*bytes);
        }
    }
    Ok(sums)
}

/// An error that names the rank, unless all have the same parameters `sets` after step `step`; they are
/// compared after every 100th.
///
/// # Errors
/// [`TrainError::RanksDiffer`]; if a rank has ended.
pub fn ensure_alike(ranks: &dyn Collective, step: u64, sets: &[ParamSet]) -> Result<()> {
    if ranks.size() == 1 || !step.is_multiple_of(COMPARE_EVERY) {
        return Ok(());
    }
    let mut digest = Digest::default();
    for set in sets {
        let values = set.var().as_detached_tensor().flatten_all()?;
        digest.add(&to_bytes(&values.to_vec1()?));
    }
    ensure_equal(ranks, step, "weights", &digest)
}
