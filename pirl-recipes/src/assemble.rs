//! The parts of a training that a recipe describes: its transformation, its loader, its seed.

use std::sync::Arc;

use pirl_data::{
    ImageView, Loader, LoaderConfig, Pack, Pretext, PretextKind, Share, build_pretext,
};
use pirl_train::Stream;

use crate::error::{RecipeError, Result};
use crate::recipe::{LossKind, Recipe};

/// The seed an untrained backbone is drawn with: evaluations compare with the very network a run
/// began as.
pub fn backbone_seed(recipe: &Recipe) -> u64 {
    Stream::Backbone.seed(recipe.seed)
}

/// Threads that make batches: the recipe's, or one for each CPU core.
pub fn workers(recipe: &Recipe) -> usize {
    match recipe.loader.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        workers => workers,
    }
}

/// What makes a rank's `share` of the batches of `recipe` from `pack`, for training on `devices`
/// devices a rank: with `train.micro_batch = 0` each of several gets an equal share of a batch.
///
/// # Errors
/// [`RecipeError::Data`] if the settings of views or of the loader cannot work with these images.
pub fn loader(
    recipe: &Recipe,
    pack: &Arc<Pack>,
    pretext: Option<Arc<dyn Pretext>>,
    devices: usize,
    share: Share,
) -> Result<Loader> {
    let devices = devices * share.ranks;
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
            share,
            samples: recipe.data.partial.then(|| pack.share()),
        },
    )?)
}

/// The transformation that makes I^t, unless the recipe has no use for one.
///
/// # Errors
/// [`RecipeError`] if `loss.kind` and `[pretext]` contradict each other, or `[pretext]` does not suit
/// `[data]`.
pub fn pretext(recipe: &Recipe) -> Result<Option<Arc<dyn Pretext>>> {
    let covariant = recipe.loss.kind == LossKind::Covariant;
    let none = recipe.pretext.kind == PretextKind::None;
    if recipe.loss.kind == LossKind::Supervised && !none {
        return Err(RecipeError::SupervisedPretext);
    }
    if covariant && none {
        return Err(RecipeError::NoPretext);
    }
    if none || (!covariant && recipe.loss.lambda == 0.0) {
        return Ok(None);
    }
    let (data, view) = (&recipe.data, &recipe.transform.patch);
    let pretext = build_pretext(&recipe.pretext, data, view, recipe.seed).map_err(|source| {
        RecipeError::Images {
            what: "[data] and [pretext] do not fit together",
            source,
        }
    })?;
    if covariant && pretext.labels() <= 1 {
        return Err(RecipeError::NoPermutations);
    }
    Ok(Some(Arc::from(pretext)))
}
