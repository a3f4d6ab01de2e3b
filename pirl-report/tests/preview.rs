//! The preview shows what the loader makes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pirl_data::{
    DataConfig, ImageFolder, ImageView, Loader, LoaderConfig, OnCorrupt, Pack, PackOptions,
    Pretext, PretextConfig, Share, ViewConfig, build_pretext, pack,
};
use pirl_report::preview_sheet;
use tempfile::TempDir;

const IMAGES: usize = 23;

/// Images of all sorts of sizes, smooth and different in every channel.
fn packed(folder: &TempDir) -> PathBuf {
    let images = folder.path().join("pictures");
    for index in 0..IMAGES as u32 {
        let (width, height) = (index + 1, (index * 7) % 31 + 1);
        let picture = image::RgbImage::from_fn(width, height, |x, y| {
            let shade = |at: u32, of: u32| (255 * at / of) as u8;
            image::Rgb([
                shade(x, width),
                shade(y, height),
                shade(x + y, width + height),
            ])
        });
        let class = images.join(["a", "b", "c"][index as usize % 3]);
        std::fs::create_dir_all(&class).unwrap();
        picture.save(class.join(format!("{index:02}.png"))).unwrap();
    }
    let path = folder.path().join("images");
    let source = ImageFolder::open(&images).unwrap();
    pack(&source, &path, &PackOptions::default(), &mut |_, _| {}).unwrap();
    path
}

fn data() -> DataConfig {
    DataConfig {
        image_size: 20,
        patch_size: 5,
        ..DataConfig::default()
    }
}

fn view() -> ImageView {
    ImageView::new(&data(), &ViewConfig::default()).unwrap()
}

fn jigsaw() -> Arc<dyn Pretext> {
    let config = PretextConfig {
        permutations: 10,
        crop_size: 21,
        ..PretextConfig::default()
    };
    Arc::from(build_pretext(&config, &data(), &ViewConfig::patch(), 4).unwrap())
}

fn config(batch_size: usize, workers: usize, look_ahead: usize) -> LoaderConfig {
    LoaderConfig {
        batch_size,
        micro_batch: 0,
        workers,
        look_ahead,
        look_ahead_mib: 1024,
        seed: 11,
        on_corrupt: OnCorrupt::Fail,
        share: Share::default(),
        samples: None,
    }
}

fn loader(path: &Path, config: LoaderConfig) -> Loader {
    let pack = Arc::new(Pack::open(path).unwrap());
    Loader::new(pack, view(), Some(jigsaw()), config).unwrap()
}

#[test]
fn the_preview_shows_a_row_for_each_image_as_the_first_epoch_sees_it() {
    let folder = TempDir::new().unwrap();
    let path = packed(&folder);
    let pack = Pack::open(&path).unwrap();
    let sheet = |count, seed| preview_sheet(&pack, &view(), Some(&*jigsaw()), count, seed).unwrap();
    let (one, three, all) = (sheet(1, 1), sheet(3, 1), sheet(1000, 11));
    assert!(one.width > 5 * 200 && one.height > 200);
    assert!(three.height >= 3 * one.height && all.height >= IMAGES * one.height);
    assert_eq!(three, sheet(3, 1));
    assert_ne!(three, sheet(3, 2));
    assert!(preview_sheet(&pack, &view(), None, 0, 1).is_err());

    // The first row of each image of the first epoch, every pixel as often as it is enlarged.
    for batch in loader(&path, config(4, 1, 1)).epoch(0, 0).unwrap() {
        let images = batch.unwrap().images;
        for place in 0..4 {
            let image = images.get(place).unwrap().to_vec3::<u8>().unwrap();
            let pixel = |x: usize| [0, 1, 2].map(|channel| image[channel][0][x]);
            let row = (0..20).flat_map(|x| pixel(x).repeat(256 / 20));
            let row: Vec<u8> = row.collect();
            let mut rows = all.pixels.windows(row.len()).step_by(3);
            assert!(rows.any(|shown| shown == row));
        }
    }
}
