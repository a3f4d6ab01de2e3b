//! TensorBoard's event files: TFRecord frames around `tensorflow.Event` messages.
//!
//! Formats: tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto,
//! tensorflow/core/framework/summary.proto and histogram.proto.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crc::{CRC_32_ISCSI, Crc};
use pirl_data::Image;
use prost::Message;

use crate::error::{ReportError, Result};
use crate::png;

/// What every name of an event file begins with; the time follows, in seconds since 1970.
const PREFIX: &str = "events.out.tfevents.";
/// The last time whose number has ten digits.
const LAST: u64 = 9_999_999_999;

/// An open event file, to which a training adds the points of its curves, pictures and distributions.
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
            simple_value: Some(value),
            ..Value::of(tag)
        });
        self.summary(step, values.collect())
    }

    /// Adds a picture.
    ///
    /// # Errors
    /// [`ReportError::Io`]; those of [`png`](crate::png()).
    pub fn image(&mut self, step: u64, tag: &str, image: &Image) -> Result<()> {
        let side = |side: usize| side.try_into().unwrap_or(i32::MAX);
        let picture = Picture {
            height: side(image.height),
            width: side(image.width),
            colorspace: RGB,
            encoded_image_string: png(image)?,
        };
        let image = Some(picture);
        self.summary(
            step,
            vec![Value {
                image,
                ..Value::of(tag)
            }],
        )
    }

    /// Adds the distribution of `values`, in 40 bins of one width; what is not finite is left out, and
    /// nothing is added where nothing is left.
    ///
    /// # Errors
    /// [`ReportError::Io`].
    pub fn histogram(&mut self, step: u64, tag: &str, values: &[f64]) -> Result<()> {
        let Some(histo) = Histogram::of(values) else {
            return Ok(());
        };
        let histo = Some(histo);
        self.summary(
            step,
            vec![Value {
                histo,
                ..Value::of(tag)
            }],
        )
    }

    fn summary(&mut self, step: u64, value: Vec<Value>) -> Result<()> {
        self.write(Event {
            summary: Some(Summary { value }),
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

/// `tensorflow.Event`, as far as curves, pictures and distributions need it.
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
    #[prost(message, optional, tag = "4")]
    image: Option<Picture>,
    #[prost(message, optional, tag = "5")]
    histo: Option<Histogram>,
}

impl Value {
    /// Nothing, under a name.
    fn of(tag: &str) -> Self {
        Self {
            tag: tag.to_owned(),
            ..Self::default()
        }
    }
}

/// `tensorflow.Summary.Image`
#[derive(Clone, PartialEq, Message)]
struct Picture {
    #[prost(int32, tag = "1")]
    height: i32,
    #[prost(int32, tag = "2")]
    width: i32,
    #[prost(int32, tag = "3")]
    colorspace: i32,
    #[prost(bytes, tag = "4")]
    encoded_image_string: Vec<u8>,
}

/// Red, green and blue, as `Picture::colorspace` counts.
const RGB: i32 = 3;

/// `tensorflow.HistogramProto`
#[derive(Clone, PartialEq, Message)]
struct Histogram {
    #[prost(double, tag = "1")]
    min: f64,
    #[prost(double, tag = "2")]
    max: f64,
    #[prost(double, tag = "3")]
    num: f64,
    #[prost(double, tag = "4")]
    sum: f64,
    #[prost(double, tag = "5")]
    sum_squares: f64,
    /// The upper end of each bin.
    #[prost(double, repeated, tag = "6")]
    bucket_limit: Vec<f64>,
    #[prost(double, repeated, tag = "7")]
    bucket: Vec<f64>,
}

/// Bins of a histogram.
const BINS: usize = 40;

impl Histogram {
    fn of(values: &[f64]) -> Option<Self> {
        let finite = || values.iter().copied().filter(|value| value.is_finite());
        let (min, max) = (finite().reduce(f64::min)?, finite().reduce(f64::max)?);
        // Equal values are a bin of their own, too.
        let width = ((max - min) / BINS as f64).max(f64::MIN_POSITIVE);
        let mut bucket = vec![0.0; BINS];
        for value in finite() {
            bucket[(((value - min) / width) as usize).min(BINS - 1)] += 1.0;
        }
        let limits = (1..BINS).map(|bin| min + bin as f64 * width);
        Some(Self {
            min,
            max,
            num: finite().count() as f64,
            sum: finite().sum(),
            sum_squares: finite().map(|value| value * value).sum(),
            bucket_limit: limits.chain([max]).collect(),
            bucket,
        })
    }
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
    fn pictures_and_distributions_are_as_they_were_given() {
        let folder = tempfile::tempdir().unwrap();
        let mut board = EventFile::create(folder.path(), 0).unwrap();
        let image = Image::new(3, 2, (0..18).collect()).unwrap();
        board.image(4, "sheet", &image).unwrap();
        board.histogram(4, "none", &[f64::NAN]).unwrap();
        board.histogram(4, "same", &[0.5; 3]).unwrap();
        let values = [0.0, 1.0, 0.25, f64::INFINITY];
        board.histogram(4, "cosines", &values).unwrap();
        let events = events(&board.path);
        let [_, sheet, same, cosines] = &events[..] else {
            panic!("{events:?}");
        };
        let value = |event: &Event| event.summary.clone().unwrap().value.remove(0);
        let picture = value(sheet).image.unwrap();
        assert_eq!((picture.width, picture.height, sheet.step), (3, 2, 4));
        assert_eq!(Image::decode(&picture.encoded_image_string).unwrap(), image);
        let same = value(same).histo.unwrap();
        assert_eq!(
            (same.num, same.bucket[0], same.min, same.max),
            (3.0, 3.0, 0.5, 0.5)
        );
        assert!(same.bucket_limit.is_sorted());
        let (tag, found) = (value(cosines).tag, value(cosines).histo.unwrap());
        assert_eq!((tag.as_str(), found.num, found.sum), ("cosines", 3.0, 1.25));
        assert_eq!(found.sum_squares, 1.0625);
        let filled: Vec<usize> = (0..BINS).filter(|bin| found.bucket[*bin] > 0.0).collect();
        assert_eq!(filled, [0, 10, 39]);
        assert_eq!((found.bucket_limit[9], found.bucket_limit[39]), (0.25, 1.0));
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
