//! What the PIRL crates share and none of them is about.
//!
//! - [`SettingError`] and [`check`]: a setting outside its range, named so that a caller can say which
//!   table it stands in.
//! - [`random`]: a generator for each purpose, from one seed.
//! - [`file`](mod@file): files and folders that are whole or absent, whenever the process dies.
//! - [`memory`]: how much there is, and how much some work takes.
//! - [`FolderLock`]: a folder that one process at a time writes to.
//! - [`storage`]: the numbers of a tensor in the CPU's memory, as a slice.
//! - [`explain`]: an error and its causes in one line.
//! - [`Ops`]: whether something is computed by the crates' own kernels or by Candle's ops.
//! - [`Matrix`] and [`product`]: matrix products of slices.
//! - `allocator`, with the feature of that name: mimalloc, set up for training on a CPU.
//! - [`join_pool`]: the computing thread as one of rayon's.
//! - [`Instructions`]: which of the processor's instruction sets kernels use.
//! - [`vectorised!`]: a plain loop, compiled for the processor's wider vectors.
//!
//! ```
//! use pirl_core::{SettingError, check, random};
//! use rand::Rng;
//!
//! fn temperature(value: f64) -> Result<f64, SettingError> {
//!     check("temperature", value, value > 0.0, "must be positive")?;
//!     Ok(value)
//! }
//! let error = temperature(-1.0).unwrap_err().within("loss");
//! assert_eq!(error.to_string(), "loss.temperature = -1: must be positive");
//!
//! const ORDER: u64 = 2;
//! let draw = |epoch| random::stream(7, ORDER, epoch, 0).next_u64();
//! assert_eq!(draw(1), draw(1));
//! assert_ne!(draw(1), draw(2));
//! ```

#[cfg(feature = "allocator")]
pub mod allocator;
mod explain;
pub mod file;
mod instructions;
mod lock;
pub mod memory;
mod ops;
mod prefetch;
mod product;
pub mod random;
mod setting;
pub mod storage;
mod threads;
mod vectorised;

pub use explain::explain;
pub use instructions::Instructions;
pub use lock::{FolderLock, LockError};
pub use ops::Ops;
pub use prefetch::prefetch;
pub use product::{Matrix, product};
pub use setting::{SettingError, check};
pub use threads::join_pool;
