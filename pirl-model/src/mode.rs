//! How batch norm behaves during a forward pass.

/// How batch norm behaves during a forward pass, and whether a backward pass may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Normalise by the batch; move the running statistics towards it (PyTorch's momentum 0.1 and
    /// unbiased variance); record for the backward pass.
    Train,
    /// Normalise by the running statistics, which do not change; record for the backward pass: how a
    /// network is fine-tuned with frozen batch norm.
    Frozen,
    /// Normalise by the running statistics and record nothing.
    Eval,
    /// Normalise by the batch and record nothing; the running statistics become the plain average
    /// over the batches seen since [`crate::Buffers::reset`]. See [`crate::precise_batch_norm`].
    Calibrate,
}

impl Mode {
    /// Whether batch norm normalises by the statistics of the batch.
    pub(crate) fn uses_batch(self) -> bool {
        matches!(self, Self::Train | Self::Calibrate)
    }

    /// Whether a backward pass may follow.
    pub(crate) fn records(self) -> bool {
        matches!(self, Self::Train | Self::Frozen)
    }
}
