//! Support vector machines against scikit-learn's, and what they refuse.

use pirl_eval::{EvalError, FeatureSet, LayerFeatures, Presence, Svm, SvmConfig};
use pirl_model::Layer;

const DIM: usize = 24;
const CLASSES: usize = 4;

fn names() -> Vec<String> {
    (0..CLASSES).map(|class| format!("class {class}")).collect()
}

/// The twin of make_svm.py's `split`.
fn split(seed: u32, rows: usize) -> (FeatureSet, Presence) {
    let x = benches::fill(seed, rows * DIM);
    let noise = benches::fill(seed + 1, rows * CLASSES);
    let mut presence = Vec::with_capacity(rows * CLASSES);
    for (x, noise) in x.chunks(DIM).zip(noise.chunks(CLASSES)) {
        for class in 0..CLASSES {
            let [a, b, n] = [x[class], x[CLASSES + class], noise[class]].map(f64::from);
            let score = a + 0.5 * b + 0.8 * n;
            presence.push(if (score - 0.7).abs() < 0.05 {
                -1
            } else {
                i8::from(score > 0.7)
            });
        }
    }
    let layer = LayerFeatures::new(Layer::RES5, rows, DIM, x).unwrap();
    (
        FeatureSet::new(vec![layer], vec![None; rows], names()).unwrap(),
        Presence::new(CLASSES, presence).unwrap(),
    )
}

#[test]
fn average_precisions_are_those_of_scikit_learn() {
    let (train, train_presence) = split(61, 300);
    let (test, test_presence) = split(71, 200);
    // As many passes as make_svm.py allows, so that every machine is finished.
    let config = SvmConfig {
        max_passes: 200_000,
        ..Default::default()
    };
    let svm = Svm::new(config, 0).unwrap();
    let mut told = Vec::new();
    let report = svm
        .evaluate(
            (&train, &train_presence),
            (&test, &test_presence),
            &mut |done, total| told.push((done, total)),
        )
        .unwrap();
    assert_eq!(told, [(1, 4), (2, 4), (3, 4), (4, 4)]);
    let golden: serde_json::Value = serde_json::from_str(include_str!("golden/svm.json")).unwrap();
    let expected: Vec<f64> = serde_json::from_value(golden["precision"].clone()).unwrap();
    let layer = &report.layers[&Layer::RES5];
    for (name, expected) in names().iter().zip(&expected) {
        let found = report.per_class[name];
        assert!(
            (found - expected).abs() < 0.1,
            "{name}: {found}, not {expected}"
        );
    }
    let mean = expected.iter().sum::<f64>() / CLASSES as f64;
    assert!((report.map - mean).abs() < 0.1, "{} {mean}", report.map);
    assert_eq!((report.best.layer, layer.dim), (Layer::RES5, DIM));
    assert_eq!((layer.map, layer.unfinished), (report.map, 0));
    let chosen = &report.chosen;
    assert_eq!((&chosen.layer, chosen.pool), (&Layer::RES5, None));
    assert_eq!((chosen.map, chosen.held_out), (layer.map, layer.held_out));
}

/// Noise added to the test rows of one layer changes what is best there, and not what is chosen.
#[test]
fn the_layer_is_chosen_by_cross_validation() {
    let (train, train_presence) = split(61, 240);
    let (test, test_presence) = split(71, 120);
    let layers = |set: &FeatureSet, noisy: Layer, amount: f32| {
        let rows = set.labels().len();
        let values = set.layers()[0].values().to_vec();
        let noise = benches::fill(99, values.len());
        let changed = values.iter().zip(noise).map(|(x, n)| x + amount * n);
        let layer = |name, values| LayerFeatures::new(name, rows, DIM, values).unwrap();
        let clear = if noisy == Layer::RES4 {
            Layer::RES3
        } else {
            Layer::RES4
        };
        let mut layers = vec![layer(noisy, changed.collect()), layer(clear, values)];
        layers.sort_by_key(|of| of.layer().clone());
        FeatureSet::new(layers, vec![None; rows], names()).unwrap()
    };
    let config = SvmConfig {
        costs: vec![0.1, 1.0],
        ..Default::default()
    };
    let svm = Svm::new(config, 0).unwrap();
    let train = layers(&train, Layer::RES3, 1.0);
    let test = layers(&test, Layer::RES4, 3.0);
    let report = svm.evaluate(
        (&train, &train_presence),
        (&test, &test_presence),
        &mut |_, _| {},
    );
    let report = report.unwrap();
    assert_eq!(report.chosen.layer, Layer::RES4);
    assert_eq!(report.best.layer, Layer::RES3);
    let chosen = &report.layers[&Layer::RES4];
    assert!(chosen.held_out > report.layers[&Layer::RES3].held_out);
    assert_eq!(report.chosen.map, chosen.map);
    assert!(report.to_string().contains("chosen: res4 with"));
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (train, test) = (split(61, 120), split(71, 80));
    let config = SvmConfig {
        costs: vec![0.1, 1.0],
        ..Default::default()
    };
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let svm = Svm::new(config.clone(), 3).unwrap();
        pool.install(|| {
            svm.evaluate((&train.0, &train.1), (&test.0, &test.1), &mut |_, _| {})
                .unwrap()
        })
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn what_cannot_be_judged_is_refused_with_the_facts() {
    let (train, presence) = split(61, 60);
    let svm = Svm::new(SvmConfig::default(), 0).unwrap();
    let rare: Vec<i8> = (0..60 * CLASSES)
        .map(|at| i8::from(at % CLASSES != 2 || at < 2 * CLASSES))
        .collect();
    let rare = Presence::new(CLASSES, rare).unwrap();
    let error = svm.evaluate((&train, &rare), (&train, &presence), &mut |_, _| {});
    let message = error.unwrap_err().to_string();
    assert!(
        message.contains("\"class 2\" is in 2 images of the training set"),
        "{message}"
    );
    let short = Presence::new(CLASSES, vec![1; CLASSES]).unwrap();
    let error = svm.evaluate((&train, &short), (&train, &presence), &mut |_, _| {});
    assert!(matches!(error, Err(EvalError::Shape { .. })), "{error:?}");
    assert!(Presence::new(CLASSES, vec![1; 5]).is_err());
    assert!(Presence::new(1, vec![2]).is_err());
    for config in [
        SvmConfig {
            costs: vec![],
            ..Default::default()
        },
        SvmConfig {
            folds: 1,
            ..Default::default()
        },
    ] {
        let error = Svm::new(config, 0).unwrap_err();
        assert!(matches!(error, EvalError::Setting(_)), "{error}");
    }
}
