//! A backbone, an objective and an optimiser: the training step.

use std::path::Path;

use candle_core::{Device, Tensor};
use pirl_core::Ops;
use pirl_data::{Batch, DataError};
use pirl_model::{
    Backbone, ModelError, OptimConfig, Optimizer, Precision, load_state_dict, save_state_dict,
    save_tensors, strip_prefix,
};

use crate::checkpoint::{MODEL, OPTIMIZER, State};
use crate::error::{Result, TrainError};
use crate::networks::Networks;
use crate::objective::{Objective, PartOutcome, scalar};
use crate::part::{forward_part, modules, parameters};
use crate::scaled_optimizer::ScaledOptimizer;
use crate::training::Metric;
use crate::worker::Worker;

/// Everything that learns.
pub struct Learner<O: Objective> {
    /// The networks that are trained, on the first device.
    networks: Networks<O::Heads>,
    /// Copies of them on further devices, which take over parts of each batch.
    workers: Vec<Worker<O>>,
    objective: O,
    optimizer: ScaledOptimizer,
}

/// Settings of a [`Learner`], by [`Learner::builder`].
#[must_use]
pub struct LearnerBuilder<O> {
    backbone: BackboneFactory,
    objective: O,
    devices: Vec<Device>,
    precision: Precision,
    optim: OptimConfig,
    ops: Ops,
}

/// Makes a backbone on a device: the same on every device.
type BackboneFactory = Box<dyn Fn(&Device) -> std::result::Result<Box<dyn Backbone>, ModelError>>;

/// What one step came to.
#[derive(Clone, Debug, PartialEq)]
pub struct StepLosses {
    /// The loss of the batch, in nats.
    pub total: f32,
    /// Its terms, means over the batch, and what else the objective has to log, by the keys of
    /// `metrics.jsonl`.
    pub metrics: Vec<(&'static str, Metric)>,
}

impl<O: Objective> LearnerBuilder<O> {
    /// The devices: the first has the networks that are trained, each of the others a copy that takes
    /// over parts of every batch. One named twice does the work of two. The CPU by default.
    pub fn devices(self, devices: &[Device]) -> Self {
        Self {
            devices: devices.to_vec(),
            ..self
        }
    }

    /// What the backbone's activations are stored in; `f32` by default. In `f16` losses are scaled.
    pub fn precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The optimiser; the paper's by default.
    pub fn optimizer(self, optim: &OptimConfig) -> Self {
        Self {
            optim: optim.clone(),
            ..self
        }
    }

    /// What computes the optimiser's step; the fast ops by default.
    pub fn ops(self, ops: Ops) -> Self {
        Self { ops, ..self }
    }

    /// The learner, its networks untrained.
    ///
    /// # Errors
    /// [`TrainError::NoDevice`]; those of the backbone, the heads and the optimiser; a precision that
    /// the backbone does not have.
    pub fn build(self) -> Result<Learner<O>> {
        let networks = |device: &Device| {
            let mut backbone = (self.backbone)(device)?;
            backbone.set_precision(self.precision)?;
            let heads = self.objective.heads(backbone.feature_dim(), device)?;
            Networks::new(backbone, heads, device)
        };
        let (device, further) = self.devices.split_first().ok_or(TrainError::NoDevice)?;
        let main = networks(device)?;
        let workers = further
            .iter()
            .map(|device| Worker::start(networks(device)?));
        let workers = workers.collect::<Result<_>>()?;
        let optimizer = Optimizer::new(&self.optim, parameters::<O>(&main))?.with_ops(self.ops);
        Ok(Learner {
            workers,
            optimizer: ScaledOptimizer::new(optimizer, self.precision),
            networks: main,
            objective: self.objective,
        })
    }
}

impl<O: Objective> Learner<O> {
    /// A learner of the network that `backbone` makes on a device, trained for `objective`. The
    /// factory is called once for each device: copies on further devices take over the parameters of
    /// the first before each step, so their own first weights are irrelevant.
    pub fn builder<B: Backbone + 'static>(
        backbone: impl Fn(&Device) -> std::result::Result<B, ModelError> + 'static,
        objective: O,
    ) -> LearnerBuilder<O> {
        LearnerBuilder {
            backbone: Box::new(move |device| Ok(Box::new(backbone(device)?))),
            objective,
            devices: vec![Device::Cpu],
            precision: Precision::F32,
            optim: OptimConfig::default(),
            ops: Ops::Fast,
        }
    }

    /// The backbone. To begin with other weights than random ones, load them into it before the first
    /// step ([`Trainable::load`](pirl_model::Trainable::load)): copies on further devices follow.
    pub fn backbone(&self) -> &dyn Backbone {
        self.networks.backbone()
    }

    /// What it is trained for.
    pub fn objective(&self) -> &O {
        &self.objective
    }

    pub(crate) fn parts(&mut self) -> (&mut Networks<O::Heads>, &mut O) {
        (&mut self.networks, &mut self.objective)
    }

    /// What is to be logged of the optimiser: nothing, but for the scale of losses in half precision,
    /// and the steps left out because a gradient was not finite.
    pub(crate) fn scale_metrics(&self) -> Vec<(&'static str, Metric)> {
        self.optimizer.scale.map_or_else(Vec::new, |scale| {
            vec![
                ("loss_scale", Metric::Real(scale.value() as f32)),
                ("skipped_steps", Metric::Count(scale.skipped())),
            ]
        })
    }

    /// Does step number `step`, counted from 1, with learning rate `lr`, on a batch that comes in
    /// `parts`, none of which is kept.
    ///
    /// The loss is a mean over images. So each part of the batch is differentiated on its own, on
    /// several devices as many parts at the same time as there are devices, and memory holds the maps
    /// of one part a device: the gradient is the whole batch's. Nothing is read back from a device
    /// before all parts are on their way.
    ///
    /// # Errors
    /// An error of `parts`; [`TrainError::IncompleteBatch`]; [`TrainError::LossNotFinite`]; those of
    /// the networks and the objective. Weights and objective are as before the step then.
    pub fn step(
        &mut self,
        parts: impl IntoIterator<Item = std::result::Result<Batch, DataError>>,
        step: u64,
        lr: f64,
    ) -> Result<StepLosses> {
        let losses = self.try_step(parts, step, lr);
        if losses.is_err() {
            // Gradients of a step that was not taken are not those of the next.
            self.optimizer.optimizer.discard();
            for worker in &self.workers {
                worker.discard();
            }
        }
        losses
    }

    fn try_step(
        &mut self,
        parts: impl IntoIterator<Item = std::result::Result<Batch, DataError>>,
        step: u64,
        lr: f64,
    ) -> Result<StepLosses> {
        self.objective.begin_step(step)?;
        let mut parts = self.calibrate(parts.into_iter())?;
        self.share_parameters()?;
        let mut outcomes = Vec::new();
        let mut size = 0;
        loop {
            let round = parts.by_ref().take(1 + self.workers.len());
            let round: Vec<Batch> = round.collect::<std::result::Result<_, _>>()?;
            let Some(first) = round.first() else { break };
            size = first.batch_size;
            self.round(round, &mut outcomes)?;
        }
        drop(parts);
        for worker in &self.workers {
            self.optimizer.optimizer.merge(worker.gradients()?)?;
        }
        // Shares are of the whole batch, so all of it must have come.
        let found: usize = outcomes.iter().map(|part| part.indices.len()).sum();
        if found != size || found == 0 {
            let expected = size;
            return Err(TrainError::IncompleteBatch { found, expected });
        }
        let mut losses = total(&outcomes)?;
        if !losses.total.is_finite() {
            let loss = losses.total;
            return Err(TrainError::LossNotFinite { step, loss, lr });
        }
        self.optimizer.step(lr)?;
        losses.metrics.extend(self.objective.end_step(outcomes)?);
        Ok(losses)
    }

    /// One part for each device, or fewer at the end of a batch.
    fn round(
        &mut self,
        parts: Vec<Batch>,
        outcomes: &mut Vec<PartOutcome<O::Outcome>>,
    ) -> Result<()> {
        let further = self.workers.iter().map(Worker::device);
        let devices = std::iter::once(self.networks.device()).chain(further);
        let mut prepared = Vec::with_capacity(parts.len());
        for (part, device) in parts.into_iter().zip(devices) {
            let target = self.objective.target(&part, device)?;
            prepared.push((part, target));
        }
        let scale = self.optimizer.factor();
        let mut prepared = prepared.into_iter();
        let own = prepared.next();
        let mut busy = Vec::new();
        for ((part, target), worker) in prepared.zip(&self.workers) {
            worker.differentiate(part, target, scale)?;
            busy.push(worker);
        }
        if let Some((part, target)) = own {
            let optimizer = &mut self.optimizer;
            let mut backward = |loss: &Tensor| optimizer.accumulate(loss);
            let outcome = forward_part::<O>(&mut self.networks, &part, target, &mut backward)?;
            outcomes.push(outcome);
        }
        for worker in busy {
            outcomes.push(worker.outcome()?);
        }
        Ok(())
    }

    /// Brings the parameters of all copies up to date.
    fn share_parameters(&self) -> Result<()> {
        if self.workers.is_empty() {
            return Ok(());
        }
        let values = parameters::<O>(&self.networks).into_iter().map(|set| {
            let values = set.var().as_detached_tensor();
            values.to_device(&Device::Cpu)
        });
        let values = values.collect::<candle_core::Result<Vec<_>>>()?;
        for worker in &self.workers {
            worker.set_parameters(values.clone())?;
        }
        Ok(())
    }

    /// Lets an objective that needs it see the whole batch first. For this one step the parts are
    /// kept; nothing else changes.
    fn calibrate<'a>(
        &mut self,
        parts: impl Iterator<Item = std::result::Result<Batch, DataError>> + 'a,
    ) -> Result<Box<dyn Iterator<Item = std::result::Result<Batch, DataError>> + 'a>> {
        if !self.objective.needs_calibration() {
            return Ok(Box::new(parts));
        }
        let parts: Vec<Batch> = parts.collect::<std::result::Result<_, _>>()?;
        // A single part is the whole batch already.
        if parts.len() > 1 {
            let before = modules::<O>(&self.networks).into_iter();
            let before = before.map(|(_, module)| module.state());
            let before = before.collect::<std::result::Result<Vec<_>, _>>()?;
            self.objective.calibrate(&mut self.networks, &parts)?;
            for ((_, module), before) in modules::<O>(&self.networks).iter().zip(before) {
                module.load(&before)?;
            }
        }
        Ok(Box::new(parts.into_iter().map(Ok)))
    }

    /// Writes the tensors of a checkpoint into `folder`: `model.safetensors`, the backbone's under the
    /// names it gives them and the heads' under their prefixes, `optimizer.safetensors`, and what the
    /// objective adds.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, folder: &Path, state: &mut State) -> Result<()> {
        save_state_dict(&folder.join(MODEL), &modules::<O>(&self.networks))?;
        let momentum = self.optimizer.optimizer.state()?;
        save_tensors(&folder.join(OPTIMIZER), &momentum)?;
        state.loss_scale = self.optimizer.scale;
        self.objective.save(folder, state)
    }

    /// Brings back what [`Learner::save`] wrote.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] for files of other networks.
    pub fn restore(&mut self, folder: &Path, state: &State) -> Result<()> {
        let path = folder.join(MODEL);
        let saved = load_state_dict(&path)?;
        let misfit = |path: &Path| {
            let path = path.to_owned();
            move |error: ModelError| TrainError::Checkpoint {
                path,
                reason: error.to_string(),
            }
        };
        let modules = modules::<O>(&self.networks);
        for (place, (prefix, module)) in modules.iter().enumerate() {
            let mut own = strip_prefix(&saved, prefix);
            if place == 0 {
                // The backbone's names have no prefix, so all others' are to be left out.
                let of_others = |name: &String| {
                    let mut others = modules[1..].iter();
                    others.any(|(prefix, _)| name.starts_with(prefix))
                };
                own.retain(|name, _| !of_others(name));
            }
            let report = module.load(&own);
            let whole = report.and_then(|report| report.ensure_whole());
            whole.map_err(misfit(&path))?;
        }
        let path = folder.join(OPTIMIZER);
        let saved = load_state_dict(&path)?;
        let optimizer = &mut self.optimizer.optimizer;
        optimizer.load_state(&saved).map_err(misfit(&path))?;
        if let (Some(own), Some(saved)) = (&mut self.optimizer.scale, state.loss_scale) {
            *own = saved;
        }
        self.objective.restore(folder, state)
    }
}

/// The terms' means over the whole batch, and their weighted sum.
fn total<T>(outcomes: &[PartOutcome<T>]) -> Result<StepLosses> {
    let mut means: Vec<(&'static str, f64, f64)> = Vec::new();
    for part in outcomes {
        for (place, term) in part.terms.iter().enumerate() {
            let value = part.share * scalar(&term.loss)?;
            match means.get_mut(place) {
                Some((_, _, mean)) => *mean += value,
                None => means.push((term.name, term.weight, value)),
            }
        }
    }
    let total: f64 = means.iter().map(|(_, weight, mean)| weight * mean).sum();
    let metrics = means
        .iter()
        .map(|(name, _, mean)| (*name, Metric::Real(*mean as f32)));
    Ok(StepLosses {
        total: total as f32,
        metrics: metrics.collect(),
    })
}
