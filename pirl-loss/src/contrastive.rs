//! The three contrastive losses behind one trait.

use std::fmt;

use candle_core::Tensor;
use pirl_core::{Ops, check};

use crate::inputs::{Inputs, check_temperature};
use crate::kind::Kind;
use crate::{LossError, Negatives, fused, reference};

/// A loss that compares embeddings with rows of a memory bank.
pub trait ContrastiveLoss: fmt::Debug + Send + Sync {
    /// The mean loss of a batch, a scalar in nats.
    ///
    /// # Shapes
    /// `query`: `(B, D)`, unit rows, the only argument that receives a gradient; `positive`:
    /// `(B, D)`, the bank row of each image; all tensors `f32` (or all `f64`, by the reference).
    ///
    /// # Errors
    /// [`LossError::Shape`], [`LossError::DType`], [`LossError::Index`] for arguments that do not
    /// fit together, [`LossError::EmptyBatch`], [`LossError::NoNegatives`] if an image has no
    /// negative left.
    fn forward(
        &self,
        query: &Tensor,
        positive: &Tensor,
        negatives: &Negatives,
    ) -> Result<Tensor, LossError>;
}

/// The paper's loss, arXiv:1912.01991, equations (4) and (5).
///
/// With `z = s / temperature` and `S` the sum of `exp(z_n)` over the negatives, an image costs
/// `softplus(ln S - z_p) + sum_n softplus(z_n - ln S)`, that is `-ln h(m_I, v)` and
/// `-sum_n ln(1 - h(m_n, v))`.
#[derive(Debug, Clone, Copy)]
pub struct Paper {
    temperature: f64,
    ops: Ops,
}

impl Paper {
    /// `temperature` is the paper's tau, 0.07.
    ///
    /// # Errors
    /// [`LossError::Setting`] unless it is positive and finite.
    pub fn new(temperature: f64) -> Result<Self, LossError> {
        Ok(Self {
            temperature: check_temperature(temperature)?,
            ops: Ops::Fast,
        })
    }

    /// What computes it: the fused op where there is one, the default, or [`mod@reference`].
    #[must_use]
    pub fn with_ops(self, ops: Ops) -> Self {
        Self { ops, ..self }
    }
}

impl ContrastiveLoss for Paper {
    fn forward(
        &self,
        query: &Tensor,
        positive: &Tensor,
        negatives: &Negatives,
    ) -> Result<Tensor, LossError> {
        let inputs = Inputs::new(query, positive, negatives, self.temperature)?;
        compute(Kind::Paper, inputs, self.ops)
    }
}

/// Cross-entropy of the positive among one positive and `N` negatives: for an image
/// `ln(exp(z_p) + S) - z_p`.
#[derive(Debug, Clone, Copy)]
pub struct InfoNce {
    temperature: f64,
    ops: Ops,
}

impl InfoNce {
    /// `temperature` is tau: 0.1 in VISSL's PIRL with MLP heads.
    ///
    /// # Errors
    /// [`LossError::Setting`] unless it is positive and finite.
    pub fn new(temperature: f64) -> Result<Self, LossError> {
        Ok(Self {
            temperature: check_temperature(temperature)?,
            ops: Ops::Fast,
        })
    }

    /// What computes it: the fused op where there is one, the default, or [`mod@reference`].
    #[must_use]
    pub fn with_ops(self, ops: Ops) -> Self {
        Self { ops, ..self }
    }
}

impl ContrastiveLoss for InfoNce {
    fn forward(
        &self,
        query: &Tensor,
        positive: &Tensor,
        negatives: &Negatives,
    ) -> Result<Tensor, LossError> {
        let inputs = Inputs::new(query, positive, negatives, self.temperature)?;
        compute(Kind::InfoNce, inputs, self.ops)
    }
}

/// Noise-contrastive estimation as VISSL computes it (`vissl/losses/nce_loss.py`).
///
/// With `P = exp(z) / Z`, noise `c = K / M` for `K` negatives out of `M` images and
/// `eps = 1.1920929e-7`, an image costs
/// `-ln(P_p / (P_p + c + eps)) - sum_n ln(c / (P_n + c + eps))`. `Z` is a constant: VISSL estimates it
/// at the first forward ([`Nce::estimated`]) and keeps it. A negative that is masked out does not count
/// in `K`.
#[derive(Debug, Clone, Copy)]
pub struct Nce {
    temperature: f64,
    dataset_size: usize,
    log_z: f64,
    ops: Ops,
}

impl Nce {
    /// `temperature` is tau, 0.07; `dataset_size` is `M`, the number of images in the bank; `log_z` is
    /// the natural logarithm of `Z`.
    ///
    /// # Errors
    /// [`LossError::Setting`] for a temperature that is not positive and finite, no images, or a
    /// `log_z` that is not finite.
    pub fn new(temperature: f64, dataset_size: usize, log_z: f64) -> Result<Self, LossError> {
        let images = dataset_size;
        check("dataset_size", images, images > 0, "must be at least 1")?;
        check("log_z", log_z, log_z.is_finite(), "must be finite")?;
        Ok(Self {
            temperature: check_temperature(temperature)?,
            dataset_size,
            log_z,
            ops: Ops::Fast,
        })
    }

    /// The same with `Z` estimated from a batch: `M` times the mean of `exp(z)` over positives and
    /// negatives, those that are masked out not counted. The arguments are those of
    /// [`ContrastiveLoss::forward`].
    ///
    /// # Errors
    /// Those of [`Nce::new`] and of [`ContrastiveLoss::forward`].
    pub fn estimated(
        temperature: f64,
        dataset_size: usize,
        query: &Tensor,
        positive: &Tensor,
        negatives: &Negatives,
        ops: Ops,
    ) -> Result<Self, LossError> {
        check_temperature(temperature)?;
        let inputs = Inputs::new(query, positive, negatives, temperature)?;
        let mean = if ops == Ops::Fast && fused::runs_on(query) {
            fused::log_mean_exp(inputs)?
        } else {
            reference::log_mean_exp(query, positive, negatives, temperature)?
        };
        let log_z = (dataset_size as f64).ln() + mean;
        Ok(Self::new(temperature, dataset_size, log_z)?.with_ops(ops))
    }

    /// The natural logarithm of `Z`.
    pub fn log_z(&self) -> f64 {
        self.log_z
    }

    /// What computes it: the fused op where there is one, the default, or [`mod@reference`].
    #[must_use]
    pub fn with_ops(self, ops: Ops) -> Self {
        Self { ops, ..self }
    }
}

impl ContrastiveLoss for Nce {
    fn forward(
        &self,
        query: &Tensor,
        positive: &Tensor,
        negatives: &Negatives,
    ) -> Result<Tensor, LossError> {
        let inputs = Inputs::new(query, positive, negatives, self.temperature)?;
        let kind = Kind::Nce {
            log_z: self.log_z,
            dataset_size: self.dataset_size,
        };
        compute(kind, inputs, self.ops)
    }
}

/// The mean loss, by the implementation for `ops` and the device of the query.
fn compute(kind: Kind, inputs: Inputs<'_>, ops: Ops) -> Result<Tensor, LossError> {
    let Inputs {
        query,
        positive,
        negatives,
        temperature,
        ..
    } = inputs;
    if ops == Ops::Fast && fused::runs_on(query) {
        return fused::forward(kind, inputs);
    }
    match kind {
        Kind::Paper => reference::paper(query, positive, negatives, temperature),
        Kind::Nce {
            log_z,
            dataset_size,
        } => reference::nce(query, positive, negatives, temperature, dataset_size, log_z),
        Kind::InfoNce => reference::info_nce(query, positive, negatives, temperature),
    }
}
