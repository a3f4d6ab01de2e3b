//! Every parser of the crate, as a function that must survive any bytes: an error is as good as a
//! result. `tests/mutation.rs` runs these on mutated files, the fuzz targets on what libFuzzer
//! makes up:
//!
//! ```text
//! cargo +nightly fuzz run --fuzz-dir pirl-data/fuzz pack -- -rss_limit_mb=1024 -timeout=20
//! ```
#![allow(dead_code)] // each target uses one

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use pirl_data::{Annotated, Cifar, Depth, Idx, Image, List, Pack, Source, Split, WebDataset};
use tempfile::TempDir;

/// A folder of this process, for parsers that open files.
static FOLDER: LazyLock<TempDir> = LazyLock::new(|| TempDir::new().expect("a folder"));

/// Puts files into the folder and calls `parse` with it.
fn with_files(files: &[(&str, &[u8])], parse: impl FnOnce(&Path)) {
    for (name, bytes) in files {
        let path = FOLDER.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(path, bytes).expect("a file");
    }
    parse(FOLDER.path());
}

/// Reads what a source lists, up to a number of samples.
fn read_all(source: &dyn Source) {
    let _ = source.describe();
    for index in 0..source.len().min(50) {
        let _ = source.read(index);
    }
}

/// A shard of a pack: opened, and what can be read of it.
pub(crate) fn pack(bytes: &[u8]) {
    with_files(&[("pack.safetensors", bytes)], |folder| {
        let Ok(pack) = Pack::open(folder.join("pack.safetensors")) else {
            return;
        };
        let _ = (pack.class_names(), pack.source(), pack.fingerprint());
        for index in 0..=pack.len().min(50) {
            let _ = (pack.label(index), pack.bytes(index), pack.objects(index));
            let _ = pack.decode(index);
        }
    });
}

/// An annotation of VOC.
pub(crate) fn voc(bytes: &[u8]) {
    let files: [(&str, &[u8]); 3] = [
        ("voc/ImageSets/Main/all.txt", b"1"),
        ("voc/JPEGImages/1.jpg", b""),
        ("voc/Annotations/1.xml", bytes),
    ];
    with_files(&files, |folder| {
        if let Ok(voc) = Annotated::voc(&[folder.join("voc")], "all") {
            let _ = (voc.class_names(), voc.skipped());
            read_all(&voc);
        }
    });
}

/// What a detection source was made of.
fn annotated(opened: Result<Annotated, pirl_data::DataError>) {
    match opened {
        Ok(source) => {
            let _ = (source.class_names(), source.skipped(), source.notes());
            read_all(&source);
        }
        Err(error) => drop(error.to_string()),
    }
}

/// An image for annotations that name an image.
const PHOTO: &[u8] = include_bytes!("../tests/golden/decode/grey.jpg");

/// COCO's JSON.
pub(crate) fn coco(bytes: &[u8]) {
    with_files(&[("coco/a.jpg", PHOTO), ("coco/c.json", bytes)], |folder| {
        let folder = folder.join("coco");
        annotated(Annotated::coco(&folder.join("c.json"), Some(&folder)));
    });
}

/// YOLO's text and its YAML.
pub(crate) fn yolo(bytes: &[u8]) {
    for (text, names) in [(bytes, &b"names: [a, b]"[..]), (b"0 0.5 0.5 1 1", bytes)] {
        let files = [
            ("yolo/a.jpg", PHOTO),
            ("yolo/a.txt", text),
            ("yolo/data.yaml", names),
        ];
        with_files(&files, |folder| {
            annotated(Annotated::yolo(&folder.join("yolo"), None))
        });
    }
}

/// CVAT's XML.
pub(crate) fn cvat(bytes: &[u8]) {
    with_files(&[("cvat/a.jpg", PHOTO), ("cvat/c.xml", bytes)], |folder| {
        let folder = folder.join("cvat");
        annotated(Annotated::cvat(&folder.join("c.xml"), Some(&folder)));
    });
}

/// A tar archive.
pub(crate) fn tar(bytes: &[u8]) {
    with_files(&[("x.tar", bytes)], |folder| {
        if let Ok(source) = WebDataset::open(folder.join("x.tar")) {
            let _ = (source.class_names(), source.skipped());
            read_all(&source);
        }
    });
}

/// A Parquet file.
#[cfg(feature = "parquet")]
pub(crate) fn parquet(bytes: &[u8]) {
    with_files(&[("x.parquet", bytes)], |folder| {
        let columns = pirl_data::Columns::default();
        if let Ok(source) = pirl_data::Parquet::open(folder.join("x.parquet"), None, &columns) {
            let _ = (source.class_names(), source.skipped());
            read_all(&source);
        }
    });
}

/// The images of MNIST's format, and the labels as well.
pub(crate) fn idx(bytes: &[u8]) {
    let half = bytes.len() / 2;
    let (images, labels) = bytes.split_at(half);
    for (images, labels) in [(bytes, &b"\0\0\x08\x01\0\0\0\x01\0"[..]), (images, labels)] {
        let files = [
            ("idx/train-images-idx3-ubyte", images),
            ("idx/train-labels-idx1-ubyte", labels),
        ];
        with_files(&files, |folder| {
            if let Ok(idx) = Idx::open(folder.join("idx"), Split::Train) {
                read_all(&idx);
            }
        });
    }
    // The same, zipped.
    let files: [(&str, &[u8]); 2] = [
        ("zip/train-images-idx3-ubyte.gz", bytes),
        ("zip/train-labels-idx1-ubyte", b"\0\0\x08\x01\0\0\0\x01\0"),
    ];
    with_files(&files, |folder| {
        let _ = Idx::open(folder.join("zip"), Split::Train);
    });
}

/// The binary CIFAR-10 and CIFAR-100.
pub(crate) fn cifar(bytes: &[u8]) {
    let files = [("cifar/test_batch.bin", bytes), ("cifar/test.bin", bytes)];
    with_files(&files, |folder| {
        let folder = folder.join("cifar");
        if let Ok(ten) = Cifar::ten(&folder, Split::Test) {
            read_all(&ten);
        }
        if let Ok(hundred) = Cifar::hundred(&folder, Split::Test) {
            read_all(&hundred);
        }
    });
}

/// A list file. The images it names are not read: they might be any file of this machine.
pub(crate) fn list(bytes: &[u8]) {
    with_files(&[("list.txt", bytes)], |folder| {
        if let Ok(list) = List::open(folder.join("list.txt")) {
            let _ = (list.len(), list.class_names());
        }
    });
}

/// The names of classes, and an image set of VOC. The images it names are not read, as those of a list.
pub(crate) fn names(bytes: &[u8]) {
    let files: [(&str, &[u8]); 5] = [
        ("names/test_batch.bin", &[0; 3073]),
        ("names/batches.meta.txt", bytes),
        ("set/ImageSets/Main/some.txt", bytes),
        ("set/JPEGImages/1.jpg", PHOTO),
        ("set/Annotations/1.xml", b"<annotation></annotation>"),
    ];
    with_files(&files, |folder| {
        if let Ok(cifar) = Cifar::ten(folder.join("names"), Split::Test) {
            let _ = (cifar.class_names(), cifar.read(0));
        }
        if let Ok(voc) = Annotated::voc(&[folder.join("set")], "some") {
            let _ = (voc.len(), voc.class_names(), voc.skipped());
        }
    });
}

/// An image of other channels than RGB, or of more than 8 bits.
pub(crate) fn channels(bytes: &[u8]) {
    let range = Depth::Range {
        least: -100.0,
        most: 4000.0,
    };
    for (channels, depth) in [(1, Depth::Upper), (3, range), (4, Depth::Image), (5, range)] {
        if let Ok(image) = Image::decode_channels(bytes, channels, depth) {
            assert!(image.check().is_ok() && image.channels == channels);
        }
    }
}

/// An image file.
pub(crate) fn image(bytes: &[u8]) {
    if let Ok(image) = Image::decode(bytes) {
        assert_eq!(
            image.pixels.len(),
            image.width * image.height * image.channels
        );
    }
}
