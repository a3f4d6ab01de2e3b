//! Batches of images of different size, with their boxes.

use std::collections::VecDeque;

use candle_core::{Device, Tensor};
use pirl_data::transform::{Crop, Resizer, resize};
use pirl_data::{Image, Pack};
use rand::RngExt;
use rand::seq::SliceRandom;
use rayon::prelude::*;

use super::boxes::{BBox, clip, is_larger_than};
use super::config::InputConfig;
use super::random::Stream;
use crate::error::{EvalError, Result};

/// Sides of an object, pixels after resizing, that is left out as empty (detectron2's
/// `filter_empty_instances`).
const EMPTY: f32 = 1e-5;

/// The objects of an image, in its own pixels after resizing.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Targets {
    pub(super) boxes: Vec<BBox>,
    pub(super) labels: Vec<usize>,
}

/// Images padded to one size, each in the upper left corner.
pub(super) struct DetectBatch {
    /// `(n, 3, h, w)`, normalised; 0 beyond an image.
    pub(super) images: Tensor,
    /// Height and width of each image without padding.
    pub(super) sizes: Vec<(usize, usize)>,
    pub(super) targets: Vec<Targets>,
}

/// From stored images to what the network sees.
#[derive(Clone, Debug)]
pub(super) struct Input {
    config: InputConfig,
    tables: [[f32; 256]; 3],
    /// Heights and widths of a batch are multiples of this.
    stride: usize,
}

/// An image as the network sees it.
struct View {
    size: (usize, usize),
    /// `(3, height, width)`
    pixels: Vec<f32>,
    targets: Targets,
}

/// One use of an image in training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Draw {
    /// How many times all images were drawn before.
    pub(super) epoch: u64,
    pub(super) index: usize,
}

impl Input {
    /// `mean` and `std` are of red, green and blue in `0..=1`.
    pub(super) fn new(config: &InputConfig, mean: [f32; 3], std: [f32; 3], stride: usize) -> Self {
        let value =
            |channel: usize, value: usize| (value as f32 / 255.0 - mean[channel]) / std[channel];
        Self {
            config: config.clone(),
            tables: std::array::from_fn(|channel| std::array::from_fn(|v| value(channel, v))),
            stride,
        }
    }

    /// A training batch: sizes and mirroring depend on the seed and the draw alone.
    pub(super) fn training(
        &self,
        pack: &Pack,
        draws: &[Draw],
        seed: u64,
        device: &Device,
    ) -> Result<DetectBatch> {
        let views = draws.par_iter().map(|draw| {
            let mut rng = Stream::View.generator(seed, draw.epoch, draw.index as u64);
            let sizes = &self.config.train_sizes;
            let size = sizes[rng.random_range(0..sizes.len())];
            let flip = rng.random::<f64>() < self.config.flip;
            self.view(pack, draw.index, size, flip)
        });
        self.batch(views.collect::<Result<_>>()?, device)
    }

    /// One image as tests see it: in a batch of several, padding would change the maps along the edges.
    pub(super) fn test(&self, pack: &Pack, index: usize, device: &Device) -> Result<DetectBatch> {
        let view = self.view(pack, index, self.config.test_size, false)?;
        self.batch(vec![view], device)
    }

    fn view(&self, pack: &Pack, index: usize, shorter: usize, flip: bool) -> Result<View> {
        let image = pack.decode(index)?;
        let size = resized((image.height, image.width), shorter, self.config.max_size);
        let targets = targets(pack, index, (image.height, image.width), size, flip);
        let mut shown = Image::new(1, 1, vec![0; 3])?;
        let mut resizer = Resizer::default();
        let crop = Crop::whole(&image);
        resize(&mut resizer, &image, crop, size.1, size.0, &mut shown)?;
        Ok(View {
            size,
            pixels: self.normalised(&shown, flip),
            targets,
        })
    }

    fn normalised(&self, image: &Image, flip: bool) -> Vec<f32> {
        let (width, area) = (image.width, image.width * image.height);
        let mut out = vec![0.0; 3 * area];
        for (at, color) in image.pixels.as_chunks::<3>().0.iter().enumerate() {
            let (x, y) = (at % width, at / width);
            let x = if flip { width - 1 - x } else { x };
            for (channel, value) in color.iter().enumerate() {
                out[channel * area + y * width + x] = self.tables[channel][usize::from(*value)];
            }
        }
        out
    }

    fn batch(&self, views: Vec<View>, device: &Device) -> Result<DetectBatch> {
        let largest = |side: fn(&View) -> usize| {
            let most = views.iter().map(side).max().unwrap_or(1);
            most.next_multiple_of(self.stride)
        };
        let (height, width) = (largest(|view| view.size.0), largest(|view| view.size.1));
        let mut pixels = vec![0.0; views.len() * 3 * height * width];
        let planes = pixels.chunks_exact_mut(height * width);
        let seen = views.iter().flat_map(|view| {
            let area = view.size.0 * view.size.1;
            view.pixels
                .chunks_exact(area)
                .map(|plane| (view.size.1, plane))
        });
        for (plane, (own, seen)) in planes.zip(seen) {
            for (row, seen) in plane.chunks_exact_mut(width).zip(seen.chunks_exact(own)) {
                row[..own].copy_from_slice(seen);
            }
        }
        let shape = (views.len(), 3, height, width);
        Ok(DetectBatch {
            images: Tensor::from_vec(pixels, shape, device)?,
            sizes: views.iter().map(|view| view.size).collect(),
            targets: views.into_iter().map(|view| view.targets).collect(),
        })
    }
}

/// `(height, width)` with a shorter side of `shorter`, or a longer of `longest` if that is less
/// (detectron2's `ResizeShortestEdge`).
fn resized((height, width): (usize, usize), shorter: usize, longest: usize) -> (usize, usize) {
    let (h, w) = (height as f64, width as f64);
    let mut scale = shorter as f64 / h.min(w);
    let longer = h.max(w) * scale;
    if longer > longest as f64 {
        scale *= longest as f64 / longer;
    }
    let side = |side: f64| ((side * scale + 0.5) as usize).max(1);
    (side(h), side(w))
}

/// The objects of an image in its resized, possibly mirrored copy, without those that are empty there.
fn targets(
    pack: &Pack,
    index: usize,
    stored: (usize, usize),
    size: (usize, usize),
    flip: bool,
) -> Targets {
    let scale = |new: usize, old: usize| new as f32 / old as f32;
    let (y, x) = (scale(size.0, stored.0), scale(size.1, stored.1));
    let mut targets = Targets::default();
    for (bbox, label, _) in pack.objects(index).unwrap_or_default().iter() {
        let mut bbox = [bbox[0] * x, bbox[1] * y, bbox[2] * x, bbox[3] * y];
        if flip {
            let width = size.1 as f32;
            (bbox[0], bbox[2]) = (width - bbox[2], width - bbox[0]);
        }
        let bbox = clip(bbox, size);
        if is_larger_than(bbox, EMPTY) {
            targets.boxes.push(bbox);
            targets.labels.push(label as usize);
        }
    }
    targets
}

/// An endless sequence of batches, each of images that are all wide or all high, so that little of a
/// batch is padding (detectron2's aspect-ratio grouping). Images without objects are left out.
pub(super) struct Order {
    seed: u64,
    batch_size: usize,
    /// Whether each image is wider than high, by its number in the pack.
    wide: Vec<(usize, bool)>,
    epoch: u64,
    ahead: VecDeque<(Draw, bool)>,
    groups: [Vec<Draw>; 2],
}

impl Order {
    /// # Errors
    /// [`EvalError::NoObjects`] if no image has any.
    pub(super) fn new(pack: &Pack, batch_size: usize, seed: u64) -> Result<Self> {
        let indices = (0..pack.len()).into_par_iter();
        let with_objects =
            indices.filter(|index| pack.objects(*index).is_some_and(|found| !found.is_empty()));
        let wide = with_objects.map(|index| {
            let (width, height) = pack.image_size(index)?;
            Ok((index, width > height))
        });
        let wide: Vec<_> = wide.collect::<Result<_>>()?;
        if wide.is_empty() {
            return Err(EvalError::NoObjects {
                images: pack.len(),
                set: "training",
            });
        }
        Ok(Self {
            seed,
            batch_size,
            wide,
            epoch: 0,
            ahead: VecDeque::new(),
            groups: Default::default(),
        })
    }

    /// Images that are used.
    pub(super) fn len(&self) -> usize {
        self.wide.len()
    }

    /// The next batch. Never ends: each pass over the images has an order of its own.
    pub(super) fn next_batch(&mut self) -> Vec<Draw> {
        loop {
            let Some((draw, wide)) = self.ahead.pop_front() else {
                self.draw_all();
                continue;
            };
            let group = &mut self.groups[usize::from(wide)];
            group.push(draw);
            if group.len() == self.batch_size {
                return std::mem::take(group);
            }
        }
    }

    fn draw_all(&mut self) {
        let mut order = self.wide.clone();
        order.shuffle(&mut Stream::Order.generator(self.seed, self.epoch, 0));
        let epoch = self.epoch;
        let draw = |(index, wide)| (Draw { epoch, index }, wide);
        self.ahead.extend(order.into_iter().map(draw));
        self.epoch += 1;
    }
}
