//! What the examples share: batches of small views of the images in a folder.
#![allow(dead_code)] // each example uses its share

use std::{error::Error, path::Path, sync::Arc};

use candle_core::Device;
use pirl_data::*;
use pirl_model::{Arch, ModelConfig, ModelError, ResNet, Stem};
use pirl_train::{Learner, Objective, Pretraining, PretrainingConfig, Training};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

pub(crate) fn data() -> DataConfig {
    DataConfig { image_size: 32, patch_size: 12, ..DataConfig::default() }
}

/// PIRL's jigsaw of nine patches.
pub(crate) fn jigsaw() -> Result<Arc<dyn Pretext>> {
    let config = PretextConfig { crop_size: 48, ..PretextConfig::default() };
    Ok(Arc::from(build_pretext(&config, &data(), &ViewConfig::patch(), 0)?))
}

/// The images of the folder that the command line names, packed.
pub(crate) fn images() -> Result<Arc<Pack>> {
    let folder = std::env::args().nth(1).ok_or("usage: cargo run --example NAME -- FOLDER")?;
    let work = tempfile::tempdir()?;
    let packed = work.path().join("images");
    pack(
        &ImageFolder::open(Path::new(&folder))?,
        &packed,
        &PackOptions::default(),
        &mut |_, _| {},
    )?;
    Ok(Arc::new(Pack::open(&packed)?)) // mapped: it outlives the folder
}

pub(crate) fn loader(images: Arc<Pack>, pretext: Option<Arc<dyn Pretext>>) -> Result<Loader> {
    let view = ImageView::new(&data(), &ViewConfig::default())?;
    let config = LoaderConfig { batch_size: images.len().min(16), ..LoaderConfig::default() };
    Ok(Loader::new(images, view, pretext, config)?)
}

pub(crate) fn resnet(device: &Device) -> std::result::Result<ResNet, ModelError> {
    let config = ModelConfig {
        arch: Arch::Resnet18,
        width: 0.5,
        stem: Stem::Imagenet,
        ..ModelConfig::default()
    };
    ResNet::new(&config, 0, device)
}

/// Three epochs, each step's loss printed.
pub(crate) fn train<O: Objective>(learner: Learner<O>, loader: Loader) -> Result<()> {
    let config = PretrainingConfig { epochs: 3, lr: 0.02, ..PretrainingConfig::default() };
    let mut training = Pretraining::new(learner, loader, &config)?;
    while training.done() < training.steps() {
        println!("step {} loss {:.4}", training.done() + 1, training.step()?.loss);
    }
    Ok(())
}
