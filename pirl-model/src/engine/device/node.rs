//! A pass as one node of Candle's graph.

use std::sync::{Mutex, PoisonError};

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, DType, Error, Layout, Result, Shape, Tensor};
use pirl_core::storage::cpu_slice;

use super::Value;
use super::backward::Tape;
use crate::engine::DIFFERENTIATED;
use crate::params::ParamSet;

/// `(x, flat parameters)` to the output of a pass that is over, `f32`, maps as the pass has them.
pub(in crate::engine) struct Node {
    out: Tensor,
    tape: Mutex<Option<Tape>>,
    params: ParamSet,
}

impl Node {
    /// `out`: the output of the pass over `params` that `tape` recorded.
    pub(in crate::engine) fn new(out: &Value, tape: Tape, params: &ParamSet) -> Result<Self> {
        Ok(Self {
            out: out.data.to_dtype(DType::F32)?,
            tape: Mutex::new(Some(tape)),
            params: params.clone(),
        })
    }
}

impl CustomOp2 for Node {
    fn name(&self) -> &'static str {
        "pirl-pass"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (storage, layout) = self.out.storage_and_layout();
        let numbers = cpu_slice::<f32>(&storage, layout)?.to_vec();
        Ok((CpuStorage::F32(numbers), self.out.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (storage, layout) = self.out.storage_and_layout();
        let storage = crate::cuda::storage(&storage)?;
        let device = &storage.device;
        let numbers = crate::cuda::numbers::<f32>(storage, layout)?;
        let mut copy = crate::cuda::alloc::<f32>(device, numbers.len())?;
        device.memcpy_dtod(&numbers, &mut copy)?;
        let copy = CudaStorage::wrap_cuda_slice(copy, device.clone());
        Ok((copy, self.out.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        _: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut tape = self.tape.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(tape) = tape.take() else {
            return Err(Error::msg(DIFFERENTIATED));
        };
        let (dx, gradient) = tape.backward(dy, x.track_op())?;
        let as_given = |dx: Tensor| {
            let dx = dx.to_dtype(DType::F32)?;
            match dx.rank() {
                4 => dx.permute((0, 3, 1, 2))?.contiguous(),
                _ => Ok(dx),
            }
        };
        let dx = dx.map(as_given).transpose()?;
        Ok((dx, self.params.give_gradient(gradient)?))
    }
}
