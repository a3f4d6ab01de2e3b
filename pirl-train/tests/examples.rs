//! The examples run, from a folder of images to what they promise.

use std::path::{Path, PathBuf};

use benches::run_example;

/// A folder of 24 pictures.
fn pictures(folder: &Path) -> PathBuf {
    let pictures = folder.join("pictures");
    std::fs::create_dir(&pictures).unwrap();
    for number in 0..24 {
        let picture = image::RgbImage::from_fn(40, 36, |x, y| {
            let stripe = (x * (1 + number % 3) + y * (number % 5)) / 6 % 2;
            image::Rgb([
                (200 * stripe) as u8,
                (10 * number) as u8,
                (255 - 6 * y) as u8,
            ])
        });
        picture
            .save(pictures.join(format!("{number}.png")))
            .unwrap();
    }
    pictures
}

#[test]
fn pretrain_saves_a_backbone_that_loads() {
    let folder = tempfile::tempdir().unwrap();
    let (pictures, output) = (pictures(folder.path()), folder.path().join("b.safetensors"));
    let said = run_example("pretrain", &[&pictures, &output]);
    assert_eq!(
        said.lines().count(),
        2,
        "a batch of all images in each of two epochs: {said}"
    );
    let found = pirl_model::read_backbone(&output).unwrap();
    assert_eq!(found.config.arch, pirl_model::Arch::Resnet18);
}

#[test]
fn own_parts_train() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = pictures(folder.path());
    for name in ["own_backbone", "own_pretext", "own_loss"] {
        let said = run_example(name, &[&pictures]);
        let losses: Vec<f64> = said
            .lines()
            .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(losses.len(), 3, "{name}: {said}");
        assert!(losses.iter().all(|loss| loss.is_finite()), "{name}: {said}");
    }
}
