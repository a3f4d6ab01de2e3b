//! What low-shot evaluations report.

use std::collections::BTreeMap;

use pirl_model::Layer;
use serde::Serialize;

use super::config::{LowShotConfig, LowShotMethod};
use super::judge::Candidate;
use crate::feature_set::LayerFeatures;
use crate::pool::Pool;
use crate::probe::highest;
use crate::table::ReportTable;

/// The result of a low-shot evaluation: top-1 or mean average precision of the test set, in percent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LowShotReport {
    /// What learnt.
    pub method: LowShotMethod,
    /// What is measured: `top1`, or `map` where images may show several classes.
    pub metric: &'static str,
    /// Draws of labelled images.
    pub draws: usize,
    /// By labels of each class.
    pub shots: BTreeMap<usize, LowShotResult>,
    /// The numbers of labels that there are too few images for, and of which class.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub left_out: BTreeMap<usize, String>,
}

/// The result of one number of labels.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LowShotResult {
    /// The headline: the layer, the pooling and the setting that are best on the held-out training images.
    pub chosen: LowShotChoice,
    /// Those that are best on the test set, as published.
    pub best: LowShotChoice,
    /// The result of each layer.
    pub layers: BTreeMap<Layer, LowShotLayer>,
}

/// A layer, its pooling and a setting.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LowShotChoice {
    /// The layer; of equal ones the lowest.
    pub layer: Layer,
    /// How its maps are pooled, where there was a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<Pool>,
    /// Cost, learning rate or number of neighbours; of equal ones the first.
    pub setting: f64,
    /// The mean over the draws on the held-out training images.
    pub held_out: f64,
    /// Over the draws, on the test set.
    #[serde(flatten)]
    pub test: Spread,
}

/// The result of one number of labels at one layer, by the setting that is best on the held-out training
/// images.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LowShotLayer {
    /// How its maps were pooled, where there was a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<Pool>,
    /// Features of an image.
    pub dim: usize,
    /// As of [`LowShotChoice`].
    pub setting: f64,
    /// As of [`LowShotChoice`].
    pub held_out: f64,
    /// Over the draws, on the test set.
    #[serde(flatten)]
    pub test: Spread,
    /// Of each draw, on the test set.
    pub by_draw: Vec<f64>,
    /// Support vector machines of all draws that reached `eval.svm.max_passes` before the tolerance.
    pub unfinished: usize,
}

/// How a figure varies over draws.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Its mean.
    pub mean: f64,
    /// Its sample standard deviation; `None` of one draw.
    pub deviation: Option<f64>,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Self {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Self {
            mean,
            deviation: (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt()),
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }
}

/// The figures of every draw, as they come.
#[derive(Default)]
pub(super) struct Measured {
    shots: BTreeMap<usize, BTreeMap<Layer, Draws>>,
}

/// The candidates of each draw of a layer.
struct Draws {
    pool: Option<Pool>,
    dim: usize,
    candidates: Vec<Vec<Candidate>>,
}

/// A setting with its figures of all draws.
struct Setting {
    pool: Option<Pool>,
    setting: f64,
    held_out: f64,
    by_draw: Vec<f64>,
    unfinished: usize,
}

impl Setting {
    fn at(&self, layer: &Layer) -> LowShotChoice {
        LowShotChoice {
            layer: layer.clone(),
            pool: self.pool,
            setting: self.setting,
            held_out: self.held_out,
            test: Spread::of(&self.by_draw),
        }
    }
}

impl Draws {
    /// Each setting once; every draw has the same ones in the same order.
    fn settings(&self) -> Vec<Setting> {
        let first = self.candidates.iter().take(1).flatten().enumerate();
        let settings = first.map(|(place, candidate)| {
            let draws = self.candidates.iter().filter_map(|draw| draw.get(place));
            let unfinished = draws.clone().map(|found| found.unfinished).sum();
            let (held_out, by_draw): (Vec<f64>, Vec<f64>) =
                draws.map(|found| (found.held_out, found.test)).unzip();
            Setting {
                pool: self.pool,
                setting: candidate.setting,
                held_out: Spread::of(&held_out).mean,
                by_draw,
                unfinished,
            }
        });
        settings.collect()
    }
}

impl Measured {
    /// Adds the figures of a draw of `k` labels.
    pub(super) fn add(&mut self, k: usize, features: &LayerFeatures, found: Vec<Candidate>) {
        let layers = self.shots.entry(k).or_default();
        let draws = layers
            .entry(features.layer().clone())
            .or_insert_with(|| Draws {
                pool: features.pool(),
                dim: features.dim(),
                candidates: Vec::new(),
            });
        draws.candidates.push(found);
    }

    /// `None` without any figure.
    pub(super) fn report(
        &self,
        config: &LowShotConfig,
        metric: &'static str,
        left_out: BTreeMap<usize, String>,
    ) -> Option<LowShotReport> {
        let shots = self
            .shots
            .iter()
            .map(|(k, layers)| Some((*k, result(layers)?)));
        Some(LowShotReport {
            method: config.method,
            metric,
            draws: config.draws,
            shots: shots.collect::<Option<_>>()?,
            left_out,
        })
    }
}

fn result(layers: &BTreeMap<Layer, Draws>) -> Option<LowShotResult> {
    let settings: Vec<(&Layer, Setting)> = layers
        .iter()
        .flat_map(|(layer, draws)| draws.settings().into_iter().map(move |of| (layer, of)))
        .collect();
    let held_out = |(_, of): &&(&Layer, Setting)| Some(of.held_out);
    let test = |(_, of): &&(&Layer, Setting)| Some(Spread::of(&of.by_draw).mean);
    let (layer, chosen) = highest(settings.iter(), held_out)?;
    let (best_layer, best) = highest(settings.iter(), test)?;
    let rows = layers.iter().map(|(layer, draws)| {
        let settings = settings.iter().filter(|(of, _)| *of == layer);
        let (_, own) = highest(settings, held_out)?;
        let row = LowShotLayer {
            pool: draws.pool,
            dim: draws.dim,
            setting: own.setting,
            held_out: own.held_out,
            test: Spread::of(&own.by_draw),
            by_draw: own.by_draw.clone(),
            unfinished: own.unfinished,
        };
        Some((layer.clone(), row))
    });
    Some(LowShotResult {
        chosen: chosen.at(layer),
        best: best.at(best_layer),
        layers: rows.collect::<Option<_>>()?,
    })
}

/// Mean and deviation.
fn in_words(spread: &Spread) -> String {
    match spread.deviation {
        Some(deviation) => format!("{:.1} ± {deviation:.1}", spread.mean),
        None => format!("{:.1}", spread.mean),
    }
}

impl ReportTable for LowShotReport {
    fn heading(&self) -> String {
        let columns = self.shots.keys();
        columns
            .map(|k| format!("  {:>11}", format!("k = {k}")))
            .collect()
    }

    fn rows(&self) -> Vec<(&Layer, String)> {
        let first = self.shots.values().next();
        let layers = first.into_iter().flat_map(|result| result.layers.keys());
        let row = |layer: &Layer| {
            let cells = self.shots.values().filter_map(|of| of.layers.get(layer));
            cells
                .map(|of| format!("  {:>11}", in_words(&of.test)))
                .collect()
        };
        layers.map(|layer| (layer, row(layer))).collect()
    }

    fn headline(&self) -> String {
        let shots = self.shots.iter().map(|(k, LowShotResult { chosen, .. })| {
            format!("{} with {k} ({})", in_words(&chosen.test), chosen.layer)
        });
        let metric = match self.metric {
            "map" => "mAP",
            _ => "top-1",
        };
        let shots: Vec<String> = shots.collect();
        let layers = self.shots.values().flat_map(|of| of.layers.values());
        let unfinished: usize = layers.map(|of| of.unfinished).sum();
        let mut text = format!("{metric} in %, labels of each class: {}", shots.join(", "));
        if unfinished > 0 {
            text += &format!(
                "\n{unfinished} machines were stopped by eval.svm.max_passes before they were done"
            );
        }
        for (k, reason) in &self.left_out {
            text += &format!("\nwith {k}: left out, {reason}");
        }
        text
    }
}
