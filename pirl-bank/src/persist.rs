//! Saving and loading: a safetensors file with one tensor, `memory`, `(rows, dim)`, `f32`.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::Path;

use candle_core::{Device, Tensor};
use memmap2::Mmap;
use pirl_core::file;
use pirl_core::storage::cpu_slice;
use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use safetensors::{SafeTensorError, SafeTensors};

use crate::bank::{check_norms, norm};
use crate::{BankError, MemoryBank};

/// Name of the tensor; the rest of VISSL's `nce_average.memory`.
const TENSOR: &str = "memory";
/// Metadata with the version of the layout.
const FORMAT: (&str, &str) = ("format", "pirl-bank-1");

impl MemoryBank {
    /// Writes the bank to `path`, which holds the old bank or the new one whole, whenever the process
    /// dies.
    ///
    /// # Errors
    /// [`BankError::Io`]; `path` is left as it was.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), BankError> {
        let path = path.as_ref();
        file::write_path(path, |aside| self.write(aside)).map_err(|source| BankError::Io {
            path: path.to_owned(),
            action: "write",
            source,
        })
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let rows = self.rows().to_device(&Device::Cpu);
        let rows = rows.map_err(io::Error::other)?;
        let (storage, layout) = rows.storage_and_layout();
        let values = cpu_slice(&storage, layout).map_err(io::Error::other)?;
        let view = TensorView::new(Dtype::F32, rows.dims().to_vec(), as_bytes(values))
            .map_err(io::Error::other)?;
        let metadata = HashMap::from([
            (FORMAT.0.to_owned(), FORMAT.1.to_owned()),
            ("momentum".to_owned(), self.momentum().to_string()),
        ]);
        let written = serialize_to_file([(TENSOR, view)], Some(metadata), path);
        written.map_err(|error| match error {
            SafeTensorError::IoError(error) => error,
            other => io::Error::other(other),
        })
    }

    /// Reads the bank that [`MemoryBank::save`] wrote, onto the CPU. The file must hold one unit
    /// row of `expected_dim` numbers for each of the `expected_rows` images; `momentum` is
    /// that of later updates, whatever the file's was.
    ///
    /// # Errors
    /// [`BankError::Io`] if the file cannot be read, [`BankError::Format`] if it is cut short,
    /// damaged or not a bank, [`BankError::FileSize`], [`BankError::NotUnit`],
    /// [`BankError::Setting`] for a momentum outside `[0, 1]`.
    pub fn load(
        path: impl AsRef<Path>,
        expected_rows: usize,
        expected_dim: usize,
        momentum: f64,
    ) -> Result<Self, BankError> {
        let path = path.as_ref();
        let io = |source| BankError::Io {
            path: path.to_owned(),
            action: "read",
            source,
        };
        let not_a_bank = |reason: String| BankError::Format {
            path: path.to_owned(),
            reason,
        };

        let file = File::open(path).map_err(io)?;
        // SAFETY: the map must not outlive a change of the file. Banks are replaced by renaming,
        // which leaves the mapped file alone, and the map lives only while the values are copied.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let file = SafeTensors::deserialize(&map).map_err(|error| not_a_bank(error.to_string()))?;
        let (_, header) =
            SafeTensors::read_metadata(&map).map_err(|error| not_a_bank(error.to_string()))?;
        let version = header
            .metadata()
            .as_ref()
            .and_then(|found| found.get(FORMAT.0));
        if version.is_none_or(|version| version != FORMAT.1) {
            let (key, want) = FORMAT;
            return Err(not_a_bank(format!(
                "its metadata says {key} {version:?}, not {want:?}"
            )));
        }
        let view = file
            .tensor(TENSOR)
            .map_err(|_| not_a_bank(format!("it has no tensor `{TENSOR}`")))?;
        let (rows, dim) = match *view.shape() {
            [rows, dim] if view.dtype() == Dtype::F32 => (rows, dim),
            ref shape => {
                let dtype = view.dtype();
                return Err(not_a_bank(format!(
                    "`{TENSOR}` is {shape:?} of {dtype:?}, not a matrix of F32"
                )));
            }
        };
        if (rows, dim) != (expected_rows, expected_dim) {
            return Err(BankError::FileSize {
                path: path.to_owned(),
                expected_rows,
                expected_dim,
                found_rows: rows,
                found_dim: dim,
            });
        }
        crate::bank::check_size(rows, dim)?;
        crate::bank::check_momentum(momentum)?;
        let values: Vec<f32> = view
            .data()
            .par_chunks_exact(4)
            .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            .collect();
        let norms: Vec<f32> = values.par_chunks_exact(dim).map(norm).collect();
        check_norms(&norms, &path.display().to_string())?;
        let rows = Tensor::from_vec(values, (rows, dim), &Device::Cpu)?;
        Ok(Self::from_checked(rows, momentum))
    }
}

#[cfg(target_endian = "big")]
compile_error!("banks are written as they lie in memory, and safetensors is little-endian");

/// The values as safetensors stores them.
fn as_bytes(values: &[f32]) -> &[u8] {
    // SAFETY: the pointer and the length are those of `values`, which outlives the result; any
    // four bytes of an `f32` are four valid `u8`, whose alignment of 1 every pointer meets.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}
