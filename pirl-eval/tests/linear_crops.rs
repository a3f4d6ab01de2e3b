//! Linear probes on random crops: the published protocol.

mod common;

use std::fs;

use common::{SIDE, network, packed_with, view};
use pirl_data::{DataConfig, ImageView, Pack, ViewConfig};
use pirl_eval::{
    Crops, EvalError, Extraction, LinearConfig, LinearReport, RandomCropProbe, Select, Training,
};
use pirl_model::{Layer, ResNet};
use tempfile::tempdir;

fn config() -> LinearConfig {
    LinearConfig {
        crops: Crops::Random,
        epochs: 3,
        batch_size: 8,
        lrs: vec![0.05],
        milestones: vec![2],
        affine: true,
        ..LinearConfig::default()
    }
}

/// Dark and light images, with noise.
fn shades(folder: &std::path::Path, name: &str, count: u32, seed: u32) -> Pack {
    packed_with(folder, name, &["dark", "light"], count, |i| {
        let noise = benches::fill(seed + i, (SIDE * SIDE * 3) as usize);
        let shade = if i % 2 == 0 { 70.0 } else { 180.0 };
        noise.iter().map(|x| (x * 60.0 + shade) as u8).collect()
    })
}

fn probe<'a>(
    backbone: &'a ResNet,
    pack: &Pack,
    config: &LinearConfig,
    workers: usize,
) -> Result<RandomCropProbe<'a>, EvalError> {
    let data = DataConfig {
        image_size: SIDE as usize,
        mean: view().mean,
        std: view().std,
        ..DataConfig::default()
    };
    let crops = ImageView::new(&data, &ViewConfig::default().without_colors())?;
    let extraction = Extraction {
        layers: vec![Layer::Conv1, Layer::Res5, Layer::Res5Avg],
        workers,
        ..Extraction::new(view())
    };
    RandomCropProbe::new(config, backbone, pack.clone(), crops, extraction, 5)
}

fn report(probe: &RandomCropProbe<'_>, test: &Pack) -> LinearReport {
    probe.evaluate(test, &mut |_, _| {}).unwrap()
}

#[test]
fn classes_that_can_be_told_apart_are() {
    let folder = tempdir().unwrap();
    let train = shades(folder.path(), "train", 40, 1);
    let test = shades(folder.path(), "test", 20, 500);
    let backbone = network(3);
    let mut probe = probe(&backbone, &train, &config(), 1).unwrap();
    assert_eq!((probe.steps(), probe.steps_per_epoch()), (15, 5));
    let mut losses = Vec::new();
    let mut pause = |_, loss| {
        losses.push(loss);
        false
    };
    probe.train(&mut pause).unwrap();
    assert!((losses[0] - 2f64.ln()).abs() < 1e-6, "it begins at zero");
    assert!(losses[14] < 0.2, "{losses:?}");
    let report = report(&probe, &test);
    assert_eq!(report.layers.len(), 3);
    assert!(report.best.top1 > 95.0, "{report:?}");
    assert_eq!(report.layers[&Layer::Res5Avg].dim, 128);
    // Maps of 2 x 2 pixels averaged are the average itself.
    assert_eq!(report.layers[&Layer::Res5], report.layers[&Layer::Res5Avg]);
}

#[test]
fn interruptions_and_workers_change_nothing() {
    let folder = tempdir().unwrap();
    let train = shades(folder.path(), "train", 26, 1);
    let backbone = network(3);
    let file = |name: &str| folder.path().join(name);
    for name in ["whole", "half", "resumed"] {
        fs::create_dir(file(name)).unwrap();
    }
    let mut whole = probe(&backbone, &train, &config(), 1).unwrap();
    whole.train(&mut |_, _| false).unwrap();
    whole.save(&file("whole")).unwrap();

    let mut half = probe(&backbone, &train, &config(), 3).unwrap();
    half.train(&mut |done, _| done == 4).unwrap();
    assert_eq!(half.done(), 4);
    half.save(&file("half")).unwrap();
    let mut resumed = probe(&backbone, &train, &config(), 2).unwrap();
    resumed.restore(&file("half"), 4).unwrap();
    resumed.train(&mut |_, _| false).unwrap();
    resumed.save(&file("resumed")).unwrap();
    let bytes = |name: &str| fs::read(file(name).join("linear.safetensors")).unwrap();
    assert!(bytes("resumed") == bytes("whole"));
    assert!(bytes("half") != bytes("whole"));
    assert_eq!(report(&resumed, &train), report(&whole, &train));
}

#[test]
fn the_best_of_several_rates_is_chosen_on_the_test_set_alone() {
    let folder = tempdir().unwrap();
    let pack = shades(folder.path(), "train", 24, 1);
    let backbone = network(3);
    let several = LinearConfig {
        lrs: vec![1e-9, 0.05],
        ..config()
    };
    let error = probe(&backbone, &pack, &several, 1).err().unwrap();
    assert!(error.to_string().contains("eval.linear.select"), "{error}");
    let chosen_by_test = LinearConfig {
        select: Select::Test,
        ..several
    };
    let mut both = probe(&backbone, &pack, &chosen_by_test, 1).unwrap();
    both.train(&mut |_, _| false).unwrap();
    let mut single = probe(&backbone, &pack, &config(), 1).unwrap();
    single.train(&mut |_, _| false).unwrap();
    let (both, single) = (report(&both, &pack), report(&single, &pack));
    for (layer, found) in &both.layers {
        assert_eq!(found.rates.len(), 2);
        assert!(found.top1 >= single.layers[layer].top1, "{layer}");
    }
}

#[test]
fn what_cannot_be_trained_or_resumed_is_refused() {
    let folder = tempdir().unwrap();
    let pack = shades(folder.path(), "train", 16, 1);
    let backbone = network(3);
    let refused = |config: LinearConfig| probe(&backbone, &pack, &config, 1).err().unwrap();
    for (key, config) in [
        (
            "crops",
            LinearConfig {
                crops: Crops::Centre,
                ..config()
            },
        ),
        (
            "batch_size",
            LinearConfig {
                batch_size: 17,
                ..config()
            },
        ),
        (
            "batch_size",
            LinearConfig {
                batch_size: 1,
                ..config()
            },
        ),
        (
            "epochs",
            LinearConfig {
                epochs: 0,
                ..config()
            },
        ),
    ] {
        let error = refused(config).to_string();
        assert!(error.contains(&format!("eval.linear.{key}")), "{error}");
    }

    let mut kept = probe(&backbone, &pack, &config(), 1).unwrap();
    kept.save(folder.path()).unwrap();
    let error = kept.restore(folder.path(), 7).unwrap_err().to_string();
    assert!(error.contains("7 steps, of 6"), "{error}");
    let plain = LinearConfig {
        affine: false,
        ..config()
    };
    let mut other = probe(&backbone, &pack, &plain, 1).unwrap();
    other.restore(folder.path(), 2).unwrap(); // has all that it needs
    other.save(folder.path()).unwrap();
    let error = kept.restore(folder.path(), 2).unwrap_err().to_string();
    assert!(error.contains("no tensor conv1.norm.weight"), "{error}");
    assert_eq!(kept.done(), 0);
    let damaged = folder.path().join("linear.safetensors");
    fs::write(&damaged, b"nothing").unwrap();
    assert!(kept.restore(folder.path(), 2).is_err());
}
