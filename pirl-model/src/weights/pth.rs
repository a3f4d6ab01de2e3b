//! PyTorch's `.pth` files: a zip archive of a pickle and storages (since PyTorch 1.6), or, before
//! that, pickles and storages one after another.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use zip::{CompressionMethod, ZipArchive};

use super::pickle::{Pickle, Storage, TensorView};
use crate::error::{ModelError, Result};

/// `torch.save`'s magic number, pickled, which files without an archive begin with.
const LEGACY: [u8; 14] = [
    0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19,
];

/// An open `.pth` file: its tensors are known, their numbers not yet read.
pub(super) struct Pth {
    path: PathBuf,
    tensors: HashMap<String, TensorView>,
    container: Container,
}

enum Container {
    /// The folder inside the archive.
    Zip(String),
    /// Where each storage's numbers start, and their length in bytes.
    Legacy(HashMap<String, (u64, u64)>),
}

impl Pth {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(|error| unreadable(path, error))?;
        let mut start = Vec::new();
        let head = LEGACY.len() as u64;
        (&mut file)
            .take(head)
            .read_to_end(&mut start)
            .and_then(|_| file.rewind())
            .map_err(|error| unreadable(path, error))?;
        let (pickle, container) = if start.starts_with(b"PK") {
            open_zip(path, file)?
        } else if start == LEGACY {
            open_legacy(path, file)?
        } else {
            return Err(broken(
                path,
                "it is neither of the two formats that torch.save writes",
            ));
        };
        let tensors = pickle.tensors().map_err(|reason| broken(path, reason))?;
        let tensors = tensors
            .into_iter()
            .map(|(name, view)| (name, view.clone()))
            .collect();
        Ok(Self {
            path: path.to_owned(),
            tensors,
            container,
        })
    }

    /// Names and shapes, in no order.
    pub(super) fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        let tensors = self.tensors.iter();
        tensors.map(|(name, view)| (name.as_str(), view.shape.as_slice()))
    }

    /// Reads the tensors of these names.
    pub(super) fn read<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<HashMap<String, Tensor>> {
        // Each storage is read once, and only one is held at a time.
        let mut by_storage: HashMap<&str, Vec<(&str, &TensorView)>> = HashMap::new();
        for name in names {
            let Some((name, view)) = self.tensors.get_key_value(name) else {
                continue;
            };
            let same = by_storage.entry(&view.storage.key).or_default();
            same.push((name, view));
        }
        let file = File::open(&self.path).map_err(|error| unreadable(&self.path, error))?;
        let mut reader = self.container.reader(&self.path, file)?;
        let mut tensors = HashMap::new();
        for views in by_storage.into_values() {
            let Some(storage) = views.first().map(|(_, view)| &view.storage) else {
                continue;
            };
            let bytes = reader.storage(storage)?;
            for &(name, view) in &views {
                // The pickle may give one storage several lengths.
                if view.storage != *storage {
                    let reason = format!("{name} and another tensor disagree about their storage");
                    return Err(broken(&self.path, reason));
                }
                let tensor = tensor(view, &bytes)
                    .map_err(|reason| broken(&self.path, format!("{name}: {reason}")))?;
                tensors.insert(name.to_owned(), tensor);
            }
        }
        Ok(tensors)
    }
}

fn open_zip(path: &Path, file: File) -> Result<(Pickle, Container)> {
    let mut archive = archive(path, file)?;
    let mut folders = archive.file_names().filter_map(|name| {
        let name = name.ok()?;
        let folder = name.strip_suffix("data.pkl")?;
        (folder.is_empty() || folder.ends_with('/')).then(|| folder.to_owned())
    });
    let folder = folders.next().ok_or_else(|| {
        broken(
            path,
            "the archive has no data.pkl, so torch.save did not make it",
        )
    })?;
    drop(folders);
    if let Ok(order) = entry(path, &mut archive, &format!("{folder}byteorder"))
        && order != b"little"
    {
        return Err(broken(path, "its numbers are big-endian"));
    }
    let pickle = entry(path, &mut archive, &format!("{folder}data.pkl"))?;
    let pickle = Pickle::read(&pickle).map_err(|reason| broken(path, reason))?;
    Ok((pickle, Container::Zip(folder)))
}

type Archive = ZipArchive<BufReader<File>>;

fn archive(path: &Path, file: File) -> Result<Archive> {
    ZipArchive::new(BufReader::new(file)).map_err(|error| broken(path, error))
}

/// A file of the archive, which `torch.save` stores uncompressed.
fn entry(path: &Path, archive: &mut Archive, name: &str) -> Result<Vec<u8>> {
    let whole = path
        .metadata()
        .map_err(|error| unreadable(path, error))?
        .len();
    let failed = |error: &dyn std::fmt::Display| broken(path, format!("{name}: {error}"));
    let mut entry = archive.by_name(name).map_err(|error| failed(&error))?;
    // Uncompressed, an entry is no larger than its archive, whatever its header says.
    if entry.compression() != CompressionMethod::Stored || entry.size() > whole {
        return Err(failed(&"it is compressed, which torch.save never does"));
    }
    let mut bytes = Vec::with_capacity(entry.size() as usize);
    entry
        .read_to_end(&mut bytes)
        .map_err(|error| failed(&error))?;
    Ok(bytes)
}

fn open_legacy(path: &Path, mut file: File) -> Result<(Pickle, Container)> {
    /// Storages follow the pickles, and those of a network with its optimiser and bank are small.
    const PICKLES: u64 = 1 << 26;
    let io = |error| unreadable(path, error);
    let whole = file.metadata().map_err(io)?.len();
    let mut bytes = Vec::new();
    (&mut file)
        .take(PICKLES)
        .read_to_end(&mut bytes)
        .map_err(io)?;
    let mut at = 0;
    let mut next = || -> Result<Pickle> {
        let rest = bytes.get(at..).unwrap_or_default();
        let pickle = Pickle::read(rest).map_err(|reason| broken(path, reason))?;
        at += pickle.len;
        Ok(pickle)
    };
    // The magic number, the protocol's and the machine's byte order come first.
    for _ in 0..3 {
        next()?;
    }
    let (pickle, keys) = (next()?, next()?);
    let keys = keys
        .texts()
        .ok_or_else(|| broken(path, "its list of storages is none"))?;
    let sizes: HashMap<_, _> = pickle
        .storages()
        .map(|storage| (storage.key.as_str(), storage.kind.size as u64))
        .collect();
    let mut places = HashMap::new();
    let mut start = at as u64;
    for key in keys {
        let truncated = || broken(path, format!("it ends within storage {key}"));
        file.seek(SeekFrom::Start(start)).map_err(io)?;
        let mut len = [0; 8];
        file.read_exact(&mut len).map_err(|_| truncated())?;
        let size = sizes.get(key).copied().unwrap_or(1);
        let len = u64::from_le_bytes(len).checked_mul(size);
        let end = len.and_then(|len| (start + 8).checked_add(len));
        let (Some(len), Some(end)) = (len, end.filter(|&end| end <= whole)) else {
            return Err(truncated());
        };
        places.insert(key.to_owned(), (start + 8, len));
        start = end;
    }
    Ok((pickle, Container::Legacy(places)))
}

/// Reads storages out of a container.
enum StorageReader<'a> {
    Zip(&'a Path, &'a str, Box<Archive>),
    Legacy(&'a Path, &'a HashMap<String, (u64, u64)>, File),
}

impl Container {
    fn reader<'a>(&'a self, path: &'a Path, file: File) -> Result<StorageReader<'a>> {
        Ok(match self {
            Self::Zip(folder) => StorageReader::Zip(path, folder, Box::new(archive(path, file)?)),
            Self::Legacy(places) => StorageReader::Legacy(path, places, file),
        })
    }
}

impl StorageReader<'_> {
    fn storage(&mut self, storage: &Storage) -> Result<Vec<u8>> {
        let key = &storage.key;
        let (path, bytes) = match self {
            Self::Zip(path, folder, archive) => {
                (*path, entry(path, archive, &format!("{folder}data/{key}"))?)
            }
            Self::Legacy(path, places, file) => {
                let &(start, len) = places
                    .get(key)
                    .ok_or_else(|| broken(path, format!("it has no storage {key}")))?;
                // Within the file, as was checked on opening it.
                let mut bytes = vec![0; len as usize];
                file.seek(SeekFrom::Start(start))
                    .and_then(|_| file.read_exact(&mut bytes))
                    .map_err(|error| unreadable(path, error))?;
                (*path, bytes)
            }
        };
        if storage.len.checked_mul(storage.kind.size) == Some(bytes.len()) {
            return Ok(bytes);
        }
        let reason = format!(
            "storage {key} has {} bytes, but should hold {} numbers of {} bytes",
            bytes.len(),
            storage.len,
            storage.kind.size
        );
        Err(broken(path, reason))
    }
}

/// Copies the numbers of a view out of its storage.
fn tensor(view: &TensorView, storage: &[u8]) -> std::result::Result<Tensor, String> {
    /// A view may repeat numbers of its storage: up to this many.
    const REPEATED: usize = 1 << 28;
    let kind = view.storage.kind;
    let Some(dtype) = kind.dtype else {
        return Err(format!("numbers of type {} cannot be read", kind.name));
    };
    let elements: usize = view.shape.iter().product();
    if elements > view.storage.len.max(REPEATED) {
        return Err(format!("shape {:?} repeats a small storage", view.shape));
    }
    let mut bytes = Vec::with_capacity(elements * kind.size);
    if elements > 0 {
        let mut place = vec![0; view.shape.len()];
        let mut at = view.offset;
        'all: loop {
            let number = storage.get(at * kind.size..(at + 1) * kind.size);
            bytes.extend_from_slice(number.ok_or("it lies outside its storage")?);
            // The next place, the last axis first.
            for axis in (0..place.len()).rev() {
                place[axis] += 1;
                // Past an axis' end the place is left again, and may lie anywhere.
                at = at.wrapping_add(view.stride[axis]);
                if place[axis] < view.shape[axis] {
                    continue 'all;
                }
                at = at.wrapping_sub(view.stride[axis].wrapping_mul(place[axis]));
                place[axis] = 0;
            }
            break;
        }
    }
    Tensor::from_raw_buffer(&bytes, dtype, &view.shape, &Device::Cpu)
        .map_err(|error| error.to_string())
}

fn broken(path: &Path, reason: impl std::fmt::Display) -> ModelError {
    ModelError::Pth {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

fn unreadable(path: &Path, source: io::Error) -> ModelError {
    ModelError::Io {
        path: path.to_owned(),
        source,
    }
}
