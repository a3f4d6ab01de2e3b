//! One-versus-rest linear support vector machines, as VISSL and Goyal et al. (arXiv:1905.01235)
//! evaluate features on VOC07 classification.
//!
//! For each class the cost is chosen by cross-validation on the training set, the machine is then
//! trained on all of it, and its ranking of the test set is evaluated by average precision.

use std::collections::BTreeMap;
use std::fmt;

use pirl_core::{SettingError, check};
use pirl_model::Layer;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{EvalError, Result};
use crate::feature_set::{FeatureSet, LayerFeatures};
use crate::pool::Pool;
use crate::presence::Presence;
use crate::probe::{highest, same_layers};

mod average_precision;
mod folds;
mod solver;

pub(crate) use average_precision::envelope;
pub(crate) use solver::Problem;

use average_precision::stepwise;
use folds::stratified;
use solver::Solver;

/// Settings of [`Svm`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SvmConfig {
    /// Costs C that cross-validation chooses from; VISSL's eleven from 0.01 to 1000 by default.
    pub costs: Vec<f64>,
    /// Parts of the cross-validation, stratified and in the order of the pack; 3 by default.
    pub folds: usize,
    /// What the cost of a positive sample is multiplied by; 2 by default.
    pub positive_weight: f64,
    /// Training ends when the projected gradients of all multipliers lie within a range of this width
    /// (LIBLINEAR's criterion); 1e-4 by default.
    pub tolerance: f64,
    /// Most passes over the samples; 2000 by default. A machine that is not done by then is used as it
    /// is.
    pub max_passes: usize,
}

impl Default for SvmConfig {
    fn default() -> Self {
        Self {
            costs: vec![
                0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0,
            ],
            folds: 3,
            positive_weight: 2.0,
            tolerance: 1e-4,
            max_passes: 2000,
        }
    }
}

impl SvmConfig {
    /// # Errors
    /// Names the first field whose value cannot work.
    pub fn check(&self) -> Result<(), SettingError> {
        let positive = |x: f64| x > 0.0 && x.is_finite();
        let costs = &self.costs;
        let fits = !costs.is_empty() && costs.iter().all(|cost| positive(*cost));
        let found = format!("{costs:?}");
        check("costs", found, fits, "must be one or more numbers above 0")?;
        check("folds", self.folds, self.folds >= 2, "must be at least 2")?;
        for (field, value) in [
            ("positive_weight", self.positive_weight),
            ("tolerance", self.tolerance),
        ] {
            check(field, value, positive(value), "must be finite and positive")?;
        }
        let passes = self.max_passes;
        check("max_passes", passes, passes > 0, "must be at least 1")
    }
}

/// The result of support vector machines. Average precisions are in percent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SvmReport {
    /// Mean average precision at the best layer.
    pub map: f64,
    /// Average precision of each class there, by name.
    pub per_class: BTreeMap<String, f64>,
    /// The layer and the pooling that are best in cross-validation.
    pub chosen: SvmChoice,
    /// The result of each layer.
    pub layers: BTreeMap<Layer, SvmLayer>,
    /// The layer with the highest mean on the test set; of equal ones the lowest.
    pub best: SvmBest,
}

/// What support vector machines chose without the test set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SvmChoice {
    /// The layer; of equal ones the lowest.
    pub layer: Layer,
    /// How its maps are pooled, where there was a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<Pool>,
    /// The mean that both were chosen by: [`SvmLayer::held_out`].
    pub held_out: f64,
    /// Mean average precision on the test set, in percent.
    pub map: f64,
}

/// The best layer of an [`SvmReport`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SvmBest {
    /// The layer.
    pub layer: Layer,
    /// Its mean average precision, in percent.
    pub map: f64,
}

/// The machines of one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SvmLayer {
    /// Mean average precision over the classes.
    pub map: f64,
    /// The mean over the classes of the average precision by which the cost was chosen: that of the parts held
    /// out in turn in cross-validation.
    pub held_out: f64,
    /// How its maps were pooled, where there was a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<Pool>,
    /// Average precision of each class, by name.
    pub per_class: BTreeMap<String, f64>,
    /// The cost chosen for each class, by name.
    pub costs: BTreeMap<String, f64>,
    /// Features of an image.
    pub dim: usize,
    /// Final machines that reached `max_passes` before the tolerance.
    pub unfinished: usize,
}

impl fmt::Display for SvmReport {
    /// A row for each layer, then the best and the chosen.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.layers.keys().map(|layer| layer.as_str().len());
        let width = names.max().unwrap_or(0).max(5);
        writeln!(f, "{:<width$}  features     mAP", "layer")?;
        for (layer, found) in &self.layers {
            writeln!(f, "{layer:<width$}  {:>8}  {:>6.2}", found.dim, found.map)?;
        }
        let unfinished: usize = self.layers.values().map(|layer| layer.unfinished).sum();
        if unfinished > 0 {
            writeln!(
                f,
                "{unfinished} machines were stopped by eval.svm.max_passes before they were done"
            )?;
        }
        let SvmBest { layer, map } = &self.best;
        writeln!(f, "best: {layer} with {map:.2}% mAP")?;
        let chosen = &self.chosen;
        write!(
            f,
            "chosen: {} with {:.2}% mAP ({:.2}% in cross-validation)",
            chosen.layer, chosen.map, chosen.held_out
        )
    }
}

/// One-versus-rest linear support vector machines on every layer of frozen features.
#[derive(Clone, Debug)]
pub struct Svm {
    config: SvmConfig,
    seed: u64,
}

impl Svm {
    /// The order in which the solver visits samples comes from `seed`.
    ///
    /// # Errors
    /// [`EvalError::Setting`](crate::EvalError::Setting) as [`SvmConfig::check`].
    pub fn new(config: SvmConfig, seed: u64) -> Result<Self> {
        config.check()?;
        Ok(Self { config, seed })
    }

    /// Trains on `train` and ranks the images of `test`; each presence is of the same pack as its
    /// features. Calls `progress` with the machines done (one for each class and layer) and those in all.
    ///
    /// An image with only difficult objects of a class is a negative of that class in training, and is
    /// left out for that class in the test.
    ///
    /// # Errors
    /// [`EvalError::Layers`] or [`EvalError::Shape`] if the sets cannot be compared or a presence
    /// is of another set; [`EvalError::NoPositives`] for a class with fewer training images than
    /// folds, or without a test image.
    pub fn evaluate(
        &self,
        (train, train_presence): (&FeatureSet, &Presence),
        (test, test_presence): (&FeatureSet, &Presence),
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<SvmReport> {
        same_layers(train, test)?;
        let names = train.class_names();
        train_presence.check("training", train, self.config.folds)?;
        test_presence.check("test", test, 1)?;
        let total = names.len() * train.layers().len();
        let mut done = 0;
        let mut layers = BTreeMap::new();
        for (train, test) in train.layers().iter().zip(test.layers()) {
            let (train_rows, test_rows) = (normalised(train), normalised(test));
            let mut layer = SvmLayer {
                map: 0.0,
                held_out: 0.0,
                pool: train.pool(),
                per_class: BTreeMap::new(),
                costs: BTreeMap::new(),
                dim: train.dim(),
                unfinished: 0,
            };
            for (class, name) in names.iter().enumerate() {
                let positive: Vec<bool> = train_presence.of(class).map(|p| p == 1).collect();
                let problem = Problem {
                    rows: &train_rows,
                    dim: train.dim(),
                    positive: &positive,
                };
                let (cost, held_out) = self.choose_cost(&problem);
                let every: Vec<u32> = (0..train.rows() as u32).collect();
                let machine = self.solver(cost).train(&problem, &every);
                layer.unfinished += usize::from(!machine.finished);
                let ranked: Vec<(f64, bool)> = test_presence
                    .of(class)
                    .zip(test_rows.chunks_exact(train.dim()))
                    .filter(|(presence, _)| *presence >= 0)
                    .map(|(presence, row)| (machine.score(row), presence == 1))
                    .collect();
                let precision = 100.0 * envelope(ranked);
                layer.map += precision / names.len() as f64;
                layer.held_out += 100.0 * held_out / names.len() as f64;
                layer.per_class.insert(name.clone(), precision);
                layer.costs.insert(name.clone(), cost);
                done += 1;
                progress(done, total);
            }
            layers.insert(train.layer().clone(), layer);
        }
        let best = layers
            .iter()
            .map(|(layer, found)| SvmBest {
                layer: layer.clone(),
                map: found.map,
            })
            .reduce(|best, next| if next.map > best.map { next } else { best });
        let none = || EvalError::Layers {
            train: train.describe(),
            test: test.describe(),
        };
        let best = best.ok_or_else(none)?;
        let chosen = highest(layers.iter(), |(_, found)| Some(found.held_out));
        let (layer, found) = chosen.ok_or_else(none)?;
        let chosen = SvmChoice {
            layer: layer.clone(),
            pool: found.pool,
            held_out: found.held_out,
            map: found.map,
        };
        Ok(SvmReport {
            map: best.map,
            chosen,
            per_class: layers
                .get(&best.layer)
                .map(|layer| layer.per_class.clone())
                .unwrap_or_default(),
            layers,
            best,
        })
    }

    /// The cost with the best mean average precision over the folds, of equal ones the first, and that mean.
    fn choose_cost(&self, problem: &Problem<'_>) -> (f64, f64) {
        let config = &self.config;
        let folds = stratified(problem.positive, config.folds);
        let tasks: Vec<(usize, usize)> = (0..config.costs.len())
            .flat_map(|cost| (0..config.folds).map(move |fold| (cost, fold)))
            .collect();
        let precisions: Vec<f64> = tasks
            .par_iter()
            .map(|&(cost, fold)| {
                let split = |inside: bool| -> Vec<u32> {
                    let rows = (0u32..).zip(&folds);
                    rows.filter(|(_, f)| (**f == fold) == inside)
                        .map(|(row, _)| row)
                        .collect()
                };
                let machine = self
                    .solver(config.costs[cost])
                    .train(problem, &split(false));
                let ranked = split(true).into_iter().map(|row| {
                    let row = row as usize;
                    (machine.score(problem.row(row)), problem.positive[row])
                });
                stepwise(ranked.collect())
            })
            .collect();
        let means = precisions
            .chunks_exact(config.folds)
            .map(|fold| fold.iter().sum::<f64>() / config.folds as f64);
        let scored = config.costs.iter().copied().zip(means);
        let better = |best: (f64, f64), next: (f64, f64)| if next.1 > best.1 { next } else { best };
        scored.reduce(better).unwrap_or((1.0, 0.0))
    }

    /// Those that are chosen from.
    pub(crate) fn costs(&self) -> &[f64] {
        &self.config.costs
    }

    pub(crate) fn solver(&self, cost: f64) -> Solver {
        Solver {
            cost,
            positive_weight: self.config.positive_weight,
            tolerance: self.config.tolerance,
            max_passes: self.config.max_passes,
            seed: self.seed,
        }
    }
}

/// x / (|x| + 1e-5), row by row: VISSL's `normalize`.
pub(crate) fn normalised(features: &LayerFeatures) -> Vec<f32> {
    let mut values = features.values().to_vec();
    values.par_chunks_mut(features.dim()).for_each(|row| {
        let squares: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
        let scale = 1.0 / (squares.sqrt() + 1e-5);
        row.iter_mut()
            .for_each(|x| *x = (f64::from(*x) * scale) as f32);
    });
    values
}
