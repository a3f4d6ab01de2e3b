//! `metrics.jsonl`: a line of JSON for each logged step.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use pirl_core::file;
use serde_json::{Map, Value};

use crate::error::{Result, TrainError};
use crate::run::Row;

/// An open file of [`Row`]s, one a line.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    file: File,
}

impl MetricsFile {
    /// Opens the file `path`, dropping lines of steps after `done`, which will be run again, and a
    /// last line that was cut off. Makes the file if there is none.
    ///
    /// # Errors
    /// [`TrainError::Io`], the file as it was.
    pub fn open(path: &Path, done: u64) -> Result<Self> {
        let kept: String = lines(path)?
            .into_iter()
            .filter(|(line, _)| line["step"].as_u64().is_some_and(|step| step <= done))
            .map(|(_, text)| text + "\n")
            .collect();
        file::write(path, kept.as_bytes()).map_err(TrainError::io("write", path))?;
        let file = OpenOptions::new()
            .append(true)
            .open(path)
            .map_err(TrainError::io("write", path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// The lines of the file `path`, up to the first that is not an object; none if there is no file.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn read(path: &Path) -> Result<Vec<Map<String, Value>>> {
        Ok(lines(path)?.into_iter().map(|(line, _)| line).collect())
    }

    /// Appends a row.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn write(&mut self, row: &Row) -> Result<()> {
        let io = || TrainError::io("write", &self.path);
        let text = serde_json::to_string(row).map_err(|error| io()(error.into()))? + "\n";
        self.file.write_all(text.as_bytes()).map_err(io())
    }
}

/// Each line as an object and as its text.
fn lines(path: &Path) -> Result<Vec<(Map<String, Value>, String)>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text
            .lines()
            .map_while(|line| Some((serde_json::from_str(line).ok()?, line.to_owned())))
            .filter(|(line, _): &(Map<_, _>, _)| line.contains_key("step"))
            .collect()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(TrainError::io("read", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::training::Metric;

    use super::*;

    fn row(step: u64) -> Row {
        Row {
            step,
            epoch: 1,
            loss: 0.1 + step as f32 / 3.0,
            lr: 0.1 / 3.0,
            images_per_second: 123.4,
            data_wait: 0.0,
            metrics: BTreeMap::from([
                ("loss_image", Metric::Real(1.0 / 3.0)),
                ("skipped", Metric::Count(2)),
            ]),
        }
    }

    #[test]
    fn reopening_drops_later_steps_and_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = MetricsFile::open(&path, 0).unwrap();
        for step in 1..=5 {
            metrics.write(&row(step)).unwrap();
        }
        metrics.file.write_all(b"{\"step\":6,\"ep").unwrap();
        drop(metrics);
        let before = std::fs::read_to_string(&path).unwrap();
        let mut metrics = MetricsFile::open(&path, 3).unwrap();
        metrics.write(&row(4)).unwrap();
        let found = std::fs::read_to_string(&path).unwrap();
        assert_eq!(found.lines().count(), 4);
        assert!(before.starts_with(&found));
        let lines = MetricsFile::read(&path).unwrap();
        // Floats are printed so that reading them gives the same bits back.
        assert_eq!(lines[1]["loss"].as_f64().unwrap() as f32, row(2).loss);
        assert_eq!(lines[1]["loss_image"].as_f64().unwrap() as f32, 1.0 / 3.0);
        assert_eq!(lines[1]["skipped"], 2);
    }
}
