//! A training as a recipe describes it: the data side, the objective, the learner.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use pirl_bank::{PerImageSampler, SharedSampler};
use pirl_data::{DataError, Loader, Pack, Pretext, Share};
use pirl_loss::{InfoNce, Paper};
use pirl_model::{BatchNorm, ResNet};
use pirl_train::{
    Covariant, Identity, Learner, Objective, Pirl, Pretraining, PretrainingConfig, Ranks,
    ShardedKind, Stream, Supervised,
};

use crate::assemble::{backbone_seed, loader, pretext};
use crate::error::{RecipeError, Result};
use crate::recipe::{BankInit, BankStorage, LossKind, Recipe, Sampling};

/// The data side of a pre-training, checked as far as it can be before any work, and from it the
/// objective, the learner and the training.
pub struct Inputs {
    /// All settings. Lengths and intervals may still be changed; what the loader was made with may not.
    pub recipe: Recipe,
    /// The images, those of `data.limit` alone.
    pub pack: Arc<Pack>,
    /// The transformation, unless the recipe has no use for one.
    pub pretext: Option<Arc<dyn Pretext>>,
    /// What makes the batches.
    pub loader: Loader,
    /// The ranks that share the training.
    pub ranks: Ranks,
    /// The folder of a mapped bank; each rank of several has one of its own in it.
    pub bank_folder: PathBuf,
}

impl Inputs {
    /// Opens what this rank has of a pack whose shards may be spread over the machines of `ranks`, all of which
    /// call this at the same time.
    ///
    /// # Errors
    /// [`RecipeError::Data`] as [`Pack::open_part`].
    pub fn open(path: &Path, ranks: &Ranks) -> Result<Pack> {
        let exchange = |own| {
            let all = ranks.all_gather(own);
            all.map_err(|error| DataError::Exchange(error.into()))
        };
        Ok(Pack::open_part(path, ranks.rank(), exchange)?)
    }

    /// Checks that the settings fit the images of `pack`, for training on `devices` devices of each of
    /// `ranks`. Warns by
    /// [`tracing`] where a batch has fewer parts than there are devices.
    ///
    /// # Errors
    /// [`RecipeError`] if the pack or the recipe lacks what is to be predicted, if there are fewer images
    /// than `data.limit`, `train.batch_size` or `loss.negatives` ask for, or the settings of the data side do
    /// not fit together.
    pub fn new(recipe: Recipe, pack: Pack, devices: usize, ranks: &Ranks) -> Result<Self> {
        let pack = if recipe.data.limit > 0 {
            pack.subset(recipe.data.limit, Stream::Subset.seed(recipe.seed))
                .map_err(|source| RecipeError::Images {
                    what: "data.limit",
                    source,
                })?
        } else {
            pack
        };
        let images = pack.len();
        let (batch_size, negatives) = (recipe.train.batch_size, recipe.loss.negatives);
        if batch_size > images {
            return Err(RecipeError::BatchTooLarge { batch_size, images });
        }
        if recipe.loss.kind.is_contrastive() && !(1..images).contains(&negatives) {
            return Err(RecipeError::Negatives { negatives, images });
        }
        let fingerprints = ranks.all_gather(pack.fingerprint().as_bytes().to_vec());
        let fingerprints = fingerprints.map_err(RecipeError::from)?;
        let other = fingerprints
            .iter()
            .position(|other| *other != fingerprints[0]);
        if let Some(rank) = other {
            return Err(RecipeError::OtherPack { rank });
        }
        if let (Some(path), false) = (pack.elsewhere(), recipe.data.partial) {
            return Err(RecipeError::Partial {
                path: path.to_owned(),
            });
        }
        let parts = ranks.size() * devices;
        let even = match recipe.train.micro_batch {
            0 => parts <= batch_size,
            micro_batch => batch_size
                .div_ceil(micro_batch)
                .is_multiple_of(ranks.size()),
        };
        let plain = recipe.loss.sampling == Sampling::Shared && recipe.loss.kind != LossKind::Nce;
        if recipe.loss.kind.is_contrastive()
            && recipe.bank.sharded
            && !(even && plain && devices == 1)
        {
            return Err(RecipeError::Sharded);
        }
        let synced = recipe.model.batch_norm == BatchNorm::Synced;
        if synced && ranks.size() > 1 && !even {
            return Err(RecipeError::Synced {
                ranks: ranks.size(),
            });
        }
        let (bank, kind) = (&recipe.bank, recipe.loss.kind);
        let shared = bank.sharded || ranks.size() == 1;
        let plain = recipe.loss.sampling == Sampling::Shared && bank.init == BankInit::Random;
        if kind.is_contrastive() && bank.storage == BankStorage::Mapped && !(shared && plain) {
            return Err(RecipeError::Mapped);
        }
        let pack = Arc::new(pack);
        let pretext = pretext(&recipe)?;
        let share = Share {
            rank: ranks.rank(),
            ranks: ranks.size(),
        };
        let mut loader = loader(&recipe, &pack, pretext.clone(), devices, share)?;
        if recipe.data.partial {
            let own = loader.steps_per_epoch() as u64;
            let all = ranks.all_gather(own.to_le_bytes().to_vec());
            let all = all.map_err(RecipeError::from)?.concat();
            let steps = all
                .as_chunks()
                .0
                .iter()
                .map(|steps| u64::from_le_bytes(*steps));
            loader = loader.with_steps(steps.min().unwrap_or(own) as usize);
        }
        if loader.parts() < devices {
            tracing::warn!(
                "a batch has {} parts for {devices} devices, so some have nothing to do: lower \
                 train.micro_batch, or set it to 0 for equal shares",
                loader.parts()
            );
        }
        if synced && parts == 1 && loader.parts() > 1 {
            tracing::warn!(
                "model.batch_norm = \"synced\" changes nothing on one device: the {} parts of a batch \
                 (train.micro_batch) go through it one after the other, each with statistics of its own",
                loader.parts()
            );
        }
        let inputs = Self {
            recipe,
            pack,
            pretext,
            loader,
            ranks: Arc::clone(ranks),
            bank_folder: PathBuf::from("bank"),
        };
        // What is to be predicted must be there.
        match kind {
            LossKind::Covariant => drop(inputs.covariant()?),
            LossKind::Supervised => drop(inputs.supervised()?),
            LossKind::Paper | LossKind::Nce | LossKind::InfoNce => {}
        }
        Ok(inputs)
    }

    /// What tells this run's checkpoints from another's.
    pub fn identity(&self) -> Identity {
        Identity {
            images: self.pack.len(),
            fingerprint: self.pack.fingerprint().to_owned(),
            seed: self.recipe.seed,
        }
    }

    /// PIRL or NPID, of a contrastive `loss.kind`; the bank is on `device` unless it stays in the host's
    /// memory.
    ///
    /// # Errors
    /// [`RecipeError::Loss`] or [`RecipeError::Train`] if a setting is out of its range, or the bank
    /// cannot be made.
    pub fn pirl(&self, device: &Device) -> Result<Pirl> {
        let recipe = &self.recipe;
        let (loss, temperature) = (&recipe.loss, recipe.loss.temperature);
        let ops = recipe.model.ops;
        let views = self.pretext.as_ref().map_or(0, |pretext| pretext.views());
        let builder = Pirl::builder(self.pack.len(), views)
            .dim(recipe.bank.dim)
            .bank_momentum(recipe.bank.momentum)
            .bank_device(match recipe.bank.on_host {
                true => &Device::Cpu,
                false => device,
            })
            .lambda(loss.lambda)
            .negatives(loss.negatives)
            .positives(loss.positives)
            .head(recipe.model.head)
            .ops(ops)
            .seed(recipe.seed);
        let builder = match recipe.bank.storage {
            BankStorage::Memory => builder,
            BankStorage::Mapped => {
                let (rank, ranks) = (self.ranks.rank(), self.ranks.size());
                let folder = self.bank_folder.join(format!("{rank:05}-of-{ranks:05}"));
                builder.mapped(folder, recipe.bank.precision)
            }
        };
        let builder = match loss.sampling {
            Sampling::Shared => builder.sampler(SharedSampler),
            Sampling::PerImage => builder.sampler(PerImageSampler),
        };
        let builder = match loss.kind {
            LossKind::Paper if recipe.bank.sharded => {
                builder.sharded(ShardedKind::Paper, temperature, &self.ranks)
            }
            LossKind::InfoNce if recipe.bank.sharded => {
                builder.sharded(ShardedKind::InfoNce, temperature, &self.ranks)
            }
            LossKind::InfoNce => builder.loss(InfoNce::new(temperature)?.with_ops(ops)),
            LossKind::Nce => builder.nce(temperature),
            _ => builder.loss(Paper::new(temperature)?.with_ops(ops)),
        };
        Ok(builder.build()?)
    }

    /// The baseline that predicts the transformation, of `loss.kind = "covariant"`.
    ///
    /// # Errors
    /// [`RecipeError::NothingToPredict`] without a transformation.
    pub fn covariant(&self) -> Result<Covariant> {
        let pretext = self.pretext.as_ref();
        let pretext = pretext.ok_or(RecipeError::NothingToPredict)?;
        let (seed, ops) = (self.recipe.seed, self.recipe.model.ops);
        let (views, classes) = (pretext.views(), pretext.labels());
        Ok(Covariant::new(views, classes, seed, ops))
    }

    /// Training with the labels of the pack, of `loss.kind = "supervised"`.
    ///
    /// # Errors
    /// [`RecipeError::NoLabels`], or [`RecipeError::OneClass`] if all labels are the same.
    pub fn supervised(&self) -> Result<Supervised> {
        let labels = self.pack.labels().ok_or(RecipeError::NoLabels)?;
        let (least, most) = (labels.iter().min(), labels.iter().max());
        if least == most {
            return Err(RecipeError::OneClass);
        }
        let most = most.map_or(0, |&label| label as usize + 1);
        let classes = most.max(self.pack.class_names().len());
        let (seed, ops) = (self.recipe.seed, self.recipe.model.ops);
        Ok(Supervised::new(labels, classes, seed, ops))
    }

    /// A learner of the recipe's network, untrained, on each of `devices`.
    ///
    /// # Errors
    /// [`RecipeError::BankElsewhere`] if `loss.sampling` needs the bank beside the one network and it is
    /// not; [`RecipeError::Train`] if the network or its optimiser cannot be made.
    pub fn learner<O: Objective>(&self, objective: O, devices: &[Device]) -> Result<Learner<O>> {
        let recipe = &self.recipe;
        let per_image =
            recipe.loss.kind.is_contrastive() && recipe.loss.sampling == Sampling::PerImage;
        let one_memory = devices.len() == 1 && (devices[0].is_cpu() || !recipe.bank.on_host);
        if per_image && !(one_memory && self.ranks.size() == 1) {
            return Err(RecipeError::BankElsewhere);
        }
        let (model, seed) = (recipe.model.clone(), backbone_seed(recipe));
        let network = move |device: &Device| ResNet::new(&model, seed, device);
        let learner = Learner::builder(network, objective)
            .devices(devices)
            .precision(recipe.train.precision)
            .optimizer(&recipe.optim)
            .ranks(Arc::clone(&self.ranks))
            .ops(recipe.model.ops)
            .batch_norm(recipe.model.batch_norm);
        Ok(learner.build()?)
    }

    /// The pre-training of `learner`, as long as the recipe says.
    ///
    /// # Errors
    /// [`RecipeError::Train`] if `[schedule]` cannot work for that length.
    pub fn pretraining<O: Objective>(self, learner: Learner<O>) -> Result<Pretraining<O>> {
        let recipe = &self.recipe;
        let config = PretrainingConfig {
            epochs: recipe.train.epochs,
            steps: recipe.train.steps,
            lr: recipe.optim.lr,
            schedule: recipe.schedule.clone(),
        };
        Ok(Pretraining::new(learner, self.loader, &config)?)
    }
}
