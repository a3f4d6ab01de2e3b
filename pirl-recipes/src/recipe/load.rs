//! Loading a recipe: its chain of bases, the settings typed over it, and the whole as TOML.

use std::fs;
use std::path::{Path, PathBuf};

use pirl_train::Collective;
use toml::{Table, Value};

use super::embedded::RECIPES;
use super::overlay::{self, leaves};
use super::setting::Setting;
use super::tables::Recipe;
use crate::error::{KeyError, RecipeError, Result};

impl Recipe {
    /// Loads the recipe called `name` or the file of that path, with `settings` over it.
    ///
    /// A recipe says only what differs from its `base` (another recipe's name, or a file beside
    /// it), and without one from the paper's recipe, [`Recipe::default`].
    ///
    /// # Errors
    /// [`RecipeError`] if there is no such recipe, its file or that of a base cannot be read, or a key
    /// or a value is wrong, of the recipe or of `settings`.
    pub fn load(name: &str, settings: &[Setting]) -> Result<Self> {
        Self::load_adjusted(name, |_| Ok(()), settings)
    }

    /// As [`Recipe::load`], with the changes of `adjust` below those of `settings`: what was typed is
    /// never adjusted.
    ///
    /// # Errors
    /// As [`Recipe::load`], and what `adjust` returns.
    pub fn load_adjusted<E: From<RecipeError>>(
        name: &str,
        adjust: impl FnOnce(&mut Self) -> Result<(), E>,
        settings: &[Setting],
    ) -> Result<Self, E> {
        let key_error = |place: &str| {
            let place = place.to_owned();
            move |source: KeyError| RecipeError::Key { place, source }
        };
        let parse = |table: Table| -> Result<Self> {
            let recipe = Value::Table(table)
                .try_into()
                .map_err(|error| RecipeError::Value {
                    recipe: name.to_owned(),
                    source: Box::new(error),
                })?;
            Ok(Self::resolved(recipe))
        };
        let mut table = Self::default().to_table()?;
        for written in chain(name)? {
            overlay::apply(&mut table, written.table)
                .map_err(key_error(&format!("recipe {}", written.origin)))?;
        }
        let mut recipe = parse(table)?;
        adjust(&mut recipe)?;
        let mut table = recipe.to_table()?;
        for Setting { key, value } in settings {
            overlay::set(&mut table, key, value.clone()).map_err(key_error("--set"))?;
        }
        let recipe = parse(table)?;
        recipe.check().map_err(|source| RecipeError::OutOfRange {
            recipe: name.to_owned(),
            source,
        })?;
        Ok(recipe)
    }

    /// Every key with its value, as TOML: a recipe that does not depend on another.
    ///
    /// # Errors
    /// [`RecipeError::ToToml`] if TOML has no such value.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string(self)?)
    }

    /// The recipe of rank 0, on every rank.
    ///
    /// # Errors
    /// [`RecipeError::Train`] if a rank has ended; those of [`Recipe::to_toml`].
    pub fn of_rank_0(self, ranks: &dyn Collective) -> Result<Self> {
        if ranks.size() == 1 {
            return Ok(self);
        }
        let text = ranks.broadcast(0, self.to_toml()?.into_bytes())?;
        let text = String::from_utf8_lossy(&text);
        let recipe = toml::from_str(&text).map_err(|error| RecipeError::Value {
            recipe: "that of rank 0".to_owned(),
            source: Box::new(error),
        })?;
        Ok(Self::resolved(recipe))
    }

    /// The network takes images as the data have them.
    fn resolved(mut self) -> Self {
        self.model.channels = self.data.channels;
        self
    }

    /// Every key by its dotted name (`train.epochs`) with its value, in the order of the tables.
    ///
    /// # Errors
    /// As [`Recipe::to_toml`].
    pub fn flat(&self) -> Result<Vec<(String, Value)>> {
        Ok(leaves(&self.to_table()?))
    }

    /// The keys that differ in `other`, of those that `matter`, with both values: "optim.lr = 0.5, now 0.25".
    ///
    /// # Errors
    /// As [`Recipe::to_toml`].
    pub fn differences(&self, other: &Self, matter: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        let pairs = self.flat()?.into_iter().zip(other.flat()?);
        Ok(pairs
            .filter(|((key, old), (_, new))| old != new && matter(key))
            .map(|((key, old), (_, new))| format!("{key} = {old}, now {new}"))
            .collect())
    }

    fn to_table(&self) -> Result<Table> {
        Ok(Table::try_from(self)?)
    }
}

/// A recipe as it is written, without its base.
struct Written {
    origin: String,
    table: Table,
}

/// The chain of a recipe and its bases, the outermost base first.
fn chain(name: &str) -> Result<Vec<Written>> {
    const DEEPEST: usize = 8;
    let mut chain = Vec::new();
    let (mut name, mut beside) = (name.to_owned(), None);
    loop {
        let (text, path) = find(&name, beside.as_deref())?;
        let mut table: Table = text.parse().map_err(|error| RecipeError::NotToml {
            recipe: name.clone(),
            source: Box::new(error),
        })?;
        let base = table.remove("base");
        chain.push(Written {
            origin: name.clone(),
            table,
        });
        match base {
            None => break,
            Some(Value::String(base)) if chain.len() < DEEPEST => {
                beside = path.and_then(|path| path.parent().map(Path::to_owned));
                name = base;
            }
            Some(Value::String(base)) => {
                return Err(RecipeError::TooManyBases {
                    recipe: name,
                    base,
                    deepest: DEEPEST,
                });
            }
            Some(other) => {
                return Err(RecipeError::BaseNotAName {
                    recipe: name,
                    found: other.type_str(),
                });
            }
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
        return match fs::read_to_string(&path) {
            Ok(text) => Ok((text, Some(path))),
            Err(source) => Err(RecipeError::Read { path, source }),
        };
    }
    if name.ends_with(".toml") || name.contains('/') {
        return Err(RecipeError::NoFile { path });
    }
    let known: Vec<_> = RECIPES.iter().map(|recipe| recipe.name).collect();
    Err(RecipeError::UnknownRecipe {
        name: name.to_owned(),
        nearest: overlay::nearest(name, known.iter().copied()),
        known,
    })
}

#[cfg(test)]
mod tests {
    use pirl_eval::{Pool, Pools};

    use super::super::embedded::key_notes;
    use super::*;

    fn error(name: &str, settings: &[&str]) -> String {
        let settings: Vec<Setting> = settings.iter().map(|s| s.parse().unwrap()).collect();
        Recipe::load(name, &settings).unwrap_err().to_string()
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
                "data.channels" => [
                    with("data.mean=[0.5, 0.5, 0.5, 0.5]"),
                    with("data.std=[0.5, 0.5, 0.5, 0.5]"),
                ]
                .concat(),
                "eval.detect.backbone.extra_norm" => with("eval.detect.backbone.norm=train"),
                _ => vec![setting],
            };
            let recipe = Recipe::load("imagenet-resnet50-jigsaw", &settings)
                .unwrap_or_else(|error| panic!("{key}={changed}: {error}"));
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
        let both = Pools::new(Pool::ALL.to_vec()).unwrap();
        for settings in [
            &["eval.pool=[\"grid\", \"average\"]"][..],
            &["eval.pool=average", "eval.pool=[\"average\", \"grid\"]"],
        ] {
            assert_eq!(load(settings).pool, both);
        }
        let one = ["eval.pool=[\"average\", \"grid\"]", "eval.pool=grid"];
        assert_eq!(load(&one).pool, Pool::Grid.into());
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
            ("model.arch=[\"resnet18\"]", "model.arch", "string"),
            ("eval.pool=[\"gird\"]", "eval.pool", "gird"),
            ("eval.pool=[]", "eval.pool", "average, grid"),
            ("eval.pool=3", "eval.pool", "string"),
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
