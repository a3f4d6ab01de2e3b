//! TensorBoard's event files: TFRecord frames around `tensorflow.Event` messages.
//!
//! Formats: tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto and
//! tensorflow/core/framework/summary.proto.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crc::{CRC_32_ISCSI, Crc};
use prost::Message;

use crate::error::{ReportError, Result};

/// What every name of an event file begins with; the time follows, in seconds since 1970.
const PREFIX: &str = "events.out.tfevents.";
/// The last time whose number has ten digits.
const LAST: u64 = 9_999_999_999;

/// An open event file, to which a training adds the points of its curves.
///
/// ```
/// use pirl_report::EventFile;
///
/// # let run = tempfile::tempdir()?;
/// # let run = run.path();
/// let mut events = EventFile::create(run, 0)?;
/// events.scalars(1, &[("loss/total", 6.5), ("lr", 0.03)])?;
/// events.scalars(2, &[("loss/total", 6.1), ("lr", 0.03)])?;
/// # drop(events);
/// // After an interruption, from the checkpoint of step 1 on:
/// let mut events = EventFile::create(run, 1)?;
/// events.scalars(2, &[("loss/total", 6.1), ("lr", 0.03)])?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Starts a new event file in `folder` for a training that has done `done` steps. TensorBoard reads it
    /// after those that are there, and then drops their points of later steps, which will come again.
    ///
    /// # Errors
    /// [`ReportError::Io`].
    pub fn create(folder: &Path, done: u64) -> Result<Self> {
        let (path, file) = open(folder)?;
        let mut events = Self { path, file };
        events.write(Event {
            file_version: Some("brain.Event:2".to_owned()),
            ..Event::at(0)
        })?;
        if done > 0 {
            // Points of this step and later ones are dropped.
            events.write(Event {
                session_log: Some(SessionLog { status: START }),
                ..Event::at(done + 1)
            })?;
        }
        Ok(events)
    }

    /// Adds a point to each of the named curves.
    ///
    /// # Errors
    /// [`ReportError::Io`].
    pub fn scalars(&mut self, step: u64, values: &[(&str, f32)]) -> Result<()> {
        let values = values.iter().map(|&(tag, value)| Value {
            tag: tag.to_owned(),
            simple_value: Some(value),
        });
        self.write(Event {
            summary: Some(Summary {
                value: values.collect(),
            }),
            ..Event::at(step)
        })
    }

    fn write(&mut self, event: Event) -> Result<()> {
        let written = self.file.write_all(&frame(&event.encode_to_vec()));
        written.map_err(failed(&self.path))
    }
}

/// A new file whose name is after those of all event files in `folder`: TensorBoard reads files in the order
/// of their names, whatever the clock says.
fn open(folder: &Path) -> Result<(PathBuf, File)> {
    let mut time = (seconds() as u64).min(LAST);
    for entry in folder.read_dir().map_err(failed(folder))? {
        let name = entry.map_err(failed(folder))?.file_name();
        let name = name.to_string_lossy();
        let digits = name.strip_prefix(PREFIX).and_then(|rest| rest.get(..10));
        if let Some(taken) = digits.and_then(|digits| digits.parse::<u64>().ok()) {
            time = time.max(taken.saturating_add(1)).min(LAST);
        }
    }
    let mut path;
    loop {
        path = folder.join(format!("{PREFIX}{time:010}.pirl"));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists && time < LAST => time += 1,
            Err(error) => return Err(failed(&path)(error)),
        }
    }
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> ReportError {
    let path = path.to_owned();
    move |source| ReportError::Io {
        path: path.clone(),
        source,
    }
}

/// Since 1970; a clock before that counts as 1970.
fn seconds() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

/// `tensorflow.Event`, as far as curves need it.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

impl Event {
    /// Nothing, at a step.
    fn at(step: u64) -> Self {
        Self {
            wall_time: seconds(),
            step: step.try_into().unwrap_or(i64::MAX),
            ..Self::default()
        }
    }
}

/// `tensorflow.Summary`
#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

/// `tensorflow.Summary.Value`
#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    /// Optional, so that a 0 is written.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// `tensorflow.SessionLog`
#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `tensorflow.SessionLog.START`
const START: i32 = 1;

/// Length, its checksum, the message, its checksum.
fn frame(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let sums = [&length[..], message].map(|bytes| masked_crc(bytes).to_le_bytes());
    [&length[..], &sums[0], message, &sums[1]].concat()
}

/// TensorFlow's masked CRC-32C.
fn masked_crc(bytes: &[u8]) -> u32 {
    const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
    CRC.checksum(bytes)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events of a file, and the sum of each frame checked.
    fn events(path: &Path) -> Vec<Event> {
        let bytes = std::fs::read(path).unwrap();
        let (mut rest, mut events) = (bytes.as_slice(), Vec::new());
        while let Some((head, tail)) = rest.split_at_checked(12) {
            let length = u64::from_le_bytes(head[..8].try_into().unwrap());
            let (message, tail) = tail.split_at(length as usize);
            assert_eq!(head[8..], masked_crc(&head[..8]).to_le_bytes());
            assert_eq!(tail[..4], masked_crc(message).to_le_bytes());
            events.push(Event::decode(message).unwrap());
            rest = &tail[4..];
        }
        assert!(rest.is_empty());
        events
    }

    #[test]
    fn a_frame_is_that_of_tensorflow() {
        // tensorboard.compat.tensorflow_stub.pywrap_tensorflow.masked_crc32c(b"123456789")
        assert_eq!(masked_crc(b"123456789"), 0xc78a_b0e5);
        let frame = frame(b"123456789");
        assert_eq!(frame.len(), 8 + 4 + 9 + 4);
        assert_eq!(frame[..8], [9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(frame[21..], 0xc78a_b0e5u32.to_le_bytes());
    }

    #[test]
    fn a_resumed_training_starts_after_its_last_step() {
        let folder = tempfile::tempdir().unwrap();
        let mut board = EventFile::create(folder.path(), 7).unwrap();
        board.scalars(8, &[("loss", 0.5), ("zero", 0.0)]).unwrap();
        let events = events(&board.path);
        assert_eq!(events.len(), 3);
        assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
        assert_eq!(events[1].session_log, Some(SessionLog { status: START }));
        assert_eq!((events[1].step, events[2].step), (8, 8));
        let values = &events[2].summary.as_ref().unwrap().value;
        assert_eq!(values[0].tag, "loss");
        let values: Vec<_> = values.iter().map(|value| value.simple_value).collect();
        assert_eq!(values, [Some(0.5), Some(0.0)]);
        assert!(
            events
                .windows(2)
                .all(|pair| pair[0].wall_time <= pair[1].wall_time)
        );
    }

    #[test]
    fn names_are_in_the_order_in_which_files_were_made() {
        let folder = tempfile::tempdir().unwrap();
        // One of another program, and a clock that was set back since.
        std::fs::write(
            folder
                .path()
                .join("events.out.tfevents.9000000000.host.7.0"),
            "",
        )
        .unwrap();
        std::fs::write(folder.path().join("events.out.tfevents.?"), "").unwrap();
        let paths: Vec<PathBuf> = (0..5)
            .map(|_| EventFile::create(folder.path(), 0).unwrap().path)
            .collect();
        assert!(paths.is_sorted() && paths[0].ends_with("events.out.tfevents.9000000001.pirl"));
        let last = folder.path().join(format!("{PREFIX}{LAST}.pirl"));
        std::fs::write(&last, "").unwrap();
        let error = EventFile::create(folder.path(), 0).unwrap_err();
        assert!(error.to_string().contains("9999999999.pirl"), "{error}");
        let error = EventFile::create(&folder.path().join("absent"), 0).unwrap_err();
        assert!(error.to_string().contains("absent"), "{error}");
    }
}
