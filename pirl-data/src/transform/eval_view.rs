//! How an image is seen when nothing is random: resized and cropped at the centre.

use candle_core::{Device, Tensor};
use pirl_core::{SettingError, check};
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::resize::resize_part;
use super::view::{Scratch, check_channels, check_output};
use super::{Crop, Normalize, resize, write_planes};
use crate::config::{check_normalization, check_side};
use crate::{DataError, Image, Pack};

/// The view of evaluations: torchvision's `Resize(resize)`, `CenterCrop(crop)`, `Normalize`.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalView {
    /// Length of the shorter side after resizing; 0 keeps the size.
    pub resize: usize,
    /// Side of the central square. Where the resized image is smaller than the square, the rest is
    /// black.
    pub crop: usize,
    /// Whether the resized image is then resized to the square of side `crop` instead of cropped: all
    /// of it is seen, but with other proportions (VISSL's VOC07 classification).
    pub stretch: bool,
    /// Mean of each channel, of values in 0..=1: as many as images have channels.
    pub mean: Vec<f32>,
    /// Standard deviation of each channel, of values in 0..=1.
    pub std: Vec<f32>,
}

impl EvalView {
    /// Channels of the view, and of the images it is of.
    pub fn channels(&self) -> usize {
        self.mean.len()
    }

    /// Writes the view of `image` to `out`: `(channels, crop, crop)` bytes, not yet normalised.
    ///
    /// # Errors
    /// [`DataError::Setting`] for a size that cannot work, [`DataError::Output`] when `out` has another
    /// length, [`DataError::ImageSize`] when the image's pixels do not fill it, [`DataError::Channels`] when
    /// it has others.
    pub fn apply(
        &self,
        image: &Image,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> Result<(), DataError> {
        self.check()?;
        self.write(image, scratch, out)
    }

    /// The normalisation of the view's bytes.
    ///
    /// # Errors
    /// [`DataError::Setting`] for a mean or deviation that cannot work.
    pub fn normalize(&self) -> Result<Normalize, DataError> {
        Normalize::new(self.mean.as_slice(), self.std.as_slice())
    }

    /// The view as an image.
    ///
    /// # Errors
    /// As [`EvalView::apply`].
    pub fn pixels(&self, image: &Image, scratch: &mut Scratch) -> Result<Image, DataError> {
        self.check()?;
        Ok(self.cut(image, scratch)?.clone())
    }

    /// # Errors
    /// Names the first field whose value cannot work.
    pub fn check(&self) -> Result<(), SettingError> {
        if self.resize > 0 {
            check_side("resize", self.resize)?;
        }
        check_side("crop", self.crop)?;
        check_normalization(self.mean.len(), &self.mean, &self.std)
    }

    fn write(&self, image: &Image, scratch: &mut Scratch, out: &mut [u8]) -> Result<(), DataError> {
        check_output(out, self.channels() * self.crop * self.crop)?;
        write_planes(self.cut(image, scratch)?, out);
        Ok(())
    }

    /// The part of `image` that is seen once it is resized to `size`: left, top, width and height, and what
    /// that part alone is to be resized to.
    fn seen(&self, image: &Image, (width, height): (usize, usize)) -> ([f64; 4], (usize, usize)) {
        let side = |length: usize, resized: usize| {
            let (start, seen) = match self.stretch {
                true => (0, resized),
                false => (margins(resized, self.crop).0, resized.min(self.crop)),
            };
            let scale = length as f64 / resized as f64;
            (
                start as f64 * scale,
                seen as f64 * scale,
                seen.min(self.crop),
            )
        };
        let (left, wide, columns) = side(image.width, width);
        let (top, high, rows) = side(image.height, height);
        ([left, top, wide, high], (columns, rows))
    }

    fn cut<'a>(&self, image: &'a Image, scratch: &'a mut Scratch) -> Result<&'a Image, DataError> {
        image.check()?;
        check_channels(self.channels(), image.channels)?;
        let shorter = image.width.min(image.height);
        let image = if self.resize == 0 || self.resize == shorter {
            image
        } else {
            // torchvision's `int(size * long / short)`.
            let longer = |length: usize| length * self.resize / shorter;
            let size = (longer(image.width), longer(image.height));
            if size.0.saturating_mul(size.1) <= LARGEST_RESIZED {
                let whole = Crop::whole(image);
                resize(
                    &mut scratch.resizer,
                    image,
                    whole,
                    size.0,
                    size.1,
                    &mut scratch.crop,
                )?;
            } else {
                let (part, size) = self.seen(image, size);
                resize_part(&mut scratch.resizer, image, part, size, &mut scratch.crop)?;
            }
            &scratch.crop
        };
        if (image.width, image.height) == (self.crop, self.crop) {
            return Ok(image);
        }
        if self.stretch {
            resize(
                &mut scratch.resizer,
                image,
                Crop::whole(image),
                self.crop,
                self.crop,
                &mut scratch.part,
            )?;
        } else {
            centre(image, self.crop, &mut scratch.part);
        }
        Ok(&scratch.part)
    }
}

/// Pixels of a resized image that is made as a whole: of one far longer than wide, which a shorter side of
/// 256 makes enormous, only what is seen of it is made.
const LARGEST_RESIZED: usize = 1 << 26;

/// torchvision's `center_crop` to a square of `size`, with black where the image is smaller.
fn centre(image: &Image, size: usize, out: &mut Image) {
    let (left, pad_left) = margins(image.width, size);
    let (top, pad_top) = margins(image.height, size);
    let (columns, channels) = (image.width.min(size), image.channels);
    out.pixels.clear();
    out.set_size(size, size, channels);
    let rows = image.pixels.chunks_exact(image.width * channels).skip(top);
    let places = out.pixels.chunks_exact_mut(size * channels).skip(pad_top);
    for (from, to) in rows.zip(places) {
        to[pad_left * channels..(pad_left + columns) * channels]
            .copy_from_slice(&from[left * channels..(left + columns) * channels]);
    }
}

/// How much of a side of `length` to cut off before a crop of `size`, and how much to pad.
fn margins(length: usize, size: usize) -> (usize, usize) {
    if length >= size {
        // Python's round: ties to even.
        let cut = ((length - size) as f64 / 2.0).round_ties_even() as usize;
        (cut, 0)
    } else {
        (0, (size - length) / 2)
    }
}

/// The images of a pack as [`EvalView`] shows them: see [`eval_batches`].
#[derive(Debug)]
pub struct EvalBatches<'a> {
    pack: &'a Pack,
    view: EvalView,
    normalize: Normalize,
    device: Device,
    batch_size: usize,
    next: usize,
    pool: ThreadPool,
}

/// All images of `pack`, in its order, `batch_size` at a time; the last batch may be short.
///
/// Items are `(images (B, channels, crop, crop) f32 on the device, normalised, labels)`; each is made when
/// it is asked for, by `workers` threads (0: one for each core).
///
/// # Errors
/// [`DataError::Setting`] for a size, a normalisation or a batch size that cannot work,
/// [`DataError::Channels`] for a pack of others than the view's. An item is an
/// error when an image cannot be decoded; it is then the last.
pub fn eval_batches<'a>(
    pack: &'a Pack,
    view: &EvalView,
    batch_size: usize,
    workers: usize,
    device: &Device,
) -> Result<EvalBatches<'a>, DataError> {
    view.check()?;
    check_channels(view.channels(), pack.channels())?;
    check(
        "batch_size",
        batch_size,
        batch_size > 0,
        "must be at least 1",
    )?;
    Ok(EvalBatches {
        pack,
        view: view.clone(),
        normalize: view.normalize()?,
        device: device.clone(),
        batch_size,
        next: 0,
        pool: thread_pool("pirl-eval", workers)?,
    })
}

/// `workers` threads named `name-0` and so on; one a core for 0.
pub(crate) fn thread_pool(name: &'static str, workers: usize) -> Result<ThreadPool, DataError> {
    ThreadPoolBuilder::new()
        .num_threads(workers)
        .thread_name(move |index| format!("{name}-{index}"))
        .build()
        .map_err(|error| {
            let expected = format!("must be as many threads as can be started: {error}");
            SettingError::new("workers", workers, expected).into()
        })
}

impl EvalBatches<'_> {
    fn batch(&self, start: usize, end: usize) -> Result<(Tensor, Vec<Option<u32>>), DataError> {
        let (side, channels) = (self.view.crop, self.view.channels());
        let mut images = vec![0_u8; (end - start) * channels * side * side];
        self.pool.install(|| {
            images
                .par_chunks_mut(channels * side * side)
                .enumerate()
                .try_for_each_init(Scratch::default, |scratch, (place, out)| {
                    let image = self.pack.decode(start + place)?;
                    self.view.write(&image, scratch, out)
                })
        })?;
        let images = Tensor::from_vec(images, (end - start, channels, side, side), &Device::Cpu)?;
        let images = self.normalize.apply(&images, &self.device)?;
        let labels = (start..end).map(|index| self.pack.label(index)).collect();
        Ok((images, labels))
    }
}

impl Iterator for EvalBatches<'_> {
    type Item = Result<(Tensor, Vec<Option<u32>>), DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let start = self.next;
        let end = start.saturating_add(self.batch_size).min(self.pack.len());
        if start >= end {
            return None;
        }
        let batch = self.batch(start, end);
        self.next = if batch.is_ok() { end } else { self.pack.len() };
        Some(batch)
    }

    /// Does not make the batches left out: of those that several share, each skips the others'.
    fn nth(&mut self, n: usize) -> Option<Self::Item> {
        self.next = self.next.saturating_add(n.saturating_mul(self.batch_size));
        self.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self
            .pack
            .len()
            .saturating_sub(self.next)
            .div_ceil(self.batch_size);
        (left.min(1), Some(left))
    }
}
