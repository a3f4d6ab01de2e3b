use std::borrow::Cow;
use std::fs;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use image::ImageEncoder;
use rayon::prelude::*;
use tempfile::NamedTempFile;

use super::schema::{self, Description, Fingerprint};
use crate::transform::{Crop, Resizer, resize};
use crate::{DataError, Encoding, Image, RawSample, Source};

/// Quality of JPEGs encoded again after resizing, as ImageNet copies of 256 pixels usually have.
const JPEG_QUALITY: u8 = 95;
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
    /// Fail at the first image that does not decode rather than skip it; default false.
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
    /// Images left out because they do not decode, in the order of the source.
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

/// An image that [`pack`] left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its name in the source.
    pub name: String,
    /// Why it does not decode.
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
/// [`DataError::Empty`] when no image is left to pack; [`DataError::Decode`] with `strict`;
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
    let mut skipped = Vec::new();
    let total = source.len();
    let chunk = SAMPLES_PER_THREAD * rayon::current_num_threads();
    for start in (0..total).step_by(chunk) {
        let end = total.min(start + chunk);
        let samples: Vec<_> = (start..end)
            .into_par_iter()
            .map(|index| prepare(source, index, options.resize_shorter))
            .collect();
        for sample in samples {
            match sample {
                Ok(sample) => writer.add(&sample)?,
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

/// Reads a sample, decodes it, and shrinks it if asked.
fn prepare(
    source: &dyn Source,
    index: usize,
    resize_shorter: Option<u32>,
) -> Result<RawSample<'_>, DataError> {
    let sample = source.read(index)?;
    let decode_error = |reason| DataError::Decode {
        name: sample.name.clone(),
        reason,
    };
    let image = crate::decode::decode(&sample.bytes, sample.encoding).map_err(decode_error)?;
    let Some(target) = resize_shorter else {
        return Ok(sample);
    };
    if let Encoding::Raw { .. } = sample.encoding {
        return Err(DataError::Setting {
            key: "resize_shorter",
            reason: "this source has images of one size, which are packed as they are".to_owned(),
        });
    }
    let shorter = image.width.min(image.height);
    if shorter <= target as usize {
        return Ok(sample);
    }
    let resized = shrink(&image, target as usize, shorter).map_err(decode_error)?;
    let bytes = encode(&resized, sample.encoding).map_err(decode_error)?;
    Ok(RawSample {
        bytes: Cow::Owned(bytes),
        ..sample
    })
}

/// Shrinks so that the `shorter` side becomes `target`; the other is rounded down, as torchvision's
/// `Resize` does.
fn shrink(image: &Image, target: usize, shorter: usize) -> Result<Image, String> {
    let scaled = |side: usize| side * target / shorter;
    let (width, height) = (scaled(image.width), scaled(image.height));
    let mut small = Image {
        width,
        height,
        pixels: Vec::new(),
    };
    let resizer = &mut Resizer::default();
    resize(
        resizer,
        image,
        Crop::whole(image),
        width,
        height,
        &mut small,
    )
    .map_err(|error| error.to_string())?;
    Ok(small)
}

fn encode(image: &Image, encoding: Encoding) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let (width, height) = (image.width as u32, image.height as u32);
    let color = image::ExtendedColorType::Rgb8;
    match encoding {
        Encoding::Png => image::codecs::png::PngEncoder::new(&mut bytes).write_image(
            &image.pixels,
            width,
            height,
            color,
        ),
        _ => image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY)
            .write_image(&image.pixels, width, height, color),
    }
    .map_err(|error| error.to_string())?;
    Ok(bytes)
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
    samples: u64,
    closed: Vec<ClosedShard>,
    open: Option<OpenShard>,
}

struct OpenShard {
    file: BufWriter<NamedTempFile>,
    /// Where each sample begins, and where the last ends.
    offsets: Vec<u64>,
    labels: Vec<i64>,
}

struct ClosedShard {
    file: NamedTempFile,
    /// Length of the tensor `bytes`, padding included.
    bytes: u64,
    samples: u64,
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
        self.encoding = Some(self.join_encoding(sample)?);
        self.fingerprint
            .sample(sample.encoding, sample.label, &sample.bytes);
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
        self.open = Some(open);
        Ok(())
    }

    fn check_label(&self, sample: &RawSample<'_>) -> Result<Option<i64>, DataError> {
        let classes = self.class_names.len();
        match sample.label {
            None if classes == 0 => Ok(None),
            Some(label) if (label as usize) < classes => Ok(Some(i64::from(label))),
            label => Err(self.shards_error(format!(
                "{} has label {label:?}, but there are {classes} classes",
                sample.name
            ))),
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
        let mut write = || {
            open.file.write_all(&[0; 8][..(bytes - end) as usize])?;
            for offset in &open.offsets {
                open.file.write_all(&offset.to_le_bytes())?;
            }
            for label in &open.labels {
                open.file.write_all(&label.to_le_bytes())?;
            }
            open.file.flush()
        };
        write().map_err(self.write_error())?;
        let samples = open.offsets.len() as u64 - 1;
        let file = open
            .file
            .into_inner()
            .map_err(|error| self.write_error()(error.into_error()))?;
        self.closed.push(ClosedShard {
            file,
            bytes,
            samples,
        });
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
            let header = schema::header(
                &description,
                index as u64,
                shard.bytes,
                shard.samples,
                self.reserved,
            );
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
