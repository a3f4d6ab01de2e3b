//! How a loader works.

use pirl_core::{SettingError, check};
use serde::{Deserialize, Serialize};

/// What to do with a sample that cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnCorrupt {
    /// Replace it by the sample at the same place of the next batch, count it, and log a warning.
    Skip,
    /// Return an error instead of the batch.
    Fail,
}

/// Settings of a [`Loader`](crate::Loader).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoaderConfig {
    /// Images in a batch, at least 1 and at most as many as the pack has.
    pub batch_size: usize,
    /// Most images of a batch handed over at once: a batch comes in as few parts as that allows, all
    /// of about the same size. 0: whole.
    pub micro_batch: usize,
    /// Threads that decode and transform; 0 for one for each core.
    pub workers: usize,
    /// Batches made ahead of the one in use. At least 1; for 1 there are 2, as two are made at the same
    /// time.
    pub look_ahead: usize,
    /// Most memory in MiB that those batches hold together, unless a single part of one is larger. At
    /// least 1.
    pub look_ahead_mib: usize,
    /// Seed of the order and of every sample.
    pub seed: u64,
    /// What to do with a sample that cannot be decoded.
    pub on_corrupt: OnCorrupt,
    /// Which parts of each batch to make, where several loaders share them; all by default.
    pub share: Share,
    /// The samples that this share of each batch is drawn from, where not all are at hand; `None`, the default,
    /// for all. Other shares must be drawn from others.
    pub samples: Option<Vec<u32>>,
}

/// One of several equal shares of each batch: neighbouring parts of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which, from 0.
    pub rank: usize,
    /// Of how many, at least 1.
    pub ranks: usize,
}

impl Default for Share {
    /// The whole.
    fn default() -> Self {
        Self { rank: 0, ranks: 1 }
    }
}

impl Default for LoaderConfig {
    /// Whole batches of 256, a thread a core, 4 ahead and 1 GiB at most, seed 0, corrupt samples
    /// skipped.
    fn default() -> Self {
        Self {
            batch_size: 256,
            micro_batch: 0,
            workers: 0,
            look_ahead: 4,
            look_ahead_mib: 1024,
            seed: 0,
            on_corrupt: OnCorrupt::Skip,
            share: Share::default(),
            samples: None,
        }
    }
}

impl LoaderConfig {
    /// # Errors
    /// Names the first field whose value cannot work.
    pub fn check(&self) -> Result<(), SettingError> {
        for (field, value) in [
            ("batch_size", self.batch_size),
            ("look_ahead", self.look_ahead),
            ("look_ahead_mib", self.look_ahead_mib),
        ] {
            check(field, value, value > 0, "must be at least 1")?;
        }
        let Share { rank, ranks } = self.share;
        let expected = format!("must be less than the number of shares, {ranks}");
        check("share", rank, rank < ranks, &expected)?;
        Ok(())
    }
}
