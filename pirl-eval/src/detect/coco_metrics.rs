//! COCO's average precision and recall of boxes, as pycocotools computes them.
//!
//! Unlike VOC's, a detection may match any object above the threshold that is still free, precision
//! is read at 101 recalls, and objects are also evaluated by size.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use pirl_data::Objects;
use rayon::prelude::*;
use serde::Serialize;

use super::detection::{Detection, check, mean};
use crate::error::Result;

/// IoU thresholds: 0.50, 0.55, ..., 0.95.
const THRESHOLDS: usize = 10;
const AT_50: usize = 0;
const AT_75: usize = 5;
/// Recalls at which precision is read: 0, 0.01, ..., 1.
const RECALLS: usize = 101;
/// Detections of a class that count in an image, by falling score.
const MAX_DETECTIONS: usize = 100;
/// All, small, medium and large objects by their areas in square pixels; pycocotools' `areaRng`.
const AREAS: [RangeInclusive<f64>; 4] = [0.0..=1e10, 0.0..=1024.0, 1024.0..=9216.0, 9216.0..=1e10];
const ALL: usize = 0;

/// COCO's twelve numbers in percent, each the mean over the classes with objects that count; none if
/// no class has any (where pycocotools has -1).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CocoReport {
    /// Average precision over the IoU thresholds 0.50, 0.55, ..., 0.95.
    pub ap: Option<f64>,
    /// At 0.50.
    pub ap50: Option<f64>,
    /// At 0.75.
    pub ap75: Option<f64>,
    /// Of objects of at most 32x32 pixels.
    pub ap_small: Option<f64>,
    /// Of objects between the two.
    pub ap_medium: Option<f64>,
    /// Of objects of at least 96x96 pixels.
    pub ap_large: Option<f64>,
    /// Average recall over the thresholds with the best detection of each class in an image.
    pub ar1: Option<f64>,
    /// With the best ten.
    pub ar10: Option<f64>,
    /// With the best hundred.
    pub ar100: Option<f64>,
    /// The last, of objects of at most 32x32 pixels.
    pub ar_small: Option<f64>,
    /// Of objects between the two.
    pub ar_medium: Option<f64>,
    /// Of objects of at least 96x96 pixels.
    pub ar_large: Option<f64>,
    /// `ap` of each class by name.
    pub per_class: BTreeMap<String, Option<f64>>,
}

impl CocoReport {
    /// The twelve numbers in pycocotools' order.
    pub fn statistics(&self) -> [Option<f64>; 12] {
        [
            self.ap,
            self.ap50,
            self.ap75,
            self.ap_small,
            self.ap_medium,
            self.ap_large,
            self.ar1,
            self.ar10,
            self.ar100,
            self.ar_small,
            self.ar_medium,
            self.ar_large,
        ]
    }
}

impl fmt::Display for CocoReport {
    /// COCO's twelve numbers in two lines; `-` where no object counts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const PRECISION: [&str; 6] = ["AP", "AP50", "AP75", "small", "medium", "large"];
        const RECALL: [&str; 6] = ["of the best", "of 10", "of 100", "small", "medium", "large"];
        let row = |names: [&str; 6], values: &[Option<f64>]| {
            let column = |(name, value): (&str, &Option<f64>)| match value {
                Some(value) => format!("{name} {value:.2}"),
                None => format!("{name} -"),
            };
            let columns: Vec<String> = names.into_iter().zip(values).map(column).collect();
            columns.join(", ")
        };
        let statistics = self.statistics();
        let (precision, recall) = statistics.split_at(PRECISION.len());
        writeln!(f, "COCO precision: {}", row(PRECISION, precision))?;
        write!(f, "COCO recall: {}", row(RECALL, recall))
    }
}

/// The average precisions and recalls of the detections in each image against the annotated objects.
///
/// An object that is difficult is taken as what COCO calls a crowd: it does not count, any number of
/// detections may match it, and the overlap is measured against the detection's area alone.
/// The area of an object is that of its box. Arguments and errors as for
/// [`voc_metrics`](super::voc_metrics()).
///
/// # Errors
/// As [`voc_metrics`](super::voc_metrics()).
pub fn coco_metrics(
    detections: &[Vec<Detection>],
    objects: &[Objects],
    classes: &[String],
) -> Result<CocoReport> {
    check(detections, objects, classes.len())?;
    let of_classes: Vec<Class> = (0..classes.len())
        .into_par_iter()
        .map(|label| Class::new(detections, objects, label))
        .collect();
    let precision = |area: usize, thresholds: &[usize]| {
        over_classes(
            of_classes.iter().map(|class| &class.precision[area]),
            thresholds,
        )
    };
    let all: Vec<usize> = (0..THRESHOLDS).collect();
    let recall = |recalls: fn(&Class) -> &Curve| over_classes(of_classes.iter().map(recalls), &all);
    Ok(CocoReport {
        ap: precision(ALL, &all),
        ap50: precision(ALL, &[AT_50]),
        ap75: precision(ALL, &[AT_75]),
        ap_small: precision(1, &all),
        ap_medium: precision(2, &all),
        ap_large: precision(3, &all),
        ar1: recall(|class| &class.recall_of_first[0]),
        ar10: recall(|class| &class.recall_of_first[1]),
        ar100: recall(|class| &class.recall[ALL]),
        ar_small: recall(|class| &class.recall[1]),
        ar_medium: recall(|class| &class.recall[2]),
        ar_large: recall(|class| &class.recall[3]),
        per_class: classes
            .iter()
            .cloned()
            .zip(&of_classes)
            .map(|(name, class)| {
                (
                    name,
                    over_classes([&class.precision[ALL]].into_iter(), &all),
                )
            })
            .collect(),
    })
}

/// A number for each threshold; none without objects that count.
type Curve = Option<[f64; THRESHOLDS]>;

fn over_classes<'a>(curves: impl Iterator<Item = &'a Curve>, thresholds: &[usize]) -> Option<f64> {
    let values: Vec<f64> = curves
        .flatten()
        .map(|curve| 100.0 * mean(thresholds.iter().map(|&t| curve[t])))
        .collect();
    (!values.is_empty()).then(|| mean(values.into_iter()))
}

/// The results of a class, by area.
struct Class {
    precision: [Curve; 4],
    recall: [Curve; 4],
    /// Of the first 1 and the first 10 detections of an image; all areas.
    recall_of_first: [Curve; 2],
}

impl Class {
    fn new(detections: &[Vec<Detection>], objects: &[Objects], label: usize) -> Self {
        let images: Vec<Image> = detections
            .iter()
            .zip(objects)
            .map(|(found, objects)| Image::new(found, objects, label))
            .collect();
        let by_area = AREAS.map(|area| evaluate(&images, &area, MAX_DETECTIONS));
        let recall_of_first = [1, 10].map(|most| evaluate(&images, &AREAS[ALL], most).1);
        Self {
            precision: by_area.map(|(precision, _)| precision),
            recall: by_area.map(|(_, recall)| recall),
            recall_of_first,
        }
    }
}

/// What an image has of one class.
struct Image {
    /// By falling score.
    found: Vec<Found>,
    objects: Vec<Object>,
}

struct Found {
    score: f32,
    area: f64,
    /// Overlap with each object.
    overlaps: Vec<f64>,
}

struct Object {
    area: f64,
    crowd: bool,
}

impl Image {
    fn new(found: &[Detection], objects: &Objects, label: usize) -> Self {
        let objects: Vec<_> = objects
            .iter()
            .filter(|&(_, of, _)| of as usize == label)
            .map(|(bbox, _, crowd)| (bbox.map(f64::from), crowd))
            .collect();
        let mut found: Vec<&Detection> = found.iter().filter(|f| f.label == label).collect();
        found.sort_by(|a, b| falling(a.score, b.score));
        found.truncate(MAX_DETECTIONS);
        let found = found.into_iter().map(|found| {
            let bbox = found.bbox.map(f64::from);
            Found {
                score: found.score,
                area: area(bbox),
                overlaps: objects
                    .iter()
                    .map(|&(o, crowd)| overlap(bbox, o, crowd))
                    .collect(),
            }
        });
        Self {
            found: found.collect(),
            objects: objects
                .iter()
                .map(|&(bbox, crowd)| Object {
                    area: area(bbox),
                    crowd,
                })
                .collect(),
        }
    }
}

/// Precision (the mean over the recalls) and recall at each threshold, of the objects with an area
/// in `areas` and the first `most` detections of each image.
fn evaluate(images: &[Image], areas: &RangeInclusive<f64>, most: usize) -> (Curve, Curve) {
    let counts = |object: &Object| !object.crowd && areas.contains(&object.area);
    let objects = images.iter().flat_map(|image| &image.objects);
    let counted = objects.filter(|object| counts(object)).count();
    if counted == 0 {
        return (None, None);
    }
    let (mut precision, mut recall) = ([0.0; THRESHOLDS], [0.0; THRESHOLDS]);
    for threshold in 0..THRESHOLDS {
        let iou = 0.5 + threshold as f64 * ((0.95 - 0.5) / 9.0); // numpy.linspace(0.5, 0.95, 10)
        let mut outcomes = Vec::new();
        for image in images {
            add_outcomes(image, areas, most, iou, &mut outcomes);
        }
        outcomes.sort_by(|(a, _), (b, _)| falling(*a, *b));
        (precision[threshold], recall[threshold]) = average(&outcomes, counted);
    }
    (Some(precision), Some(recall))
}

#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    Right,
    Wrong,
    Ignored,
}

/// Adds the outcome of each detection of an image, best first, with its score.
fn add_outcomes(
    image: &Image,
    areas: &RangeInclusive<f64>,
    most: usize,
    threshold: f64,
    outcomes: &mut Vec<(f32, Outcome)>,
) {
    let ignored = |object: &Object| object.crowd || !areas.contains(&object.area);
    // Those that count are tried first.
    let mut order: Vec<usize> = (0..image.objects.len()).collect();
    order.sort_by_key(|&at| ignored(&image.objects[at]));
    let mut taken = vec![false; image.objects.len()];
    for found in image.found.iter().take(most) {
        let mut best: Option<usize> = None;
        let mut least = threshold.min(1.0 - 1e-10);
        for &at in &order {
            let object = &image.objects[at];
            if taken[at] && !object.crowd {
                continue;
            }
            if ignored(object) && best.is_some_and(|best| !ignored(&image.objects[best])) {
                break;
            }
            if found.overlaps[at] >= least {
                (least, best) = (found.overlaps[at], Some(at));
            }
        }
        let outcome = match best {
            Some(at) => {
                taken[at] = true;
                if ignored(&image.objects[at]) {
                    Outcome::Ignored
                } else {
                    Outcome::Right
                }
            }
            None if areas.contains(&found.area) => Outcome::Wrong,
            None => Outcome::Ignored,
        };
        outcomes.push((found.score, outcome));
    }
}

/// Mean precision over the recalls, and the highest recall, of outcomes by falling score.
fn average(outcomes: &[(f32, Outcome)], objects: usize) -> (f64, f64) {
    let (mut right, mut wrong) = (0usize, 0usize);
    let (mut precision, mut recall) = (Vec::new(), Vec::new());
    for &(_, outcome) in outcomes {
        match outcome {
            Outcome::Right => right += 1,
            Outcome::Wrong => wrong += 1,
            Outcome::Ignored => {}
        }
        precision.push(right as f64 / ((right + wrong) as f64 + f64::EPSILON));
        recall.push(right as f64 / objects as f64);
    }
    for at in (1..precision.len()).rev() {
        precision[at - 1] = precision[at - 1].max(precision[at]);
    }
    let at_recall = |hundredths: usize| {
        let wanted = if hundredths == RECALLS - 1 {
            1.0
        } else {
            hundredths as f64 * 0.01
        };
        let at = recall.partition_point(|&r| r < wanted);
        precision.get(at).copied().unwrap_or(0.0)
    };
    let highest = recall.last().copied().unwrap_or(0.0);
    (mean((0..RECALLS).map(at_recall)), highest)
}

fn falling(a: f32, b: f32) -> Ordering {
    b.total_cmp(&a)
}

fn area([x0, y0, x1, y1]: [f64; 4]) -> f64 {
    (x1 - x0) * (y1 - y0)
}

fn overlap(found: [f64; 4], object: [f64; 4], crowd: bool) -> f64 {
    let w = found[2].min(object[2]) - found[0].max(object[0]);
    let h = found[3].min(object[3]) - found[1].max(object[1]);
    if w <= 0.0 || h <= 0.0 {
        return 0.0;
    }
    let common = w * h;
    let union = if crowd {
        area(found)
    } else {
        area(found) + area(object) - common
    };
    common / union
}
