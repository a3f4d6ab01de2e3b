//! From a pack to batches: threads that decode, crop and augment ahead of the training step.
//!
//! A batch is one buffer, cut into the places of its samples, which the worker threads fill. Two
//! lanes make every other batch each, so that no thread is idle while the last samples of a batch
//! are made; each lane hands its batches over through a bounded channel of its own, and taking from
//! the lanes in turn restores the order. What a sample looks like depends on `(seed, epoch, sample)`
//! alone, so the number of threads changes nothing.

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use candle_core::{Device, Tensor};
use crossbeam_channel::{Receiver, Sender, bounded};
use rayon::ThreadPool;
use rayon::prelude::*;

use crate::pretext::Pretext;
use crate::random::{Use, shuffle, stream};
use crate::stages::{Stage, StageTotals};
use crate::transform::{ImageView, Scratch, thread_pool};
use crate::{DataError, Image, Pack, Stages};

/// A page of memory, at least.
const PAGE: usize = 4096;

/// Batches made at the same time.
const LANES: usize = 2;

/// What to do with a sample that cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Threads; 0 for one a core.
    pub workers: usize,
    /// Batches made ahead of the one in use. At least 1; for 1 there are 2, one in each lane.
    pub look_ahead: usize,
    /// MiB that those batches hold together, at most, unless a single one is larger. At least 1.
    pub look_ahead_mib: usize,
    /// Seed of the order and of every sample.
    pub seed: u64,
    /// What to do with a sample that cannot be decoded.
    pub on_corrupt: OnCorrupt,
}

impl Default for LoaderConfig {
    /// Batches of 256, a thread a core, 4 ahead and 1 GiB at most, seed 0, corrupt samples skipped.
    fn default() -> Self {
        Self {
            batch_size: 256,
            workers: 0,
            look_ahead: 4,
            look_ahead_mib: 1024,
            seed: 0,
            on_corrupt: OnCorrupt::Skip,
        }
    }
}

/// The images of one step, on the CPU.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `(B, 3, S, S)` f32, normalised.
    pub images: Tensor,
    /// `(B * P, 3, s, s)` f32: view `p` of image `b` in row `b * P + p`; `None` without a pretext
    /// task.
    pub transformed: Option<Tensor>,
    /// Sample of the pack in each of the `B` places; no two are the same.
    pub indices: Vec<u32>,
    /// Label of each image's transformation, for the covariant losses.
    pub targets: Vec<u32>,
    /// Corrupt samples that others replace here.
    pub skipped: usize,
}

/// Makes the batches of any epoch, from any step on.
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
        let batch = batch_bytes(&view, pretext.as_deref(), config.batch_size);
        let fit = (config.look_ahead_mib.saturating_mul(1 << 20) / batch).max(1);
        Ok(Self {
            look_ahead: config.look_ahead.min(fit),
            lanes: LANES.min(fit),
            work: Arc::new(Work {
                pool: thread_pool("pirl-loader", config.workers)?,
                pack,
                view,
                pretext,
                batch_size: config.batch_size,
                seed: config.seed,
                on_corrupt: config.on_corrupt,
                totals: StageTotals::default(),
            }),
        })
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

    /// The batches of `epoch` from its step `start_step` on: those that a whole epoch would yield
    /// from there, bit for bit.
    ///
    /// After an error the iterator ends. Dropping it stops the work on its batches.
    pub fn epoch(&self, epoch: u64, start_step: usize) -> EpochIter {
        let steps = self.steps_per_epoch();
        let order = Arc::new(self.work.order(epoch));
        let stop = Arc::new(AtomicBool::new(false));
        let mut lanes = Vec::with_capacity(LANES);
        let count = self.lanes.min(steps.saturating_sub(start_step));
        for lane in 0..count {
            // Each lane holds one batch in the making and its share of those ahead.
            let ahead = (self.look_ahead + self.lanes - 1 - lane) / self.lanes;
            let (sender, receiver) = bounded(ahead.saturating_sub(1));
            let task = Lane {
                work: Arc::clone(&self.work),
                order: Arc::clone(&order),
                stop: Arc::clone(&stop),
                epoch,
                steps: (start_step + lane, steps),
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
            next: start_step,
            start: start_step,
            steps,
        }
    }
}

/// The batches of one epoch, in order: see [`Loader::epoch`].
pub struct EpochIter {
    lanes: Vec<Result<LaneHandle, Option<std::io::Error>>>,
    stop: Arc<AtomicBool>,
    next: usize,
    start: usize,
    steps: usize,
}

type LaneHandle = (Receiver<Result<Batch, DataError>>, JoinHandle<()>);

impl fmt::Debug for EpochIter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EpochIter")
            .field("next", &self.next)
            .field("steps", &self.steps)
            .finish_non_exhaustive()
    }
}

impl Iterator for EpochIter {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.steps {
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
            self.steps
        };
        Some(batch)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.steps.saturating_sub(self.next);
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

/// Which batch to make.
struct Turn<'a> {
    order: &'a [u32],
    epoch: u64,
    step: usize,
    stop: &'a AtomicBool,
}

/// What all batches share.
struct Work {
    pool: ThreadPool,
    pack: Arc<Pack>,
    view: ImageView,
    pretext: Option<Arc<dyn Pretext>>,
    batch_size: usize,
    seed: u64,
    on_corrupt: OnCorrupt,
    totals: StageTotals,
}

/// Every so many batches of an epoch, one.
struct Lane {
    work: Arc<Work>,
    order: Arc<Vec<u32>>,
    stop: Arc<AtomicBool>,
    epoch: u64,
    /// From this step to before that one.
    steps: (usize, usize),
    /// From one batch to the next.
    stride: usize,
    sender: Sender<Result<Batch, DataError>>,
}

impl Lane {
    fn run(self) {
        self.call_for(self.steps.0);
        for step in (self.steps.0..self.steps.1).step_by(self.stride) {
            self.call_for(step + self.stride);
            let batch = catch_unwind(AssertUnwindSafe(|| {
                self.work.batch(&Turn {
                    order: &self.order,
                    epoch: self.epoch,
                    step,
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

    /// Has the samples of a step read from the disk, before its turn.
    fn call_for(&self, step: usize) {
        let size = self.work.batch_size;
        for index in self.order.iter().skip(step.saturating_mul(size)).take(size) {
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

/// Bytes of a batch's numbers.
fn batch_bytes(view: &ImageView, pretext: Option<&dyn Pretext>, batch_size: usize) -> usize {
    let squares = |views: usize, side: usize| views.saturating_mul(side * side);
    let image = squares(1, view.size());
    let views = pretext.map_or(0, |pretext| squares(pretext.views(), pretext.view_size()));
    let numbers = image.saturating_add(views).saturating_mul(3);
    numbers.saturating_mul(batch_size * size_of::<f32>()).max(1)
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

    fn batch(&self, turn: &Turn<'_>) -> Result<Batch, DataError> {
        let size = self.view.size();
        let image_len = 3 * size * size;
        let (views, side) = self
            .pretext
            .as_ref()
            .map_or((0, 0), |pretext| (pretext.views(), pretext.view_size()));
        let views_len = views * 3 * side * side;
        let mut images = vec![0_f32; self.batch_size * image_len];
        let mut transformed = vec![0_f32; self.batch_size * views_len];
        // Without a pretext task every place has an empty slice.
        let mut places: Vec<&mut [f32]> = if views_len == 0 {
            (0..self.batch_size).map(|_| Default::default()).collect()
        } else {
            transformed.chunks_exact_mut(views_len).collect()
        };
        let made = self.pool.install(|| {
            images
                .par_chunks_exact_mut(image_len)
                .zip(places.par_iter_mut())
                .with_max_len(1)
                .enumerate()
                .map(|(place, (image, transformed))| self.place(turn, place, image, transformed))
                .collect::<Result<Vec<Made>, DataError>>()
        })?;
        let batch = self.batch_size;
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
        })
    }

    /// Fills one place of a batch with the sample whose turn it is, or with the next good one at
    /// the same place of a later batch: so no sample comes twice in one batch.
    fn place(
        &self,
        turn: &Turn<'_>,
        place: usize,
        image: &mut [f32],
        transformed: &mut [f32],
    ) -> Result<Made, DataError> {
        let Turn {
            order,
            epoch,
            step,
            stop,
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
        image: &mut [f32],
        transformed: &mut [f32],
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
                let mut rng = stream(self.seed, Use::Sample, epoch, index.into());
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
