//! Ranks that read features together find what one process finds; here they are threads.

mod common;

use std::fs;
use std::thread;
use std::time::Duration;

use common::{RANKS_WAIT, network, packed, view};
use pirl_data::Pack;
use pirl_eval::{
    EvalError, Extraction, FeatureSet, Knn, KnnConfig, KnnReport, Monitor, Pool, Pools, embed,
    extract_features,
};
use pirl_model::{Layer, ResNet, Trainable};
use pirl_train::{Ranks, Threads, alone};
use tempfile::tempdir;

const CLASSES: [&str; 2] = ["a", "b"];

/// Batches of 4; the maps of res5 are of one pixel at this size, of which one pooling is left.
fn extraction() -> Extraction {
    Extraction {
        layers: vec![Layer::CONV1, Layer::RES4, Layer::RES5],
        pool: Pools::new(Pool::ALL.to_vec()).unwrap(),
        batch_size: 4,
        workers: 1,
        ..Extraction::new(view())
    }
}

fn features(backbone: &ResNet, pack: &Pack, extraction: &Extraction) -> FeatureSet {
    extract_features(backbone, pack, extraction, &mut |_, _| {}).unwrap()
}

/// Rank 0's network, and others that the other ranks begin with.
fn own_network(ranks: &Ranks) -> ResNet {
    network(3 + ranks.rank() as u64)
}

#[test]
fn features_are_those_of_one_process_to_the_bit() {
    let folder = tempdir().unwrap();
    let train = packed(folder.path(), "train", &CLASSES, 23, 1);
    let test = packed(folder.path(), "test", &CLASSES, 3, 50);
    let (backbone, untrained) = (network(3), network(8));
    let extraction = extraction();
    let alone = [
        features(&backbone, &train, &extraction),
        features(&backbone, &test, &extraction),
        features(&untrained, &train, &extraction),
    ];
    for size in [2, 3, 7] {
        let found = Threads::run(size, RANKS_WAIT, |ranks| {
            let backbone = own_network(&ranks);
            let packs = [&test, &train];
            let shared = extraction.clone().over(&ranks, &backbone, &packs).unwrap();
            let shared = shared?;
            let mut told = Vec::new();
            let mut progress = |done, total| told.push((done, total));
            let first = extract_features(&backbone, &train, &shared, &mut progress).unwrap();
            assert_eq!(told.len(), 6);
            assert_eq!((told[0], told[5]), ((4, 23), (23, 23)));
            let second = features(&backbone, &test, &shared);
            // Another network of the same shape, as baselines have one.
            Some([first, second, features(&untrained, &train, &shared)])
        });
        assert!(found[0].as_ref() == Some(&alone), "{size} ranks");
        assert!(found[1..].iter().all(Option::is_none));
    }
}

#[test]
fn embeddings_are_written_by_rank_0_alone() {
    let folder = tempdir().unwrap();
    let pack = packed(folder.path(), "photos", &CLASSES, 14, 1);
    let extraction = Extraction {
        layers: vec![Layer::RES5],
        pool: Pool::Average.into(),
        ..extraction()
    };
    let output = |rank: usize| folder.path().join(format!("rank-{rank}.csv"));
    let written = Threads::run(2, RANKS_WAIT, |ranks| {
        let backbone = own_network(&ranks);
        let shared = extraction
            .clone()
            .over(&ranks, &backbone, &[&pack])
            .unwrap();
        let output = output(ranks.rank());
        let found = embed(&backbone, &pack, &shared?, &[], &output, &mut |_, _| {});
        Some(found.unwrap().images)
    });
    assert_eq!(written, [Some(14), None]);
    let one = folder.path().join("alone.csv");
    embed(&network(3), &pack, &extraction, &[], &one, &mut |_, _| {}).unwrap();
    assert_eq!(fs::read(output(0)).unwrap(), fs::read(one).unwrap());
}

#[test]
fn ranks_wait_for_as_long_as_rank_0_takes_but_not_for_one_that_is_gone() {
    let folder = tempdir().unwrap();
    let pack = packed(folder.path(), "photos", &CLASSES, 9, 1);
    let within = Duration::from_secs(2);
    let found = Threads::run(2, within, |ranks| {
        let backbone = own_network(&ranks);
        let shared = extraction().over(&ranks, &backbone, &[&pack]).unwrap()?;
        thread::sleep(2 * within); // over a classifier
        Some(features(&backbone, &pack, &shared).labels().len())
    });
    assert_eq!(found, [Some(9), None]);
    let found = Threads::run(2, within, |ranks| {
        let backbone = own_network(&ranks);
        match ranks.rank() {
            0 => String::new(),
            _ => match extraction().over(&ranks, &backbone, &[&pack]) {
                Err(error) => error.to_string(),
                Ok(_) => panic!("rank 0 was waited for"),
            },
        }
    });
    assert!(
        found[1].contains("rank 0 did not come within 2 s"),
        "{found:?}"
    );
}

#[test]
fn a_rank_with_other_images_or_settings_is_named() {
    let folder = tempdir().unwrap();
    let pack = packed(folder.path(), "photos", &CLASSES, 9, 1);
    let other = packed(folder.path(), "others", &CLASSES, 9, 50);
    let smaller = Extraction {
        batch_size: 3,
        ..extraction()
    };
    for (images, extraction_of_1) in [(&other, extraction()), (&pack, smaller)] {
        let errors = Threads::run(2, RANKS_WAIT, |ranks| {
            let backbone = own_network(&ranks);
            if ranks.rank() == 1 {
                let helped = extraction_of_1.clone().over(&ranks, &backbone, &[images]);
                let error = helped.err().unwrap();
                ranks.abort(&error.to_string());
                return error;
            }
            let shared = extraction().over(&ranks, &backbone, &[&pack]).unwrap();
            let read = extract_features(&backbone, &pack, &shared.unwrap(), &mut |_, _| {});
            read.unwrap_err()
        });
        assert!(matches!(errors[1], EvalError::OtherImages { rank: 1 }));
        let message = errors[0].to_string();
        assert!(
            message.contains("rank 1 has ended: rank 0 reads images"),
            "{message}"
        );
    }
}

#[test]
fn nearest_neighbours_of_a_training_are_measured_by_all_ranks_and_leave_no_trace() {
    let folder = tempdir().unwrap();
    let train = packed(folder.path(), "train", &CLASSES, 22, 1);
    let test = packed(folder.path(), "test", &CLASSES, 10, 50);
    let config = KnnConfig {
        k: vec![1, 5],
        ..KnnConfig::default()
    };
    let knn = Knn::new(config, 4).unwrap();
    let measure = |ranks: &Ranks| -> Option<KnnReport> {
        let backbone = own_network(ranks);
        let (train, test) = (train.clone(), test.clone());
        let monitor = Monitor::new(train, test, extraction(), 12, 9, knn.clone(), ranks).unwrap();
        let before = backbone.state().unwrap();
        let mut reports = (0..2).map(|_| monitor.measure(&backbone).unwrap());
        let (first, second) = (reports.next().unwrap(), reports.next().unwrap());
        assert_eq!(first, second);
        for (name, tensor) in backbone.state().unwrap() {
            let difference = (tensor - &before[&name]).unwrap().abs().unwrap();
            let difference = difference.flatten_all().unwrap().max(0).unwrap();
            let difference = difference.to_dtype(candle_core::DType::F64).unwrap();
            assert_eq!(difference.to_scalar::<f64>().unwrap(), 0.0, "{name}");
        }
        first
    };
    let expected = measure(&alone());
    assert!(expected.is_some());
    let found = Threads::run(2, RANKS_WAIT, |ranks| measure(&ranks));
    assert_eq!(found, [expected, None]);
}
