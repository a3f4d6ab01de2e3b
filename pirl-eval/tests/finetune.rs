//! Few labels, and fine-tuning on them.

mod common;

use common::{
    RANKS_WAIT, SIDE, checkpoints, difference, network, packed, packed_with, save,
    train as train_until, view,
};
use pirl_data::{DataConfig, ImageView, Pack, ViewConfig};
use pirl_eval::{EvalError, Finetune, FinetuneConfig, LabelSubset};
use pirl_model::{Ops, ResNet};
use pirl_train::{Ranks, Threads, Training, alone, resume};
use tempfile::tempdir;

const CLASSES: [&str; 3] = ["a", "b", "c"];

#[test]
fn a_subset_is_balanced_seeded_and_comes_back_from_its_list() {
    let folder = tempdir().unwrap();
    let pack = packed(folder.path(), "set", &CLASSES, 90, 1);
    let subset = LabelSubset::balanced(&pack, 0.1, 7).unwrap();
    assert_eq!((subset.indices().len(), subset.fraction()), (9, 0.1));
    assert!(subset.indices().is_sorted_by(|a, b| a < b));
    let chosen = subset.of(&pack).unwrap();
    let labels = chosen.labels().unwrap();
    for class in 0..3 {
        assert_eq!(labels.iter().filter(|label| **label == class).count(), 3);
    }
    for (place, index) in subset.indices().iter().enumerate() {
        assert_eq!(chosen.bytes(place), pack.bytes(*index as usize));
    }
    assert_eq!(subset, LabelSubset::balanced(&pack, 0.1, 7).unwrap());
    assert_ne!(subset, LabelSubset::balanced(&pack, 0.1, 8).unwrap());
    assert_eq!(
        LabelSubset::parse(&subset.to_text(), &pack).unwrap(),
        subset
    );

    let few = LabelSubset::balanced(&pack, 1e-9, 7).unwrap();
    assert_eq!(few.indices().len(), 3);
    let all = LabelSubset::balanced(&pack, 1.0, 7).unwrap();
    assert_eq!(all.of(&pack).unwrap().fingerprint(), pack.fingerprint());
}

#[test]
fn lists_and_fractions_that_cannot_be_used_are_refused() {
    let folder = tempdir().unwrap();
    let pack = packed(folder.path(), "set", &CLASSES, 9, 1);
    for fraction in [0.0, -0.5, 1.5, f64::NAN] {
        let error = LabelSubset::balanced(&pack, fraction, 0).unwrap_err();
        assert!(error.to_string().contains("label_fraction"), "{error}");
    }
    let other = packed(folder.path(), "other", &CLASSES, 9, 50);
    let foreign = LabelSubset::balanced(&other, 0.4, 0).unwrap().to_text();
    for (text, wanted) in [
        ("1\nx\n", "line 2: \"x\""),
        (
            "# note\n9\n",
            "line 2: \"9\" is not the number of an image, 0 to 8",
        ),
        ("-1\n", "line 1"),
        ("3\n4\n3\n", "line 3: image 3 comes twice"),
        ("# nothing\n\n", "no image"),
        (foreign.as_str(), "line 1: the list is of the pack"),
    ] {
        let error = LabelSubset::parse(text, &pack).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    let parsed = LabelSubset::parse("# mine\n4 # a comment\n\n2\n", &pack).unwrap();
    assert_eq!(parsed.indices(), [2, 4]);
    let flat = packed(folder.path(), "flat", &[], 9, 1);
    assert!(matches!(
        LabelSubset::balanced(&flat, 0.5, 0),
        Err(EvalError::Unlabelled { index: 0, .. })
    ));
}

/// Classes that differ in their brightest channel.
fn coloured(folder: &std::path::Path, name: &str, count: u32) -> Pack {
    packed_with(folder, name, &CLASSES, count, |i| {
        let noise = benches::fill(i + 1, (SIDE * SIDE * 3) as usize);
        let shade = |(at, x): (usize, &f32)| {
            let own = at % 3 == i as usize % 3;
            (x * 60.0 + if own { 160.0 } else { 90.0 }) as u8
        };
        noise.iter().enumerate().map(shade).collect()
    })
}

fn finetune<'a>(backbone: &'a ResNet, pack: &Pack, config: &FinetuneConfig) -> Finetune<'a> {
    finetune_on(&alone(), backbone, pack, config)
}

fn finetune_on<'a>(
    ranks: &Ranks,
    backbone: &'a ResNet,
    pack: &Pack,
    config: &FinetuneConfig,
) -> Finetune<'a> {
    let data = DataConfig {
        image_size: SIDE as usize,
        mean: vec![0.5; 3],
        std: vec![0.25; 3],
        ..Default::default()
    };
    let augment = ViewConfig {
        scale: [0.5, 1.0],
        jitter_probability: 0.0,
        photometric: 0.0,
        gray: 0.0,
        ..Default::default()
    };
    let image_view = ImageView::new(&data, &augment).unwrap();
    let images = (pack.clone(), image_view);
    Finetune::new(config, backbone, Ops::Fast, images, 1, 5, ranks).unwrap()
}

fn quick() -> FinetuneConfig {
    FinetuneConfig {
        epochs: 6,
        batch_size: 8,
        lr: 0.05,
        milestones: vec![4],
        label_fraction: 0.5,
        ..Default::default()
    }
}

#[test]
fn fine_tuning_learns_what_the_labels_say() {
    let folder = tempdir().unwrap();
    let (train, test) = (
        coloured(folder.path(), "train", 48),
        coloured(folder.path(), "test", 30),
    );
    let backbone = network(1);
    let before = backbone.parameters().var().to_vec1::<f32>().unwrap();
    let mut tuner = finetune(&backbone, &train, &quick());
    assert_eq!((tuner.steps(), tuner.steps_per_epoch()), (36, 6));
    let losses = train_until(&mut tuner, 36);
    assert_eq!(losses.len(), 36);
    assert!((losses[0] - 3f32.ln()).abs() < 0.5, "{losses:?}");
    assert!(losses[35] < 0.2, "{losses:?}");
    let after = backbone.parameters().var().to_vec1::<f32>().unwrap();
    assert!(
        before.iter().zip(&after).filter(|(a, b)| a != b).count() > before.len() / 2,
        "the whole network learns"
    );

    let mut told = Vec::new();
    let mut progress = |done, total| told.push((done, total));
    let report = tuner
        .evaluate(&test, &view(), 16, 1, &mut progress)
        .unwrap();
    assert!(report.top1 > 95.0, "{report:?}");
    assert_eq!((report.top5, report.steps), (100.0, 36));
    assert_eq!((report.label_fraction, report.labelled_images), (0.5, 48));
    assert_eq!(told, [(16, 30), (30, 30)]);
}

#[test]
fn a_resumed_fine_tuning_is_the_very_same() {
    let folder = tempdir().unwrap();
    let train = coloured(folder.path(), "train", 24);
    let weights = |backbone: &ResNet| backbone.parameters().var().to_vec1::<f32>().unwrap();
    let tuner_steps = 18;
    let whole = {
        let backbone = network(1);
        let mut tuner = finetune(&backbone, &train, &quick());
        train_until(&mut tuner, tuner_steps);
        weights(&backbone)
    };
    let saved = checkpoints(&folder.path().join("saved"));
    {
        let backbone = network(1);
        let mut tuner = finetune(&backbone, &train, &quick());
        train_until(&mut tuner, 7); // within an epoch
        save(&tuner, &saved, 7);
    }
    let backbone = network(2);
    let mut tuner = finetune(&backbone, &train, &quick());
    assert!(resume(&mut tuner, &saved).unwrap().is_some());
    assert_eq!(tuner.done(), 7);
    train_until(&mut tuner, tuner_steps);
    assert_eq!(weights(&backbone), whole);
}

#[test]
fn ranks_have_the_losses_and_the_result_of_one_process() {
    let folder = tempdir().unwrap();
    let train = coloured(folder.path(), "train", 48);
    let test = coloured(folder.path(), "test", 30);
    let config = FinetuneConfig {
        micro_batch: 2, // what batch norm sees
        lr: 0.001,      // rounding grows from step to step, the faster the larger the steps
        ..quick()
    };
    let saved = folder.path().join("saved");
    // Stopped after 8 steps, of which rank 0 alone has the checkpoint.
    let run = |ranks: &Ranks| {
        let backbone = network(1 + ranks.rank() as u64);
        let mut tuner = finetune_on(ranks, &backbone, &train, &config);
        tuner.begin().unwrap();
        let mut losses = train_until(&mut tuner, 8);
        let kept = checkpoints(&saved.join(ranks.size().to_string()));
        if ranks.rank() == 0 {
            save(&tuner, &kept, 8);
        }
        let backbone = network(1 + ranks.rank() as u64);
        let mut tuner = finetune_on(ranks, &backbone, &train, &config);
        if ranks.rank() == 0 {
            resume(&mut tuner, &kept).unwrap().unwrap();
        }
        tuner.begin().unwrap();
        assert_eq!(tuner.done(), 8);
        losses.extend(train_until(&mut tuner, 20));
        let report = tuner
            .evaluate(&test, &view(), 4, 1, &mut |_, _| {})
            .unwrap();
        if ranks.rank() == 0 {
            save(&tuner, &kept, 20);
        }
        let weights = backbone.parameters().var().to_vec1::<f32>().unwrap();
        (losses, weights, report)
    };
    let (losses, weights, _) = run(&alone());
    for size in [2, 4] {
        let found = Threads::run(size, RANKS_WAIT, |ranks| run(&ranks));
        assert!(found.iter().all(|rank| *rank == found[0]));
        let (own, own_weights, own_report) = &found[0];
        assert!(difference(&own[..1], &losses[..1]) < 1e-6, "{own:?}");
        assert!(difference(own, &losses) < 1e-3, "{own:?}, alone {losses:?}");
        let pairs = own_weights.iter().zip(&weights);
        let furthest = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(furthest < 1e-3, "{furthest}");
        // One process finds the same with the network of rank 0.
        let backbone = network(9);
        let mut tuner = finetune(&backbone, &train, &config);
        let kept = checkpoints(&saved.join(size.to_string()));
        resume(&mut tuner, &kept).unwrap().unwrap();
        let alone = tuner.evaluate(&test, &view(), 4, 1, &mut |_, _| {});
        assert_eq!(own_report, &alone.unwrap());
        assert_eq!(own_report.steps, 20);
    }
    // Without a size of the parts each rank's share is one.
    let whole = FinetuneConfig {
        micro_batch: 0,
        ..config
    };
    let found = Threads::run(4, RANKS_WAIT, |ranks| {
        let backbone = network(1);
        let mut tuner = finetune_on(&ranks, &backbone, &train, &whole);
        train_until(&mut tuner, 3)
    });
    assert!(difference(&found[0], &losses[..3]) < 1e-3, "{found:?}");
}

#[test]
fn settings_that_cannot_work_are_named() {
    let folder = tempdir().unwrap();
    let train = coloured(folder.path(), "train", 6);
    let backbone = network(1);
    let refused = |config: FinetuneConfig| {
        let data = DataConfig {
            image_size: 16,
            ..Default::default()
        };
        let image_view = ImageView::new(&data, &ViewConfig::default()).unwrap();
        let made = Finetune::new(
            &config,
            &backbone,
            Ops::Fast,
            (train.clone(), image_view),
            1,
            0,
            &alone(),
        );
        made.err().unwrap().to_string()
    };
    let message = refused(quick());
    assert!(
        message.contains("batch_size = 8: must be at most 6"),
        "{message}"
    );
    let message = refused(FinetuneConfig {
        epochs: 0,
        batch_size: 2,
        ..quick()
    });
    assert!(message.contains("epochs = 0"), "{message}");
}
