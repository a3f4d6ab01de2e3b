//! What linear probes report, and the choice of a learning rate.

use std::collections::BTreeMap;

use pirl_model::Layer;
use serde::Serialize;

use super::config::Select;
use crate::accuracy::Tally;
use crate::classification::Classification;
use crate::error::{EvalError, Result};
use crate::pool::Pool;
use crate::probe::{Best, highest};
use crate::table::{ReportTable, headline};

/// The result of linear probes. Accuracies are in percent, of the test set unless they are called held
/// out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinearReport {
    /// The headline: the layer, the pooling and the learning rate that are most accurate on the held-out part of the
    /// training set, with their accuracy on the test set; with [`Select::Test`] those most accurate
    /// there. `None` for [random crops](crate::RandomCropProbe) of several layers and one rate, which
    /// hold nothing out.
    pub chosen: Option<LinearChoice>,
    /// The result of each layer.
    pub layers: BTreeMap<Layer, LayerReport>,
    /// The layer with the highest accuracy on the test set.
    pub best: Best,
    /// The headline's classifier, class by class.
    #[serde(flatten)]
    pub classification: Classification,
}

impl LinearReport {
    /// Of each layer with its classifier's tally of the test set.
    pub(super) fn new(
        layers: BTreeMap<Layer, (LayerReport, Tally)>,
        select: Select,
        names: &[String],
    ) -> Result<Self> {
        let none = || EvalError::Layers {
            train: "of no layer".to_owned(),
            test: "of no layer".to_owned(),
        };
        let (layers, tallies): (BTreeMap<Layer, LayerReport>, BTreeMap<Layer, Tally>) = layers
            .into_iter()
            .map(|(layer, (row, tally))| ((layer.clone(), row), (layer, tally)))
            .unzip();
        let best = Best::of(layers.iter().map(|(layer, row)| (layer.clone(), row.top1)));
        let best = best.ok_or_else(none)?;
        let by_test = layers
            .get_key_value(&best.layer)
            .filter(|_| select == Select::Test);
        let chosen = highest(layers.iter(), |(_, row)| row.held_out).or(by_test);
        let chosen = chosen.map(|(layer, row)| LinearChoice {
            layer: layer.clone(),
            pool: row.pool,
            lr: row.lr,
            held_out: row.held_out,
            top1: row.top1,
        });
        let headline = chosen.as_ref().map_or(&best.layer, |chosen| &chosen.layer);
        let tally = tallies.get(headline).ok_or_else(none)?;
        Ok(Self {
            classification: tally.classification(names)?,
            chosen,
            layers,
            best,
        })
    }
}

/// What linear probes chose.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinearChoice {
    /// The layer; of equal ones the lowest.
    pub layer: Layer,
    /// How its maps are pooled, where there was a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<Pool>,
    /// The learning rate; of equally good ones the first.
    pub lr: f64,
    /// The accuracy that all were chosen by; `None` with [`Select::Test`], or if there was nothing to
    /// choose.
    pub held_out: Option<f64>,
    /// Accuracy on the test set.
    pub top1: f64,
}

/// The linear probe of one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerReport {
    /// Share of test images whose right class is predicted first, in percent.
    pub top1: f64,
    /// Share of test images whose right class is among the first five, in percent.
    pub top5: f64,
    /// The learning rate chosen.
    pub lr: f64,
    /// Its accuracy on the held-out part of the training set, in percent; `None` if none was held out.
    pub held_out: Option<f64>,
    /// How its maps were pooled, where there was a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<Pool>,
    /// Features of an image.
    pub dim: usize,
    /// The accuracies that the rate was chosen by, one for each learning rate; empty if there was only
    /// one rate.
    pub rates: Vec<RateReport>,
}

/// The accuracy of one learning rate on the data that the choice is made by.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RateReport {
    /// The learning rate.
    pub lr: f64,
    /// Accuracy on the held-out part ([`Select::Validation`](crate::Select::Validation)) or the test set, in percent.
    pub top1: f64,
}

/// Pairs learning rates with their accuracies; that of a diverged one is 0.
pub(super) fn rates(lrs: &[f64], tallies: &[Option<Tally>]) -> Vec<RateReport> {
    let top1 = |tally: &Option<Tally>| tally.as_ref().map_or(0.0, Tally::top1);
    lrs.iter()
        .zip(tallies)
        .map(|(lr, a)| RateReport {
            lr: *lr,
            top1: top1(a),
        })
        .collect()
}

/// The rate with the highest accuracy; of equal ones the first. `None` without any rate.
pub(super) fn choose(rates: &[RateReport]) -> Option<RateReport> {
    let better =
        |best: RateReport, next: RateReport| if next.top1 > best.top1 { next } else { best };
    rates.iter().copied().reduce(better)
}

impl ReportTable for LinearReport {
    fn heading(&self) -> String {
        "  features   top-1   top-5  learning rate".to_owned()
    }

    fn rows(&self) -> Vec<(&Layer, String)> {
        let row = |row: &LayerReport| {
            let LayerReport {
                dim,
                top1,
                top5,
                lr,
                ..
            } = row;
            format!("  {dim:>8}  {top1:>6.2}  {top5:>6.2}  {lr:>13}")
        };
        let layers = self.layers.iter();
        layers.map(|(layer, found)| (layer, row(found))).collect()
    }

    fn classification(&self) -> Option<&Classification> {
        Some(&self.classification)
    }

    fn headline(&self) -> String {
        let layers = self.layers.iter().map(|(layer, row)| (layer, row.top1));
        match &self.chosen {
            Some(LinearChoice {
                layer,
                lr,
                held_out,
                top1,
                ..
            }) => headline(
                &format!("{layer} at learning rate {lr}"),
                *top1,
                *held_out,
                layers,
            ),
            None => {
                let Best { layer, top1 } = &self.best;
                headline(
                    &format!("{layer}, the best on the test set"),
                    *top1,
                    None,
                    layers,
                )
            }
        }
    }
}
