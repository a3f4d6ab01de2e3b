//! How good the classifiers of a draw are.

use rayon::prelude::*;

use super::draw::{Draw, Targets};
use crate::error::Result;
use crate::feature_set::LayerFeatures;
use crate::knn::{Knn, Rows};
use crate::linear::{LinearProbe, Standardizer};
use crate::presence::Presence;
use crate::probe::{Labels, percent};
use crate::svm::{Problem, Svm, envelope, normalised};

/// What learns.
#[derive(Clone, Debug)]
pub(super) enum Method {
    Svm(Svm),
    /// With its steps, at least.
    Linear(LinearProbe, usize),
    Knn(Knn),
}

/// A cost, a learning rate or a number of neighbours, and how good it is: in percent.
#[derive(Clone, Copy)]
pub(super) struct Candidate {
    pub(super) setting: f64,
    pub(super) held_out: f64,
    pub(super) test: f64,
    /// Machines that were stopped before they were done.
    pub(super) unfinished: usize,
}

/// Trains on draws from one layer's features and tests.
pub(super) struct Judge<'a> {
    train: &'a LayerFeatures,
    test: &'a LayerFeatures,
    held_out: &'a [u32],
    prepared: Prepared<'a>,
}

/// What all draws share.
enum Prepared<'a> {
    /// With the normalised rows of both sets.
    Svm(&'a Svm, [Vec<f32>; 2], &'a Targets<'a>, usize),
    Linear(&'a LinearProbe, usize, Standardizer, &'a Labels),
    /// With the rows held out and those of the test.
    Knn(&'a Knn, [Rows<'a>; 2], &'a Labels),
}

/// What a machine says of the rows held out and of the test rows.
type Scores = [Vec<f64>; 2];

impl<'a> Judge<'a> {
    /// `None` if the method cannot learn from images of several classes.
    pub(super) fn new(
        method: &'a Method,
        (train, test): (&'a LayerFeatures, &'a LayerFeatures),
        (targets, classes): (&'a Targets<'a>, usize),
        held_out: &'a [u32],
    ) -> Option<Self> {
        let prepared = match (method, targets) {
            (Method::Svm(svm), _) => {
                let rows = [train, test].map(normalised);
                Prepared::Svm(svm, rows, targets, classes)
            }
            (Method::Linear(probe, steps), Targets::One(labels)) => {
                Prepared::Linear(probe, *steps, Standardizer::of(train), labels)
            }
            (Method::Knn(knn), Targets::One(labels)) => {
                let held_out = Rows::of(train, &labels.train, held_out.to_vec());
                let test = Rows::all(test, &labels.test);
                Prepared::Knn(knn, [held_out, test], labels)
            }
            (Method::Linear(..) | Method::Knn(_), Targets::Several(..)) => return None,
        };
        Some(Self {
            train,
            test,
            held_out,
            prepared,
        })
    }

    /// Trains on the images of a draw and measures, for each cost, rate or number of neighbours.
    pub(super) fn measure(&self, draw: &Draw) -> Result<Vec<Candidate>> {
        let candidate = |(setting, [held_out, test]): (f64, [f64; 2])| Candidate {
            setting,
            held_out,
            test,
            unfinished: 0,
        };
        let found = match &self.prepared {
            Prepared::Svm(svm, rows, targets, classes) => {
                let costs = svm.costs().iter();
                let of = |cost: &f64| {
                    let (scores, finished): (Vec<_>, Vec<bool>) = self
                        .scores((svm, *cost), rows, (targets, *classes), draw)
                        .into_iter()
                        .unzip();
                    Candidate {
                        unfinished: finished.iter().filter(|finished| !**finished).count(),
                        ..candidate((*cost, self.score(targets, &scores)))
                    }
                };
                return Ok(costs.map(of).collect());
            }
            Prepared::Linear(probe, steps, standardizer, labels) => {
                let sets = (self.train, self.test);
                let rows = (draw.of(0), self.held_out);
                probe.few(*steps, sets, standardizer, labels, rows)?
            }
            Prepared::Knn(knn, queries, labels) => {
                let bank = Rows::of(self.train, &labels.train, draw.of(0).to_vec());
                knn.few(&bank, queries, labels.classes)
            }
        };
        Ok(found.into_iter().map(candidate).collect())
    }

    /// For each class what its machine says of the rows held out and of the test rows, and whether it came within
    /// the tolerance.
    fn scores(
        &self,
        (svm, cost): (&Svm, f64),
        [train, test]: &[Vec<f32>; 2],
        (targets, classes): (&Targets<'_>, usize),
        draw: &Draw,
    ) -> Vec<(Scores, bool)> {
        let dim = self.train.dim();
        let of = |class: usize| {
            let positive: Vec<bool> = match targets {
                Targets::One(labels) => {
                    let labels = labels.train.iter();
                    labels.map(|label| *label as usize == class).collect()
                }
                Targets::Several(presence, _) => presence.of(class).map(|p| p == 1).collect(),
            };
            let problem = Problem {
                rows: train,
                dim,
                positive: &positive,
            };
            let machine = svm.solver(cost).train(&problem, draw.of(class));
            let held_out = self.held_out.iter();
            let held_out = held_out.map(|row| machine.score(problem.row(*row as usize)));
            let test = test.chunks_exact(dim).map(|row| machine.score(row));
            ([held_out.collect(), test.collect()], machine.finished)
        };
        (0..classes).into_par_iter().map(of).collect()
    }

    /// The measure on the rows held out and on the test rows, in percent.
    fn score(&self, targets: &Targets<'_>, scores: &[Scores]) -> [f64; 2] {
        match targets {
            Targets::One(labels) => {
                let held_out = self.held_out.iter();
                let held_out: Vec<u32> = held_out.map(|row| labels.train[*row as usize]).collect();
                [top1(scores, 0, &held_out), top1(scores, 1, &labels.test)]
            }
            Targets::Several(train, test) => {
                let every: Vec<u32> = (0..self.test.rows() as u32).collect();
                [
                    mean_average_precision(scores, 0, train, self.held_out),
                    mean_average_precision(scores, 1, test, &every),
                ]
            }
        }
    }
}

/// Share of rows whose own class has the highest score; of equal scores the lower class counts.
fn top1(scores: &[Scores], set: usize, labels: &[u32]) -> f64 {
    let right = labels.iter().enumerate().filter(|(row, label)| {
        let mut best = 0;
        for (class, of) in scores.iter().enumerate() {
            if of[set][*row] > scores[best][set][*row] {
                best = class;
            }
        }
        best == **label as usize
    });
    percent(right.count(), labels.len())
}

/// Over the classes that a row shows; a row with only difficult objects of a class is left out for it.
fn mean_average_precision(scores: &[Scores], set: usize, presence: &Presence, rows: &[u32]) -> f64 {
    let precisions = scores.iter().enumerate().filter_map(|(class, of)| {
        let presence: Vec<i8> = presence.of(class).collect();
        let of = rows.iter().zip(&of[set]);
        let ranked: Vec<(f64, bool)> = of
            .map(|(row, score)| (*score, presence[*row as usize]))
            .filter(|(_, presence)| *presence >= 0)
            .map(|(score, presence)| (score, presence == 1))
            .collect();
        let any = ranked.iter().any(|(_, positive)| *positive);
        any.then(|| 100.0 * envelope(ranked))
    });
    let precisions: Vec<f64> = precisions.collect();
    precisions.iter().sum::<f64>() / precisions.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use pirl_model::Layer;
    use serde_json::Value;

    use super::*;
    use crate::{KnnConfig, SvmConfig};

    const DIM: usize = 24;
    const CLASSES: usize = 4;
    const HELD_OUT: u32 = 50;
    const K: usize = 4;

    /// The twin of make_low_shot.py's `scores`.
    fn scores(seed: u32, rows: usize) -> (LayerFeatures, Vec<f64>) {
        let x = benches::fill(seed, rows * DIM);
        let noise = benches::fill(seed + 1, rows * CLASSES);
        let rows_of = x.chunks(DIM).zip(noise.chunks(CLASSES));
        let scores = rows_of.flat_map(|(x, noise)| {
            (0..CLASSES).map(move |class| {
                let [a, b, n] = [x[class], x[CLASSES + class], noise[class]].map(f64::from);
                a + 0.5 * b + 0.8 * n
            })
        });
        let scores = scores.collect();
        (
            LayerFeatures::new(Layer::RES5, rows, DIM, x).unwrap(),
            scores,
        )
    }

    fn highest(scores: &[f64]) -> Vec<u32> {
        let rows = scores.chunks(CLASSES);
        rows.map(|row| (0..4).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as u32)
            .collect()
    }

    fn presence(scores: &[f64]) -> Presence {
        let values = scores.iter().map(|score| {
            if (score - 0.7).abs() < 0.05 {
                -1
            } else {
                i8::from(*score > 0.7)
            }
        });
        Presence::new(CLASSES, values.collect()).unwrap()
    }

    /// The first rows after those held out that are of a class, or show it.
    fn first(of: impl Fn(usize) -> bool, count: usize) -> Vec<u32> {
        (HELD_OUT..300)
            .filter(|row| of(*row as usize))
            .take(count)
            .collect()
    }

    fn measured(method: &Method, targets: &Targets<'_>, mut draw: Draw) -> Vec<[f64; 2]> {
        match &mut draw {
            Draw::Shared(rows) => rows.sort_unstable(),
            Draw::PerClass(rows) => rows.iter_mut().for_each(|rows| rows.sort_unstable()),
        }
        let (train, test) = (scores(81, 300).0, scores(91, 200).0);
        let held_out: Vec<u32> = (0..HELD_OUT).collect();
        let judge = Judge::new(method, (&train, &test), (targets, CLASSES), &held_out).unwrap();
        let found = judge.measure(&draw).unwrap().into_iter();
        found.map(|found| [found.held_out, found.test]).collect()
    }

    #[test]
    fn a_few_labels_teach_what_they_teach_scikit_learn() {
        let golden = include_str!("../../tests/golden/low_shot.json");
        let golden: Value = serde_json::from_str(golden).unwrap();
        let equal = |key: &str, found: Vec<[f64; 2]>| {
            let expected: Vec<[f64; 2]> = serde_json::from_value(golden[key].clone()).unwrap();
            assert_eq!(found.len(), expected.len(), "{key}");
            for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
                // Two machines within their tolerance may order two images differently.
                assert!(
                    (found - expected).abs() < 0.05,
                    "{key}: {found}, not {expected}"
                );
            }
        };
        let svm = SvmConfig {
            costs: vec![0.1, 1.0, 10.0],
            tolerance: 1e-6,
            max_passes: 500_000,
            ..SvmConfig::default()
        };
        let svm = Method::Svm(Svm::new(svm, 0).unwrap());
        let knn = KnnConfig {
            k: vec![3, 200, 400],
            ..KnnConfig::default()
        };
        let knn = Method::Knn(Knn::new(knn, 0).unwrap());
        let (train, test) = (scores(81, 300).1, scores(91, 200).1);

        let labels = Labels {
            train: highest(&train),
            test: highest(&test),
            classes: CLASSES,
        };
        let rows: Vec<u32> = (0..CLASSES as u32)
            .flat_map(|class| first(|row| labels.train[row] == class, K))
            .collect();
        let one = Targets::One(labels);
        equal("one", measured(&svm, &one, Draw::Shared(rows.clone())));
        equal("neighbours", measured(&knn, &one, Draw::Shared(rows)));

        let (train, test) = (presence(&train), presence(&test));
        let rows = (0..CLASSES).map(|class| {
            let values: Vec<i8> = train.of(class).collect();
            let own = first(|row| values[row] == 1, K);
            [own, first(|row| values[row] == 0, K * (CLASSES - 1))].concat()
        });
        let rows = Draw::PerClass(rows.collect());
        let several = Targets::Several(&train, &test);
        equal("several", measured(&svm, &several, rows));
        assert!(
            Judge::new(
                &knn,
                (&scores(81, 9).0, &scores(91, 9).0),
                (&several, 4),
                &[]
            )
            .is_none()
        );
    }
}
