//! Training ops with exact backward passes: convolution, batch norm, pooling, linear, ReLU.
//!
//! Candle's convolution backward on a CPU goes through a scalar transposed convolution, and its
//! max-pool has no usable backward at all, so training needs ops of its own. They exist as
//!
//! * kernels on slices ([`conv2d`](mod@conv2d), [`batch_norm`], [`pool`], [`linear`], [`relu`]),
//!   which the fast engine of CPUs calls one after the other, without tensors in between;
//! * forward and backward functions on tensors outside Candle's graph (`nhwc`, `batch_norm::tensors`),
//!   which the fast engine of GPUs calls;
//! * differentiable functions on Candle tensors ([`conv2d()`], [`max_pool2d`]), for code that composes
//!   ops freely;
//! * a plain [`reference`](mod@reference) made only of Candle's own differentiable ops, which
//!   tests compare with and which devices without a fast path run.
//!
//! On a CUDA device the functions on tensors run kernels of their own, the `.cu` files beside each op,
//! with the feature `cuda`, and convolution is cuDNN's with the feature `cudnn`. Tests run these
//! kernels on a CPU; nothing of this crate has been run on a GPU yet.
//!
//! Kernels on slices work on NHWC activations (channels last), stored as any [`Element`], and PyTorch's weight
//! layouts in `f32`; they compute in `f32` and round what they store. They run on
//! Rayon's pool, and cut and sum their work the same way whatever the number of threads, so their
//! results are reproducible to the bit on one kind of CPU. Slices of a wrong length are the
//! caller's bug, not bad input: they panic. The tensor functions check shapes and return errors.

pub mod batch_norm;
mod candle;
pub mod conv2d;
pub(crate) mod element;
pub mod linear;
pub(crate) mod nhwc;
pub mod pool;
pub mod reference;
pub mod relu;
pub(crate) mod sum;
pub(crate) mod weights;

pub use candle::{conv2d, conv2d_direct, max_pool2d};
pub use element::Element;

/// Places that a kernel or window takes along an axis; 0 where the padded input is smaller than it.
fn placements(input: usize, kernel: usize, stride: usize, padding: usize) -> usize {
    match (input + 2 * padding).checked_sub(kernel) {
        Some(room) if stride > 0 => room / stride + 1,
        _ => 0,
    }
}
