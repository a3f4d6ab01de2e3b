//! What a recipe describes, put together: the loader, the objective, the learner.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use pirl_bank::{PerImageSampler, SharedSampler};
use pirl_data::{ImageView, Loader, LoaderConfig, Pack, Pretext, PretextKind, build_pretext};
use pirl_loss::{InfoNce, Paper};
use pirl_model::ResNet;
use pirl_train::{
    Covariant, Identity, Learner, Objective, Pirl, Pretraining, PretrainingConfig, Stream,
    Supervised,
};

use crate::recipe::{LossKind, Recipe, Sampling};

/// The data side of a pre-training, checked as far as it can be before any work.
pub(crate) struct Inputs {
    pub(crate) recipe: Recipe,
    pub(crate) pack: Arc<Pack>,
    /// The transformation, unless the recipe has no use for one.
    pub(crate) pretext: Option<Arc<dyn Pretext>>,
    pub(crate) loader: Loader,
}

impl Inputs {
    /// Checks that the settings fit the images of `pack`, for training on so many devices.
    pub(crate) fn new(recipe: Recipe, pack: Pack, devices: usize) -> Result<Self> {
        let pack = if recipe.data.limit > 0 {
            pack.subset(recipe.data.limit, Stream::Subset.seed(recipe.seed))
                .context("data.limit")?
        } else {
            pack
        };
        let images = pack.len();
        ensure!(
            recipe.train.batch_size <= images,
            "train.batch_size is {}, but there are only {images} images",
            recipe.train.batch_size
        );
        if recipe.loss.kind.is_contrastive() {
            ensure!(
                (1..images).contains(&recipe.loss.negatives),
                "loss.negatives is {}; it must lie between 1 and {}, one less than the images",
                recipe.loss.negatives,
                images - 1
            );
        }
        let pack = Arc::new(pack);
        let pretext = pretext(&recipe)?;
        let loader = loader(&recipe, &pack, pretext.clone(), devices)?;
        if loader.parts() < devices {
            tracing::warn!(
                "a batch has {} parts for {devices} devices, so some have nothing to do: lower \
                 train.micro_batch, or set it to 0 for equal shares",
                loader.parts()
            );
        }
        Ok(Self {
            recipe,
            pack,
            pretext,
            loader,
        })
    }

    /// What tells this run's checkpoints from another's.
    pub(crate) fn identity(&self) -> Identity {
        Identity {
            images: self.pack.len(),
            fingerprint: self.pack.fingerprint().to_owned(),
            seed: self.recipe.seed,
        }
    }

    /// PIRL or NPID, the bank on `device` unless it stays in the host's memory.
    pub(crate) fn pirl(&self, device: &Device) -> Result<Pirl> {
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
        let builder = match loss.sampling {
            Sampling::Shared => builder.sampler(SharedSampler),
            Sampling::PerImage => builder.sampler(PerImageSampler),
        };
        let builder = match loss.kind {
            LossKind::InfoNce => builder.loss(InfoNce::new(temperature)?.with_ops(ops)),
            LossKind::Nce => builder.nce(temperature),
            _ => builder.loss(Paper::new(temperature)?.with_ops(ops)),
        };
        Ok(builder.build()?)
    }

    /// The baseline that predicts the transformation.
    pub(crate) fn covariant(&self) -> Result<Covariant> {
        let pretext = self.pretext.as_ref();
        let pretext = pretext.context("there is no transformation to predict")?;
        let (seed, ops) = (self.recipe.seed, self.recipe.model.ops);
        let (views, classes) = (pretext.views(), pretext.labels());
        Ok(Covariant::new(views, classes, seed, ops))
    }

    /// Training with the labels of the pack.
    pub(crate) fn supervised(&self) -> Result<Supervised> {
        let labels = self.pack.labels().context(
            "loss.kind = \"supervised\" learns from labels, but the images of --data have none; pack \
             them with labels, an image folder with a sub-folder for each class for instance",
        )?;
        let (least, most) = (labels.iter().min(), labels.iter().max());
        ensure!(
            least != most,
            "loss.kind = \"supervised\" learns to tell classes apart, but all images of --data are \
             of one"
        );
        let most = most.map_or(0, |&label| label as usize + 1);
        let classes = most.max(self.pack.class_names().len());
        let (seed, ops) = (self.recipe.seed, self.recipe.model.ops);
        Ok(Supervised::new(labels, classes, seed, ops))
    }

    /// A learner of the recipe's network, untrained.
    pub(crate) fn learner<O: Objective>(
        &self,
        objective: O,
        devices: &[Device],
    ) -> Result<Learner<O>> {
        let recipe = &self.recipe;
        let per_image =
            recipe.loss.kind.is_contrastive() && recipe.loss.sampling == Sampling::PerImage;
        let one_memory = devices.len() == 1 && (devices[0].is_cpu() || !recipe.bank.on_host);
        ensure!(
            !per_image || one_memory,
            "loss.sampling = \"per-image\" compares with rows all over the bank, which must be in \
             the memory of the one device: set loss.sampling = \"shared\", or give one --device and \
             bank.on_host = false"
        );
        let (model, seed) = (recipe.model.clone(), backbone_seed(recipe));
        let network = move |device: &Device| ResNet::new(&model, seed, device);
        let learner = Learner::builder(network, objective)
            .devices(devices)
            .precision(recipe.train.precision)
            .optimizer(&recipe.optim)
            .ops(recipe.model.ops);
        Ok(learner.build()?)
    }

    /// The pre-training of `learner`.
    pub(crate) fn pretraining<O: Objective>(self, learner: Learner<O>) -> Result<Pretraining<O>> {
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

/// The seed an untrained backbone is drawn with: evaluations compare with the very network a run
/// began as.
pub(crate) fn backbone_seed(recipe: &Recipe) -> u64 {
    Stream::Backbone.seed(recipe.seed)
}

/// Threads that make batches: the recipe's, or one for each CPU core.
pub(crate) fn workers(recipe: &Recipe) -> usize {
    match recipe.loader.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        workers => workers,
    }
}

/// What makes the batches of `recipe` from `pack`, for so many devices.
pub(crate) fn loader(
    recipe: &Recipe,
    pack: &Arc<Pack>,
    pretext: Option<Arc<dyn Pretext>>,
    devices: usize,
) -> Result<Loader> {
    Ok(Loader::new(
        Arc::clone(pack),
        ImageView::new(&recipe.data, &recipe.transform.image)?,
        pretext,
        LoaderConfig {
            batch_size: recipe.train.batch_size,
            micro_batch: match recipe.train.micro_batch {
                0 if devices > 1 => recipe.train.batch_size.div_ceil(devices),
                images => images,
            },
            workers: workers(recipe),
            look_ahead: recipe.loader.look_ahead,
            look_ahead_mib: recipe.loader.look_ahead_mib,
            seed: recipe.seed,
            on_corrupt: recipe.loader.on_corrupt,
        },
    )?)
}

/// The transformation, unless the recipe has no use for one.
pub(crate) fn pretext(recipe: &Recipe) -> Result<Option<Arc<dyn Pretext>>> {
    let covariant = recipe.loss.kind == LossKind::Covariant;
    let none = recipe.pretext.kind == PretextKind::None;
    if recipe.loss.kind == LossKind::Supervised {
        ensure!(
            none,
            "loss.kind = \"supervised\" learns from labels, not from transformed views: set \
             pretext.kind = \"none\""
        );
    }
    if covariant {
        ensure!(
            !none,
            "loss.kind = \"covariant\" predicts a transformation, so pretext.kind cannot be \"none\""
        );
    } else if none || recipe.loss.lambda == 0.0 {
        return Ok(None);
    }
    let (data, view) = (&recipe.data, &recipe.transform.patch);
    let pretext = build_pretext(&recipe.pretext, data, view, recipe.seed)
        .context("[data] and [pretext] do not fit together")?;
    ensure!(
        !covariant || pretext.labels() > 1,
        "loss.kind = \"covariant\" predicts which of a few orders the patches are in: set \
         pretext.permutations, to 100 for instance"
    );
    Ok(Some(Arc::from(pretext)))
}
