//! A backbone, an objective and an optimiser: the training step.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use pirl_core::Ops;
use pirl_data::{Batch, DataError};
use pirl_model::{
    Backbone, BatchNorm, ModelError, OptimConfig, Optimizer, ParamSet, Peers, Precision,
    load_state_dict, save_state_dict, save_tensors, strip_prefix,
};

use crate::checkpoint::{MODEL, OPTIMIZER, State};
use crate::collective::{Collective, Ranks, alone, any, from_bytes, to_bytes, with_gradients_on};
use crate::error::{Result, TrainError};
use crate::networks::Networks;
use crate::objective::{Objective, PartOutcome, scalar};
use crate::part::{forward_part, modules, parameters};
use crate::reduction::Reduction;
use crate::scaled_optimizer::ScaledOptimizer;
use crate::shared_training::{ensure_alike, share_optimizer};
use crate::synced::Rounds;
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
    /// Other processes, which take over other parts of each batch.
    ranks: Ranks,
    /// Where batch norms meet that are synced.
    synced: Option<Arc<Rounds>>,
    reduction: Reduction,
    /// The optimiser's first set of parameters: nearly all of them, in the networks of this project.
    first_set: Option<ParamSet>,
    /// Whether the ranks have begun from the same numbers.
    joined: bool,
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
    batch_norm: BatchNorm,
    ranks: Ranks,
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
    /// Broken images of the batch that others replaced.
    pub skipped: usize,
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

    /// The ranks of the run, each of which has such a learner, and is given its own parts of every
    /// batch, in the order of the ranks, at least one. Without this the process is alone.
    pub fn ranks(self, ranks: Ranks) -> Self {
        Self { ranks, ..self }
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

    /// Over which images batch norm takes mean and variance in a step: those of a part of the batch by
    /// default, or those of all parts that go through the networks at the same time, one on each device of
    /// every rank. Parts that follow each other on a device stay apart. The heads' batch norms too; that of
    /// evaluations, and of NCE's estimate of its constant, is of one device.
    pub fn batch_norm(self, batch_norm: BatchNorm) -> Self {
        Self { batch_norm, ..self }
    }

    /// The learner, its networks untrained.
    ///
    /// With several ranks, all of them build theirs at the same time.
    ///
    /// # Errors
    /// [`TrainError::NoDevice`]; those of the backbone, the heads and the optimiser; a precision that
    /// the backbone does not have; synced batch norm of a module that has not
    /// [`Trainable::sync_batch_norm`](pirl_model::Trainable::sync_batch_norm).
    pub fn build(mut self) -> Result<Learner<O>> {
        let (device, further) = self.devices.split_first().ok_or(TrainError::NoDevice)?;
        self.ranks = with_gradients_on(self.ranks, device)?;
        self.objective.join(&self.ranks)?;
        let synced = self.batch_norm == BatchNorm::Synced;
        let synced = synced.then(|| Rounds::new(Arc::clone(&self.ranks)));
        let networks = |place: usize, device: &Device| {
            let mut backbone = (self.backbone)(device)?;
            backbone.set_precision(self.precision)?;
            let heads = self.objective.heads(backbone.feature_dim(), device)?;
            let mut networks = Networks::new(backbone, heads, device)?;
            if let Some(rounds) = &synced {
                let member = rounds.member(place, device);
                for (_, module) in modules::<O>(&networks) {
                    module.sync_batch_norm(Arc::clone(&member) as Arc<dyn Peers>)?;
                }
                networks.synced = Some(member);
            }
            Ok::<_, TrainError>(networks)
        };
        let main = networks(0, device)?;
        let workers = (1..)
            .zip(further)
            .map(|(place, device)| Worker::start(networks(place, device)?));
        let workers = workers.collect::<Result<_>>()?;
        let sets = parameters::<O>(&main);
        let first_set = sets.first().cloned();
        let optimizer = Optimizer::new(&self.optim, sets)?.with_ops(self.ops);
        Ok(Learner {
            workers,
            optimizer: ScaledOptimizer::new(optimizer, self.precision),
            networks: main,
            objective: self.objective,
            reduction: Reduction::new(Arc::clone(&self.ranks)),
            ranks: self.ranks,
            synced,
            first_set,
            joined: false,
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
            batch_norm: BatchNorm::Local,
            ranks: alone(),
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

    /// The ranks of the run.
    pub fn ranks(&self) -> &dyn Collective {
        self.ranks.as_ref()
    }

    /// Whether `flag` is set on any rank.
    ///
    /// # Errors
    /// If a rank has ended.
    pub(crate) fn any(&self, flag: bool) -> Result<bool> {
        any(self.ranks.as_ref(), flag)
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
    /// An error of `parts`; [`TrainError::IncompleteBatch`]; [`TrainError::LossNotFinite`];
    /// [`TrainError::UnevenParts`]; those of the networks and the objective. Weights and objective are as
    /// before the step then.
    pub fn step(
        &mut self,
        parts: impl IntoIterator<Item = std::result::Result<Batch, DataError>>,
        step: u64,
        lr: f64,
    ) -> Result<StepLosses> {
        self.begin()?;
        let losses = self.try_step(parts, step, lr);
        if losses.is_err() {
            // Gradients of a step that was not taken are not those of the next.
            self.optimizer.optimizer.discard();
            if let Some(set) = &self.first_set {
                self.reduction.discard(set);
            }
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
            self.ensure_even(round.len())?;
            let Some(first) = round.first() else { break };
            size = first.batch_size;
            self.round(round, &mut outcomes)?;
        }
        drop(parts);
        for worker in &self.workers {
            self.optimizer.optimizer.merge(worker.gradients()?)?;
        }
        let terms = self.all_terms(&outcomes)?;
        // Shares are of the whole batch, so all of it must have come.
        let found: usize = terms.iter().map(|part| part.images).sum();
        if found != size || found == 0 {
            let expected = size;
            return Err(TrainError::IncompleteBatch { found, expected });
        }
        let losses = total(&terms);
        if !losses.total.is_finite() {
            let loss = losses.total;
            return Err(TrainError::LossNotFinite { step, loss, lr });
        }
        if let Some(set) = &self.first_set {
            self.reduction.finish(set, &mut self.optimizer.optimizer)?;
        }
        self.optimizer.step(lr)?;
        let mut metrics = losses.metrics;
        metrics.extend(self.objective.end_step(outcomes)?);
        let sets = parameters::<O>(&self.networks);
        ensure_alike(self.ranks.as_ref(), step, &sets)?;
        Ok(StepLosses { metrics, ..losses })
    }

    /// The terms of all parts of the batch, in their order, whatever rank they are on.
    fn all_terms(&self, outcomes: &[PartOutcome<O::Outcome>]) -> Result<Vec<PartTerms>> {
        let own = outcomes.iter().map(PartTerms::of);
        let own = own.collect::<Result<Vec<_>>>()?;
        if self.ranks.size() == 1 {
            return Ok(own);
        }
        let Some(first) = own.first() else {
            return Ok(own); // no part at all: the batch is not whole, which is said
        };
        // Each part is as many numbers on every rank.
        let numbers = own.iter().flat_map(|part| {
            let head = [part.images as f64, part.share, part.skipped as f64];
            head.into_iter().chain(part.terms.iter().map(|term| term.2))
        });
        let bytes = numbers.flat_map(f64::to_le_bytes).collect();
        let all = self.ranks.all_gather(bytes)?.concat();
        let (numbers, _) = all.as_chunks();
        let numbers: Vec<f64> = numbers
            .iter()
            .map(|bytes| f64::from_le_bytes(*bytes))
            .collect();
        let parts = numbers.chunks_exact(3 + first.terms.len()).map(|part| {
            let names = first.terms.iter().map(|&(name, weight, _)| (name, weight));
            let terms = names.zip(&part[3..]);
            PartTerms {
                images: part[0] as usize,
                share: part[1],
                skipped: part[2] as usize,
                terms: terms
                    .map(|((name, weight), &loss)| (name, weight, loss))
                    .collect(),
            }
        });
        Ok(parts.collect())
    }

    /// Gives all ranks what rank 0 has, once, before the first step: weights, momentum, what the
    /// objective keeps. So a checkpoint or weights to begin with need not be where the others are.
    /// Batch norms' running statistics stay those of each rank; rank 0's are saved.
    pub(crate) fn begin(&mut self) -> Result<()> {
        if self.joined {
            return Ok(());
        }
        self.joined = true;
        if self.ranks.size() == 1 {
            return self.objective.begin_alike(self.ranks.as_ref());
        }
        let ranks = self.ranks.as_ref();
        let sets = parameters::<O>(&self.networks);
        for set in &sets {
            let var = set.var();
            var.set(&broadcast(ranks, var.as_detached_tensor())?)?;
        }
        share_optimizer(ranks, &mut self.optimizer.optimizer)?;
        if let Some(scale) = &mut self.optimizer.scale {
            let text = serde_json::to_vec(scale).unwrap_or_default();
            let text = ranks.broadcast(0, text)?;
            *scale =
                serde_json::from_slice(&text).map_err(|error| TrainError::Other(error.into()))?;
        }
        self.objective.begin_alike(ranks)?;
        ensure_alike(ranks, 0, &sets)
    }

    /// An error unless all ranks whose batch norms are synced have as many parts in a round as this one.
    fn ensure_even(&self, parts: usize) -> Result<()> {
        if self.synced.is_none() || self.ranks.size() == 1 {
            return Ok(());
        }
        // With further devices gradients are summed up later, and nothing may come in another order.
        let devices = 1 + self.workers.len();
        let own = format!("{parts} for its {devices} devices").into_bytes();
        let all = self.ranks.all_gather(own)?;
        let text = |rank: usize| String::from_utf8_lossy(&all[rank]).into_owned();
        match (1..all.len()).find(|&rank| all[rank] != all[0]) {
            None => Ok(()),
            Some(rank) => Err(TrainError::UnevenParts {
                rank,
                found: text(rank),
                expected: text(0),
            }),
        }
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
        let rounds = self.synced.as_ref();
        let _round = rounds.map(|rounds| rounds.begin(prepared.len()));
        let mut prepared = prepared.into_iter();
        let own = prepared.next();
        let mut busy = Vec::new();
        for ((part, target), worker) in prepared.zip(&self.workers) {
            worker.differentiate(part, target, scale)?;
            busy.push(worker);
        }
        if let Some((part, target)) = own {
            let (optimizer, reduction) = (&mut self.optimizer, &mut self.reduction);
            reduction.part();
            // With copies on further devices, theirs are added when all parts are done.
            let set = self.first_set.as_ref().filter(|_| self.workers.is_empty());
            let mut backward = |loss: &Tensor| {
                if let Some(set) = set {
                    reduction.term(set, &optimizer.optimizer);
                }
                optimizer.accumulate(loss)
            };
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
        // A single part is the whole batch already, unless there are other ranks.
        if parts.len() > 1 || self.ranks.size() > 1 {
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
        state.ranks = self.ranks.size();
        self.objective.save(folder, state)
    }

    /// Brings back what [`Learner::save`] wrote.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] for files of other networks.
    pub fn restore(&mut self, folder: &Path, state: &State) -> Result<()> {
        let (before, now) = (state.ranks, self.ranks.size());
        if before != now {
            tracing::warn!(
                "{} was written by {before} ranks, and {now} go on: with the same batches, negatives and \
                 rates, but not to the bit, as sums are rounded in another order",
                folder.display()
            );
        }
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

/// What rank 0 has in place of `tensor`.
pub(crate) fn broadcast(ranks: &dyn Collective, tensor: Tensor) -> Result<Tensor> {
    let own = match ranks.rank() {
        0 => to_bytes(&tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?),
        _ => Vec::new(),
    };
    let values = from_bytes(&ranks.broadcast(0, own)?);
    Ok(Tensor::from_vec(values, tensor.shape(), tensor.device())?)
}

/// What a part contributes to the loss of the batch.
struct PartTerms {
    images: usize,
    share: f64,
    skipped: usize,
    /// Name, weight, and the mean over the part's images.
    terms: Vec<(&'static str, f64, f64)>,
}

impl PartTerms {
    fn of<T>(part: &PartOutcome<T>) -> Result<Self> {
        let terms = part.terms.iter();
        let terms = terms.map(|term| Ok((term.name, term.weight, scalar(&term.loss)?)));
        Ok(Self {
            images: part.indices.len(),
            share: part.share,
            skipped: part.skipped,
            terms: terms.collect::<Result<_>>()?,
        })
    }
}

/// The terms' means over the whole batch, and their weighted sum.
fn total(parts: &[PartTerms]) -> StepLosses {
    let mut means: Vec<(&'static str, f64, f64)> = Vec::new();
    for part in parts {
        for (place, &(name, weight, loss)) in part.terms.iter().enumerate() {
            let value = part.share * loss;
            match means.get_mut(place) {
                Some((_, _, mean)) => *mean += value,
                None => means.push((name, weight, value)),
            }
        }
    }
    let total: f64 = means.iter().map(|(_, weight, mean)| weight * mean).sum();
    let metrics = means
        .iter()
        .map(|(name, _, mean)| (*name, Metric::Real(*mean as f32)));
    StepLosses {
        total: total as f32,
        metrics: metrics.collect(),
        skipped: parts.iter().map(|part| part.skipped).sum(),
    }
}
