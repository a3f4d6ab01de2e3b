//! One stream of random numbers for each purpose, from the run's seed.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// What a stream is for. The numbers are part of a run's identity: never change them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stream {
    Backbone = 1,
    Head = 2,
    ImageHead = 3,
    Bank = 4,
    Negatives = 5,
    Subset = 6,
}

impl Stream {
    /// The generator of the stream's part number `index`, a step for [`Stream::Negatives`].
    pub(crate) fn generator(self, seed: u64, index: u64) -> ChaCha8Rng {
        let mut bytes = [0; 32];
        for (place, word) in bytes.chunks_exact_mut(8).zip([seed, self as u64, index]) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        ChaCha8Rng::from_seed(bytes)
    }

    /// A seed for what takes one.
    pub(crate) fn seed(self, seed: u64) -> u64 {
        use rand::Rng;
        self.generator(seed, 0).next_u64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn streams_differ_by_seed_purpose_and_index() {
        let mut first: Vec<u64> = [
            Stream::Negatives.generator(1, 1),
            Stream::Negatives.generator(1, 2),
            Stream::Negatives.generator(2, 1),
            Stream::Bank.generator(1, 1),
        ]
        .into_iter()
        .map(|mut generator| generator.next_u64())
        .collect();
        first.sort_unstable();
        first.dedup();
        assert_eq!(first.len(), 4);
    }
}
