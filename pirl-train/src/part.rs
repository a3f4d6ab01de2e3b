//! A part of a batch on its way through the networks of a device.

use candle_core::Tensor;
use pirl_data::Batch;
use pirl_model::ParamSet;

use crate::error::Result;
use crate::networks::Networks;
use crate::objective::{Module, Objective, PartOutcome, Terms};

/// All modules, the backbone first, as checkpoints name them.
pub(crate) fn modules<O: Objective>(networks: &Networks<O::Heads>) -> Vec<Module<'_>> {
    let mut modules: Vec<Module<'_>> = vec![("", &networks.backbone)];
    modules.extend(O::modules(&networks.heads));
    modules
}

/// The parameters of all modules, in the order of the optimiser.
pub(crate) fn parameters<O: Objective>(networks: &Networks<O::Heads>) -> Vec<ParamSet> {
    let modules = modules::<O>(networks).into_iter();
    modules
        .flat_map(|(_, module)| module.parameter_sets())
        .collect()
}

/// Takes a part through the networks, and differentiates the terms of its loss by `backward`.
pub(crate) fn forward_part<O: Objective>(
    networks: &mut Networks<O::Heads>,
    part: &Batch,
    target: O::Target,
    backward: &mut dyn FnMut(&Tensor) -> Result<()>,
) -> Result<PartOutcome<O::Outcome>> {
    let share = part.indices.len() as f64 / part.batch_size as f64;
    let mut terms = Terms::new(share, backward);
    let synced = networks.synced.clone();
    let forward = || O::forward(networks, part, target, &mut terms);
    let outcome = match synced {
        Some(member) => member.part(forward)?,
        None => forward()?,
    };
    Ok(PartOutcome {
        indices: part.indices.clone(),
        outcome,
        share,
        skipped: part.skipped,
        terms: terms.seen,
    })
}
