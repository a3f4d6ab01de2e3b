//! One stream of random numbers for each purpose, from the seed of a training run.

use pirl_core::random;
use rand_chacha::ChaCha8Rng;

/// What a stream is for.
#[derive(Clone, Copy)]
pub(super) enum Stream {
    /// First weights of the proposal network.
    Rpn = 1,
    /// First weights of the box head.
    Predictor = 2,
    /// Order of the images.
    Order = 3,
    /// Size and mirroring of an image.
    View = 4,
    /// Anchors and regions in the losses of a step.
    Sample = 5,
    /// Those of the batches that statistics are recomputed on.
    Calibrate = 6,
}

impl Stream {
    /// The generator of `(seed, purpose, a, b)`.
    pub(super) fn generator(self, seed: u64, a: u64, b: u64) -> ChaCha8Rng {
        random::stream(seed, self as u64, a, b)
    }

    /// A seed for what takes one.
    pub(super) fn seed(self, seed: u64) -> u64 {
        random::seed(seed, self as u64)
    }
}
