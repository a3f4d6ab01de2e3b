//! Random numbers: every draw comes from a stream that is named by its purpose and place.

use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;

/// What a stream of random numbers is for; streams of different uses never coincide.
#[derive(Clone, Copy)]
pub(crate) enum Use {
    Sample = 1,
    Order = 2,
    Permutations = 3,
    Preview = 4,
    Scene = 5,
}

/// The stream of `(seed, what it is for, a, b)`.
pub(crate) fn stream(seed: u64, purpose: Use, a: u64, b: u64) -> ChaCha8Rng {
    pirl_core::random::stream(seed, purpose as u64, a, b)
}

/// Uniform in `[low, high)`; `low` when the two are equal.
pub(crate) fn uniform(rng: &mut dyn Rng, [low, high]: [f64; 2]) -> f64 {
    low + (high - low) * rng.random::<f64>()
}

/// True with `probability`; draws once whatever it is.
pub(crate) fn chance(rng: &mut dyn Rng, probability: f64) -> bool {
    rng.random::<f64>() < probability
}

/// Uniform among `0..count`; `count` at least 1.
pub(crate) fn below(rng: &mut dyn Rng, count: usize) -> usize {
    rng.random_range(0..count)
}

/// Fisher and Yates: every order is as likely.
pub(crate) fn shuffle<T>(rng: &mut dyn Rng, items: &mut [T]) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(rng, last + 1));
    }
}
