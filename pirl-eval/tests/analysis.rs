//! What a backbone's features are near to, and what moves them.

mod common;

use candle_core::{Device, Tensor};
use common::{SIDE, network, packed, view};
use pirl_data::{
    DataConfig, DataError, EvalView, Image, Pack, Pretext, Scratch, ViewConfig, eval_batches,
};
use pirl_eval::{ANOTHER_IMAGE, Change, EvalError, LayerFeatures, invariance, nearest_neighbours};
use pirl_model::{Backbone, Layer, Mode, precise_batch_norm};

fn features(rows: usize, dim: usize, seed: u32) -> LayerFeatures {
    let values = benches::fill(seed, rows * dim);
    LayerFeatures::new(Layer::RES5, rows, dim, values).unwrap()
}

/// All cosines in `f64`, the nearest first.
fn brute_force(query: &[f32], gallery: &LayerFeatures) -> Vec<(usize, f64)> {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
        products.sum()
    };
    let mut all: Vec<(usize, f64)> = gallery
        .values()
        .chunks(gallery.dim())
        .map(|row| dot(query, row) / (dot(query, query) * dot(row, row)).sqrt())
        .enumerate()
        .collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all
}

#[test]
fn neighbours_are_those_of_a_brute_force_search() {
    let (queries, gallery) = (features(70, 9, 1), features(1500, 9, 2));
    let found = nearest_neighbours(&queries, &gallery, 6, None).unwrap();
    for (query, found) in queries.values().chunks(9).zip(&found) {
        for (found, (index, cosine)) in found.iter().zip(brute_force(query, &gallery)) {
            assert_eq!(found.index, index);
            assert!((f64::from(found.cosine) - cosine).abs() < 1e-6);
        }
        assert_eq!(found.len(), 6);
    }
}

#[test]
fn a_query_is_not_its_own_neighbour_and_of_equals_the_first_comes_first() {
    // Rows 0 to 3 are all the same.
    let mut values = [[1.0, 2.0]; 4].concat();
    values.extend([2.0, 1.0, -1.0, 0.0]);
    let all = LayerFeatures::new(Layer::RES4, 6, 2, values).unwrap();
    let query = LayerFeatures::new(Layer::RES4, 2, 2, vec![1.0, 2.0, 2.0, 1.0]).unwrap();
    let found = nearest_neighbours(&query, &all, 4, Some(&[2, 4])).unwrap();
    let indices = |row: usize| -> Vec<usize> { found[row].iter().map(|n| n.index).collect() };
    assert_eq!(indices(0), [0, 1, 3, 4]);
    assert_eq!(indices(1), [0, 1, 2, 3]);
    let with_itself = nearest_neighbours(&query, &all, 6, None).unwrap();
    assert_eq!(with_itself[1][0].index, 4);

    let error = nearest_neighbours(&query, &all, 6, Some(&[2, 4])).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("k = 6: must lie between 1 and 5"),
        "{error}"
    );
    for k in [0, 7] {
        assert!(nearest_neighbours(&query, &all, k, None).is_err());
    }
    assert!(nearest_neighbours(&query, &all, 1, Some(&[2])).is_err());
    let other = features(2, 3, 1);
    let error = nearest_neighbours(&other, &all, 1, None).unwrap_err();
    assert!(matches!(error, EvalError::Layers { .. }), "{error}");
}

/// The plain view as often as `1` says: no change at all.
struct Identity(EvalView, usize);

impl Pretext for Identity {
    fn views(&self) -> usize {
        self.1
    }

    fn view_size(&self) -> usize {
        self.0.crop
    }

    fn labels(&self) -> usize {
        0
    }

    fn apply(
        &self,
        image: &Image,
        _: &mut dyn rand::Rng,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> Result<u32, DataError> {
        for view in out.chunks_mut(out.len() / self.1) {
            self.0.apply(image, scratch, view)?;
        }
        Ok(0)
    }
}

fn change(name: &str, views: usize) -> Change {
    Change {
        name: name.to_owned(),
        views: Box::new(Identity(view(), views)),
    }
}

fn data() -> DataConfig {
    DataConfig {
        image_size: SIDE as usize,
        mean: view().mean,
        std: view().std,
        ..DataConfig::default()
    }
}

#[test]
fn what_changes_nothing_has_distance_0() {
    let folder = tempfile::tempdir().unwrap();
    let pack = packed(folder.path(), "a", &["x", "y"], 7, 1);
    let still = ViewConfig {
        scale: [1.0; 2],
        ratio: [1.0; 2],
        flip: 0.0,
        ..ViewConfig::default().without_colors()
    };
    let changes = [
        change("identity", 1),
        Change::photometric(view(), &data(), &still).unwrap(),
        Change::crop(&data(), &still).unwrap(),
        change("several", 4),
    ];
    let mut told = Vec::new();
    let report = invariance(
        &network(3),
        &pack,
        &view(),
        &changes,
        false,
        5,
        &mut |done, total| {
            told.push((done, total));
        },
    );
    let report = report.unwrap();
    for name in ["identity", "photometric", "crop"] {
        assert_eq!(report[name].values, [0.0; 7], "{name}");
        assert_eq!(report[name].relative, Some(0.0), "{name}");
    }
    // Four times a number by four is exact but for the sums on the way.
    assert!(report["several"].values.iter().all(|x| *x < 1e-6));
    assert_eq!(told.last(), Some(&(7, 7)));
    assert!(report[ANOTHER_IMAGE].values.iter().all(|x| *x > 0.0));
}

/// Unit-norm features of the plain views, straight from the backbone.
fn unit_features(backbone: &dyn Backbone, pack: &Pack) -> Vec<Vec<f64>> {
    let mut batches = eval_batches(pack, &view(), pack.len(), 1, &Device::Cpu).unwrap();
    let images: Tensor = batches.next().unwrap().unwrap().0;
    let rows = backbone.forward(&images, Mode::Eval).unwrap();
    let rows = rows.to_vec2::<f32>().unwrap().into_iter().map(|row| {
        let row: Vec<f64> = row.into_iter().map(f64::from).collect();
        let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        row.iter().map(|x| x / norm).collect()
    });
    rows.collect()
}

#[test]
fn distances_are_between_unit_features_and_the_same_for_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let pack = packed(folder.path(), "a", &["x", "y"], 9, 1);
    let backbone = network(3);
    let changes = || {
        [
            Change::crop(&data(), &ViewConfig::default()).unwrap(),
            Change::photometric(view(), &data(), &ViewConfig::default()).unwrap(),
        ]
    };
    let measure = |threads: usize, seed: u64| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let run = || {
            invariance(
                &backbone,
                &pack,
                &view(),
                &changes(),
                false,
                seed,
                &mut |_, _| {},
            )
        };
        pool.build().unwrap().install(run).unwrap()
    };
    let report = measure(1, 5);
    assert_eq!(measure(4, 5), report);
    assert_ne!(measure(1, 6)["crop"], report["crop"]);
    for name in ["crop", "photometric"] {
        let found = &report[name];
        assert!(found.mean > 0.0 && found.values.iter().all(|x| *x <= 2f64.sqrt()));
        let median = |name: &str| {
            let mut values = report[name].values.clone();
            values.sort_by(f64::total_cmp);
            values[4] // of 9
        };
        let relative = median(name) / median(ANOTHER_IMAGE);
        assert!((found.relative.unwrap() - relative).abs() < 1e-12, "{name}");
    }
    let units = unit_features(&backbone, &pack);
    let next = units.iter().cycle().skip(1);
    for ((a, b), found) in units.iter().zip(next).zip(&report[ANOTHER_IMAGE].values) {
        let squares = a.iter().zip(b).map(|(a, b)| (a - b).powi(2));
        assert!((squares.sum::<f64>().sqrt() - found).abs() < 1e-5);
    }
}

/// The plain view at half its contrast.
struct Faint(Identity);

impl Pretext for Faint {
    fn views(&self) -> usize {
        self.0.views()
    }

    fn view_size(&self) -> usize {
        self.0.view_size()
    }

    fn labels(&self) -> usize {
        0
    }

    fn apply(
        &self,
        image: &Image,
        rng: &mut dyn rand::Rng,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> Result<u32, DataError> {
        self.0.apply(image, rng, scratch, out)?;
        out.iter_mut().for_each(|value| *value = 64 + *value / 2);
        Ok(0)
    }
}

#[test]
fn own_statistics_take_away_what_all_changed_views_have_in_common() {
    let folder = tempfile::tempdir().unwrap();
    let pack = packed(folder.path(), "a", &["x", "y"], 9, 1);
    let backbone = network(3);
    let plain = || eval_batches(&pack, &view(), pack.len(), 1, &Device::Cpu).unwrap();
    precise_batch_norm(&backbone, plain().map(|batch| Ok::<_, EvalError>(batch?.0))).unwrap();
    let changes = [
        change("identity", 1),
        Change {
            name: "faint".to_owned(),
            views: Box::new(Faint(Identity(view(), 1))),
        },
    ];
    let before = unit_features(&backbone, &pack);
    let measure = |own_statistics: bool| {
        let found = invariance(
            &backbone,
            &pack,
            &view(),
            &changes,
            own_statistics,
            0,
            &mut |_, _| {},
        );
        found.unwrap()
    };
    let (of_plain, own) = (measure(false), measure(true));
    assert_eq!(of_plain["identity"].values, [0.0; 9]);
    assert!(own["identity"].values.iter().all(|x| *x < 1e-5));
    assert_eq!(own[ANOTHER_IMAGE], of_plain[ANOTHER_IMAGE]);
    // Batch norm behind a convolution without a bias scales the difference away.
    let (of_plain, own) = (of_plain["faint"].mean, own["faint"].mean);
    assert!(own < of_plain / 4.0, "{own}, {of_plain}");
    assert_eq!(unit_features(&backbone, &pack), before);
}

#[test]
fn too_few_images_and_changes_of_one_name_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let pack = packed(folder.path(), "a", &["x"], 3, 1);
    let refused = |pack: &Pack, changes: &[Change]| {
        let found = invariance(
            &network(3),
            pack,
            &view(),
            changes,
            false,
            0,
            &mut |_, _| {},
        );
        matches!(found, Err(EvalError::Setting { .. }))
    };
    assert!(refused(&pack.select(&[1]).unwrap(), &[]));
    assert!(refused(&pack, &[change("a", 1), change("a", 1)]));
    assert!(refused(&pack, &[change(ANOTHER_IMAGE, 1)]));
    assert!(refused(&pack, &[change("none", 0)]));
    assert!(!refused(&pack, &[]));
}
