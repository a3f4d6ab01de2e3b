//! Value and gradient of a loss in one pass over tiles of logits, in `f32`: `cpu` on a CPU, and with
//! the feature `cuda` `cuda` on a CUDA device.
//!
//! A tile is a few images by all negatives. One matrix product makes its logits, each row is
//! reduced and turned into the coefficients `dL/dz` in place, and a second product of coefficients
//! and negatives is the gradient, `dL/dv = (1 / (B tau)) (dL/dz_p m_p + sum_n dL/dz_n m_n)`.
//! A tile depends on its own images alone, so the result does not depend on the threads.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod log_mean;
mod packed;

use candle_core::{DType, Tensor};

use crate::LossError;
use crate::inputs::Inputs;
use crate::kind::Kind;

/// Whether this module computes the loss of `query`.
pub(crate) fn runs_on(query: &Tensor) -> bool {
    let device = query.device();
    query.dtype() == DType::F32 && (device.is_cpu() || (cfg!(feature = "cuda") && device.is_cuda()))
}

/// The mean loss, with its gradient if the query is tracked.
pub(crate) fn forward(kind: Kind, inputs: Inputs<'_>) -> Result<Tensor, LossError> {
    #[cfg(feature = "cuda")]
    if inputs.query.device().is_cuda() {
        return cuda::forward(kind, inputs);
    }
    cpu::forward(kind, inputs)
}

/// `ln mean exp(z)` over positives and negatives.
pub(crate) fn log_mean_exp(inputs: Inputs<'_>) -> Result<f64, LossError> {
    #[cfg(feature = "cuda")]
    if inputs.query.device().is_cuda() {
        return cuda::log_mean_exp(inputs);
    }
    cpu::log_mean_exp(inputs)
}
