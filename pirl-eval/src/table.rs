//! Reports as text.

use pirl_model::Layer;

use crate::classification::Classification;

/// A report of probes as the rows of a table.
pub trait ReportTable {
    /// The columns after the layer's name.
    fn heading(&self) -> String;

    /// Each layer, with what stands below the heading.
    fn rows(&self) -> Vec<(&Layer, String)>;

    /// What was chosen and its accuracy, in words.
    fn headline(&self) -> String;

    /// What was chosen, class by class, of a single classifier.
    fn classification(&self) -> Option<&Classification> {
        None
    }
}

/// A choice with its accuracy on the test set and that on the held-out part of the training set, and
/// the accuracy of the last of `layers` beside it. Accuracies are in percent.
pub(crate) fn headline<'a>(
    choice: &str,
    top1: f64,
    held_out: Option<f64>,
    layers: impl Iterator<Item = (&'a Layer, f64)>,
) -> String {
    let mut text = format!("{choice}, {top1:.2}% top-1");
    if let Some(held_out) = held_out {
        text += &format!(" ({held_out:.2}% of the held-out training images)");
    }
    let layers: Vec<_> = layers.collect();
    if let [_, .., (last, top1)] = &layers[..] {
        text += &format!("; {last} alone {top1:.2}%");
    }
    text
}
