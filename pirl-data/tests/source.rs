//! Readers of public formats: what they list, in which order, and what they refuse.

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;

use common::{jpeg, picture, png};
use pirl_data::{
    Cifar, DataError, Encoding, Idx, ImageFolder, Labels, Source, Split, fetch_fashion_mnist,
};
use tempfile::TempDir;

fn names_and_labels(source: &dyn Source) -> Vec<(String, Option<u32>)> {
    (0..source.len())
        .map(|index| {
            let sample = source.read(index).unwrap();
            (sample.name, sample.label)
        })
        .collect()
}

fn put(root: &Path, path: &str, bytes: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn pairs(expected: &[(&str, Option<u32>)]) -> Vec<(String, Option<u32>)> {
    expected
        .iter()
        .map(|(name, label)| ((*name).to_owned(), *label))
        .collect()
}

#[test]
fn class_folders_are_labels_in_order_of_name() {
    let dir = TempDir::new().unwrap();
    let image = jpeg(&picture(8, 8));
    for path in [
        "dog/2.JPEG",
        "dog/1.jpg",
        "cat/deep/3.png",
        "dog/notes.txt",
        ".hidden/4.jpg",
    ] {
        put(dir.path(), path, &image);
    }
    fs::create_dir(dir.path().join("bird")).unwrap();
    let folder = ImageFolder::open(dir.path()).unwrap();
    assert_eq!(folder.class_names(), ["bird", "cat", "dog"]);
    let expected = [
        ("cat/deep/3.png", Some(1)),
        ("dog/1.jpg", Some(2)),
        ("dog/2.JPEG", Some(2)),
    ];
    assert_eq!(names_and_labels(&folder), pairs(&expected));
    assert_eq!(
        folder.read(0).unwrap().encoding,
        Encoding::Jpeg,
        "its bytes decide, not its name"
    );
    assert!(matches!(
        folder.read(3),
        Err(DataError::Index { index: 3, len: 3 })
    ));
}

#[test]
fn flat_and_nested_folders_are_unlabelled() {
    let dir = TempDir::new().unwrap();
    put(dir.path(), "top.png", &png(&picture(4, 4)));
    put(dir.path(), "a/b/below.png", &png(&picture(4, 4)));
    let stray = ImageFolder::open(dir.path()).unwrap_err().to_string();
    assert!(
        stray.contains("top.png") && stray.contains("--labels none"),
        "{stray}"
    );
    let folder = ImageFolder::labelled(dir.path(), Labels::None).unwrap();
    assert!(folder.class_names().is_empty());
    let expected = [("a/b/below.png", None), ("top.png", None)];
    assert_eq!(names_and_labels(&folder), pairs(&expected));

    fs::remove_file(dir.path().join("top.png")).unwrap();
    let folder = ImageFolder::labelled(dir.path(), Labels::None).unwrap();
    assert_eq!(names_and_labels(&folder), pairs(&expected[..1]));
}

#[test]
fn empty_and_missing_folders_are_errors() {
    let dir = TempDir::new().unwrap();
    put(dir.path(), "notes.txt", b"nothing to see");
    assert!(matches!(
        ImageFolder::open(dir.path()),
        Err(DataError::Empty { .. })
    ));
    let missing = ImageFolder::open(dir.path().join("absent")).unwrap_err();
    assert!(missing.to_string().contains("absent"), "{missing}");
}

/// An IDX file with the given magic number, dimensions and data.
fn idx(magic: u32, dimensions: &[u32], data: &[u8]) -> Vec<u8> {
    let mut bytes = magic.to_be_bytes().to_vec();
    for dimension in dimensions {
        bytes.extend(dimension.to_be_bytes());
    }
    bytes.extend(data);
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn idx_folders_plain_and_gzipped() {
    let dir = TempDir::new().unwrap();
    let pixels: Vec<u8> = (0..12).collect();
    put(
        dir.path(),
        "train-images-idx3-ubyte.gz",
        &gzip(&idx(0x803, &[2, 2, 3], &pixels)),
    );
    put(
        dir.path(),
        "train-labels-idx1-ubyte",
        &idx(0x801, &[2], &[9, 4]),
    );
    put(
        dir.path(),
        "t10k-images-idx3-ubyte",
        &idx(0x803, &[1, 1, 1], &[7]),
    );
    put(
        dir.path(),
        "t10k-labels-idx1-ubyte.gz",
        &gzip(&idx(0x801, &[1], &[0])),
    );
    let train = Idx::open(dir.path(), Split::Train).unwrap();
    assert_eq!(train.len(), 2);
    let sample = train.read(1).unwrap();
    assert_eq!(&*sample.bytes, [6, 7, 8, 9, 10, 11]);
    assert_eq!(
        sample.encoding,
        Encoding::Raw {
            height: 2,
            width: 3,
            channels: 1
        }
    );
    assert_eq!(sample.label, Some(4));
    assert!(train.read(2).is_err());
    assert_eq!(train.class_names().len(), 10);
    assert_eq!(Idx::open(dir.path(), Split::Test).unwrap().len(), 1);
    put(dir.path(), "class_names.txt", b"a\nb\n");
    assert_eq!(
        Idx::open(dir.path(), Split::Test).unwrap().class_names(),
        ["a", "b"]
    );
    let error = Idx::open(dir.path(), Split::Train).unwrap_err().to_string();
    assert!(
        error.contains("sample 0 has label 9, but there are 2 classes"),
        "{error}"
    );
}

#[test]
fn bad_idx_files_say_what_is_wrong() {
    let images = idx(0x803, &[2, 1, 1], &[1, 2]);
    let labels = idx(0x801, &[2], &[1, 2]);
    let zipped = gzip(&images);
    for (images, labels, expected) in [
        (
            idx(0x801, &[2, 1, 1], &[1, 2]),
            labels.clone(),
            "magic number 0x00000801",
        ),
        (
            idx(0x803, &[2, 1, 1], &[1]),
            labels.clone(),
            "need 2 bytes, only 1",
        ),
        (
            idx(0x803, &[2, 1, 1], &[1, 2, 3]),
            labels.clone(),
            "need 2 bytes, at least 3",
        ),
        (idx(0x803, &[u32::MAX; 3], &[]), labels.clone(), "too large"),
        (
            idx(0x803, &[2], &[]),
            labels.clone(),
            "reading the dimensions",
        ),
        (vec![0, 0], labels.clone(), "reading the magic number"),
        (
            idx(0x803, &[0, 1, 1], &[]),
            labels.clone(),
            "it holds 0 images",
        ),
        (
            images.clone(),
            idx(0x801, &[3], &[1, 2, 3]),
            "3 labels for the 2 images",
        ),
        (
            images.clone(),
            idx(0x801, &[1], &[1, 2]),
            "need 1 bytes, at least 2",
        ),
    ] {
        let dir = TempDir::new().unwrap();
        put(dir.path(), "train-images-idx3-ubyte", &images);
        put(dir.path(), "train-labels-idx1-ubyte", &labels);
        let error = Idx::open(dir.path(), Split::Train).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let dir = TempDir::new().unwrap();
    put(dir.path(), "train-labels-idx1-ubyte", &labels);
    let error = Idx::open(dir.path(), Split::Train).unwrap_err().to_string();
    assert!(error.contains("train-images-idx3-ubyte"), "{error}");
    put(
        dir.path(),
        "train-images-idx3-ubyte.gz",
        &zipped[..zipped.len() - 9],
    );
    assert!(matches!(
        Idx::open(dir.path(), Split::Train),
        Err(DataError::Format { .. })
    ));
}

/// Records whose planes are 10, 20 and 30, but for the first pixel, which counts the records.
fn cifar(labels: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, label) in labels.iter().enumerate() {
        bytes.extend(*label);
        for value in [10, 20, 30] {
            bytes.push(value + index as u8);
            bytes.extend([value; 1023]);
        }
    }
    bytes
}

#[test]
fn cifar_ten_and_hundred() {
    let dir = TempDir::new().unwrap();
    for batch in 1..=5 {
        put(
            dir.path(),
            &format!("data_batch_{batch}.bin"),
            &cifar(&[&[batch], &[9]]),
        );
    }
    put(dir.path(), "test_batch.bin", &cifar(&[&[3]]));
    let train = Cifar::ten(dir.path(), Split::Train).unwrap();
    assert_eq!(train.len(), 10);
    let sample = train.read(3).unwrap();
    assert_eq!(sample.label, Some(9));
    assert_eq!(
        sample.bytes[..6],
        [11, 21, 31, 10, 20, 30],
        "planes become pixels"
    );
    assert_eq!(train.read(8).unwrap().label, Some(5));
    assert!(train.read(10).is_err());
    put(
        dir.path(),
        "batches.meta.txt",
        b"a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n",
    );
    assert_eq!(
        Cifar::ten(dir.path(), Split::Test).unwrap().class_names()[3],
        "d"
    );

    // The folder around the archive's is as good.
    let around = TempDir::new().unwrap();
    let inner = around.path().join("cifar-10-batches-bin");
    std::fs::create_dir(&inner).unwrap();
    put(&inner, "test_batch.bin", &cifar(&[&[3]]));
    let test = Cifar::ten(around.path(), Split::Test).unwrap();
    assert_eq!(test.len(), 1);
    std::fs::rename(inner.join("test_batch.bin"), inner.join("test_batch")).unwrap();
    let error = Cifar::ten(around.path(), Split::Test)
        .unwrap_err()
        .to_string();
    let advice = ["test_batch", "pickled", "pirl data fetch cifar10"];
    assert!(advice.iter().all(|part| error.contains(part)), "{error}");

    put(dir.path(), "train.bin", &cifar(&[&[1, 99], &[2, 7]]));
    let hundred = Cifar::hundred(dir.path(), Split::Train).unwrap();
    assert_eq!(hundred.read(0).unwrap().label, Some(99), "the fine label");
    assert_eq!(hundred.class_names().len(), 100);
    assert!(matches!(
        Cifar::hundred(dir.path(), Split::Test),
        Err(DataError::Io { .. })
    ));

    put(dir.path(), "test_batch.bin", &cifar(&[&[3], &[10]]));
    let error = Cifar::ten(dir.path(), Split::Test).unwrap_err().to_string();
    assert!(error.contains("sample 1 has label 10"), "{error}");
    put(dir.path(), "test_batch.bin", &cifar(&[&[3]])[..3000]);
    let error = Cifar::ten(dir.path(), Split::Test).unwrap_err().to_string();
    assert!(error.contains("3000 bytes"), "{error}");
    put(dir.path(), "fine_label_names.txt", b"one\n");
    assert!(Cifar::hundred(dir.path(), Split::Train).is_err());
}

/// Where Debian's package is installed; what is downloaded elsewhere is tested beside the function.
#[test]
fn fashion_mnist_is_copied_from_the_package() {
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join("fashion");
    if Path::new("/usr/share/datasets/fashion-mnist").is_dir() {
        let from = fetch_fashion_mnist(&folder, &mut |_, _| panic!("a download")).unwrap();
        assert!(from.contains("Debian"), "{from}");
        let train = Idx::open(&folder, Split::Train).unwrap();
        assert_eq!(
            (train.len(), train.read(0).unwrap().bytes.len()),
            (60_000, 28 * 28)
        );
        assert_eq!(train.class_names()[9], "Ankle boot");
        assert_eq!(Idx::open(&folder, Split::Test).unwrap().len(), 10_000);
    }
}
