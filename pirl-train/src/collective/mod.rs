//! What ranks do together: processes of one run, on one machine or many, each with a slice of every
//! batch.
//!
//! A run's ranks do the same steps in the same order, so that whatever they do together needs no
//! negotiation: the first call of one rank meets the first of every other. The transport is MPI's, and for
//! gradients on GPUs NCCL's; [`Threads`] joins threads of one process.

mod equality;
mod launch;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
mod threads;

use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::error::Result;

pub(crate) use equality::{Digest, ensure_equal};
pub use launch::{Join, Place, join, launched};
#[cfg(feature = "nccl")]
pub use nccl::Nccl;
pub use threads::Threads;

/// A rank's way to the others.
///
/// All ranks must make the same calls in the same order. A call fails if another rank has ended, or
/// does not come within the time that the implementation waits; nothing can be done together after
/// that.
pub trait Collective: Send + Sync {
    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn size(&self) -> usize;

    /// Begins to add up the `values` of all ranks, as many on each; [`Pending::wait`] has the sums, the
    /// same bits on every rank. Work may go on in between, and further calls may be made.
    ///
    /// # Errors
    /// If another rank has ended.
    fn all_reduce(&self, values: Vec<f32>) -> Result<Pending>;

    /// Adds up the `values` of all ranks in place, in the memory of the GPU that they are on, `f32` and
    /// contiguous. Returns `false`, on every rank, where that cannot be done and nothing was:
    /// [`Collective::all_reduce`] can do it in the host's memory.
    ///
    /// # Errors
    /// If another rank has ended or does not come.
    fn all_reduce_on_device(&self, values: &Tensor) -> Result<bool> {
        let _ = values;
        Ok(false)
    }

    /// What every rank gave, by rank; lengths may differ.
    ///
    /// # Errors
    /// If another rank has ended or does not come.
    fn all_gather(&self, own: Vec<u8>) -> Result<Vec<Vec<u8>>>;

    /// Adds up the `values` of all ranks, of which rank `r` gets the `lengths[r]` that follow those of
    /// the ranks before it. `lengths` is the same on every rank, and its sum is the number of values.
    ///
    /// # Errors
    /// If another rank has ended or does not come.
    fn reduce_scatter(&self, values: Vec<f32>, lengths: &[usize]) -> Result<Vec<f32>>;

    /// What rank `root` gave; what the others give is ignored.
    ///
    /// # Errors
    /// If another rank has ended or does not come.
    fn broadcast(&self, root: usize, bytes: Vec<u8>) -> Result<Vec<u8>>;

    /// Waits until every rank has come here.
    ///
    /// # Errors
    /// If another rank has ended or does not come.
    fn barrier(&self) -> Result<()> {
        self.all_gather(Vec::new()).map(drop)
    }

    /// Ends the work of all ranks because of an error here. Ranks that are processes of their own end
    /// with exit code 1, this one too; of threads, every call fails with this `reason` from now on.
    fn abort(&self, reason: &str);
}

/// A sum that is being made.
#[must_use]
pub struct Pending(Box<dyn FnOnce() -> Result<Vec<f32>> + Send>);

impl Pending {
    /// Of what `wait` waits for.
    pub fn new(wait: impl FnOnce() -> Result<Vec<f32>> + Send + 'static) -> Self {
        Self(Box::new(wait))
    }

    /// The sums.
    ///
    /// # Errors
    /// If another rank has ended or does not come.
    pub fn wait(self) -> Result<Vec<f32>> {
        (self.0)()
    }
}

/// A process without others: every operation is done when it is called.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Collective for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_reduce(&self, values: Vec<f32>) -> Result<Pending> {
        Ok(Pending::new(|| Ok(values)))
    }

    fn all_gather(&self, own: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        Ok(vec![own])
    }

    fn reduce_scatter(&self, values: Vec<f32>, _: &[usize]) -> Result<Vec<f32>> {
        Ok(values)
    }

    fn broadcast(&self, _: usize, bytes: Vec<u8>) -> Result<Vec<u8>> {
        Ok(bytes)
    }

    fn abort(&self, _: &str) {}
}

/// A rank's way to the others, for those who hold it together.
pub type Ranks = Arc<dyn Collective>;

/// The ranks of a process without others.
pub fn alone() -> Ranks {
    Arc::new(Alone)
}

/// `ranks`, whose gradients are on `device`: added up there by NCCL, if this program has it and all ranks
/// train on GPUs.
///
/// # Errors
/// If a rank has ended, or NCCL cannot join the GPUs.
pub(crate) fn with_gradients_on(ranks: Ranks, device: &Device) -> Result<Ranks> {
    #[cfg(feature = "nccl")]
    if ranks.size() > 1
        && !any(ranks.as_ref(), !device.is_cuda())?
        && let Device::Cuda(device) = device
    {
        return Ok(Arc::new(Nccl::new(ranks, device)?));
    }
    let _ = device;
    Ok(ranks)
}

/// Whether `flag` is set on any rank.
///
/// # Errors
/// If a rank has ended.
pub fn any(ranks: &dyn Collective, flag: bool) -> Result<bool> {
    if ranks.size() == 1 {
        return Ok(flag);
    }
    let flags = ranks.all_gather(vec![u8::from(flag)])?;
    Ok(flags.concat().contains(&1))
}

/// The bytes of `values`, as the functions above take them.
pub(crate) fn to_bytes(values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; size_of_val(values)];
    for (bytes, value) in bytes.chunks_exact_mut(4).zip(values) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// The values that [`to_bytes`] wrote.
pub(crate) fn from_bytes(bytes: &[u8]) -> Vec<f32> {
    let (values, _) = bytes.as_chunks();
    values
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect()
}
