//! One file of a pack, mapped into memory and checked.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};

use super::schema::{self, Description, Extent};
use crate::objects::is_box;
use crate::{DataError, Encoding, Objects};

/// Samples of at least so many bytes are prefetched before their use.
const WILL_NEED: usize = 16 << 10;

/// One file. The ranges are of bytes in `map` and were checked against its length.
#[derive(Debug)]
pub(super) struct Shard {
    map: Mmap,
    bytes: Range<usize>,
    offsets: Range<usize>,
    labels: Option<Range<usize>>,
    names: Option<NameRanges>,
    objects: Option<ObjectRanges>,
    samples: usize,
}

/// What is in them is checked when a name is asked for, so that opening does not read them.
#[derive(Debug)]
struct NameRanges {
    offsets: Range<usize>,
    text: Range<usize>,
}

#[derive(Debug)]
struct ObjectRanges {
    offsets: Range<usize>,
    boxes: Range<usize>,
    labels: Range<usize>,
    difficult: Range<usize>,
}

/// Where the tensors of a file are.
struct Tensors<'a> {
    path: &'a Path,
    map: &'a [u8],
    metadata: &'a Metadata,
    /// The first byte after the header.
    data: usize,
}

impl Shard {
    /// Maps a file and checks all of it except the samples and their names. Returns the shard with what its metadata
    /// says: the description of the pack, and the number of the shard.
    pub(super) fn open(path: &Path) -> Result<(Self, Description, u64), DataError> {
        let bad = |reason: String| bad(path, reason);
        let map = map(path).map_err(DataError::io("read", path))?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|error| {
            bad(format!(
                "its {} bytes are cut off or are no safetensors file: {error}",
                map.len()
            ))
        })?;
        let pairs = metadata
            .metadata()
            .as_ref()
            .ok_or_else(|| bad("it is not a pack".to_owned()))?;
        let (description, number) = Description::from_metadata(pairs).map_err(bad)?;
        let tensors = Tensors {
            path,
            map: &map,
            metadata: &metadata,
            data: header + 8, // 8 bytes before the header say how long it is
        };
        let (bytes, total) = tensors.required(schema::BYTES, Dtype::U8)?;
        let (offsets, offset_count) = tensors.required(schema::OFFSETS, Dtype::U64)?;
        let samples = offset_count
            .checked_sub(1)
            .ok_or_else(|| bad("its offsets are empty".to_owned()))?;
        check_offsets(slice(&map, &offsets), total, "bytes of samples").map_err(bad)?;
        let labels = tensors.labels(samples, &description)?;
        let names = tensors.names(samples)?;
        let objects = tensors.objects(samples, &description)?;
        match (description.class_names.is_empty(), &labels, &objects) {
            (false, None, None) => {
                return Err(bad("it has class names but no labels".to_owned()));
            }
            (true, Some(_), _) => {
                return Err(bad("it has labels but no class names".to_owned()));
            }
            (_, Some(_), Some(_)) => {
                return Err(bad("it has both labels and objects".to_owned()));
            }
            _ => {}
        }
        let shard = Self {
            map,
            bytes,
            offsets,
            labels,
            names,
            objects,
            samples,
        };
        if let Encoding::Raw {
            height,
            width,
            channels,
        } = description.encoding
        {
            let expected = (height as usize)
                .checked_mul(width as usize)
                .and_then(|area| area.checked_mul(channels as usize));
            let wrong = |index: &usize| shard.sample(*index).map(<[u8]>::len) != expected;
            if let Some(index) = (0..samples).find(wrong) {
                return Err(bad(format!(
                    "sample {index} is not {height} x {width} x {channels} bytes"
                )));
            }
        }
        Ok((shard, description, number))
    }

    pub(super) fn samples(&self) -> usize {
        self.samples
    }

    pub(super) fn extent(&self) -> Extent {
        Extent {
            bytes: self.bytes.len() as u64,
            samples: self.samples as u64,
            labelled: self.labels.is_some(),
            names: self.names.as_ref().map(|names| names.text.len() as u64),
            objects: self.objects.as_ref().map(|o| o.difficult.len() as u64),
        }
    }

    pub(super) fn sample(&self, index: usize) -> Option<&[u8]> {
        let range = span(slice(&self.map, &self.offsets), index)?;
        slice(&self.map, &self.bytes).get(range)
    }

    /// Has the system read a sample; small ones are left to its own reading ahead.
    pub(super) fn will_need(&self, index: usize) {
        let Some(sample) = self.sample(index) else {
            return;
        };
        // Only advice: if the system ignores it, the bytes are read when they are touched.
        #[cfg(unix)]
        if sample.len() >= WILL_NEED {
            let start = sample.as_ptr().addr() - self.map.as_ptr().addr();
            let _ = self
                .map
                .advise_range(memmap2::Advice::WillNeed, start, sample.len());
        }
    }

    pub(super) fn label(&self, index: usize) -> Option<u32> {
        let labels = slice(&self.map, self.labels.as_ref()?);
        u32::try_from(word(labels, index)?).ok()
    }

    pub(super) fn has_names(&self) -> bool {
        self.names.is_some()
    }

    /// `None` if there is none, or it is damaged.
    pub(super) fn name(&self, index: usize) -> Option<&str> {
        let NameRanges { offsets, text } = self.names.as_ref()?;
        let range = span(slice(&self.map, offsets), index)?;
        std::str::from_utf8(slice(&self.map, text).get(range)?).ok()
    }

    pub(super) fn has_objects(&self) -> bool {
        self.objects.is_some()
    }

    pub(super) fn objects(&self, index: usize) -> Option<Objects> {
        let ranges = self.objects.as_ref()?;
        let range = span(slice(&self.map, &ranges.offsets), index)?;
        let boxes = slice(&self.map, &ranges.boxes);
        let labels = slice(&self.map, &ranges.labels);
        let difficult = slice(&self.map, &ranges.difficult);
        let mut objects = Objects::default();
        for object in range {
            let label = u32::try_from(word(labels, object)?).ok()?;
            let difficult = *difficult.get(object)? != 0;
            objects.push(bounds(boxes, object)?, label, difficult);
        }
        Some(objects)
    }
}

impl Tensors<'_> {
    /// The bytes of a tensor and its length, its shape being that length and `rest`.
    fn find(
        &self,
        name: &str,
        dtype: Dtype,
        rest: &[usize],
    ) -> Result<Option<(Range<usize>, usize)>, DataError> {
        let Some(info) = self.metadata.info(name) else {
            return Ok(None);
        };
        let length = match info.shape.split_first() {
            Some((length, found)) if found == rest => *length,
            _ => {
                let axes = match rest {
                    [] => "one axis".to_owned(),
                    rest => format!("one axis and {rest:?}"),
                };
                return Err(self.bad(format!(
                    "{name:?} has shape {:?}, expected {axes}",
                    info.shape
                )));
            }
        };
        if info.dtype != dtype {
            return Err(self.bad(format!("{name:?} is {:?}, expected {dtype:?}", info.dtype)));
        }
        let (start, end) = info.data_offsets;
        let range = self.data.checked_add(start).zip(self.data.checked_add(end));
        match range {
            Some((start, end)) if start <= end && end <= self.map.len() => {
                Ok(Some((start..end, length)))
            }
            _ => Err(self.bad(format!(
                "{name:?} ends past the {} bytes of the file",
                self.map.len()
            ))),
        }
    }

    fn required(&self, name: &str, dtype: Dtype) -> Result<(Range<usize>, usize), DataError> {
        self.find(name, dtype, &[])?
            .ok_or_else(|| self.bad(format!("it has no tensor {name:?}")))
    }

    fn labels(
        &self,
        samples: usize,
        description: &Description,
    ) -> Result<Option<Range<usize>>, DataError> {
        let Some((labels, count)) = self.find(schema::LABELS, Dtype::I64, &[])? else {
            return Ok(None);
        };
        if count != samples {
            return Err(self.bad(format!("{count} labels for {samples} samples")));
        }
        let classes = description.class_names.len();
        // A pack without class names is refused for that.
        if classes > 0
            && let Some((index, label)) = first_beyond(slice(self.map, &labels), classes)
        {
            return Err(DataError::Label {
                path: self.path.to_owned(),
                index,
                label,
                classes,
            });
        }
        Ok(Some(labels))
    }

    fn names(&self, samples: usize) -> Result<Option<NameRanges>, DataError> {
        let Some((offsets, count)) = self.find(schema::NAME_OFFSETS, Dtype::U64, &[])? else {
            return Ok(None);
        };
        let (text, _) = self.required(schema::NAMES, Dtype::U8)?;
        if count != samples + 1 {
            return Err(self.bad(format!("{count} offsets of names for {samples} samples")));
        }
        Ok(Some(NameRanges { offsets, text }))
    }

    fn objects(
        &self,
        samples: usize,
        description: &Description,
    ) -> Result<Option<ObjectRanges>, DataError> {
        let Some((offsets, offset_count)) = self.find(schema::BOX_OFFSETS, Dtype::U64, &[])? else {
            return Ok(None);
        };
        let (labels, count) = self.required(schema::BOX_LABELS, Dtype::I64)?;
        let (difficult, flags) = self.required(schema::DIFFICULT, Dtype::U8)?;
        let (boxes, box_count) = self
            .find(schema::BOXES, Dtype::F32, &[4])?
            .ok_or_else(|| self.bad(format!("it has no tensor {:?}", schema::BOXES)))?;
        if offset_count != samples + 1 || flags != count || box_count != count {
            return Err(self.bad(format!(
                "{box_count} boxes, {count} labels and {flags} flags of objects, and \
                 {offset_count} offsets of them for {samples} samples"
            )));
        }
        let words = slice(self.map, &offsets);
        check_offsets(words, count, "objects").map_err(|reason| self.bad(reason))?;
        if word(words, samples) != Some(count as u64) {
            return Err(self.bad(format!("some of its {count} objects belong to no sample")));
        }
        let classes = description.class_names.len();
        if let Some((index, label)) = first_beyond(slice(self.map, &labels), classes) {
            return Err(self.bad(format!(
                "object {index} has label {label}, but there are {classes} classes"
            )));
        }
        if let Some(index) = slice(self.map, &difficult)
            .iter()
            .position(|&flag| flag > 1)
        {
            return Err(self.bad(format!("object {index} is neither difficult nor not")));
        }
        let sides = slice(self.map, &boxes);
        let wrong = |&index: &usize| !bounds(sides, index).is_some_and(is_box);
        if let Some(index) = (0..count).find(wrong) {
            return Err(self.bad(format!(
                "object {index} has the box {:?}, expected xmin < xmax and ymin < ymax from 0",
                bounds(sides, index).unwrap_or_default()
            )));
        }
        Ok(Some(ObjectRanges {
            offsets,
            boxes,
            labels,
            difficult,
        }))
    }

    fn bad(&self, reason: String) -> DataError {
        bad(self.path, reason)
    }
}

fn bad(path: &Path, reason: String) -> DataError {
    DataError::Format {
        path: path.to_owned(),
        format: "packed",
        reason,
    }
}

/// A range that was checked when the file was opened.
fn slice<'a>(map: &'a [u8], range: &Range<usize>) -> &'a [u8] {
    map.get(range.clone()).unwrap_or_default()
}

/// The first label outside `0..classes`, and its place.
fn first_beyond(labels: &[u8], classes: usize) -> Option<(usize, i64)> {
    labels
        .chunks_exact(8)
        .map(|label| word(label, 0).map_or(-1, |label| label as i64))
        .enumerate()
        .find(|(_, label)| usize::try_from(*label).map_or(true, |label| label >= classes))
}

/// Offsets must begin at 0, never run backwards, and end within the `total` things they count.
fn check_offsets(offsets: &[u8], total: usize, things: &str) -> Result<(), String> {
    let mut before = 0;
    for (index, offset) in offsets.chunks_exact(8).enumerate() {
        let offset = word(offset, 0).unwrap_or(0);
        if index == 0 && offset != 0 {
            return Err(format!(
                "the first of its {things} is number {offset}, expected 0"
            ));
        }
        if offset < before {
            return Err(format!(
                "its offsets run backwards: offset {index} is {offset} after {before}"
            ));
        }
        if offset > total as u64 {
            return Err(format!(
                "offset {index} is {offset}, past the end of its {total} {things}"
            ));
        }
        before = offset;
    }
    Ok(())
}

/// From the `index`-th offset to the next.
fn span(offsets: &[u8], index: usize) -> Option<Range<usize>> {
    let start = usize::try_from(word(offsets, index)?).ok()?;
    let end = usize::try_from(word(offsets, index.checked_add(1)?)?).ok()?;
    Some(start..end)
}

/// The `index`-th little-endian 64-bit word; the file's author need not have aligned them.
fn word(words: &[u8], index: usize) -> Option<u64> {
    let start = index.checked_mul(8)?;
    let word = words.get(start..)?.first_chunk()?;
    Some(u64::from_le_bytes(*word))
}

/// The `index`-th box of four little-endian floats.
fn bounds(boxes: &[u8], index: usize) -> Option<[f32; 4]> {
    let sides: &[u8; 16] = boxes.get(index.checked_mul(16)?..)?.first_chunk()?;
    let mut bounds = [0.0; 4];
    for (side, bytes) in bounds.iter_mut().zip(sides.chunks_exact(4)) {
        *side = f32::from_le_bytes(*bytes.first_chunk()?);
    }
    Some(bounds)
}

/// Maps a file for reading.
fn map(path: &Path) -> std::io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: `Mmap::map` asks that nobody changes or truncates the file while the map lives. Our
    // writer only ever renames a complete file into place, so a pack opened before keeps its own
    // inode; what other programs do to the file is the user's care, as with every mapped file. The
    // bytes are only read, as plain `u8`, which have no invalid values.
    unsafe { Mmap::map(&file) }
}
