//! What a study consists of: its runs, each once, and what is measured of each.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use pirl_data::Pack;
use pirl_eval::check_packs;
use pirl_recipes::{Inputs, Recipe, RecipeError, Setting, fit};
use pirl_train::alone;
use toml::Value;
use xxhash_rust::xxh3::xxh3_128;

use crate::config::{At, Figure, Measure, Study, Weights};
use crate::error::{Result, StudyError};

/// A pack and where it is.
#[derive(Clone)]
pub struct NamedPack {
    /// As it was given.
    pub path: PathBuf,
    /// The images.
    pub pack: Pack,
}

impl NamedPack {
    /// Opens a pack.
    ///
    /// # Errors
    /// As [`Pack::open`].
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            pack: Pack::open(path)?,
        })
    }
}

/// The images of a study.
#[derive(Clone)]
pub struct Images {
    /// Those to train on.
    pub data: NamedPack,
    /// Labelled ones to learn from and to be judged by, in pairs.
    pub probes: Vec<(NamedPack, NamedPack)>,
    /// The same with objects, for detectors.
    pub detection: Option<(NamedPack, NamedPack)>,
}

impl Images {
    /// Opens the packs: those to train on, pairs to probe with, and a pair for detectors.
    ///
    /// # Errors
    /// As [`Pack::open`]; [`StudyError::Probes`] for a pair that cannot be compared.
    pub fn open(
        data: &Path,
        probes: &[(PathBuf, PathBuf)],
        detection: Option<(&Path, &Path)>,
    ) -> Result<Self> {
        let pair = |(train, test): (&Path, &Path)| -> Result<(NamedPack, NamedPack)> {
            Ok((NamedPack::open(train)?, NamedPack::open(test)?))
        };
        let labelled = |(train, test): &(PathBuf, PathBuf)| {
            let (train, test) = pair((train, test))?;
            check_packs(&train.pack, &test.pack).map_err(|source| StudyError::Probes {
                train: train.path.clone(),
                source: Box::new(source),
            })?;
            Ok((train, test))
        };
        Ok(Self {
            probes: probes.iter().map(labelled).collect::<Result<_>>()?,
            detection: detection.map(pair).transpose()?,
            data: NamedPack::open(data)?,
        })
    }
}

/// An evaluation of a network.
#[derive(Clone, Debug, PartialEq)]
pub enum Evaluation {
    /// `pirl eval linear`, on a pair of packs.
    Linear(usize),
    /// `pirl eval knn`.
    Knn(usize),
    /// `pirl eval svm`.
    Svm(usize),
    /// `pirl eval low-shot`.
    LowShot(usize),
    /// `pirl eval finetune`, on this part of the labels.
    Finetune(f64, usize),
    /// `pirl analyze invariance`, on the images judged by of the first pair.
    Invariance,
    /// `pirl eval detect`.
    Detect,
}

/// An evaluation to be made.
#[derive(Clone, Debug)]
pub struct Task {
    /// Which.
    pub evaluation: Evaluation,
    /// Its settings.
    pub recipe: Recipe,
    /// Name of the folder of its result, in that of its run.
    pub folder: String,
}

/// A network to be trained, or drawn, once, whatever number of figures it is in.
#[derive(Clone, Debug)]
pub struct Run {
    /// Name of its folder: a hash of all that it depends on.
    pub key: String,
    /// The first of its points, in words.
    pub name: String,
    /// Its settings.
    pub recipe: Recipe,
    /// Whether it is trained.
    pub trained: bool,
    /// What is measured of it.
    pub tasks: Vec<Task>,
}

/// Where a value of a figure comes from.
#[derive(Clone, Debug)]
pub struct Point {
    /// Place of the figure.
    pub figure: usize,
    /// Place of the measure.
    pub measure: usize,
    /// Place of the series.
    pub series: usize,
    /// Place of the axis' value; 0 without an axis.
    pub x: usize,
    /// The run's seed.
    pub seed: u64,
    /// Place of the run.
    pub run: usize,
    /// Place of the evaluation among the run's.
    pub task: usize,
    /// The value in its result, as a JSON pointer.
    pub pointer: String,
}

/// All runs of a study, in the order in which they are made: all of the first seed first.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The study, without measures that the images do not allow.
    pub study: Study,
    /// The runs.
    pub runs: Vec<Run>,
    /// The values of the figures.
    pub points: Vec<Point>,
    /// What was left out, and why.
    pub left_out: Vec<String>,
}

impl Plan {
    /// Plans `study` on `images`, with `typed` settings over those of the study. `name` is the study's, for
    /// messages.
    ///
    /// # Errors
    /// [`StudyError::Run`] if a run cannot be made, with the figure and the value; [`StudyError::Invalid`]
    /// if a measure asks for images that there are not.
    pub fn new(name: &str, mut study: Study, images: &Images, typed: &[Setting]) -> Result<Self> {
        let mut left_out = Vec::new();
        if images.detection.is_none() {
            leave_out_detection(&mut study, &mut left_out);
        }
        let planner = Planner {
            name,
            images,
            typed,
            study: &study,
        };
        let (runs, points) = planner.plan()?;
        Ok(Self {
            study,
            runs,
            points,
            left_out,
        })
    }

    /// All that tells this study from another, line by line; a folder keeps it.
    ///
    /// # Errors
    /// [`StudyError::Recipe`] if a setting cannot be written.
    pub fn identity(&self, images: &Images) -> Result<String> {
        let mut text = format!("title = {}\n", self.study.title);
        let mut pack = |what: &str, named: &NamedPack| {
            let _ = writeln!(text, "{what} = {}", named.pack.fingerprint());
        };
        pack("data", &images.data);
        for (train, test) in &images.probes {
            pack("probe-train", train);
            pack("probe-test", test);
        }
        if let Some((train, test)) = &images.detection {
            pack("detect-train", train);
            pack("detect-test", test);
        }
        for run in &self.runs {
            let tasks: Vec<_> = run.tasks.iter().map(|task| task.folder.as_str()).collect();
            let _ = writeln!(text, "run {} ({}) = {}", run.key, run.name, tasks.join(" "));
        }
        Ok(text)
    }
}

/// Takes the measures away that need packs with objects, and what has no other.
fn leave_out_detection(study: &mut Study, left_out: &mut Vec<String>) {
    study.figures.retain_mut(|figure| {
        let before = figure.measures.len();
        figure
            .measures
            .retain(|measure| *measure != Measure::Detect {});
        if figure.measures.len() < before {
            left_out.push(format!(
                "detection in figure {:?}: --detect-train and --detect-test are not given",
                figure.name
            ));
        }
        !figure.measures.is_empty()
    });
}

struct Planner<'a> {
    name: &'a str,
    images: &'a Images,
    typed: &'a [Setting],
    study: &'a Study,
}

impl Planner<'_> {
    fn plan(self) -> Result<(Vec<Run>, Vec<Point>)> {
        let (mut runs, mut points) = (Vec::<Run>::new(), Vec::new());
        let mut places = BTreeMap::new();
        for &seed in &self.study.seeds {
            for (at, figure) in self.study.figures.iter().enumerate() {
                self.figure(
                    at,
                    figure,
                    seed,
                    &mut |run: Run| {
                        let place = *places.entry(run.key.clone()).or_insert(runs.len());
                        if place == runs.len() {
                            runs.push(Run {
                                tasks: Vec::new(), // each once, below
                                ..run.clone()
                            });
                        }
                        let known = &mut runs[place].tasks;
                        let tasks = run.tasks.into_iter().map(|task| {
                            let found = known.iter().position(|known| known.folder == task.folder);
                            found.unwrap_or_else(|| {
                                known.push(task);
                                known.len() - 1
                            })
                        });
                        (place, tasks.collect())
                    },
                    &mut points,
                )?;
            }
        }
        Ok((runs, points))
    }

    fn figure(
        &self,
        place: usize,
        figure: &Figure,
        seed: u64,
        add: &mut dyn FnMut(Run) -> (usize, Vec<usize>),
        points: &mut Vec<Point>,
    ) -> Result<()> {
        let axis = figure.x.as_ref();
        let names = axis.map_or(vec![String::new()], |axis| axis.names());
        for (series_place, series) in figure.series.iter().enumerate() {
            for (x, x_name) in names.iter().enumerate().filter(|(_, x)| series.has(x)) {
                let mut name = format!("{} {}", figure.name, series.name);
                if let Some(key) = axis.and_then(|axis| axis.key.as_ref()) {
                    let _ = write!(name, " {key}={x_name}");
                }
                let _ = write!(name, " seed {seed}");
                let value = axis.and_then(|axis| Some((axis.key.as_deref()?, &axis.values[x])));
                let recipe = self.recipe(&name, &series.settings(), value, seed)?;
                let measures: Vec<_> = figure
                    .measures
                    .iter()
                    .map(|measure| match axis.filter(|axis| axis.of_layers()) {
                        Some(_) => measure.at(x_name),
                        None => measure.clone(),
                    })
                    .collect();
                let run = self.run(&name, recipe, series.weights, &measures)?;
                let (run, tasks) = add(run);
                for (measure, (of, task)) in measures.iter().zip(tasks).enumerate() {
                    points.push(Point {
                        figure: place,
                        measure,
                        series: series_place,
                        x,
                        seed,
                        run,
                        task,
                        pointer: pointer(of, series.weights),
                    });
                }
            }
        }
        Ok(())
    }

    /// The settings of a run: the recipe's, fitted to the images, and over it those of the study, those
    /// typed, the series' and the axis'.
    fn recipe(
        &self,
        name: &str,
        series: &[Setting],
        axis: Option<(&str, &Value)>,
        seed: u64,
    ) -> Result<Recipe> {
        let of_run = |source: RecipeError| StudyError::Run {
            study: self.name.to_owned(),
            run: name.to_owned(),
            source: Box::new(source),
        };
        let mut settings = Setting::of_table(&self.study.budget);
        settings.extend(Setting::of_table(&self.study.set));
        settings.extend_from_slice(self.typed);
        settings.extend_from_slice(series);
        settings.push(Setting::new("seed", Value::Integer(seed as i64)));
        let images = self.images.data.pack.len();
        let load = |settings: &[Setting]| {
            let adjust = |recipe: &mut Recipe| {
                fit(recipe, images);
                Ok::<_, RecipeError>(())
            };
            Recipe::load_adjusted(&self.study.recipe, adjust, settings).map_err(of_run)
        };
        let Some((key, value)) = axis else {
            return load(&settings);
        };
        if let Some(typed) = self.typed.iter().find(|typed| typed.sets(key)) {
            return Err(StudyError::Invalid {
                study: self.name.to_owned(),
                reason: format!("{typed} is typed, but {key} is what {name} is about"),
            });
        }
        let most = value.as_str() == Some("most") && key == "loss.negatives";
        let value = match most {
            true => {
                let limit = load(&settings)?.data.limit;
                let images = if limit > 0 { limit } else { images };
                Value::Integer(images.saturating_sub(1) as i64)
            }
            false => value.clone(),
        };
        settings.push(Setting::new(key, value));
        load(&settings)
    }

    fn run(
        &self,
        name: &str,
        recipe: Recipe,
        weights: Weights,
        measures: &[Measure],
    ) -> Result<Run> {
        let trained = weights == Weights::Trained;
        if trained {
            let checked = Inputs::new(recipe.clone(), self.images.data.pack.clone(), 1, &alone());
            checked.map_err(|source| StudyError::Run {
                study: self.name.to_owned(),
                run: name.to_owned(),
                source: Box::new(source),
            })?;
        }
        let tasks = measures
            .iter()
            .map(|measure| self.task(measure, &recipe, trained));
        Ok(Run {
            key: self.key(&recipe, trained)?,
            name: name.to_owned(),
            tasks: tasks.collect::<Result<_>>()?,
            recipe,
            trained,
        })
    }

    /// A hash of what a network depends on.
    fn key(&self, recipe: &Recipe, trained: bool) -> Result<String> {
        let matters = |key: &str| match trained {
            true => {
                const VIEW: [&str; 3] = ["eval.resize", "eval.crop", "eval.precise_batch_norm"];
                const FREE: [&str; 4] = ["log.", "checkpoint.", "loader.", "eval."];
                VIEW.contains(&key) || !FREE.iter().any(|free| key.starts_with(free))
            }
            false => key == "seed" || ["model.", "data."].iter().any(|own| key.starts_with(own)),
        };
        let mut text = settings(recipe, matters)?;
        if trained {
            text += self.images.data.pack.fingerprint();
        }
        Ok(hash(&text))
    }

    fn task(&self, measure: &Measure, recipe: &Recipe, trained: bool) -> Result<Task> {
        let mut recipe = recipe.clone();
        // Pixels are measured with the untrained network, once.
        recipe.eval.baselines = !trained;
        let pair = |data: usize| match self.images.probes.get(data) {
            Some((train, test)) => {
                let of = [train, test].map(|named| named.pack.fingerprint());
                Ok(of.join(" "))
            }
            None => Err(StudyError::Invalid {
                study: self.name.to_owned(),
                reason: match data {
                    0 => "it measures with labels: give --probe-train and --probe-test".to_owned(),
                    _ => format!(
                        "a measure is of data = {data}, but there are {} pairs of --probe-train and \
                         --probe-test, counted from 0",
                        self.images.probes.len()
                    ),
                },
            }),
        };
        let (evaluation, name, keys, packs) = match *measure {
            Measure::Linear { data, .. } => (
                Evaluation::Linear(data),
                "linear",
                "eval.linear.",
                pair(data)?,
            ),
            Measure::Knn { data, .. } => (Evaluation::Knn(data), "knn", "eval.knn.", pair(data)?),
            Measure::Svm { data } => (Evaluation::Svm(data), "svm", "eval.svm.", pair(data)?),
            Measure::LowShot { shots, data } => {
                recipe.eval.low_shot.shots = vec![shots];
                let task = Evaluation::LowShot(data);
                (task, "low-shot", "eval.low_shot.", pair(data)?)
            }
            Measure::Finetune { labels, data } => {
                recipe.eval.finetune.label_fraction = labels;
                let task = Evaluation::Finetune(labels, data);
                (task, "finetune", "eval.finetune.", pair(data)?)
            }
            Measure::Invariance { .. } => {
                // All networks are asked about the same changes.
                let base = self.recipe("its changes", &[], None, recipe.seed)?;
                (recipe.pretext, recipe.transform) = (base.pretext, base.transform);
                (Evaluation::Invariance, "invariance", "transform.", pair(0)?)
            }
            Measure::Detect {} => {
                let packs = self.images.detection.as_ref().map(|(train, test)| {
                    [train, test]
                        .map(|named| named.pack.fingerprint())
                        .join(" ")
                });
                let packs = packs.unwrap_or_default(); // left out before
                (Evaluation::Detect, "detect", "eval.detect.", packs)
            }
        };
        let learner = format!("eval.{}.", recipe.eval.low_shot.method.name());
        let matters = |key: &str| {
            let shared = key.starts_with("eval.") && key.matches('.').count() == 1;
            let pretext = evaluation == Evaluation::Invariance && key.starts_with("pretext.");
            let learner = matches!(evaluation, Evaluation::LowShot(_)) && key.starts_with(&learner);
            shared || pretext || learner || key.starts_with(keys) || key == "data.image_size"
        };
        let hash = hash(&(settings(&recipe, matters)? + &packs));
        Ok(Task {
            folder: format!("{name}-{}", &hash[..8]),
            evaluation,
            recipe,
        })
    }
}

/// The settings of those keys, one in a line; without keys that came later, where they say what was always done
/// before: a study's folders keep their names.
fn settings(recipe: &Recipe, matters: impl Fn(&str) -> bool) -> Result<String> {
    const LATER: [(&str, &str); 1] = [("model.batch_norm", "local")];
    let as_ever = |key: &str, value: &Value| {
        let mut later = LATER.iter();
        later.any(|(later, before)| key == *later && value.as_str() == Some(before))
    };
    let flat = recipe.flat()?.into_iter();
    let lines = flat.filter(|(key, value)| matters(key) && !as_ever(key, value));
    Ok(lines
        .map(|(key, value)| format!("{key} = {value}\n"))
        .collect())
}

fn hash(text: &str) -> String {
    format!("{:032x}", xxh3_128(text.as_bytes()))[..16].to_owned()
}

/// Where a measure's value is in the result of its evaluation.
fn pointer(measure: &Measure, weights: Weights) -> String {
    let of = match weights {
        Weights::Pixels => "/baselines/pixels",
        _ => "",
    };
    match measure {
        Measure::Linear { layer, .. } | Measure::Knn { layer, .. } => match (layer, weights) {
            (At::Layer(_), Weights::Pixels) => format!("{of}/layers/pixels/top1"),
            (At::Layer(layer), _) => {
                // Such as res4/grid, in a pointer.
                let layer = layer.as_str().replace('~', "~0").replace('/', "~1");
                format!("{of}/layers/{layer}/top1")
            }
            (At::Chosen, _) => format!("{of}/chosen/top1"),
        },
        Measure::Svm { .. } => "/best/map".to_owned(),
        Measure::LowShot { shots, .. } => format!("{of}/shots/{shots}/chosen/mean"),
        Measure::Finetune { .. } => "/top1".to_owned(),
        Measure::Invariance { change, relative } => {
            let figure = if *relative { "relative" } else { "mean" };
            format!("/weights/0/distances/{change}/{figure}")
        }
        Measure::Detect {} => "/ap50".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_came_later_changes_no_name_until_it_is_set() {
        let text = |typed: &[&str]| {
            let typed: Vec<Setting> = typed.iter().map(|text| text.parse().unwrap()).collect();
            let recipe = Recipe::load("fashion-mnist", &typed).unwrap();
            settings(&recipe, |key| key.starts_with("model.")).unwrap()
        };
        let as_ever = text(&[]);
        assert!(as_ever.contains("model.winograd = "), "{as_ever}");
        assert!(!as_ever.contains("model.batch_norm"), "{as_ever}");
        assert_eq!(text(&["model.batch_norm=local"]), as_ever);
        let synced = text(&["model.batch_norm=synced"]);
        assert!(synced.contains("model.batch_norm = \"synced\""), "{synced}");
    }
}
