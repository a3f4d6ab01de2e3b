//! What a classifier takes for what: class by class, and whether its confidence is deserved.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::{EvalError, Result};
use crate::probe::percent;

/// Bins of the calibration; as Guo et al. (arXiv:1706.04599).
const BINS: usize = 15;

/// What a classifier said of one image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// The image's class, counted from 0.
    pub label: u32,
    /// The class it was taken for.
    pub predicted: u32,
    /// The probability of that class, in `(0, 1]`; `None` where a classifier has none.
    pub confidence: Option<f32>,
}

/// How a classifier judged the images of a test set, class by class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Classification {
    /// By name.
    pub per_class: BTreeMap<String, ClassAccuracy>,
    /// `None` of a classifier that gives no probabilities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// Which class was taken for which.
    #[serde(skip)]
    pub confusion: Confusion,
}

/// How well a class is told. In percent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ClassAccuracy {
    /// Share of its images that were taken for it, its accuracy; `None` if there are none.
    pub recall: Option<f64>,
    /// Share of the images taken for it that are of it; `None` if there are none.
    pub precision: Option<f64>,
    /// Its images.
    pub support: usize,
}

/// Whether the probability of the class that an image is taken for is the share of right ones.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Calibration {
    /// Expected calibration error in percent: the mean over images of the difference between confidence and
    /// accuracy of their bin (Guo et al., arXiv:1706.04599).
    pub ece: f64,
    /// Fifteen bins of equal width, without those that no image falls into.
    pub bins: Vec<CalibrationBin>,
}

/// The images of a range of confidences. In percent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CalibrationBin {
    /// Its lower end, which does not belong to it.
    pub above: f64,
    /// Its upper end, which does.
    pub up_to: f64,
    /// Images in it.
    pub images: usize,
    /// Their mean confidence.
    pub confidence: f64,
    /// Share of them that is right.
    pub accuracy: f64,
}

/// How many images of each class were taken for each class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    classes: Vec<String>,
    cells: Vec<ConfusionCell>,
}

/// Images of one class that were taken for one class; at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfusionCell {
    /// The class that they are of, counted from 0.
    pub class: usize,
    /// The class that they were taken for.
    pub predicted: usize,
    /// How many.
    pub images: usize,
}

impl Classification {
    /// Of the answers for a test set, with the names of the classes.
    ///
    /// # Errors
    /// [`EvalError::Label`] for a class without a name.
    pub fn new(predictions: &[Prediction], names: &[String]) -> Result<Self> {
        let classes = names.len();
        for (index, one) in predictions.iter().enumerate() {
            let label = one.label.max(one.predicted);
            if label as usize >= classes {
                return Err(EvalError::Label {
                    index,
                    label,
                    classes,
                });
            }
        }
        let mut counts: BTreeMap<(u32, u32), usize> = BTreeMap::new();
        let (mut support, mut taken) = (vec![0; names.len()], vec![0; names.len()]);
        let mut right = vec![0; names.len()];
        for Prediction {
            label, predicted, ..
        } in predictions
        {
            *counts.entry((*label, *predicted)).or_default() += 1;
            support[*label as usize] += 1;
            taken[*predicted as usize] += 1;
            right[*label as usize] += usize::from(label == predicted);
        }
        let share = |part: usize, whole: usize| (whole > 0).then(|| percent(part, whole));
        let per_class = names.iter().enumerate().map(|(class, name)| {
            let accuracy = ClassAccuracy {
                recall: share(right[class], support[class]),
                precision: share(right[class], taken[class]),
                support: support[class],
            };
            (name.clone(), accuracy)
        });
        let cells = counts.into_iter().map(|((class, predicted), images)| {
            let (class, predicted) = (class as usize, predicted as usize);
            ConfusionCell {
                class,
                predicted,
                images,
            }
        });
        Ok(Self {
            per_class: per_class.collect(),
            calibration: Calibration::of(predictions),
            confusion: Confusion {
                classes: names.to_vec(),
                cells: cells.collect(),
            },
        })
    }
}

/// Share of right ones, in percent.
pub(crate) fn share_right(predictions: &[Prediction]) -> f64 {
    let right = predictions.iter().filter(|one| one.label == one.predicted);
    percent(right.count(), predictions.len())
}

impl Calibration {
    /// `None` without predictions, or if one has no confidence.
    fn of(predictions: &[Prediction]) -> Option<Self> {
        let edge = |bin: usize| bin as f64 / BINS as f64;
        let mut sums = [(0usize, 0.0, 0usize); BINS];
        for prediction in predictions {
            let confidence = f64::from(prediction.confidence?);
            let bin = (1..BINS).filter(|bin| edge(*bin) < confidence).count();
            let (images, sum, right) = &mut sums[bin];
            *images += 1;
            *sum += confidence;
            *right += usize::from(prediction.label == prediction.predicted);
        }
        let bins = sums.iter().enumerate();
        let bins = bins.filter(|(_, (images, ..))| *images > 0);
        let bins = bins.map(|(bin, (images, sum, right))| CalibrationBin {
            above: 100.0 * edge(bin),
            up_to: 100.0 * edge(bin + 1),
            images: *images,
            confidence: 100.0 * sum / *images as f64,
            accuracy: percent(*right, *images),
        });
        let bins: Vec<CalibrationBin> = bins.collect();
        let gaps = bins
            .iter()
            .map(|bin| bin.images as f64 * (bin.confidence - bin.accuracy).abs());
        let ece = gaps.sum::<f64>() / predictions.len().max(1) as f64;
        (!bins.is_empty()).then_some(Self { ece, bins })
    }
}

impl Confusion {
    /// The names of the classes, by number.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// All that are not empty: by class, then by the class taken for it.
    pub fn cells(&self) -> &[ConfusionCell] {
        &self.cells
    }

    /// The pairs of different classes with the most images, at most `count` of them; of equal ones those of the
    /// lower class first.
    pub fn most_confused(&self, count: usize) -> Vec<ConfusionCell> {
        let wrong = self
            .cells
            .iter()
            .filter(|cell| cell.class != cell.predicted);
        let mut wrong: Vec<ConfusionCell> = wrong.copied().collect();
        wrong.sort_by_key(|cell| std::cmp::Reverse(cell.images));
        wrong.truncate(count);
        wrong
    }

    /// The whole matrix as CSV: a row for each class, a column for each class that its images were taken for,
    /// names at both ends.
    ///
    /// # Errors
    /// [`EvalError::Shape`] if a row cannot be written.
    pub fn to_csv(&self) -> Result<Vec<u8>> {
        let write = || -> std::result::Result<Vec<u8>, csv::Error> {
            let mut table = csv::Writer::from_writer(Vec::new());
            let names = self.classes.iter().map(String::as_str);
            table.write_record(["class"].into_iter().chain(names))?;
            let mut cells = self.cells.iter().peekable();
            for (class, name) in self.classes.iter().enumerate() {
                table.write_field(name)?;
                for predicted in 0..self.classes.len() {
                    let own =
                        |cell: &&ConfusionCell| (cell.class, cell.predicted) == (class, predicted);
                    let images = cells.next_if(own).map_or(0, |cell| cell.images);
                    table.write_field(images.to_string())?;
                }
                table.write_record(None::<&[u8]>)?;
            }
            table
                .into_inner()
                .map_err(|error| error.into_error().into())
        };
        write().map_err(|error| EvalError::Shape {
            what: "the confusion matrix".to_owned(),
            expected: "a table that CSV can hold".to_owned(),
            found: error.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::accuracy::Tally;

    const CLASSES: usize = 7;

    /// The twin of make_classification.py.
    fn classification() -> Classification {
        let rows = 400;
        let noise = benches::fill(33, rows * CLASSES);
        let mut tally = Tally::default();
        for (row, noise) in noise.chunks(CLASSES).enumerate() {
            // Nobody is of the last class, and the last but one is hardly ever found.
            let label = row * 7 % 11 % (CLASSES - 1);
            let mut z: Vec<f32> = noise.iter().map(|x| 3.0 * x).collect();
            z[label] += 1.5;
            z[CLASSES - 2] -= 20.0;
            tally.add(&z, label).unwrap();
        }
        let names: Vec<String> = (0..CLASSES).map(|class| format!("class {class}")).collect();
        tally.classification(&names).unwrap()
    }

    #[test]
    fn numbers_are_those_of_scikit_learn() {
        let golden = include_str!("../tests/golden/classification.json");
        let golden: Value = serde_json::from_str(golden).unwrap();
        let found = classification();
        let of = |key: &str| -> Vec<f64> { serde_json::from_value(golden[key].clone()).unwrap() };
        let near = |found: f64, expected: f64, what: &str| {
            assert!(
                (found - expected).abs() < 1e-3,
                "{what}: {found}, not {expected}"
            );
        };
        for (class, (name, own)) in found.per_class.iter().enumerate() {
            // scikit-learn says 0 where there is nothing to divide by.
            near(own.recall.unwrap_or(0.0), of("recall")[class], name);
            near(own.precision.unwrap_or(0.0), of("precision")[class], name);
            assert_eq!(own.support as f64, of("support")[class]);
        }
        assert_eq!(found.per_class["class 6"].recall, None);
        assert_eq!(found.per_class["class 5"].precision, None);
        let calibration = found.calibration.unwrap();
        near(calibration.ece, of("ece")[0], "ece");
        let (confidences, accuracies) = (of("confidences"), of("accuracies"));
        assert_eq!(calibration.bins.len(), confidences.len());
        for (place, bin) in calibration.bins.iter().enumerate() {
            near(bin.confidence, confidences[place], "confidence");
            near(bin.accuracy, accuracies[place], "accuracy");
            assert!(bin.above < bin.confidence && bin.confidence <= bin.up_to);
        }
        let csv = String::from_utf8(found.confusion.to_csv().unwrap()).unwrap();
        let matrix: Vec<Vec<usize>> = serde_json::from_value(golden["confusion"].clone()).unwrap();
        assert_eq!(csv.lines().count(), CLASSES + 1);
        for (class, (line, row)) in csv.lines().skip(1).zip(matrix).enumerate() {
            let numbers: Vec<String> = row.iter().map(usize::to_string).collect();
            assert_eq!(line, format!("class {class},{}", numbers.join(",")));
        }
    }

    #[test]
    fn the_most_confused_come_first_and_what_is_right_is_not_among_them() {
        let found = classification().confusion;
        let pairs = found.most_confused(1000);
        assert!(pairs.len() > 10);
        assert!(pairs.iter().all(|cell| cell.class != cell.predicted));
        assert!(pairs.windows(2).all(|two| two[0].images >= two[1].images));
        assert_eq!(found.most_confused(3), pairs[..3]);
        let all: usize = found.cells().iter().map(|cell| cell.images).sum();
        assert_eq!(all, 400);
    }

    #[test]
    fn a_name_with_a_comma_is_one_field_and_without_confidence_there_is_no_calibration() {
        let names = ["a, b", "c \"d\""].map(str::to_owned);
        let of = |label, predicted| Prediction {
            label,
            predicted,
            confidence: None,
        };
        let found = Classification::new(&[of(0, 1), of(0, 1), of(1, 1)], &names).unwrap();
        assert_eq!(found.calibration, None);
        let csv = String::from_utf8(found.confusion.to_csv().unwrap()).unwrap();
        assert_eq!(
            csv,
            "class,\"a, b\",\"c \"\"d\"\"\"\n\"a, b\",0,2\n\"c \"\"d\"\"\",0,1\n"
        );
        let none = Classification::new(&[], &names).unwrap();
        assert_eq!(none.calibration, None);
        for (label, predicted) in [(2, 0), (0, 2)] {
            let error = Classification::new(&[of(0, 0), of(label, predicted)], &names);
            let message = error.unwrap_err().to_string();
            assert!(message.contains("sample 1 has label 2"), "{message}");
        }
    }
}
