//! Parquet files of pyarrow (`golden/make_parquet.py`).
#![cfg(feature = "parquet")]

mod common;
#[path = "../fuzz/parsers.rs"]
mod parsers;

use std::fs;
use std::path::{Path, PathBuf};

use common::write;
use pirl_data::{
    Columns, DataError, ImageFolder, Pack, PackOptions, Parquet, Source, SourceFormat,
    SourceOptions, open_source,
};
use tempfile::TempDir;

const NAMES: [&str; 8] = [
    "grey.png",
    "rgb.png",
    "exif-6.jpg",
    "rgba.png",
    "palette.png",
    "rgb-420.jpg",
    "grey.jpg",
    "interlaced.png",
];
const LABELS: [u32; 8] = [2, 0, 1, 2, 0, 1, 2, 0];

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn open(name: &str, split: Option<&str>, columns: &str) -> Result<Parquet, DataError> {
    let columns = match columns {
        "" => Columns::default(),
        columns => columns.parse().unwrap(),
    };
    Parquet::open(golden().join("parquet").join(name), split, &columns)
}

/// What a source holds: the file whose bytes a sample has, and its label.
fn rows(source: &Parquet) -> Vec<(&'static str, Option<u32>)> {
    let files = NAMES.map(|name| fs::read(golden().join("decode").join(name)).unwrap());
    let row = |index| {
        let sample = source.read(index).unwrap();
        let file = files.iter().position(|bytes| *bytes == *sample.bytes);
        (NAMES[file.expect("a file of these bytes")], sample.label)
    };
    (0..source.len()).map(row).collect()
}

fn expected(which: &[usize], labelled: bool) -> Vec<(&'static str, Option<u32>)> {
    let row = |&index: &usize| (NAMES[index], labelled.then_some(LABELS[index]));
    which.iter().map(row).collect()
}

const ALL: [usize; 8] = [0, 1, 2, 3, 4, 5, 6, 7];

#[test]
fn a_set_of_hugging_face_is_read_with_its_classes() {
    for name in ["hf.parquet", "large.parquet"] {
        let source = open(name, None, "").unwrap();
        assert_eq!(rows(&source), expected(&ALL, true), "{name}");
        assert_eq!(source.class_names(), ["cat", "dog", "emu"]);
        let sample = source.read(5).unwrap();
        assert_eq!(sample.name, format!("row 5 of {name}: rgb-420.jpg"));
    }
    // In any order, from groups read before and not.
    let source = open("hf.parquet", None, "").unwrap();
    for index in [7, 0, 4, 7, 2, 5, 1] {
        assert_eq!(source.read(index).unwrap().label, Some(LABELS[index]));
    }
    assert!(matches!(
        source.read(8),
        Err(DataError::Index { index: 8, len: 8 })
    ));
}

#[test]
fn files_of_a_part_are_put_together_and_parts_are_not() {
    let train = open("parts", Some("train"), "").unwrap();
    assert_eq!(rows(&train), expected(&[0, 1, 2, 3, 4], true));
    assert_eq!(
        train.read(3).unwrap().name,
        "row 0 of train-00001-of-00002.parquet"
    );
    let test = open("parts", Some("test"), "").unwrap();
    assert_eq!(rows(&test), expected(&[5, 6, 7], true));
    let both = open("parts", None, "").err().unwrap().to_string();
    assert!(
        both.contains("test, train") && both.contains("--split"),
        "{both}"
    );
    let none = open("parts", Some("validation"), "").err().unwrap();
    assert!(matches!(none, DataError::Empty { .. }));
}

#[test]
fn what_has_no_image_or_no_label_is_left_out_by_name() {
    let source = open("holes.parquet", None, "").unwrap();
    let skipped: Vec<&str> = source.skipped().iter().map(|s| s.name.as_str()).collect();
    assert_eq!(
        skipped,
        ["row 1 of holes.parquet", "row 3 of holes.parquet"]
    );
    let dir = TempDir::new().unwrap();
    let report = write(&source, &dir.path().join("set"), &PackOptions::default());
    assert_eq!((report.packed, report.skipped.len()), (4, 4));
    let reasons: Vec<&str> = report.skipped.iter().map(|s| s.reason.as_str()).collect();
    assert_eq!(reasons[..2], ["it has no label, but others have"; 2]);
    assert_eq!(reasons[2..], ["it holds no bytes of its image"; 2]);
    assert!(
        report.skipped[2]
            .name
            .contains("row 4 of holes.parquet: palette.png")
    );
    assert_eq!(
        report.tally.endings.keys().collect::<Vec<_>>(),
        [".jpg", ".png"]
    );

    let unknown = open("unknown.parquet", None, "").unwrap();
    assert_eq!(rows(&unknown), expected(&[1, 2], false));
    assert!(unknown.class_names().is_empty() && unknown.skipped().is_empty());
}

#[test]
fn columns_are_found_or_chosen() {
    let several = open("several.parquet", None, "").err().unwrap().to_string();
    assert!(several.contains("--columns label="), "{several}");
    let fine = open("several.parquet", None, "label=fine_label").unwrap();
    assert_eq!(rows(&fine), expected(&ALL, true));
    let coarse = open("several.parquet", None, "path=img,label=coarse_label").unwrap();
    assert_eq!(coarse.class_names(), ["pet", "bird"]);
    let alone = open("several.parquet", None, "path=img").unwrap();
    assert_eq!(rows(&alone), expected(&ALL, false));

    let plain = open("plain.parquet", None, "").unwrap();
    assert_eq!(plain.class_names(), ["cat", "dog", "emu"]);
    let labels: Vec<_> = rows(&plain).iter().map(|row| row.1.unwrap()).collect();
    assert_eq!(labels, [1, 0, 2, 1, 0, 2, 1, 0]);
    let numbers = open("plain.parquet", None, "path=picture,label=id").unwrap();
    assert_eq!(numbers.read(6).unwrap().label, Some(6));

    for (name, columns, wanted) in [
        ("lists.parquet", "", "no column of images"),
        ("numbers.parquet", "", "it has label, value"),
        (
            "hf.parquet",
            "path=picture",
            "no column \"picture\" of images; it has image.bytes",
        ),
        ("hf.parquet", "label=labels", "no column \"labels\""),
        ("label-17.parquet", "", "label 17, but there are 3 classes"),
    ] {
        let said = open(name, None, columns).err().unwrap().to_string();
        assert!(
            said.contains(wanted) && said.contains(name),
            "{name}: {said}"
        );
    }
    let text = open("../make_parquet.py", None, "")
        .err()
        .unwrap()
        .to_string();
    assert!(text.contains("not a valid Parquet file"), "{text}");
}

#[test]
fn a_packing_reads_groups_in_any_number_of_threads() {
    let dir = TempDir::new().unwrap();
    let options = SourceOptions::default();
    let input = [golden().join("parquet/hf.parquet")];
    let source = open_source(SourceFormat::Parquet, &input, &options).unwrap();
    let report = write(&*source, &dir.path().join("set"), &PackOptions::default());
    assert_eq!((report.packed, report.skipped.len()), (8, 0));
    let pack = Pack::open(dir.path().join("set")).unwrap();
    assert_eq!(pack.labels().unwrap(), LABELS);
}

#[test]
fn a_folder_and_parquet_of_the_same_images_are_the_same_pack() {
    let same = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pirl-cli/tests/fixtures/same");
    let dir = TempDir::new().unwrap();
    let fingerprint = |source: &dyn Source, name: &str| {
        let report = write(source, &dir.path().join(name), &PackOptions::default());
        assert_eq!((report.packed, report.class_names.len()), (24, 2));
        report.fingerprint
    };
    let folder = ImageFolder::open(same.join("images")).unwrap();
    let parquet = Parquet::open(same.join("images.parquet"), None, &Columns::default()).unwrap();
    assert_eq!(
        fingerprint(&folder, "folder"),
        fingerprint(&parquet, "parquet")
    );
}

#[test]
fn damage_is_an_error() {
    use rand::{RngExt, SeedableRng};
    let files: Vec<Vec<u8>> = [
        "hf.parquet",
        "plain.parquet",
        "parts/data/test-00000-of-00001.parquet",
    ]
    .map(|name| fs::read(golden().join("parquet").join(name)).unwrap())
    .into();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(8);
    // What the reader panics at need not be printed.
    std::panic::set_hook(Box::new(|_| {}));
    for _ in 0..2_000 {
        let mut bytes = files[rng.random_range(0..files.len())].clone();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..4) {
                0 => bytes[at] ^= 1 << rng.random_range(0..8),
                1 => bytes[at] = rng.random(),
                // The footer, where all is said of the rest.
                2 => {
                    let near = bytes.len() - rng.random_range(1..900.min(bytes.len()));
                    bytes[near] = rng.random();
                }
                _ => drop(bytes.drain(at..(at + 9).min(bytes.len()))),
            }
        }
        parsers::parquet(&bytes);
    }
    let _ = std::panic::take_hook();
}
