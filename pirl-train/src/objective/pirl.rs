//! PIRL itself (arXiv:1912.01991, section 3): embeddings of an image and of its transformed copy are
//! pulled towards the image's row of a memory bank, and away from rows of other images.

mod builder;
mod fill_bank;
mod image_head;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use pirl_bank::{MemoryBank, NegativeSampler};
use pirl_core::Ops;
use pirl_data::Batch;
use pirl_loss::{ContrastiveLoss, Negatives, ViewWeights};
use pirl_model::{Head, Mode};
use serde::{Deserialize, Serialize};

use super::bank::Bank;
use super::embeddings::embedding_metrics;
use super::estimated_nce::EstimatedNce;
use super::negatives::StepNegatives;
use super::sharded::{Owned, ShardedKind, ShardedLoss};
use super::{HeadFactory, Module, Objective, PartOutcome, Terms};
use crate::checkpoint::{BANK, State};
use crate::collective::{Collective, Ranks, from_bytes, to_bytes};
use crate::error::{Result, TrainError};
use crate::learner::broadcast;
use crate::networks::{Networks, move_to};
use crate::training::Metric;

pub use builder::PirlBuilder;
pub use image_head::read_image_head;

/// What the names of the tensors of f begin with in a checkpoint.
const IMAGE_HEAD: &str = "head.f.";

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

impl Sharded {
    /// The loss of a part, of so many images on each rank.
    fn loss(&self, ranks: &Ranks, sizes: Vec<usize>) -> Arc<dyn ContrastiveLoss> {
        Arc::new(ShardedLoss {
            kind: self.kind,
            temperature: self.temperature,
            ranks: Arc::clone(ranks),
            sizes,
        })
    }
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
        let mut modules: Vec<Module<'_>> = vec![(IMAGE_HEAD, &heads.image)];
        modules.extend(heads.transformed.as_ref().map(|g| ("head.g.", g as _)));
        modules
    }

    fn begin_step(&mut self, step: u64) -> Result<()> {
        self.step = StepNegatives::new(self.seed, step);
        Ok(())
    }

    fn target(&mut self, part: &Batch, device: &Device) -> Result<Rows> {
        let (bank, sampler) = (&self.bank, self.sampler.as_ref());
        let (images, negatives) = (&part.indices, self.negatives);
        let (own, negatives, loss) = match &self.sharded {
            None => (
                move_to(&bank.gather(images)?, device)?,
                self.step.of(images, negatives, bank, sampler, device)?,
                Arc::clone(&self.loss),
            ),
            // The negatives that are on this rank, for the images of all ranks' parts.
            Some(sharded) => {
                let (ranks, owned) = (self.ranks.as_ref(), &sharded.owned);
                let gathered = gather_indices(ranks, images)?;
                let sizes: Vec<usize> = gathered.iter().map(Vec::len).collect();
                let (all, dim) = (gathered.concat(), bank.dim());
                let lengths: Vec<usize> = sizes.iter().map(|size| size * dim).collect();
                let rows = ranks.reduce_scatter(owned.spread(bank, &all)?, &lengths)?;
                let step = &mut self.step;
                (
                    Tensor::from_vec(rows, (images.len(), dim), device)?,
                    step.of_shard(&all, negatives, bank, owned, sampler, device)?,
                    sharded.loss(&self.ranks, sizes),
                )
            }
        };
        Ok(Rows {
            own,
            negatives,
            loss,
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
                let rows = Owned::share(rank, shards, owned.all);
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
        let indices = gather_indices(self.ranks.as_ref(), &indices)?.concat();
        let own = to_bytes(&vectors.flatten_all()?.to_vec1()?);
        let all = from_bytes(&self.ranks.all_gather(own)?.concat());
        let vectors = Tensor::from_vec(all, (indices.len(), dim), device)?;
        Ok((indices, vectors))
    }
}

/// The images of every rank, by rank.
fn gather_indices(ranks: &dyn Collective, own: &[u32]) -> Result<Vec<Vec<u32>>> {
    let own = own.iter().flat_map(|index| index.to_le_bytes()).collect();
    let of_rank = |bytes: &Vec<u8>| {
        let (indices, _) = bytes.as_chunks();
        indices
            .iter()
            .map(|bytes| u32::from_le_bytes(*bytes))
            .collect()
    };
    Ok(ranks.all_gather(own)?.iter().map(of_rank).collect())
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
