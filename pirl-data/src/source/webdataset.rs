use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::files::{has_image_ending, image_bytes, shown_ending};
use super::{RawSample, Source, labels, read_class_names, stamp_file};
use crate::{DataError, Skipped};

const FORMAT: &str = "tar";
/// A `cls` or a `json` larger than this is not read.
const MAX_LABEL: u64 = 1 << 20;

/// Tar archives in WebDataset's layout: the members of a sample follow each other and have the same name
/// up to its first dot. `jpg`, `png`, `webp` and the like are the image, `cls` is its label, a number or a
/// name, or else `label`, `cls`, `class` or `class_name` in `json`.
///
/// The archives stay as they are: they are walked once when opened, and samples are read from them.
/// Class names come from `class_names.txt` or `classnames.txt` beside them, one a line; otherwise they are
/// found as a [`List`](super::List)'s are. Where some samples have a label, those without one are left out.
#[derive(Clone, Debug)]
pub struct WebDataset {
    path: PathBuf,
    shards: Vec<PathBuf>,
    samples: Vec<Member>,
    class_names: Vec<String>,
    skipped: Vec<Skipped>,
    passed_over: BTreeMap<String, usize>,
}

/// The image of a sample.
#[derive(Clone, Debug)]
struct Member {
    shard: usize,
    name: String,
    offset: u64,
    size: u64,
    label: Option<u32>,
}

/// A sample while its members are gathered.
#[derive(Default)]
struct Gathered {
    key: String,
    image: Option<Member>,
    class: Option<String>,
    json: Option<String>,
}

impl WebDataset {
    /// Walks one archive, or those in a folder in order of name.
    ///
    /// # Errors
    /// [`DataError::Io`] when they cannot be read, [`DataError::Empty`] when there are none,
    /// [`DataError::Format`] of one that is compressed or no archive, [`DataError::Nothing`] without any
    /// image, [`DataError::Label`] for a label without a class name.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DataError> {
        let path = path.as_ref();
        let shards = shards(path)?;
        let mut source = Self {
            path: path.to_owned(),
            shards,
            samples: Vec::new(),
            class_names: Vec::new(),
            skipped: Vec::new(),
            passed_over: BTreeMap::new(),
        };
        let mut given = Vec::new();
        for shard in 0..source.shards.len() {
            source.walk(shard, &mut given)?;
        }
        if source.samples.is_empty() {
            if source.skipped.is_empty() {
                source.skipped.push(Skipped {
                    name: path.display().to_string(),
                    reason: "no member is an image".to_owned(),
                });
            }
            return Err(DataError::nothing(path, &source.skipped));
        }
        let (numbered, names) =
            labels::number(&given).map_err(|(place, reason)| DataError::Format {
                path: path.to_owned(),
                format: FORMAT,
                reason: format!("{}: {reason}", source.samples[place].name),
            })?;
        let folder = if path.is_dir() {
            Some(path)
        } else {
            path.parent()
        };
        source.class_names = source.named(folder, &numbered, names)?;
        let labelled = numbered.iter().any(Option::is_some);
        let mut kept = Vec::with_capacity(source.samples.len());
        for (mut sample, label) in source.samples.drain(..).zip(numbered) {
            if labelled && label.is_none() {
                source.skipped.push(Skipped {
                    name: sample.name,
                    reason: "it has no label, but others have".to_owned(),
                });
            } else {
                sample.label = label;
                kept.push(sample);
            }
        }
        source.samples = kept;
        Ok(source)
    }

    /// Names from a file beside the archives for labels that are numbers.
    fn named(
        &self,
        folder: Option<&Path>,
        labels: &[Option<u32>],
        found: Vec<String>,
    ) -> Result<Vec<String>, DataError> {
        let numbers = found
            .iter()
            .zip(0..)
            .all(|(name, number): (_, u32)| *name == number.to_string());
        let Some(folder) = folder.filter(|_| numbers && !found.is_empty()) else {
            return Ok(found);
        };
        for file in ["class_names.txt", "classnames.txt"] {
            let Some(names) = read_class_names(&folder.join(file))? else {
                continue;
            };
            let beyond =
                |label: &Option<u32>| label.is_some_and(|label| label as usize >= names.len());
            if let Some(index) = labels.iter().position(beyond) {
                return Err(DataError::Label {
                    path: self.path.clone(),
                    index,
                    label: labels[index].map_or(-1, i64::from),
                    classes: names.len(),
                });
            }
            return Ok(names);
        }
        Ok(found)
    }

    /// Notes the images of an archive and their labels.
    fn walk(&mut self, shard: usize, given: &mut Vec<Option<String>>) -> Result<(), DataError> {
        let path = self.shards[shard].clone();
        let mut file = File::open(&path).map_err(DataError::io("read", &path))?;
        let length = file.metadata().map_err(DataError::io("read", &path))?.len();
        let mut magic = [0; 4];
        let count = file
            .read(&mut magic)
            .map_err(DataError::io("read", &path))?;
        if matches!(
            magic[..count],
            [0x1F, 0x8B, ..] | [0x28, 0xB5, 0x2F, 0xFD] | [b'B', b'Z', b'h', _]
        ) {
            return Err(DataError::Format {
                path,
                format: FORMAT,
                reason: "it is compressed, so samples cannot be found in it; unpack it to .tar"
                    .to_owned(),
            });
        }
        file.rewind().map_err(DataError::io("read", &path))?;
        let mut archive = tar::Archive::new(file);
        let entries = archive
            .entries_with_seek()
            .map_err(DataError::io("read", &path))?;
        let mut open = Gathered::default();
        let mut members = 0_usize;
        for entry in entries {
            let read = entry.and_then(|mut entry| {
                let name = entry.path()?.to_string_lossy().replace('\\', "/");
                members += 1;
                if !entry.header().entry_type().is_file() {
                    return Ok(());
                }
                let Some((key, ending)) = key(&name) else {
                    *self.passed_over.entry("no ending".to_owned()).or_default() += 1;
                    return Ok(());
                };
                if key != open.key {
                    self.close(std::mem::take(&mut open), given);
                    open.key = key.to_owned();
                }
                let mut text = || -> std::io::Result<String> {
                    let mut bytes = Vec::new();
                    (&mut entry).take(MAX_LABEL).read_to_end(&mut bytes)?;
                    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
                };
                match ending.as_str() {
                    "cls" => open.class = Some(text()?),
                    "json" => open.json = label_in(&text()?),
                    _ if has_image_ending(Path::new(&name)) && open.image.is_none() => {
                        open.image = Some(Member {
                            shard,
                            offset: entry.raw_file_position(),
                            size: entry.size(),
                            label: None,
                            name,
                        });
                    }
                    _ => {
                        *self
                            .passed_over
                            .entry(shown_ending(Path::new(&name)))
                            .or_default() += 1
                    }
                }
                Ok(())
            });
            if let Err(error) = read {
                self.skipped.push(Skipped {
                    name: path.display().to_string(),
                    reason: format!("damaged behind its first {members} members: {error}"),
                });
                break;
            }
        }
        self.close(open, given);
        let cut = |member: &Member| {
            member.shard == shard
                && member
                    .offset
                    .checked_add(member.size)
                    .is_none_or(|end| end > length)
        };
        let kept = self
            .samples
            .iter()
            .rposition(|member| !cut(member))
            .map_or(0, |last| last + 1);
        given.truncate(kept);
        for member in self.samples.drain(kept..) {
            self.skipped.push(Skipped {
                name: member.name,
                reason: format!("it ends past the {length} bytes of {}", path.display()),
            });
        }
        Ok(())
    }

    fn close(&mut self, gathered: Gathered, given: &mut Vec<Option<String>>) {
        let Gathered {
            key,
            image,
            class,
            json,
        } = gathered;
        match image {
            Some(image) => {
                self.samples.push(image);
                given.push(class.or(json));
            }
            None if class.is_some() || json.is_some() => self.skipped.push(Skipped {
                name: key,
                reason: "it has a label and no image".to_owned(),
            }),
            None => {}
        }
    }
}

/// The archives: the file itself, or those in the folder.
fn shards(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).map_err(DataError::io("list", path))?;
    let mut shards: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ending| ending == "tar"))
        .collect();
    shards.sort();
    if shards.is_empty() {
        return Err(DataError::Empty {
            path: path.to_owned(),
            expected: "archives in .tar",
        });
    }
    Ok(shards)
}

/// The name of a sample and what its member is: the name up to the first dot of its last part, and what
/// follows the last dot, in small letters.
fn key(name: &str) -> Option<(&str, String)> {
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = last + name[last..].find('.')?;
    let ending = name[dot..].rsplit('.').next()?;
    (dot > last).then(|| (&name[..dot], ending.to_ascii_lowercase()))
}

/// The label in the JSON of a sample.
fn label_in(json: &str) -> Option<String> {
    let json: serde_json::Value = serde_json::from_str(json).ok()?;
    let known = ["label", "cls", "class", "class_name"];
    known.iter().find_map(|key| match json.get(key)? {
        serde_json::Value::Number(number) => Some(number.to_string()),
        serde_json::Value::String(name) => Some(name.clone()),
        _ => None,
    })
}

impl Source for WebDataset {
    fn len(&self) -> usize {
        self.samples.len()
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn read(&self, index: usize) -> Result<RawSample<'_>, DataError> {
        let len = self.samples.len();
        let member = self
            .samples
            .get(index)
            .ok_or(DataError::Index { index, len })?;
        let path = self
            .shards
            .get(member.shard)
            .ok_or(DataError::Index { index, len })?;
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|mut file| {
            file.seek(SeekFrom::Start(member.offset))?;
            file.take(member.size).read_to_end(&mut bytes)
        });
        read.map_err(DataError::io("read", path))?;
        image_bytes(Cow::Owned(bytes), member.name.clone(), member.label)
    }

    fn describe(&self) -> String {
        format!("tar {}", self.path.display())
    }

    fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    fn passed_over(&self) -> BTreeMap<String, usize> {
        self.passed_over.clone()
    }

    fn stamp(&self, index: usize) -> u128 {
        let member = self.samples.get(index);
        let found = member.and_then(|member| Some((self.shards.get(member.shard)?, member)));
        found.map_or(0, |(path, member)| {
            stamp_file(path, member.label, None).wrapping_add(u128::from(member.offset))
        })
    }
}
