//! Draws the rows of the bank that are a step's negatives: uniform, without replacement, never the image
//! itself (the paper's D_N; VISSL draws with replacement and may draw the image).

use pirl_core::check;
use rand::{Rng, RngExt};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rayon::prelude::*;

use crate::BankError;

/// The negatives of one batch, as rows of the bank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Drawn {
    /// One set for the whole batch.
    Shared {
        /// The rows, all different.
        indices: Vec<u32>,
        /// For each image of the batch the position in `indices` of the image itself, if it was
        /// drawn: that column must be left out of this image's sums.
        own: Vec<Option<u32>>,
    },
    /// A set for each image.
    PerImage {
        /// The rows of image `b` at `b * count .. (b + 1) * count`, all different, none its own.
        indices: Vec<u32>,
    },
}

impl Drawn {
    /// The rows drawn: `count` of a shared set, `batch * count` of sets for each image.
    pub fn indices(&self) -> &[u32] {
        match self {
            Self::Shared { indices, .. } | Self::PerImage { indices } => indices,
        }
    }
}

/// A way to choose negatives.
pub trait NegativeSampler: Send + Sync {
    /// Draws `count` negatives (a set for the batch or one for each image) for the images `batch`
    /// out of a bank of `bank_rows`. All randomness comes from `rng`.
    ///
    /// # Errors
    /// [`BankError::Setting`] unless `count` lies between 1 and `bank_rows - 1`, [`BankError::Index`] if
    /// an image of the batch is not in the bank.
    fn draw(
        &self,
        bank_rows: usize,
        batch: &[u32],
        count: usize,
        rng: &mut dyn Rng,
    ) -> Result<Drawn, BankError>;
}

/// One draw over all rows, shared by the batch. Costs `O(count + batch)`.
#[derive(Debug, Clone, Copy, Default)]
pub struct SharedSampler;

impl NegativeSampler for SharedSampler {
    fn draw(
        &self,
        bank_rows: usize,
        batch: &[u32],
        count: usize,
        rng: &mut dyn Rng,
    ) -> Result<Drawn, BankError> {
        check_draw(bank_rows, batch, count)?;
        let mut indices = vec![0; count];
        let mut floyd = Floyd::new(count);
        floyd.draw(bank_rows as u32, &mut indices, &mut child(rng));
        let own = batch.iter().map(|&image| floyd.position(image)).collect();
        Ok(Drawn::Shared { indices, own })
    }
}

/// A draw for each image, over all rows but its own. Costs `O(count)` for each image, in parallel.
#[derive(Debug, Clone, Copy, Default)]
pub struct PerImageSampler;

impl NegativeSampler for PerImageSampler {
    fn draw(
        &self,
        bank_rows: usize,
        batch: &[u32],
        count: usize,
        rng: &mut dyn Rng,
    ) -> Result<Drawn, BankError> {
        check_draw(bank_rows, batch, count)?;
        // One generator an image, made in order: the draw does not depend on the threads.
        let rngs: Vec<ChaCha8Rng> = batch.iter().map(|_| child(rng)).collect();
        let mut indices = vec![0; batch.len() * count];
        indices
            .par_chunks_mut(count)
            .zip(batch.par_iter().zip(rngs))
            .for_each_init(
                || Floyd::new(count),
                |floyd, (set, (&image, mut rng))| {
                    // Numbers below bank_rows - 1, then a gap opened at the image.
                    floyd.draw(bank_rows as u32 - 1, set, &mut rng);
                    for index in set {
                        *index += u32::from(*index >= image);
                    }
                },
            );
        Ok(Drawn::PerImage { indices })
    }
}

fn check_draw(rows: usize, batch: &[u32], count: usize) -> Result<(), BankError> {
    check("count", count, count > 0, "must be at least 1")?;
    let others = rows.saturating_sub(1);
    let expected = format!(
        "must be at most {others}, the other images of the bank: draw fewer negatives, or use more images"
    );
    check("count", count, count <= others, &expected)?;
    if rows > u32::MAX as usize {
        return Err(BankError::Size { rows, dim: 1 });
    }
    match batch.iter().find(|&&image| image as usize >= rows) {
        Some(&index) => Err(BankError::Index { index, rows }),
        None => Ok(()),
    }
}

/// A generator of our own type: drawing through `dyn Rng` would cost a virtual call a number.
fn child(rng: &mut dyn Rng) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(rng.next_u64())
}

/// Floyd's sampling without replacement (Bentley, CACM 30(9), 1987): `n` numbers for a sample of
/// `n`, whatever the size of the population, with an open-addressing table of those drawn.
struct Floyd {
    /// `(value, position)`, [`Floyd::EMPTY`] where free; a power of two of slots, at most half full.
    slots: Vec<(u32, u32)>,
    shift: u32,
}

impl Floyd {
    const EMPTY: (u32, u32) = (0, u32::MAX);

    fn new(count: usize) -> Self {
        let slots = (2 * count).next_power_of_two().max(2);
        Self {
            slots: vec![Self::EMPTY; slots],
            shift: 32 - slots.trailing_zeros().min(31),
        }
    }

    /// Fills `out` with different numbers below `population`, which is at least `out.len()`.
    fn draw(&mut self, population: u32, out: &mut [u32], rng: &mut ChaCha8Rng) {
        self.slots.fill(Self::EMPTY);
        let first = population - out.len() as u32;
        for (position, slot) in out.iter_mut().enumerate() {
            let last = first + position as u32;
            let drawn = rng.random_range(0..=last);
            // `last` itself cannot have come up before: every earlier bound was lower.
            let value = if self.position(drawn).is_some() {
                last
            } else {
                drawn
            };
            let free = self.find(value);
            self.slots[free] = (value, position as u32);
            *slot = value;
        }
    }

    /// The position of `value` in the last sample.
    fn position(&self, value: u32) -> Option<u32> {
        let slot = self.slots[self.find(value)];
        (slot != Self::EMPTY).then_some(slot.1)
    }

    /// The slot that holds `value`, or the free one where it would go.
    fn find(&self, value: u32) -> usize {
        let mask = self.slots.len() - 1;
        // Multiplicative hashing (Knuth): 2^32 over the golden ratio, high bits.
        let mut at = (value.wrapping_mul(0x9E37_79B9) >> self.shift) as usize & mask;
        while self.slots[at] != Self::EMPTY && self.slots[at].0 != value {
            at = (at + 1) & mask;
        }
        at
    }
}
