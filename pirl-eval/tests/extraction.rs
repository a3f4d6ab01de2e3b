//! From a pack to features: what is read, what is kept on disk, and what is refused.

mod common;

use std::fs;

use candle_core::{Device, Tensor};
use common::{network, packed, view};
use pirl_data::{
    DataError, Encoding, ImageFolder, Objects, Pack, PackOptions, RawSample, Source, eval_batches,
    pack,
};
use pirl_eval::{
    BaselineInputs, EvalError, Extraction, FeatureCache, FeatureSet, Knn, KnnConfig, Pool, Pools,
    Presence, Probe, Untrained, check_packs, extract_features, feature_bytes, pixel_features,
    recompute_batch_norm, weights_fingerprint,
};
use pirl_model::{Backbone, Layer, Mode, ResNet};

fn extraction(batch_size: usize) -> Extraction {
    Extraction {
        batch_size,
        workers: 2,
        ..Extraction::new(view())
    }
}

fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4)
}

#[test]
fn averages_of_res5_are_the_backbones_features_whatever_the_batch() {
    let folder = tempfile::tempdir().unwrap();
    let pack = packed(folder.path(), "a", &["x", "y"], 11, 1);
    let backbone = network(3);
    let mut told = Vec::new();
    let set = extract_features(&backbone, &pack, &extraction(4), &mut |done, total| {
        told.push((done, total));
    })
    .unwrap();
    assert_eq!(told, [(4, 11), (8, 11), (11, 11)]);
    let layers: Vec<Layer> = set
        .layers()
        .iter()
        .map(|layer| layer.layer().clone())
        .collect();
    assert_eq!(layers, [Layer::RES2, Layer::RES3, Layer::RES4, Layer::RES5]);
    assert_eq!(
        set.labels(),
        pack.labels()
            .unwrap()
            .into_iter()
            .map(Some)
            .collect::<Vec<_>>()
    );

    let batches = eval_batches(&pack, &extraction(4).view, 11, 1, &Device::Cpu).unwrap();
    let images: Vec<Tensor> = batches.map(|batch| batch.unwrap().0).collect();
    let whole = backbone.forward(&images[0], Mode::Eval).unwrap();
    let whole = whole.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(close(set.layers()[3].values(), &whole));

    let grid = Extraction {
        pool: Pool::Grid.into(),
        layers: vec![Layer::CONV1],
        ..extraction(11)
    };
    let grid = extract_features(&backbone, &pack, &grid, &mut |_, _| {}).unwrap();
    let [layer] = grid.layers() else {
        panic!("{grid:?}")
    };
    // Sixteen channels of 16 x 16 pixels are fewer than 9,216 features: nothing is averaged.
    assert_eq!((layer.dim(), layer.cells()), (16 * 256, 256));
}

#[test]
fn recomputed_statistics_make_plain_images_come_out_normalised() {
    let folder = tempfile::tempdir().unwrap();
    let pack = packed(folder.path(), "a", &["x", "y"], 10, 1);
    let backbone = network(3);
    // Nine images in batches of four: the last, of one, is left out.
    let used = recompute_batch_norm(&backbone, &pack, &extraction(4), 9, 0).unwrap();
    assert_eq!(used, 8);
    // With all images as one batch, evaluation mode must nearly equal batch statistics.
    assert_eq!(
        recompute_batch_norm(&backbone, &pack, &extraction(10), 1000, 0).unwrap(),
        10
    );
    let images = eval_batches(&pack, &extraction(10).view, 10, 1, &Device::Cpu)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .0;
    let frozen = backbone.forward(&images, Mode::Eval).unwrap();
    let batch = backbone.forward(&images, Mode::Train).unwrap();
    let worst = (frozen - batch).unwrap().abs().unwrap().max_all().unwrap();
    // The running variance is the unbiased one: 10 x 2 x 2 values in the smallest maps.
    assert!(worst.to_scalar::<f32>().unwrap() < 0.2, "{worst}");
}

#[test]
fn the_cache_answers_for_the_same_weights_and_pack_only_and_survives_damage() {
    let folder = tempfile::tempdir().unwrap();
    let pack = packed(folder.path(), "a", &["x", "y"], 6, 1);
    let other = packed(folder.path(), "b", &["x", "y"], 6, 50);
    let backbone = network(3);
    let cache = FeatureCache::new(&folder.path().join("cache")).unwrap();
    let get = |backbone: &ResNet, pack: &Pack, fresh: &mut bool| -> FeatureSet {
        let weights = weights_fingerprint(backbone).unwrap();
        let extract = || {
            *fresh = true;
            extract_features(backbone, pack, &extraction(6), &mut |_, _| {})
        };
        cache
            .get_or_extract(&weights, pack, &extraction(6), extract)
            .unwrap()
    };
    let mut fresh = false;
    let first = get(&backbone, &pack, &mut fresh);
    assert!(std::mem::take(&mut fresh));
    assert_eq!(get(&backbone, &pack, &mut fresh), first);
    assert!(!std::mem::take(&mut fresh), "read again although kept");
    assert_ne!(get(&backbone, &other, &mut fresh), first);
    assert!(
        std::mem::take(&mut fresh),
        "another pack's features were taken"
    );
    assert_ne!(get(&network(4), &pack, &mut fresh), first);
    assert!(
        std::mem::take(&mut fresh),
        "other weights' features were taken"
    );

    let mut files: Vec<_> = fs::read_dir(folder.path().join("cache"))
        .unwrap()
        .map(|f| f.unwrap().path())
        .collect();
    files.sort();
    assert_eq!(files.len(), 3);
    for file in &files {
        let bytes = fs::read(file).unwrap();
        fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
    }
    assert_eq!(get(&backbone, &pack, &mut fresh), first);
    assert!(std::mem::take(&mut fresh), "half a file was taken");
    assert_eq!(get(&backbone, &pack, &mut fresh), first);
    assert!(!fresh, "the half file was not replaced");
}

#[test]
fn packs_that_cannot_be_compared_are_refused_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let labelled = packed(folder.path(), "a", &["x", "y"], 4, 1);
    let others = packed(folder.path(), "b", &["x", "z"], 4, 1);
    let flat = packed(folder.path(), "c", &[], 4, 1);
    assert!(check_packs(&labelled, &labelled).is_ok());
    let error = check_packs(&labelled, &others).unwrap_err().to_string();
    assert!(error.contains("2 with \"y\" as number 1"), "{error}");
    let error = check_packs(&flat, &flat).unwrap_err();
    assert!(
        matches!(
            error,
            EvalError::Unlabelled {
                set: "training",
                index: 0
            }
        ),
        "{error}"
    );
}

#[test]
fn the_size_of_features_is_known_before_they_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let pack = packed(folder.path(), "set", &["a", "b"], 6, 1);
    let backbone = network(1);
    let both = Pools::new(Pool::ALL.to_vec()).unwrap();
    for pool in [Pool::Average.into(), Pool::Grid.into(), both] {
        let extraction = Extraction {
            pool,
            layers: vec![Layer::CONV1, Layer::RES4],
            ..extraction(4)
        };
        let set = extract_features(&backbone, &pack, &extraction, &mut |_, _| {}).unwrap();
        let numbers: usize = set.layers().iter().map(|layer| layer.values().len()).sum();
        let bytes = feature_bytes(&backbone, &extraction, pack.len()).unwrap();
        assert_eq!(bytes, 4 * numbers as u64);
    }
}

/// Of both poolings each layer is the one's and the other's, but once where its map is a pixel.
#[test]
fn several_poolings_are_read_together_and_called_apart() {
    let folder = tempfile::tempdir().unwrap();
    let pack = packed(folder.path(), "a", &["x", "y"], 7, 1);
    let backbone = network(3);
    let read = |pool: Pools, layers: &[&'static str]| {
        let extraction = Extraction {
            pool,
            layers: layers.iter().copied().map(Layer::new).collect(),
            ..extraction(3)
        };
        extract_features(&backbone, &pack, &extraction, &mut |_, _| {}).unwrap()
    };
    let both = Pools::new(vec![Pool::Grid, Pool::Average]).unwrap();
    let set = read(both.clone(), &["res4", "res5avg", "res5/grid"]);
    let found: Vec<_> = set.layers().iter().collect();
    let names: Vec<_> = found.iter().map(|of| of.layer().as_str()).collect();
    assert_eq!(names, ["res4", "res4/grid", "res5avg", "res5/grid"]);
    let (average, grid) = (Some(Pool::Average), Some(Pool::Grid));
    let pools: Vec<_> = found.iter().map(|of| of.pool()).collect();
    assert_eq!(pools, [average, grid, average, grid]);
    let average = read(Pool::Average.into(), &["res4", "res5avg"]);
    let grid = read(Pool::Grid.into(), &["res4", "res5"]);
    for (place, alone) in [
        (0, &average.layers()[0]),
        (1, &grid.layers()[0]),
        (2, &average.layers()[1]),
        (3, &grid.layers()[1]),
    ] {
        assert_eq!(found[place].values(), alone.values());
        assert_eq!(found[place].cells(), alone.cells());
        assert_eq!(alone.pool(), None);
    }
    // A name that says the pooling goes before the poolings, and nothing is read twice.
    let named = read(both, &["res4/average", "res4/grid", "res4"]);
    let names: Vec<_> = named
        .layers()
        .iter()
        .map(|of| of.layer().as_str())
        .collect();
    assert_eq!(names, ["res4/average", "res4/grid", "res4"]);
}

#[test]
fn joined_layers_are_their_features_one_behind_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let pack = packed(folder.path(), "a", &["x", "y"], 7, 1);
    let backbone = network(3);
    let reading = |pool: Pools, layers: &[&'static str]| Extraction {
        pool,
        layers: layers.iter().copied().map(Layer::new).collect(),
        ..extraction(3)
    };
    let read = |pool: Pools, layers: &[&'static str]| {
        extract_features(&backbone, &pack, &reading(pool, layers), &mut |_, _| {})
    };
    let names = ["res3", "res5/grid", "res3+res5", "res5+res3/grid"];
    let set = read(Pool::Average.into(), &names).unwrap();
    let apart = read(
        Pool::Average.into(),
        &["res3", "res5", "res5/grid", "res3/grid"],
    )
    .unwrap();
    let [res3, res5, res5_grid, res3_grid] = apart.layers() else {
        panic!("four layers");
    };
    for (joined, parts) in [(2, [res3, res5]), (3, [res5_grid, res3_grid])] {
        let joined = &set.layers()[joined];
        assert_eq!(joined.dim(), parts[0].dim() + parts[1].dim());
        assert_eq!((joined.rows(), joined.cells()), (7, 1));
        let dim = |part: usize| parts[part].dim();
        for row in 0..7 {
            let values = &joined.values()[row * joined.dim()..][..joined.dim()];
            let (first, second) = values.split_at(dim(0));
            assert_eq!(first, &parts[0].values()[row * dim(0)..][..dim(0)]);
            assert_eq!(second, &parts[1].values()[row * dim(1)..][..dim(1)]);
        }
    }

    // Of both poolings each is there once, unless no layer's maps are larger than a pixel.
    let both = Pools::new(vec![Pool::Grid, Pool::Average]).unwrap();
    let set = read(both, &["res3+res5", "res5avg+res5avg"]).unwrap();
    let names: Vec<_> = set.layers().iter().map(|of| of.layer().as_str()).collect();
    assert_eq!(names, ["res3+res5", "res3+res5/grid", "res5avg+res5avg"]);

    let error = read(Pool::Average.into(), &["res3+res6"]).unwrap_err();
    assert!(error.to_string().contains("res6"), "{error}");

    // A cache gives them back.
    let cache = FeatureCache::new(&folder.path().join("cache")).unwrap();
    let weights = weights_fingerprint(&backbone).unwrap();
    let wanted = reading(Pool::Average.into(), &["res3+res5", "res5"]);
    let extracted = || extract_features(&backbone, &pack, &wanted, &mut |_, _| {});
    let first = cache
        .get_or_extract(&weights, &pack, &wanted, extracted)
        .unwrap();
    let kept = || panic!("features are kept");
    let second = cache
        .get_or_extract(&weights, &pack, &wanted, kept)
        .unwrap();
    assert_eq!(first, second);
}

#[test]
fn the_cache_keeps_several_poolings_apart_from_one() {
    let folder = tempfile::tempdir().unwrap();
    let pack = packed(folder.path(), "a", &["x", "y"], 6, 1);
    let backbone = network(3);
    let cache = FeatureCache::new(&folder.path().join("cache")).unwrap();
    let weights = weights_fingerprint(&backbone).unwrap();
    let get = |pool: Pools, kept: bool| {
        let extraction = Extraction {
            pool,
            layers: vec![Layer::RES4, Layer::RES5_AVG],
            ..extraction(6)
        };
        let mut fresh = false;
        let set = cache.get_or_extract(&weights, &pack, &extraction, || {
            fresh = true;
            extract_features(&backbone, &pack, &extraction, &mut |_, _| {})
        });
        assert_eq!(fresh, !kept);
        set.unwrap()
    };
    let both = || Pools::new(Pool::ALL.to_vec()).unwrap();
    let first = get(both(), false);
    assert_eq!(get(both(), true), first);
    for pool in Pool::ALL {
        assert_ne!(get(pool.into(), false), first);
    }
}

#[test]
fn pixels_are_averaged_to_32_by_32_and_never_enlarged() {
    let folder = tempfile::tempdir().unwrap();
    // 16 stays 16; 48 becomes 32, whose windows [0, 2), [1, 3), [3, 5), ... overlap.
    for (side, positions) in [(16_usize, 16_usize), (48, 32)] {
        let name = format!("pixels-{side}");
        let pixel = |image: usize, row: usize, column: usize, colour: usize| -> u8 {
            ((image * 89 + row * 37 + column * 11 + colour * 53) % 256) as u8
        };
        let images = folder.path().join(format!("{name}-images"));
        for image in 0..3 {
            let class = images.join(["a", "b"][image % 2]);
            fs::create_dir_all(&class).unwrap();
            let at = |x: u32, y: u32| {
                image::Rgb([0, 1, 2].map(|c| pixel(image, y as usize, x as usize, c)))
            };
            let picture = image::RgbImage::from_fn(side as u32, side as u32, at);
            picture.save(class.join(format!("{image}.png"))).unwrap();
        }
        let output = folder.path().join(&name);
        let source = ImageFolder::open(&images).unwrap();
        pack(&source, &output, &PackOptions::default(), &mut |_, _| {}).unwrap();
        let pack = Pack::open(&output).unwrap();
        let mut extraction = extraction(2);
        (extraction.view.resize, extraction.view.crop) = (side, side);
        extraction.view.mean = vec![0.4, 0.5, 0.6];
        extraction.view.std = vec![0.2, 0.25, 0.3];

        let mut told = Vec::new();
        let set = pixel_features(&pack, &extraction, &mut |done, _| told.push(done)).unwrap();
        assert_eq!(told, [2, 3]);
        let [layer] = set.layers() else {
            panic!("{set:?}")
        };
        let cells = positions * positions;
        assert_eq!(layer.layer().as_str(), "pixels");
        assert_eq!((layer.dim(), layer.cells()), (3 * cells, cells));
        let mut expected = Vec::new();
        let window = |i: usize| i * side / positions..((i + 1) * side).div_ceil(positions);
        // The folders come in turn: images 0 and 2 are of class a.
        for image in [0, 2, 1] {
            for colour in 0..3 {
                for cell in 0..cells {
                    let (rows, columns) = (window(cell / positions), window(cell % positions));
                    let count = (rows.len() * columns.len()) as f64;
                    let sum: f64 = rows
                        .flat_map(|row| columns.clone().map(move |column| (row, column)))
                        .map(|(row, column)| f64::from(pixel(image, row, column, colour)))
                        .sum();
                    let mean = f64::from(extraction.view.mean[colour]);
                    let std = f64::from(extraction.view.std[colour]);
                    expected.push(((sum / count / 255.0 - mean) / std) as f32);
                }
            }
        }
        assert!(close(layer.values(), &expected), "{side}");
        assert_eq!(set.labels(), [Some(0), Some(0), Some(1)]);
    }
}

#[test]
fn baselines_are_the_same_probe_on_pixels_and_on_recomputed_untrained_features() {
    let folder = tempfile::tempdir().unwrap();
    let train = packed(folder.path(), "train", &["x", "y"], 24, 1);
    let test = packed(folder.path(), "test", &["x", "y"], 10, 50);
    let config = KnnConfig {
        k: vec![1, 5],
        ..Default::default()
    };
    let knn = Knn::new(config, 4).unwrap();
    let extraction = extraction(6);
    let cache = folder.path().join("cache");
    let run = |with_network: bool, stages: &mut Vec<&'static str>| {
        let inputs = BaselineInputs {
            train: &train,
            test: &test,
            extraction: &extraction,
            untrained: with_network.then(|| Untrained {
                backbone: Box::new(network(3)),
                settings: "tiny".to_owned(),
                batch_norm_images: 12,
                seed: 9,
            }),
            cache: Some(&cache),
        };
        let mut progress = |stage, done: usize, total: usize| {
            assert!(done <= total, "{stage}");
            stages.push(stage);
        };
        inputs.evaluate(&knn, &mut progress).unwrap()
    };
    let mut stages = Vec::new();
    let found = run(true, &mut stages);
    stages.dedup();
    let all = [
        "reading raw pixels",
        "probing raw pixels",
        "reading untrained features",
        "probing untrained features",
    ];
    assert_eq!(stages, all);
    assert!(found.left_out.is_empty());

    let pixels = |pack| pixel_features(pack, &extraction, &mut |_, _| {}).unwrap();
    let expected = knn.evaluate(&pixels(&train), &pixels(&test), &mut |_, _| {});
    assert_eq!(found.pixels, Some(expected.unwrap()));
    let backbone = network(3);
    recompute_batch_norm(&backbone, &train, &extraction, 12, 9).unwrap();
    let features = |pack| extract_features(&backbone, pack, &extraction, &mut |_, _| {}).unwrap();
    let expected = knn.evaluate(&features(&train), &features(&test), &mut |_, _| {});
    assert_eq!(found.untrained, Some(expected.unwrap()));

    // Once more, from the cache.
    stages.clear();
    assert_eq!(run(true, &mut stages), found);
    assert!(stages.iter().all(|stage| stage.starts_with("probing")));
    assert_eq!(run(false, &mut stages).untrained, None);
}

#[test]
fn raw_pixels_of_grey_images_are_one_colour_in_the_baseline_and_of_others_three() {
    let folder = tempfile::tempdir().unwrap();
    let labels = ["a", "b"];
    let knn = Knn::new(KnnConfig::default(), 0).unwrap();
    let mut extraction = extraction(4);
    (extraction.view.resize, extraction.view.crop) = (12, 12);
    (extraction.view.mean, extraction.view.std) = (vec![0.5; 3], vec![0.25; 3]);
    let pack_of = |name: &str, count: u32, colour: bool| {
        let images = folder.path().join(format!("{name}-images"));
        for number in 0..count {
            let class = images.join(labels[number as usize % 2]);
            fs::create_dir_all(&class).unwrap();
            let picture = image::RgbImage::from_fn(12, 12, |x, y| {
                let grey = (37 * number + 11 * x * (number % 2 + 1) + 5 * y) as u8;
                let odd = colour && number == count - 1 && (x, y) == (3, 5);
                image::Rgb([grey, grey, if odd { grey ^ 255 } else { grey }])
            });
            picture.save(class.join(format!("{number}.png"))).unwrap();
        }
        let output = folder.path().join(name);
        let source = ImageFolder::open(&images).unwrap();
        pack(&source, &output, &PackOptions::default(), &mut |_, _| {}).unwrap();
        Pack::open(&output).unwrap()
    };
    let train = pack_of("train", 30, false);
    for (name, colour, dim) in [("grey", false, 144), ("colour", true, 432)] {
        let test = pack_of(name, 10, colour);
        let inputs = BaselineInputs {
            train: &train,
            test: &test,
            extraction: &extraction,
            untrained: None,
            cache: None,
        };
        let found = inputs.evaluate(&knn, &mut |_, _, _| {}).unwrap();
        let found = found.pixels.unwrap();
        assert_eq!(found.layers[&Layer::new("pixels")].dim, dim, "{name}");
        let pixels = |pack| pixel_features(pack, &extraction, &mut |_, _| {}).unwrap();
        let all = knn.evaluate(&pixels(&train), &pixels(&test), &mut |_, _| {});
        assert_eq!(found.chosen, all.unwrap().chosen, "{name}");
    }
}

/// VOC's classification: an object that is difficult everywhere it stands is neither there nor not.
#[test]
fn presence_is_told_from_objects_and_from_labels() {
    let folder = tempfile::tempdir().unwrap();
    let labelled = packed(folder.path(), "labelled", &["a", "b"], 5, 1);
    let presence = Presence::of_pack(&labelled, "training").unwrap();
    assert_eq!(presence.of(0).collect::<Vec<_>>(), [1, 1, 1, 0, 0]);
    assert_eq!(presence.of(1).collect::<Vec<_>>(), [0, 0, 0, 1, 1]);
    let flat = packed(folder.path(), "flat", &[], 2, 1);
    assert!(Presence::of_pack(&flat, "test").is_err());

    let scenes = Scenes(["a", "b", "c"].map(str::to_owned));
    let output = folder.path().join("scenes");
    pack(&scenes, &output, &PackOptions::default(), &mut |_, _| {}).unwrap();
    let presence = Presence::of_pack(&Pack::open(&output).unwrap(), "training").unwrap();
    assert_eq!(presence.of(0).collect::<Vec<_>>(), [1, -1]);
    assert_eq!(presence.of(1).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(presence.of(2).collect::<Vec<_>>(), [0, 0]);
}

/// Two images: of a, difficult and not; of a, difficult alone, and b.
struct Scenes([String; 3]);

impl Source for Scenes {
    fn len(&self) -> usize {
        2
    }

    fn class_names(&self) -> &[String] {
        &self.0
    }

    fn read(&self, index: usize) -> Result<RawSample<'_>, DataError> {
        let found = [
            [(0, true), (0, false), (0, true)],
            [(0, true), (0, true), (1, false)],
        ];
        let mut objects = Objects::default();
        for (label, difficult) in found[index] {
            objects.push([1.0, 1.0, 3.0, 3.0], label, difficult);
        }
        Ok(RawSample {
            name: index.to_string(),
            bytes: vec![index as u8; 16].into(),
            encoding: Encoding::Raw {
                height: 4,
                width: 4,
                channels: 1,
            },
            label: None,
            objects: Some(objects),
        })
    }

    fn describe(&self) -> String {
        "scenes".to_owned()
    }
}
