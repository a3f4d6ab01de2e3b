//! The probes as a user calls them: known answers, choices, and what they refuse.

use pirl_eval::{
    EvalError, FeatureSet, Knn, KnnConfig, LayerFeatures, LinearConfig, LinearProbe, Probe, Select,
};
use pirl_model::Layer;

fn classes(count: usize) -> Vec<String> {
    (0..count).map(|class| format!("class {class}")).collect()
}

fn set(layers: &[(Layer, Vec<f32>)], labels: &[u32], count: usize) -> FeatureSet {
    let layers = layers.iter().map(|(layer, values)| {
        LayerFeatures::new(
            layer.clone(),
            labels.len(),
            values.len() / labels.len(),
            values.clone(),
        )
        .unwrap()
    });
    let labels = labels.iter().copied().map(Some).collect();
    FeatureSet::new(layers.collect(), labels, classes(count)).unwrap()
}

/// `rows` points around one centre for each of six classes, `spread` apart from it.
fn clusters(rows: usize, spread: f32, seed: u32) -> FeatureSet {
    let (dim, count) = (12, 6);
    let labels: Vec<u32> = (0..rows as u32).map(|row| row % count).collect();
    let centres = benches::fill(99, count as usize * dim);
    let points = |spread: f32, seed| -> Vec<f32> {
        let noise = benches::fill(seed, rows * dim);
        let value =
            |i: usize| centres[labels[i / dim] as usize * dim + i % dim] + spread * noise[i];
        (0..rows * dim).map(value).collect()
    };
    let layers = [
        (Layer::RES2, points(20.0, seed)),
        (Layer::RES4, points(spread, seed + 1)),
    ];
    set(&layers, &labels, count as usize)
}

fn knn(k: &[usize]) -> Knn {
    let config = KnnConfig {
        k: k.to_vec(),
        ..Default::default()
    };
    Knn::new(config, 5).unwrap()
}

/// The set with the same features and its labels in another order, so that nearly all are wrong.
fn relabelled(set: &FeatureSet) -> FeatureSet {
    let mut labels = set.labels().to_vec();
    labels.rotate_left(1);
    let classes = set.class_names().to_vec();
    FeatureSet::new(set.layers().to_vec(), labels, classes).unwrap()
}

fn quiet() -> impl FnMut(usize, usize) {
    |_, _| {}
}

#[test]
fn both_probes_solve_clusters_and_name_the_layer_that_has_them() {
    let (train, test) = (clusters(1200, 0.3, 1), clusters(300, 0.3, 5));
    let config = LinearConfig {
        epochs: 5,
        batch_size: 64,
        lrs: vec![0.01, 0.1],
        ..Default::default()
    };
    let mut told = Vec::new();
    let linear = LinearProbe::new(config, 7).unwrap();
    let report = linear
        .evaluate(&train, &test, &mut |done, total| told.push((done, total)))
        .unwrap();
    assert_eq!(
        (&report.best.layer, report.best.top1),
        (&Layer::RES4, 100.0)
    );
    assert!(report.layers[&Layer::RES2].top1 < 60.0, "{report:?}");
    assert!(report.layers[&Layer::RES2].top5 > 80.0, "{report:?}");
    assert_eq!(report.layers[&Layer::RES4].rates.len(), 2);
    assert_eq!(told, (1..=20).map(|done| (done, 20)).collect::<Vec<_>>());

    let knn = knn(&[50]);
    let report = knn.evaluate(&train, &test, &mut quiet()).unwrap();
    assert_eq!((report.top1, &report.best.layer), (100.0, &Layer::RES4));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["layers"]["res4"]["top1"], 100.0);
    assert_eq!(
        (&json["k"], &json["best"]["layer"]),
        (&50.into(), &"res4".into())
    );
}

/// Spreads at which accuracies differ from layer to layer, rate to rate and `k` to `k`, none of them 0
/// or 100 %.
fn hard() -> (FeatureSet, FeatureSet) {
    (clusters(600, 2.0, 1), clusters(200, 2.0, 5))
}

#[test]
fn several_numbers_of_neighbours_in_one_pass_equal_a_pass_for_each() {
    let (train, test) = hard();
    let all = knn(&[200, 3, 20]).evaluate(&train, &test, &mut quiet());
    let all = all.unwrap();
    for k in [3, 20, 200] {
        let one = knn(&[k]).evaluate(&train, &test, &mut quiet()).unwrap();
        assert_eq!((one.k, one.chosen.k), (k, k));
        for (layer, found) in &one.layers {
            assert_eq!(found.by_k.len(), 1);
            assert_eq!(found.by_k[&k], all.layers[layer].by_k[&k], "{layer}, {k}");
            assert_eq!(found.top1, found.by_k[&k].top1);
        }
    }
    // What is not chosen must have been worse, or no better and later, on the part held out.
    for (layer, found) in &all.layers {
        let held_out = found.held_out.unwrap();
        for (k, other) in &found.by_k {
            let other = other.held_out.unwrap();
            assert!(
                other < held_out || (other == held_out && *k >= found.k),
                "{layer}, {k}: {all:?}"
            );
        }
    }
    assert_eq!(all.chosen.layer, Layer::RES4, "{all:?}");
    assert_eq!((all.top1, all.k), (all.chosen.top1, all.chosen.k));
    assert_eq!(all.best.top1, all.layers[&all.best.layer].top1);
}

/// The accuracy of a held-out part equals that of the same rows as a test set of their own.
#[test]
fn the_part_held_out_is_classified_by_the_rest() {
    let rows = 40;
    let labels: Vec<u32> = (0..rows).collect();
    // Every image is a class of its own: what is held out can never be right.
    let train = set(&[(Layer::RES5, benches::fill(1, 40 * 8))], &labels, 40);
    let report = knn(&[1, 2]).evaluate(&train, &train, &mut quiet()).unwrap();
    let layer = &report.layers[&Layer::RES5];
    assert_eq!((layer.held_out, layer.top1), (Some(0.0), 100.0));
    // Every image comes twice, and so does its label: what is held out has its twin unless both are.
    let labels: Vec<u32> = (0..rows).map(|row| row / 2 % 4).collect();
    let half = benches::fill(1, 20 * 8);
    let twins: Vec<f32> = half.chunks(8).flat_map(|row| [row, row].concat()).collect();
    let train = set(&[(Layer::RES5, twins)], &labels, 4);
    let report = knn(&[1, 2]).evaluate(&train, &train, &mut quiet()).unwrap();
    assert_eq!(report.layers[&Layer::RES5].by_k[&1].held_out, Some(100.0));
}

#[test]
fn nothing_is_chosen_by_the_labels_of_the_test_set() {
    let (train, test) = hard();
    let wrong = relabelled(&test);
    let choice = |test: &FeatureSet| {
        let found = knn(&[3, 20, 200]).evaluate(&train, test, &mut quiet());
        let found = found.unwrap();
        let ks: Vec<usize> = found.layers.values().map(|layer| layer.k).collect();
        let chosen = found.chosen;
        ((chosen.layer, chosen.k, chosen.held_out, ks), chosen.top1)
    };
    let ((right, top1), (same, low)) = (choice(&test), choice(&wrong));
    assert_eq!(right, same);
    assert!(top1 > 2.0 * low, "{top1}, {low}");

    for lrs in [vec![0.05], vec![1e-5, 0.05, 0.001]] {
        let config = LinearConfig {
            epochs: 3,
            batch_size: 50,
            lrs: lrs.clone(),
            ..Default::default()
        };
        let probe = LinearProbe::new(config, 7).unwrap();
        let choice = |test: &FeatureSet| {
            let found = probe.evaluate(&train, test, &mut quiet()).unwrap();
            let layers = found.layers.values();
            let layers: Vec<_> = layers.map(|layer| (layer.lr, layer.held_out)).collect();
            let chosen = found.chosen.unwrap();
            (
                (chosen.layer, chosen.lr, chosen.held_out, layers),
                chosen.top1,
            )
        };
        let ((right, top1), (same, low)) = (choice(&test), choice(&wrong));
        assert_eq!(right, same);
        assert_eq!((&right.0, right.1), (&Layer::RES4, 0.05), "{right:?}");
        assert!(top1 > 2.0 * low, "{top1}, {low}");
    }
}

#[test]
fn a_choice_by_the_test_set_is_only_made_when_asked_for() {
    let (train, test) = hard();
    let run = |select, train: &FeatureSet, test: &FeatureSet| {
        let config = LinearConfig {
            epochs: 2,
            select,
            ..Default::default()
        };
        let mut steps = 0;
        let probe = LinearProbe::new(config, 7).unwrap();
        let report = probe.evaluate(train, test, &mut |done, _| steps = done);
        (report.unwrap(), steps)
    };
    let (by_test, steps) = run(Select::Test, &train, &test);
    let chosen = by_test.chosen.unwrap();
    assert_eq!((chosen.held_out, steps), (None, 4));
    assert_eq!(
        (chosen.layer, chosen.top1),
        (by_test.best.layer, by_test.best.top1)
    );
    let (held_out, steps) = run(Select::Validation, &train, &test);
    assert_eq!(steps, 8);
    assert!(held_out.layers.values().all(|row| row.held_out.is_some()));
    assert_eq!(
        held_out.layers[&Layer::RES2].top1,
        by_test.layers[&Layer::RES2].top1
    );

    // One layer and one rate: there is no choice, and nothing is held out.
    let only = |set: &FeatureSet| {
        let layers = set.layers()[1..].to_vec();
        FeatureSet::new(layers, set.labels().to_vec(), classes(6)).unwrap()
    };
    let (train, test) = (only(&train), only(&test));
    let (report, steps) = run(Select::Validation, &train, &test);
    assert_eq!((report.chosen.unwrap().held_out, steps), (None, 2));
    let report = knn(&[7]).evaluate(&train, &test, &mut quiet()).unwrap();
    assert_eq!((report.chosen.held_out, report.k), (None, 7));
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (train, test) = (clusters(700, 3.0, 1), clusters(200, 3.0, 5));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let config = LinearConfig {
                epochs: 3,
                lrs: vec![0.01, 0.03],
                ..Default::default()
            };
            let linear = LinearProbe::new(config, 3).unwrap();
            let knn = Knn::new(KnnConfig::default(), 3).unwrap();
            (
                linear.evaluate(&train, &test, &mut quiet()).unwrap(),
                knn.evaluate(&train, &test, &mut quiet()).unwrap(),
            )
        })
    };
    assert_eq!(run(1), run(3));
}

/// A rate so high that the weights overflow must lose, and alone be an error.
#[test]
fn a_diverged_rate_is_not_chosen() {
    let (train, test) = (clusters(600, 1.0, 1), clusters(200, 1.0, 5));
    for select in [Select::Validation, Select::Test] {
        let config = LinearConfig {
            epochs: 3,
            lrs: vec![1e30, 0.05],
            select,
            ..Default::default()
        };
        let probe = LinearProbe::new(config, 0).unwrap();
        let report = probe.evaluate(&train, &test, &mut quiet()).unwrap();
        assert!(
            report.layers.values().all(|layer| layer.lr == 0.05),
            "{report:?}"
        );
    }
    let config = LinearConfig {
        epochs: 3,
        lrs: vec![1e30],
        ..Default::default()
    };
    let error = LinearProbe::new(config, 0)
        .unwrap()
        .evaluate(&train, &test, &mut quiet());
    assert!(
        matches!(&error, Err(EvalError::Diverged { layer, .. }) if *layer == Layer::RES2),
        "{error:?}"
    );
}

#[test]
fn neighbours_vote_as_in_scikit_learn() {
    let file: serde_json::Value = serde_json::from_str(include_str!("golden/probes.json")).unwrap();
    let expected: Vec<u32> = serde_json::from_value(file["neighbours"].clone()).unwrap();
    let labels: Vec<u32> = (0..500).map(|i| i * 13 % 17 % 6).collect();
    let train = set(&[(Layer::RES5, benches::fill(41, 500 * 8))], &labels, 6);
    // With the expected classes as labels, every prediction must be right.
    let test = set(&[(Layer::RES5, benches::fill(42, 150 * 8))], &expected, 6);
    let knn = knn(&[40]);
    assert_eq!(
        knn.evaluate(&train, &test, &mut quiet()).unwrap().top1,
        100.0
    );
}

#[test]
fn sets_that_cannot_be_compared_are_refused_with_the_facts() {
    let features = vec![(Layer::RES5, vec![0.5, 1.0, 2.0])];
    let train = set(&features, &[0, 1, 0], 2);
    let knn = knn(&[1]);
    let linear = LinearProbe::new(LinearConfig::default(), 0).unwrap();
    let refused = |train: &FeatureSet, test: &FeatureSet| -> String {
        let one = knn
            .evaluate(train, test, &mut quiet())
            .unwrap_err()
            .to_string();
        assert_eq!(
            one,
            linear
                .evaluate(train, test, &mut quiet())
                .unwrap_err()
                .to_string()
        );
        one
    };
    let message = refused(&train, &set(&features, &[0, 1, 0], 3));
    assert!(
        message.contains("2, none as number 2") && message.contains("\"class 2\""),
        "{message}"
    );
    let message = refused(&train, &set(&[(Layer::RES4, vec![1.0; 3])], &[0, 1, 0], 2));
    assert!(
        message.contains("res5 of 1") && message.contains("res4 of 1"),
        "{message}"
    );
    let layer = LayerFeatures::new(Layer::RES5, 2, 1, vec![1.0; 2]).unwrap();
    let partly = FeatureSet::new(vec![layer], vec![Some(0), None], classes(2)).unwrap();
    let message = refused(&train, &partly);
    assert!(
        message.contains("sample 1 of the test set has no label"),
        "{message}"
    );

    let many = Knn::new(KnnConfig::default(), 3).unwrap();
    let message = many
        .evaluate(&train, &train, &mut quiet())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("k = [10, 20, 200]") && message.contains("at most 2, the 3 training"),
        "{message}"
    );
}

#[test]
fn tables_that_are_no_features_are_refused() {
    let layer = |rows, dim, values| LayerFeatures::new(Layer::RES3, rows, dim, values);
    assert!(matches!(
        layer(2, 3, vec![0.0; 5]),
        Err(EvalError::Shape { .. })
    ));
    assert!(matches!(layer(0, 3, vec![]), Err(EvalError::Shape { .. })));
    assert!(matches!(
        layer(usize::MAX, 3, vec![0.0; 5]),
        Err(EvalError::Shape { .. })
    ));
    assert!(matches!(
        layer(2, 2, vec![0.0, 0.0, 0.0, f32::NAN]),
        Err(EvalError::NotFinite {
            row: 1,
            column: 1,
            ..
        })
    ));
    let good = || layer(1, 1, vec![1.0]).unwrap();
    assert!(matches!(
        FeatureSet::new(vec![good()], vec![Some(2)], classes(2)),
        Err(EvalError::Label {
            index: 0,
            label: 2,
            classes: 2
        })
    ));
    assert!(matches!(
        FeatureSet::new(vec![good()], vec![None, None], classes(2)),
        Err(EvalError::Shape { .. })
    ));
    assert!(matches!(
        FeatureSet::new(vec![], vec![], classes(2)),
        Err(EvalError::Shape { .. })
    ));
}
