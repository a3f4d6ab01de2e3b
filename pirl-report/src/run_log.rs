//! What is written of a training while it runs.

use std::path::Path;
use std::time::Duration;

use pirl_train::{BoxError, LogCommand, Metric, MetricsFile, Row};

use crate::tensorboard::EventFile;

/// How long a command may take to end after the training.
const PATIENCE: Duration = Duration::from_secs(60);

/// The logs of a run: `metrics.jsonl`, TensorBoard's events, and a command that is handed the same lines.
#[derive(Debug)]
pub struct RunLog {
    metrics: MetricsFile,
    events: EventFile,
    command: Option<LogCommand>,
}

impl RunLog {
    /// Opens `metrics` and a new event file in `folder`, for a training that has done `done` steps, and starts
    /// `command` with the shell.
    ///
    /// # Errors
    /// Those of [`MetricsFile::open`], [`EventFile::create`] and [`LogCommand::start`].
    pub fn open(
        folder: &Path,
        metrics: &Path,
        done: u64,
        command: Option<&str>,
    ) -> Result<Self, BoxError> {
        Ok(Self {
            metrics: MetricsFile::open(metrics, done)?,
            events: EventFile::create(folder, done)?,
            command: command
                .map(|it| LogCommand::start(it, folder))
                .transpose()?,
        })
    }

    /// Adds a row to all of them.
    ///
    /// # Errors
    /// If a file cannot be written to.
    pub fn write(&mut self, row: &Row) -> Result<(), BoxError> {
        self.metrics.write(row)?;
        if let Some(command) = &mut self.command {
            command.write(row);
        }
        let mut points = vec![
            ("loss/total".to_owned(), row.loss),
            ("lr".to_owned(), row.lr as f32),
            (
                "speed/images_per_second".to_owned(),
                row.images_per_second as f32,
            ),
            ("speed/data_wait".to_owned(), row.data_wait as f32),
        ];
        for (key, metric) in &row.metrics {
            if let Metric::Real(value) = metric {
                points.push((key.replacen("loss_", "loss/", 1), *value));
            }
        }
        let points: Vec<_> = points
            .iter()
            .map(|(tag, value)| (tag.as_str(), *value))
            .collect();
        Ok(self.events.scalars(row.step, &points)?)
    }

    /// Lets the command end, a minute at most.
    pub fn finish(self) {
        if let Some(command) = self.command {
            command.finish(PATIENCE);
        }
    }
}
