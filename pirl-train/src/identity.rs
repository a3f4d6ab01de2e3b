//! Which training a checkpoint is of.

use std::fmt;

/// What tells one training from another: a checkpoint is resumed only by its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Images trained on.
    pub images: usize,
    /// Fingerprint of those images, and of whatever else the steps depend on.
    pub fingerprint: String,
    /// Seed of everything random.
    pub seed: u64,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} images, seed {}, fingerprint {}",
            self.images, self.seed, self.fingerprint
        )
    }
}
