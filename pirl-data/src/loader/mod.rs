//! From a pack to batches: threads that decode, crop and augment ahead of the training step.
//!
//! A batch, or the part of it that goes through the networks at once, is one buffer, cut into the
//! places of its samples, which worker threads fill. Two producers make every other part each, so that
//! no worker is idle while the last samples of a part are made. Each hands its parts over through a
//! bounded channel of its own, and taking from them in turn restores the order. What a sample looks
//! like depends on `(seed, epoch, sample)` alone, so the number of threads changes nothing.

mod assembler;
mod batch;
mod config;
mod epoch;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use pirl_core::check;

use crate::pretext::Pretext;
use crate::stages::StageTotals;
use crate::transform::{ImageView, check_channels, thread_pool};
use crate::{DataError, Pack, Stages};

use assembler::{Assembler, part_bytes, split};

pub use batch::Batch;
pub use config::{LoaderConfig, OnCorrupt, Share};
pub use epoch::EpochIter;

/// Parts of batches made at the same time.
const PRODUCERS: usize = 2;

/// Makes the batches of any epoch, from any step on: see [`Loader::epoch`].
pub struct Loader {
    assembler: Arc<Assembler>,
    /// Steps of an epoch.
    steps: usize,
    /// Parts made ahead of the one in use.
    look_ahead: usize,
    producers: usize,
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader")
            .field("images", &self.assembler.pack.len())
            .field("batch_size", &self.assembler.batch_size)
            .finish_non_exhaustive()
    }
}

impl Loader {
    /// A loader of `pack`; its threads live until it and its epochs are dropped.
    ///
    /// # Errors
    /// [`DataError::Setting`] for a field whose value cannot work, a batch of more images than there
    /// are, or when the threads cannot be started; [`DataError::Channels`] of a pack of others than the
    /// view's.
    pub fn new(
        pack: Arc<Pack>,
        view: ImageView,
        pretext: Option<Arc<dyn Pretext>>,
        config: LoaderConfig,
    ) -> Result<Self, DataError> {
        config.check()?;
        check_channels(view.channels(), pack.channels())?;
        let images = pack.len();
        check(
            "batch_size",
            config.batch_size,
            config.batch_size <= images,
            &format!("must be at most {images}, the images of the pack"),
        )?;
        // Indices travel as u32, as the rows of the bank do.
        check(
            "images",
            images,
            u32::try_from(images).is_ok(),
            &format!("must be at most {}: take a subset of the pack", u32::MAX),
        )?;
        // A task without views (NPID) needs no transformed batch.
        let pretext = pretext.filter(|pretext| pretext.views() > 0);
        let mut parts = split(config.batch_size, config.micro_batch);
        let (whole, Share { rank, ranks }) = (parts.len(), config.share);
        check(
            "share",
            ranks,
            ranks <= whole,
            &format!(
                "must be at most the parts of a batch, {whole}: lower micro_batch, or share a batch \
                 among fewer"
            ),
        )?;
        let parts: Vec<_> = parts
            .drain(rank * whole / ranks..(rank + 1) * whole / ranks)
            .collect();
        let places: usize = parts.iter().map(Range::len).sum();
        let (samples, needed) = match &config.samples {
            Some(samples) => (samples.len(), places),
            None => (images, config.batch_size),
        };
        check(
            "samples",
            samples,
            samples >= needed,
            &format!("must be at least {needed}, this share of a batch"),
        )?;
        let largest = parts.iter().map(Range::len).max().unwrap_or(1);
        let bytes = part_bytes(&view, pretext.as_deref(), largest);
        let fit = (config.look_ahead_mib.saturating_mul(1 << 20) / bytes).max(1);
        Ok(Self {
            look_ahead: config.look_ahead.saturating_mul(parts.len()).min(fit),
            producers: PRODUCERS.min(fit),
            steps: samples / needed,
            assembler: Arc::new(Assembler {
                pool: thread_pool("pirl-loader", config.workers)?,
                pack,
                view,
                pretext,
                batch_size: config.batch_size,
                parts,
                seed: config.seed,
                on_corrupt: config.on_corrupt,
                samples: config.samples,
                totals: StageTotals::default(),
            }),
        })
    }

    /// How many parts this loader's share of a batch comes in; 1 unless there is a `micro_batch`.
    pub fn parts(&self) -> usize {
        self.assembler.parts.len()
    }

    /// Whole batches in the pack, or whole shares of a batch in [`LoaderConfig::samples`]. The images left over
    /// are not used in that epoch; another epoch has another order, and leaves out others.
    pub fn steps_per_epoch(&self) -> usize {
        self.steps
    }

    /// The same with at most so many steps in an epoch, at least 1, where another share has fewer.
    pub fn with_steps(self, steps: usize) -> Self {
        let steps = self.steps.min(steps).max(1);
        Self { steps, ..self }
    }

    /// Starts to measure on what the worker threads spend their time.
    pub fn measure(&self) {
        self.assembler.totals.run();
    }

    /// What was measured since [`Loader::measure`] was called; all zero if it was not.
    pub fn stages(&self) -> Stages {
        self.assembler.totals.stages()
    }

    /// The batches of `epoch` from its step `start_step` on, or this loader's share of them, each in
    /// [`Loader::parts`] parts: those that a whole epoch would yield from there, bit for bit.
    ///
    /// After an error the iterator ends. Dropping it stops the work on its batches.
    ///
    /// # Errors
    /// [`DataError::Worker`] if a thread cannot be started.
    pub fn epoch(&self, epoch: u64, start_step: usize) -> Result<EpochIter, DataError> {
        let parts = self.parts();
        let start = start_step.saturating_mul(parts);
        let end = self.steps_per_epoch() * parts;
        EpochIter::start(
            &self.assembler,
            epoch,
            (start, end),
            self.producers,
            self.look_ahead,
        )
    }
}
