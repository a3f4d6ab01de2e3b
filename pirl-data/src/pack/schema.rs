//! The names and the layout of a shard, shared by the writer and the reader.
//!
//! A shard is a safetensors file of `bytes` (U8), `offsets` (U64, one more than samples) and, when
//! labelled, `labels` (I64). `name_offsets` (U64, one more than samples) say where the name of each
//! sample begins in `names` (U8, UTF-8), which packs of earlier versions lack. Where objects are annotated it has, instead of labels, `box_offsets`
//! (U64, one more than samples), `box_labels` (I64), `boxes` (F32, four a box) and `difficult` (U8).
//! `bytes` comes first in the file and is padded with zeros to a multiple
//! of 8, so that samples can be written as they arrive and the tensors after it stay aligned. The
//! header is padded with spaces, which safetensors allows, so that it can be written last.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde_json::json;
use xxhash_rust::xxh3::Xxh3;

use crate::{DataError, Encoding, Image, Objects};

/// The version in the metadata; a reader refuses any other. A new encoding needs no new one: a reader refuses a
/// name that it does not know, and finds the format of mixed files in their first bytes.
pub(super) const VERSION: &str = "1";
pub(super) const EXTENSION: &str = "safetensors";
pub(super) const BYTES: &str = "bytes";
pub(super) const OFFSETS: &str = "offsets";
pub(super) const LABELS: &str = "labels";
pub(super) const NAME_OFFSETS: &str = "name_offsets";
pub(super) const NAMES: &str = "names";
pub(super) const BOX_OFFSETS: &str = "box_offsets";
pub(super) const BOX_LABELS: &str = "box_labels";
pub(super) const BOXES: &str = "boxes";
pub(super) const DIFFICULT: &str = "difficult";
/// The most shards whose numbers fit the five digits of their names.
pub(super) const MAX_SHARDS: u64 = 100_000;

/// What the metadata of every shard of a pack says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Description {
    pub(super) encoding: Encoding,
    pub(super) class_names: Vec<String>,
    pub(super) source: String,
    /// 32 hexadecimal digits.
    pub(super) fingerprint: String,
    /// Samples in all shards together.
    pub(super) samples: u64,
    pub(super) shards: u64,
}

impl Description {
    fn to_metadata(&self, shard: u64) -> BTreeMap<&'static str, String> {
        let mut metadata = BTreeMap::from([
            ("pirl_pack", VERSION.to_owned()),
            ("class_names", json!(self.class_names).to_string()),
            ("source", self.source.clone()),
            ("fingerprint", self.fingerprint.clone()),
            ("samples", self.samples.to_string()),
            ("shard", shard.to_string()),
            ("shards", self.shards.to_string()),
        ]);
        let name = match self.encoding {
            Encoding::Jpeg => "jpeg",
            Encoding::Png => "png",
            Encoding::WebP => "webp",
            // Never packed, so no reader knows these names.
            Encoding::Other(_) => "other",
            Encoding::Mixed => "mixed",
            Encoding::Planes { channels } => {
                metadata.insert("channels", channels.to_string());
                "planes"
            }
            Encoding::Raw {
                height,
                width,
                channels,
            } => {
                metadata.insert("height", height.to_string());
                metadata.insert("width", width.to_string());
                metadata.insert("channels", channels.to_string());
                "raw"
            }
        };
        metadata.insert("encoding", name.to_owned());
        metadata
    }

    /// The description and the number of the shard, from the metadata of one shard.
    pub(super) fn from_metadata(metadata: &HashMap<String, String>) -> Result<(Self, u64), String> {
        let text = |key: &str| match metadata.get(key) {
            Some(value) => Ok(value.as_str()),
            None => Err(format!("its metadata has no {key:?}")),
        };
        let number = |key: &str| -> Result<u64, String> {
            let value = text(key)?;
            value
                .parse()
                .map_err(|_| format!("its metadata says {key} = {value:?}, not a number"))
        };
        let size = |key: &str| -> Result<u32, String> {
            let value = number(key)?;
            u32::try_from(value).map_err(|_| format!("its metadata says {key} = {value}"))
        };
        let version = text("pirl_pack").map_err(|_| "it is not a pack".to_owned())?;
        if version != VERSION {
            return Err(format!(
                "it has version {version:?} of the packed format, this program reads {VERSION:?}"
            ));
        }
        let encoding = match text("encoding")? {
            "jpeg" => Encoding::Jpeg,
            "png" => Encoding::Png,
            "webp" => Encoding::WebP,
            "mixed" => Encoding::Mixed,
            "planes" => match size("channels")? {
                channels if (1..=Image::MAX_CHANNELS as u32).contains(&channels) => {
                    Encoding::Planes { channels }
                }
                other => {
                    return Err(format!(
                        "its images have {other} channels, 1 to {} are read",
                        Image::MAX_CHANNELS
                    ));
                }
            },
            "raw" => Encoding::Raw {
                height: size("height")?,
                width: size("width")?,
                channels: size("channels")?,
            },
            other => {
                return Err(format!(
                    "its images are encoded as {other:?}, which this program does not read"
                ));
            }
        };
        let class_names = serde_json::from_str(text("class_names")?)
            .map_err(|error| format!("its class names are not a JSON list of strings: {error}"))?;
        let description = Self {
            encoding,
            class_names,
            source: text("source")?.to_owned(),
            fingerprint: text("fingerprint")?.to_owned(),
            samples: number("samples")?,
            shards: number("shards")?,
        };
        let shard = number("shard")?;
        if shard >= description.shards || description.shards > MAX_SHARDS {
            return Err(format!(
                "it says it is shard {shard} of {}",
                description.shards
            ));
        }
        Ok((description, shard))
    }
}

/// What one shard holds, which decides its layout.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    /// Length of the tensor `bytes`, padding included.
    pub(super) bytes: u64,
    pub(super) samples: u64,
    pub(super) labelled: bool,
    /// Bytes of the names of its samples, where it has them.
    pub(super) names: Option<u64>,
    /// Annotated objects, where there are annotations.
    pub(super) objects: Option<u64>,
}

/// The first bytes of a shard, up to its first tensor, at least `reserved` bytes of them.
pub(super) fn header(
    description: &Description,
    shard: u64,
    extent: Extent,
    reserved: usize,
) -> Vec<u8> {
    let Extent { bytes, samples, .. } = extent;
    let mut tensors = serde_json::Map::new();
    tensors.insert(
        "__metadata__".to_owned(),
        json!(description.to_metadata(shard)),
    );
    let mut end = 0_u64;
    let mut tensor = |name: &str, dtype: &str, shape: &[u64], size: u64| {
        let begin = end;
        end = shape
            .iter()
            .fold(size, |bytes, axis| bytes.saturating_mul(*axis))
            .saturating_add(begin);
        tensors.insert(
            name.to_owned(),
            json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, end] }),
        );
    };
    tensor(BYTES, "U8", &[bytes], 1);
    tensor(OFFSETS, "U64", &[samples + 1], 8);
    if extent.labelled {
        tensor(LABELS, "I64", &[samples], 8);
    }
    // Numbers of eight bytes before others, so that all are aligned.
    if extent.names.is_some() {
        tensor(NAME_OFFSETS, "U64", &[samples + 1], 8);
    }
    if let Some(objects) = extent.objects {
        tensor(BOX_OFFSETS, "U64", &[samples + 1], 8);
        tensor(BOX_LABELS, "I64", &[objects], 8);
        tensor(BOXES, "F32", &[objects, 4], 4);
        tensor(DIFFICULT, "U8", &[objects], 1);
    }
    if let Some(bytes) = extent.names {
        tensor(NAMES, "U8", &[bytes], 1);
    }
    let mut json = serde_json::Value::Object(tensors).to_string().into_bytes();
    let length = (json.len() + 8).next_multiple_of(8).max(reserved) - 8;
    json.resize(length, b' ');
    let mut header = (length as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    header
}

/// Bytes that the header of any shard fits into: every number at its longest.
pub(super) fn reserved(class_names: &[String], source: &str) -> usize {
    let longest = u64::MAX / 32;
    let description = Description {
        encoding: Encoding::Raw {
            height: u32::MAX,
            width: u32::MAX,
            channels: u32::MAX,
        },
        class_names: class_names.to_vec(),
        source: source.to_owned(),
        fingerprint: "0".repeat(32),
        samples: longest,
        shards: longest,
    };
    let extent = Extent {
        bytes: longest,
        samples: longest,
        labelled: true,
        names: Some(longest),
        objects: Some(longest),
    };
    header(&description, longest, extent, 0).len()
}

/// The file of one shard: `NAME.safetensors`, or `NAME-00000-of-00012.safetensors` of several.
pub(super) fn shard_path(stem: &Path, shard: u64, shards: u64) -> PathBuf {
    let mut path = stem.as_os_str().to_owned();
    if shards > 1 {
        path.push(format!("-{shard:05}-of-{shards:05}"));
    }
    path.push(".");
    path.push(EXTENSION);
    PathBuf::from(path)
}

/// The stem of a set of shards: `path` without the extension and the number of a shard.
pub(super) fn stem_of(path: &Path) -> PathBuf {
    let stem = match path.extension() {
        Some(extension) if extension == EXTENSION => path.with_extension(""),
        _ => return path.to_owned(),
    };
    let name = stem.file_name().and_then(|name| name.to_str());
    match name.and_then(|name| split_shard_name(name)) {
        Some((prefix, _, _)) => stem.with_file_name(prefix),
        None => stem,
    }
}

/// `NAME-00003-of-00012` as `("NAME", 3, 12)`.
pub(super) fn split_shard_name(name: &str) -> Option<(&str, u64, u64)> {
    let (rest, shards) = name.rsplit_once("-of-")?;
    let (prefix, shard) = rest.rsplit_once('-')?;
    let number = |digits: &str| {
        let plain = digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| digits.parse().ok()).flatten()
    };
    Some((prefix, number(shard)?, number(shards)?))
}

/// The files beside `stem` that are named as shards of it, in order.
pub(super) fn existing_shards(stem: &Path) -> Result<Vec<PathBuf>, DataError> {
    let folder = match stem.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(DataError::io("list", folder))? {
        let entry = entry.map_err(DataError::io("list", folder))?;
        let path = stem.with_file_name(entry.file_name());
        if path
            .extension()
            .is_some_and(|extension| extension == EXTENSION)
            && stem_of(&path) == stem
        {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The fingerprint of a pack's content: class names, and encoding, label, objects and bytes of every
/// sample.
///
/// How the samples are called, and cut into shards, does not enter it.
pub(super) struct Fingerprint(Xxh3);

impl Fingerprint {
    pub(super) fn new(class_names: &[String]) -> Self {
        let mut hash = Xxh3::new();
        hash.update(&(class_names.len() as u64).to_le_bytes());
        for name in class_names {
            hash.update(&(name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
        }
        Self(hash)
    }

    /// `encoding` is that of the sample, never [`Encoding::Mixed`].
    pub(super) fn sample(
        &mut self,
        encoding: Encoding,
        label: Option<u32>,
        objects: Option<&Objects>,
        bytes: &[u8],
    ) {
        let words = match encoding {
            Encoding::Jpeg => [1, 0, 0, 0],
            Encoding::Png => [2, 0, 0, 0],
            // As readers without WebP see it in a pack of mixed files.
            Encoding::WebP | Encoding::Mixed | Encoding::Other(_) => [3, 0, 0, 0],
            Encoding::Raw {
                height,
                width,
                channels,
            } => [4, height, width, channels],
            Encoding::Planes { channels } => [5, channels, 0, 0],
        };
        for word in words {
            self.0.update(&word.to_le_bytes());
        }
        self.0.update(&label.map_or(-1, i64::from).to_le_bytes());
        if let Some(objects) = objects {
            objects.hash(&mut self.0);
        }
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    pub(super) fn finish(&self) -> String {
        format!("{:032x}", self.0.digest128())
    }
}
