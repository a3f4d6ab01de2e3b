//! One stream of random numbers for each purpose, from the run's seed.

use pirl_core::random;
use rand_chacha::ChaCha8Rng;

/// What a stream is for. The numbers are part of a run's identity: never change them.
#[derive(Clone, Copy, Debug)]
pub enum Stream {
    /// First weights of the backbone.
    Backbone = 1,
    /// First weights of g, or of a classifier.
    Head = 2,
    /// First weights of f.
    ImageHead = 3,
    /// First rows of the bank.
    Bank = 4,
    /// Negatives of a step.
    Negatives = 5,
    /// Which images are used, of more.
    Subset = 6,
}

impl Stream {
    /// The generator of the stream's part number `index`, a step for [`Stream::Negatives`].
    pub fn generator(self, seed: u64, index: u64) -> ChaCha8Rng {
        random::stream(seed, self as u64, index, 0)
    }

    /// A seed for what takes one.
    pub fn seed(self, seed: u64) -> u64 {
        random::seed(seed, self as u64)
    }
}
