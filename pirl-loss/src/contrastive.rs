//! The three contrastive losses behind one trait.

use std::fmt;
use std::sync::Mutex;

use candle_core::Tensor;

use crate::fused;
use crate::negatives::Sizes;
use crate::{LossError, Negatives, reference};

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

    /// Whether the first [`ContrastiveLoss::forward`] estimates something from the whole batch it is
    /// given ([`Nce`] its Z), so that a batch must not be given in parts then.
    fn estimates(&self) -> bool {
        false
    }

    /// What the loss has learnt and a resumed run must restore: for [`Nce`] the natural logarithm
    /// of Z once it is fixed, else `None`.
    fn state(&self) -> Option<f64> {
        None
    }

    /// Restores [`ContrastiveLoss::state`]. Losses without state ignore it.
    ///
    /// # Errors
    /// [`LossError::State`] if `state` is not finite.
    fn set_state(&self, state: f64) -> Result<(), LossError> {
        let _ = state;
        Ok(())
    }
}

/// The paper's loss, arXiv:1912.01991, equations (4) and (5).
///
/// With `z = s / temperature` and `S` the sum of `exp(z_n)` over the negatives, an image costs
/// `softplus(ln S - z_p) + sum_n softplus(z_n - ln S)`, that is `-ln h(m_I, v)` and
/// `-sum_n ln(1 - h(m_n, v))`.
#[derive(Debug, Clone, Copy)]
pub struct Paper {
    temperature: f64,
    fused: bool,
}

impl Paper {
    /// `temperature` is the paper's tau, 0.07.
    ///
    /// # Errors
    /// [`LossError::Temperature`] unless positive and finite.
    pub fn new(temperature: f64) -> Result<Self, LossError> {
        Ok(Self {
            temperature: check_temperature(temperature)?,
            fused: true,
        })
    }

    /// Whether the fused op runs where it can; true by default. Else [`mod@reference`] does.
    #[must_use]
    pub fn fused(self, fused: bool) -> Self {
        Self { fused, ..self }
    }
}

impl ContrastiveLoss for Paper {
    fn forward(
        &self,
        query: &Tensor,
        positive: &Tensor,
        negatives: &Negatives,
    ) -> Result<Tensor, LossError> {
        let sizes = negatives.check(query, positive)?;
        let inputs = (query, positive, negatives);
        Kind::Paper.forward(inputs, sizes, self.temperature, self.fused)
    }
}

/// Cross-entropy of the positive among one positive and `N` negatives: for an image
/// `ln(exp(z_p) + S) - z_p`.
#[derive(Debug, Clone, Copy)]
pub struct InfoNce {
    temperature: f64,
    fused: bool,
}

impl InfoNce {
    /// `temperature` is tau: 0.1 in VISSL's PIRL with MLP heads.
    ///
    /// # Errors
    /// [`LossError::Temperature`] unless positive and finite.
    pub fn new(temperature: f64) -> Result<Self, LossError> {
        Ok(Self {
            temperature: check_temperature(temperature)?,
            fused: true,
        })
    }

    /// Whether the fused op runs where it can; true by default. Else [`mod@reference`] does.
    #[must_use]
    pub fn fused(self, fused: bool) -> Self {
        Self { fused, ..self }
    }
}

impl ContrastiveLoss for InfoNce {
    fn forward(
        &self,
        query: &Tensor,
        positive: &Tensor,
        negatives: &Negatives,
    ) -> Result<Tensor, LossError> {
        let sizes = negatives.check(query, positive)?;
        let inputs = (query, positive, negatives);
        Kind::InfoNce.forward(inputs, sizes, self.temperature, self.fused)
    }
}

/// Noise-contrastive estimation as VISSL computes it (`vissl/losses/nce_loss.py`).
///
/// With `P = exp(z) / Z`, noise `c = K / M` for `K` negatives out of `M` images and
/// `eps = 1.1920929e-7`, an image costs
/// `-ln(P_p / (P_p + c + eps)) - sum_n ln(c / (P_n + c + eps))`. `Z` is estimated at the first
/// forward, `M` times the mean of `exp(z)` over positives and negatives, and fixed from then on.
/// A negative that is masked out counts neither in `K` nor in `Z`.
#[derive(Debug)]
pub struct Nce {
    temperature: f64,
    dataset_size: usize,
    log_z: Mutex<Option<f64>>,
    fused: bool,
}

impl Nce {
    /// `temperature` is tau, 0.07; `dataset_size` is `M`, the number of images in the bank.
    ///
    /// # Errors
    /// [`LossError::Temperature`] unless positive and finite, [`LossError::DatasetSize`] if 0.
    pub fn new(temperature: f64, dataset_size: usize) -> Result<Self, LossError> {
        if dataset_size == 0 {
            return Err(LossError::DatasetSize);
        }
        Ok(Self {
            temperature: check_temperature(temperature)?,
            dataset_size,
            log_z: Mutex::new(None),
            fused: true,
        })
    }

    /// Whether the fused op runs where it can; true by default. Else [`mod@reference`] does.
    #[must_use]
    pub fn fused(self, fused: bool) -> Self {
        Self { fused, ..self }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<f64>> {
        // The value is written in one assignment, so a panic elsewhere cannot leave it half done.
        self.log_z
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl ContrastiveLoss for Nce {
    fn forward(
        &self,
        query: &Tensor,
        positive: &Tensor,
        negatives: &Negatives,
    ) -> Result<Tensor, LossError> {
        let sizes = negatives.check(query, positive)?;
        let log_z = {
            let mut fixed = self.lock();
            match *fixed {
                Some(log_z) => log_z,
                None => {
                    let mean = if self.fused && fused::runs_on(query) {
                        fused::log_mean_exp(query, positive, negatives, sizes, self.temperature)?
                    } else {
                        reference::log_mean_exp(query, positive, negatives, self.temperature)?
                    };
                    *fixed.insert((self.dataset_size as f64).ln() + mean)
                }
            }
        };
        let kind = Kind::Nce {
            log_z,
            dataset_size: self.dataset_size,
        };
        let inputs = (query, positive, negatives);
        kind.forward(inputs, sizes, self.temperature, self.fused)
    }

    fn estimates(&self) -> bool {
        true
    }

    fn state(&self) -> Option<f64> {
        *self.lock()
    }

    fn set_state(&self, state: f64) -> Result<(), LossError> {
        if !state.is_finite() {
            return Err(LossError::State { value: state });
        }
        *self.lock() = Some(state);
        Ok(())
    }
}

/// VISSL's guard against a logarithm of 0: the `f32` machine epsilon.
pub(crate) const NCE_EPS: f64 = f32::EPSILON as f64;

/// A loss with everything fixed that its formula needs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Paper,
    Nce { log_z: f64, dataset_size: usize },
    InfoNce,
}

impl Kind {
    fn forward(
        self,
        (query, positive, negatives): (&Tensor, &Tensor, &Negatives),
        sizes: Sizes,
        temperature: f64,
        fused: bool,
    ) -> Result<Tensor, LossError> {
        if fused && fused::runs_on(query) {
            return fused::forward(self, query, positive, negatives, sizes, temperature);
        }
        match self {
            Kind::Paper => reference::paper(query, positive, negatives, temperature),
            Kind::Nce {
                log_z,
                dataset_size,
            } => reference::nce(query, positive, negatives, temperature, dataset_size, log_z),
            Kind::InfoNce => reference::info_nce(query, positive, negatives, temperature),
        }
    }
}

fn check_temperature(value: f64) -> Result<f64, LossError> {
    if value.is_finite() && value > 0.0 {
        Ok(value)
    } else {
        Err(LossError::Temperature { value })
    }
}
