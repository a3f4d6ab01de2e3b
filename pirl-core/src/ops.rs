//! Which implementation computes something.

use serde::{Deserialize, Serialize};

/// Which implementation runs a network, its optimiser, its loss or its bank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ops {
    /// The crates' own kernels: on a CPU, and with the feature `cuda` on a CUDA device; the reference
    /// where there are none.
    #[default]
    Fast,
    /// Candle's own differentiable ops: slow, and what the fast ones are compared with.
    Reference,
}
