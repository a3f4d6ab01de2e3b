//! The small PIRL of `benches/peers/trajectory.py`: its networks, bank, draws and batches.
#![allow(dead_code)] // each test file uses its share

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use benches::fill;
use candle_core::{Device, Tensor};
use pirl_bank::{BankError, Drawn, MemoryBank, NegativeSampler};
use pirl_data::{Batch, Normalize};
use pirl_loss::Paper;
use pirl_model::{
    Arch, JigsawHead, ModelConfig, ModelError, Ops, ParamSet, ProjectionHead, ResNet, Stem,
};
use pirl_train::{Pirl, PirlBuilder};
use rand::Rng;

// The sizes of the script.
pub(crate) const ROWS: u32 = 96;
pub(crate) const BATCH: usize = 16;
pub(crate) const NEGATIVES: u32 = 48;
const DIM: usize = 32;
pub(crate) const VIEWS: usize = 9;
const IMAGE: usize = 28;
const PATCH: usize = 12;
// Small: the toy is chaotic, see the script.
pub(crate) const LR: f64 = 0.0003;

/// The script's draws, one set a step.
#[derive(Default)]
pub(crate) struct Scripted(AtomicU32);

impl NegativeSampler for Scripted {
    fn draw(&self, _: usize, batch: &[u32], _: usize, _: &mut dyn Rng) -> Result<Drawn, BankError> {
        let step = self.0.fetch_add(1, Ordering::Relaxed);
        let indices: Vec<u32> = (0..NEGATIVES).map(|k| (7 * k + 11 * step) % ROWS).collect();
        let column = |image| indices.iter().position(|&row| row == image);
        let own = batch.iter().map(|&image| column(image).map(|c| c as u32));
        Ok(Drawn::Shared {
            own: own.collect(),
            indices,
        })
    }
}

/// Weights uniform within `sqrt(3 / fan_in)`, by the seed that `seed_of` gives a name; the rest
/// (batch norm, biases) keeps 1 and 0.
fn initialise(set: &ParamSet, seed_of: impl Fn(&str) -> u32) {
    for param in set.params() {
        let shape = param.shape.as_slice();
        let value = if shape.len() > 1 {
            let bound = (3.0 / shape[1..].iter().product::<usize>() as f64).sqrt() as f32;
            let values = fill(seed_of(&param.name), param.elements());
            let values = values.into_iter().map(|x| x * bound).collect();
            Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
        } else if param.name.ends_with("bias") {
            Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap()
        } else {
            continue;
        };
        set.set(&param.name, &value).unwrap();
    }
}

fn config(ops: Ops) -> ModelConfig {
    ModelConfig {
        arch: Arch::Resnet18,
        width: 0.25,
        stem: Stem::Small,
        ops,
        ..ModelConfig::default()
    }
}

pub(crate) fn backbone(ops: Ops, device: &Device) -> Result<ResNet, ModelError> {
    let backbone = ResNet::new(&config(ops), 0, device)?;
    let mut names: Vec<_> = backbone.parameters().params().iter().collect();
    names.sort_by(|a, b| a.name.cmp(&b.name));
    let rank = |name: &str| names.iter().position(|p| p.name == name).unwrap() as u32;
    initialise(backbone.parameters(), |name| 100 + rank(name));
    Ok(backbone)
}

pub(crate) fn objective(ops: Ops) -> PirlBuilder {
    let rows = fill(400, ROWS as usize * DIM);
    let rows = Tensor::from_vec(rows, (ROWS as usize, DIM), &Device::Cpu).unwrap();
    let rows = pirl_model::l2_normalize(&rows).unwrap();
    Pirl::builder(ROWS as usize, VIEWS)
        .bank(MemoryBank::from_rows(rows, 0.5).unwrap())
        .loss(Paper::new(0.1).unwrap().with_ops(ops))
        .negatives(NEGATIVES as usize)
        .sampler(Scripted::default())
        .ops(ops)
        .image_head(move |features, device| {
            let f = ProjectionHead::new(&config(ops), features, DIM, 0, device)?;
            // In the script a layer's weight comes after its bias in the order of names.
            initialise(f.parameters(), |_| 301);
            Ok(f)
        })
        .transformed_head(move |features, device| {
            let g = JigsawHead::new(&config(ops), features, VIEWS, DIM, 0, device)?;
            let seed = |name: &str| if name.starts_with("patch") { 311 } else { 321 };
            initialise(g.parameters(), seed);
            Ok(g)
        })
}

pub(crate) fn batch(step: usize) -> Batch {
    let indices: Vec<u32> = (0..BATCH)
        .map(|k| ((step * BATCH + k) * 5 % ROWS as usize) as u32)
        .collect();
    let views = |base: u32, noise: u32, size: usize| {
        let own = indices.iter().flat_map(|&i| fill(base + i, size));
        let noise = fill(noise + step as u32, BATCH * size);
        own.zip(noise).map(|(x, n)| x + 0.3 * n).collect::<Vec<_>>()
    };
    let images = views(2000, 3000, 3 * IMAGE * IMAGE);
    let patches = views(4000, 5000, VIEWS * 3 * PATCH * PATCH);
    let (image, patch) = ((BATCH, 3, IMAGE, IMAGE), (BATCH * VIEWS, 3, PATCH, PATCH));
    Batch {
        images: Tensor::from_vec(images, image, &Device::Cpu).unwrap(),
        transformed: Some(Tensor::from_vec(patches, patch, &Device::Cpu).unwrap()),
        indices,
        targets: vec![0; BATCH],
        skipped: 0,
        batch_size: BATCH,
        // The batches are numbers already.
        normalize: Normalize::new([0.5; 3], [0.25; 3]).unwrap(),
    }
}

/// A batch in parts of so many images.
pub(crate) fn cut(batch: &Batch, micro_batch: usize) -> Vec<Batch> {
    let size = batch.indices.len();
    let part = |start: usize| micro_batch.min(size - start);
    let sizes: Vec<usize> = (0..size).step_by(micro_batch).map(part).collect();
    cut_into(batch, &sizes)
}

/// A batch in parts of these sizes.
pub(crate) fn cut_into(batch: &Batch, sizes: &[usize]) -> Vec<Batch> {
    let size = batch.indices.len();
    assert_eq!(sizes.iter().sum::<usize>(), size);
    let part = |(at, &len): (usize, &usize)| {
        let start = sizes[..at].iter().sum::<usize>();
        let views = |views: &Tensor| {
            let each = views.dim(0).unwrap() / size;
            views.narrow(0, start * each, len * each).unwrap()
        };
        Batch {
            images: views(&batch.images),
            transformed: batch.transformed.as_ref().map(views),
            indices: batch.indices[start..start + len].to_vec(),
            targets: batch.targets[start..start + len].to_vec(),
            ..batch.clone()
        }
    };
    sizes.iter().enumerate().map(part).collect()
}

/// Ranks of a test wait so long for each other.
pub(crate) const RANKS_WAIT: Duration = Duration::from_secs(60);
