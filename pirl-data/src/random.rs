//! Random numbers: every draw comes from a stream that is named by its purpose and place.

pub(crate) use pirl_core::random::{below, uniform};
use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;

/// What a stream of random numbers is for; streams of different uses never coincide. Other crates take 4 and
/// 5 of the same seed.
#[derive(Clone, Copy)]
pub(crate) enum Use {
    Sample = 1,
    Order = 2,
    Permutations = 3,
}

/// The generator from which a [`Loader`](crate::Loader) draws the views of sample `index` in `epoch`:
/// first those of I, then those of I^t.
pub fn sample_rng(seed: u64, epoch: u64, index: u64) -> impl Rng {
    stream(seed, Use::Sample, epoch, index)
}

/// The generator of `(seed, what it is for, a, b)`.
pub(crate) fn stream(seed: u64, purpose: Use, a: u64, b: u64) -> ChaCha8Rng {
    pirl_core::random::stream(seed, purpose as u64, a, b)
}

/// True with `probability`; draws once whatever it is.
pub(crate) fn chance(rng: &mut dyn Rng, probability: f64) -> bool {
    rng.random::<f64>() < probability
}

/// Fisher and Yates: every order is as likely.
pub(crate) fn shuffle<T>(rng: &mut dyn Rng, items: &mut [T]) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(rng, last + 1));
    }
}
