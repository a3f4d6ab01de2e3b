//! Batches of the same images, however they are packed; and what is measured on the way.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{Samples, jpeg, picture};
use pirl_data::{
    DataConfig, Encoding, ImageView, Loader, LoaderConfig, Pack, PackOptions, PretextConfig,
    ViewConfig, build_pretext, pack,
};
use tempfile::TempDir;

const IMAGES: usize = 40;

fn packed(folder: &Path, name: &str, shard_bytes: u64) -> Arc<Pack> {
    let sample = |index| {
        let image = picture(90 + index * 3, 120 - index);
        (jpeg(&image), Encoding::Jpeg, None)
    };
    let source = Samples {
        samples: (0..IMAGES).map(sample).collect(),
        class_names: Vec::new(),
        objects: None,
        first: 0,
    };
    let path = folder.join(name);
    let options = PackOptions {
        shard_bytes,
        ..PackOptions::default()
    };
    pack(&source, &path, &options, &mut |_, _| {}).unwrap();
    Arc::new(Pack::open(path).unwrap())
}

fn loader(pack: &Arc<Pack>, workers: usize, look_ahead_mib: usize) -> Loader {
    let data = DataConfig {
        image_size: 96,
        patch_size: 24,
        ..DataConfig::default()
    };
    let jigsaw = PretextConfig {
        crop_size: 96,
        ..PretextConfig::default()
    };
    let jigsaw = build_pretext(&jigsaw, &data, &ViewConfig::patch(), 0).unwrap();
    let config = LoaderConfig {
        batch_size: 8,
        workers,
        look_ahead_mib,
        seed: 3,
        ..LoaderConfig::default()
    };
    let view = ImageView::new(&data, &ViewConfig::default()).unwrap();
    Loader::new(Arc::clone(pack), view, Some(Arc::from(jigsaw)), config).unwrap()
}

/// An epoch's batches from step `start` on, to the bit.
fn epoch(loader: &Loader, start: usize) -> Vec<(Vec<u32>, Vec<u8>)> {
    let bits = |batch: Result<pirl_data::Batch, _>| {
        let batch = batch.unwrap();
        let mut bits = Vec::new();
        for tensor in [&batch.images, batch.transformed.as_ref().unwrap()] {
            bits.extend(tensor.flatten_all().unwrap().to_vec1::<u8>().unwrap());
        }
        (batch.indices, bits)
    };
    loader.epoch(2, start).unwrap().map(bits).collect()
}

#[test]
fn shards_threads_and_memory_change_no_batch() {
    let folder = TempDir::new().unwrap();
    let one = packed(folder.path(), "one", 1 << 30);
    let many = packed(folder.path(), "many", 20_000);
    assert_eq!(one.paths().len(), 1);
    assert!(many.paths().len() > 4, "{}", many.paths().len());
    let expected = epoch(&loader(&one, 1, 1024), 0);
    assert_eq!(expected.len(), IMAGES / 8);
    for (pack, workers, mebibytes) in [
        (&one, 2, 1024),
        (&one, 8, 1),
        (&many, 1, 1),
        (&many, 2, 2),
        (&many, 8, 1024),
    ] {
        let loader = loader(pack, workers, mebibytes);
        let name = format!("{} shards, {workers} threads", pack.paths().len());
        assert!(epoch(&loader, 0) == expected, "{name}");
        assert!(epoch(&loader, 3) == expected[3..], "{name}, from step 3");
    }
}

#[test]
fn measuring_changes_no_batch_and_finds_every_stage() {
    let folder = TempDir::new().unwrap();
    let pack = packed(folder.path(), "one", 1 << 30);
    let loader = loader(&pack, 2, 1024);
    let expected = epoch(&loader, 0);
    assert!(
        loader
            .stages()
            .each()
            .iter()
            .all(|(_, time)| time.is_zero())
    );
    loader.measure();
    assert!(epoch(&loader, 0) == expected);
    for (stage, time) in loader.stages().each() {
        assert!(time > Duration::ZERO, "{stage}");
    }
}
