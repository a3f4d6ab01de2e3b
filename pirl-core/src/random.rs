//! One generator for each purpose, from one seed.
//!
//! All chance of a run comes from its seed, by way of streams that a purpose and two numbers name: a
//! step or an epoch, an image. So nothing depends on the order in which they are drawn from, or on the
//! number of threads, and a resumed run draws what it would have drawn.

use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// The generator of `(seed, purpose, a, b)`; no two of these coincide.
///
/// Crates number their purposes in an enum of their own. Those numbers are part of a run's identity:
/// never change them.
pub fn stream(seed: u64, purpose: u64, a: u64, b: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (bytes, word) in key.chunks_exact_mut(8).zip([seed, purpose, a, b]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// A seed of its own for what takes one: the first number of `stream(seed, purpose, 0, 0)`.
pub fn seed(seed: u64, purpose: u64) -> u64 {
    stream(seed, purpose, 0, 0).next_u64()
}

/// Uniform in `[low, high)`; `low` when the two are equal.
pub fn uniform(rng: &mut dyn Rng, [low, high]: [f64; 2]) -> f64 {
    low + (high - low) * rng.random::<f64>()
}

/// Uniform among `0..count`.
///
/// # Panics
/// If `count` is 0.
pub fn below(rng: &mut dyn Rng, count: usize) -> usize {
    rng.random_range(0..count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_by_each_of_their_words() {
        let words = [
            (0, 0, 0, 0),
            (1, 0, 0, 0),
            (0, 1, 0, 0),
            (0, 0, 1, 0),
            (0, 0, 0, 1),
        ];
        let first = words.map(|(s, p, a, b)| stream(s, p, a, b).next_u64());
        for (place, number) in first.iter().enumerate() {
            assert!(!first[..place].contains(number));
        }
        assert_eq!(seed(1, 0), first[1]);
    }
}
