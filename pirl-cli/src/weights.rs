//! `--weights`: where a backbone and its recipe come from.

use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, bail, ensure};
use candle_core::Device;
use pirl_eval::weights_fingerprint;
use pirl_model::{BackboneWeights, Filled, ModelConfig, ModelError, ResNet, read_backbone_under};
use pirl_recipes::{Recipe, Setting, backbone_seed};
use pirl_train::{BACKBONE, Checkpoints, InitialWeights, MODEL, run_of};

use crate::run_dir::RunDir;

/// `--weights` and `--weights-prefix`.
#[derive(Clone, Copy)]
pub(crate) struct Weights<'a> {
    pub(crate) name: &'a str,
    pub(crate) prefix: Option<&'a str>,
}

impl Weights<'_> {
    fn read(&self, file: &Path) -> Result<BackboneWeights> {
        Ok(read_backbone_under(file, self.prefix)?)
    }
}

/// A backbone and where it is from.
pub(crate) struct Loaded {
    pub(crate) backbone: ResNet,
    /// Its recipe, with what the command line sets.
    pub(crate) recipe: Recipe,
    /// In words: a file, or "random".
    pub(crate) origin: String,
    /// What became of the file's tensors; `None` for `random`.
    pub(crate) tensors: Option<Filled>,
    /// On how many plain images its batch-norm statistics were computed before they were saved, unless
    /// the command line says on how many they are to be.
    pub(crate) precise_batch_norm: Option<usize>,
    /// Whether it is a run's, and the recipe that of its pre-training.
    pub(crate) of_run: bool,
    /// See [`BackboneWeights::folded`].
    pub(crate) folded: bool,
}

/// An error if batch norms are `folded`: the network cannot be `done` with what an ONNX file holds.
pub(crate) fn ensure_not_folded(folded: bool, file: &str, done: &str) -> Result<()> {
    ensure!(
        !folded,
        "{file} has no batch norms, which ONNX has folded into the convolutions, and cannot be {done}; take \
         the run or the file of weights that it was exported from"
    );
    Ok(())
}

/// Loads `--weights`: the folder of a run, which has its own recipe and whose newest checkpoint is
/// taken; a file of weights that [`read_backbone_under`] knows; or `random`, the untrained network.
///
/// Of a checkpoint with precise batch-norm statistics these are taken ([`BACKBONE`]), unless `settings`
/// have `eval.precise_batch_norm`, and so say what is to become of the raw ones.
///
/// Without `--recipe` a file that lies in no run is taken with the paper's recipe, whose network is
/// told from the file.
pub(crate) fn load(
    weights: Weights<'_>,
    recipe: Option<&str>,
    settings: &[Setting],
    seed: Option<u64>,
    device: &Device,
) -> Result<Loaded> {
    load_for(weights, recipe, |_| Ok(()), settings, seed, device)
}

/// As [`load`], with the changes of `adjust` to the recipe below those of `settings`.
pub(crate) fn load_for(
    weights: Weights<'_>,
    recipe: Option<&str>,
    adjust: impl FnOnce(&mut Recipe) -> Result<()>,
    settings: &[Setting],
    seed: Option<u64>,
    device: &Device,
) -> Result<Loaded> {
    const PAPER: &str = "imagenet-resnet50-jigsaw";
    let as_saved = !settings
        .iter()
        .any(|set| set.sets("eval.precise_batch_norm"));
    let (file, own_recipe) = find(weights.name, as_saved)?;
    let found = file.as_deref().map(|file| weights.read(file)).transpose()?;
    let folded = found.as_ref().is_some_and(|found| found.folded);
    if !as_saved {
        ensure_not_folded(
            folded,
            weights.name,
            "given other statistics (eval.precise_batch_norm)",
        )?;
    }
    let own_recipe = own_recipe.map(|path| path.to_string_lossy().into_owned());
    let of_run = own_recipe.is_some();
    let mut recipe = match (recipe.map(str::to_owned).or(own_recipe), &found) {
        (Some(name), _) => Recipe::load_adjusted(&name, adjust, settings)?,
        (None, Some(found)) => {
            let network = |recipe: &mut Recipe| {
                let model = &mut recipe.model;
                let ModelConfig {
                    arch,
                    width,
                    stem,
                    channels,
                    ..
                } = found.config;
                (model.arch, model.width, model.stem) = (arch, width, stem);
                recipe.data.channels = channels;
                adjust(recipe)
            };
            Recipe::load_adjusted(PAPER, network, settings)?
        }
        (None, None) => bail!(
            "--weights {} needs --recipe, to know the network",
            weights.name
        ),
    };
    if let Some(seed) = seed {
        recipe.seed = seed;
    }
    if folded {
        recipe.eval.precise_batch_norm = 0;
    }
    let backbone = ResNet::new(&recipe.model, backbone_seed(&recipe), device)?;
    let filled = file.as_ref().zip(found.as_ref());
    let filled = filled.map(|(file, found)| fill(&backbone, file, found));
    Ok(Loaded {
        backbone,
        recipe,
        origin: file.map_or("random".to_owned(), |file| file.display().to_string()),
        tensors: filled.transpose()?,
        precise_batch_norm: found.and_then(|found| found.precise_batch_norm.filter(|_| as_saved)),
        of_run,
        folded,
    })
}

/// The backbone that a pre-training of `recipe` begins with, from what `--weights` takes.
pub(crate) fn initial(weights: Weights<'_>, recipe: &Recipe) -> Result<(ResNet, InitialWeights)> {
    let file = initial_file(weights.name)?;
    let backbone = ResNet::new(&recipe.model, backbone_seed(recipe), &Device::Cpu)?;
    let found = weights.read(&file)?;
    ensure_not_folded(found.folded, weights.name, "trained")?;
    fill(&backbone, &file, &found)?;
    let initial = InitialWeights {
        fingerprint: weights_fingerprint(&backbone)?,
        path: std::path::absolute(&file).unwrap_or(file),
    };
    Ok((backbone, initial))
}

/// The network of the weights that a pre-training begins with.
pub(crate) fn network(weights: Weights<'_>) -> Result<ModelConfig> {
    Ok(weights.read(&initial_file(weights.name)?)?.config)
}

fn initial_file(weights: &str) -> Result<PathBuf> {
    let (file, _) = find(weights, true).context("--init-weights")?;
    file.context("--init-weights random: leave it out to begin with random weights")
}

/// The file that is meant by `--weights`, `None` for `random`, and the recipe of the run it lies in. Of
/// a run it is the newest checkpoint's; with `precise`, that with precise statistics if there is one.
fn find(weights: &str, precise: bool) -> Result<(Option<PathBuf>, Option<PathBuf>)> {
    let path = Path::new(weights);
    if weights == "random" {
        return Ok((None, None));
    }
    if path.is_file() {
        let config = run_of(path).map(|run| run.join("config.toml"));
        return Ok((
            Some(path.to_owned()),
            config.filter(|config| config.is_file()),
        ));
    }
    if !path.is_dir() {
        bail!("--weights {weights}: no such run or file; or is `random` meant?");
    }
    let run = RunDir::open(path)?;
    let checkpoint = Checkpoints::newest_in(&run.checkpoints())?
        .with_context(|| format!("{} has no checkpoint yet", path.display()))?;
    let backbone = checkpoint.join(BACKBONE);
    let file = match precise && backbone.is_file() {
        true => backbone,
        false => checkpoint.join(MODEL),
    };
    Ok((Some(file), Some(run.config())))
}

/// Fills `backbone` from what was found in `file`, and says what became of its tensors.
fn fill(backbone: &ResNet, file: &Path, found: &BackboneWeights) -> Result<Filled> {
    const WAY_OUT: &str = "the network of the recipe must be the file's; an evaluation or export \
                           without --recipe has it";
    let filled = found.fill(backbone).map_err(|error| match &error {
        ModelError::OtherNetwork { .. } => Error::from(error).context(WAY_OUT),
        _ => error.into(),
    });
    let filled = filled.with_context(|| format!("loading {}", file.display()))?;
    eprintln!("{}: {filled}", file.display());
    Ok(filled)
}
