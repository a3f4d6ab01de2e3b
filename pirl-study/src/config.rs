//! A study as it is written.

use pirl_recipes::Setting;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use pirl_model::Layer;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::builtin::BUILTIN;
use crate::error::{Result, StudyError, at};

/// Many trainings that differ in a few settings, what is measured of each, and the figures that show it.
///
/// ```
/// use pirl_study::Study;
///
/// let study = Study::parse("mine", r#"
///     title = "Temperatures"
///     recipe = "cifar10"
///     seeds = [0, 1]
///     budget = { train.epochs = 4 }
///
///     [[figures]]
///     name = "temperature"
///     title = "What the temperature does"
///     x = { key = "loss.temperature", label = "temperature", values = [0.05, 0.1, 0.2] }
///     measures = [{ probe = "knn", layer = "res5" }]
///     series = [{ name = "PIRL" }, { name = "NPID", set = { pretext.kind = "none" } }]
/// "#)?;
/// assert_eq!(study.figures[0].series.len(), 2);
/// # Ok::<(), pirl_study::StudyError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Study {
    /// What it is about.
    pub title: String,
    /// The recipe of every run: a name, or a file, which may be beside the study's.
    pub recipe: String,
    /// Seeds; every run is made with each.
    pub seeds: Vec<u64>,
    /// Built-in studies whose figures come after its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// Settings over the recipe that make runs short enough to be many. Another recipe
    /// ([`Study::with_recipe`]) has a budget of its own.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub budget: Table,
    /// Settings over the recipe, of every run.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub set: Table,
    /// What is drawn.
    #[serde(default)]
    pub figures: Vec<Figure>,
}

/// A figure: series of points, each of which is a training and what is measured of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// A short name, of letters, digits and hyphens; that of its files.
    pub name: String,
    /// What it shows.
    pub title: String,
    /// Where it is in the paper, such as "figure 8".
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// The horizontal axis; without one, a point for each series.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x: Option<Axis>,
    /// What is measured, the vertical axis of a chart each.
    pub measures: Vec<Measure>,
    /// The series, a curve each.
    pub series: Vec<Series>,
    /// What was published of it, a curve each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<PublishedSeries>,
    /// What it is expected to show.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
}

/// A horizontal axis: the values of a key, or the layers of a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Axis {
    /// The recipe's key; none for the layers, which are measured of the same run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What stands under the axis.
    pub label: String,
    /// Values of the key, or names of layers. The most negatives that there are is `"most"`.
    pub values: Vec<Value>,
    /// How the values are called, where that is not as they are written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

/// Runs that differ only in the axis' value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// Settings over those of the study.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub set: Table,
    /// Settings over these that suit the study's own recipe, and go with its budget where there is another.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub budget: Table,
    /// What is measured.
    #[serde(default)]
    pub weights: Weights,
    /// The values on the axis at which it has points, as they are called there; all of them if none is
    /// given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub x: Vec<String>,
}

/// What is measured of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// The trained network.
    #[default]
    Trained,
    /// The network as it is drawn.
    Untrained,
    /// No network: raw pixels, by the probes that have such a baseline.
    Pixels,
}

/// A measure of a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "probe", rename_all = "lowercase", deny_unknown_fields)]
pub enum Measure {
    /// Linear classifiers, top-1 in percent.
    Linear {
        /// The layer, or the one that held-out images chose.
        #[serde(default)]
        layer: At,
        /// Which of the labelled pairs of packs, counted from 0.
        #[serde(default)]
        data: usize,
    },
    /// Nearest neighbours, top-1 in percent.
    Knn {
        /// As of linear classifiers.
        #[serde(default)]
        layer: At,
        /// As of linear classifiers.
        #[serde(default)]
        data: usize,
    },
    /// Support vector machines, mean average precision in percent, of the best layer.
    Svm {
        /// As of linear classifiers.
        #[serde(default)]
        data: usize,
    },
    /// A few labels of each class, by the settings `eval.low_shot`: the mean over draws of top-1 (mean average
    /// precision where images may show several classes) in percent, at the layer that held-out images choose.
    #[serde(rename = "low-shot")]
    LowShot {
        /// That many.
        shots: usize,
        /// As of linear classifiers.
        #[serde(default)]
        data: usize,
    },
    /// The whole network, fine-tuned on a part of the labels; top-1 in percent.
    Finetune {
        /// That part.
        labels: f64,
        /// As of linear classifiers.
        #[serde(default)]
        data: usize,
    },
    /// Mean distance of an image's features from those of the changed image: 0 to 2, both of length 1.
    Invariance {
        /// The change, as `pirl analyze invariance` calls it: `crop`, `photometric`, or the pretext
        /// task's name.
        change: String,
        /// Instead the median, as a part of the median distance to another image.
        #[serde(default)]
        relative: bool,
    },
    /// A detector's average precision at an overlap of a half, in percent.
    Detect {},
}

/// Where features are read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum At {
    /// At the layer that held-out images choose.
    #[default]
    Chosen,
    /// At this one.
    Layer(Layer),
}

impl From<String> for At {
    fn from(name: String) -> Self {
        match name.as_str() {
            "chosen" => Self::Chosen,
            _ => Self::Layer(Layer::new(name)),
        }
    }
}

impl From<At> for String {
    fn from(at: At) -> Self {
        match at {
            At::Chosen => "chosen".to_owned(),
            At::Layer(layer) => layer.to_string(),
        }
    }
}

/// Published values, for comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedSeries {
    /// Its name; of what network, on what data.
    pub name: String,
    /// A value for each of the axis' values; not a number where there is none.
    pub values: Vec<f64>,
}

/// Something that a figure is expected to show: that one value of its first measure exceeds another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// In words.
    pub claim: String,
    /// The value that is to be higher.
    pub higher: Place,
    /// The one that it is compared with.
    pub lower: Place,
    /// By how much at least; negative for a loss that is still accepted.
    #[serde(default)]
    pub by: f64,
}

/// A point of a figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The series' name.
    pub series: String,
    /// The value on the axis, as it is called there; `"best"` for the highest of the curve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x: Option<String>,
}

/// The point of a curve that is highest.
pub(crate) const BEST: &str = "best";

impl Study {
    /// Loads the built-in study called `name`, or the file of that path.
    ///
    /// # Errors
    /// [`StudyError::Unknown`] if there is neither, [`StudyError::Io`] if the file cannot be read, and
    /// as [`Study::parse`].
    pub fn load(name: &str) -> Result<Self> {
        if let Some(text) = BUILTIN.iter().find(|(known, _)| *known == name) {
            return Self::parse(name, text.1);
        }
        let path = Path::new(name);
        if !path.is_file() {
            return Err(StudyError::Unknown {
                name: name.to_owned(),
            });
        }
        let mut study = Self::parse(name, &fs::read_to_string(path).map_err(at(path))?)?;
        let beside = path.with_file_name(&study.recipe);
        if beside.is_file() {
            study.recipe = beside.to_string_lossy().into_owned();
        }
        Ok(study)
    }

    /// The study that `text` describes; `name` is for messages. The figures of those it includes are in
    /// it.
    ///
    /// # Errors
    /// [`StudyError::Malformed`] or [`StudyError::Invalid`], with the place.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let mut study: Self = toml::from_str(text).map_err(|source| StudyError::Malformed {
            study: name.to_owned(),
            source: Box::new(source),
        })?;
        for included in std::mem::take(&mut study.include) {
            if !BUILTIN.iter().any(|(known, _)| *known == included) || included == name {
                let reason = format!("include = {included:?}: there is no such built-in study");
                return Err(invalid(name, reason));
            }
            study.figures.extend(Self::load(&included)?.figures);
        }
        study.check(name)?;
        Ok(study)
    }

    /// The same with another recipe, at that recipe's own length.
    #[must_use]
    pub fn with_recipe(mut self, recipe: &str) -> Self {
        let series = self
            .figures
            .iter_mut()
            .flat_map(|figure| &mut figure.series);
        series.for_each(|series| series.budget.clear());
        Self {
            recipe: recipe.to_owned(),
            budget: Table::new(),
            ..self
        }
    }

    fn check(&self, name: &str) -> Result<()> {
        let fail = |reason: String| Err(invalid(name, reason));
        if self.seeds.is_empty() {
            return fail("seeds: give one or more".to_owned());
        }
        if let Some(seed) = first_repeated(&self.seeds) {
            return fail(format!("seeds: {seed} is there twice"));
        }
        if self.figures.is_empty() {
            return fail("figures: give one or more, or include a study that has some".to_owned());
        }
        let names: Vec<_> = self.figures.iter().map(|figure| &figure.name).collect();
        if let Some(figure) = first_repeated(&names) {
            return fail(format!("two figures are called {figure:?}"));
        }
        for figure in &self.figures {
            if let Err(reason) = figure.check() {
                return fail(format!("figure {:?}: {reason}", figure.name));
            }
        }
        Ok(())
    }
}

fn invalid(study: &str, reason: String) -> StudyError {
    StudyError::Invalid {
        study: study.to_owned(),
        reason,
    }
}

fn first_repeated<T: Ord>(items: &[T]) -> Option<&T> {
    let mut seen = BTreeSet::new();
    items.iter().find(|item| !seen.insert(*item))
}

impl Figure {
    fn check(&self) -> std::result::Result<(), String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.name.is_empty() || !self.name.chars().all(plain) {
            return Err("its name may have letters, digits, - and _".to_owned());
        }
        if self.series.is_empty() || self.measures.is_empty() {
            return Err("it needs series and measures, one or more of each".to_owned());
        }
        let names: Vec<_> = self.series.iter().map(|series| &series.name).collect();
        if let Some(name) = first_repeated(&names) {
            return Err(format!("two series are called {name:?}"));
        }
        let x = self.x.as_ref().map_or(Vec::new(), Axis::names);
        if let Some(axis) = &self.x {
            axis.check(self)?;
        }
        for series in &self.series {
            if let Some(odd) = series.x.iter().find(|name| !x.contains(name)) {
                return Err(format!("series {:?}: the axis has no {odd}", series.name));
            }
        }
        for published in &self.published {
            let expected = self
                .x
                .as_ref()
                .map_or(self.series.len(), |x| x.values.len());
            if published.values.len() != expected {
                return Err(format!(
                    "published {:?} has {} values for {expected} points",
                    published.name,
                    published.values.len()
                ));
            }
        }
        for finding in &self.findings {
            for place in [&finding.higher, &finding.lower] {
                self.check_place(place)
                    .map_err(|reason| format!("finding {:?}: {reason}", finding.claim))?;
            }
        }
        Ok(())
    }

    fn check_place(&self, place: &Place) -> std::result::Result<(), String> {
        if !self.series.iter().any(|series| series.name == place.series) {
            return Err(format!("there is no series {:?}", place.series));
        }
        match (&self.x, &place.x) {
            (None, None) => Ok(()),
            (Some(_), Some(x)) if x == BEST => Ok(()),
            (Some(axis), Some(x)) if axis.names().contains(x) => Ok(()),
            (Some(axis), _) => Err(format!(
                "x must be one of {}, or \"best\"",
                axis.names().join(", ")
            )),
            (None, Some(_)) => Err("x is given, but the figure has no axis".to_owned()),
        }
    }
}

impl Series {
    /// Its settings, of which later ones are over those before.
    pub(crate) fn settings(&self) -> Vec<Setting> {
        [
            Setting::of_table(&self.set),
            Setting::of_table(&self.budget),
        ]
        .concat()
    }

    /// Whether it has a point at the axis' value of that name.
    pub(crate) fn has(&self, x: &str) -> bool {
        self.x.is_empty() || self.x.iter().any(|name| name == x)
    }
}

impl Axis {
    /// Whether its values are layers.
    pub(crate) fn of_layers(&self) -> bool {
        self.key.is_none()
    }

    /// How its values are called.
    pub fn names(&self) -> Vec<String> {
        let written = |value: &Value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        match self.names.is_empty() {
            true => self.values.iter().map(written).collect(),
            false => self.names.clone(),
        }
    }

    fn check(&self, figure: &Figure) -> std::result::Result<(), String> {
        if self.values.is_empty() {
            return Err("x.values: give one or more".to_owned());
        }
        if !self.names.is_empty() && self.names.len() != self.values.len() {
            return Err("x.names must be as many as x.values".to_owned());
        }
        if let Some(name) = first_repeated(&self.names()) {
            return Err(format!("x.values: {name} is there twice"));
        }
        match &self.key {
            Some(key) if key == "seed" => {
                Err("x.key: seeds are those of the study, and averaged over".to_owned())
            }
            Some(_) => Ok(()),
            None if self.values.iter().all(Value::is_str) => {
                let per_layer = |measure: &Measure| {
                    matches!(measure, Measure::Linear { .. } | Measure::Knn { .. })
                };
                match figure.measures.iter().all(per_layer) {
                    true => Ok(()),
                    false => Err("only linear and knn are measured layer by layer".to_owned()),
                }
            }
            None => Err("x without a key must have names of layers as its values".to_owned()),
        }
    }
}

impl Measure {
    /// What it is, for the axis of a chart and the head of a table.
    pub fn label(&self) -> String {
        let of = |at: &At| match at {
            At::Chosen => "chosen layer".to_owned(),
            At::Layer(layer) => layer.to_string(),
        };
        let on = |data: &usize| match data {
            0 => String::new(),
            more => format!(", data {}", more + 1),
        };
        match self {
            Self::Linear { layer, data } => {
                format!("linear, top-1 in % ({}{})", of(layer), on(data))
            }
            Self::Knn { layer, data } => format!("k-NN, top-1 in % ({}{})", of(layer), on(data)),
            Self::Svm { data } => format!("SVM, mAP in %{}", on(data)),
            Self::LowShot { shots, data } => {
                format!("{shots} labels a class, in %{}", on(data))
            }
            Self::Finetune { labels, data } => {
                let percent = (labels * 1e4).round() / 1e2;
                format!(
                    "fine-tuned on {percent} % of the labels, top-1 in %{}",
                    on(data)
                )
            }
            Self::Invariance {
                change,
                relative: false,
            } => format!("L2 distance after {change}"),
            Self::Invariance { change, .. } => {
                format!("distance after {change}, of that to another image")
            }
            Self::Detect {} => "detection, AP50 in %".to_owned(),
        }
    }

    /// What it is, whatever the layer.
    pub(crate) fn kind_label(&self) -> String {
        match self {
            Self::Linear { .. } => "linear, top-1 in %".to_owned(),
            Self::Knn { .. } => "k-NN, top-1 in %".to_owned(),
            other => other.label(),
        }
    }

    /// The same at a layer, if it is measured layer by layer.
    pub(crate) fn at(&self, name: &str) -> Self {
        let layer = At::from(name.to_owned());
        match self {
            Self::Linear { data, .. } => Self::Linear { layer, data: *data },
            Self::Knn { data, .. } => Self::Knn { layer, data: *data },
            other => other.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
        title = "t"
        recipe = "cifar10"
        seeds = [0]
        [[figures]]
        name = "a"
        title = "A"
        x = { key = "loss.lambda", label = "l", values = [0.0, 0.5] }
        measures = [{ probe = "linear" }]
        series = [{ name = "PIRL" }]
        findings = [{ claim = "c", higher = { series = "PIRL", x = "0.5" }, lower = { series = "PIRL", x = "0.0" } }]
    "#;

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        Study::parse("mine", SMALL).unwrap();
        for (from, to, named) in [
            ("seeds = [0]", "seeds = []", "seeds: give one"),
            ("seeds = [0]", "seeds = [1, 1]", "1 is there twice"),
            ("name = \"a\"", "name = \"a/b\"", "letters, digits"),
            ("title = \"A\"", "titel = \"A\"", "titel"),
            ("{ name = \"PIRL\" }", "", "series and measures"),
            ("x = \"0.5\"", "x = \"0.7\"", "one of 0.0, 0.5"),
            (
                "{ series = \"PIRL\", x = \"0.0\" }",
                "{ series = \"NPID\" }",
                "no series \"NPID\"",
            ),
            ("\"linear\"", "\"liner\"", "liner"),
            ("key = \"loss.lambda\", ", "", "names of layers"),
            ("[0.0, 0.5]", "[0.5, 0.5]", "twice"),
        ] {
            assert!(SMALL.contains(from), "{from}");
            let error = Study::parse("mine", &SMALL.replace(from, to)).unwrap_err();
            let text = error.to_string();
            assert!(
                text.contains(named) && text.contains("mine"),
                "{named}: {text}"
            );
        }
    }

    #[test]
    fn a_study_survives_its_own_toml() {
        for (name, _) in BUILTIN {
            let study = Study::load(name).unwrap();
            let text = toml::to_string(&study).unwrap();
            // As text, since a published value that is not a number equals nothing.
            let again = Study::parse(name, &text).unwrap();
            assert_eq!(toml::to_string(&again).unwrap(), text, "{name}");
        }
    }
}
