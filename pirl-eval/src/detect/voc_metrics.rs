//! Average precision as Pascal VOC defines it and detectron2 computes it, which is what PIRL reports.
//!
//! The rule is that of `detectron2/evaluation/pascal_voc_evaluation.py`, text files included: there
//! scores pass through three decimals and boxes through one, so they are rounded here too. Of
//! detections whose scores are then equal, those of earlier images and earlier in their image come
//! first; detectron2's sort leaves that open.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use pirl_data::Objects;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::boxes::BBox;
use super::detection::{Detection, check, mean};
use crate::error::Result;

/// IoU thresholds: 0.50, 0.55, ..., 0.95.
const THRESHOLDS: usize = 10;
/// Those of [`VocClass::ap50`] and [`VocClass::ap75`].
const AT_50: usize = 0;
const AT_75: usize = 5;

/// How a curve of precision and recall becomes a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DetectMetric {
    /// The mean of the highest precisions at recalls of at least 0, 0.1, ..., 1; that of VOC 2007.
    Voc2007,
    /// The area under the curve, made to fall; that of VOC from 2010 on.
    Area,
}

/// Average precisions in percent, each the mean over all classes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VocReport {
    /// The mean over the IoU thresholds 0.50, 0.55, ..., 0.95.
    pub ap: f64,
    /// At 0.50.
    pub ap50: f64,
    /// At 0.75.
    pub ap75: f64,
    /// By name.
    pub per_class: BTreeMap<String, VocClass>,
}

impl fmt::Display for VocReport {
    /// A table with a line for each class, and the means.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let longest = self.per_class.keys().map(String::len).max();
        let width = longest.unwrap_or(0).max("class".len());
        writeln!(f, "{:width$}  objects      AP    AP50    AP75", "class")?;
        for (name, class) in &self.per_class {
            writeln!(
                f,
                "{name:width$}  {:>7}  {:>6.2}  {:>6.2}  {:>6.2}",
                class.objects, class.ap, class.ap50, class.ap75
            )?;
        }
        let Self { ap, ap50, ap75, .. } = self;
        writeln!(
            f,
            "{:width$}  {:>7}  {ap:>6.2}  {ap50:>6.2}  {ap75:>6.2}",
            "all", ""
        )
    }
}

/// The average precisions of a class, in percent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VocClass {
    /// The mean over the IoU thresholds 0.50, 0.55, ..., 0.95.
    pub ap: f64,
    /// At 0.50.
    pub ap50: f64,
    /// At 0.75.
    pub ap75: f64,
    /// Annotated objects, those that are difficult not counted. Without any, all precisions are 0,
    /// and count in the means, as in detectron2.
    pub objects: usize,
    /// Detections.
    pub detections: usize,
    /// At the IoU threshold 0.50.
    #[serde(skip)]
    pub curve: PrecisionRecall,
}

/// Precision and recall of the first detection, the first two, and so on by falling score.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PrecisionRecall {
    /// The lowest score among those counted.
    pub scores: Vec<f64>,
    /// Share of the objects found, in `[0, 1]`; 0 when there are none.
    pub recall: Vec<f64>,
    /// Share of the detections that are right, in `[0, 1]`.
    pub precision: Vec<f64>,
}

/// The average precisions of the detections in each image against the annotated objects.
///
/// A detection counts as right if the object of its class with which its IoU is largest, and above
/// the threshold, was not found yet; as wrong if it was, or if there is none. One whose object is
/// difficult does not count at all. Boxes are taken as VOC's, whole pixels with both ends included,
/// so that sides are a pixel longer than the difference of their ends: the `+ 1` of an annotation
/// file, which `Objects` moved into `xmin` and `ymin`.
///
/// `detections` and `objects` have an entry for each image, in pixels of that image; `classes` are
/// the names that labels number.
///
/// # Errors
/// [`EvalError::Shape`](crate::EvalError::Shape) if the numbers of images differ, or a detection has
/// no such class or is not finite; [`EvalError::Label`](crate::EvalError::Label) for an object.
pub fn voc_metrics(
    detections: &[Vec<Detection>],
    objects: &[Objects],
    classes: &[String],
    metric: DetectMetric,
) -> Result<VocReport> {
    check(detections, objects, classes.len())?;
    let of_classes: Vec<VocClass> = (0..classes.len())
        .into_par_iter()
        .map(|label| one_class(detections, objects, label, metric))
        .collect();
    let over_classes = |ap: fn(&VocClass) -> f64| mean(of_classes.iter().map(ap));
    Ok(VocReport {
        ap: over_classes(|class| class.ap),
        ap50: over_classes(|class| class.ap50),
        ap75: over_classes(|class| class.ap75),
        per_class: classes.iter().cloned().zip(of_classes).collect(),
    })
}

fn one_class(
    detections: &[Vec<Detection>],
    objects: &[Objects],
    label: usize,
    metric: DetectMetric,
) -> VocClass {
    let candidates = candidates(detections, objects, label);
    let of_label = objects.iter().flat_map(|image| image.iter());
    let counted = of_label
        .filter(|&(_, of, difficult)| of as usize == label && !difficult)
        .count();
    let mut aps = [0.0; THRESHOLDS];
    let mut curve = PrecisionRecall::default();
    for (index, ap) in aps.iter_mut().enumerate() {
        let threshold = (50 + 5 * index) as f64 / 100.0;
        let at_threshold = precision_recall(&candidates, counted, threshold);
        *ap = 100.0 * average_precision(&at_threshold, metric);
        if index == AT_50 {
            curve = at_threshold;
        }
    }
    VocClass {
        ap: mean(aps.iter().copied()),
        ap50: aps[AT_50],
        ap75: aps[AT_75],
        objects: counted,
        detections: candidates.len(),
        curve,
    }
}

/// A detection and the object that it overlaps most.
struct Candidate {
    score: f64,
    nearest: Option<Nearest>,
}

#[derive(Clone, Copy)]
struct Nearest {
    iou: f64,
    /// Its image and its place there.
    object: (usize, usize),
    difficult: bool,
}

/// The detections of a class by falling score.
fn candidates(detections: &[Vec<Detection>], objects: &[Objects], label: usize) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    for (image, (found, objects)) in detections.iter().zip(objects).enumerate() {
        let of_label: Vec<_> = objects
            .iter()
            .enumerate()
            .filter(|&(_, (_, of, _))| of as usize == label)
            .map(|(at, (bbox, _, difficult))| (at, annotated(bbox), difficult))
            .collect();
        for found in found.iter().filter(|found| found.label == label) {
            let bbox = written(found.bbox);
            let mut nearest: Option<Nearest> = None;
            for &(at, object, difficult) in &of_label {
                let iou = iou(bbox, object);
                if nearest.is_none_or(|nearest| iou > nearest.iou) {
                    nearest = Some(Nearest {
                        iou,
                        object: (image, at),
                        difficult,
                    });
                }
            }
            candidates.push(Candidate {
                score: rounded(found.score, 1000.0),
                nearest,
            });
        }
    }
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
    candidates
}

fn precision_recall(candidates: &[Candidate], objects: usize, threshold: f64) -> PrecisionRecall {
    let mut found = HashSet::new();
    let (mut right, mut wrong) = (0usize, 0usize);
    let mut curve = PrecisionRecall::default();
    for candidate in candidates {
        match candidate.nearest {
            Some(nearest) if nearest.iou > threshold => {
                if !nearest.difficult {
                    if found.insert(nearest.object) {
                        right += 1;
                    } else {
                        wrong += 1;
                    }
                }
            }
            _ => wrong += 1,
        }
        // Before any that counts, a precision of 0.
        let precision = right as f64 / (right + wrong).max(1) as f64;
        curve.scores.push(candidate.score);
        curve.recall.push(right as f64 / objects.max(1) as f64);
        curve.precision.push(precision);
    }
    curve
}

fn average_precision(curve: &PrecisionRecall, metric: DetectMetric) -> f64 {
    // The highest precision at this recall or a higher one.
    let mut envelope = curve.precision.clone();
    for at in (1..envelope.len()).rev() {
        envelope[at - 1] = envelope[at - 1].max(envelope[at]);
    }
    match metric {
        DetectMetric::Voc2007 => {
            let at_least = |recall: f64| {
                let at = curve.recall.partition_point(|&r| r < recall);
                envelope.get(at).copied().unwrap_or(0.0)
            };
            // numpy.arange(0, 1.1, 0.1): 0.30000000000000004 is one of them.
            mean((0..11).map(|tenths| at_least(f64::from(tenths) * 0.1)))
        }
        DetectMetric::Area => {
            let mut area = 0.0;
            let mut before = 0.0;
            for (&recall, precision) in curve.recall.iter().zip(envelope) {
                area += (recall - before) * precision;
                before = recall;
            }
            area
        }
    }
}

/// A box as VOC's files count, from 1 and with both ends.
fn annotated([x0, y0, x1, y1]: BBox) -> [f64; 4] {
    [
        f64::from(x0) + 1.0,
        f64::from(y0) + 1.0,
        x1.into(),
        y1.into(),
    ]
}

/// The same of a detection, as detectron2 writes it into a file.
fn written([x0, y0, x1, y1]: BBox) -> [f64; 4] {
    [x0 + 1.0, y0 + 1.0, x1, y1].map(|x| rounded(x, 10.0))
}

/// To multiples of `1 / parts`, ties to even, as Python formats numbers. Exact: the product has
/// fewer digits than an `f64`.
fn rounded(x: f32, parts: f64) -> f64 {
    (f64::from(x) * parts).round_ties_even() / parts
}

/// Of boxes with both ends included.
fn iou(a: [f64; 4], b: [f64; 4]) -> f64 {
    let area = |[x0, y0, x1, y1]: [f64; 4]| (x1 - x0 + 1.0) * (y1 - y0 + 1.0);
    let w = (a[2].min(b[2]) - a[0].max(b[0]) + 1.0).max(0.0);
    let h = (a[3].min(b[3]) - a[1].max(b[1]) + 1.0).max(0.0);
    let common = w * h;
    if common > 0.0 {
        common / (area(a) + area(b) - common)
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(recall: &[f64], precision: &[f64]) -> PrecisionRecall {
        PrecisionRecall {
            scores: vec![0.5; recall.len()],
            recall: recall.to_vec(),
            precision: precision.to_vec(),
        }
    }

    #[test]
    fn both_averages_of_a_curve_done_by_hand() {
        // Right, wrong, right, of four objects.
        let found = curve(&[0.25, 0.25, 0.5], &[1.0, 0.5, 2.0 / 3.0]);
        let area = average_precision(&found, DetectMetric::Area);
        assert!((area - (0.25 + 0.25 * 2.0 / 3.0)).abs() < 1e-12);
        // Recalls 0, 0.1, 0.2 have precision 1; 0.3, 0.4, 0.5 have 2/3; the others none.
        let eleven = average_precision(&found, DetectMetric::Voc2007);
        assert!((eleven - (3.0 + 3.0 * 2.0 / 3.0) / 11.0).abs() < 1e-12);
        for metric in [DetectMetric::Area, DetectMetric::Voc2007] {
            assert_eq!(average_precision(&curve(&[], &[]), metric), 0.0);
            let perfect = average_precision(&curve(&[0.5, 1.0], &[1.0, 1.0]), metric);
            assert!((perfect - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn numbers_are_rounded_as_python_prints_them() {
        for (x, parts, want) in [
            (0.0005f32, 1000.0, 0.001), // above the decimal in single precision
            (0.0625, 1000.0, 0.062),
            (0.1875, 1000.0, 0.188),
            (12.25, 10.0, 12.2),
            (12.75, 10.0, 12.8),
            (-0.05, 10.0, -0.1),
            (99.95, 10.0, 99.9), // below the decimal in single precision
        ] {
            assert_eq!(rounded(x, parts), want, "{x}");
        }
    }
}
