use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pirl_core::{SettingError, check};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use xxhash_rust::xxh3::xxh3_128;

use super::counts::Counts;
use super::schema::{self, Description};
use super::shard::Shard;
use crate::{DataError, Encoding, Image, Objects};

/// A packed data set, memory-mapped.
///
/// Opening reads and checks the header, the offsets, the labels and the boxes. Samples and their names are
/// read when they are asked for, and only the system's page cache holds them. Clones share the map.
#[derive(Clone, Debug)]
pub struct Pack {
    shards: Arc<Shards>,
    /// The samples of a subset, by their number in the whole pack.
    chosen: Option<Arc<[u32]>>,
    /// Other numbers for the classes.
    classes: Option<Arc<Classes>>,
    fingerprint: String,
}

#[derive(Debug)]
struct Classes {
    names: Vec<String>,
    /// By the label in the shards; a label that no sample has may have none.
    labels: Vec<Option<u32>>,
}

#[derive(Debug)]
struct Shards {
    description: Description,
    paths: Vec<PathBuf>,
    /// `None`: on other machines.
    shards: Vec<Option<Shard>>,
    places: Vec<Place>,
    len: usize,
}

/// Of a shard, wherever it is.
#[derive(Debug)]
struct Place {
    /// The number of its first sample.
    start: usize,
    /// Which of how many equal parts this process takes, if it is here.
    part: (usize, usize),
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
        Self::open_part(path.as_ref(), 0, |own| Ok(vec![own]))
    }

    /// Opens what is here of a pack whose shards are spread over the machines of several processes. All of these
    /// call this at the same time: `exchange` gives the others some bytes, and returns what each gave, in an order in
    /// which this process is number `rank`.
    ///
    /// Every shard must be somewhere. Samples have the numbers that they have in the whole pack, and of those
    /// that are elsewhere nothing else is known: see [`Pack::here`].
    ///
    /// # Errors
    /// As [`Pack::open`], and those of `exchange`.
    pub fn open_part(
        path: &Path,
        rank: usize,
        exchange: impl FnOnce(Vec<u8>) -> Result<Vec<Vec<u8>>, DataError>,
    ) -> Result<Self, DataError> {
        let paths = find_shards(path)?;
        let mut shards = Vec::with_capacity(paths.len());
        let mut first: Option<Description> = None;
        for (number, path) in paths.iter().enumerate() {
            if !path.exists() {
                shards.push(None);
                continue;
            }
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
            let mut before = shards.iter().flatten();
            if before.any(|other: &Shard| other.has_objects() != shard.has_objects()) {
                return Err(wrong(
                    "objects are annotated in it but not in the first shard, or the other way"
                        .to_owned(),
                ));
            }
            shards.push(Some(shard));
        }
        let (places, len) = share_out(rank, &paths, &shards, exchange)?;
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
                places,
                len,
            }),
            chosen: None,
            classes: None,
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
        self.renumbered(shard.label(sample)?)
    }

    /// What sample `index` was called where it came from, to find it by: the path of its file inside the
    /// folder or archive, or a file and a number. `None` past the end, of packs that earlier versions made,
    /// and for a name that is damaged.
    pub fn name(&self, index: usize) -> Option<&str> {
        let (shard, sample) = self.locate(index)?;
        shard.name(sample)
    }

    /// Sample `index` in words, for messages.
    pub(super) fn called(&self, index: usize) -> String {
        let name = self.name(index).filter(|name| !name.is_empty());
        name.map_or_else(
            || format!("sample {index}"),
            |name| format!("sample {index} ({name})"),
        )
    }

    /// Whether its samples have names, unless some are damaged.
    pub fn has_names(&self) -> bool {
        self.shards.shards.iter().flatten().all(Shard::has_names)
    }

    fn renumbered(&self, label: u32) -> Option<u32> {
        match &self.classes {
            Some(classes) => *classes.labels.get(label as usize)?,
            None => Some(label),
        }
    }

    /// The classes of all samples in order; `None` when the pack is not labelled.
    pub fn labels(&self) -> Option<Vec<u32>> {
        (0..self.len()).map(|index| self.label(index)).collect()
    }

    /// Whether objects are annotated, as in packs of detection data sets.
    pub fn has_objects(&self) -> bool {
        let mut here = self.shards.shards.iter().flatten();
        here.next().is_some_and(Shard::has_objects)
    }

    /// The annotated objects of sample `index`, which may be none; `None` when the pack has no
    /// annotations or no such sample.
    ///
    /// Boxes lie within the image, unless the file was made by another program; opening has checked
    /// that they are not inverted and that labels have a class.
    pub fn objects(&self, index: usize) -> Option<Objects> {
        let (shard, sample) = self.locate(index)?;
        let mut objects = shard.objects(sample)?;
        for label in &mut objects.labels {
            *label = self.renumbered(*label)?;
        }
        Some(objects)
    }

    /// The samples whose shards are here; all, unless it was opened by [`Pack::open_part`].
    ///
    /// # Errors
    /// Fails if there are none.
    pub fn here(&self) -> Result<Self, DataError> {
        let all = 0..self.len() as u32;
        let here: Vec<u32> = all
            .filter(|&index| self.locate(index as usize).is_some())
            .collect();
        match here.len() == self.len() {
            true => Ok(self.clone()),
            false => self.select(&here),
        }
    }

    /// The file of the first shard that is elsewhere.
    pub fn elsewhere(&self) -> Option<&Path> {
        let mut files = self.shards.paths.iter().zip(&self.shards.shards);
        let (path, _) = files.find(|(_, shard)| shard.is_none())?;
        Some(path)
    }

    /// The samples that are here, without those that other processes take which have them too: every sample of
    /// a pack opened by [`Pack::open_part`] is in the share of one of them.
    pub fn share(&self) -> Vec<u32> {
        let taken = |&index: &u32| {
            let located = self.locate_number(index as usize);
            located.is_some_and(|(shard, sample)| {
                let (part, parts) = self.shards.places[shard].part;
                sample % parts == part && self.shards.shards[shard].is_some()
            })
        };
        (0..self.len() as u32).filter(taken).collect()
    }

    /// How many samples and objects of each class there are, and how large the files.
    ///
    /// # Errors
    ///
    /// Fails if a shard is no longer there.
    pub fn counts(&self) -> Result<Counts, DataError> {
        let bytes = self.paths().iter().map(|path| {
            let metadata = std::fs::metadata(path).map_err(DataError::io("read", path))?;
            Ok(metadata.len())
        });
        Ok(Counts::of(self, bytes.sum::<Result<_, DataError>>()?))
    }

    /// Class names by label, of images or of objects; empty when neither are labelled.
    pub fn class_names(&self) -> &[String] {
        match &self.classes {
            Some(classes) => &classes.names,
            None => &self.shards.description.class_names,
        }
    }

    /// The same samples with their classes numbered as in `names`, those of another pack: a test set that
    /// lacks a class of the training set, or has them in another order, is made comparable with it.
    ///
    /// # Errors
    /// [`DataError::UnknownClasses`] when samples or objects have a class that is not in `names`.
    pub fn with_class_names(&self, names: &[String]) -> Result<Self, DataError> {
        let own = self.class_names();
        if own == names || own.is_empty() {
            return Ok(self.clone());
        }
        let number = |name: &String| {
            let place = names.iter().position(|known| known == name);
            place.and_then(|place| u32::try_from(place).ok())
        };
        let mut used = BTreeSet::new();
        for index in 0..self.len() {
            used.extend(self.label(index));
            used.extend(self.objects(index).unwrap_or_default().labels);
        }
        let unknown = used.iter().filter_map(|label| own.get(*label as usize));
        let unknown: Vec<String> = unknown
            .filter(|name| number(name).is_none())
            .cloned()
            .collect();
        if !unknown.is_empty() {
            return Err(DataError::UnknownClasses {
                path: self.first_path().to_owned(),
                unknown,
                known: names.len(),
            });
        }
        let in_shards = self.shards.description.class_names.iter();
        Ok(Self {
            classes: Some(Arc::new(Classes {
                names: names.to_vec(),
                labels: in_shards.map(number).collect(),
            })),
            ..self.clone()
        })
    }

    /// How samples are encoded.
    pub fn encoding(&self) -> Encoding {
        self.shards.description.encoding
    }

    /// Channels of its images: 3, red, green and blue, unless it was packed with others.
    pub fn channels(&self) -> usize {
        match self.encoding() {
            Encoding::Planes { channels } => channels as usize,
            _ => 3,
        }
    }

    /// A description of what the pack was made from.
    pub fn source(&self) -> &str {
        &self.shards.description.source
    }

    /// The files, in order.
    pub fn paths(&self) -> &[PathBuf] {
        &self.shards.paths
    }

    /// 32 hexadecimal digits that depend on the class names and on the encoding, label,
    /// objects and bytes of every sample, and not on how they are called or cut into shards.
    ///
    /// It was computed while packing; [`Pack::verify`] compares it with the samples.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The encoded bytes of sample `index`, in place; `None` past the end.
    pub fn bytes(&self, index: usize) -> Option<&[u8]> {
        let (shard, sample) = self.locate(index)?;
        shard.sample(sample)
    }

    /// Decodes sample `index` to 8-bit RGB, or to the channels of the pack; of RGB, grey images get three
    /// equal channels.
    ///
    /// # Errors
    /// [`DataError::Decode`] when the bytes are damaged, [`DataError::Index`] past the end.
    pub fn decode(&self, index: usize) -> Result<Image, DataError> {
        let mut image = Image::empty();
        self.decode_into(index, &mut image)?;
        Ok(image)
    }

    /// The same as [`Pack::decode`], into an image whose buffer is reused. After an error its
    /// content is unspecified.
    ///
    /// # Errors
    /// As [`Pack::decode`].
    pub fn decode_into(&self, index: usize, image: &mut Image) -> Result<(), DataError> {
        self.decoded(index, |bytes, encoding| {
            let limit = crate::decode::MAX_PIXELS;
            crate::decode::decode_into(bytes, encoding, limit, image).map(|_| ())
        })
    }

    /// Width and height of sample `index`, from its header alone.
    ///
    /// # Errors
    /// As [`Pack::decode`].
    pub fn image_size(&self, index: usize) -> Result<(usize, usize), DataError> {
        self.decoded(index, crate::decode::size)
    }

    fn decoded<T>(
        &self,
        index: usize,
        decode: impl FnOnce(&[u8], Encoding) -> Result<T, String>,
    ) -> Result<T, DataError> {
        let bytes = self.bytes(index).ok_or_else(|| self.absent(index))?;
        decode(bytes, self.encoding()).map_err(|reason| DataError::Decode {
            name: format!("{} of {}", self.called(index), self.first_path().display()),
            reason,
        })
    }

    /// Tells the system that sample `index` is about to be read, so that the disk can begin.
    pub(crate) fn will_need(&self, index: usize) {
        if let Some((shard, sample)) = self.locate(index) {
            shard.will_need(sample);
        }
    }

    /// `count` samples drawn without replacement and without regard to class, in the order of the
    /// pack; the whole pack when `count` is 0 or as many as there are.
    ///
    /// The same `seed` draws the same samples. A subset has a fingerprint of its own.
    ///
    /// # Errors
    /// [`DataError::Setting`] if the pack has fewer than `count` samples.
    pub fn subset(&self, count: usize, seed: u64) -> Result<Self, DataError> {
        let len = self.len();
        if count == 0 || count == len {
            return Ok(self.clone());
        }
        let expected = format!("must be at most {len}, the samples of the pack");
        check("count", count, count <= len, &expected)?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let drawn = rand::seq::index::sample(&mut rng, len, count);
        let drawn: Vec<u32> = drawn.into_iter().map(|index| index as u32).collect();
        self.select(&drawn)
    }

    /// Two parts: all samples but a share of them, and that share, drawn by `seed`. Of samples with
    /// labels the share of every class is drawn, one at least of a class of two or more.
    ///
    /// # Errors
    /// [`DataError::Setting`] unless `share` lies in (0, 1) and both parts get a sample.
    pub fn split(&self, share: f64, seed: u64) -> Result<(Self, Self), DataError> {
        let fits = share > 0.0 && share < 1.0;
        check("share", share, fits, "must be above 0 and below 1")?;
        let mut classes = BTreeMap::<Option<u32>, Vec<u32>>::new();
        for index in 0..self.len() {
            let class = classes.entry(self.label(index)).or_default();
            class.push(index as u32);
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (mut kept, mut drawn) = (Vec::new(), Vec::new());
        for mut class in classes.into_values() {
            class.shuffle(&mut rng);
            let least = usize::from(class.len() > 1);
            let count = ((class.len() as f64 * share).round() as usize).max(least);
            let count = count.min(class.len().saturating_sub(1));
            drawn.extend_from_slice(&class[..count]);
            kept.extend_from_slice(&class[count..]);
        }
        let parts = "must leave a sample for either part";
        check("share", share, !drawn.is_empty() && !kept.is_empty(), parts)?;
        Ok((self.select(&kept)?, self.select(&drawn)?))
    }

    /// The samples with these numbers, in the order of the pack, each once.
    ///
    /// A selection has a fingerprint of its own.
    ///
    /// # Errors
    /// [`DataError::Index`] for a number past the end, [`DataError::Setting`] for an empty list.
    pub fn select(&self, indices: &[u32]) -> Result<Self, DataError> {
        let mut chosen = Vec::with_capacity(indices.len());
        for &index in indices {
            let of_whole = match &self.chosen {
                Some(chosen) => chosen.get(index as usize).copied(),
                None => Some(index).filter(|index| (*index as usize) < self.len()),
            };
            chosen.push(of_whole.ok_or(DataError::Index {
                index: index as usize,
                len: self.len(),
            })?);
        }
        chosen.sort_unstable();
        chosen.dedup();
        if chosen.is_empty() {
            return Err(SettingError::new("indices", "[]", "must name at least 1 sample").into());
        }
        let mut identity = self.fingerprint.clone().into_bytes();
        for index in &chosen {
            identity.extend_from_slice(&index.to_le_bytes());
        }
        Ok(Self {
            shards: self.shards.clone(),
            chosen: Some(chosen.into()),
            classes: self.classes.clone(),
            fingerprint: format!("{:032x}", xxh3_128(&identity)),
        })
    }

    pub(super) fn is_subset(&self) -> bool {
        self.chosen.is_some() || self.classes.is_some()
    }

    fn first_path(&self) -> &Path {
        self.shards.paths.first().map_or(Path::new(""), |path| path)
    }

    /// The number of the shard that holds sample `index`, wherever that is, and the sample's number there.
    fn locate_number(&self, index: usize) -> Option<(usize, usize)> {
        let index = match &self.chosen {
            Some(chosen) => *chosen.get(index)? as usize,
            None => index,
        };
        let places = &self.shards.places;
        let after = places.partition_point(|place| place.start <= index);
        let shard = after.checked_sub(1)?;
        (index < self.shards.len).then_some((shard, index - places.get(shard)?.start))
    }

    /// The shard that holds sample `index`, if it is here, and the sample's number there.
    fn locate(&self, index: usize) -> Option<(&Shard, usize)> {
        let (shard, sample) = self.locate_number(index)?;
        let shard = self.shards.shards.get(shard)?.as_ref()?;
        (sample < shard.samples()).then_some((shard, sample))
    }

    /// Why sample `index` cannot be read.
    fn absent(&self, index: usize) -> DataError {
        let elsewhere = self.locate_number(index);
        let path = elsewhere.and_then(|(shard, _)| self.shards.paths.get(shard));
        match path {
            Some(path) => DataError::Elsewhere {
                index,
                path: path.clone(),
            },
            None => DataError::Index {
                index,
                len: self.len(),
            },
        }
    }
}

/// Stands for the samples of a shard that is not here.
const ELSEWHERE: u64 = u64::MAX;

/// Tells the other processes which shards are here, and finds out from all how many samples each has. Returns
/// that with the number of samples in all.
fn share_out(
    rank: usize,
    paths: &[PathBuf],
    shards: &[Option<Shard>],
    exchange: impl FnOnce(Vec<u8>) -> Result<Vec<Vec<u8>>, DataError>,
) -> Result<(Vec<Place>, usize), DataError> {
    let own = shards.iter().flat_map(|shard| {
        let samples = shard
            .as_ref()
            .map_or(ELSEWHERE, |shard| shard.samples() as u64);
        samples.to_le_bytes()
    });
    let all = exchange(own.collect())?;
    let wrong = |path: &Path, reason| DataError::Shards {
        path: path.to_owned(),
        reason,
    };
    let (mut places, mut len) = (Vec::new(), 0_usize);
    for (number, path) in paths.iter().enumerate() {
        let on = |bytes: &Vec<u8>| match bytes.as_chunks().0.get(number) {
            Some(samples) => u64::from_le_bytes(*samples),
            None => ELSEWHERE,
        };
        let holders = all.iter().map(on).enumerate();
        let holders: Vec<(usize, u64)> = holders
            .filter(|(_, samples)| *samples != ELSEWHERE)
            .collect();
        let Some(&(first, samples)) = holders.first() else {
            let stem = schema::stem_of(path);
            let everywhere = match all.len() {
                1 => "",
                _ => " on every rank",
            };
            return Err(wrong(
                &stem,
                format!("shard {} is missing{everywhere}", path.display()),
            ));
        };
        if let Some((other, found)) = holders.iter().find(|(_, found)| *found != samples) {
            let reason = format!(
                "it has {samples} samples on rank {first} and {found} on rank {other}; the files come from \
                 different packs"
            );
            return Err(wrong(path, reason));
        }
        let part = holders.iter().position(|(holder, _)| *holder == rank);
        places.push(Place {
            start: len,
            part: (part.unwrap_or(0), holders.len()),
        });
        len = len.saturating_add(usize::try_from(samples).unwrap_or(usize::MAX));
    }
    Ok((places, len))
}

/// What to do where something of a pack's name is no pack, such as a folder of images.
fn unpacked(path: &Path) -> String {
    if !path.exists() {
        return String::new();
    }
    let path = path.display();
    format!(
        "; if {path} holds images, pack them first: pirl data pack --input {path} --output {path}"
    )
}

/// The files of the pack that `path` names, in order of their number; not all need be there.
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
                format!(
                    "neither {} nor numbered shards of it{}",
                    single.display(),
                    unpacked(&stem)
                ),
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
            Ok(expected)
        }
    }
}
