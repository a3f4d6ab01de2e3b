//! PIRL from a folder of images to a saved backbone, in the order of the paper (arXiv:1912.01991).
//!
//!     cargo run --release -p pirl-train --example pretrain -- FOLDER backbone.safetensors
use std::{error::Error, path::Path, sync::Arc};

use pirl_data::*;
use pirl_model::{Arch, ModelConfig, OptimConfig, ResNet, Stem, save_state_dict};
use pirl_train::{Learner, Pirl, Pretraining, PretrainingConfig, Training};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, output] = &arguments[..] else {
        return Err("usage: pretrain FOLDER OUTPUT".into());
    };

    // Data: a random view I of each image, and I^t, its nine patches in a random order.
    let work = tempfile::tempdir()?;
    let packed = work.path().join("images");
    pack(&ImageFolder::open(folder)?, &packed, &PackOptions::default(), &mut |_, _| {})?;
    let images = Arc::new(Pack::open(&packed)?);
    let data = DataConfig { image_size: 64, patch_size: 16, ..DataConfig::default() };
    let view = ImageView::new(&data, &ViewConfig::default())?;
    let jigsaw = PretextConfig { crop_size: 72, ..PretextConfig::default() };
    let jigsaw = build_pretext(&jigsaw, &data, &ViewConfig::patch(), 0)?;

    // The loss: f(I) and g(I^t) against the image's row of a memory bank and rows of other images.
    let (count, batch_size) = (images.len(), images.len().min(32));
    let objective = Pirl::builder(count, jigsaw.views()).negatives(count.min(4096) - 1).build()?;

    // The network, its optimiser, and the batches it learns from.
    let network =
        ModelConfig { arch: Arch::Resnet18, stem: Stem::Imagenet, ..ModelConfig::default() };
    let learner = Learner::builder(move |device| ResNet::new(&network, 0, device), objective)
        .optimizer(&OptimConfig::default())
        .build()?;
    let config = LoaderConfig { batch_size, ..LoaderConfig::default() };
    let loader = Loader::new(images, view, Some(Arc::from(jigsaw)), config)?;

    let config = PretrainingConfig { epochs: 2, lr: 0.03, ..PretrainingConfig::default() };
    let mut training = Pretraining::new(learner, loader, &config)?;
    while training.done() < training.steps() {
        println!("step {} loss {:.4}", training.done() + 1, training.step()?.loss);
    }
    Ok(save_state_dict(Path::new(output), &[("", training.learner().backbone())])?)
}
