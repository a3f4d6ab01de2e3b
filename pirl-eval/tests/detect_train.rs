//! A detector as a whole: it learns, goes on where it stopped, and never makes a loss no number.

mod common;

use std::borrow::Cow;
use std::path::Path;

use candle_core::Device;
use common::{RANKS_WAIT, checkpoints, difference, save, train as train_until};
use pirl_data::{DataError, Encoding, Objects, Pack, PackOptions, RawSample, Source, pack};
use pirl_eval::EvalError;
use pirl_eval::detect::{
    AnchorConfig, DetectConfig, DetectMetric, DetectOptim, DetectReport, DetectTest, DetectTrainer,
    InputConfig, RoiConfig, RpnConfig, check_detection_packs, voc_metrics,
};
use pirl_model::{Arch, C4Config, C4Norm, ModelConfig, ResNet};
use pirl_train::{Ranks, Threads, TrainError, Training, alone, resume};

const NORMAL: (&[f32], &[f32]) = (&[0.3; 3], &[0.3; 3]);

/// Grey noise with bright (class 0) and striped (class 1) rectangles.
struct Scenes {
    scenes: usize,
    /// Whether the first scenes have no objects.
    bare: usize,
    names: Vec<String>,
}

impl Scenes {
    fn objects(&self, index: usize) -> Objects {
        let mut objects = Objects::default();
        if index >= self.bare {
            let unit =
                |seed: usize| f64::from(benches::formula(9, (index * 10 + seed) as u32)).abs();
            for corner in 0..2 {
                // One in each half of the image.
                let side = |seed: usize| 16.0 + (24.0 * unit(seed)).floor();
                let (w, h) = (side(4 * corner), side(4 * corner + 1));
                let place = |seed: usize, room: f64| (room * unit(seed)).floor();
                let x = 48.0 * corner as f64 + place(4 * corner + 2, 48.0 - w);
                let y = place(4 * corner + 3, 80.0 - h);
                let bounds = [x, y, x + w, y + h].map(|v| v as f32);
                objects.push(bounds, ((index + corner) % 2) as u32, false);
            }
        }
        objects
    }
}

impl Source for Scenes {
    fn len(&self) -> usize {
        self.scenes
    }

    fn class_names(&self) -> &[String] {
        &self.names
    }

    fn read(&self, index: usize) -> Result<RawSample<'_>, DataError> {
        let objects = self.objects(index);
        let shade = |at: usize| {
            let (x, y) = ((at % 96) as f32, (at / 96) as f32);
            let noise = benches::formula(index as u32, at as u32) * 15.0;
            let hit = objects.iter().find(|([x0, y0, x1, y1], _, _)| {
                (*x0..*x1).contains(&x) && (*y0..*y1).contains(&y)
            });
            let base = match hit {
                None => 60.0,
                Some((_, 0, _)) => 220.0,
                Some(_) if (y as usize / 4).is_multiple_of(2) => 220.0,
                Some(_) => 20.0,
            };
            (base + noise) as u8
        };
        Ok(RawSample {
            name: index.to_string(),
            bytes: Cow::Owned((0..96 * 80).map(shade).collect()),
            encoding: Encoding::Raw {
                height: 80,
                width: 96,
                channels: 1,
            },
            label: None,
            objects: Some(objects.clone()),
        })
    }

    fn describe(&self) -> String {
        "rectangles".to_owned()
    }
}

fn scenes(folder: &Path, scenes: usize, bare: usize) -> Pack {
    scenes_of(folder, scenes, bare, 3)
}

fn scenes_of(folder: &Path, scenes: usize, bare: usize, channels: usize) -> Pack {
    let path = folder.join(format!("scenes-{scenes}-{bare}-{channels}"));
    let names = vec!["plain".to_owned(), "striped".to_owned()];
    let source = Scenes {
        scenes,
        bare,
        names,
    };
    let options = PackOptions {
        channels,
        ..PackOptions::default()
    };
    pack(&source, &path, &options, &mut |_, _| {}).unwrap();
    Pack::open(&path).unwrap()
}

fn network() -> ResNet {
    let config = ModelConfig {
        arch: Arch::Resnet18,
        width: 0.25,
        ..ModelConfig::default()
    };
    ResNet::new(&config, 1, &Device::Cpu).unwrap()
}

/// Small enough for a test, with everything trained.
fn config() -> DetectConfig {
    DetectConfig {
        steps: 200,
        batch_size: 4,
        micro_batch: 0,
        optim: DetectOptim {
            lr: 0.02,
            warmup_steps: 20,
            milestones: vec![160],
            ..DetectOptim::default()
        },
        input: InputConfig {
            train_sizes: vec![80],
            test_size: 80,
            ..InputConfig::default()
        },
        backbone: C4Config {
            frozen_stages: 0,
            norm: C4Norm::Train,
            extra_norm: true,
        },
        anchors: AnchorConfig {
            sizes: vec![16.0, 32.0],
            ..AnchorConfig::default()
        },
        rpn: RpnConfig {
            samples: 64,
            post_nms_train: 100,
            post_nms_test: 50,
            ..RpnConfig::default()
        },
        roi: RoiConfig {
            samples: 32,
            pool_size: 7,
            sampling_ratio: 2,
            ..RoiConfig::default()
        },
        test: DetectTest {
            metric: DetectMetric::Area,
            ..DetectTest::default()
        },
        precise_batch_norm: 8,
        ..DetectConfig::default()
    }
}

fn ap50(trainer: &DetectTrainer, test: &Pack) -> f64 {
    trainer.recompute_batch_norm().unwrap();
    let found = trainer.detect(test, &mut |_, _| {}).unwrap();
    let objects: Vec<_> = (0..test.len()).map(|i| test.objects(i).unwrap()).collect();
    let report = voc_metrics(&found, &objects, test.class_names(), DetectMetric::Area);
    report.unwrap().ap50
}

#[test]
fn a_detector_learns_twenty_scenes_by_heart() {
    let folder = tempfile::tempdir().unwrap();
    let train = scenes(folder.path(), 20, 0);
    let config = config();
    let mut trainer = DetectTrainer::new(&network(), &train, NORMAL, &config, 0, &alone()).unwrap();
    let before = ap50(&trainer, &train);
    for _ in 0..config.steps {
        trainer.step().unwrap();
    }
    let after = ap50(&trainer, &train);
    assert!(before < 20.0 && after > 95.0, "{before} to {after}");
}

#[test]
fn ranks_have_the_losses_and_the_detections_of_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let train = scenes(folder.path(), 9, 0);
    let test = scenes(folder.path(), 5, 1);
    for norm in [C4Norm::Train, C4Norm::Frozen] {
        let mut config = config();
        config.backbone.norm = norm;
        config.backbone.extra_norm = norm == C4Norm::Train;
        config.micro_batch = 1; // what batch norm sees
        config.optim.lr = 0.0005; // rounding grows from step to step, the faster the larger the steps
        let saved = folder.path().join(format!("{norm:?}"));
        // Stopped after 5 steps, of which rank 0 alone has the checkpoint.
        let run = |ranks: &Ranks| {
            let make =
                || DetectTrainer::new(&network(), &train, NORMAL, &config, 5, ranks).unwrap();
            let mut trainer = make();
            trainer.begin().unwrap();
            let mut losses = train_until(&mut trainer, 5);
            let kept = checkpoints(&saved.join(ranks.size().to_string()));
            if ranks.rank() == 0 {
                save(&trainer, &kept, 5);
            }
            let mut trainer = make();
            if ranks.rank() == 0 {
                resume(&mut trainer, &kept).unwrap().unwrap();
            }
            trainer.begin().unwrap();
            losses.extend(train_until(&mut trainer, 20));
            let report = trainer.evaluate(&test, DetectMetric::Area, &mut |_, _| {});
            (losses, report.unwrap())
        };
        let (losses, report) = run(&alone());
        for size in [2, 4] {
            let found = Threads::run(size, RANKS_WAIT, |ranks| run(&ranks));
            assert!(found.iter().all(|rank| *rank == found[0]));
            let (own, own_report) = &found[0];
            assert!(difference(&own[..1], &losses[..1]) < 1e-6, "{own:?}");
            assert!(difference(own, &losses) < 1e-3, "{own:?}, alone {losses:?}");
            assert_eq!(own_report.detections.len(), 5);
            assert_eq!(own_report.steps, report.steps);
            let best = |report: &DetectReport| {
                let found = report.detections.iter();
                let found = found.map(|found| found.first().map_or(0.0, |found| found.score));
                found.collect::<Vec<f32>>()
            };
            let (own, alone) = (best(own_report), best(&report));
            assert!(difference(&own, &alone) < 0.01, "{own:?}, alone {alone:?}");
        }
    }
    let config = DetectConfig {
        batch_size: 2,
        ..config()
    };
    let refused = Threads::run(3, RANKS_WAIT, |ranks| {
        let refused = DetectTrainer::new(&network(), &train, NORMAL, &config, 5, &ranks);
        refused.map(drop).unwrap_err().to_string()
    });
    assert!(
        refused[0].contains("batch_size = 2: must come in 3 parts"),
        "{refused:?}"
    );
}

#[test]
fn training_goes_on_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let train = scenes(folder.path(), 7, 0);
    let backbone = network();
    for norm in [C4Norm::Train, C4Norm::Frozen] {
        let mut config = config();
        config.backbone.norm = norm;
        config.backbone.extra_norm = norm == C4Norm::Train;
        config.micro_batch = 3;
        let new = || DetectTrainer::new(&backbone, &train, NORMAL, &config, 5, &alone()).unwrap();
        let mut whole = new();
        let losses: Vec<_> = (0..6).map(|_| whole.step().unwrap().metrics).collect();
        let saved = checkpoints(&folder.path().join(format!("{norm:?}")));
        let mut first = new();
        for loss in &losses[..3] {
            assert_eq!(first.step().unwrap().metrics, *loss);
        }
        save(&first, &saved, 3);
        let mut second = new();
        resume(&mut second, &saved).unwrap();
        assert_eq!(second.done(), 3);
        for loss in &losses[3..] {
            assert_eq!(second.step().unwrap().metrics, *loss);
        }
        let found = |trainer: &DetectTrainer| trainer.detect(&train, &mut |_, _| {}).unwrap();
        assert_eq!(found(&whole), found(&second));
        assert_ne!(losses[0], losses[1]);
    }
}

#[test]
fn images_without_objects_and_objects_without_extent_do_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let some = scenes(folder.path(), 6, 4);
    let mut tiny = config();
    // An image so small that most boxes are nothing, and no proposal is large enough.
    tiny.input.train_sizes = vec![1];
    tiny.input.flip = 1.0;
    tiny.rpn.min_box_size = 1e6;
    for config in [config(), tiny] {
        let mut trainer =
            DetectTrainer::new(&network(), &some, NORMAL, &config, 0, &alone()).unwrap();
        assert_eq!(trainer.images(), 2);
        for _ in 0..3 {
            assert!(trainer.step().unwrap().loss.is_finite());
        }
    }
    let none = scenes(folder.path(), 3, 3);
    let refused = DetectTrainer::new(&network(), &none, NORMAL, &config(), 0, &alone());
    assert!(matches!(
        refused.err(),
        Some(EvalError::NoObjects { images: 3, .. })
    ));
}

#[test]
fn divergence_is_an_error_that_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let train = scenes(folder.path(), 4, 0);
    let mut config = config();
    config.optim.lr = 1e20;
    config.optim.warmup_steps = 0;
    let mut trainer = DetectTrainer::new(&network(), &train, NORMAL, &config, 0, &alone()).unwrap();
    let error = (0..10).find_map(|_| trainer.step().err()).unwrap();
    assert!(
        matches!(error, EvalError::Train(TrainError::LossNotFinite { .. })),
        "{error}"
    );
}

#[test]
fn images_that_are_not_rgb_are_refused_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let (rgb, grey) = (
        scenes(folder.path(), 4, 0),
        scenes_of(folder.path(), 4, 0, 1),
    );
    let said = |result: Result<(), EvalError>| result.unwrap_err().to_string();
    for (train, test, named) in [
        (&rgb, &grey, "the test images"),
        (&grey, &rgb, "the training images"),
    ] {
        let said = said(check_detection_packs(train, test));
        assert!(
            said.contains("channels = 1") && said.contains(named),
            "{said}"
        );
    }
    let config = config();
    let refused = DetectTrainer::new(&network(), &grey, NORMAL, &config, 0, &alone()).map(drop);
    assert!(said(refused).contains("the training images"));
    let mean: (&[f32], &[f32]) = (&[0.3; 5], &[0.3; 5]);
    let refused = DetectTrainer::new(&network(), &rgb, mean, &config, 0, &alone()).map(drop);
    assert!(said(refused).contains("channels = 5"));
    let trainer = DetectTrainer::new(&network(), &rgb, NORMAL, &config, 0, &alone()).unwrap();
    let mut calls = 0;
    let refused = trainer.detect(&grey, &mut |_, _| calls += 1).map(drop);
    assert!(said(refused).contains("the test images") && calls == 0);
}

#[test]
fn settings_that_contradict_the_backbone_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let train = scenes(folder.path(), 4, 0);
    let mut config = config();
    config.anchors.stride = 8;
    let refused = DetectTrainer::new(&network(), &train, NORMAL, &config, 0, &alone());
    let message = refused.err().unwrap().to_string();
    assert!(message.contains("anchors.stride"), "{message}");
}
