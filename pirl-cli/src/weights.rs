//! `--weights`: where a backbone and its recipe come from.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use pirl_model::{ResNet, load_state_dict};

use crate::checkpoint::{Checkpoints, MODEL};
use crate::recipe::{Recipe, Setting};
use crate::run_dir::RunDir;
use crate::train::backbone_seed;

/// A backbone and where it is from.
pub(crate) struct Loaded {
    pub(crate) backbone: ResNet,
    /// Its recipe, with what the command line sets.
    pub(crate) recipe: Recipe,
    /// In words: a file, or "random".
    pub(crate) origin: String,
}

/// Loads `--weights`: the folder of a run, which has its own recipe and whose newest checkpoint is
/// taken; a safetensors file with torchvision's names; or `random`, the untrained network.
pub(crate) fn load(
    weights: &str,
    recipe: Option<&str>,
    settings: &[Setting],
    seed: Option<u64>,
    device: &Device,
) -> Result<Loaded> {
    let path = Path::new(weights);
    let (file, own_recipe) = if weights == "random" {
        (None, None)
    } else if path.is_dir() {
        let run = RunDir::open(path)?;
        let checkpoint = Checkpoints::new(run.checkpoints(), 1)
            .newest()?
            .with_context(|| format!("{} has no checkpoint yet", path.display()))?;
        (Some(checkpoint.join(MODEL)), Some(run.config()))
    } else if path.is_file() {
        (Some(safetensors_file(path)?), recipe_beside(path))
    } else {
        bail!("--weights {weights}: no such run or file; or is `random` meant?");
    };
    let name = match (recipe, own_recipe) {
        (Some(name), _) => name.to_owned(),
        (None, Some(path)) => path.to_string_lossy().into_owned(),
        (None, None) => bail!("--weights {weights} needs --recipe, to know the network"),
    };
    let mut recipe = Recipe::load(&name, settings)?;
    if let Some(seed) = seed {
        recipe.seed = seed;
    }
    let backbone = ResNet::new(&recipe.model, backbone_seed(&recipe), device)?;
    if let Some(file) = &file {
        load_backbone(&backbone, &load_state_dict(file)?)
            .with_context(|| format!("loading {}", file.display()))?;
    }
    Ok(Loaded {
        backbone,
        recipe,
        origin: file.map_or("random".to_owned(), |file| file.display().to_string()),
    })
}

fn safetensors_file(path: &Path) -> Result<PathBuf> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("pth" | "pt") => bail!(
            "{} is a PyTorch pickle, which cannot be read yet; convert it with \
             safetensors.torch.save_file(torch.load(...))",
            path.display()
        ),
        _ => Ok(path.to_owned()),
    }
}

/// The recipe of the run that a checkpoint's file lies in: RUN/checkpoints/step-N/model.safetensors.
fn recipe_beside(file: &Path) -> Option<PathBuf> {
    let config = file.ancestors().nth(3)?.join("config.toml");
    config.is_file().then_some(config)
}

/// Fills the backbone from a state dict that may hold more (heads, a classifier) but never less.
pub(crate) fn load_backbone(backbone: &ResNet, saved: &HashMap<String, Tensor>) -> Result<()> {
    let own: HashMap<String, Tensor> = saved
        .iter()
        .filter(|(name, _)| !name.starts_with("head.") && !name.starts_with("fc."))
        .map(|(name, tensor)| (name.clone(), tensor.clone()))
        .collect();
    let report = backbone.load(&own)?;
    if let Some(name) = report.missing.first() {
        bail!(
            "{} of the network's tensors are not in it, {name} the first; does model.arch fit?",
            report.missing.len()
        );
    }
    if let Some(name) = report.unexpected.first() {
        bail!(
            "{} of its tensors do not belong to the network, {name} the first; does model.arch fit?",
            report.unexpected.len()
        );
    }
    Ok(())
}
