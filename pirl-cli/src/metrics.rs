//! `metrics.jsonl`: a line of JSON for each logged step.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::files;

/// One line. Floats are printed so that reading them gives the same bits back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    /// Steps done, this one included.
    pub(crate) step: u64,
    /// The epoch of this step, counted from 1.
    pub(crate) epoch: u64,
    /// The loss of this step's batch, nats.
    pub(crate) loss: f32,
    /// Its two terms, where there are two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) loss_image: Option<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) loss_patch: Option<f32>,
    /// Images of this step's batch whose class was told, percent; of supervised training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) top1: Option<f32>,
    /// Learning rate of this step.
    pub(crate) lr: f64,
    /// Over the steps since the last line.
    pub(crate) images_per_second: f64,
    /// Seconds spent waiting for batches, over the same steps.
    pub(crate) data_wait: f64,
    /// Broken images replaced since this process began.
    pub(crate) skipped: u64,
    /// Of `train.precision = f16`: the factor of the next loss, and the steps left out so far because
    /// a gradient was not finite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) loss_scale: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) skipped_steps: Option<u64>,
}

/// What a line of a `metrics.jsonl` must have: the steps done when it was written.
pub(crate) trait Logged: Serialize + DeserializeOwned {
    fn step(&self) -> u64;
}

impl Logged for Row {
    fn step(&self) -> u64 {
        self.step
    }
}

/// An open `metrics.jsonl`.
pub(crate) struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Opens the file, dropping lines of steps after `done`, which will be run again, and a last
    /// line that was cut off.
    pub(crate) fn open<R: Logged>(path: &Path, done: u64) -> Result<Self> {
        let kept = read::<R>(path)?
            .into_iter()
            .filter(|row| row.step() <= done)
            .map(|row| line(&row))
            .collect::<Result<String>>()?;
        files::write_whole(path, kept.as_bytes())?;
        let file = OpenOptions::new()
            .append(true)
            .open(path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    pub(crate) fn write(&mut self, row: &impl Logged) -> Result<()> {
        self.file
            .write_all(line(row)?.as_bytes())
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// The rows of a file, up to the first line that is none; none when there is no file.
pub(crate) fn read<R: Logged>(path: &Path) -> Result<Vec<R>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text
            .lines()
            .map_while(|line| serde_json::from_str(line).ok())
            .collect()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn line(row: &impl Logged) -> Result<String> {
    let mut text = serde_json::to_string(row).context("writing a line of metrics")?;
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: u64) -> Row {
        Row {
            step,
            epoch: 1,
            loss: 0.1 + step as f32 / 3.0,
            loss_image: Some(1.0 / 3.0),
            loss_patch: None,
            top1: None,
            lr: 0.1 / 3.0,
            images_per_second: 123.4,
            data_wait: 0.0,
            skipped: 0,
            loss_scale: None,
            skipped_steps: None,
        }
    }

    #[test]
    fn reopening_drops_later_steps_and_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = Metrics::open::<Row>(&path, 0).unwrap();
        for step in 1..=5 {
            metrics.write(&row(step)).unwrap();
        }
        metrics.file.write_all(b"{\"step\":6,\"ep").unwrap();
        drop(metrics);
        let mut metrics = Metrics::open::<Row>(&path, 3).unwrap();
        metrics.write(&row(4)).unwrap();
        assert_eq!(
            read::<Row>(&path).unwrap(),
            (1..=4).map(row).collect::<Vec<_>>()
        );
    }
}
