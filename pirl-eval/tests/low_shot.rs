//! Low-shot evaluations: what they report, and of what.

use pirl_eval::{
    EvalConfig, EvalError, FeatureSet, LayerFeatures, LowShot, LowShotConfig, LowShotMethod,
    LowShotReport, Presence, Probe, ReportTable,
};
use pirl_model::Layer;

const CLASSES: usize = 3;

/// Images whose class one of eight features tells, with noise; `res4` is noise alone.
fn set(seed: u32, rows: usize) -> FeatureSet {
    const DIM: usize = 8;
    let mut values = benches::fill(seed, rows * DIM);
    let labels: Vec<usize> = (0..rows).map(|row| row * 7 % 11 % CLASSES).collect();
    for (row, label) in values.chunks_mut(DIM).zip(&labels) {
        row[*label] += 1.5;
    }
    let noise = benches::fill(seed + 1, rows * DIM);
    let layers = [(Layer::RES4, noise), (Layer::RES5, values)];
    let layers = layers.map(|(layer, values)| LayerFeatures::new(layer, rows, DIM, values));
    FeatureSet::new(
        layers.into_iter().collect::<Result<_, _>>().unwrap(),
        labels.iter().map(|label| Some(*label as u32)).collect(),
        (0..CLASSES).map(|class| format!("class {class}")).collect(),
    )
    .unwrap()
}

fn config(method: LowShotMethod, shots: &[usize]) -> EvalConfig {
    let mut config = EvalConfig {
        low_shot: LowShotConfig {
            method,
            shots: shots.to_vec(),
            draws: 3,
            steps: 100,
            ..LowShotConfig::default()
        },
        ..EvalConfig::default()
    };
    config.svm.costs = vec![0.1, 1.0, 10.0];
    config
}

fn run(config: &EvalConfig, seed: u64) -> Result<LowShotReport, EvalError> {
    let mut told = Vec::new();
    let report = LowShot::new(config, seed)?.evaluate(
        &set(61, 240),
        &set(71, 150),
        &mut |done, total| told.push((done, total)),
    )?;
    let total = 2 * report.shots.len() * report.draws;
    let expected: Vec<_> = (1..=total).map(|done| (done, total)).collect();
    assert_eq!(told, expected);
    Ok(report)
}

#[test]
fn more_labels_help_and_the_layer_that_knows_is_chosen() {
    for method in [
        LowShotMethod::Svm,
        LowShotMethod::Linear,
        LowShotMethod::Knn,
    ] {
        let config = config(method, &[32, 1, 4]);
        let report = run(&config, 5).unwrap();
        assert_eq!((report.method, report.metric), (method, "top1"));
        assert_eq!(report.shots.keys().collect::<Vec<_>>(), [&1, &4, &32]);
        let means: Vec<f64> = report
            .shots
            .values()
            .map(|of| of.chosen.test.mean)
            .collect();
        assert!(means[0] < means[1] && means[1] < means[2], "{means:?}");
        assert!(means[2] > 75.0, "{method:?}: {means:?}");
        for (k, result) in &report.shots {
            let chosen = &result.chosen;
            assert!(result.best.test.mean >= chosen.test.mean, "k = {k}");
            let row = &result.layers[&chosen.layer];
            assert_eq!((row.setting, row.test), (chosen.setting, chosen.test));
            assert_eq!(row.by_draw.len(), 3);
            let spread = row.test;
            assert!(spread.min <= spread.mean && spread.mean <= spread.max);
            assert!(spread.deviation.is_some());
        }
        let most = &report.shots[&32];
        assert_eq!(most.chosen.layer, Layer::RES5);
        assert!(most.layers[&Layer::RES4].test.mean < 50.0);
        assert_eq!(run(&config, 5).unwrap(), report);
        assert_ne!(run(&config, 6).unwrap(), report);
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for method in [
        LowShotMethod::Svm,
        LowShotMethod::Linear,
        LowShotMethod::Knn,
    ] {
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let pool = pool.build().unwrap();
            pool.install(|| run(&config(method, &[4]), 1).unwrap())
        };
        assert_eq!(on(1), on(3), "{method:?}");
    }
}

#[test]
fn a_class_with_too_few_images_is_named() {
    let report = run(&config(LowShotMethod::Knn, &[2, 96]), 0).unwrap();
    assert_eq!(report.shots.keys().collect::<Vec<_>>(), [&2]);
    let reason = &report.left_out[&96];
    assert!(
        reason.contains("show \"class") && reason.contains("not 96"),
        "{reason}"
    );
    let error = run(&config(LowShotMethod::Knn, &[96, 97]), 0).unwrap_err();
    assert!(
        matches!(error, EvalError::NoPositives { least: 96, .. }),
        "{error}"
    );
}

#[test]
fn images_of_several_classes_are_ranked_by_machines_alone() {
    let presence = |set: &FeatureSet| {
        let rows = set.layers()[1].values().chunks(8);
        let values = rows.flat_map(|row| (0..CLASSES).map(|class| i8::from(row[class] > 1.0)));
        Presence::new(CLASSES, values.collect()).unwrap()
    };
    let (train, test) = (set(61, 240), set(71, 150));
    let both = || (presence(&train), presence(&test));
    let probe = LowShot::new(&config(LowShotMethod::Svm, &[2, 16]), 0).unwrap();
    let (of_train, of_test) = both();
    let probe = probe.with_presence(of_train, of_test).unwrap();
    let report = probe.evaluate(&train, &test, &mut |_, _| {}).unwrap();
    assert_eq!(report.metric, "map");
    let means = report.shots.values().map(|of| of.chosen.test.mean);
    let means: Vec<f64> = means.collect();
    assert!(means[0] < means[1] && means[1] > 85.0, "{means:?}");
    for method in [LowShotMethod::Linear, LowShotMethod::Knn] {
        let probe = LowShot::new(&config(method, &[2]), 0).unwrap();
        let (of_train, of_test) = both();
        let error = probe.with_presence(of_train, of_test).unwrap_err();
        assert!(error.to_string().contains("must be svm"), "{error}");
    }
}

#[test]
fn machines_that_were_stopped_are_counted() {
    let layers = |report: &LowShotReport| -> usize {
        let layers = report.shots[&8].layers.values();
        layers.map(|layer| layer.unfinished).sum()
    };
    let mut config = config(LowShotMethod::Svm, &[8]);
    let whole = run(&config, 0).unwrap();
    assert_eq!(layers(&whole), 0);
    assert!(!whole.headline().contains("max_passes"));
    config.svm.max_passes = 1;
    let cut = run(&config, 0).unwrap();
    // Of each class in each draw at each of two layers.
    assert_eq!(layers(&cut), CLASSES * 3 * 2);
    assert!(
        cut.headline()
            .contains("18 machines were stopped by eval.svm.max_passes")
    );
}

#[test]
fn settings_out_of_range_are_named() {
    let good = LowShotConfig::default;
    let bad = [
        (
            "shots = []",
            LowShotConfig {
                shots: vec![],
                ..good()
            },
        ),
        (
            "shots = [1, 0]",
            LowShotConfig {
                shots: vec![1, 0],
                ..good()
            },
        ),
        ("draws = 0", LowShotConfig { draws: 0, ..good() }),
        ("steps = 0", LowShotConfig { steps: 0, ..good() }),
        (
            "lrs = [NaN]",
            LowShotConfig {
                lrs: vec![f64::NAN],
                ..good()
            },
        ),
        (
            "held_out = 1",
            LowShotConfig {
                held_out: 1.0,
                ..good()
            },
        ),
    ];
    for (key, low_shot) in bad {
        let config = EvalConfig {
            low_shot,
            ..EvalConfig::default()
        };
        let error = LowShot::new(&config, 0).unwrap_err().to_string();
        assert!(error.starts_with(key), "{error}");
    }
    good().check().unwrap();
}
