//! How fast the step and the loader are, and which of them training waits for.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use image::codecs::jpeg::JpegEncoder;
use pirl_core::explain;
use pirl_data::{
    Batch, DataError, Encoding, Loader, Normalize, Pack, PackOptions, Pretext, RawSample, Source,
    Throughput, pack,
};
use pirl_train::{Learner, Objective};
use serde::Serialize;

use crate::error::DoctorError;
use crate::parity::Result;

/// Photographs as in ImageNet: 500 x 375 pixels.
const PHOTO: (u32, u32) = (500, 375);

/// What [`Speed::measure`] found.
#[derive(Debug, Serialize)]
pub struct Speed {
    /// The recipe that was timed.
    pub recipe: String,
    /// By size of batch.
    pub step: Vec<StepSpeed>,
    /// Of batches from generated photographs.
    pub loader: LoaderSpeed,
    /// What training waits for.
    pub limit: Limit,
}

/// Whole training steps: both branches, loss, optimiser and bank.
#[derive(Debug, Serialize)]
pub struct StepSpeed {
    /// Images of a batch.
    pub batch_size: usize,
    /// Absent where the step failed, for want of memory for instance.
    pub images_per_second: Option<f64>,
    /// The most memory of a GPU that its tensors took.
    pub memory_mib: Option<u64>,
    /// Why it failed.
    pub message: Option<String>,
}

/// Batches of JPEGs, made by all CPU cores.
#[derive(Debug, Serialize)]
pub struct LoaderSpeed {
    /// The mean over the time that was measured.
    pub images_per_second: f64,
    /// Threads that made the batches.
    pub workers: usize,
}

/// The slower of the two.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// The training step.
    Step,
    /// The loader.
    Loader,
}

/// What is timed: a recipe's step and loader.
pub trait Workload {
    /// Where steps are taken.
    fn device(&self) -> &Device;

    /// Images that a pack must have for steps with batches of this size.
    fn images(&self, batch_size: usize) -> usize;

    /// A training on the images of `pack`, ready to take steps with batches of `batch_size` images.
    ///
    /// # Errors
    ///
    /// Fails if the settings are invalid or memory does not suffice. The other sizes are timed
    /// all the same.
    fn step(&self, pack: Pack, batch_size: usize) -> Result<TimedStep>;

    /// The loader of batches from `pack`, with all CPU cores, and how many they are.
    ///
    /// # Errors
    ///
    /// Fails if the settings are invalid.
    fn loader(&self, pack: Arc<Pack>) -> Result<(Loader, usize)>;
}

/// Takes the step of the number it is given, counted from 1, and waits for the device.
pub type TimedStep = Box<dyn FnMut(u64) -> Result<()>>;

/// The steps of `learner` on always the same `batch`, on `device`.
pub fn timed_step<O: Objective + 'static>(
    mut learner: Learner<O>,
    batch: Batch,
    device: &Device,
) -> TimedStep {
    const LR: f64 = 1e-4;
    let device = device.clone();
    Box::new(move |number| {
        learner.step([Ok(batch.clone())], number, LR)?;
        Ok(device.synchronize()?)
    })
}

/// A batch of `images` squares of noise with `image_size` pixels a side, and as many views as
/// `pretext` makes of them.
///
/// # Errors
///
/// Fails if memory does not suffice.
pub fn noise_batch(
    images: usize,
    image_size: usize,
    pretext: Option<&dyn Pretext>,
    normalize: Normalize,
) -> candle_core::Result<Batch> {
    let noise = |count: usize, side: usize| {
        let shape = (count, normalize.channels(), side, side);
        let noise = Tensor::rand(0f32, 256.0, shape, &Device::Cpu)?;
        noise.to_dtype(DType::U8)
    };
    let transformed = pretext.map(|pretext| noise(images * pretext.views(), pretext.view_size()));
    let labels = pretext.map_or(1, |pretext| pretext.labels().max(1));
    Ok(Batch {
        images: noise(images, image_size)?,
        transformed: transformed.transpose()?,
        indices: (0..images as u32).collect(),
        targets: (0..images).map(|image| (image % labels) as u32).collect(),
        skipped: 0,
        batch_size: images,
        normalize,
    })
}

impl Speed {
    /// Times steps with batches of each of `sizes`, and for `time` the loader of batches from
    /// generated photographs. `recipe` is the name for the report.
    ///
    /// # Errors
    ///
    /// Fails if no size of batch can be trained with, or the loader makes no batch, or temporary
    /// files cannot be written.
    pub fn measure(
        recipe: &str,
        workload: &dyn Workload,
        sizes: &[usize],
        time: Duration,
    ) -> std::result::Result<Self, DoctorError> {
        let folder = tempfile::tempdir().map_err(DoctorError::Folder)?;
        let step = time_steps(workload, sizes, folder.path())?;
        let loader = time_loader(workload, folder.path(), time)?;
        let rates = step.iter().filter_map(|step| step.images_per_second);
        let Some(fastest) = rates.reduce(f64::max) else {
            let mut messages = step.into_iter().filter_map(|step| step.message);
            return Err(DoctorError::NoStep(messages.next().unwrap_or_default()));
        };
        Ok(Self {
            recipe: recipe.to_owned(),
            limit: if loader.images_per_second < fastest {
                Limit::Loader
            } else {
                Limit::Step
            },
            step,
            loader,
        })
    }
}

fn time_steps(
    workload: &dyn Workload,
    sizes: &[usize],
    folder: &Path,
) -> std::result::Result<Vec<StepSpeed>, DoctorError> {
    let images = sizes.iter().map(|&size| workload.images(size)).max();
    let path = folder.join("dots");
    let dots = Dots(images.unwrap_or(1), vec!["a".to_owned(), "b".to_owned()]);
    pack(&dots, &path, &PackOptions::default(), &mut |_, _| {})?;
    let mut steps = Vec::with_capacity(sizes.len());
    for &batch_size in sizes {
        take_peak_mib(workload.device()); // that of other sizes
        let step = workload.step(Pack::open(&path)?, batch_size);
        let (images_per_second, message) = match step.and_then(seconds) {
            Ok(seconds) => (Some(batch_size as f64 / seconds), None),
            Err(error) => (None, Some(explain(error.as_ref()))),
        };
        steps.push(StepSpeed {
            batch_size,
            images_per_second,
            memory_mib: take_peak_mib(workload.device()),
            message,
        });
    }
    Ok(steps)
}

/// The most memory of a GPU that its tensors took since the last call.
fn take_peak_mib(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        let peak = pirl_model::cuda::take_peak_memory(device).ok().flatten();
        return peak.map(|bytes| bytes >> 20);
    }
    let _ = device;
    None
}

/// Seconds of a step: after a first, which may allocate and choose algorithms, the mean of as many
/// as half a second takes.
fn seconds(mut step: TimedStep) -> Result<f64> {
    step(1)?;
    let (start, mut done) = (Instant::now(), 0);
    while done == 0 || start.elapsed() < Duration::from_millis(500) {
        done += 1;
        step(1 + done)?;
    }
    Ok(start.elapsed().as_secs_f64() / done as f64)
}

fn time_loader(
    workload: &dyn Workload,
    folder: &Path,
    time: Duration,
) -> std::result::Result<LoaderSpeed, DoctorError> {
    let path = folder.join("photos");
    pack(
        &Photos::new()?,
        &path,
        &PackOptions::default(),
        &mut |_, _| {},
    )?;
    let pack = Arc::new(Pack::open(&path)?);
    let loader = workload.loader(Arc::clone(&pack));
    let (loader, workers) = loader.map_err(DoctorError::Loader)?;
    let found = Throughput::measure(&loader, &pack, time)?;
    Ok(LoaderSpeed {
        images_per_second: found.images_per_second(),
        workers,
    })
}

/// So many images of one pixel, of two classes.
struct Dots(usize, Vec<String>);

impl Source for Dots {
    fn len(&self) -> usize {
        self.0
    }

    fn class_names(&self) -> &[String] {
        &self.1
    }

    fn read(&self, index: usize) -> std::result::Result<RawSample<'_>, DataError> {
        let encoding = Encoding::Raw {
            height: 1,
            width: 1,
            channels: 1,
        };
        Ok(RawSample {
            name: index.to_string(),
            bytes: Cow::Borrowed(&[0]),
            encoding,
            label: Some(index as u32 % 2),
            objects: None,
        })
    }

    fn describe(&self) -> String {
        "dots".to_owned()
    }
}

/// JPEGs of a photograph's size, with edges and some noise.
struct Photos(Vec<Vec<u8>>);

impl Photos {
    fn new() -> std::result::Result<Self, DoctorError> {
        let photo = |index: u32| {
            let shade = |x: u32, y: u32| {
                // Large shapes, a texture, and a hash for noise.
                let shape = (x / (40 + index) + y / (30 + 2 * index)) % 5 * 45;
                let noise = (x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(40_503 + index)) >> 27;
                (shape + (x * y / 97) % 23 + noise) as u8
            };
            let pixels = image::RgbImage::from_fn(PHOTO.0, PHOTO.1, |x, y| {
                image::Rgb([shade(x, y), shade(y, x), 255 - shade(x + 9, y)])
            });
            let mut bytes = Vec::new();
            pixels
                .write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, 90))
                .map_err(DoctorError::Jpeg)?;
            Ok(bytes)
        };
        (0..32)
            .map(photo)
            .collect::<std::result::Result<_, _>>()
            .map(Self)
    }
}

impl Source for Photos {
    fn len(&self) -> usize {
        // Enough for batches of a few hundred.
        self.0.len() * 8
    }

    fn class_names(&self) -> &[String] {
        &[]
    }

    fn read(&self, index: usize) -> std::result::Result<RawSample<'_>, DataError> {
        Ok(RawSample {
            name: index.to_string(),
            bytes: Cow::Borrowed(&self.0[index % self.0.len()]),
            encoding: Encoding::Jpeg,
            label: None,
            objects: None,
        })
    }

    fn describe(&self) -> String {
        "generated photographs".to_owned()
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, training steps on noise:", self.recipe)?;
        for step in &self.step {
            match (step.images_per_second, &step.message) {
                (Some(rate), _) => {
                    write!(f, "\n  batch {:>4}  {rate:>8.1} images/s", step.batch_size)?;
                    if let Some(memory) = step.memory_mib {
                        write!(f, ", {memory} MiB")?;
                    }
                }
                (None, message) => write!(
                    f,
                    "\n  batch {:>4}  {}",
                    step.batch_size,
                    message.as_deref().unwrap_or("failed")
                )?,
            }
        }
        let LoaderSpeed {
            images_per_second,
            workers,
        } = &self.loader;
        write!(
            f,
            "\n  loader      {images_per_second:>8.1} images/s from {}x{} JPEGs ({workers} workers)",
            PHOTO.0, PHOTO.1
        )
    }
}
