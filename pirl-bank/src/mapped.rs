//! A bank in a mapped file, for more rows than memory has room for.
//!
//! Rows are changed in place. Before that, what they were is appended to a log, so that the bank can go
//! back to any of its last two marks ([`MappedBank::mark`], at a checkpoint): a process that is killed
//! while it writes leaves torn rows behind, and going back undoes these together with whole ones that
//! are newer than the checkpoint. The bank's file starts sparse: a row of zeros stands for the random one
//! that it begins with, which is computed when it is read, so making a bank takes no time.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use half::bf16;
use memmap2::{Advice, MmapMut};
use pirl_core::{file, prefetch};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::BankError;
use crate::bank::{RandomRows, check_momentum, check_size, moved};

/// What a number of a mapped bank is stored as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BankPrecision {
    /// Four bytes.
    #[default]
    F32,
    /// Two bytes, a relative error of 2^-9.
    Bf16,
}

impl BankPrecision {
    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// What the folder of a mapped bank says of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Description {
    format: u32,
    /// The rows it has, of a larger bank if it is a share of one.
    first: usize,
    rows: usize,
    dim: usize,
    precision: BankPrecision,
    seed: u64,
}

const FORMAT: u32 = 1;
const DESCRIPTION: &str = "bank.json";
const ROWS: &str = "rows.bin";
/// Logs are called this, and the step of the mark that they go back to.
const LOG: &str = "undo-";
/// Rows, and the bytes of what they were.
type Record = (Vec<u32>, Vec<u8>);
/// Rows that one task reads.
const CHUNK: usize = 256;
/// Rows that are prefetched together.
const GROUP: usize = 16;

/// One unit vector for each image, in a mapped file: reading and updating rows touches these alone.
///
/// The file belongs to one process at a time.
#[derive(Debug)]
pub struct MappedBank {
    folder: PathBuf,
    description: Description,
    momentum: f64,
    map: MmapMut,
    /// The open log, and the step of its mark.
    log: File,
    marked: u64,
}

/// Settings of a [`MappedBank`].
#[derive(Clone, Debug)]
pub struct MappedConfig {
    /// The number of its first row, of a larger bank if it is a share of one.
    pub first: usize,
    /// How many rows it has.
    pub rows: usize,
    /// Numbers in a row.
    pub dim: usize,
    /// Weight of the old row in an update, in `[0, 1]`.
    pub momentum: f64,
    /// What a number is stored as.
    pub precision: BankPrecision,
    /// Seed of the rows it begins with: those of [`MemoryBank::random`](crate::MemoryBank::random).
    pub seed: u64,
}

impl MappedBank {
    /// Opens the bank in `folder`, or makes it there, as of step 0. The folder of a bank that was open
    /// before must be taken back to a mark ([`MappedBank::go_back`]) before it is used.
    ///
    /// # Errors
    /// [`BankError::Size`], [`BankError::Setting`]; [`BankError::Format`] for a folder with another
    /// bank; [`BankError::Io`].
    pub fn open(folder: impl Into<PathBuf>, config: &MappedConfig) -> Result<Self, BankError> {
        let folder = folder.into();
        let (rows, dim) = (config.rows, config.dim);
        check_size(config.first.saturating_add(rows), dim)?;
        check_size(rows, dim)?;
        check_momentum(config.momentum)?;
        let bytes = rows.checked_mul(dim);
        let bytes = bytes.and_then(|numbers| numbers.checked_mul(config.precision.bytes()));
        let bytes = bytes.ok_or(BankError::Size { rows, dim })?;
        let description = Description {
            format: FORMAT,
            first: config.first,
            rows,
            dim,
            precision: config.precision,
            seed: config.seed,
        };
        let path = folder.join(DESCRIPTION);
        if path.is_file() {
            let text = fs::read(&path).map_err(failed("read", &path))?;
            let found: Option<Description> = serde_json::from_slice(&text).ok();
            if found.as_ref() != Some(&description) {
                return Err(BankError::Format {
                    path,
                    reason: format!("it says {found:?}, expected {description:?}"),
                });
            }
        } else {
            fs::create_dir_all(&folder).map_err(failed("make", &folder))?;
            let rows = folder.join(ROWS);
            let made = File::create(&rows).and_then(|file| file.set_len(bytes as u64));
            made.map_err(failed("make", &rows))?;
            let text = serde_json::to_vec_pretty(&description).unwrap_or_default();
            file::write(&path, &text).map_err(failed("write", &path))?;
        }
        let path = folder.join(ROWS);
        let open = OpenOptions::new().read(true).write(true).open(&path);
        let file = open.map_err(failed("open", &path))?;
        let length = file.metadata().map_err(failed("open", &path))?.len();
        if length != bytes as u64 {
            return Err(BankError::Format {
                path,
                reason: format!("it has {length} bytes, expected {bytes}"),
            });
        }
        // SAFETY: the file is this process's alone, which the type's documentation asks for; nothing
        // here shortens it. Its bytes are read as numbers, of which every pattern is one.
        let map = unsafe { MmapMut::map_mut(&file) }.map_err(failed("map", &path))?;
        // Rows are read all over the file: reading ahead would fetch what nobody asks for.
        let _ = map.advise(Advice::Random);
        let marked = logs(&folder)?.last().copied().unwrap_or(0);
        let log = open_log(&folder, marked)?;
        Ok(Self {
            folder,
            description,
            momentum: config.momentum,
            map,
            log,
            marked,
        })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.description.rows
    }

    /// Never true: a bank has at least one row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Numbers in a row.
    pub fn dim(&self) -> usize {
        self.description.dim
    }

    /// Weight of the old row in an update, in `[0, 1]`.
    pub fn momentum(&self) -> f64 {
        self.momentum
    }

    /// A copy of the rows at `indices`, `(indices.len(), dim)`, `f32` in the host's memory, in that
    /// order; indices may repeat.
    ///
    /// # Errors
    /// [`BankError::Index`].
    pub fn gather(&self, indices: &[u32]) -> Result<Tensor, BankError> {
        self.check_indices(indices)?;
        let (dim, width) = (self.dim(), self.width());
        let mut gathered = vec![0_f32; indices.len() * dim];
        let random = RandomRows::new(self.description.seed, dim);
        gathered
            .par_chunks_mut(CHUNK * dim)
            .zip(indices.par_chunks(CHUNK))
            .for_each_init(
                || random.clone(),
                |random, (gathered, indices)| {
                    let rows = gathered.chunks_exact_mut(dim).zip(indices);
                    for (at, (row, &index)) in rows.enumerate() {
                        // Many at once: each lies on a page of its own, and their addresses are looked
                        // up side by side.
                        if at.is_multiple_of(GROUP) {
                            for &next in indices.iter().skip(at + GROUP).take(GROUP) {
                                prefetch(&self.map[next as usize * width..][..width]);
                            }
                        }
                        let start = index as usize * width;
                        let bytes = &self.map[start..start + width];
                        if bytes.iter().fold(0, |any, byte| any | byte) == 0 {
                            random.fill(self.description.first + index as usize, row);
                        } else {
                            self.decode(bytes, row);
                        }
                    }
                },
            );
        let shape = (indices.len(), dim);
        Ok(Tensor::from_vec(gathered, shape, &Device::Cpu)?)
    }

    /// Moves the rows at `indices` towards `embeddings`, `(indices.len(), dim)`, as
    /// [`MemoryBank::update`](crate::MemoryBank::update) does; of `f32` with the same bits.
    ///
    /// # Errors
    /// As there; [`BankError::Io`] if the log cannot be written. The bank is unchanged then.
    pub fn update(&mut self, indices: &[u32], embeddings: &Tensor) -> Result<(), BankError> {
        self.check_indices(indices)?;
        let mut seen = HashSet::with_capacity(indices.len());
        if let Some(&index) = indices.iter().find(|index| !seen.insert(**index)) {
            return Err(BankError::Duplicate { index });
        }
        if indices.is_empty() {
            return Ok(());
        }
        let old = self.gather(indices)?;
        let embeddings = embeddings.to_device(&Device::Cpu)?;
        let new = moved(&old, &embeddings, indices, self.momentum)?;
        let new = new.flatten_all()?.to_vec1::<f32>()?;
        self.remember(indices)?;
        let (dim, width) = (self.dim(), self.width());
        for (row, &index) in new.chunks_exact(dim).zip(indices) {
            let start = index as usize * width;
            encode(
                self.description.precision,
                row,
                &mut self.map[start..start + width],
            );
        }
        Ok(())
    }

    /// Marks the bank as it is as that of `step`, to which it can go back until the mark after the next.
    ///
    /// # Errors
    /// [`BankError::Io`].
    pub fn mark(&mut self, step: u64) -> Result<(), BankError> {
        if step == self.marked {
            return Ok(());
        }
        self.map
            .flush()
            .map_err(failed("write", &self.folder.join(ROWS)))?;
        let before = self.marked;
        self.log = open_log(&self.folder, step)?;
        self.marked = step;
        for old in logs(&self.folder)? {
            if old < before {
                let path = log_path(&self.folder, old);
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Takes the bank back to the mark of `step`: every update since then is undone, those that were cut
    /// off included.
    ///
    /// # Errors
    /// [`BankError::Format`] without such a mark, or for a damaged log; [`BankError::Io`].
    pub fn go_back(&mut self, step: u64) -> Result<(), BankError> {
        let known = logs(&self.folder)?;
        if !known.contains(&step) {
            return Err(BankError::Format {
                path: self.folder.clone(),
                reason: format!(
                    "it can go back to steps {known:?}, not to {step}: resume from a checkpoint of one of \
                     these, or begin a new run"
                ),
            });
        }
        for newer in known.into_iter().rev().filter(|&known| known >= step) {
            let path = log_path(&self.folder, newer);
            let records = self.records(&path)?;
            let width = self.width();
            for (indices, rows) in records.iter().rev() {
                for (row, &index) in rows.chunks_exact(width).zip(indices) {
                    let start = index as usize * width;
                    self.map[start..start + width].copy_from_slice(row);
                }
            }
            if newer > step {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        // The rows first: a log that is empty must not stand beside rows that it should have undone.
        self.map
            .flush()
            .map_err(failed("write", &self.folder.join(ROWS)))?;
        let path = log_path(&self.folder, step);
        self.log = File::create(&path).map_err(failed("write", &path))?;
        self.marked = step;
        Ok(())
    }

    /// Appends what rows are to the log.
    fn remember(&mut self, indices: &[u32]) -> Result<(), BankError> {
        let width = self.width();
        let mut body = Vec::with_capacity(indices.len() * (4 + width));
        body.extend(indices.iter().flat_map(|index| index.to_le_bytes()));
        for &index in indices {
            let start = index as usize * width;
            body.extend_from_slice(&self.map[start..start + width]);
        }
        let mut record = Vec::with_capacity(12 + body.len());
        record.extend((indices.len() as u32).to_le_bytes());
        record.extend(xxh3_64(&body).to_le_bytes());
        record.extend(body);
        let path = log_path(&self.folder, self.marked);
        self.log.write_all(&record).map_err(failed("write", &path))
    }

    /// The whole records of a log. One that was cut off is the last, of an update that had not begun.
    fn records(&self, path: &Path) -> Result<Vec<Record>, BankError> {
        let file = File::open(path).map_err(failed("read", path))?;
        let mut left = file.metadata().map_err(failed("read", path))?.len();
        let mut reader = BufReader::new(file);
        let mut records = Vec::new();
        let mut head = [0; 12];
        while left >= head.len() as u64 {
            reader.read_exact(&mut head).map_err(failed("read", path))?;
            left -= head.len() as u64;
            let (count, hash) = head.split_at(4);
            let count = u32::from_le_bytes(count.try_into().unwrap_or_default()) as usize;
            let length = count.saturating_mul(4 + self.width());
            if length as u64 > left {
                break;
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).map_err(failed("read", path))?;
            left -= length as u64;
            let rows = body.split_off(4 * count);
            let (indices, _) = body.as_chunks();
            let indices: Vec<u32> = indices
                .iter()
                .map(|bytes| u32::from_le_bytes(*bytes))
                .collect();
            body.extend_from_slice(&rows);
            let whole = xxh3_64(&body).to_le_bytes() == hash;
            if !whole && left == 0 {
                break;
            }
            if !whole || self.check_indices(&indices).is_err() {
                return Err(BankError::Format {
                    path: path.to_owned(),
                    reason: "a record is damaged; begin a new run, or restore the folder"
                        .to_owned(),
                });
            }
            records.push((indices, rows));
        }
        Ok(records)
    }

    /// Bytes of a row.
    fn width(&self) -> usize {
        self.dim() * self.description.precision.bytes()
    }

    fn decode(&self, bytes: &[u8], row: &mut [f32]) {
        match self.description.precision {
            BankPrecision::F32 => {
                let (numbers, _) = bytes.as_chunks();
                for (x, bytes) in row.iter_mut().zip(numbers) {
                    *x = f32::from_le_bytes(*bytes);
                }
            }
            BankPrecision::Bf16 => {
                let (numbers, _) = bytes.as_chunks();
                for (x, bytes) in row.iter_mut().zip(numbers) {
                    *x = bf16::from_le_bytes(*bytes).to_f32();
                }
            }
        }
    }

    fn check_indices(&self, indices: &[u32]) -> Result<(), BankError> {
        let rows = self.len();
        match indices.iter().find(|&&index| index as usize >= rows) {
            Some(&index) => Err(BankError::Index { index, rows }),
            None => Ok(()),
        }
    }
}

fn encode(precision: BankPrecision, row: &[f32], bytes: &mut [u8]) {
    match precision {
        BankPrecision::F32 => {
            for (x, bytes) in row.iter().zip(bytes.chunks_exact_mut(4)) {
                bytes.copy_from_slice(&x.to_le_bytes());
            }
        }
        BankPrecision::Bf16 => {
            for (x, bytes) in row.iter().zip(bytes.chunks_exact_mut(2)) {
                bytes.copy_from_slice(&bf16::from_f32(*x).to_le_bytes());
            }
        }
    }
}

fn log_path(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("{LOG}{step:08}"))
}

fn open_log(folder: &Path, step: u64) -> Result<File, BankError> {
    let path = log_path(folder, step);
    let log = OpenOptions::new().create(true).append(true).open(&path);
    log.map_err(failed("write", &path))
}

/// The steps of the marks there are, in order.
fn logs(folder: &Path) -> Result<Vec<u64>, BankError> {
    let list = || -> io::Result<Vec<u64>> {
        let mut steps = Vec::new();
        for entry in fs::read_dir(folder)? {
            let name = entry?.file_name();
            let step = name.to_string_lossy();
            let step = step
                .strip_prefix(LOG)
                .and_then(|step| step.parse::<u64>().ok());
            steps.extend(step);
        }
        steps.sort_unstable();
        Ok(steps)
    };
    list().map_err(failed("list", folder))
}

fn failed<'a>(
    action: &'static str,
    path: impl AsRef<Path> + 'a,
) -> impl FnOnce(io::Error) -> BankError + 'a {
    move |source| BankError::Io {
        path: path.as_ref().to_owned(),
        action,
        source,
    }
}
