use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use safetensors::{Dtype, SafeTensors};
use xxhash_rust::xxh3::xxh3_128;

use super::schema::{self, Description};
use crate::{DataError, Encoding, Image};

/// A packed data set, memory-mapped.
///
/// Opening reads the header, the offsets and the labels and checks all of them; samples are read
/// when asked for, and only the system's page cache holds them. Cloning shares the map.
#[derive(Clone, Debug)]
pub struct Pack {
    shards: Arc<Shards>,
    /// The samples of a subset, by their number in the whole pack.
    chosen: Option<Arc<[u32]>>,
    fingerprint: String,
}

#[derive(Debug)]
struct Shards {
    description: Description,
    paths: Vec<PathBuf>,
    shards: Vec<Shard>,
    /// The number of the first sample of each shard.
    starts: Vec<usize>,
    len: usize,
}

/// One file. The ranges are of bytes in `map` and were checked against its length.
#[derive(Debug)]
struct Shard {
    map: Mmap,
    bytes: Range<usize>,
    offsets: Range<usize>,
    labels: Option<Range<usize>>,
    samples: usize,
}

impl Pack {
    /// Opens a pack by the path of any of its files, or by its name without number and extension.
    ///
    /// Takes time in proportion to the number of samples, not to their size.
    ///
    /// # Errors
    /// [`DataError::Io`] when there is no such pack, [`DataError::Format`] when a file is cut off or
    /// its contents contradict each other, [`DataError::Label`] for a label without a class,
    /// [`DataError::Shards`] when a shard is missing or belongs to another pack.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DataError> {
        let path = path.as_ref();
        let paths = find_shards(path)?;
        let mut shards = Vec::with_capacity(paths.len());
        let mut starts = Vec::with_capacity(paths.len());
        let mut first: Option<Description> = None;
        let mut len = 0_usize;
        for (number, path) in paths.iter().enumerate() {
            let (shard, description, found) = Shard::open(path)?;
            let wrong = |reason| DataError::Shards {
                path: path.clone(),
                reason,
            };
            if description.shards != paths.len() as u64 || found != number as u64 {
                return Err(wrong(format!(
                    "it is shard {found} of {} inside, but shard {number} of {} by name",
                    description.shards,
                    paths.len()
                )));
            }
            match &first {
                None => first = Some(description),
                Some(first) if *first == description => {}
                Some(first) => {
                    return Err(wrong(format!(
                        "its fingerprint {} or its description differs from the first shard's {}; \
                         the files come from different packs",
                        description.fingerprint, first.fingerprint
                    )));
                }
            }
            starts.push(len);
            len += shard.samples;
            shards.push(shard);
        }
        let wrong = |reason| DataError::Shards {
            path: path.to_owned(),
            reason,
        };
        let description = first.ok_or_else(|| wrong("it has no shards".to_owned()))?;
        if description.samples != len as u64 || u32::try_from(len).is_err() {
            return Err(wrong(format!(
                "its shards hold {len} samples, but say {} together",
                description.samples
            )));
        }
        if len == 0 {
            return Err(DataError::Empty {
                path: path.to_owned(),
                expected: "a pack with at least one sample",
            });
        }
        Ok(Self {
            fingerprint: description.fingerprint.clone(),
            shards: Arc::new(Shards {
                description,
                paths,
                shards,
                starts,
                len,
            }),
            chosen: None,
        })
    }

    /// How many samples there are, at least 1.
    pub fn len(&self) -> usize {
        match &self.chosen {
            Some(chosen) => chosen.len(),
            None => self.shards.len,
        }
    }

    /// Never true, since no empty pack can be opened.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The class of sample `index`; `None` when the pack is not labelled or has no such sample.
    pub fn label(&self, index: usize) -> Option<u32> {
        let (shard, sample) = self.locate(index)?;
        let labels = shard.map.get(shard.labels.clone()?)?;
        let label = word(labels, sample)?;
        u32::try_from(label).ok()
    }

    /// The classes of all samples in order; `None` when the pack is not labelled.
    pub fn labels(&self) -> Option<Vec<u32>> {
        (0..self.len()).map(|index| self.label(index)).collect()
    }

    /// Class names by label; empty when the pack is not labelled.
    pub fn class_names(&self) -> &[String] {
        &self.shards.description.class_names
    }

    /// How samples are encoded.
    pub fn encoding(&self) -> Encoding {
        self.shards.description.encoding
    }

    /// What the pack was made from, in words.
    pub fn source(&self) -> &str {
        &self.shards.description.source
    }

    /// The files, in order.
    pub fn paths(&self) -> &[PathBuf] {
        &self.shards.paths
    }

    /// 32 hexadecimal digits that depend on the class names and on the encoding, label and bytes of
    /// every sample, and not on how they are cut into shards.
    ///
    /// It was computed while packing, and is not checked against the samples here.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The encoded bytes of sample `index`, in place; `None` past the end.
    pub fn bytes(&self, index: usize) -> Option<&[u8]> {
        let (shard, sample) = self.locate(index)?;
        shard.sample(sample)
    }

    /// Decodes sample `index` to 8-bit RGB; grey images get three equal channels.
    ///
    /// # Errors
    /// [`DataError::Decode`] when the bytes are damaged, [`DataError::Index`] past the end.
    pub fn decode(&self, index: usize) -> Result<Image, DataError> {
        let bytes = self.bytes(index).ok_or(DataError::Index {
            index,
            len: self.len(),
        })?;
        crate::decode::decode(bytes, self.encoding()).map_err(|reason| DataError::Decode {
            name: format!("sample {index} of {}", self.name().display()),
            reason,
        })
    }

    /// `count` samples drawn without replacement and without regard to class, in the order of the
    /// pack; the whole pack when `count` is 0 or as many as there are.
    ///
    /// The same `seed` draws the same samples. A subset has a fingerprint of its own.
    ///
    /// # Errors
    /// [`DataError::Setting`] when there are fewer than `count` samples.
    pub fn subset(&self, count: usize, seed: u64) -> Result<Self, DataError> {
        let len = self.len();
        if count == 0 || count == len {
            return Ok(self.clone());
        }
        if count > len {
            return Err(DataError::Setting {
                key: "data.limit",
                reason: format!("{count} samples of a pack of {len}"),
            });
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut chosen = Vec::with_capacity(count);
        for index in rand::seq::index::sample(&mut rng, len, count) {
            let of_whole = match &self.chosen {
                Some(chosen) => chosen.get(index).copied(),
                None => u32::try_from(index).ok(),
            };
            chosen.extend(of_whole);
        }
        chosen.sort_unstable();
        let mut identity = self.fingerprint.clone().into_bytes();
        for index in &chosen {
            identity.extend_from_slice(&index.to_le_bytes());
        }
        Ok(Self {
            shards: self.shards.clone(),
            chosen: Some(chosen.into()),
            fingerprint: format!("{:032x}", xxh3_128(&identity)),
        })
    }

    fn name(&self) -> &Path {
        self.shards.paths.first().map_or(Path::new(""), |path| path)
    }

    /// The shard that holds sample `index`, and its number there.
    fn locate(&self, index: usize) -> Option<(&Shard, usize)> {
        let index = match &self.chosen {
            Some(chosen) => *chosen.get(index)? as usize,
            None => index,
        };
        let number = self.shards.starts.partition_point(|&start| start <= index);
        let shard = self.shards.shards.get(number.checked_sub(1)?)?;
        let sample = index - self.shards.starts.get(number - 1)?;
        (sample < shard.samples).then_some((shard, sample))
    }
}

impl Shard {
    fn open(path: &Path) -> Result<(Self, Description, u64), DataError> {
        let bad = |reason: String| DataError::Format {
            path: path.to_owned(),
            format: "packed",
            reason,
        };
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

        // 8 bytes before the header say how long it is.
        let data = header + 8;
        let tensor =
            |name: &str, dtype: Dtype| -> Result<Option<(Range<usize>, usize)>, DataError> {
                let Some(info) = metadata.info(name) else {
                    return Ok(None);
                };
                let &[length] = info.shape.as_slice() else {
                    return Err(bad(format!(
                        "{name:?} has shape {:?}, expected one axis",
                        info.shape
                    )));
                };
                if info.dtype != dtype {
                    return Err(bad(format!(
                        "{name:?} is {:?}, expected {dtype:?}",
                        info.dtype
                    )));
                }
                let (start, end) = info.data_offsets;
                let range = data.checked_add(start).zip(data.checked_add(end));
                match range {
                    Some((start, end)) if start <= end && end <= map.len() => {
                        Ok(Some((start..end, length)))
                    }
                    _ => Err(bad(format!(
                        "{name:?} ends past the {} bytes of the file",
                        map.len()
                    ))),
                }
            };
        let required = |name: &str, dtype| {
            tensor(name, dtype)?.ok_or_else(|| bad(format!("it has no tensor {name:?}")))
        };
        let (bytes, total) = required(schema::BYTES, Dtype::U8)?;
        let (offsets, offset_count) = required(schema::OFFSETS, Dtype::U64)?;
        let samples = offset_count
            .checked_sub(1)
            .ok_or_else(|| bad("its offsets are empty".to_owned()))?;
        let labels = tensor(schema::LABELS, Dtype::I64)?;

        check_offsets(map.get(offsets.clone()).unwrap_or_default(), total).map_err(bad)?;
        let labelled = !description.class_names.is_empty();
        match &labels {
            Some((_, count)) if *count != samples => {
                return Err(bad(format!("{count} labels for {samples} samples")));
            }
            None if labelled => return Err(bad("it has class names but no labels".to_owned())),
            Some(_) if !labelled => return Err(bad("it has labels but no class names".to_owned())),
            _ => {}
        }
        let labels = labels.map(|(range, _)| range);
        if let Some(range) = &labels {
            let classes = description.class_names.len();
            let words = map.get(range.clone()).unwrap_or_default().chunks_exact(8);
            for (index, label) in words.enumerate() {
                let label = word(label, 0).map_or(-1, |label| label as i64);
                if usize::try_from(label).map_or(true, |label| label >= classes) {
                    return Err(DataError::Label {
                        path: path.to_owned(),
                        index,
                        label,
                        classes,
                    });
                }
            }
        }
        let shard = Self {
            map,
            bytes,
            offsets,
            labels,
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

    fn sample(&self, index: usize) -> Option<&[u8]> {
        let offsets = self.map.get(self.offsets.clone())?;
        let start = usize::try_from(word(offsets, index)?).ok()?;
        let end = usize::try_from(word(offsets, index.checked_add(1)?)?).ok()?;
        self.map.get(self.bytes.clone())?.get(start..end)
    }
}

/// Offsets must begin at 0, never run backwards, and end within the bytes there are.
fn check_offsets(offsets: &[u8], total: usize) -> Result<(), String> {
    let mut before = 0;
    for (index, offset) in offsets.chunks_exact(8).enumerate() {
        let offset = word(offset, 0).unwrap_or(0);
        if index == 0 && offset != 0 {
            return Err(format!(
                "its first sample begins at byte {offset}, expected 0"
            ));
        }
        if offset < before {
            return Err(format!(
                "its offsets run backwards: offset {index} is {offset} after {before}"
            ));
        }
        if offset > total as u64 {
            return Err(format!(
                "offset {index} is {offset}, past the end of its {total} bytes of samples"
            ));
        }
        before = offset;
    }
    Ok(())
}

/// The `index`-th little-endian 64-bit word; the file's author need not have aligned them.
fn word(words: &[u8], index: usize) -> Option<u64> {
    let start = index.checked_mul(8)?;
    let word = words.get(start..)?.first_chunk()?;
    Some(u64::from_le_bytes(*word))
}

/// The files of the pack that `path` names, in order of their number.
fn find_shards(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    let stem = schema::stem_of(path);
    let single = schema::shard_path(&stem, 0, 1);
    let found = schema::existing_shards(&stem)?;
    let wrong = |reason| DataError::Shards {
        path: stem.clone(),
        reason,
    };
    let count = |path: &PathBuf| {
        let name = path.file_stem()?.to_str()?;
        Some(schema::split_shard_name(name)?.2)
    };
    match found.as_slice() {
        [] => Err(DataError::Io {
            action: "find",
            path: stem.clone(),
            source: std::io::Error::new(
                std::io::ErrorKind::NotFound,
                format!("neither {} nor numbered shards of it", single.display()),
            ),
        }),
        [only] if *only == single => Ok(found),
        _ if found.contains(&single) => Err(wrong(
            "there is both a single file and a set of shards of this name".to_owned(),
        )),
        [first, ..] => {
            let shards = count(first).unwrap_or(0);
            if found.iter().any(|path| count(path) != Some(shards)) {
                return Err(wrong(
                    "there are shards of several packs of this name".to_owned(),
                ));
            }
            let expected: Vec<PathBuf> = (0..shards.min(schema::MAX_SHARDS))
                .map(|shard| schema::shard_path(&stem, shard, shards))
                .collect();
            match expected.iter().find(|path| !found.contains(path)) {
                Some(missing) => Err(wrong(format!("shard {} is missing", missing.display()))),
                None => Ok(expected),
            }
        }
    }
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
