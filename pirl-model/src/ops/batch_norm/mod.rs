//! Batch normalisation over NHWC rows, with the residual addition and the ReLU that follow it.
//!
//! A ResNet always adds and rectifies straight after normalising, and each of the three alone is
//! bound by memory traffic, so one pass does them all: `out = relu(gamma * xhat + beta + residual)`.
//! Training reads its input twice, once for the statistics and once to apply them.
//!
//! A forward pass is [`Statistics::of_batch`] in training or [`Statistics::running`] in evaluation,
//! then [`Affine::new`], then [`forward`]; [`backward`] takes the same statistics.

mod affine;
mod backward;
#[cfg(feature = "cuda")]
mod cuda;
mod cut;
mod forward;
mod statistics;
mod synced;
pub(crate) mod tensors;

pub use affine::Affine;
pub(crate) use backward::backward_over;
pub use backward::{Gradients, backward};
pub use forward::forward;
pub(crate) use statistics::Moments;
pub use statistics::{ChannelStatistics, Statistics};
pub(crate) use synced::join;
