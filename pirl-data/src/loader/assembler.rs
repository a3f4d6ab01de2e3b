//! How a part of a batch is put together from the samples in it.

use std::any::Any;
use std::cell::RefCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{Device, Tensor};
use rayon::ThreadPool;
use rayon::prelude::*;

use super::batch::Batch;
use super::config::OnCorrupt;
use crate::pretext::Pretext;
use crate::random::{Use, sample_rng, shuffle, stream};
use crate::stages::{Stage, StageTotals};
use crate::transform::{ImageView, Scratch};
use crate::{DataError, Image, Pack};

/// The smallest page of memory there is, in bytes.
const PAGE: usize = 4096;

/// Makes parts of batches, the samples of each by a pool of threads.
pub(super) struct Assembler {
    pub(super) pool: ThreadPool,
    pub(super) pack: Arc<Pack>,
    pub(super) view: ImageView,
    pub(super) pretext: Option<Arc<dyn Pretext>>,
    pub(super) batch_size: usize,
    /// The places of each part in a batch.
    pub(super) parts: Vec<Range<usize>>,
    pub(super) seed: u64,
    pub(super) on_corrupt: OnCorrupt,
    /// See [`LoaderConfig::samples`](super::LoaderConfig::samples).
    pub(super) samples: Option<Vec<u32>>,
    pub(super) totals: StageTotals,
}

/// Which part of which batch to make.
pub(super) struct Request<'a> {
    /// All samples in the order of the epoch.
    pub(super) order: &'a [u32],
    pub(super) epoch: u64,
    /// The step in the epoch.
    pub(super) step: usize,
    /// The part's places in the batch.
    pub(super) places: Range<usize>,
    /// Whether the part is no longer needed.
    pub(super) stop: &'a AtomicBool,
}

/// What is known of a place in a batch beside its pixels.
struct Filled {
    index: u32,
    target: u32,
    skipped: usize,
}

/// Buffers of a worker thread, reused from sample to sample.
struct Workspace {
    decoded: Image,
    scratch: Scratch,
}

impl Default for Workspace {
    fn default() -> Self {
        Self {
            decoded: Image::empty(),
            scratch: Scratch::default(),
        }
    }
}

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::default();
}

/// The places of each part of a batch: as few parts as have at most `micro_batch` places, all of about
/// the same size.
pub(super) fn split(batch_size: usize, micro_batch: usize) -> Vec<Range<usize>> {
    let count = match micro_batch {
        0 => 1,
        most => batch_size.div_ceil(most),
    };
    let start = |part: usize| part * batch_size / count;
    (0..count)
        .map(|part| start(part)..start(part + 1))
        .collect()
}

/// Bytes of the views of so many images, at least 1.
pub(super) fn part_bytes(view: &ImageView, pretext: Option<&dyn Pretext>, images: usize) -> usize {
    let squares = |views: usize, side: usize| views.saturating_mul(side * side);
    let image = squares(1, view.size());
    let views = pretext.map_or(0, |pretext| squares(pretext.views(), pretext.view_size()));
    let bytes = image.saturating_add(views).saturating_mul(view.channels());
    bytes.saturating_mul(images).max(1)
}

impl Assembler {
    /// All samples in the order of `epoch`. Of a share with samples of its own, only the places that are its own
    /// are filled, step by step for as many steps as there are samples.
    pub(super) fn order(&self, epoch: u64) -> Vec<u32> {
        let shuffled = |mut samples: Vec<u32>| {
            shuffle(&mut stream(self.seed, Use::Order, epoch, 0), &mut samples);
            samples
        };
        let Some(samples) = &self.samples else {
            return shuffled((0..self.pack.len() as u32).collect());
        };
        let places: Vec<usize> = self.parts.iter().cloned().flatten().collect();
        let steps = samples.len() / places.len().max(1);
        let mut order = vec![0; steps * self.batch_size];
        let shuffled = shuffled(samples.clone());
        for (step, own) in shuffled.chunks_exact(places.len().max(1)).enumerate() {
            for (place, &sample) in places.iter().zip(own) {
                order[step * self.batch_size + place] = sample;
            }
        }
        order
    }

    /// The step that a part of an epoch belongs to, and its places in the step's batch.
    pub(super) fn locate(&self, part: usize) -> (usize, Range<usize>) {
        let count = self.parts.len().max(1);
        let places = self.parts.get(part % count).cloned();
        (part / count, places.unwrap_or_default())
    }

    /// Tells the system which samples a part of an epoch needs, so that the disk can begin.
    pub(super) fn prefetch(&self, order: &[u32], part: usize) {
        let (step, places) = self.locate(part);
        let first = step
            .saturating_mul(self.batch_size)
            .saturating_add(places.start);
        for index in order.iter().skip(first).take(places.len()) {
            self.pack.will_need(*index as usize);
        }
    }

    /// Makes a part of a batch.
    pub(super) fn assemble(&self, request: &Request<'_>) -> Result<Batch, DataError> {
        let (size, channels) = (self.view.size(), self.view.channels());
        let image_len = channels * size * size;
        let (views, side) = self
            .pretext
            .as_ref()
            .map_or((0, 0), |pretext| (pretext.views(), pretext.view_size()));
        let views_len = views * channels * side * side;
        let count = request.places.len();
        let mut images = vec![0_u8; count * image_len];
        let mut transformed = vec![0_u8; count * views_len];
        // Without a pretext task every place has an empty slice.
        let mut views_of: Vec<&mut [u8]> = if views_len == 0 {
            (0..count).map(|_| Default::default()).collect()
        } else {
            transformed.chunks_exact_mut(views_len).collect()
        };
        let filled = self.pool.install(|| {
            images
                .par_chunks_exact_mut(image_len)
                .zip(views_of.par_iter_mut())
                .with_max_len(1)
                .enumerate()
                .map(|(place, (image, transformed))| {
                    self.fill(request, request.places.start + place, image, transformed)
                })
                .collect::<Result<Vec<Filled>, DataError>>()
        })?;
        let images = Tensor::from_vec(images, (count, channels, size, size), &Device::Cpu)?;
        let transformed = match views {
            0 => None,
            _ => Some(Tensor::from_vec(
                transformed,
                (count * views, channels, side, side),
                &Device::Cpu,
            )?),
        };
        Ok(Batch {
            images,
            transformed,
            indices: filled.iter().map(|filled| filled.index).collect(),
            targets: filled.iter().map(|filled| filled.target).collect(),
            skipped: filled.iter().map(|filled| filled.skipped).sum(),
            batch_size: self.batch_size,
            normalize: self.view.normalize().clone(),
        })
    }

    /// Fills one place of a batch with the sample that the order puts there, or with the next good one
    /// at the same place of a later batch: so no sample comes twice in one batch.
    fn fill(
        &self,
        request: &Request<'_>,
        place: usize,
        image: &mut [u8],
        transformed: &mut [u8],
    ) -> Result<Filled, DataError> {
        let Request {
            order,
            epoch,
            step,
            stop,
            ..
        } = *request;
        let column = || order.iter().skip(place).step_by(self.batch_size);
        let candidates = column().skip(step).chain(column().take(step));
        let mut skipped = 0;
        let mut first = None;
        for index in candidates.copied() {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            match self.sample(epoch, index, image, transformed) {
                Ok(target) => {
                    return Ok(Filled {
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
    /// Returns the label of its transformation.
    fn sample(
        &self,
        epoch: u64,
        index: u32,
        image: &mut [u8],
        transformed: &mut [u8],
    ) -> Result<u32, DataError> {
        let views = || {
            WORKSPACE.with_borrow_mut(|Workspace { decoded, scratch }| {
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
        catch_panic(Some(index as usize), views)
    }
}

/// What `work` returns, or an error if it panics; `index` is the sample it works on.
pub(super) fn catch_panic<T>(
    index: Option<usize>,
    work: impl FnOnce() -> Result<T, DataError>,
) -> Result<T, DataError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        Err(DataError::Worker {
            index,
            reason: message(&*panic),
        })
    })
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("panicked")
        .to_owned()
}
