//! Gradients that NCCL adds up in the memory of GPUs, each of another rank; for everything else the ranks
//! have the way that they came with.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::nccl::result::NcclError;
use candle_core::cuda::cudarc::nccl::{Comm, Id, ReduceOp};
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, Device, InplaceOp1, Layout, Tensor,
    backend::BackendDevice, bail,
};

use super::{Collective, Pending, Ranks};
use crate::error::{Result, TrainError};

/// How long a sum may take. All ranks have met a moment before, when they told each other the losses: one
/// that is this late does not come.
const LONGEST: Duration = Duration::from_secs(120);

/// Ranks with a GPU each.
pub struct Nccl {
    ranks: Ranks,
    comm: Mutex<Connected>,
    device: CudaDevice,
}

struct Connected(Comm);
// SAFETY: any thread may use a communicator as long as one does at a time, which the lock sees to.
unsafe impl Send for Connected {}

impl Nccl {
    /// Joins the GPUs of `ranks`, which all call this at the same time; rank 0 hands NCCL's identifier to
    /// the others.
    ///
    /// # Errors
    /// [`TrainError::Launch`] with NCCL's reason, for instance that two ranks have the same GPU.
    pub fn new(ranks: Ranks, device: &CudaDevice) -> Result<Self> {
        // Others wait for the identifier: they are told when there is none.
        let own = match ranks.rank() {
            0 => Id::new().map(|id| id.internal().map(|byte| byte as u8).to_vec()),
            _ => Ok(Vec::new()),
        };
        let given = ranks.broadcast(0, own.clone().unwrap_or_default())?;
        own.map_err(|error| failed("no identifier could be made", &error))?;
        let Ok(id) = <[u8; 128]>::try_from(given) else {
            return Err(TrainError::Launch {
                launcher: "NCCL",
                reason: "rank 0 could not make an identifier; see its message".to_owned(),
            });
        };
        let stream = device.cuda_stream();
        stream.context().bind_to_thread().w()?;
        let id = Id::uninit(id.map(|byte| byte as _));
        let comm = Comm::from_rank(stream, ranks.rank(), ranks.size(), id).map_err(|error| {
            failed(
                "the GPUs of the ranks cannot be joined: each needs one of its own (--device \
                 cuda:local); NCCL_DEBUG=INFO says more",
                &error,
            )
        })?;
        Ok(Self {
            ranks,
            comm: Mutex::new(Connected(comm)),
            device: device.clone(),
        })
    }

    /// Waits until the device has done all that it was asked for.
    fn wait(&self) -> Result<()> {
        let done = self.device.cuda_stream().record_event(None).w()?;
        let start = Instant::now();
        while !done.try_is_complete().w()? {
            if start.elapsed() > LONGEST {
                return Err(TrainError::RanksMissing {
                    ranks: Vec::new(),
                    seconds: LONGEST.as_secs_f64(),
                });
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }
}

fn failed(what: &str, error: &NcclError) -> TrainError {
    TrainError::Launch {
        launcher: "NCCL",
        reason: format!("{what} ({:?})", error.0),
    }
}

impl Collective for Nccl {
    fn rank(&self) -> usize {
        self.ranks.rank()
    }

    fn size(&self) -> usize {
        self.ranks.size()
    }

    fn all_reduce(&self, values: Vec<f32>) -> Result<Pending> {
        self.ranks.all_reduce(values)
    }

    fn all_reduce_on_device(&self, values: &Tensor) -> Result<bool> {
        let here =
            matches!(values.device(), Device::Cuda(device) if device.same_device(&self.device));
        if !here {
            return Ok(false);
        }
        let comm = self.comm.lock().unwrap_or_else(PoisonError::into_inner);
        values.inplace_op1(&Sum(&comm.0))?;
        drop(comm);
        self.wait()?;
        Ok(true)
    }

    fn all_gather(&self, own: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        self.ranks.all_gather(own)
    }

    fn reduce_scatter(&self, values: Vec<f32>, lengths: &[usize]) -> Result<Vec<f32>> {
        self.ranks.reduce_scatter(values, lengths)
    }

    fn broadcast(&self, root: usize, bytes: Vec<u8>) -> Result<Vec<u8>> {
        self.ranks.broadcast(root, bytes)
    }

    fn abort(&self, reason: &str) {
        self.ranks.abort(reason);
    }
}

/// The sum over ranks, in place.
struct Sum<'a>(&'a Comm);

impl InplaceOp1 for Sum<'_> {
    fn name(&self) -> &'static str {
        "nccl-all-reduce"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        bail!("NCCL adds up what is on a GPU")
    }

    fn cuda_fwd(&self, values: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("NCCL needs contiguous numbers, got {layout:?}");
        };
        let values = values.as_cuda_slice_mut::<f32>()?;
        let Some(mut values) = values.try_slice_mut(start..end) else {
            bail!("a tensor spans {start}..{end}, beyond its storage");
        };
        let sum = self.0.all_reduce_in_place(&mut values, &ReduceOp::Sum);
        match sum {
            Ok(_) => Ok(()),
            Err(error) => bail!("NCCL could not begin a sum: {:?}", error.0),
        }
    }
}
