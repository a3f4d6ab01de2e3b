//! NCE whose constant Z is estimated from the first batch.

use std::sync::OnceLock;

use candle_core::Tensor;
use pirl_core::Ops;
use pirl_loss::{ContrastiveLoss, LossError, Nce, Negatives};

/// [`Nce`] with a Z that is estimated from the first batch it sees, and kept.
#[derive(Debug)]
pub(super) struct EstimatedNce {
    temperature: f64,
    dataset_size: usize,
    ops: Ops,
    nce: OnceLock<Nce>,
}

impl EstimatedNce {
    pub(super) fn new(temperature: f64, dataset_size: usize, ops: Ops) -> Result<Self, LossError> {
        Nce::new(temperature, dataset_size, 0.0)?; // the same settings are refused
        Ok(Self {
            temperature,
            dataset_size,
            ops,
            nce: OnceLock::new(),
        })
    }

    /// The natural logarithm of Z, once it is known.
    pub(super) fn log_z(&self) -> Option<f64> {
        self.nce.get().map(Nce::log_z)
    }

    pub(super) fn restore(&self, log_z: f64) -> Result<(), LossError> {
        let nce = Nce::new(self.temperature, self.dataset_size, log_z)?;
        let _ = self.nce.set(nce.with_ops(self.ops)); // a run is restored before its first step
        Ok(())
    }

    /// The loss with its constant, which is estimated now unless it is known.
    pub(super) fn estimate(
        &self,
        query: &Tensor,
        positive: &Tensor,
        negatives: &Negatives,
    ) -> Result<Nce, LossError> {
        if let Some(nce) = self.nce.get() {
            return Ok(*nce);
        }
        let (temperature, images) = (self.temperature, self.dataset_size);
        let nce = Nce::estimated(temperature, images, query, positive, negatives, self.ops)?;
        Ok(*self.nce.get_or_init(|| nce))
    }
}

impl ContrastiveLoss for EstimatedNce {
    fn forward(
        &self,
        query: &Tensor,
        positive: &Tensor,
        negatives: &Negatives,
    ) -> Result<Tensor, LossError> {
        let nce = self.estimate(query, positive, negatives)?;
        nce.forward(query, positive, negatives)
    }
}
