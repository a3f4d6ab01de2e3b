//! The negatives of a step, for a batch that comes in parts.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use pirl_bank::{Drawn, MemoryBank, NegativeSampler};
use pirl_loss::Negatives;
use rand_chacha::ChaCha8Rng;

use super::bank::Bank;
use super::sharded::Owned;
use crate::error::{Result, TrainError};
use crate::networks::move_to;
use crate::streams::Stream;

/// The negatives of one step, handed out part by part: those that one draw for the whole batch gives.
/// They depend on the seed and the step alone, so that a resumed run draws the same.
#[derive(Clone)]
pub(super) struct StepNegatives {
    generator: ChaCha8Rng,
    shared: Option<Shared>,
}

/// Negatives that all images of a batch share.
#[derive(Clone)]
struct Shared {
    /// On each device that has asked for them.
    rows: Vec<Tensor>,
    /// The column of each image that is among them.
    columns: HashMap<u32, u32>,
}

impl StepNegatives {
    pub(super) fn new(seed: u64, step: u64) -> Self {
        Self {
            generator: Stream::Negatives.generator(seed, step),
            shared: None,
        }
    }

    /// Takes over the negatives that `other`, of the same step, has drawn for the whole batch, if they
    /// are shared.
    pub(super) fn share(&mut self, other: Self) {
        self.shared = other.shared;
    }

    /// Those of the same draw that are on this rank, which owns the rows `owned`, all of those that
    /// `bank` has: with the columns of `images`, those of all ranks' next parts.
    pub(super) fn of_shard(
        &mut self,
        images: &[u32],
        count: usize,
        bank: &Bank,
        owned: &Owned,
        sampler: &dyn NegativeSampler,
        device: &Device,
    ) -> Result<Negatives> {
        let shared = match &mut self.shared {
            Some(shared) => shared,
            empty => match sampler.draw(owned.all, images, count, &mut self.generator)? {
                Drawn::Shared { indices, .. } => {
                    let (places, ats) = owned.places(&indices);
                    let drawn = ats.into_iter().map(|at| indices[at]);
                    empty.insert(Shared {
                        columns: drawn.zip(0..).collect(),
                        rows: vec![bank.gather(&places)?],
                    })
                }
                Drawn::PerImage { .. } => return Err(TrainError::BankElsewhere),
            },
        };
        let column = |image| shared.columns.get(image).copied();
        let own = images.iter().map(column).collect();
        let rows = shared.on(device)?;
        Ok(Negatives::Shared { rows, own })
    }

    /// The `count` negatives of `images`, the next part of the batch, on `device`.
    pub(super) fn of(
        &mut self,
        images: &[u32],
        count: usize,
        bank: &Bank,
        sampler: &dyn NegativeSampler,
        device: &Device,
    ) -> Result<Negatives> {
        let shared = match &mut self.shared {
            Some(shared) => shared,
            empty => match sampler.draw(bank.len(), images, count, &mut self.generator)? {
                Drawn::Shared { indices, .. } => empty.insert(Shared {
                    rows: vec![bank.gather(&indices)?],
                    columns: indices.into_iter().zip(0..).collect(),
                }),
                drawn @ Drawn::PerImage { .. } => {
                    return match bank {
                        Bank::Memory(bank) if bank.rows().device().same_device(device) => {
                            Ok(gather_negatives(drawn, bank)?)
                        }
                        _ => Err(TrainError::BankElsewhere),
                    };
                }
            },
        };
        let column = |image| shared.columns.get(image).copied();
        let own = images.iter().map(column).collect();
        let rows = shared.on(device)?;
        Ok(Negatives::Shared { rows, own })
    }
}

impl Shared {
    fn on(&mut self, device: &Device) -> Result<Tensor> {
        let here = |rows: &&Tensor| rows.device().same_device(device);
        if let Some(rows) = self.rows.iter().find(here) {
            return Ok(rows.clone());
        }
        let rows = move_to(&self.rows[0], device)?;
        self.rows.push(rows.clone());
        Ok(rows)
    }
}

/// What a sampler drew from `bank`, as a loss takes it. No row is copied of those drawn for each image:
/// they are named by index, and follow the bank's updates.
///
/// ```
/// use candle_core::Device;
/// use pirl_bank::{MemoryBank, NegativeSampler, SharedSampler};
/// use pirl_loss::{ContrastiveLoss, Paper};
/// use pirl_train::gather_negatives;
/// use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
///
/// let bank = MemoryBank::random(1000, 16, 0.5, 7, &Device::Cpu)?;
/// let (batch, mut rng) = ([3, 14, 159], ChaCha8Rng::seed_from_u64(7));
/// let drawn = SharedSampler.draw(bank.len(), &batch, 64, &mut rng)?;
/// let negatives = gather_negatives(drawn, &bank)?;
/// let own = bank.gather(&batch)?;
/// let loss = Paper::new(0.07)?.forward(&own, &own, &negatives)?;
/// assert!(loss.to_scalar::<f32>()?.is_finite());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`BankError::Index`](pirl_bank::BankError::Index) if they were drawn from another bank.
pub fn gather_negatives(
    drawn: Drawn,
    bank: &MemoryBank,
) -> std::result::Result<Negatives, pirl_bank::BankError> {
    Ok(match drawn {
        Drawn::Shared { indices, own } => Negatives::Shared {
            rows: bank.gather(&indices)?,
            own,
        },
        Drawn::PerImage { indices } => Negatives::PerImage {
            bank: bank.rows().clone(),
            indices,
        },
    })
}

#[cfg(test)]
mod tests {
    use pirl_bank::{PerImageSampler, SharedSampler};

    use super::*;

    /// Whatever the parts, the negatives are those of one draw for the whole batch.
    #[test]
    fn parts_of_a_batch_have_the_negatives_of_the_whole() {
        let bank = Bank::Memory(MemoryBank::random(96, 8, 0.5, 1, &Device::Cpu).unwrap());
        let images: Vec<u32> = (0..16).map(|place| place * 5 % 96).collect();
        let samplers: [&dyn NegativeSampler; 2] = [&PerImageSampler, &SharedSampler];
        for sampler in samplers {
            let draw = |sizes: &[usize]| {
                let mut step = StepNegatives::new(7, 3);
                let (mut start, mut columns, mut rows) = (0, Vec::new(), None);
                for size in sizes {
                    let part = &images[start..start + size];
                    let negatives = step.of(part, 48, &bank, sampler, &Device::Cpu).unwrap();
                    match negatives {
                        Negatives::Shared { rows: shared, own } => {
                            let shared = shared.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                            let before = rows.replace(shared.clone());
                            assert!(before.is_none_or(|rows| rows == shared));
                            columns.extend(own);
                        }
                        Negatives::PerImage { indices, .. } => {
                            columns.extend(indices.into_iter().map(Some));
                        }
                    }
                    start += size;
                }
                (columns, rows)
            };
            let whole = draw(&[16]);
            assert!(whole.0.iter().any(Option::is_some));
            assert!(draw(&[5, 5, 6]) == whole && draw(&[1; 16]) == whole);
        }
    }
}
