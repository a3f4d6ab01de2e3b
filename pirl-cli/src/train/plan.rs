//! What a run will do, with everything checked that can be checked before it begins.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use pirl_data::{Batch, ImageView, Loader, LoaderConfig, Pack, Pretext, build_pretext};
use pirl_model::Schedule;

use super::random::Stream;
use crate::recipe::{LossKind, OnCorrupt, Recipe};

/// The data side of a run, and its length.
pub(crate) struct Plan {
    pub(crate) recipe: Recipe,
    pub(crate) pack: Arc<Pack>,
    pub(crate) pretext: Option<Arc<dyn Pretext>>,
    pub(crate) loader: Loader,
    pub(crate) schedule: Schedule,
    pub(crate) steps_per_epoch: u64,
    /// Steps of the whole run.
    pub(crate) steps: u64,
}

impl Plan {
    /// Opens the images and checks that the settings fit them, for training on so many devices.
    pub(crate) fn new(recipe: Recipe, pack: Pack, devices: usize) -> Result<Self> {
        let pack = if recipe.data.limit > 0 {
            pack.subset(recipe.data.limit, Stream::Subset.seed(recipe.seed))?
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
        let steps_per_epoch = loader.steps_per_epoch() as u64;
        let schedule = Schedule::new(
            &recipe.schedule,
            recipe.optim.lr,
            loader.steps_per_epoch(),
            recipe.train.epochs,
        )?;
        let whole = steps_per_epoch.saturating_mul(recipe.train.epochs as u64);
        let steps = match recipe.train.steps {
            0 => whole,
            limit => whole.min(limit),
        };
        Ok(Self {
            recipe,
            pack,
            pretext,
            loader,
            schedule,
            steps_per_epoch,
            steps,
        })
    }

    /// The batches of the steps after the first `done`, in their parts.
    pub(crate) fn batches(&self, done: u64) -> impl Iterator<Item = Result<Batch>> + '_ {
        let (epoch, offset) = (done / self.steps_per_epoch, done % self.steps_per_epoch);
        (epoch..)
            .flat_map(move |at| {
                let start = if at == epoch { offset as usize } else { 0 };
                self.loader.epoch(at, start)
            })
            .map(|batch| batch.context("making a batch"))
    }
}

/// What makes the batches of `recipe` from `pack`, for so many devices.
pub(crate) fn loader(
    recipe: &Recipe,
    pack: &Arc<Pack>,
    pretext: Option<Arc<dyn Pretext>>,
    devices: usize,
) -> Result<Loader> {
    let workers = match recipe.loader.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        workers => workers,
    };
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
            workers,
            look_ahead: recipe.loader.look_ahead,
            look_ahead_mib: recipe.loader.look_ahead_mib,
            seed: recipe.seed,
            on_corrupt: match recipe.loader.on_corrupt {
                OnCorrupt::Skip => pirl_data::OnCorrupt::Skip,
                OnCorrupt::Fail => pirl_data::OnCorrupt::Fail,
            },
        },
    )?)
}

/// The transformation, unless the recipe has no use for one.
pub(crate) fn pretext(recipe: &Recipe) -> Result<Option<Arc<dyn Pretext>>> {
    let covariant = recipe.loss.kind == LossKind::Covariant;
    let none = recipe.pretext.kind == pirl_data::PretextKind::None;
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
    let pretext = build_pretext(
        &recipe.pretext,
        &recipe.data,
        &recipe.transform.patch,
        recipe.seed,
    )?;
    ensure!(
        !covariant || pretext.labels() > 1,
        "loss.kind = \"covariant\" predicts which of a few orders the patches are in: set \
         pretext.permutations, to 100 for instance"
    );
    Ok(Some(Arc::from(pretext)))
}
