//! Settings of low-shot evaluations.

use std::str::FromStr;

use pirl_core::{SettingError, check};
use pirl_model::ScheduleKind;
use serde::{Deserialize, Serialize};

use crate::linear::LinearConfig;
use crate::probe::check_held_out;

/// Settings of [`LowShot`](crate::LowShot).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LowShotConfig {
    /// What learns; support vector machines by default.
    pub method: LowShotMethod,
    /// Numbers of labels of each class; 1, 2, 4, 8, 16, 32, 64 and 96 by default, as published.
    pub shots: Vec<usize>,
    /// Independent draws of the labelled images; 5 by default, as published.
    pub draws: usize,
    /// Part of the training set that nothing is drawn from and that cost, rate or neighbours and the layer are
    /// chosen by, in `(0, 1)`; a tenth by default.
    pub held_out: f64,
    /// Learning rates that linear classifiers try in one pass; 0.001, 0.01 and 0.1 by default.
    pub lrs: Vec<f64>,
    /// Steps of linear classifiers, at least; 500 by default. Passes over the labels are those of
    /// `eval.linear.epochs` where these are more steps.
    pub steps: usize,
}

/// What learns from a few labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LowShotMethod {
    /// One-versus-rest linear support vector machines, by the settings `eval.svm`.
    #[default]
    Svm,
    /// Softmax regression, by the settings `eval.linear` but for rates and schedule, which is a cosine.
    /// Features are standardised by all training images, which takes no labels.
    Linear,
    /// Weighted nearest neighbours, by the settings `eval.knn`; of fewer images than `k` all vote.
    Knn,
}

impl LowShotMethod {
    /// Every one of them.
    pub const ALL: [Self; 3] = [Self::Svm, Self::Linear, Self::Knn];

    /// As settings and [`FromStr`] have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Svm => "svm",
            Self::Linear => "linear",
            Self::Knn => "knn",
        }
    }
}

impl FromStr for LowShotMethod {
    type Err = SettingError;

    fn from_str(name: &str) -> Result<Self, SettingError> {
        let mut all = Self::ALL.into_iter();
        let found = all.find(|method| method.name() == name);
        found.ok_or_else(|| SettingError::new("method", name, "must be svm, linear or knn"))
    }
}

impl Default for LowShotConfig {
    fn default() -> Self {
        Self {
            method: LowShotMethod::Svm,
            shots: vec![1, 2, 4, 8, 16, 32, 64, 96],
            draws: 5,
            held_out: 0.1,
            lrs: vec![0.001, 0.01, 0.1],
            steps: 500,
        }
    }
}

impl LowShotConfig {
    /// # Errors
    /// Names the first field whose value cannot work.
    pub fn check(&self) -> Result<(), SettingError> {
        let shots = &self.shots;
        let fits = !shots.is_empty() && shots.iter().all(|k| *k > 0);
        let found = format!("{shots:?}");
        check(
            "shots",
            found,
            fits,
            "must be one or more numbers of at least 1",
        )?;
        for (field, value) in [("draws", self.draws), ("steps", self.steps)] {
            check(field, value, value > 0, "must be at least 1")?;
        }
        let lrs = &self.lrs;
        let fits = !lrs.is_empty() && lrs.iter().all(|lr| *lr > 0.0 && lr.is_finite());
        let found = format!("{lrs:?}");
        check("lrs", found, fits, "must be one or more numbers above 0")?;
        check_held_out(self.held_out)
    }

    /// An error unless the method can learn from images of several classes.
    pub(super) fn check_several(&self) -> Result<(), SettingError> {
        check(
            "method",
            self.method.name(),
            self.method == LowShotMethod::Svm,
            "must be svm, since the images of these packs may show several classes",
        )
    }

    /// The settings of linear classifiers, of which `epochs` are those of enough labels.
    pub(super) fn linear(&self, of: &LinearConfig) -> LinearConfig {
        LinearConfig {
            lrs: self.lrs.clone(),
            schedule: ScheduleKind::Cosine,
            ..of.clone()
        }
    }
}
