//! Classifiers of frozen features that learn from a few labels of each class.
//!
//! The protocol is VISSL's and that of Goyal et al. (arXiv:1905.01235, section 6.2): for each number of
//! labels k, several draws of k images of each class; the mean over the draws is reported with its deviation.
//! Where images show several classes, k images that show a class and (classes - 1) k that do not are drawn for
//! each class of its own. Two differences: VISSL picks the cost that is best on the test set, here that is
//! `best`, and `chosen` is chosen on training images that no draw takes from; and the images of a smaller k are
//! among those of a larger one of the same draw, so that a curve rises by labels alone.

mod config;
mod draw;
mod judge;
mod report;

pub use config::{LowShotConfig, LowShotMethod};
pub use report::{LowShotChoice, LowShotLayer, LowShotReport, LowShotResult, Spread};

use std::collections::BTreeMap;

use crate::EvalConfig;
use crate::error::{EvalError, Result};
use crate::feature_set::FeatureSet;
use crate::knn::Knn;
use crate::linear::LinearProbe;
use crate::presence::Presence;
use crate::probe::{Probe, comparable, hold_out, same_layers};
use crate::svm::Svm;

use draw::{Pool, Targets};
use judge::{Judge, Method};
use report::Measured;

/// Support vector machines, linear classifiers or nearest neighbours that learn from a few labels of each
/// class, on every layer of frozen features.
#[derive(Clone, Debug)]
pub struct LowShot {
    config: LowShotConfig,
    method: Method,
    seed: u64,
    presence: Option<(Presence, Presence)>,
}

impl LowShot {
    /// By the settings `eval.low_shot`, and of the method those of its own table. All chance (the part held
    /// out, the draws, the order of training) comes from `seed`.
    ///
    /// # Errors
    /// [`EvalError::Setting`] as [`LowShotConfig::check`] and the method's.
    pub fn new(eval: &EvalConfig, seed: u64) -> Result<Self> {
        let config = eval.low_shot.clone();
        config.check()?;
        let method = match config.method {
            LowShotMethod::Svm => Method::Svm(Svm::new(eval.svm.clone(), seed)?),
            LowShotMethod::Linear => {
                let probe = LinearProbe::new(config.linear(&eval.linear), seed)?;
                Method::Linear(probe, config.steps)
            }
            LowShotMethod::Knn => Method::Knn(Knn::new(eval.knn.clone(), seed)?),
        };
        Ok(Self {
            config,
            method,
            seed,
            presence: None,
        })
    }

    /// For images that show any number of classes: of the training and of the test images. The measure is then
    /// mean average precision, and the method must be support vector machines.
    ///
    /// # Errors
    /// [`EvalError::Setting`] for another method.
    pub fn with_presence(mut self, train: Presence, test: Presence) -> Result<Self> {
        self.config.check_several()?;
        self.presence = Some((train, test));
        Ok(self)
    }

    fn targets<'a>(&'a self, train: &FeatureSet, test: &FeatureSet) -> Result<Targets<'a>> {
        match &self.presence {
            None => Ok(Targets::One(comparable(train, test)?)),
            Some((train_presence, test_presence)) => {
                self.config.check_several()?;
                same_layers(train, test)?;
                train_presence.check("training", train, 1)?;
                test_presence.check("test", test, 1)?;
                Ok(Targets::Several(train_presence, test_presence))
            }
        }
    }
}

impl Probe for LowShot {
    type Report = LowShotReport;

    /// Numbers of labels that a class has not enough images for are left out, and the report says which class
    /// it is. Adds [`EvalError::NoPositives`] if that is so of all numbers; [`EvalError::Diverged`].
    fn evaluate(
        &self,
        train: &FeatureSet,
        test: &FeatureSet,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<LowShotReport> {
        let targets = self.targets(train, test)?;
        let names = train.class_names();
        let (mut pool, held_out) = hold_out(train.labels().len(), self.config.held_out, self.seed)?;
        pool.sort_unstable();
        let pool = Pool::new(&targets, names.len(), pool, self.seed);
        let mut shots = self.config.shots.clone();
        shots.sort_unstable();
        shots.dedup();
        let mut left_out = BTreeMap::new();
        shots.retain(|k| match pool.lacks(names, *k) {
            Some(reason) => left_out.insert(*k, reason).is_some(),
            None => true,
        });
        if shots.is_empty() {
            let least = self.config.shots.iter().min().copied().unwrap_or(1);
            return Err(pool.too_few(names, least));
        }
        let none = || EvalError::Layers {
            train: train.describe(),
            test: test.describe(),
        };
        let total = train.layers().len() * shots.len() * self.config.draws;
        let (mut done, mut measured) = (0, Measured::default());
        for (train, test) in train.layers().iter().zip(test.layers()) {
            let of = (&targets, names.len());
            let judge = Judge::new(&self.method, (train, test), of, &held_out);
            let judge = judge.ok_or_else(none)?;
            for k in &shots {
                for draw in 0..self.config.draws {
                    let found = judge.measure(&pool.draw(*k, draw))?;
                    measured.add(*k, train, found);
                    done += 1;
                    progress(done, total);
                }
            }
        }
        let metric = match self.presence {
            Some(_) => "map",
            None => "top1",
        };
        let report = measured.report(&self.config, metric, left_out);
        report.ok_or_else(none)
    }
}
