//! PIRL's memory bank: one unit vector for each image, kept from step to step, so that tens of thousands
//! of negatives cost no forward pass (Misra and van der Maaten, arXiv:1912.01991, section 3.2).
//!
//! - [`MemoryBank`] owns the rows: initialisation, gathering, the momentum update
//!   `m <- normalise(momentum m + (1 - momentum) v)`, saving and loading.
//! - [`MappedBank`] has its rows in a mapped file, for banks that memory has no room for.
//! - [`NegativeSampler`] draws the rows that are a step's negatives: [`SharedSampler`] draws one set
//!   for the whole batch, [`PerImageSampler`] one set for each image.
//!
//! ```
//! use candle_core::Device;
//! use pirl_bank::{MemoryBank, NegativeSampler, SharedSampler};
//! use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
//!
//! let mut bank = MemoryBank::random(1000, 16, 0.5, 7, &Device::Cpu)?;
//! let batch = [3, 14, 159];
//!
//! let mut rng = ChaCha8Rng::seed_from_u64(7);
//! let drawn = SharedSampler.draw(bank.len(), &batch, 64, &mut rng)?;
//! assert_eq!(bank.gather(drawn.indices())?.dims(), [64, 16]);
//!
//! // After the optimiser's step the bank moves half way to the new embeddings.
//! let embeddings = MemoryBank::random(3, 16, 0.5, 8, &Device::Cpu)?;
//! bank.update(&batch, embeddings.rows())?;
//! # Ok::<(), pirl_bank::BankError>(())
//! ```

mod bank;
mod error;
mod mapped;
mod persist;
mod sampler;

pub use bank::MemoryBank;
pub use error::BankError;
pub use mapped::{BankPrecision, MappedBank, MappedConfig};
pub use sampler::{Drawn, NegativeSampler, PerImageSampler, SharedSampler};
