//! `--weights`: where a backbone and its recipe come from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::Device;
use pirl_model::{ModelConfig, ResNet, Trainable, read_backbone};
use pirl_train::{Checkpoints, MODEL};
use serde::Serialize;

use crate::assemble::backbone_seed;
use crate::recipe::{Recipe, Setting};
use crate::run_dir::RunDir;

/// A backbone and where it is from.
pub(crate) struct Loaded {
    pub(crate) backbone: ResNet,
    /// Its recipe, with what the command line sets.
    pub(crate) recipe: Recipe,
    /// In words: a file, or "random".
    pub(crate) origin: String,
    /// What became of the file's tensors; `None` for `random`.
    pub(crate) tensors: Option<Tensors>,
}

/// What became of the tensors of a file.
#[derive(Debug, Serialize)]
pub(crate) struct Tensors {
    /// What the backbone's names begin with in the file.
    pub(crate) prefix: String,
    /// Torchvision's names of those loaded.
    pub(crate) matched: Vec<String>,
    /// Names the network has and the file lacks.
    pub(crate) missing: Vec<String>,
    /// Names in the file that are no part of a backbone.
    pub(crate) left_over: Vec<String>,
}

/// Loads `--weights`: the folder of a run, which has its own recipe and whose newest checkpoint is
/// taken; a file of weights that [`read_backbone`] knows; or `random`, the untrained network.
///
/// Without `--recipe` a file that lies in no run is taken with the paper's recipe, whose network is
/// told from the file.
pub(crate) fn load(
    weights: &str,
    recipe: Option<&str>,
    settings: &[Setting],
    seed: Option<u64>,
    device: &Device,
) -> Result<Loaded> {
    load_for(weights, recipe, |_| Ok(()), settings, seed, device)
}

/// As [`load`], with the changes of `adjust` to the recipe below those of `settings`.
pub(crate) fn load_for(
    weights: &str,
    recipe: Option<&str>,
    adjust: impl FnOnce(&mut Recipe) -> Result<()>,
    settings: &[Setting],
    seed: Option<u64>,
    device: &Device,
) -> Result<Loaded> {
    const PAPER: &str = "imagenet-resnet50-jigsaw";
    let path = Path::new(weights);
    let (file, own_recipe) = if weights == "random" {
        (None, None)
    } else if path.is_dir() {
        let run = RunDir::open(path)?;
        let checkpoint = Checkpoints::newest_in(&run.checkpoints())?
            .with_context(|| format!("{} has no checkpoint yet", path.display()))?;
        (Some(checkpoint.join(MODEL)), Some(run.config()))
    } else if path.is_file() {
        (Some(path.to_owned()), recipe_beside(path))
    } else {
        bail!("--weights {weights}: no such run or file; or is `random` meant?");
    };
    let mut found = file.as_deref().map(read_backbone).transpose()?;
    let own_recipe = own_recipe.map(|path| path.to_string_lossy().into_owned());
    let mut recipe = match (recipe.map(str::to_owned).or(own_recipe), &found) {
        (Some(name), _) => Recipe::load_adjusted(&name, adjust, settings)?,
        (None, Some(found)) => {
            let network = |recipe: &mut Recipe| {
                let model = &mut recipe.model;
                let ModelConfig {
                    arch, width, stem, ..
                } = found.config;
                (model.arch, model.width, model.stem) = (arch, width, stem);
                adjust(recipe)
            };
            Recipe::load_adjusted(PAPER, network, settings)?
        }
        (None, None) => bail!("--weights {weights} needs --recipe, to know the network"),
    };
    if let Some(seed) = seed {
        recipe.seed = seed;
    }
    let backbone = ResNet::new(&recipe.model, backbone_seed(&recipe), device)?;
    let mut tensors = None;
    if let (Some(file), Some(found)) = (&file, &mut found) {
        let reading = || format!("loading {}", file.display());
        ensure_network(&recipe.model, &found.config).with_context(reading)?;
        let report = backbone.load(&found.state).with_context(reading)?;
        report.ensure_whole().with_context(reading)?;
        tensors = Some(Tensors {
            prefix: std::mem::take(&mut found.prefix),
            matched: report.matched,
            missing: report.missing,
            left_over: std::mem::take(&mut found.left_over),
        });
    }
    if let (Some(file), Some(tensors)) = (&file, &tensors) {
        eprintln!("{}: {}", file.display(), tensors.summary());
    }
    Ok(Loaded {
        backbone,
        recipe,
        origin: file.map_or("random".to_owned(), |file| file.display().to_string()),
        tensors,
    })
}

/// The recipe of the run that a checkpoint's file lies in: RUN/checkpoints/step-N/model.safetensors.
fn recipe_beside(file: &Path) -> Option<PathBuf> {
    let (checkpoint, checkpoints) = (file.parent()?, file.parent()?.parent()?);
    let named =
        |path: &Path, start: &str| path.file_name()?.to_str()?.strip_prefix(start).map(drop);
    named(checkpoint, "step-").and(named(checkpoints, "checkpoints"))?;
    let config = checkpoints.parent()?.join("config.toml");
    config.is_file().then_some(config)
}

/// The network by its keys in a recipe.
pub(crate) fn network_keys(config: &ModelConfig) -> String {
    let ModelConfig {
        arch, width, stem, ..
    } = config;
    format!("model.arch = {arch}, model.width = {width}, model.stem = {stem}")
}

/// An error, with the way out, unless the file's network is the recipe's.
fn ensure_network(recipe: &ModelConfig, file: &ModelConfig) -> Result<()> {
    let same = (recipe.arch, recipe.width, recipe.stem) == (file.arch, file.width, file.stem);
    ensure!(
        same,
        "these are weights of {}, but the recipe's network is {}; set those keys by --set, or leave \
         --recipe out to have the network of the file",
        network_keys(file),
        network_keys(recipe)
    );
    Ok(())
}

impl Tensors {
    /// One line: what was taken, and by their first parts what was not.
    fn summary(&self) -> String {
        let mut text = format!("{} tensors of the backbone", self.matched.len());
        if !self.prefix.is_empty() {
            text += &format!(" under {}", self.prefix);
        }
        if !self.missing.is_empty() {
            text += &format!("; {} counts of batches missing", self.missing.len());
        }
        if self.left_over.is_empty() {
            return text;
        }
        let mut groups = BTreeMap::<&str, usize>::new();
        for name in &self.left_over {
            // All but the tensor's own name, and no more than five parts of it.
            let group = name
                .rsplit_once('.')
                .map_or(name.as_str(), |(group, _)| group);
            let end = group
                .match_indices('.')
                .nth(4)
                .map_or(group.len(), |(at, _)| at);
            *groups.entry(&group[..end]).or_default() += 1;
        }
        const SHOWN: usize = 8;
        let mut shown: Vec<String> = groups
            .iter()
            .take(SHOWN)
            .map(|(group, count)| format!("{group} ({count})"))
            .collect();
        if groups.len() > SHOWN {
            shown.push(format!("{} more", groups.len() - SHOWN));
        }
        text + &format!("; left over: {}", shown.join(", "))
    }
}
