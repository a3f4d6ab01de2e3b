//! The learning rate at every step.

use pirl_core::{SettingError, check};
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// Shape of a schedule after its warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleKind {
    /// Half a cosine from the base rate to `final_lr_ratio` of it.
    Cosine,
    /// Multiplied by `gamma` at each milestone.
    MultiStep,
    /// The base rate throughout.
    Constant,
}

/// Settings of a [`Schedule`]. The default is the paper's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleConfig {
    /// The shape; `cosine` by default.
    pub kind: ScheduleKind,
    /// Epochs, fractions allowed, in which the rate rises linearly to the base rate; 0 by default.
    pub warmup_epochs: f64,
    /// Where the warm-up starts, as a fraction of the base rate; 0 by default.
    pub warmup_start: f64,
    /// Epochs at which `multi-step` drops, counted from the start of the run; none by default.
    pub milestones: Vec<usize>,
    /// What `multi-step` multiplies by; 0.1 by default.
    pub gamma: f64,
    /// Where `cosine` ends, as a fraction of the base rate; 0.001 by default.
    pub final_lr_ratio: f64,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            kind: ScheduleKind::Cosine,
            warmup_epochs: 0.0,
            warmup_start: 0.0,
            milestones: Vec::new(),
            gamma: 0.1,
            final_lr_ratio: 1e-3,
        }
    }
}

impl ScheduleConfig {
    /// # Errors
    /// Names the first field whose value cannot work.
    pub fn check(&self) -> Result<(), SettingError> {
        let warmup = self.warmup_epochs;
        let fits = warmup.is_finite() && warmup >= 0.0;
        check(
            "warmup_epochs",
            warmup,
            fits,
            "must be finite and at least 0",
        )?;
        for (field, value) in [
            ("warmup_start", self.warmup_start),
            ("final_lr_ratio", self.final_lr_ratio),
        ] {
            let fits = (0.0..=1.0).contains(&value);
            check(field, value, fits, "must lie in [0, 1]")?;
        }
        let gamma = self.gamma;
        let fits = gamma.is_finite() && gamma > 0.0;
        check("gamma", gamma, fits, "must be finite and positive")?;
        let milestones = &self.milestones;
        let rise = milestones.is_sorted_by(|a, b| a < b);
        check("milestones", format!("{milestones:?}"), rise, "must rise")
    }
}

/// The learning rate of a run, step by step.
#[derive(Clone, Debug)]
pub struct Schedule {
    config: ScheduleConfig,
    base: f64,
    steps_per_epoch: usize,
    warmup: usize,
    total: usize,
}

impl Schedule {
    /// A run of `epochs` times `steps_per_epoch` steps.
    ///
    /// # Errors
    /// [`ModelError::Setting`](crate::ModelError::Setting) for a setting out of range, or a warm-up
    /// longer than the run.
    pub fn new(
        config: &ScheduleConfig,
        base_lr: f64,
        steps_per_epoch: usize,
        epochs: usize,
    ) -> Result<Self> {
        config.check()?;
        let warmup = config.warmup_epochs;
        check(
            "warmup_epochs",
            warmup,
            warmup <= epochs as f64,
            &format!("must be at most {epochs}, the epochs of the run"),
        )?;
        Ok(Self {
            config: config.clone(),
            base: base_lr,
            steps_per_epoch,
            warmup: (warmup * steps_per_epoch as f64).round() as usize,
            total: epochs * steps_per_epoch,
        })
    }

    /// The rate of step `step`, counted from 0; after the last step, that of the end.
    pub fn lr(&self, step: usize) -> f64 {
        let config = &self.config;
        if step < self.warmup {
            let done = step as f64 / self.warmup as f64;
            return self.base * (config.warmup_start + (1.0 - config.warmup_start) * done);
        }
        match config.kind {
            ScheduleKind::Constant => self.base,
            ScheduleKind::MultiStep => {
                let passed = |epoch: &&usize| step >= **epoch * self.steps_per_epoch;
                let drops = config.milestones.iter().filter(passed).count();
                self.base * config.gamma.powi(drops as i32)
            }
            ScheduleKind::Cosine => {
                let length = (self.total - self.warmup).max(1) as f64;
                let done = ((step - self.warmup) as f64 / length).min(1.0);
                let last = self.base * config.final_lr_ratio;
                last + (self.base - last) * (1.0 + (std::f64::consts::PI * done).cos()) / 2.0
            }
        }
    }
}
