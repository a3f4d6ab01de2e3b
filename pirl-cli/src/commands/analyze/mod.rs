//! `pirl analyze`: what a backbone's features are near to, and what moves them.

mod invariance;
mod map;
mod neighbours;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use pirl_data::Pack;
use pirl_eval::{
    Extraction, FeatureMap, FeatureSet, MapConfig, Pool, map_features, weights_fingerprint,
};
use pirl_model::{Layer, ResNet};
use pirl_recipes::Recipe;
use serde_json::{Value, json};

use super::eval::recompute_batch_norm;
use crate::args::{AnalyzeArgs, RunArgs};
use crate::output::{print, print_json, write_result};
use crate::progress::Progress;
use crate::weights::Weights;
use crate::{device, weights};

pub(crate) use invariance::{invariance, measure};
pub(crate) use map::map;
pub(crate) use neighbours::neighbours;

/// A backbone, ready to be looked at.
pub(crate) struct Network {
    pub(crate) backbone: ResNet,
    pub(crate) recipe: Recipe,
    /// The file it is from, or "random".
    pub(crate) origin: String,
    /// Where it is from and what was done to it, for the result.
    pub(crate) facts: Value,
}

impl Network {
    /// The weights, their batch-norm statistics recomputed on `pack` if the recipe asks for it
    /// and they were not before.
    pub(crate) fn load(
        name: &str,
        recipe: Option<&str>,
        run: &RunArgs,
        pack: &Pack,
    ) -> Result<Self> {
        let device = device::parse(&run.device)?;
        let prefix = run.weights_prefix.as_deref();
        let file = Weights { name, prefix };
        let loaded = weights::load(file, recipe, &run.settings, run.seed, &device)?;
        let fingerprint = weights_fingerprint(&loaded.backbone)?;
        let (backbone, recipe) = (loaded.backbone, loaded.recipe);
        let (saved, extraction) = (loaded.precise_batch_norm, recipe.extraction());
        let statistics = recompute_batch_norm(&backbone, &recipe, pack, &extraction, saved)?;
        Ok(Self {
            facts: json!({
                "path": &loaded.origin,
                "fingerprint": fingerprint,
                "precise_batch_norm": statistics,
            }),
            origin: loaded.origin,
            backbone,
            recipe,
        })
    }

    /// The averages of the layer's maps, of every image of `pack`.
    fn features(&self, layer: &Layer, pack: &Pack, what: &'static str) -> Result<FeatureSet> {
        let extraction = Extraction {
            layers: vec![layer.clone()],
            pool: Pool::Average.into(),
            ..self.recipe.extraction()
        };
        Ok(Progress::watch(what, "images", pack.len(), |progress| {
            pirl_eval::features(&self.backbone, pack, &extraction, (None, ""), progress)
        })?)
    }

    /// A map of the images of `pack` by the averages of the layer's maps.
    pub(crate) fn map(&self, layer: &Layer, pack: &Pack, config: &MapConfig) -> Result<FeatureMap> {
        let features = self.features(layer, pack, "reading features")?;
        Ok(Progress::watch(
            "t-SNE",
            "steps",
            config.iterations,
            |progress| map_features(&features.layers()[0], config, progress),
        )?)
    }
}

fn make_folder(out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))
}

/// Writes the result into `--out` and prints it, or `text`.
fn finish(args: &AnalyzeArgs, result: &Value, text: &str) -> Result<()> {
    write_result(&args.out, result)?;
    if args.run.json {
        return print_json(result);
    }
    print(text)
}
