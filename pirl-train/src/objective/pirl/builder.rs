//! The settings of PIRL, and the objective that they make.

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::Device;
use pirl_bank::{BankPrecision, MappedConfig, MemoryBank, NegativeSampler, SharedSampler};
use pirl_core::{Ops, check};
use pirl_loss::{ContrastiveLoss, Paper, ViewWeights};
use pirl_model::{Head, HeadKind, JigsawHead, ModelConfig, ModelError, ProjectionHead};

use super::{Pirl, Positives, Sharded};
use crate::collective::{Ranks, alone};
use crate::error::Result;
use crate::objective::bank::Bank;
use crate::objective::estimated_nce::EstimatedNce;
use crate::objective::negatives::StepNegatives;
use crate::objective::sharded::{Owned, ShardedKind};
use crate::objective::{HeadFactory, boxed};
use crate::streams::Stream;

/// The paper's number of negatives (section 4).
const NEGATIVES: usize = 32_000;
/// The paper's temperature.
const TEMPERATURE: f64 = 0.07;

impl Pirl {
    /// PIRL on so many images, with `views` of each transformed copy
    /// ([`Pretext::views`](pirl_data::Pretext::views): 9 patches of a jigsaw, 1 of a rotation, 0 for
    /// NPID). Everything else is the paper's unless set.
    pub fn builder(images: usize, views: usize) -> PirlBuilder {
        PirlBuilder::new(images, views)
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
    /// [`TrainError::Bank`](crate::TrainError::Bank) or [`TrainError::Loss`](crate::TrainError::Loss)
    /// for a setting out of range, or for a bank that cannot be made.
    pub fn build(self) -> Result<Pirl> {
        let (seed, dim, views, ops) = (self.seed, self.dim, self.views, self.ops);
        let positives = self.positives;
        let found = || format!("{positives:?}").to_lowercase();
        let fits = views > 0 || positives == Positives::Bank;
        check(
            "positives",
            found(),
            fits,
            "must be bank where images have no transformed view",
        )?;
        let fits = self.sharded.is_none() || positives == Positives::Bank;
        check(
            "positives",
            found(),
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
