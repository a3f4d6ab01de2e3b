//! Recipes: every setting of a run, from an embedded or own TOML file and `--set`, checked and
//! resolved into one table that names every key.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail, ensure};
use pirl_core::{SettingError, check};
use pirl_data::{DataConfig, EvalView, OnCorrupt, PretextConfig, ViewConfig};
use pirl_eval::EvalConfig;
use pirl_model::{ModelConfig, OptimConfig, Precision, ScheduleConfig};
use pirl_train::Positives;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

mod embedded;
mod overlay;

pub(crate) use embedded::{RECIPES, key_notes};
pub(crate) use overlay::leaves;

/// All settings of a run, as `config.toml` keeps them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recipe {
    /// Seed of everything random.
    pub(crate) seed: u64,
    pub(crate) data: DataConfig,
    pub(crate) transform: TransformConfig,
    pub(crate) pretext: PretextConfig,
    pub(crate) model: ModelConfig,
    pub(crate) loss: LossConfig,
    pub(crate) bank: BankConfig,
    pub(crate) optim: OptimConfig,
    pub(crate) schedule: ScheduleConfig,
    pub(crate) train: TrainConfig,
    pub(crate) loader: LoaderTable,
    pub(crate) log: LogConfig,
    pub(crate) checkpoint: CheckpointConfig,
    pub(crate) eval: EvalConfig,
}

/// `[transform.image]` and `[transform.patch]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TransformConfig {
    pub(crate) image: ViewConfig,
    pub(crate) patch: ViewConfig,
}

/// `[loss]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LossConfig {
    pub(crate) kind: LossKind,
    /// Weight of the transformed view's term, in `[0, 1]`.
    pub(crate) lambda: f64,
    pub(crate) temperature: f64,
    pub(crate) negatives: usize,
    pub(crate) positives: Positives,
    pub(crate) sampling: Sampling,
}

/// `loss.kind`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LossKind {
    Paper,
    Nce,
    InfoNce,
    Covariant,
    Supervised,
}

impl LossKind {
    /// Whether it compares embeddings with a bank's.
    pub(crate) fn is_contrastive(self) -> bool {
        matches!(self, Self::Paper | Self::Nce | Self::InfoNce)
    }
}

/// `loss.sampling`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Sampling {
    Shared,
    PerImage,
}

/// `[bank]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BankConfig {
    pub(crate) dim: usize,
    pub(crate) momentum: f64,
    pub(crate) init: BankInit,
    /// Whether it stays in the host's memory.
    pub(crate) on_host: bool,
}

/// `bank.init`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BankInit {
    Random,
    Features,
}

/// `[train]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TrainConfig {
    pub(crate) batch_size: usize,
    /// Images that go through the networks at once; 0 for the whole batch.
    pub(crate) micro_batch: usize,
    pub(crate) epochs: usize,
    /// Stop after this many steps in all; 0 for no such limit.
    pub(crate) steps: u64,
    pub(crate) precision: Precision,
}

/// `[loader]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LoaderTable {
    /// Threads that make batches; 0 for one a core.
    pub(crate) workers: usize,
    /// Batches made ahead of the step that needs them.
    pub(crate) look_ahead: usize,
    /// MiB that these hold together, at most, unless a single part is larger.
    pub(crate) look_ahead_mib: usize,
    pub(crate) on_corrupt: OnCorrupt,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogConfig {
    pub(crate) every: u64,
}

/// `[checkpoint]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CheckpointConfig {
    /// Steps from one checkpoint to the next; 0 for one at the end alone.
    pub(crate) every: u64,
    /// How many of the newest are kept.
    pub(crate) keep: usize,
}

impl Default for Recipe {
    /// The paper's PIRL with ResNet-50 on ImageNet (RECIPES: arXiv:1912.01991, VISSL's base config).
    fn default() -> Self {
        Self {
            seed: 0,
            data: DataConfig::default(),
            transform: TransformConfig {
                image: ViewConfig::default(),
                patch: ViewConfig::patch(),
            },
            pretext: PretextConfig::default(),
            model: ModelConfig::default(),
            loss: LossConfig {
                kind: LossKind::Paper,
                lambda: 0.5,
                temperature: 0.07,
                negatives: 32_000,
                positives: Positives::Bank,
                sampling: Sampling::Shared,
            },
            bank: BankConfig {
                dim: 128,
                momentum: 0.5,
                init: BankInit::Random,
                on_host: false,
            },
            optim: OptimConfig::default(),
            schedule: ScheduleConfig::default(),
            train: TrainConfig {
                batch_size: 1024,
                micro_batch: 32,
                epochs: 800,
                steps: 0,
                precision: Precision::F32,
            },
            loader: LoaderTable {
                workers: 0,
                look_ahead: 4,
                look_ahead_mib: 256,
                on_corrupt: OnCorrupt::Skip,
            },
            log: LogConfig { every: 10 },
            checkpoint: CheckpointConfig {
                every: 1000,
                keep: 2,
            },
            eval: EvalConfig::default(),
        }
    }
}

/// One `--set key=value`.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    key: String,
    value: Value,
}

impl Setting {
    /// Whether it sets the key `key`, by itself or in a table.
    pub(crate) fn sets(&self, key: &str) -> bool {
        let rest = key.strip_prefix(self.key.as_str());
        match (&self.value, rest.and_then(|rest| rest.strip_prefix('.'))) {
            (Value::Table(table), Some(rest)) => leaves(table).iter().any(|(key, _)| key == rest),
            _ => self.key == key,
        }
    }
}

impl FromStr for Setting {
    type Err = String;

    /// The value is TOML where it parses as TOML, else a string: `--set model.arch=resnet18`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text
            .split_once('=')
            .filter(|(key, _)| !key.trim().is_empty())
            .ok_or_else(|| format!("{text:?} is not KEY=VALUE, such as train.epochs=8"))?;
        let parsed = format!("value = {value}")
            .parse::<Table>()
            .ok()
            .filter(|table| table.len() == 1)
            .and_then(|mut table| table.remove("value"));
        Ok(Self {
            key: key.trim().to_owned(),
            value: parsed.unwrap_or_else(|| Value::String(value.to_owned())),
        })
    }
}

impl Recipe {
    /// Loads the recipe called `name` or the file of that path, with `settings` over it.
    ///
    /// A recipe says only what differs from its `base` (another recipe's name, or a file beside
    /// it), and without one from the paper's recipe.
    pub(crate) fn load(name: &str, settings: &[Setting]) -> Result<Self> {
        Self::load_adjusted(name, |_| Ok(()), settings)
    }

    /// As [`Recipe::load`], with the changes of `adjust` below those of `settings`.
    pub(crate) fn load_adjusted(
        name: &str,
        adjust: impl FnOnce(&mut Self) -> Result<()>,
        settings: &[Setting],
    ) -> Result<Self> {
        let mut table = Self::default().to_table()?;
        for written in chain(name, None)? {
            overlay::apply(&mut table, written.table)
                .with_context(|| format!("recipe {}", written.origin))?;
        }
        let parse = |table: Table| -> Result<Self> {
            let recipe: Result<Self, toml::de::Error> = Value::Table(table).try_into();
            recipe.map_err(|error| anyhow!("{}", error.to_string().trim()))
        };
        let mut recipe = parse(table).with_context(|| format!("recipe {name}"))?;
        adjust(&mut recipe)?;
        let mut table = recipe.to_table()?;
        for Setting { key, value } in settings {
            overlay::set(&mut table, key, value.clone()).context("--set")?;
        }
        let recipe = parse(table).with_context(|| format!("recipe {name}"))?;
        recipe.check().with_context(|| format!("recipe {name}"))?;
        Ok(recipe)
    }

    /// Every key with its value, as TOML.
    pub(crate) fn to_toml(&self) -> Result<String> {
        toml::to_string(self).context("writing the recipe as TOML")
    }

    /// Every key by its dotted name, in the order of the tables.
    pub(crate) fn flat(&self) -> Result<Vec<(String, Value)>> {
        Ok(leaves(&self.to_table()?))
    }

    /// How images are seen by evaluations.
    pub(crate) fn eval_view(&self) -> EvalView {
        EvalView {
            resize: self.eval.resize,
            crop: match self.eval.crop {
                0 => self.data.image_size,
                crop => crop,
            },
            stretch: false,
            mean: self.data.mean,
            std: self.data.std,
        }
    }

    fn to_table(&self) -> Result<Table> {
        Table::try_from(self).context("writing the recipe as TOML")
    }

    /// What can be wrong whatever the data. Every table checks its own fields; here they get the
    /// table's name.
    fn check(&self) -> Result<(), SettingError> {
        let eval = &self.eval;
        let tables = [
            ("data", self.data.check()),
            ("transform.image", self.transform.image.check()),
            ("transform.patch", self.transform.patch.check()),
            ("pretext", self.pretext.check()),
            ("model", self.model.check()),
            ("loss", self.loss.check()),
            ("bank", self.bank.check()),
            ("optim", self.optim.check()),
            ("schedule", self.schedule.check()),
            ("train", self.train.check()),
            ("loader", self.loader.check()),
            ("log", self.log.check()),
            ("checkpoint", self.checkpoint.check()),
            ("eval", eval.check()),
            ("eval", self.eval_view().check()),
        ];
        for (table, checked) in tables {
            checked.map_err(|error| error.within(table))?;
        }
        let crop = self.eval_view().crop;
        let expected = format!(
            "the centre crop of {crop} pixels (eval.crop; 0: data.image_size) must fit into it"
        );
        check("eval.resize", eval.resize, eval.resize >= crop, &expected)
    }
}

impl LossConfig {
    fn check(&self) -> Result<(), SettingError> {
        let fits = (0.0..=1.0).contains(&self.lambda);
        check("lambda", self.lambda, fits, "must lie in [0, 1]")?;
        let temperature = self.temperature;
        let fits = temperature.is_finite() && temperature > 0.0;
        check(
            "temperature",
            temperature,
            fits,
            "must be finite and positive",
        )
    }
}

impl BankConfig {
    fn check(&self) -> Result<(), SettingError> {
        check("dim", self.dim, self.dim > 0, "must be at least 1")?;
        let fits = (0.0..=1.0).contains(&self.momentum);
        check("momentum", self.momentum, fits, "must lie in [0, 1]")
    }
}

impl TrainConfig {
    fn check(&self) -> Result<(), SettingError> {
        let images = self.batch_size;
        check("batch_size", images, images > 0, "must be at least 1")?;
        let fits = self.epochs > 0 || self.steps > 0;
        check("epochs", self.epochs, fits, "must be at least 1")
    }
}

impl LoaderTable {
    fn check(&self) -> Result<(), SettingError> {
        let (batches, mib) = (self.look_ahead, self.look_ahead_mib);
        check("look_ahead", batches, batches > 0, "must be at least 1")?;
        check("look_ahead_mib", mib, mib > 0, "must be at least 1")
    }
}

impl LogConfig {
    fn check(&self) -> Result<(), SettingError> {
        check("every", self.every, self.every > 0, "must be at least 1")
    }
}

impl CheckpointConfig {
    fn check(&self) -> Result<(), SettingError> {
        check("keep", self.keep, self.keep > 0, "must be at least 1")
    }
}

/// A recipe as it is written, without its base.
struct Written {
    origin: String,
    table: Table,
}

/// The chain of a recipe and its bases, the outermost base first.
fn chain(name: &str, beside: Option<&Path>) -> Result<Vec<Written>> {
    const DEEPEST: usize = 8;
    let mut chain = Vec::new();
    let (mut name, mut beside) = (name.to_owned(), beside.map(Path::to_owned));
    loop {
        let (text, path) = find(&name, beside.as_deref())?;
        let mut table: Table = text
            .parse()
            .with_context(|| format!("recipe {name} is not TOML"))?;
        let base = table.remove("base");
        chain.push(Written {
            origin: name.clone(),
            table,
        });
        match base {
            None => break,
            Some(Value::String(base)) => {
                ensure!(
                    chain.len() < DEEPEST,
                    "recipe {name}: base {base:?} is the {DEEPEST}th in a row; do they name each other?"
                );
                beside = path.and_then(|path| path.parent().map(Path::to_owned));
                name = base;
            }
            Some(other) => bail!(
                "recipe {name}: base must be the name of a recipe, found {}",
                other.type_str()
            ),
        }
    }
    chain.reverse();
    Ok(chain)
}

/// The text of a recipe, and its path when it is a file.
fn find(name: &str, beside: Option<&Path>) -> Result<(String, Option<PathBuf>)> {
    if let Some(recipe) = RECIPES.iter().find(|recipe| recipe.name == name) {
        return Ok((recipe.text.to_owned(), None));
    }
    let path = match beside {
        Some(folder) => folder.join(name),
        None => PathBuf::from(name),
    };
    if path.is_file() {
        let text = fs::read_to_string(&path)
            .with_context(|| format!("cannot read recipe {}", path.display()))?;
        return Ok((text, Some(path)));
    }
    if name.ends_with(".toml") || name.contains('/') {
        bail!("no recipe file {}", path.display());
    }
    let names = || RECIPES.iter().map(|recipe| recipe.name);
    match overlay::nearest(name, names()) {
        Some(nearest) => bail!("no recipe is called {name:?}; did you mean {nearest:?}?"),
        None => bail!(
            "no recipe is called {name:?}; there are {}, or the path of a TOML file",
            names().collect::<Vec<_>>().join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(name: &str, settings: &[&str]) -> String {
        let settings: Vec<Setting> = settings.iter().map(|s| s.parse().unwrap()).collect();
        format!("{:#}", Recipe::load(name, &settings).unwrap_err())
    }

    #[test]
    fn every_recipe_loads_and_survives_its_own_toml() {
        for embedded in RECIPES {
            let recipe = Recipe::load(embedded.name, &[]).unwrap();
            let text = recipe.to_toml().unwrap();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("config.toml");
            fs::write(&path, &text).unwrap();
            let again = Recipe::load(path.to_str().unwrap(), &[]).unwrap();
            assert_eq!(again, recipe, "{}", embedded.name);
        }
    }

    #[test]
    fn the_paper_recipe_spells_out_every_key_and_is_the_default() {
        let text = RECIPES
            .iter()
            .find(|recipe| recipe.name == "imagenet-resnet50-jigsaw")
            .unwrap()
            .text;
        let spelled = leaves(&text.parse::<Table>().unwrap());
        let known = Recipe::default().flat().unwrap();
        assert_eq!(
            spelled.iter().map(|(key, _)| key).collect::<Vec<_>>(),
            known.iter().map(|(key, _)| key).collect::<Vec<_>>(),
        );
        assert_eq!(
            Recipe::load("imagenet-resnet50-jigsaw", &[]).unwrap(),
            Recipe::default()
        );
        let noted = key_notes();
        for (key, _) in known {
            let note = noted.iter().find(|note| note.key == key);
            assert!(
                note.is_some_and(|note| note.text.len() > 3),
                "{key} has no note"
            );
        }
    }

    #[test]
    fn every_key_is_reached_by_set() {
        for (key, value) in Recipe::default().flat().unwrap() {
            let changed = match &value {
                Value::Integer(_) if key.starts_with("data.patch") => Value::Integer(32),
                Value::Integer(number) => Value::Integer(number + 1),
                Value::Float(number) => Value::Float(number * 0.5 + 0.25),
                Value::Boolean(truth) => Value::Boolean(!truth),
                Value::Array(items) => match items.first() {
                    Some(Value::Float(_)) => Value::Array(vec![Value::Float(0.5); items.len()]),
                    Some(Value::String(_)) => Value::Array(vec![items[0].clone()]),
                    // Milestones must rise.
                    _ => Value::Array((1..=items.len() as i64).map(Value::Integer).collect()),
                },
                // Strings are choices: the default, said again, must at least be accepted.
                other => other.clone(),
            };
            let setting: Setting = format!("{key}={changed}").parse().unwrap();
            let with = |other: &str| vec![other.parse().unwrap(), setting.clone()];
            let settings = match key.as_str() {
                // A larger image needs a larger resize before its crop.
                "data.image_size" => with("eval.resize=300"),
                "eval.detect.backbone.extra_norm" => with("eval.detect.backbone.norm=train"),
                _ => vec![setting],
            };
            let recipe = Recipe::load("imagenet-resnet50-jigsaw", &settings)
                .unwrap_or_else(|error| panic!("{key}={changed}: {error:#}"));
            let flat = recipe.flat().unwrap();
            let (_, found) = flat.iter().find(|(name, _)| *name == key).unwrap();
            assert_eq!(*found, changed, "{key}");
        }
    }

    #[test]
    fn a_string_needs_no_quotes_and_an_integer_serves_as_a_float() {
        let settings = [
            "model.arch=resnet18",
            "optim.lr=1",
            "transform.image.scale=[0.5, 1]",
        ]
        .map(|setting| setting.parse().unwrap());
        let recipe = Recipe::load("imagenet-resnet50-jigsaw", &settings).unwrap();
        let flat = recipe.flat().unwrap();
        let value = |key| &flat.iter().find(|(name, _)| name == key).unwrap().1;
        assert_eq!(value("model.arch").as_str(), Some("resnet18"));
        assert_eq!(recipe.optim.lr, 1.0);
        assert_eq!(recipe.transform.image.scale, [0.5, 1.0]);
    }

    #[test]
    fn a_single_value_serves_as_a_list_of_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.toml");
        fs::write(&path, "base = \"fashion-mnist\"\n[eval.knn]\nk = 20\n").unwrap();
        let of_file = Recipe::load(path.to_str().unwrap(), &[]).unwrap();
        assert_eq!(of_file.eval.knn.k, [20]);
        let written = of_file.to_toml().unwrap();
        assert!(written.contains("k = [20]"), "{written}");
        let load = |settings: &[&str]| {
            let settings: Vec<_> = settings.iter().map(|s| s.parse().unwrap()).collect();
            Recipe::load("fashion-mnist", &settings).unwrap().eval
        };
        assert_eq!(load(&["eval.knn.k=7"]).knn.k, [7]);
        assert_eq!(load(&["eval.knn.k=[7, 3]"]).knn.k, [7, 3]);
        assert_eq!(load(&["eval.linear.lrs=1"]).linear.lrs, [1.0]);
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        let message = error("fashion-mnist", &["train.epoch=3"]);
        assert!(
            message.contains("train.epoch") && message.contains("\"train.epochs\""),
            "{message}"
        );
        let message = error("fashion-mnist", &["batchsize=3"]);
        assert!(message.contains("\"train.batch_size\""), "{message}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.toml");
        fs::write(&path, "base = \"fashion-mnist\"\n[los]\nlambda = 0.5\n").unwrap();
        let message = error(path.to_str().unwrap(), &[]);
        assert!(
            message.contains("mine.toml") && message.contains("\"loss.lambda\""),
            "{message}"
        );
    }

    #[test]
    fn a_wrong_value_names_its_key() {
        let cases = [
            ("train.epochs=many", "train.epochs", "integer"),
            ("train.epochs=-1", "epochs", "-1"),
            ("loss.kind=papr", "kind", "paper"),
            ("loss.lambda=2", "loss.lambda", "[0, 1]"),
            ("loss=3", "loss", "table"),
            ("train.batch_size=0", "train.batch_size = 0", "at least 1"),
            ("optim.lr=-1.0", "optim.lr = -1", "at least 0"),
            ("eval.crop_scale=[0.5, 2.0]", "eval.crop_scale", "(0, 1]"),
            ("eval.resize=9000", "eval.resize = 9000", "8192"),
            ("eval.linear.epochs=0", "eval.linear.epochs", "at least 1"),
            (
                "eval.detect.rpn.samples=0",
                "eval.detect.rpn.samples = 0",
                "at least 1",
            ),
            ("transform.image.scale=[0.1]", "scale", "2"),
        ];
        for (setting, key, wanted) in cases {
            let message = error("fashion-mnist", &[setting]);
            assert!(
                message.contains(key) && message.contains(wanted),
                "{setting}: {message}"
            );
        }
    }

    #[test]
    fn bases_that_name_each_other_are_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("loop.toml");
        fs::write(&path, "base = \"loop.toml\"\n").unwrap();
        assert!(error(path.to_str().unwrap(), &[]).contains("name each other"));
    }

    #[test]
    fn an_unknown_recipe_names_the_nearest() {
        let message = error("fashion-mnits", &[]);
        assert!(message.contains("\"fashion-mnist\""), "{message}");
        assert!(error("nowhere/r.toml", &[]).contains("no recipe file"));
    }
}
