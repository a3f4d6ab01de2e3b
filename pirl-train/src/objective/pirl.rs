//! PIRL itself (arXiv:1912.01991, section 3): embeddings of an image and of its transformed copy are
//! pulled towards the image's row of a memory bank, and away from rows of other images.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use pirl_bank::{BankPrecision, MappedConfig, MemoryBank, NegativeSampler, SharedSampler};
use pirl_core::{Ops, check};
use pirl_data::{Batch, EvalView, Pack, eval_batches};
use pirl_loss::{ContrastiveLoss, Negatives, Paper, ViewWeights};
use pirl_model::{Head, HeadKind, JigsawHead, Mode, ModelConfig, ModelError, ProjectionHead};
use serde::{Deserialize, Serialize};

use super::bank::Bank;
use super::embeddings::embedding_metrics;
use super::estimated_nce::EstimatedNce;
use super::negatives::StepNegatives;
use super::sharded::{Owned, ShardedKind, ShardedLoss};
use super::{HeadFactory, Module, Objective, PartOutcome, Terms, boxed};
use crate::checkpoint::{BANK, State};
use crate::collective::{Collective, Ranks, alone, from_bytes, to_bytes};
use crate::error::{Result, TrainError};
use crate::learner::{Learner, broadcast};
use crate::networks::{Networks, move_to};
use crate::streams::Stream;
use crate::training::Metric;

/// The paper's number of negatives (section 4).
const NEGATIVES: usize = 32_000;
/// The paper's temperature.
const TEMPERATURE: f64 = 0.07;

/// PIRL, and without transformed views NPID (Wu et al., arXiv:1805.01978).
///
/// A step: negatives are drawn from the bank, once for the whole batch; the transformed views and the
/// images go through the backbone and the heads g and f; the loss is
/// `lambda * L(m_I, g(v_It)) + (1 - lambda) * L(m_I, f(v_I))`, equation (6), where `m_I` is the image's
/// row of the bank; after the optimiser's step that row moves towards `f(v_I)`.
pub struct Pirl {
    loss: Arc<dyn ContrastiveLoss>,
    /// The same loss, if it is one whose constant is estimated.
    nce: Option<Arc<EstimatedNce>>,
    weights: ViewWeights,
    image_head: HeadFactory,
    /// `None` for NPID.
    transformed_head: Option<HeadFactory>,
    bank: Bank,
    sampler: Box<dyn NegativeSampler>,
    /// N.
    negatives: usize,
    ops: Ops,
    seed: u64,
    /// Those of the step that is under way.
    step: StepNegatives,
    positives: Positives,
    ranks: Ranks,
    sharded: Option<Sharded>,
}

/// What is needed where the bank's rows lie on several ranks.
struct Sharded {
    kind: ShardedKind,
    temperature: f64,
    /// The rows that `bank` has.
    owned: Owned,
    /// Where to take them from before the first step.
    saved: Option<PathBuf>,
}

/// What stands on a backbone.
pub struct PirlHeads {
    /// f, for the image.
    pub image: Box<dyn Head>,
    /// g, for its transformed copy; `None` for NPID.
    pub transformed: Option<Box<dyn Head>>,
}

/// What a part of a batch is compared with.
pub struct Rows {
    /// `m_I` of each image, `(b, dim)`.
    own: Tensor,
    /// One draw for the batch, and for both terms.
    negatives: Negatives,
    loss: Arc<dyn ContrastiveLoss>,
    weights: ViewWeights,
    positives: Positives,
}

/// What each view of an image is drawn to, and away from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Positives {
    /// The image's row of the bank, away from the rows drawn as negatives: equation (6), the paper's
    /// method.
    #[default]
    Bank,
    /// The embedding that the other view has in this very step, as equation (5) is printed, away from
    /// those of the other images that go through the networks together (a batch, or
    /// `train.micro_batch` of it). A row of the bank is an epoch old; where epochs are few, that is what
    /// holds learning back. Rows of the bank are not among the negatives: they are older than the
    /// positives, and telling old from new would be the easier task.
    Fresh,
    /// The mean of both losses.
    Both,
}

impl Rows {
    /// The loss of a view, `(b, dim)`, whose images have `other` as their other view.
    fn loss(&self, view: &Tensor, other: Option<&Tensor>) -> Result<Tensor> {
        let bank = || self.loss.forward(view, &self.own, &self.negatives);
        let fresh = |other: &Tensor| {
            let rows = other.detach();
            let own = (0..rows.dim(0)? as u32).map(Some).collect();
            let positives = rows.clone();
            self.loss
                .forward(view, &positives, &Negatives::Shared { rows, own })
        };
        Ok(match (self.positives, other) {
            (Positives::Fresh, Some(other)) => fresh(other)?,
            (Positives::Both, Some(other)) => ((bank()? + fresh(other)?)? * 0.5)?,
            _ => bank()?,
        })
    }
}

impl Pirl {
    /// PIRL on so many images, with `views` of each transformed copy
    /// ([`Pretext::views`](pirl_data::Pretext::views): 9 patches of a jigsaw, 1 of a rotation, 0 for
    /// NPID). Everything else is the paper's unless set.
    pub fn builder(images: usize, views: usize) -> PirlBuilder {
        PirlBuilder::new(images, views)
    }

    /// The memory bank; a sharded one's rows on this rank.
    pub fn bank(&self) -> &Bank {
        &self.bank
    }
}

impl Objective for Pirl {
    type Heads = PirlHeads;
    type Target = Rows;
    /// f of each image, without history.
    type Outcome = Tensor;

    fn heads(&self, features: usize, device: &Device) -> Result<PirlHeads> {
        let transformed = self.transformed_head.as_ref();
        let transformed = transformed.map(|head| head(features, device));
        Ok(PirlHeads {
            image: (self.image_head)(features, device)?,
            transformed: transformed.transpose()?,
        })
    }

    fn modules(heads: &PirlHeads) -> Vec<Module<'_>> {
        let mut modules: Vec<Module<'_>> = vec![("head.f.", &heads.image)];
        modules.extend(heads.transformed.as_ref().map(|g| ("head.g.", g as _)));
        modules
    }

    fn begin_step(&mut self, step: u64) -> Result<()> {
        self.step = StepNegatives::new(self.seed, step);
        Ok(())
    }

    fn target(&mut self, part: &Batch, device: &Device) -> Result<Rows> {
        if self.sharded.is_some() {
            return self.sharded_target(&part.indices, device);
        }
        let (bank, sampler) = (&self.bank, self.sampler.as_ref());
        let images = &part.indices;
        Ok(Rows {
            own: move_to(&bank.gather(images)?, device)?,
            negatives: self
                .step
                .of(images, self.negatives, bank, sampler, device)?,
            loss: Arc::clone(&self.loss),
            weights: self.weights,
            positives: self.positives,
        })
    }

    fn forward(
        networks: &mut Networks<PirlHeads>,
        part: &Batch,
        rows: Rows,
        terms: &mut Terms<'_>,
    ) -> Result<Tensor> {
        if rows.positives != Positives::Bank {
            let f = image(networks, part, Mode::Train)?;
            let g = transformed(networks, part, Mode::Train)?;
            terms.add(
                "loss_patch",
                rows.weights.transformed,
                &rows.loss(&g, Some(&f))?,
            )?;
            terms.add("loss_image", rows.weights.image, &rows.loss(&f, Some(&g))?)?;
            return Ok(f.detach());
        }
        let loss = |view: &Tensor| rows.loss(view, None);
        let mut image_weight = 1.0;
        // The transformed copies go first, as in VISSL: both passes move batch norm's running
        // statistics, and the images' is to be the last.
        if networks.heads().transformed.is_some() {
            let view = transformed(networks, part, Mode::Train)?;
            terms.add("loss_patch", rows.weights.transformed, &loss(&view)?)?;
            image_weight = rows.weights.image;
        }
        let view = image(networks, part, Mode::Train)?;
        terms.add("loss_image", image_weight, &loss(&view)?)?;
        Ok(view.detach())
    }

    /// Moves the bank's rows towards the embeddings of the step.
    fn end_step(
        &mut self,
        outcomes: Vec<PartOutcome<Tensor>>,
    ) -> Result<Vec<(&'static str, Metric)>> {
        let (mut indices, mut embeddings) = (Vec::new(), Vec::new());
        for part in outcomes {
            embeddings.push(move_to(&part.outcome, self.bank.device())?);
            indices.extend(part.indices);
        }
        let embeddings = Tensor::cat(&embeddings, 0)?;
        let (indices, embeddings) = self.gather_batch(indices, embeddings)?;
        let Some(Sharded { owned, .. }) = &self.sharded else {
            let metrics = embedding_metrics(&embeddings, &self.bank.gather(&indices)?)?;
            self.bank.update(&indices, &embeddings)?;
            return Ok(metrics);
        };
        let rows = owned.gather(self.ranks.as_ref(), &self.bank, &indices)?;
        let rows = Tensor::from_vec(rows, embeddings.shape(), embeddings.device())?;
        let metrics = embedding_metrics(&embeddings, &rows)?;
        let (places, ats) = owned.places(&indices);
        let ats: Vec<u32> = ats.into_iter().map(|at| at as u32).collect();
        let ats = Tensor::from_slice(&ats, ats.len(), embeddings.device())?;
        self.bank
            .update(&places, &embeddings.index_select(&ats, 0)?)?;
        Ok(metrics)
    }

    fn join(&mut self, ranks: &Ranks) -> Result<()> {
        self.ranks = Arc::clone(ranks);
        Ok(())
    }

    fn begin_alike(&mut self, ranks: &dyn Collective) -> Result<()> {
        self.bank.begin(ranks)?;
        if let Some(sharded) = &mut self.sharded {
            let saved = sharded.saved.take().unwrap_or_default();
            let saved = ranks.broadcast(0, saved.to_string_lossy().into_owned().into_bytes())?;
            if !saved.is_empty() {
                let folder = PathBuf::from(String::from_utf8_lossy(&saved).into_owned());
                self.load_bank(&folder)?;
            }
            return Ok(());
        }
        if ranks.size() == 1 {
            return Ok(());
        }
        if let Some(rows) = self.bank.rows() {
            let rows = broadcast(ranks, rows.clone())?;
            let bank = MemoryBank::from_rows(rows, self.bank.momentum())?;
            self.bank = Bank::Memory(bank.with_ops(self.ops));
        }
        let Some(nce) = &self.nce else {
            return Ok(());
        };
        let own = nce
            .log_z()
            .map_or_else(Vec::new, |log_z| log_z.to_le_bytes().to_vec());
        let given = ranks.broadcast(0, own)?;
        if let (None, Ok(log_z)) = (nce.log_z(), given.as_slice().try_into()) {
            nce.restore(f64::from_le_bytes(log_z))?;
        }
        Ok(())
    }

    fn needs_calibration(&self) -> bool {
        self.nce.as_ref().is_some_and(|nce| nce.log_z().is_none())
    }

    /// NCE's constant is estimated from the first loss there is: that of the transformed copies, if
    /// there are any, of the whole batch.
    fn calibrate(&mut self, networks: &mut Networks<PirlHeads>, parts: &[Batch]) -> Result<()> {
        let Some(nce) = &self.nce else {
            return Ok(());
        };
        let (mut indices, mut views) = (Vec::new(), Vec::new());
        for part in parts {
            views.push(match networks.heads().transformed {
                Some(_) => transformed(networks, part, Mode::Calibrate)?,
                None => image(networks, part, Mode::Calibrate)?,
            });
            indices.extend(&part.indices);
        }
        let views = Tensor::cat(&views, 0)?.detach();
        let (indices, views) = self.gather_batch(indices, views)?;
        let own = move_to(&self.bank.gather(&indices)?, networks.device())?;
        // The step itself is to have the same.
        let (mut step, device) = (self.step.clone(), networks.device());
        let sampler = self.sampler.as_ref();
        let negatives = step.of(&indices, self.negatives, &self.bank, sampler, device)?;
        nce.estimate(&views, &own, &negatives)?;
        self.step.share(step);
        Ok(())
    }

    fn save(&self, folder: &Path, state: &mut State) -> Result<()> {
        state.loss = self.nce.as_ref().and_then(|nce| nce.log_z());
        if self.sharded.is_none() || self.ranks.size() == 1 {
            return self.save_bank(&folder.join(BANK), state.step);
        }
        let mut order = state.step.to_le_bytes().to_vec();
        order.extend(folder.to_string_lossy().as_bytes());
        self.ranks.broadcast(0, order)?;
        self.save_shard(folder, state.step)
    }

    fn assist(&self) -> Result<()> {
        if self.sharded.is_none() {
            return Ok(());
        }
        let order = self.ranks.broadcast(0, Vec::new())?;
        let Some((step, folder)) = order.split_first_chunk() else {
            return Ok(());
        };
        let folder = PathBuf::from(String::from_utf8_lossy(folder).into_owned());
        self.save_shard(&folder, u64::from_le_bytes(*step))
    }

    fn restore(&mut self, folder: &Path, state: &State) -> Result<()> {
        self.bank.begin_at(state.step);
        match &mut self.sharded {
            // The other ranks learn of it before the first step.
            Some(sharded) if self.ranks.size() > 1 => sharded.saved = Some(folder.to_owned()),
            _ => self.load_bank(folder)?,
        }
        if let (Some(nce), Some(log_z)) = (&self.nce, state.loss) {
            nce.restore(log_z)?;
        }
        Ok(())
    }
}

impl Pirl {
    /// What the images of a part are compared with: their own rows, and those of the negatives that are
    /// on this rank, for the images of all ranks' parts.
    fn sharded_target(&mut self, images: &[u32], device: &Device) -> Result<Rows> {
        let Some(sharded) = &self.sharded else {
            return Err(TrainError::NoDevice);
        };
        let (ranks, owned) = (self.ranks.as_ref(), &sharded.owned);
        let own = images
            .iter()
            .flat_map(|image| image.to_le_bytes())
            .collect();
        let gathered = ranks.all_gather(own)?;
        let sizes: Vec<usize> = gathered.iter().map(|bytes| bytes.len() / 4).collect();
        let all = gathered.concat();
        let (all, _) = all.as_chunks();
        let all: Vec<u32> = all.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        let dim = self.bank.dim();
        let lengths: Vec<usize> = sizes.iter().map(|size| size * dim).collect();
        let rows = ranks.reduce_scatter(owned.spread(&self.bank, &all)?, &lengths)?;
        let own = Tensor::from_vec(rows, (images.len(), dim), device)?;
        let (bank, sampler) = (&self.bank, self.sampler.as_ref());
        let negatives = self
            .step
            .of_shard(&all, self.negatives, bank, owned, sampler, device)?;
        Ok(Rows {
            own,
            negatives,
            loss: Arc::new(ShardedLoss {
                kind: sharded.kind,
                temperature: sharded.temperature,
                ranks: Arc::clone(&self.ranks),
                sizes,
            }),
            weights: self.weights,
            positives: self.positives,
        })
    }

    /// The file of a rank's rows, of so many ranks.
    fn shard_name(rank: usize, ranks: usize) -> String {
        format!("bank-{rank:05}-of-{ranks:05}.safetensors")
    }

    /// Writes this rank's rows into the folder of a checkpoint that rank 0 makes; all ranks come back
    /// when all are done.
    fn save_shard(&self, folder: &Path, step: u64) -> Result<()> {
        let name = Self::shard_name(self.ranks.rank(), self.ranks.size());
        self.save_bank(&folder.join(name), step)?;
        self.ranks.barrier()
    }

    /// Writes the rows; those that are in a file of their own stay there.
    fn save_bank(&self, path: &Path, step: u64) -> Result<()> {
        match &self.bank {
            Bank::Memory(bank) => Ok(bank.save(path)?),
            Bank::Mapped(_) => self.bank.mark(step),
        }
    }

    /// Takes the rows that this rank has from a checkpoint, whatever files its bank is in.
    fn load_bank(&mut self, folder: &Path) -> Result<()> {
        if self.bank.rows().is_none() {
            return Ok(()); // it goes back by itself
        }
        let (dim, momentum) = (self.bank.dim(), self.bank.momentum());
        let owned = match &self.sharded {
            Some(sharded) => sharded.owned.clone(),
            None => Owned {
                rows: 0..self.bank.len(),
                all: self.bank.len(),
            },
        };
        let whole = folder.join(BANK);
        let mut files = vec![(whole.clone(), 0..owned.all)];
        if !whole.is_file()
            && let Some(shards) = shards(folder)?
        {
            let file = |rank| {
                let rows = rank * owned.all / shards..(rank + 1) * owned.all / shards;
                (folder.join(Self::shard_name(rank, shards)), rows)
            };
            files = (0..shards).map(file).collect();
        }
        let mut parts = Vec::new();
        for (path, rows) in files {
            let (start, end) = (
                rows.start.max(owned.rows.start),
                rows.end.min(owned.rows.end),
            );
            if start < end {
                let bank = MemoryBank::load(path, rows.len(), dim, momentum)?;
                parts.push(bank.rows().narrow(0, start - rows.start, end - start)?);
            }
        }
        let rows = Tensor::cat(&parts, 0)?;
        let rows = rows.to_device(self.bank.device())?;
        self.bank = Bank::Memory(MemoryBank::from_rows(rows, momentum)?.with_ops(self.ops));
        Ok(())
    }

    /// The images of the whole batch, and a vector of each, `(b, dim)`, from those of every rank.
    fn gather_batch(&self, indices: Vec<u32>, vectors: Tensor) -> Result<(Vec<u32>, Tensor)> {
        if self.ranks.size() == 1 {
            return Ok((indices, vectors));
        }
        let (dim, device) = (vectors.dim(1)?, vectors.device());
        let own = indices
            .iter()
            .flat_map(|index| index.to_le_bytes())
            .collect();
        let all = self.ranks.all_gather(own)?.concat();
        let (all, _) = all.as_chunks();
        let indices: Vec<u32> = all.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        let own = to_bytes(&vectors.flatten_all()?.to_vec1()?);
        let all = from_bytes(&self.ranks.all_gather(own)?.concat());
        let vectors = Tensor::from_vec(all, (indices.len(), dim), device)?;
        Ok((indices, vectors))
    }
}

/// How many files the bank of a checkpoint is in, if it is sharded.
fn shards(folder: &Path) -> Result<Option<usize>> {
    let list = std::fs::read_dir(folder).map_err(TrainError::io("list", folder))?;
    for entry in list {
        let name = entry.map_err(TrainError::io("list", folder))?.file_name();
        let name = name.to_string_lossy();
        let count = name.strip_prefix("bank-00000-of-");
        let count = count.and_then(|rest| rest.strip_suffix(".safetensors"));
        if let Some(count) = count.and_then(|count| count.parse().ok()) {
            return Ok(Some(count));
        }
    }
    Ok(None)
}

/// f of the images: `(b, dim)`.
fn image(networks: &mut Networks<PirlHeads>, part: &Batch, mode: Mode) -> Result<Tensor> {
    let features = networks.image_features(part, mode)?;
    Ok(networks.heads().image.forward(&features, mode)?)
}

/// g of their transformed copies: `(b, dim)`.
fn transformed(networks: &mut Networks<PirlHeads>, part: &Batch, mode: Mode) -> Result<Tensor> {
    let features = networks.transformed_features(part, mode)?;
    match &networks.heads().transformed {
        Some(head) => Ok(head.forward(&features, mode)?),
        None => Err(TrainError::NoTransformedViews),
    }
}

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
    /// [`TrainError::Data`] for an image that cannot be decoded; those of the networks.
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

/// Settings of [`Pirl`], by [`Pirl::builder`].
#[must_use]
pub struct PirlBuilder {
    images: usize,
    views: usize,
    dim: usize,
    momentum: f64,
    lambda: f64,
    loss: Option<Arc<dyn ContrastiveLoss>>,
    nce: Option<f64>,
    negatives: usize,
    sampler: Box<dyn NegativeSampler>,
    head: HeadKind,
    image_head: Option<HeadFactory>,
    transformed_head: Option<HeadFactory>,
    bank: Option<MemoryBank>,
    bank_device: Device,
    ops: Ops,
    seed: u64,
    positives: Positives,
    sharded: Option<(ShardedKind, f64, Ranks)>,
    mapped: Option<(PathBuf, BankPrecision)>,
}

impl PirlBuilder {
    fn new(images: usize, views: usize) -> Self {
        Self {
            images,
            views,
            dim: 128,
            momentum: 0.5,
            lambda: 0.5,
            loss: None,
            nce: None,
            negatives: NEGATIVES,
            sampler: Box::new(SharedSampler),
            head: HeadKind::Linear,
            image_head: None,
            transformed_head: None,
            bank: None,
            bank_device: Device::Cpu,
            ops: Ops::Fast,
            seed: 0,
            positives: Positives::Bank,
            sharded: None,
            mapped: None,
        }
    }

    /// Keeps the bank in a mapped file in `folder`, its numbers in `precision`, for more rows than
    /// memory has room for. It begins with random rows, and stays where it is: checkpoints mark it, and
    /// it can go back to the last two ([`MappedBank`](pirl_bank::MappedBank)).
    pub fn mapped(self, folder: impl Into<PathBuf>, precision: BankPrecision) -> Self {
        Self {
            mapped: Some((folder.into(), precision)),
            ..self
        }
    }

    /// Spreads the bank's rows over `ranks`, which are those that the learner gets: each has its share
    /// of the rows, and scores the queries of all ranks against the negatives among them, drawn as ever.
    /// For the loss of this kind and temperature, in place of [`PirlBuilder::loss`]. The parts of a batch
    /// must be as many on each rank.
    pub fn sharded(self, kind: ShardedKind, temperature: f64, ranks: &Ranks) -> Self {
        Self {
            sharded: Some((kind, temperature, Arc::clone(ranks))),
            ..self
        }
    }

    /// Weight of the transformed copy's term, in `[0, 1]`; 0.5 by default.
    pub fn lambda(self, lambda: f64) -> Self {
        Self { lambda, ..self }
    }

    /// The loss; the paper's, [`Paper`] with temperature 0.07, by default.
    pub fn loss(self, loss: impl ContrastiveLoss + 'static) -> Self {
        Self {
            loss: Some(Arc::new(loss)),
            nce: None,
            ..self
        }
    }

    /// VISSL's noise-contrastive estimation, [`Nce`](pirl_loss::Nce), whose constant is estimated from
    /// the first batch and kept in checkpoints.
    pub fn nce(self, temperature: f64) -> Self {
        Self {
            loss: None,
            nce: Some(temperature),
            ..self
        }
    }

    /// Negatives of a step, at least 1 and fewer than the images; 32,000 by default.
    pub fn negatives(self, negatives: usize) -> Self {
        Self { negatives, ..self }
    }

    /// What chooses them; [`SharedSampler`] by default.
    pub fn sampler(self, sampler: impl NegativeSampler + 'static) -> Self {
        Self {
            sampler: Box::new(sampler),
            ..self
        }
    }

    /// Length of an embedding; 128 by default.
    pub fn dim(self, dim: usize) -> Self {
        Self { dim, ..self }
    }

    /// Weight of a bank's old row in an update, in `[0, 1]`; 0.5 by default.
    pub fn bank_momentum(self, momentum: f64) -> Self {
        Self { momentum, ..self }
    }

    /// Where the bank is; in the host's memory by default.
    pub fn bank_device(self, device: &Device) -> Self {
        Self {
            bank_device: device.clone(),
            ..self
        }
    }

    /// A bank to begin with, instead of random rows: one row for each image.
    pub fn bank(self, bank: MemoryBank) -> Self {
        Self {
            dim: bank.dim(),
            momentum: bank.momentum(),
            bank: Some(bank),
            ..self
        }
    }

    /// The kind of both heads; linear, the paper's, by default.
    pub fn head(self, head: HeadKind) -> Self {
        Self { head, ..self }
    }

    /// An f of one's own: from features `(b, features)` to unit rows `(b, dim)`. Called once for each
    /// device, it must make the same each time.
    pub fn image_head<H: Head + 'static>(
        self,
        head: impl Fn(usize, &Device) -> std::result::Result<H, ModelError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            image_head: Some(boxed(head)),
            ..self
        }
    }

    /// A g of one's own: from features `(b * views, features)` to unit rows `(b, dim)`; as
    /// [`PirlBuilder::image_head`].
    pub fn transformed_head<H: Head + 'static>(
        self,
        head: impl Fn(usize, &Device) -> std::result::Result<H, ModelError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            transformed_head: Some(boxed(head)),
            ..self
        }
    }

    /// What each view is drawn to; the bank's row by default.
    pub fn positives(self, positives: Positives) -> Self {
        Self { positives, ..self }
    }

    /// What computes heads, loss and bank; the fast ops by default.
    pub fn ops(self, ops: Ops) -> Self {
        Self { ops, ..self }
    }

    /// Seed of everything random: the heads, the bank, the negatives; 0 by default.
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// The objective.
    ///
    /// # Errors
    /// [`TrainError::Bank`] or [`TrainError::Loss`] for a setting out of range, or for a bank that
    /// cannot be made.
    pub fn build(self) -> Result<Pirl> {
        let (seed, dim, views, ops) = (self.seed, self.dim, self.views, self.ops);
        let positives = self.positives;
        check(
            "positives",
            format!("{positives:?}").to_lowercase(),
            views > 0 || positives == Positives::Bank,
            "must be bank where images have no transformed view",
        )?;
        let fits = self.sharded.is_none() || positives == Positives::Bank;
        check(
            "positives",
            "fresh or both",
            fits,
            "must be bank where the bank is sharded",
        )?;
        let sharded = self.sharded.map(|(kind, temperature, ranks)| Sharded {
            kind,
            temperature,
            owned: Owned::of(ranks.as_ref(), self.images),
            saved: None,
        });
        let rows = sharded
            .as_ref()
            .map_or(0..self.images, |sharded| sharded.owned.rows.clone());
        let (momentum, bank_seed) = (self.momentum, Stream::Bank.seed(seed));
        let bank = match (self.bank, self.mapped) {
            (Some(bank), _) => Bank::Memory(bank.with_ops(ops)),
            (None, Some((folder, precision))) => {
                let config = MappedConfig {
                    first: rows.start,
                    rows: rows.len(),
                    dim,
                    momentum,
                    precision,
                    seed: bank_seed,
                };
                Bank::mapped(folder, config)
            }
            (None, None) => {
                let device = &self.bank_device;
                let bank = MemoryBank::random_rows(rows, dim, momentum, bank_seed, device)?;
                Bank::Memory(bank.with_ops(ops))
            }
        };
        let nce = match self.nce {
            Some(temperature) => Some(Arc::new(EstimatedNce::new(temperature, self.images, ops)?)),
            None => None,
        };
        let loss: Arc<dyn ContrastiveLoss> = match (self.loss, &nce) {
            (Some(loss), _) => loss,
            (None, Some(nce)) => Arc::clone(nce) as _,
            (None, None) => Arc::new(Paper::new(TEMPERATURE)?.with_ops(ops)),
        };
        let config = ModelConfig {
            head: self.head,
            ops,
            ..ModelConfig::default()
        };
        let image_config = config.clone();
        let image_head = self.image_head.unwrap_or_else(|| {
            boxed(move |features, device| {
                let seed = Stream::ImageHead.seed(seed);
                ProjectionHead::new(&image_config, features, dim, seed, device)
            })
        });
        let seed_of_g = Stream::Head.seed(seed);
        let transformed_head = match (views, self.transformed_head) {
            (0, _) => None,
            (_, Some(head)) => Some(head),
            (1, None) => Some(boxed(move |features, device| {
                ProjectionHead::new(&config, features, dim, seed_of_g, device)
            })),
            (_, None) => Some(boxed(move |features, device| {
                JigsawHead::new(&config, features, views, dim, seed_of_g, device)
            })),
        };
        Ok(Pirl {
            loss,
            nce,
            weights: ViewWeights::new(self.lambda)?,
            image_head,
            transformed_head,
            bank,
            sampler: self.sampler,
            negatives: self.negatives,
            ops,
            seed,
            step: StepNegatives::new(seed, 0),
            positives: self.positives,
            ranks: alone(),
            sharded,
        })
    }
}
