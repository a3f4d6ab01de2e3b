//! Twenty training steps beside PyTorch's: same weights, same batches, same losses.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use benches::fill;
use candle_core::{Device, Tensor};
use pirl_bank::{BankError, Drawn, MemoryBank, NegativeSampler};
use pirl_data::{Batch, Normalize};
use pirl_loss::Paper;
use pirl_model::{
    Arch, Backbone, Head, JigsawHead, ModelConfig, Ops, OptimConfig, Optimizer, ParamSet,
    Precision, ProjectionHead, ResNet, Stem, Upload,
};
use rand::Rng;

use super::descent::Descent;
use super::replica::{Heads, Replica};
use super::step::{Invariant, Learner, Task};

// The sizes of benches/peers/trajectory.py.
const ROWS: u32 = 96;
const BATCH: usize = 16;
const NEGATIVES: u32 = 48;
const DIM: usize = 32;
const VIEWS: usize = 9;
const IMAGE: usize = 28;
const PATCH: usize = 12;
// Small: the toy is chaotic, see the script.
const LR: f64 = 0.0003;

/// The script's draws, one set a step.
#[derive(Default)]
struct Scripted(AtomicU32);

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
fn initialise(set: &ParamSet, seed_of: impl Fn(&str) -> u32) -> Result<()> {
    for param in set.params() {
        let value = if param.shape.len() > 1 {
            let bound = (3.0 / param.shape[1..].iter().product::<usize>() as f64).sqrt() as f32;
            let values = fill(seed_of(&param.name), param.elements());
            let values = values.into_iter().map(|x| x * bound).collect();
            Tensor::from_vec(values, param.shape.as_slice(), &Device::Cpu)?
        } else if param.name.ends_with("bias") {
            Tensor::zeros(
                param.shape.as_slice(),
                candle_core::DType::F32,
                &Device::Cpu,
            )?
        } else {
            continue;
        };
        set.set(&param.name, &value)?;
    }
    Ok(())
}

pub(super) fn learner(ops: Ops) -> Result<Learner> {
    let config = ModelConfig {
        arch: Arch::Resnet18,
        width: 0.25,
        stem: Stem::Small,
        ops,
        ..ModelConfig::default()
    };
    let device = Device::Cpu;
    let backbone = ResNet::new(&config, 0, &device)?;
    let mut names: Vec<_> = backbone.parameters().params().iter().collect();
    names.sort_by(|a, b| a.name.cmp(&b.name));
    let rank = |name: &str| names.iter().position(|p| p.name == name).unwrap() as u32;
    initialise(backbone.parameters(), |name| 100 + rank(name))?;

    let features = backbone.feature_dim();
    let f = ProjectionHead::new(&config, features, DIM, 0, &device)?;
    // In the script a layer's weight comes after its bias in the order of names.
    initialise(f.parameters(), |_| 301)?;
    let g = JigsawHead::new(&config, features, VIEWS, DIM, 0, &device)?;
    initialise(g.parameters(), |name| {
        if name.starts_with("patch") { 311 } else { 321 }
    })?;

    let rows = Tensor::from_vec(
        fill(400, ROWS as usize * DIM),
        (ROWS as usize, DIM),
        &device,
    )?;
    let rows = pirl_model::l2_normalize(&rows)?;
    let optim = OptimConfig {
        lr: LR,
        ..OptimConfig::default()
    };
    let main = Replica {
        backbone,
        heads: Heads::Invariant {
            f,
            g: Some(Box::new(g)),
        },
        // The batches are numbers already.
        normalize: Normalize::new([0.5; 3], [0.25; 3])?,
        upload: Upload::new(&device)?,
    };
    let optimizer = Optimizer::new(&optim, main.parameters())?.with_ops(ops);
    Ok(Learner {
        main,
        crew: Vec::new(),
        task: Task::Invariant(Invariant {
            loss: Arc::new(Paper::new(0.1)?.fused(ops == Ops::Fast)),
            lambda: 0.5,
            bank: MemoryBank::from_rows(rows, 0.5)?.fast(ops == Ops::Fast),
            sampler: Box::new(Scripted::default()),
            negatives: NEGATIVES as usize,
            seed: 0,
        }),
        descent: Descent::new(optimizer, Precision::F32),
    })
}

pub(super) fn batch(step: usize) -> Result<Batch> {
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
    Ok(Batch {
        images: Tensor::from_vec(images, image, &Device::Cpu)?,
        transformed: Some(Tensor::from_vec(patches, patch, &Device::Cpu)?),
        indices,
        targets: vec![0; BATCH],
        skipped: 0,
    })
}

fn follows_pytorch(ops: Ops) -> Result<()> {
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("../../../benches/peers/trajectory.json"))?;
    let golden = golden["losses"].as_array().unwrap();
    assert_eq!(golden.len(), 20);
    let mut learner = learner(ops)?;
    for (step, expected) in golden.iter().enumerate() {
        let losses = learner.step([batch(step)].into_iter(), BATCH, step as u64 + 1, LR)?;
        let (found, expected) = (f64::from(losses.total), expected.as_f64().unwrap());
        assert!(
            (found / expected - 1.0).abs() < 1e-3,
            "step {step}: {found}, PyTorch {expected}"
        );
    }
    Ok(())
}

#[test]
fn fast_ops_follow_pytorch() -> Result<()> {
    follows_pytorch(Ops::Fast)
}

#[test]
fn reference_ops_follow_pytorch() -> Result<()> {
    follows_pytorch(Ops::Reference)
}
