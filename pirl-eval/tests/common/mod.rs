//! Packs of tiny images and a tiny network.
#![allow(dead_code)] // each test file uses its share

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use candle_core::Device;
use pirl_data::{EvalView, ImageFolder, Pack, PackOptions, pack};
use pirl_eval::EvalError;
use pirl_model::{Arch, ModelConfig, ResNet, Stem};
use pirl_train::{Checkpoints, Identity, State, Training};

/// Steps until `until` are done; their losses.
pub(crate) fn train<T: Training<Error = EvalError>>(training: &mut T, until: u64) -> Vec<f32> {
    let mut losses = Vec::new();
    while training.done() < until {
        losses.push(training.step().unwrap().loss);
    }
    losses
}

/// The greatest difference, relative to the first of `expected`.
pub(crate) fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let pairs = found.iter().zip(expected);
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / expected[0].abs()
}

/// Checkpoints in `folder`.
pub(crate) fn checkpoints(folder: &Path) -> Checkpoints {
    let identity = Identity {
        images: 1,
        fingerprint: "of a test".to_owned(),
        seed: 0,
    };
    Checkpoints::new(folder, 9, identity)
}

/// Saves a training as if it had done `step` steps.
pub(crate) fn save<T: Training<Error = EvalError>>(
    training: &T,
    checkpoints: &Checkpoints,
    step: u64,
) -> PathBuf {
    let save = |folder: &Path, state: &mut State| training.save(folder, state);
    checkpoints.write(step, 0, save).unwrap()
}

/// Side of the images.
pub(crate) const SIDE: u32 = 16;

/// Packs `count` images in turn of `classes` (or flat and unlabelled), their pixels by `pixels`,
/// which is told the image's number.
pub(crate) fn packed_with(
    folder: &Path,
    name: &str,
    classes: &[&str],
    count: u32,
    pixels: impl Fn(u32) -> Vec<u8>,
) -> Pack {
    let images = folder.join(format!("{name}-images"));
    for i in 0..count {
        let class = classes
            .get(i as usize % classes.len().max(1))
            .unwrap_or(&"");
        let to = images.join(class);
        fs::create_dir_all(&to).unwrap();
        let image = image::RgbImage::from_raw(SIDE, SIDE, pixels(i)).unwrap();
        image.save(to.join(format!("{i:03}.png"))).unwrap();
    }
    let output = folder.join(name);
    let source = ImageFolder::open(&images).unwrap();
    pack(&source, &output, &PackOptions::default(), &mut |_, _| {}).unwrap();
    Pack::open(&output).unwrap()
}

/// A pack of `count` images of the formula.
pub(crate) fn packed(folder: &Path, name: &str, classes: &[&str], count: u32, seed: u32) -> Pack {
    packed_with(folder, name, classes, count, |i| {
        let pixels = benches::fill(seed + i, (SIDE * SIDE * 3) as usize);
        pixels.iter().map(|x| (x * 127.0 + 128.0) as u8).collect()
    })
}

pub(crate) fn config() -> ModelConfig {
    ModelConfig {
        arch: Arch::Resnet18,
        width: 0.25,
        stem: Stem::Small,
        ..Default::default()
    }
}

pub(crate) fn network(seed: u64) -> ResNet {
    ResNet::new(&config(), seed, &Device::Cpu).unwrap()
}

pub(crate) fn view() -> EvalView {
    EvalView {
        resize: SIDE as usize,
        crop: SIDE as usize,
        stretch: false,
        mean: vec![0.5; 3],
        std: vec![0.25; 3],
    }
}

/// Ranks of a test wait so long for each other.
pub(crate) const RANKS_WAIT: Duration = Duration::from_secs(60);
