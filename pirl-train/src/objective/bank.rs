//! The rows that an objective compares with, wherever they are.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Tensor};
use pirl_bank::{BankError, MappedBank, MappedConfig, MemoryBank};

use crate::collective::Collective;
use crate::error::{Result, TrainError};

/// A memory bank in memory, or in a mapped file.
pub enum Bank {
    /// In the memory of a device.
    Memory(MemoryBank),
    /// In a file, which is opened before the first step.
    Mapped(Box<MappedFile>),
}

/// A bank in a mapped file.
pub struct MappedFile {
    folder: PathBuf,
    config: MappedConfig,
    /// The step whose rows to begin with.
    step: u64,
    bank: Option<Mutex<MappedBank>>,
}

impl Bank {
    /// In `folder`, which is made before the first step unless it is there.
    pub(super) fn mapped(folder: PathBuf, config: MappedConfig) -> Self {
        Self::Mapped(Box::new(MappedFile {
            folder,
            config,
            step: 0,
            bank: None,
        }))
    }

    /// How many rows there are, on this rank.
    pub fn len(&self) -> usize {
        match self {
            Self::Memory(bank) => bank.len(),
            Self::Mapped(file) => file.config.rows,
        }
    }

    /// Never true: a bank has at least one row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Numbers in a row.
    pub fn dim(&self) -> usize {
        match self {
            Self::Memory(bank) => bank.dim(),
            Self::Mapped(file) => file.config.dim,
        }
    }

    /// All rows, `(len, dim)`, of a bank in memory: they change with its updates.
    pub fn rows(&self) -> Option<&Tensor> {
        match self {
            Self::Memory(bank) => Some(bank.rows()),
            Self::Mapped(_) => None,
        }
    }

    /// Where the rows are that are gathered.
    pub(super) fn device(&self) -> &Device {
        match self {
            Self::Memory(bank) => bank.rows().device(),
            Self::Mapped(_) => &Device::Cpu,
        }
    }

    pub(super) fn momentum(&self) -> f64 {
        match self {
            Self::Memory(bank) => bank.momentum(),
            Self::Mapped(file) => file.config.momentum,
        }
    }

    /// A copy of the rows at `indices`, `(indices.len(), dim)`.
    ///
    /// # Errors
    /// [`BankError::Index`]; before the first step, if the rows are in a file.
    pub fn gather(&self, indices: &[u32]) -> Result<Tensor> {
        match self {
            Self::Memory(bank) => Ok(bank.gather(indices)?),
            Self::Mapped(file) => Ok(file.open()?.gather(indices)?),
        }
    }

    pub(super) fn update(&mut self, indices: &[u32], embeddings: &Tensor) -> Result<()> {
        match self {
            Self::Memory(bank) => Ok(bank.update(indices, embeddings)?),
            Self::Mapped(file) => Ok(file.open()?.update(indices, embeddings)?),
        }
    }

    /// Of a bank in a file: the step of the checkpoint that the run goes on from.
    pub(super) fn begin_at(&mut self, step: u64) {
        if let Self::Mapped(file) = self {
            file.step = step;
        }
    }

    /// Opens a bank in a file, as of the step that rank 0 goes on from.
    pub(super) fn begin(&mut self, ranks: &dyn Collective) -> Result<()> {
        let Self::Mapped(file) = self else {
            return Ok(());
        };
        let step = ranks.broadcast(0, file.step.to_le_bytes().to_vec())?;
        if let Ok(step) = step.as_slice().try_into() {
            file.step = u64::from_le_bytes(step);
        }
        let mut bank = MappedBank::open(&file.folder, &file.config)?;
        bank.go_back(file.step)?;
        file.bank = Some(Mutex::new(bank));
        Ok(())
    }

    /// Of a bank in a file: that it can be gone back to from now on.
    pub(super) fn mark(&self, step: u64) -> Result<()> {
        match self {
            Self::Mapped(file) if file.bank.is_some() => Ok(file.open()?.mark(step)?),
            _ => Ok(()), // nothing has been done with it yet
        }
    }
}

impl MappedFile {
    /// The open bank. Whatever panicked elsewhere, its rows are whole or undone by its log.
    fn open(&self) -> Result<MutexGuard<'_, MappedBank>> {
        let bank = self.bank.as_ref().ok_or_else(|| BankError::Format {
            path: self.folder.clone(),
            reason: "it is not open before the first step".to_owned(),
        });
        let bank = bank.map_err(TrainError::from)?;
        Ok(bank.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
