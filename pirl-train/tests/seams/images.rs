//! A few images, and what makes batches of them.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use pirl_data::{
    DataConfig, DataError, Encoding, ImageView, Loader, LoaderConfig, Pack, PackOptions, Pretext,
    PretextConfig, RawSample, Source, ViewConfig, build_pretext, pack,
};
use pirl_model::{Arch, ModelConfig, ModelError, ResNet, Stem};

pub(crate) const IMAGES: usize = 32;
const SIDE: usize = 20;

/// Bars whose width, direction and shade depend on the image.
struct Bars;

impl Source for Bars {
    fn len(&self) -> usize {
        IMAGES
    }

    fn class_names(&self) -> &[String] {
        &[]
    }

    fn read(&self, index: usize) -> Result<RawSample<'_>, DataError> {
        let pixel = |at: usize| {
            let (y, x) = (at / SIDE, at % SIDE);
            let along = if index.is_multiple_of(2) { x } else { y };
            let bright = (along / (1 + index / 2 % 4)).is_multiple_of(2);
            if bright { 250 - 7 * index as u8 } else { 20 }
        };
        Ok(RawSample {
            name: index.to_string(),
            bytes: Cow::Owned((0..SIDE * SIDE).map(pixel).collect()),
            encoding: Encoding::Raw {
                height: SIDE as u32,
                width: SIDE as u32,
                channels: 1,
            },
            label: None,
            objects: None,
        })
    }

    fn describe(&self) -> String {
        "bars".to_owned()
    }
}

fn data() -> DataConfig {
    DataConfig {
        image_size: 16,
        patch_size: 6,
        ..DataConfig::default()
    }
}

fn view() -> ViewConfig {
    ViewConfig {
        scale: [0.6, 1.0],
        ..ViewConfig::default()
    }
    .without_colors()
}

pub(crate) fn jigsaw() -> Arc<dyn Pretext> {
    let config = PretextConfig {
        crop_size: 24,
        ..PretextConfig::default()
    };
    Arc::from(build_pretext(&config, &data(), &view(), 0).unwrap())
}

/// Batches of 8, in parts of at most `micro_batch` images.
pub(crate) fn loader(
    folder: &Path,
    pretext: Option<Arc<dyn Pretext>>,
    micro_batch: usize,
) -> Loader {
    let path = folder.join("bars");
    pack(&Bars, &path, &PackOptions::default(), &mut |_, _| {}).unwrap();
    Loader::new(
        Arc::new(Pack::open(&path).unwrap()),
        ImageView::new(&data(), &view()).unwrap(),
        pretext,
        LoaderConfig {
            batch_size: 8,
            micro_batch,
            workers: 1,
            ..LoaderConfig::default()
        },
    )
    .unwrap()
}

pub(crate) fn resnet(device: &Device) -> Result<ResNet, ModelError> {
    let config = ModelConfig {
        arch: Arch::Resnet18,
        width: 0.25,
        stem: Stem::Small,
        ..ModelConfig::default()
    };
    ResNet::new(&config, 0, device)
}
