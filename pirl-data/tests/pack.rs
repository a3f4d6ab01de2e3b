//! Packing and reading back: nothing lost, nothing trusted, nothing half-written.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use common::{Samples, jpeg, list_dir, picture, png};
use pirl_data::transform::{Crop, Resizer, resize};
use pirl_data::{
    DataError, Encoding, Image, ImageFolder, Pack, PackOptions, PackReport, Source, pack,
};
use proptest::prelude::*;
use safetensors::SafeTensors;
use tempfile::TempDir;

fn write(source: &dyn Source, output: &Path, options: &PackOptions) -> PackReport {
    pack(source, output, options, &mut |_, _| {}).expect("packs")
}

fn open_error(path: &Path) -> String {
    Pack::open(path).expect_err("must not open").to_string()
}

/// A pack of twelve labelled grey 2 x 2 images in three shards or one.
fn small_pack(dir: &Path, shard_bytes: u64) -> PackReport {
    let options = PackOptions {
        shard_bytes,
        ..PackOptions::default()
    };
    write(&Samples::raw(12, 3), &dir.join("set"), &options)
}

/// Changes one 64-bit word of a tensor of a pack file.
fn poke(path: &Path, tensor: &str, index: usize, value: u64) {
    let mut bytes = fs::read(path).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let start = 8 + header + metadata.info(tensor).unwrap().data_offsets.0 + 8 * index;
    bytes[start..start + 8].copy_from_slice(&value.to_le_bytes());
    fs::write(path, bytes).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Every sample and label comes back, and the cut into shards changes nothing else.
    #[test]
    fn round_trip(count in 1_usize..24, classes in 0_u32..4, shard_bytes in 1_u64..200) {
        let dir = TempDir::new().unwrap();
        let source = Samples::raw(count, classes);
        let options = PackOptions { shard_bytes, ..PackOptions::default() };
        let report = write(&source, &dir.path().join("cut"), &options);
        let whole = write(&source, &dir.path().join("whole"), &PackOptions::default());
        prop_assert_eq!(report.packed, count);
        prop_assert_eq!(&report.fingerprint, &whole.fingerprint);
        let cut = Pack::open(dir.path().join("cut")).unwrap();
        let whole = Pack::open(dir.path().join("whole.safetensors")).unwrap();
        prop_assert_eq!(cut.len(), count);
        prop_assert_eq!(cut.paths().len(), count.div_ceil((shard_bytes as usize / 4).max(1)));
        prop_assert_eq!(cut.class_names(), source.class_names());
        prop_assert_eq!(cut.labels().is_some(), classes > 0);
        for index in 0..count {
            let sample = source.read(index).unwrap();
            prop_assert_eq!(cut.bytes(index), Some(&*sample.bytes));
            prop_assert_eq!(whole.bytes(index), Some(&*sample.bytes));
            prop_assert_eq!(cut.label(index), sample.label);
            prop_assert_eq!(whole.label(index), sample.label);
        }
        prop_assert_eq!(cut.bytes(count), None);
        prop_assert_eq!(cut.label(count), None);
    }

    /// A byte changed or cut off anywhere is an error or is read, and never panics.
    #[test]
    fn damage_never_panics(at in 0_usize..4000, value: u8, cut: bool) {
        let dir = TempDir::new().unwrap();
        let path = small_pack(dir.path(), 1 << 30).shards[0].clone();
        let mut bytes = fs::read(&path).unwrap();
        let at = at % bytes.len();
        if cut { bytes.truncate(at) } else { bytes[at] = value }
        fs::write(&path, &bytes).unwrap();
        let opened = Pack::open(&path);
        prop_assert!(!cut || opened.is_err());
        if let Ok(pack) = opened {
            for index in 0..pack.len() {
                let _ = pack.label(index);
                let _ = pack.decode(index);
            }
        }
    }
}

#[test]
fn any_safetensors_reader_opens_it() {
    let dir = TempDir::new().unwrap();
    let report = small_pack(dir.path(), 1 << 30);
    let bytes = fs::read(&report.shards[0]).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.tensor("bytes").unwrap().shape(), [48]);
    assert_eq!(tensors.tensor("offsets").unwrap().shape(), [13]);
    let labels = tensors.tensor("labels").unwrap();
    assert_eq!(labels.shape(), [12]);
    assert_eq!(labels.data()[8], 1, "sample 1 has label 1");
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    for name in ["offsets", "labels"] {
        let start = 8 + header + metadata.info(name).unwrap().data_offsets.0;
        assert_eq!(start % 8, 0, "{name} is aligned");
    }
    assert_eq!(report.bytes, bytes.len() as u64);
}

#[test]
fn fingerprint_depends_on_bytes_and_labels() {
    let dir = TempDir::new().unwrap();
    let print = |source: &Samples, name: &str| {
        write(source, &dir.path().join(name), &PackOptions::default()).fingerprint
    };
    let original = print(&Samples::raw(5, 2), "a");
    let mut bytes = Samples::raw(5, 2);
    bytes.samples[4].0[3] ^= 1;
    let mut labels = Samples::raw(5, 2);
    labels.samples[4].2 = Some(1);
    let mut names = Samples::raw(5, 2);
    names.class_names[1].push('x');
    for (other, name) in [(bytes, "b"), (labels, "c"), (names, "d")] {
        assert_ne!(original, print(&other, name), "{name}");
    }
    assert_eq!(original, print(&Samples::raw(5, 2), "e"));
}

#[test]
fn any_shard_opens_the_set_and_a_missing_one_is_named() {
    let dir = TempDir::new().unwrap();
    let report = small_pack(dir.path(), 16);
    assert_eq!(
        list_dir(dir.path()),
        [
            "set-00000-of-00003.safetensors",
            "set-00001-of-00003.safetensors",
            "set-00002-of-00003.safetensors"
        ]
    );
    for shard in &report.shards {
        assert_eq!(Pack::open(shard).unwrap().len(), 12);
    }
    // Another pack's shard under this name.
    let other = TempDir::new().unwrap();
    let mut source = Samples::raw(12, 3);
    source.samples[0].0[0] ^= 1;
    let options = PackOptions {
        shard_bytes: 16,
        ..PackOptions::default()
    };
    write(&source, &other.path().join("set"), &options);
    let name = "set-00001-of-00003.safetensors";
    let kept = fs::read(&report.shards[1]).unwrap();
    fs::copy(other.path().join(name), &report.shards[1]).unwrap();
    let error = open_error(&dir.path().join("set"));
    assert!(
        error.contains(name) && error.contains("different packs"),
        "{error}"
    );
    fs::write(&report.shards[1], kept).unwrap();
    assert!(Pack::open(dir.path().join("set")).is_ok());

    fs::remove_file(&report.shards[1]).unwrap();
    let error = open_error(&dir.path().join("set"));
    assert!(error.contains(name) && error.contains("missing"), "{error}");
}

#[test]
fn a_new_pack_replaces_the_old_set() {
    let dir = TempDir::new().unwrap();
    small_pack(dir.path(), 16);
    let mapped = Pack::open(dir.path().join("set")).unwrap();
    let before = mapped.bytes(11).unwrap().to_vec();
    small_pack(dir.path(), 1 << 30);
    assert_eq!(list_dir(dir.path()), ["set.safetensors"]);
    assert_eq!(
        mapped.bytes(11),
        Some(&*before),
        "an open pack keeps its files"
    );
}

#[test]
fn a_pack_cut_off_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = &small_pack(dir.path(), 1 << 30).shards[0];
    let bytes = fs::read(path).unwrap();
    for keep in [0, 4, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(path, &bytes[..keep]).unwrap();
        let error = open_error(path);
        assert!(
            error.contains("set.safetensors") && error.contains("cut off"),
            "{error}"
        );
    }
}

#[test]
fn offsets_are_not_trusted() {
    for (index, value, expected) in [
        (5, 3, "run backwards: offset 5 is 3 after 16"),
        (12, 49, "offset 12 is 49, past the end of its 48 bytes"),
        (12, u64::MAX, "past the end"),
        (0, 1, "the first of its bytes of samples is number 1"),
        (5, 21, "sample 4 is not 2 x 2 x 1 bytes"),
    ] {
        let dir = TempDir::new().unwrap();
        let path = &small_pack(dir.path(), 1 << 30).shards[0];
        poke(path, "offsets", index, value);
        let error = open_error(path);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn labels_beyond_the_classes_are_refused() {
    for value in [3, u64::MAX] {
        let dir = TempDir::new().unwrap();
        let path = &small_pack(dir.path(), 1 << 30).shards[0];
        poke(path, "labels", 7, value);
        let error = open_error(path);
        let expected = format!(
            "sample 7 has label {}, but there are 3 classes",
            value as i64
        );
        assert!(error.contains(&expected), "{error}");
    }
    let mut source = Samples::raw(4, 3);
    source.samples[2].2 = Some(3);
    let dir = TempDir::new().unwrap();
    let result = pack(
        &source,
        &dir.path().join("set"),
        &PackOptions::default(),
        &mut |_, _| {},
    );
    assert!(matches!(result, Err(DataError::Shards { .. })));
    assert!(list_dir(dir.path()).is_empty());
}

#[test]
fn other_safetensors_files_are_no_packs() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.safetensors");
    let view =
        safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![2], &[1, 2]).unwrap();
    fs::write(&path, safetensors::serialize([("w", view)], None).unwrap()).unwrap();
    assert!(open_error(&path).contains("not a pack"));
    assert!(open_error(&dir.path().join("absent")).contains("absent.safetensors"));
}

#[test]
fn undecodable_images_are_skipped_and_named_or_fail_when_strict() {
    let images = TempDir::new().unwrap();
    let good = jpeg(&picture(24, 16));
    fs::write(images.path().join("a.jpg"), &good).unwrap();
    fs::write(images.path().join("b.jpg"), &good[..good.len() - 10]).unwrap();
    fs::write(images.path().join("c.jpg"), &good[..good.len() / 2]).unwrap();
    fs::write(images.path().join("d.jpg"), "once upon a time").unwrap();
    fs::write(images.path().join("e.jpg"), "").unwrap();
    let drawing = png(&picture(8, 8));
    fs::write(images.path().join("f.png"), &drawing).unwrap();
    fs::write(images.path().join("g.png"), &drawing[..drawing.len() - 20]).unwrap();
    let folder = ImageFolder::open(images.path()).unwrap();

    let dir = TempDir::new().unwrap();
    let report = write(&folder, &dir.path().join("set"), &PackOptions::default());
    assert_eq!(report.packed, 2);
    assert_eq!(report.encoding, Encoding::Mixed);
    let names: Vec<_> = report.skipped.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["b.jpg", "c.jpg", "d.jpg", "e.jpg", "g.png"]);
    assert!(
        report.skipped[0].reason.contains("truncated"),
        "{:?}",
        report.skipped
    );
    assert!(
        report.skipped[2].reason.contains("once upon a"),
        "{:?}",
        report.skipped
    );
    let packed = Pack::open(dir.path().join("set")).unwrap();
    assert_eq!(packed.bytes(0), Some(&*good));
    assert_eq!(packed.decode(1).unwrap(), picture(8, 8));

    let strict = PackOptions {
        strict: true,
        ..PackOptions::default()
    };
    let error = pack(&folder, &dir.path().join("strict"), &strict, &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("b.jpg"), "{error}");
    assert_eq!(list_dir(dir.path()), ["set.safetensors"]);
}

#[test]
fn failures_leave_nothing_behind() {
    let images = TempDir::new().unwrap();
    fs::write(images.path().join("a.jpg"), "text").unwrap();
    let nothing = ImageFolder::open(images.path()).unwrap();
    let dir = TempDir::new().unwrap();
    let output = dir.path().join("set");
    let result = pack(&nothing, &output, &PackOptions::default(), &mut |_, _| {});
    assert!(matches!(result, Err(DataError::Empty { .. })));
    assert!(list_dir(dir.path()).is_empty());

    let stop = Some(Arc::new(AtomicBool::new(true)));
    let options = PackOptions {
        stop,
        ..PackOptions::default()
    };
    let result = pack(&Samples::raw(500, 2), &output, &options, &mut |_, _| {});
    assert!(matches!(result, Err(DataError::Stopped { .. })));
    assert!(list_dir(dir.path()).is_empty());

    // A folder in the way of the last rename: nothing appears, and the work done is kept.
    let obstacle = dir.path().join("set-00002-of-00003.safetensors");
    fs::create_dir(&obstacle).unwrap();
    let options = PackOptions {
        shard_bytes: 16,
        ..PackOptions::default()
    };
    let result = pack(&Samples::raw(12, 3), &output, &options, &mut |_, _| {});
    assert!(matches!(result, Err(DataError::Io { .. })), "{result:?}");
    assert_eq!(
        list_dir(dir.path()),
        ["set-00002-of-00003.safetensors", "set.partial"]
    );
    fs::remove_dir(obstacle).unwrap();
    let report = write(&Samples::raw(12, 3), &output, &options);
    assert_eq!((report.packed, report.resumed), (12, 12));
    assert_eq!(list_dir(dir.path()).len(), 3);
    assert_eq!(Pack::open(&output).unwrap().len(), 12);
}

/// Everything in a folder.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let read = |name: String| {
        let bytes = fs::read(folder.join(&name)).unwrap();
        (name, bytes)
    };
    list_dir(folder).into_iter().map(read).collect()
}

/// JPEG and PNG files of all sizes, some broken, in two classes.
fn mixed_folder() -> TempDir {
    let images = TempDir::new().unwrap();
    for class in ["a", "b"] {
        fs::create_dir(images.path().join(class)).unwrap();
        for index in 0..30 {
            let image = picture(20 + index * 3, 60 - index);
            let bytes = match index % 7 {
                0 => png(&image),
                3 => b"no image".to_vec(),
                _ => jpeg(&image),
            };
            let name = format!("{class}/{index:02}.jpg");
            fs::write(images.path().join(name), bytes).unwrap();
        }
    }
    images
}

#[test]
fn a_packing_interrupted_anywhere_goes_on_and_comes_out_the_same() {
    let images = mixed_folder();
    let source = ImageFolder::open(images.path()).unwrap();
    let options = PackOptions {
        shard_bytes: 8_000,
        resize_shorter: Some(32),
        ..PackOptions::default()
    };
    let whole = TempDir::new().unwrap();
    let expected = write(&source, &whole.path().join("set"), &options);
    assert!(expected.shards.len() > 3 && expected.skipped.len() == 8);
    let mut kept_some = 0;
    for stop_at in [1, 7, 25, 40, 59, 60] {
        let dir = TempDir::new().unwrap();
        let output = dir.path().join("set");
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = PackOptions {
            stop: Some(Arc::clone(&stop)),
            ..options.clone()
        };
        let result = pack(&source, &output, &stopping, &mut |done, _| {
            stop.store(done == stop_at, std::sync::atomic::Ordering::Relaxed);
        });
        assert!(matches!(result, Err(DataError::Stopped { done, .. }) if done == stop_at));
        assert!(Pack::open(&output).is_err());
        let report = write(&source, &output, &options);
        assert!(report.resumed < stop_at);
        kept_some += usize::from(report.resumed > 0);
        assert_eq!(report.skipped, expected.skipped);
        assert_eq!(report.fingerprint, expected.fingerprint);
        assert!(contents(dir.path()) == contents(whole.path()), "{stop_at}");
    }
    assert!(kept_some >= 3);
}

#[test]
fn interrupted_work_is_taken_up_by_the_same_work_alone() {
    let dir = TempDir::new().unwrap();
    let output = dir.path().join("set");
    let stop = Some(Arc::new(AtomicBool::new(false)));
    let options = PackOptions {
        shard_bytes: 16,
        ..PackOptions::default()
    };
    let stopping = PackOptions {
        stop: stop.clone(),
        ..options.clone()
    };
    let source = |count| {
        let mut source = Samples::raw(count, 3);
        source.first = 100;
        source
    };
    let interrupted = pack(&source(12), &output, &stopping, &mut |done, _| {
        let stop = stop.as_ref().unwrap();
        stop.store(done == 9, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(interrupted.is_err());
    let refused = |source: &Samples, options: &PackOptions| {
        let error = pack(source, &output, options, &mut |_, _| {}).unwrap_err();
        assert!(error.to_string().contains("begin anew"), "{error}");
        assert!(error.to_string().contains("partial"), "{error}");
    };
    refused(&source(13), &options);
    refused(&source(12), &PackOptions::default());
    // As many images, but other ones.
    refused(&Samples::raw(12, 3), &options);
    assert_eq!(list_dir(dir.path()), ["set.partial"]);
    let report = write(&source(12), &output, &options);
    assert_eq!((report.resumed, report.packed), (8, 12));
    assert!(!dir.path().join("set.partial").exists());
}

#[test]
fn threads_change_nothing() {
    let images = mixed_folder();
    let source = ImageFolder::open(images.path()).unwrap();
    let options = PackOptions {
        shard_bytes: 8_000,
        resize_shorter: Some(32),
        quality: Some(80),
        ..PackOptions::default()
    };
    let packed = [1, 2, 8].map(|threads| {
        let dir = TempDir::new().unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let output = dir.path().join("set");
        pool.unwrap().install(|| write(&source, &output, &options));
        contents(dir.path())
    });
    assert!(packed[0] == packed[1] && packed[0] == packed[2]);
}

#[test]
fn quality_encodes_every_jpeg_again() {
    let images = TempDir::new().unwrap();
    let (photo, drawing) = (jpeg(&picture(64, 48)), png(&picture(64, 48)));
    fs::write(images.path().join("a.jpg"), &photo).unwrap();
    fs::write(images.path().join("b.png"), &drawing).unwrap();
    let source = ImageFolder::open(images.path()).unwrap();
    let dir = TempDir::new().unwrap();
    let with = |quality| {
        let options = PackOptions {
            quality,
            ..PackOptions::default()
        };
        write(&source, &dir.path().join("set"), &options);
        Pack::open(dir.path().join("set")).unwrap()
    };
    assert_eq!(with(None).bytes(0), Some(&*photo));
    let (low, high) = (with(Some(20)), with(Some(90)));
    assert!(low.bytes(0).unwrap().len() < high.bytes(0).unwrap().len());
    assert_eq!(low.bytes(1), Some(&*drawing));
    let (found, wanted) = (high.decode(0).unwrap(), picture(64, 48));
    let differences = found.pixels.iter().zip(&wanted.pixels);
    assert!(differences.map(|(a, b)| a.abs_diff(*b)).max() < Some(25));
    let wrong = PackOptions {
        quality: Some(0),
        ..PackOptions::default()
    };
    let output = dir.path().join("wrong");
    assert!(pack(&source, &output, &wrong, &mut |_, _| {}).is_err());
}

#[test]
fn colours_at_half_the_resolution_are_averages() {
    // Red and blue columns in turn: of every other column alone, all would be red.
    let columns = (0..64 * 64).flat_map(|at| {
        if at % 2 == 0 {
            [200, 0, 0]
        } else {
            [0, 0, 200]
        }
    });
    let stripes = Image::new(64, 64, columns.collect()).unwrap();
    let images = TempDir::new().unwrap();
    fs::write(images.path().join("a.jpg"), jpeg(&stripes)).unwrap();
    let dir = TempDir::new().unwrap();
    let options = PackOptions {
        quality: Some(100),
        ..PackOptions::default()
    };
    let source = ImageFolder::open(images.path()).unwrap();
    write(&source, &dir.path().join("set"), &options);
    let found = Pack::open(dir.path().join("set"))
        .unwrap()
        .decode(0)
        .unwrap();
    for channel in [0, 2] {
        let values = found.pixels.iter().skip(channel).step_by(3);
        let mean = values.map(|value| f64::from(*value)).sum::<f64>() / 4096.0;
        assert!((85.0..115.0).contains(&mean), "{channel}: {mean}");
    }
}

fn luma(image: &Image) -> Vec<f64> {
    let pixels = image.pixels.chunks(3);
    let values = pixels.map(|pixel| [pixel[0], pixel[1], pixel[2]].map(f64::from));
    values
        .map(|[red, green, blue]| 0.299 * red + 0.587 * green + 0.114 * blue)
        .collect()
}

fn mean_difference(a: &[f64], b: &[f64]) -> f64 {
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.sum::<f64>() / a.len() as f64
}

/// Every kind of JPEG of the decoder's test: sampled 4:4:4 to 4:2:0, grey, CMYK, turned by Exif.
#[test]
fn a_jpeg_made_smaller_is_the_decoded_image_made_smaller() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/decode");
    let images = TempDir::new().unwrap();
    let mut names = list_dir(&golden);
    names.retain(|name| name.ends_with(".jpg"));
    for name in &names {
        fs::copy(golden.join(name), images.path().join(name)).unwrap();
    }
    let source = ImageFolder::open(images.path()).unwrap();
    let dir = TempDir::new().unwrap();
    for target in [None, Some(7), Some(10)] {
        let options = PackOptions {
            resize_shorter: target,
            quality: Some(98),
            ..PackOptions::default()
        };
        let report = write(&source, &dir.path().join("set"), &options);
        assert_eq!((report.packed, report.skipped.len()), (names.len(), 0));
        let packed = Pack::open(dir.path().join("set")).unwrap();
        for (index, name) in names.iter().enumerate() {
            let found = packed.decode(index).unwrap();
            let image = Image::decode(&fs::read(golden.join(name)).unwrap()).unwrap();
            let mut wanted = image.clone();
            if (found.width, found.height) != (image.width, image.height) {
                let whole = Crop {
                    left: 0,
                    top: 0,
                    width: image.width,
                    height: image.height,
                };
                let (width, height) = (found.width, found.height);
                let mut resizer = Resizer::default();
                resize(&mut resizer, &image, whole, width, height, &mut wanted).unwrap();
            }
            let shorter = image.width.min(image.height);
            let expected = target.map_or(shorter, |target| shorter.min(target as usize));
            assert_eq!(found.width.min(found.height), expected, "{name}");
            // Colours lose half their resolution, brightness and each colour's mean stay.
            let apart = mean_difference(&luma(&found), &luma(&wanted));
            assert!(apart < 3.0, "{name}, {target:?}: brightness {apart}");
            for channel in 0..3 {
                let mean = |image: &Image| {
                    let values = image.pixels.iter().skip(channel).step_by(3);
                    let sum: f64 = values.map(|value| f64::from(*value)).sum();
                    sum / (image.width * image.height) as f64
                };
                let apart = (mean(&found) - mean(&wanted)).abs();
                assert!(apart < 3.0, "{name}, {target:?}: channel {channel} {apart}");
            }
        }
    }
}

#[test]
fn an_unwritable_output_is_found_before_anything_is_read() {
    let dir = TempDir::new().unwrap();
    let output = dir.path().join("absent").join("set");
    let mut calls = 0;
    let result = pack(
        &Samples::raw(9, 0),
        &output,
        &PackOptions::default(),
        &mut |_, _| calls += 1,
    );
    let error = result.unwrap_err().to_string();
    assert!(error.contains("absent"), "{error}");
    assert_eq!(calls, 0);
    assert!(list_dir(dir.path()).is_empty());
}

#[test]
fn resizing_shrinks_the_shorter_side_and_only_that() {
    let images = TempDir::new().unwrap();
    fs::write(images.path().join("a.jpg"), jpeg(&picture(90, 61))).unwrap();
    let small = png(&picture(20, 50));
    fs::write(images.path().join("b.png"), &small).unwrap();
    fs::write(images.path().join("c.png"), png(&picture(40, 80))).unwrap();
    let folder = ImageFolder::open(images.path()).unwrap();
    let dir = TempDir::new().unwrap();
    let options = PackOptions {
        resize_shorter: Some(30),
        ..PackOptions::default()
    };
    write(&folder, &dir.path().join("set"), &options);
    let packed = Pack::open(dir.path().join("set")).unwrap();
    let size = |index| {
        let image = packed.decode(index).unwrap();
        (image.width, image.height)
    };
    // torchvision: int(30 * 90 / 61) = 44.
    assert_eq!(size(0), (44, 30));
    assert_eq!(packed.bytes(1), Some(&*small), "nothing is enlarged");
    assert_eq!(size(2), (30, 60));
    let mean = |image: &pirl_data::Image| {
        image.pixels.iter().map(|&p| f64::from(p)).sum::<f64>() / image.pixels.len() as f64
    };
    let (before, after) = (mean(&picture(40, 80)), mean(&packed.decode(2).unwrap()));
    assert!((before - after).abs() < 2.0, "{before} {after}");
}

#[test]
fn subsets_are_seeded_ordered_and_have_their_own_fingerprint() {
    let dir = TempDir::new().unwrap();
    let source = Samples::raw(100, 5);
    write(&source, &dir.path().join("set"), &PackOptions::default());
    let whole = Pack::open(dir.path().join("set")).unwrap();
    let subset = whole.subset(30, 1).unwrap();
    assert_eq!(subset.len(), 30);
    let contents = |pack: &Pack| -> Vec<Vec<u8>> {
        (0..pack.len())
            .map(|index| pack.bytes(index).unwrap().to_vec())
            .collect()
    };
    let all = contents(&whole);
    let places: Vec<_> = contents(&subset)
        .iter()
        .map(|bytes| all.iter().position(|other| other == bytes).unwrap())
        .collect();
    assert!(places.is_sorted_by(|a, b| a < b), "{places:?}");
    for (index, place) in places.iter().enumerate() {
        assert_eq!(subset.label(index), whole.label(*place));
    }
    assert_eq!(contents(&subset), contents(&whole.subset(30, 1).unwrap()));
    assert_ne!(contents(&subset), contents(&whole.subset(30, 2).unwrap()));
    assert_ne!(subset.fingerprint(), whole.fingerprint());
    assert_ne!(
        subset.fingerprint(),
        whole.subset(30, 2).unwrap().fingerprint()
    );
    assert_eq!(
        subset.fingerprint(),
        whole.subset(30, 1).unwrap().fingerprint()
    );
    assert_eq!(subset.bytes(30), None);
    assert!(whole.subset(101, 1).is_err());
    assert_eq!(
        whole.subset(0, 1).unwrap().fingerprint(),
        whole.fingerprint()
    );
}

#[test]
fn verifying_decodes_all_and_finds_a_changed_byte() {
    let images = mixed_folder();
    let source = ImageFolder::open(images.path()).unwrap();
    let dir = TempDir::new().unwrap();
    let options = PackOptions {
        shard_bytes: 20_000,
        ..PackOptions::default()
    };
    let report = write(&source, &dir.path().join("set"), &options);
    let open = || Pack::open(dir.path().join("set")).unwrap();
    let verify = || open().verify(&mut |_, _| {}, &|| false).unwrap();
    let found = verify();
    assert!(found.broken.is_empty());
    assert_eq!(found.fingerprint, report.fingerprint);
    assert_eq!(found.encodings["jpeg"] + found.encodings["png"], 52);
    assert_eq!(found.encodings["png"], 10);
    assert_eq!(found.shorter_sides.values().sum::<usize>(), 52);
    assert_eq!(found.side_range, (20, 49));
    assert_eq!(
        found.shorter_sides.keys().copied().collect::<Vec<_>>(),
        [16, 32]
    );

    // One byte in the middle of one sample's data.
    let path = &report.shards[1];
    let mut bytes = fs::read(path).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let samples = metadata.info("bytes").unwrap().data_offsets;
    let at = 8 + header + (samples.0 + samples.1) / 2;
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
    assert_ne!(verify().fingerprint, report.fingerprint);
    assert!(
        open()
            .subset(5, 0)
            .unwrap()
            .verify(&mut |_, _| {}, &|| false)
            .is_err()
    );
    let stopped = open().verify(&mut |_, _| {}, &|| true);
    assert!(matches!(stopped, Err(DataError::Stopped { .. })));
}
