use std::fs;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use tempfile::NamedTempFile;

use super::prepare::prepare;
use super::schema::{self, Description, Extent, Fingerprint};
use crate::{DataError, Encoding, Objects, RawSample, Source};

/// Samples a thread holds at once while packing.
const SAMPLES_PER_THREAD: usize = 8;

/// How [`pack`] writes.
#[derive(Clone, Debug)]
pub struct PackOptions {
    /// A shard is closed before its samples exceed this many bytes; default 1 GiB. A sample larger
    /// than that has a shard to itself.
    pub shard_bytes: u64,
    /// Shrink images whose shorter side exceeds this many pixels, antialiased, and encode them
    /// again (JPEG quality 95, PNG lossless); default `None`: bytes are kept as they are.
    pub resize_shorter: Option<u32>,
    /// Fail at the first image that does not decode, or object whose annotation is broken, rather
    /// than skip it; default false.
    pub strict: bool,
    /// Give up, leaving nothing behind, soon after this becomes true; default `None`.
    pub stop: Option<Arc<AtomicBool>>,
}

impl Default for PackOptions {
    fn default() -> Self {
        Self {
            shard_bytes: 1 << 30,
            resize_shorter: None,
            strict: false,
            stop: None,
        }
    }
}

/// What [`pack`] wrote and what it left out.
#[derive(Clone, Debug)]
pub struct PackReport {
    /// Images packed.
    pub packed: usize,
    /// What was left out: first what the source has left out, then images that do not decode and
    /// objects whose boxes do not fit their image, in the order of the source.
    pub skipped: Vec<Skipped>,
    /// The files written, in order.
    pub shards: Vec<PathBuf>,
    /// Bytes of all files together.
    pub bytes: u64,
    /// How samples are encoded.
    pub encoding: Encoding,
    /// The content fingerprint, 32 hexadecimal digits.
    pub fingerprint: String,
}

/// An image, or an object in one, that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its name in the source.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Packs every image of `source` that decodes into `output`, a name with or without `.safetensors`.
///
/// `progress` is called with samples done and samples in all. Every image is decoded once, on all
/// threads, to be sure that training will not meet a broken one. Memory is bounded by a few samples
/// a thread, whatever the size of the set. A pack already at `output` is replaced, and only when
/// the new one is complete and on the disk.
///
/// # Errors
/// [`DataError::Empty`] when no image is left to pack; [`DataError::Decode`] and
/// [`DataError::Annotation`] with `strict`, the latter also when the lists of [`Objects`] differ in
/// length;
/// [`DataError::Io`] when reading or writing fails; [`DataError::Shards`] when samples cannot stand
/// in one pack; [`DataError::Setting`]; [`DataError::Stopped`]. Nothing is left at `output` then,
/// or what was there before.
pub fn pack(
    source: &dyn Source,
    output: &Path,
    options: &PackOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<PackReport, DataError> {
    if options.shard_bytes == 0 || options.resize_shorter == Some(0) {
        return Err(DataError::Setting {
            key: "shard_bytes, resize_shorter",
            reason: "must be at least 1".to_owned(),
        });
    }
    if output.file_name().is_none() {
        return Err(DataError::Setting {
            key: "output",
            reason: format!("{} does not name a file", output.display()),
        });
    }
    let mut writer = Writer::new(source, output, options.shard_bytes)?;
    let mut skipped = source.skipped().to_vec();
    refuse(options, &skipped)?;
    let total = source.len();
    let chunk = SAMPLES_PER_THREAD * rayon::current_num_threads();
    for start in (0..total).step_by(chunk) {
        let end = total.min(start + chunk);
        let samples: Vec<_> = (start..end)
            .into_par_iter()
            .map(|index| prepare(source, index, options))
            .collect();
        for sample in samples {
            match sample {
                Ok(prepared) => {
                    refuse(options, &prepared.left_out)?;
                    skipped.extend(prepared.left_out);
                    writer.add(&prepared.sample)?;
                }
                Err(DataError::Decode { name, reason }) if !options.strict => {
                    skipped.push(Skipped { name, reason });
                }
                Err(error) => return Err(error),
            }
        }
        progress(end, total);
        if let Some(stop) = &options.stop
            && stop.load(Ordering::Relaxed)
        {
            return Err(DataError::Stopped {
                doing: "packing",
                done: end,
                total,
            });
        }
    }
    writer.finish(skipped)
}

/// With `strict`, what would be left out is an error.
fn refuse(options: &PackOptions, left_out: &[Skipped]) -> Result<(), DataError> {
    match left_out.first() {
        Some(Skipped { name, reason }) if options.strict => Err(DataError::Annotation {
            name: name.clone(),
            reason: reason.clone(),
        }),
        _ => Ok(()),
    }
}

/// Shards under way: temporary files beside the output, gone when dropped.
struct Writer {
    stem: PathBuf,
    source: String,
    class_names: Vec<String>,
    shard_bytes: u64,
    reserved: usize,
    fingerprint: Fingerprint,
    /// The encoding of all samples so far.
    encoding: Option<Encoding>,
    /// Whether the samples so far have their objects annotated.
    annotated: Option<bool>,
    samples: u64,
    closed: Vec<ClosedShard>,
    open: Option<OpenShard>,
}

struct OpenShard {
    file: BufWriter<NamedTempFile>,
    /// Where each sample begins, and where the last ends.
    offsets: Vec<u64>,
    labels: Vec<i64>,
    /// Where the objects of each sample begin, and where those of the last end.
    box_offsets: Vec<u64>,
    objects: Objects,
}

struct ClosedShard {
    file: NamedTempFile,
    extent: Extent,
}

impl OpenShard {
    fn end(&self) -> u64 {
        self.offsets.last().copied().unwrap_or(0)
    }
}

impl Writer {
    fn new(source: &dyn Source, output: &Path, shard_bytes: u64) -> Result<Self, DataError> {
        let class_names = source.class_names().to_vec();
        let description = source.describe();
        let mut writer = Self {
            stem: schema::stem_of(output),
            reserved: schema::reserved(&class_names, &description),
            fingerprint: Fingerprint::new(&class_names),
            source: description,
            class_names,
            shard_bytes,
            encoding: None,
            annotated: None,
            samples: 0,
            closed: Vec::new(),
            open: None,
        };
        // At once, so that an unwritable output is found before hours of reading.
        writer.open = Some(writer.open_shard()?);
        Ok(writer)
    }

    fn write_error(&self) -> impl FnOnce(std::io::Error) -> DataError {
        DataError::io("write", schema::shard_path(&self.stem, 0, 1))
    }

    fn folder(&self) -> &Path {
        match self.stem.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        }
    }

    fn open_shard(&self) -> Result<OpenShard, DataError> {
        let open = || {
            let file = tempfile::Builder::new()
                .prefix(".pirl-pack-")
                .tempfile_in(self.folder())?;
            let mut file = BufWriter::with_capacity(1 << 20, file);
            file.seek(SeekFrom::Start(self.reserved as u64))?;
            Ok(OpenShard {
                file,
                offsets: vec![0],
                labels: Vec::new(),
                box_offsets: vec![0],
                objects: Objects::default(),
            })
        };
        open().map_err(self.write_error())
    }

    fn add(&mut self, sample: &RawSample<'_>) -> Result<(), DataError> {
        let size = sample.bytes.len() as u64;
        if let Some(open) = &self.open
            && open.end() > 0
            && open.end().saturating_add(size) > self.shard_bytes
        {
            self.close_shard()?;
            if self.closed.len() as u64 >= schema::MAX_SHARDS - 1 {
                return Err(self.shards_error(format!(
                    "{} bytes a shard would make {} shards or more; raise shard_bytes",
                    self.shard_bytes,
                    schema::MAX_SHARDS
                )));
            }
        }
        let label = self.check_label(sample)?;
        self.check_objects(sample)?;
        self.annotated = Some(sample.objects.is_some());
        self.encoding = Some(self.join_encoding(sample)?);
        self.fingerprint.sample(
            sample.encoding,
            sample.label,
            sample.objects.as_ref(),
            &sample.bytes,
        );
        self.samples += 1;
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.open_shard()?,
        };
        open.file
            .write_all(&sample.bytes)
            .map_err(self.write_error())?;
        open.offsets.push(open.end() + size);
        open.labels.extend(label);
        for (bounds, label, difficult) in sample.objects.iter().flat_map(Objects::iter) {
            open.objects.push(bounds, label, difficult);
        }
        open.box_offsets.push(open.objects.len() as u64);
        self.open = Some(open);
        Ok(())
    }

    fn check_label(&self, sample: &RawSample<'_>) -> Result<Option<i64>, DataError> {
        let classes = self.class_names.len();
        match sample.label {
            None if classes == 0 || sample.objects.is_some() => Ok(None),
            Some(label) if (label as usize) < classes => Ok(Some(i64::from(label))),
            label => Err(self.shards_error(format!(
                "{} has label {label:?}, but there are {classes} classes",
                sample.name
            ))),
        }
    }

    fn check_objects(&self, sample: &RawSample<'_>) -> Result<(), DataError> {
        let wrong = |reason: String| Err(self.shards_error(format!("{}: {reason}", sample.name)));
        if self
            .annotated
            .is_some_and(|before| before != sample.objects.is_some())
        {
            return wrong("some images have their objects annotated, some have not".to_owned());
        }
        let Some(objects) = &sample.objects else {
            return Ok(());
        };
        if sample.label.is_some() {
            return wrong("it has a label and objects, a pack has room for one".to_owned());
        }
        let classes = self.class_names.len();
        match objects
            .labels
            .iter()
            .find(|&&label| label as usize >= classes)
        {
            Some(label) => wrong(format!(
                "an object has label {label}, but there are {classes} classes"
            )),
            None => Ok(()),
        }
    }

    fn join_encoding(&self, sample: &RawSample<'_>) -> Result<Encoding, DataError> {
        match (self.encoding, sample.encoding) {
            (None, first) => Ok(first),
            (Some(before), this) if before == this => Ok(this),
            (Some(before), this @ Encoding::Raw { .. })
            | (Some(before @ Encoding::Raw { .. }), this) => Err(self.shards_error(format!(
                "{} is {this}, those before it are {before}; a pack of raw images has one size",
                sample.name
            ))),
            (Some(_), _) => Ok(Encoding::Mixed),
        }
    }

    fn shards_error(&self, reason: String) -> DataError {
        DataError::Shards {
            path: self.stem.clone(),
            reason,
        }
    }

    /// Writes what follows the samples of the open shard.
    fn close_shard(&mut self) -> Result<(), DataError> {
        let Some(mut open) = self.open.take() else {
            return Ok(());
        };
        let end = open.end();
        let bytes = end.next_multiple_of(8);
        let annotated = self.annotated == Some(true);
        let mut write = || {
            open.file.write_all(&[0; 8][..(bytes - end) as usize])?;
            for offset in &open.offsets {
                open.file.write_all(&offset.to_le_bytes())?;
            }
            for label in &open.labels {
                open.file.write_all(&label.to_le_bytes())?;
            }
            if annotated {
                write_objects(&mut open.file, &open.box_offsets, &open.objects)?;
            }
            open.file.flush()
        };
        write().map_err(self.write_error())?;
        let extent = Extent {
            bytes,
            samples: open.offsets.len() as u64 - 1,
            labelled: !open.labels.is_empty(),
            objects: annotated.then_some(open.objects.len() as u64),
        };
        let file = open
            .file
            .into_inner()
            .map_err(|error| self.write_error()(error.into_error()))?;
        self.closed.push(ClosedShard { file, extent });
        Ok(())
    }

    /// Writes the headers, brings everything to the disk, and only then gives the files their names.
    fn finish(mut self, skipped: Vec<Skipped>) -> Result<PackReport, DataError> {
        let Some(encoding) = self.encoding else {
            return Err(DataError::Empty {
                path: self.stem,
                expected: "the source has no image that decodes, nothing was written",
            });
        };
        self.close_shard()?;
        let description = Description {
            encoding,
            class_names: std::mem::take(&mut self.class_names),
            source: std::mem::take(&mut self.source),
            fingerprint: self.fingerprint.finish(),
            samples: self.samples,
            shards: self.closed.len() as u64,
        };
        let mut total = 0;
        for (index, shard) in self.closed.iter_mut().enumerate() {
            let header = schema::header(&description, index as u64, shard.extent, self.reserved);
            let mut write = || {
                let file = shard.file.as_file_mut();
                file.seek(SeekFrom::Start(0))?;
                file.write_all(&header)?;
                super::allow_reading(file)?;
                file.sync_all()?;
                file.metadata().map(|metadata| metadata.len())
            };
            total += write().map_err(DataError::io("write", self.stem.clone()))?;
        }

        let old = schema::existing_shards(&self.stem)?;
        let mut shards = Vec::with_capacity(self.closed.len());
        for (index, shard) in self.closed.into_iter().enumerate() {
            let path = schema::shard_path(&self.stem, index as u64, description.shards);
            if let Err(error) = shard.file.persist(&path) {
                for written in &shards {
                    let _ = fs::remove_file(written);
                }
                return Err(DataError::io("write", path)(error.error));
            }
            shards.push(path);
        }
        for path in old.iter().filter(|path| !shards.contains(path)) {
            fs::remove_file(path).map_err(DataError::io("remove", path))?;
        }
        // The names are on the disk once their folder is; not every system can sync one.
        if let Some(folder) = shards.first().and_then(|path| path.parent()) {
            let _ = fs::File::open(folder).and_then(|folder| folder.sync_all());
        }
        Ok(PackReport {
            packed: description.samples as usize,
            skipped,
            shards,
            bytes: total,
            encoding,
            fingerprint: description.fingerprint,
        })
    }
}

/// The four tensors of objects, in the order of [`schema::header`].
fn write_objects(
    file: &mut impl Write,
    box_offsets: &[u64],
    objects: &Objects,
) -> std::io::Result<()> {
    for offset in box_offsets {
        file.write_all(&offset.to_le_bytes())?;
    }
    for label in &objects.labels {
        file.write_all(&i64::from(*label).to_le_bytes())?;
    }
    for side in objects.boxes.as_flattened() {
        file.write_all(&side.to_le_bytes())?;
    }
    for difficult in &objects.difficult {
        file.write_all(&[u8::from(*difficult)])?;
    }
    Ok(())
}
