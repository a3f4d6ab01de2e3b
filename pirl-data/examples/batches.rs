//! A folder of images as training batches, and how fast they are made.
//!
//!     cargo run --release -p pirl-data --example batches -- FOLDER
use std::{error::Error, path::Path, sync::Arc, time::Duration};

use candle_core::Device;
use pirl_data::*;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: batches FOLDER")?;
    let work = tempfile::tempdir()?;
    let packed = work.path().join("images");
    let source = ImageFolder::open(Path::new(&folder))?;
    let report = pack(&source, &packed, &PackOptions::default(), &mut |_, _| {})?;
    let images = Arc::new(Pack::open(&packed)?);
    println!("{} images packed, {} broken ones skipped", images.len(), report.skipped.len());

    // I, a random crop with random colours, and I^t, nine patches of another crop, shuffled.
    let data = DataConfig { image_size: 96, patch_size: 24, ..DataConfig::default() };
    let jigsaw = PretextConfig { crop_size: 99, ..PretextConfig::default() };
    let loader = Loader::new(
        Arc::clone(&images),
        ImageView::new(&data, &ViewConfig::default())?,
        Some(Arc::from(build_pretext(&jigsaw, &data, &ViewConfig::patch(), 0)?)),
        LoaderConfig { batch_size: images.len().min(8), seed: 1, ..LoaderConfig::default() },
    )?;
    for batch in loader.epoch(0, 0)?.take(1) {
        let batch = batch?; // of bytes; a training normalises them on its device
        let pixels = batch.normalize.apply(&batch.images, &Device::Cpu)?;
        let patches = batch.transformed.ok_or("the jigsaw makes patches")?;
        println!("images {:?} {:?}: {:?}", batch.indices, pixels.dims(), pixels.dtype());
        println!("patches {:?}: {:?}", patches.dims(), patches.dtype());
    }
    let found = Throughput::measure(&loader, &images, Duration::from_secs(1))?;
    println!("{:.0} images a second, limited by {}", found.images_per_second(), found.bottleneck());
    Ok(())
}
