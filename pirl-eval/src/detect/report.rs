//! What a detector does on a test set.

use std::fmt;

use pirl_data::{Objects, Pack};
use pirl_train::{Metric, Training};
use serde::Serialize;

use super::coco_metrics::{CocoReport, coco_metrics};
use super::detection::Detection;
use super::train::DetectTrainer;
use super::voc_metrics::{DetectMetric, VocReport, voc_metrics};
use crate::error::Result;

/// The result of a detector, by VOC's metrics and by COCO's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DetectReport {
    /// VOC's.
    #[serde(flatten)]
    pub voc: VocReport,
    /// COCO's.
    pub coco: CocoReport,
    /// What was found in each image.
    #[serde(skip)]
    pub detections: Vec<Vec<Detection>>,
    /// Steps that the detector has learnt.
    pub steps: u64,
    /// Its batch-norm statistics.
    pub precise_batch_norm: RecomputedStatistics,
}

/// Whether batch-norm statistics were recomputed for a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RecomputedStatistics {
    /// Whether they were.
    pub used: bool,
    /// On how many batches.
    pub batches: usize,
}

impl DetectTrainer<'_> {
    /// Runs the detector, after [`DetectTrainer::recompute_batch_norm`], over `test`. Calls `progress` with
    /// the images done and the images in all.
    ///
    /// # Errors
    /// Those of [`DetectTrainer::recompute_batch_norm`], [`DetectTrainer::detect`] and [`voc_metrics`].
    pub fn evaluate(
        &self,
        test: &Pack,
        metric: DetectMetric,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<DetectReport> {
        let batches = self.recompute_batch_norm()?;
        let detections = self.detect(test, progress)?;
        let objects: Vec<Objects> = (0..test.len())
            .map(|index| test.objects(index).unwrap_or_default())
            .collect();
        let names = test.class_names();
        Ok(DetectReport {
            voc: voc_metrics(&detections, &objects, names, metric)?,
            coco: coco_metrics(&detections, &objects, names)?,
            detections,
            steps: self.done(),
            precise_batch_norm: RecomputedStatistics {
                used: batches > 0,
                batches,
            },
        })
    }
}

impl DetectReport {
    /// What is logged with the step it was made after.
    pub fn metrics(&self) -> Vec<(&'static str, Metric)> {
        let VocReport { ap, ap50, ap75, .. } = self.voc;
        [("ap", ap), ("ap50", ap50), ("ap75", ap75)]
            .map(|(key, value)| (key, Metric::Real(value as f32)))
            .to_vec()
    }
}

impl fmt::Display for DetectReport {
    /// Both tables.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.voc, self.coco)
    }
}
