//! From a pack to features: what is read, what is kept on disk, and what is refused.

mod common;

use std::fs;

use candle_core::{Device, Tensor};
use common::{network, packed, view};
use pirl_data::{
    DataError, Encoding, Objects, Pack, PackOptions, RawSample, Source, eval_batches, pack,
};
use pirl_eval::{
    EvalError, Extraction, FeatureCache, FeatureSet, Pool, Presence, check_packs, extract_features,
    feature_bytes, recompute_batch_norm, weights_fingerprint,
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
        pool: Pool::Grid,
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
    for pool in [Pool::Average, Pool::Grid] {
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
