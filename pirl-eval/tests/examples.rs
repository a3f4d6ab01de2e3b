//! The examples run and show what they promise.

use std::path::Path;

use benches::run_example;
use candle_core::Device;
use pirl_model::{Arch, ModelConfig, ResNet, Stem, save_state_dict};

/// Pictures of two classes, stripes along and across.
fn pictures(folder: &Path, count: u32) {
    for (class, along) in [("along", true), ("across", false)] {
        let folder = folder.join(class);
        std::fs::create_dir_all(&folder).unwrap();
        for number in 0..count {
            let picture = image::RgbImage::from_fn(64, 64, |x, y| {
                let place = if along { x } else { y } + 3 * number;
                image::Rgb([(place / 8 % 2 * 200) as u8; 3])
            });
            picture.save(folder.join(format!("{number}.png"))).unwrap();
        }
    }
}

#[test]
fn own_probe_tells_stripes_apart() {
    let folder = tempfile::tempdir().unwrap();
    let (train, test) = (folder.path().join("train"), folder.path().join("test"));
    pictures(&train, 20);
    pictures(&test, 5);
    let backbone = folder.path().join("backbone.safetensors");
    let config = ModelConfig {
        arch: Arch::Resnet18,
        width: 0.25,
        stem: Stem::Imagenet,
        ..ModelConfig::default()
    };
    let network = ResNet::new(&config, 0, &Device::Cpu).unwrap();
    save_state_dict(&backbone, &[("", &network)]).unwrap();
    let said = run_example("own_probe", &[&backbone, &train, &test]);
    let accuracies: Vec<f32> = said
        .lines()
        .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
        .collect();
    assert_eq!(accuracies.len(), 3, "{said}");
    // Chance is 50 %; even an untrained network sees which way stripes run.
    assert!(accuracies.iter().all(|&top1| top1 >= 60.0), "{said}");
}
