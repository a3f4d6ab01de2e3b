//! Which loss, as data: what the implementations of the losses choose their formula by.

/// A loss with everything fixed that its formula needs, but for the temperature.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// Equations (4) and (5) of arXiv:1912.01991.
    Paper,
    /// VISSL's noise-contrastive estimation with the constant `exp(log_z)`.
    Nce { log_z: f64, dataset_size: usize },
    /// Cross-entropy of the positive.
    InfoNce,
}

/// VISSL's guard against a logarithm of 0: the `f32` machine epsilon.
pub(crate) const NCE_EPS: f64 = f32::EPSILON as f64;
