//! How fast the step and the loader are, and which of them training waits for.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use image::codecs::jpeg::JpegEncoder;
use pirl_data::{
    Batch, DataError, Encoding, Normalize, Pack, PackOptions, RawSample, Source, pack,
};
use pirl_train::Objective;
use serde::Serialize;

use crate::args::DoctorArgs;
use crate::assemble::Inputs;
use crate::commands::bench;
use crate::recipe::{LossKind, Recipe};

/// Sizes of the batches that are timed.
const ON_CPU: [usize; 3] = [2, 4, 8];
const ON_GPU: [usize; 4] = [16, 32, 64, 128];

/// Photographs as in ImageNet: 500 x 375 pixels.
const PHOTO: (u32, u32) = (500, 375);

#[derive(Debug, Serialize)]
pub(super) struct Speed {
    /// The recipe that was timed.
    recipe: String,
    step: Vec<Step>,
    loader: Loader,
    pub(super) limit: Limit,
}

/// Whole training steps: both branches, loss, optimiser and bank.
#[derive(Debug, Serialize)]
struct Step {
    batch_size: usize,
    /// Absent where the batch did not fit.
    images_per_second: Option<f64>,
    message: Option<String>,
}

/// Batches of JPEGs, made by all CPU cores.
#[derive(Debug, Serialize)]
struct Loader {
    images_per_second: f64,
    workers: usize,
}

/// The slower of the two.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Limit {
    Step,
    Loader,
}

pub(super) fn measure(args: &DoctorArgs, device: &Device) -> Result<Speed> {
    let mut recipe = Recipe::load(&args.recipe, &args.settings)?;
    recipe.data.limit = 0;
    recipe.train.micro_batch = 0;
    let default: &[usize] = if device.is_cpu() { &ON_CPU } else { &ON_GPU };
    let sizes = if args.batch_sizes.is_empty() {
        default
    } else {
        &args.batch_sizes
    };
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let step = steps(&recipe, sizes, folder.path(), device)?;
    let loader = loader(
        &recipe,
        folder.path(),
        Duration::from_secs(args.seconds.into()),
    )?;
    let fastest = step
        .iter()
        .filter_map(|step| step.images_per_second)
        .reduce(f64::max);
    let Some(fastest) = fastest else {
        bail!(
            "not one of the batch sizes ran: {}",
            step.iter()
                .filter_map(|step| step.message.as_deref())
                .next()
                .unwrap_or_default()
        );
    };
    Ok(Speed {
        recipe: args.recipe.clone(),
        limit: if loader.images_per_second < fastest {
            Limit::Loader
        } else {
            Limit::Step
        },
        step,
        loader,
    })
}

fn steps(recipe: &Recipe, sizes: &[usize], folder: &Path, device: &Device) -> Result<Vec<Step>> {
    let largest = sizes.iter().copied().max().unwrap_or(1);
    // The bank has a row for each image of the pack, so there must be enough to draw from.
    let path = folder.join("dots");
    let dots = Dots(
        recipe.loss.negatives + 1 + largest,
        vec!["a".to_owned(), "b".to_owned()],
    );
    pack(&dots, &path, &PackOptions::default(), &mut |_, _| {})?;
    let mut steps = Vec::with_capacity(sizes.len());
    for &batch_size in sizes {
        let mut recipe = recipe.clone();
        recipe.train.batch_size = batch_size;
        let timed = Inputs::new(recipe, Pack::open(&path)?, 1)
            .and_then(|inputs| time_step(&inputs, batch_size, device));
        steps.push(match timed {
            Ok(seconds) => Step {
                batch_size,
                images_per_second: Some(batch_size as f64 / seconds),
                message: None,
            },
            Err(error) => Step {
                batch_size,
                images_per_second: None,
                message: Some(format!("{error:#}")),
            },
        });
    }
    Ok(steps)
}

/// Seconds of a step: after a first, which may allocate and choose algorithms, the mean of as many
/// as half a second takes.
fn time_step(inputs: &Inputs, batch_size: usize, device: &Device) -> Result<f64> {
    match inputs.recipe.loss.kind {
        LossKind::Covariant => time(inputs, inputs.covariant()?, batch_size, device),
        LossKind::Supervised => time(inputs, inputs.supervised()?, batch_size, device),
        _ => time(inputs, inputs.pirl(device)?, batch_size, device),
    }
}

fn time<O: Objective>(
    inputs: &Inputs,
    objective: O,
    batch_size: usize,
    device: &Device,
) -> Result<f64> {
    let mut learner = inputs.learner(objective, std::slice::from_ref(device))?;
    let batch = batch(inputs, batch_size)?;
    let mut step = |number: u64| -> Result<()> {
        learner.step([Ok(batch.clone())], number, 1e-4)?;
        Ok(device.synchronize()?)
    };
    step(1)?;
    let (start, mut done) = (Instant::now(), 0);
    while done == 0 || start.elapsed() < Duration::from_millis(500) {
        done += 1;
        step(1 + done)?;
    }
    Ok(start.elapsed().as_secs_f64() / done as f64)
}

/// A batch of noise.
fn batch(inputs: &Inputs, images: usize) -> Result<Batch> {
    let noise = |count: usize, side: usize| {
        let noise = Tensor::rand(0f32, 256.0, (count, 3, side, side), &Device::Cpu)?;
        noise.to_dtype(DType::U8)
    };
    let pretext = inputs.pretext.as_deref();
    let transformed = pretext.map(|pretext| noise(images * pretext.views(), pretext.view_size()));
    let labels = pretext.map_or(1, |pretext| pretext.labels().max(1));
    Ok(Batch {
        images: noise(images, inputs.recipe.data.image_size)?,
        transformed: transformed.transpose()?,
        indices: (0..images as u32).collect(),
        targets: (0..images).map(|image| (image % labels) as u32).collect(),
        skipped: 0,
        batch_size: images,
        normalize: Normalize::new(inputs.recipe.data.mean, inputs.recipe.data.std)?,
    })
}

fn loader(recipe: &Recipe, folder: &Path, time: Duration) -> Result<Loader> {
    let path = folder.join("photos");
    pack(
        &Photos::new()?,
        &path,
        &PackOptions::default(),
        &mut |_, _| {},
    )?;
    let pack = Arc::new(Pack::open(&path)?);
    let mut recipe = recipe.clone();
    recipe.train.batch_size = recipe.train.batch_size.min(pack.len());
    recipe.loader.workers = std::thread::available_parallelism().map_or(1, usize::from);
    let images_per_second = bench::images_per_second(&recipe, &pack, time)?;
    ensure!(images_per_second > 0.0, "the loader made no batch");
    Ok(Loader {
        images_per_second,
        workers: recipe.loader.workers,
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

    fn read(&self, index: usize) -> Result<RawSample<'_>, DataError> {
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
    fn new() -> Result<Self> {
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
                .context("encoding a JPEG")?;
            Ok(bytes)
        };
        (0..32).map(photo).collect::<Result<_>>().map(Self)
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

    fn read(&self, index: usize) -> Result<RawSample<'_>, DataError> {
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

impl Speed {
    #[cfg(test)]
    pub(super) fn for_tests() -> Self {
        Self {
            recipe: "none".to_owned(),
            step: Vec::new(),
            loader: Loader {
                images_per_second: 1.0,
                workers: 1,
            },
            limit: Limit::Step,
        }
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, training steps on noise:", self.recipe)?;
        for step in &self.step {
            match (step.images_per_second, &step.message) {
                (Some(rate), _) => {
                    write!(f, "\n  batch {:>4}  {rate:>8.1} images/s", step.batch_size)?
                }
                (None, message) => write!(
                    f,
                    "\n  batch {:>4}  {}",
                    step.batch_size,
                    message.as_deref().unwrap_or("failed")
                )?,
            }
        }
        let Loader {
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
