//! Scenes of discs and squares, packed as a detection data set.
//!
//! `cargo run --release -p pirl-scenes --example compose` makes the items itself; with the path of a pack of
//! labelled single items on a dark background, such as Fashion-MNIST, it takes those.

use std::error::Error;
use std::path::{Path, PathBuf};

use pirl_data::{Annotated, ImageFolder, Pack, PackOptions, pack};
use pirl_scenes::{SceneConfig, compose_scenes};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let items = match std::env::args_os().nth(1) {
        Some(path) => PathBuf::from(path),
        None => discs_and_squares(folder.path())?,
    };
    let scenes = folder.path().join("scenes");
    let config = SceneConfig {
        scenes: 100,
        items: [3, 8],
        ..SceneConfig::default()
    };
    let report = compose_scenes(
        &Pack::open(&items)?,
        &scenes,
        "train",
        &config,
        &mut |_, _| {},
    )?;
    println!("{report:?}");

    // The layout is VOC's, and so is the way back.
    let set = folder.path().join("set");
    pack(
        &Annotated::voc(&[scenes], "train")?,
        &set,
        &PackOptions::default(),
        &mut |_, _| {},
    )?;
    let set = Pack::open(&set)?;
    let first = set.objects(0).unwrap_or_default();
    for (bounds, label, _) in first.iter() {
        println!("{} at {bounds:?}", set.class_names()[label as usize]);
    }
    Ok(())
}

/// A pack of one item of each class.
fn discs_and_squares(folder: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let images = folder.join("images");
    for class in ["disc", "square"] {
        let item = image::GrayImage::from_fn(28, 28, |x, y| {
            let (x, y) = (f64::from(x) - 13.5, f64::from(y) - 13.5);
            let inside = match class {
                "disc" => x.hypot(y) < 10.0,
                _ => x.abs().max(y.abs()) < 8.0,
            };
            image::Luma([if inside { 230 } else { 0 }])
        });
        std::fs::create_dir_all(images.join(class))?;
        item.save(images.join(class).join("item.png"))?;
    }
    let items = folder.join("items");
    pack(
        &ImageFolder::open(&images)?,
        &items,
        &PackOptions::default(),
        &mut |_, _| {},
    )?;
    Ok(items)
}
