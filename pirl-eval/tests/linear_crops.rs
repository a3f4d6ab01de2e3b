//! Linear probes on random crops: the published protocol.

mod common;

use std::fs;
use std::path::Path;

use common::{
    RANKS_WAIT, SIDE, checkpoints, difference, network, packed_with, save, train as train_until,
    view,
};
use pirl_data::{DataConfig, ImageView, Pack, ViewConfig};
use pirl_eval::{
    Crops, EvalError, Extraction, LinearConfig, LinearReport, Pool, Pools, RandomCropProbe, Select,
};
use pirl_model::{Layer, ResNet};
use pirl_train::{Ranks, Threads, Training, alone, resume};
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
    pooled_probe(backbone, pack, config, workers, Pools::default(), &alone())
}

fn pooled_probe<'a>(
    backbone: &'a ResNet,
    pack: &Pack,
    config: &LinearConfig,
    workers: usize,
    pool: Pools,
    ranks: &Ranks,
) -> Result<RandomCropProbe<'a>, EvalError> {
    let data = DataConfig {
        image_size: SIDE as usize,
        mean: view().mean,
        std: view().std,
        ..DataConfig::default()
    };
    let crops = ImageView::new(&data, &ViewConfig::default().without_colors())?;
    let extraction = Extraction {
        layers: vec![Layer::CONV1, Layer::RES5, Layer::RES5_AVG],
        pool,
        workers,
        batch_size: 8,
        ..Extraction::new(view())
    };
    RandomCropProbe::new(config, backbone, pack.clone(), crops, extraction, 5, ranks)
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
    let losses = train_until(&mut probe, 15);
    assert!((losses[0] - 2f32.ln()).abs() < 1e-6, "it begins at zero");
    assert!(losses[14] < 0.2, "{losses:?}");
    let report = report(&probe, &test);
    assert_eq!(report.layers.len(), 3);
    assert!(report.best.top1 > 95.0, "{report:?}");
    assert_eq!(report.layers[&Layer::RES5_AVG].dim, 128);
    // Maps of 2 x 2 pixels averaged are the average itself.
    assert_eq!(report.layers[&Layer::RES5], report.layers[&Layer::RES5_AVG]);
}

#[test]
fn interruptions_and_workers_change_nothing() {
    let folder = tempdir().unwrap();
    let train = shades(folder.path(), "train", 26, 1);
    let backbone = network(3);
    let file = |name: &str| folder.path().join(name);
    let mut whole = probe(&backbone, &train, &config(), 1).unwrap();
    train_until(&mut whole, 9);
    let save = |probe: &RandomCropProbe<'_>, name: &str| {
        save(probe, &checkpoints(&file(name)), probe.done())
    };
    let of_whole = save(&whole, "whole");

    let mut half = probe(&backbone, &train, &config(), 3).unwrap();
    train_until(&mut half, 4);
    let of_half = save(&half, "half");
    let mut resumed = probe(&backbone, &train, &config(), 2).unwrap();
    let from = resume(&mut resumed, &checkpoints(&file("half"))).unwrap();
    assert_eq!((from.as_ref(), resumed.done()), (Some(&of_half), 4));
    train_until(&mut resumed, 9);
    let of_resumed = save(&resumed, "resumed");
    let bytes = |path: &Path| fs::read(path.join("linear.safetensors")).unwrap();
    assert!(bytes(&of_resumed) == bytes(&of_whole));
    assert!(bytes(&of_half) != bytes(&of_whole));
    assert_eq!(report(&resumed, &train), report(&whole, &train));
}

#[test]
fn ranks_have_the_losses_and_the_result_of_one_process() {
    let folder = tempdir().unwrap();
    let train = shades(folder.path(), "train", 40, 1);
    let test = shades(folder.path(), "test", 29, 500);
    let config = LinearConfig {
        lrs: vec![0.02, 0.05],
        select: Select::Test,
        ..config()
    };
    let saved = folder.path().join("saved");
    // Stopped after 6 steps, of which rank 0 alone has the checkpoint.
    let run = |ranks: &Ranks| {
        let backbone = network(3 + ranks.rank() as u64);
        let make = || pooled_probe(&backbone, &train, &config, 1, Pools::default(), ranks).unwrap();
        let mut probe = make();
        probe.begin().unwrap();
        let mut losses = train_until(&mut probe, 6);
        let kept = checkpoints(&saved.join(ranks.size().to_string()));
        if ranks.rank() == 0 {
            save(&probe, &kept, 6);
        }
        let mut probe = make();
        if ranks.rank() == 0 {
            resume(&mut probe, &kept).unwrap().unwrap();
        }
        probe.begin().unwrap();
        assert_eq!(probe.done(), 6);
        losses.extend(train_until(&mut probe, 15));
        let mut last = 0;
        let report = probe.evaluate(&test, &mut |done, _| last = done).unwrap();
        assert_eq!(last, 29);
        assert!(ranks.size() == 1 || probe.any(ranks.rank() == 1).unwrap());
        (losses, report)
    };
    let (losses, report) = run(&alone());
    for size in [2, 3] {
        let found = Threads::run(size, RANKS_WAIT, |ranks| run(&ranks));
        assert!(found.iter().all(|rank| *rank == found[0]));
        let (own, own_report) = &found[0];
        assert!(difference(&own[..1], &losses[..1]) < 1e-6, "{own:?}");
        assert!(difference(own, &losses) < 1e-3, "{own:?}, alone {losses:?}");
        assert_eq!(own_report.best, report.best);
    }
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
    assert!(error.to_string().contains("select = validation"), "{error}");
    let chosen_by_test = LinearConfig {
        select: Select::Test,
        ..several
    };
    let mut both = probe(&backbone, &pack, &chosen_by_test, 1).unwrap();
    train_until(&mut both, 9);
    let mut single = probe(&backbone, &pack, &config(), 1).unwrap();
    train_until(&mut single, 9);
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
        assert!(error.starts_with(&format!("{key} = ")), "{error}");
    }
    let both = Pools::new(Pool::ALL.to_vec()).unwrap();
    let error = pooled_probe(&backbone, &pack, &config(), 1, both, &alone()).err();
    let error = error.unwrap().to_string();
    assert!(
        error.contains(r#"pool = ["average", "grid"]"#) && error.contains("eval.pool=grid"),
        "{error}"
    );

    let mut kept = probe(&backbone, &pack, &config(), 1).unwrap();
    let saved = checkpoints(&folder.path().join("saved"));
    save(&kept, &saved, 7);
    let error = resume(&mut kept, &saved).unwrap_err().to_string();
    assert!(
        error.contains("7 steps") && error.contains("the 6"),
        "{error}"
    );
    let plain = LinearConfig {
        affine: false,
        ..config()
    };
    let mut other = probe(&backbone, &pack, &plain, 1).unwrap();
    let fits = checkpoints(&folder.path().join("fits"));
    save(&kept, &fits, 2);
    assert!(resume(&mut other, &fits).unwrap().is_some()); // has all that it needs
    let lacks = checkpoints(&folder.path().join("lacks"));
    let path = save(&other, &lacks, 2);
    let error = resume(&mut kept, &lacks).unwrap_err().to_string();
    assert!(error.contains("no tensor conv1.norm.weight"), "{error}");
    assert_eq!(kept.done(), 0);
    fs::write(path.join("linear.safetensors"), b"nothing").unwrap();
    assert!(resume(&mut kept, &lacks).is_err());
}
