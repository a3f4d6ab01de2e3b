//! From a pack to batches: threads that decode, crop and augment ahead of the training step.
//!
//! A batch, or the part of it that goes through the networks at once, is one buffer, cut into the
//! places of its samples, which the worker threads fill. Two lanes make every other part each, so
//! that no thread is idle while the last samples of a part are made; each lane hands its parts over
//! through a bounded channel of its own, and taking from the lanes in turn restores the order. What
//! a sample looks like depends on `(seed, epoch, sample)` alone, so the number of threads changes
//! nothing.

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use candle_core::{Device, Tensor};
use crossbeam_channel::{Receiver, Sender, bounded};
use rayon::ThreadPool;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::pretext::Pretext;
use crate::random::{Use, sample_rng, shuffle, stream};
use crate::stages::{Stage, StageTotals};
use crate::transform::{ImageView, Normalize, Scratch, thread_pool};
use crate::{DataError, Image, Pack, Stages};

/// A page of memory, at least.
const PAGE: usize = 4096;

/// Parts of batches made at the same time.
const LANES: usize = 2;

/// What to do with a sample that cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnCorrupt {
    /// Put the sample at the same place of the next batch in its stead, count it, and warn.
    Skip,
    /// Make the batch an error.
    Fail,
}

/// How a [`Loader`] works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoaderConfig {
    /// Images in a batch, at least 1 and at most as many as the pack has.
    pub batch_size: usize,
    /// Images of a batch handed over at once, at most: it comes in as few parts as that allows, all
    /// of about the same size. 0: whole.
    pub micro_batch: usize,
    /// Threads; 0 for one a core.
    pub workers: usize,
    /// Batches made ahead of the one in use. At least 1; for 1 there are 2, one in each lane.
    pub look_ahead: usize,
    /// MiB that those batches hold together, at most, unless a single part of one is larger. At
    /// least 1.
    pub look_ahead_mib: usize,
    /// Seed of the order and of every sample.
    pub seed: u64,
    /// What to do with a sample that cannot be decoded.
    pub on_corrupt: OnCorrupt,
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
        }
    }
}

/// The images of one step, or of a part of one, on the CPU.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `(B, 3, S, S)` u8; [`Batch::normalize`] makes numbers of them.
    pub images: Tensor,
    /// `(B * P, 3, s, s)` u8: view `p` of image `b` in row `b * P + p`; `None` without a pretext
    /// task.
    pub transformed: Option<Tensor>,
    /// Sample of the pack in each of the `B` places; no two are the same.
    pub indices: Vec<u32>,
    /// Label of each image's transformation, for the covariant losses.
    pub targets: Vec<u32>,
    /// Corrupt samples that others replace here.
    pub skipped: usize,
    /// Images of the whole batch, of which this may be a part.
    pub batch_size: usize,
    /// What makes numbers of the views' bytes.
    pub normalize: Normalize,
}

/// Makes the batches of any epoch, from any step on: see [`Loader::epoch`].
pub struct Loader {
    work: Arc<Work>,
    look_ahead: usize,
    lanes: usize,
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader")
            .field("images", &self.work.pack.len())
            .field("batch_size", &self.work.batch_size)
            .finish_non_exhaustive()
    }
}

impl Loader {
    /// A loader of `pack`; its threads live until it and its epochs are dropped.
    ///
    /// # Errors
    /// [`DataError::Setting`] for a batch of no image or of more than there are, for a
    /// `look_ahead` of 0, or when the threads cannot be started.
    pub fn new(
        pack: Arc<Pack>,
        view: ImageView,
        pretext: Option<Arc<dyn Pretext>>,
        config: LoaderConfig,
    ) -> Result<Self, DataError> {
        if config.batch_size == 0 || config.batch_size > pack.len() {
            return Err(DataError::Setting {
                key: "train.batch_size",
                reason: format!("{} of {} images", config.batch_size, pack.len()),
            });
        }
        if config.look_ahead == 0 {
            return Err(DataError::Setting {
                key: "loader.look_ahead",
                reason: "at least 1 batch must be made ahead".into(),
            });
        }
        if config.look_ahead_mib == 0 {
            return Err(DataError::Setting {
                key: "loader.look_ahead_mib",
                reason: "at least 1 MiB must be allowed".into(),
            });
        }
        // Indices travel as u32, as the rows of the bank do.
        if u32::try_from(pack.len()).is_err() {
            return Err(DataError::Setting {
                key: "data.limit",
                reason: format!("{} images; at most {} work", pack.len(), u32::MAX),
            });
        }
        // A task without views (NPID) needs no transformed batch.
        let pretext = pretext.filter(|pretext| pretext.views() > 0);
        let parts = parts(config.batch_size, config.micro_batch);
        let largest = parts.iter().map(Range::len).max().unwrap_or(1);
        let part = batch_bytes(&view, pretext.as_deref(), largest);
        let fit = (config.look_ahead_mib.saturating_mul(1 << 20) / part).max(1);
        Ok(Self {
            look_ahead: config.look_ahead.saturating_mul(parts.len()).min(fit),
            lanes: LANES.min(fit),
            work: Arc::new(Work {
                pool: thread_pool("pirl-loader", config.workers)?,
                pack,
                view,
                pretext,
                batch_size: config.batch_size,
                parts,
                seed: config.seed,
                on_corrupt: config.on_corrupt,
                totals: StageTotals::default(),
            }),
        })
    }

    /// How many parts a batch comes in; 1 unless there is a `micro_batch`.
    pub fn parts(&self) -> usize {
        self.work.parts.len()
    }

    /// What makes numbers of a batch's bytes.
    pub fn normalize(&self) -> &Normalize {
        self.work.view.normalize()
    }

    /// Whole batches in the pack; what is left over waits for the next epoch's order.
    pub fn steps_per_epoch(&self) -> usize {
        self.work.pack.len() / self.work.batch_size
    }

    /// Measures, from now on, on what the threads spend their time.
    pub fn measure(&self) {
        self.work.totals.run();
    }

    /// What was measured since [`Loader::measure`]; all zero without it.
    pub fn stages(&self) -> Stages {
        self.work.totals.stages()
    }

    /// The batches of `epoch` from its step `start_step` on, each in [`Loader::parts`] parts: those
    /// that a whole epoch would yield from there, bit for bit.
    ///
    /// After an error the iterator ends. Dropping it stops the work on its batches.
    pub fn epoch(&self, epoch: u64, start_step: usize) -> EpochIter {
        let parts = self.parts();
        let (start, end) = (
            start_step.saturating_mul(parts),
            self.steps_per_epoch() * parts,
        );
        let order = Arc::new(self.work.order(epoch));
        let stop = Arc::new(AtomicBool::new(false));
        let mut lanes = Vec::with_capacity(LANES);
        let count = self.lanes.min(end.saturating_sub(start));
        for lane in 0..count {
            // Each lane holds one part in the making and its share of those ahead.
            let ahead = (self.look_ahead + self.lanes - 1 - lane) / self.lanes;
            let (sender, receiver) = bounded(ahead.saturating_sub(1));
            let task = Lane {
                work: Arc::clone(&self.work),
                order: Arc::clone(&order),
                stop: Arc::clone(&stop),
                epoch,
                parts: (start + lane, end),
                stride: self.lanes,
                sender,
            };
            let thread = Builder::new()
                .name(format!("pirl-lane-{lane}"))
                .spawn(move || task.run());
            match thread {
                Ok(thread) => lanes.push(Ok((receiver, thread))),
                Err(source) => lanes.push(Err(Some(source))),
            }
        }
        EpochIter {
            lanes,
            stop,
            next: start,
            start,
            end,
        }
    }
}

/// The batches of one epoch, in order: see [`Loader::epoch`].
pub struct EpochIter {
    lanes: Vec<Result<LaneHandle, Option<std::io::Error>>>,
    stop: Arc<AtomicBool>,
    /// Counted in parts of batches from the beginning of the epoch.
    next: usize,
    start: usize,
    end: usize,
}

type LaneHandle = (Receiver<Result<Batch, DataError>>, JoinHandle<()>);

impl fmt::Debug for EpochIter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EpochIter")
            .field("next", &self.next)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl Iterator for EpochIter {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.end {
            return None;
        }
        let count = self.lanes.len();
        let batch = match self.lanes.get_mut((self.next - self.start) % count.max(1)) {
            Some(Ok((batches, _))) => batches.recv().unwrap_or_else(|_| {
                Err(DataError::Worker {
                    index: None,
                    reason: "a thread ended before its batch".into(),
                })
            }),
            Some(Err(source)) => Err(DataError::Worker {
                index: None,
                reason: format!("no thread could be started: {:?}", source.take()),
            }),
            None => return None,
        };
        self.next = if batch.is_ok() {
            self.next + 1
        } else {
            self.end
        };
        Some(batch)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.end.saturating_sub(self.next);
        (left.min(1), Some(left))
    }
}

impl Drop for EpochIter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for (batches, thread) in self.lanes.drain(..).flatten() {
            // A lane that waits to hand over a batch wakes up when nobody can take it.
            drop(batches);
            // Lanes catch panics; there is nothing left to report.
            let _ = thread.join();
        }
    }
}

/// Which part of which batch to make.
struct Turn<'a> {
    order: &'a [u32],
    epoch: u64,
    step: usize,
    /// Its places in the batch.
    places: Range<usize>,
    stop: &'a AtomicBool,
}

/// What all batches share.
struct Work {
    pool: ThreadPool,
    pack: Arc<Pack>,
    view: ImageView,
    pretext: Option<Arc<dyn Pretext>>,
    batch_size: usize,
    /// The places of each part in a batch.
    parts: Vec<Range<usize>>,
    seed: u64,
    on_corrupt: OnCorrupt,
    totals: StageTotals,
}

/// Every so many parts of an epoch, one.
struct Lane {
    work: Arc<Work>,
    order: Arc<Vec<u32>>,
    stop: Arc<AtomicBool>,
    epoch: u64,
    /// From this part of the epoch to before that one.
    parts: (usize, usize),
    /// From one part to the next.
    stride: usize,
    sender: Sender<Result<Batch, DataError>>,
}

impl Lane {
    fn run(self) {
        self.call_for(self.parts.0);
        for part in (self.parts.0..self.parts.1).step_by(self.stride) {
            self.call_for(part + self.stride);
            let (step, places) = self.work.part(part);
            let batch = catch_unwind(AssertUnwindSafe(|| {
                self.work.batch(&Turn {
                    order: &self.order,
                    epoch: self.epoch,
                    step,
                    places,
                    stop: &self.stop,
                })
            }))
            .unwrap_or_else(|panic| {
                Err(DataError::Worker {
                    index: None,
                    reason: message(&*panic),
                })
            });
            let last = batch.is_err();
            if self.stop.load(Ordering::Relaxed) || self.sender.send(batch).is_err() || last {
                return;
            }
        }
    }

    /// Has the samples of a part read from the disk, before its turn.
    fn call_for(&self, part: usize) {
        let (step, places) = self.work.part(part);
        let first = step
            .saturating_mul(self.work.batch_size)
            .saturating_add(places.start);
        for index in self.order.iter().skip(first).take(places.len()) {
            self.work.pack.will_need(*index as usize);
        }
    }
}

thread_local! {
    /// A worker's room to work in, kept from sample to sample.
    static ROOM: RefCell<Room> = RefCell::default();
}

/// A decoded sample, and what making views of it needs.
struct Room {
    decoded: Image,
    scratch: Scratch,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            decoded: Image::empty(),
            scratch: Scratch::default(),
        }
    }
}

/// The places of each part of a batch: as few as have at most `micro_batch` places, all of about the
/// same size.
fn parts(batch_size: usize, micro_batch: usize) -> Vec<Range<usize>> {
    let count = match micro_batch {
        0 => 1,
        most => batch_size.div_ceil(most),
    };
    let start = |part: usize| part * batch_size / count;
    (0..count)
        .map(|part| start(part)..start(part + 1))
        .collect()
}

/// Bytes of so many images and their views.
fn batch_bytes(view: &ImageView, pretext: Option<&dyn Pretext>, images: usize) -> usize {
    let squares = |views: usize, side: usize| views.saturating_mul(side * side);
    let image = squares(1, view.size());
    let views = pretext.map_or(0, |pretext| squares(pretext.views(), pretext.view_size()));
    let numbers = image.saturating_add(views).saturating_mul(3);
    numbers.saturating_mul(images).max(1)
}

/// What a worker finds out about a sample beside its pixels.
struct Made {
    index: u32,
    target: u32,
    skipped: usize,
}

impl Work {
    /// All samples in the order of `epoch`.
    fn order(&self, epoch: u64) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.pack.len() as u32).collect();
        shuffle(&mut stream(self.seed, Use::Order, epoch, 0), &mut order);
        order
    }

    /// The step that a part of an epoch belongs to, and its places in the step's batch.
    fn part(&self, part: usize) -> (usize, Range<usize>) {
        let count = self.parts.len().max(1);
        let places = self.parts.get(part % count).cloned();
        (part / count, places.unwrap_or_default())
    }

    fn batch(&self, turn: &Turn<'_>) -> Result<Batch, DataError> {
        let size = self.view.size();
        let image_len = 3 * size * size;
        let (views, side) = self
            .pretext
            .as_ref()
            .map_or((0, 0), |pretext| (pretext.views(), pretext.view_size()));
        let views_len = views * 3 * side * side;
        let batch = turn.places.len();
        let mut images = vec![0_u8; batch * image_len];
        let mut transformed = vec![0_u8; batch * views_len];
        // Without a pretext task every place has an empty slice.
        let mut places: Vec<&mut [u8]> = if views_len == 0 {
            (0..batch).map(|_| Default::default()).collect()
        } else {
            transformed.chunks_exact_mut(views_len).collect()
        };
        let made = self.pool.install(|| {
            images
                .par_chunks_exact_mut(image_len)
                .zip(places.par_iter_mut())
                .with_max_len(1)
                .enumerate()
                .map(|(place, (image, transformed))| {
                    self.place(turn, turn.places.start + place, image, transformed)
                })
                .collect::<Result<Vec<Made>, DataError>>()
        })?;
        let images = Tensor::from_vec(images, (batch, 3, size, size), &Device::Cpu)?;
        let transformed = match views {
            0 => None,
            _ => Some(Tensor::from_vec(
                transformed,
                (batch * views, 3, side, side),
                &Device::Cpu,
            )?),
        };
        Ok(Batch {
            images,
            transformed,
            indices: made.iter().map(|made| made.index).collect(),
            targets: made.iter().map(|made| made.target).collect(),
            skipped: made.iter().map(|made| made.skipped).sum(),
            batch_size: self.batch_size,
            normalize: self.view.normalize().clone(),
        })
    }

    /// Fills one place of a batch with the sample whose turn it is, or with the next good one at
    /// the same place of a later batch: so no sample comes twice in one batch.
    fn place(
        &self,
        turn: &Turn<'_>,
        place: usize,
        image: &mut [u8],
        transformed: &mut [u8],
    ) -> Result<Made, DataError> {
        let Turn {
            order,
            epoch,
            step,
            stop,
            ..
        } = *turn;
        let column = || order.iter().skip(place).step_by(self.batch_size);
        let turns = column().skip(step).chain(column().take(step));
        let mut skipped = 0;
        let mut first = None;
        for index in turns.copied() {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            match self.sample(epoch, index, image, transformed) {
                Ok(target) => {
                    return Ok(Made {
                        index,
                        target,
                        skipped,
                    });
                }
                Err(error @ DataError::Decode { .. }) if self.on_corrupt == OnCorrupt::Skip => {
                    tracing::warn!("epoch {epoch}, step {step}: skipped: {error}");
                    skipped += 1;
                    first.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(first.unwrap_or(DataError::Worker {
            index: None,
            reason: "stopped".into(),
        }))
    }

    /// Decodes sample `index` once and makes both views of it, from one stream of random numbers.
    fn sample(
        &self,
        epoch: u64,
        index: u32,
        image: &mut [u8],
        transformed: &mut [u8],
    ) -> Result<u32, DataError> {
        let views = || {
            ROOM.with_borrow_mut(|Room { decoded, scratch }| {
                if self.totals.running() {
                    scratch.watch.start();
                    let bytes = self.pack.bytes(index as usize).unwrap_or_default();
                    // The first touch of a page waits for it.
                    std::hint::black_box(bytes.iter().step_by(PAGE).fold(0, |a, b| a ^ b));
                    scratch.watch.lap(Stage::Read);
                }
                self.pack.decode_into(index as usize, decoded)?;
                scratch.watch.lap(Stage::Decode);
                let mut rng = sample_rng(self.seed, epoch, index.into());
                self.view.apply(decoded, &mut rng, scratch, image)?;
                let target = match &self.pretext {
                    Some(pretext) => pretext.apply(decoded, &mut rng, scratch, transformed)?,
                    None => 0,
                };
                if self.totals.running() {
                    self.totals.add(&mut scratch.watch);
                }
                Ok(target)
            })
        };
        catch_unwind(AssertUnwindSafe(views)).unwrap_or_else(|panic| {
            Err(DataError::Worker {
                index: Some(index as usize),
                reason: message(&*panic),
            })
        })
    }
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("panicked")
        .to_owned()
}
