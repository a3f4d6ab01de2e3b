//! Settings of linear probes.

use pirl_core::{SettingError, check};
use pirl_model::{Schedule, ScheduleConfig, ScheduleKind};
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::probe::check_held_out;

/// Settings of [`LinearProbe`](crate::LinearProbe) and [`RandomCropProbe`](crate::RandomCropProbe).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LinearConfig {
    /// Which views of the training images are used; the plain view of each by default.
    pub crops: Crops,
    /// Passes over the training images; 28 by default.
    pub epochs: usize,
    /// Images in a step; 256 by default. On plain views the last step of an epoch takes the images left
    /// over; on random crops they are not used in it.
    pub batch_size: usize,
    /// Learning rates tried in one pass; 0.01 by default, VISSL's for a batch of 256.
    pub lrs: Vec<f64>,
    /// How they fall: `multi-step` (x `gamma` after each milestone; the default), `cosine` (to
    /// zero) or `constant`.
    pub schedule: ScheduleKind,
    /// Epochs after which a `multi-step` rate falls; 8, 16, 24 by default.
    pub milestones: Vec<usize>,
    /// Factor at each milestone; 0.1 by default.
    pub gamma: f64,
    /// Nesterov momentum in `[0, 1)`; 0.9 by default.
    pub momentum: f64,
    /// L2 decay of weights and biases, not of batch norm's scale and shift; 5e-4 by default.
    pub weight_decay: f64,
    /// Whether batch norm learns a scale and a shift for each channel; off by default (Goyal et
    /// al.), on in VISSL. A linear classifier can express neither more nor less with it.
    pub affine: bool,
    /// What the learning rate is chosen by, and the layer among those.
    pub select: Select,
    /// Part of the training set held out for that choice, in `(0, 1)`; a tenth by default. Where there
    /// is one layer and one rate, nothing is held out.
    pub held_out: f64,
}

impl Default for LinearConfig {
    fn default() -> Self {
        Self {
            crops: Crops::default(),
            epochs: 28,
            batch_size: 256,
            lrs: vec![0.01],
            schedule: ScheduleKind::MultiStep,
            milestones: vec![8, 16, 24],
            gamma: 0.1,
            momentum: 0.9,
            weight_decay: 5e-4,
            affine: false,
            select: Select::Validation,
            held_out: 0.1,
        }
    }
}

impl LinearConfig {
    /// # Errors
    /// Names the first field whose value cannot work.
    pub fn check(&self) -> Result<(), SettingError> {
        for (field, value) in [("epochs", self.epochs), ("batch_size", self.batch_size)] {
            check(field, value, value > 0, "must be at least 1")?;
        }
        let positive = |x: f64| x > 0.0 && x.is_finite();
        let lrs = &self.lrs;
        let fits = !lrs.is_empty() && lrs.iter().all(|lr| positive(*lr));
        let found = format!("{lrs:?}");
        check("lrs", found, fits, "must be one or more numbers above 0")?;
        let momentum = self.momentum;
        let fits = (0.0..1.0).contains(&momentum);
        check("momentum", momentum, fits, "must lie in [0, 1)")?;
        let decay = self.weight_decay;
        let fits = decay >= 0.0 && decay.is_finite();
        check("weight_decay", decay, fits, "must be finite and at least 0")?;
        check_held_out(self.held_out)?;
        self.schedule_config().check()
    }

    fn schedule_config(&self) -> ScheduleConfig {
        ScheduleConfig {
            kind: self.schedule,
            milestones: self.milestones.clone(),
            gamma: self.gamma,
            final_lr_ratio: 0.0,
            ..ScheduleConfig::default()
        }
    }

    /// The schedule of a base rate of 1, by which each of the rates is multiplied.
    pub(super) fn schedule(&self, steps_per_epoch: usize) -> Result<Schedule> {
        let config = self.schedule_config();
        Ok(Schedule::new(&config, 1.0, steps_per_epoch, self.epochs)?)
    }
}

/// Which views of the training images a linear probe is trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Crops {
    /// The plain view of each image, whose features are computed once:
    /// [`LinearProbe`](crate::LinearProbe).
    #[default]
    Centre,
    /// New random crops and flips in each epoch, whose features are computed for each batch, as
    /// published: [`RandomCropProbe`](crate::RandomCropProbe). Nothing is held out, and there are no
    /// [`Baselines`](crate::Baselines): each would take as many hours again.
    Random,
}

/// What the learning rate and the layer are chosen by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Select {
    /// Accuracy on a seeded, held-out part of the training set; the test set stays unseen.
    #[default]
    Validation,
    /// Accuracy on the test set itself, as is often published: optimistic.
    Test,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_named() {
        let good = LinearConfig::default;
        let bad = [
            (
                "epochs",
                LinearConfig {
                    epochs: 0,
                    ..good()
                },
            ),
            (
                "batch_size",
                LinearConfig {
                    batch_size: 0,
                    ..good()
                },
            ),
            (
                "lrs",
                LinearConfig {
                    lrs: vec![],
                    ..good()
                },
            ),
            (
                "lrs",
                LinearConfig {
                    lrs: vec![0.1, f64::NAN],
                    ..good()
                },
            ),
            (
                "gamma",
                LinearConfig {
                    gamma: -1.0,
                    ..good()
                },
            ),
            (
                "momentum",
                LinearConfig {
                    momentum: 1.0,
                    ..good()
                },
            ),
            (
                "weight_decay",
                LinearConfig {
                    weight_decay: -1.0,
                    ..good()
                },
            ),
            (
                "held_out",
                LinearConfig {
                    held_out: 1.0,
                    ..good()
                },
            ),
        ];
        for (key, config) in bad {
            let error = config.check().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{key} = ")), "{error}");
        }
        assert!(good().check().is_ok());
    }
}
