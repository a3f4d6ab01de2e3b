//! What linear probes report, and the choice of a learning rate.

use std::collections::BTreeMap;

use pirl_model::Layer;
use serde::Serialize;

use crate::accuracy::Tally;
use crate::probe::Best;

/// The result of linear probes. Accuracies are in percent of the test set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinearReport {
    /// The result of each layer.
    pub layers: BTreeMap<Layer, LayerReport>,
    /// The best layer.
    pub best: Best,
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
