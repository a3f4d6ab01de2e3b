//! Reading packs back: nothing lost, nothing trusted.

mod common;

use std::fs;
use std::path::Path;

use common::{Samples, list_dir, mixed_folder, write};
use pirl_data::{
    DataError, Encoding, ImageFolder, ImageStatistics, Pack, PackOptions, PackReport, Sides,
    Source, pack,
};
use proptest::prelude::*;
use safetensors::SafeTensors;
use tempfile::TempDir;

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
            prop_assert_eq!(cut.name(index), Some(&*sample.name));
            prop_assert_eq!(whole.name(index), Some(&*sample.name));
        }
        prop_assert!(cut.has_names() && cut.name(count).is_none());
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
                let _ = pack.name(index);
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
    let names = tensors.tensor("names").unwrap();
    assert!(names.data().starts_with(b"sample 0sample 1sample 2"));
    for name in ["offsets", "labels", "name_offsets"] {
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
    let renamed = Samples {
        first: 7,
        ..Samples::raw(5, 2)
    };
    assert_eq!(original, print(&renamed, "e"));
}

/// The pack at `path` without the tensors of names, as earlier versions wrote it.
fn forget_names(path: &Path) {
    let bytes = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let kept = tensors.tensors().into_iter();
    let kept = kept.filter(|(name, _)| !name.contains("name"));
    let metadata = header.metadata().clone();
    fs::write(path, safetensors::serialize(kept, metadata).unwrap()).unwrap();
}

#[test]
fn names_are_those_of_the_files_and_a_pack_without_them_is_the_same_pack() {
    let dir = TempDir::new().unwrap();
    let folder = mixed_folder();
    let source = ImageFolder::open(folder.path()).unwrap();
    let options = PackOptions {
        shard_bytes: 20_000,
        ..PackOptions::default()
    };
    let report = write(&source, &dir.path().join("set"), &options);
    assert!(report.shards.len() > 1);
    let pack = Pack::open(dir.path().join("set")).unwrap();
    let names: Vec<&str> = (0..pack.len()).map(|at| pack.name(at).unwrap()).collect();
    // Every seventh, from number 3 on, is no image.
    assert_eq!(names[..4], ["a/00.jpg", "a/01.jpg", "a/02.jpg", "a/04.jpg"]);
    let last = names.len() - 1;
    assert_eq!(names[last], "b/29.jpg");
    let part = pack.select(&[2, last as u32]).unwrap();
    assert_eq!(
        (part.name(0), part.name(1)),
        (Some("a/02.jpg"), Some("b/29.jpg"))
    );
    assert_eq!(part.name(2), None);

    for path in pack.paths() {
        forget_names(path);
    }
    let old = Pack::open(dir.path().join("set")).unwrap();
    assert!(pack.has_names() && !old.has_names() && old.name(0).is_none());
    assert_eq!(old.fingerprint(), pack.fingerprint());
    let found = old.verify(&mut |_, _| {}, &|| false).unwrap();
    assert_eq!(
        (found.broken.len(), &*found.fingerprint),
        (0, pack.fingerprint())
    );
}

#[test]
fn a_damaged_name_is_none_and_verifying_finds_it() {
    for (index, value, wrong) in [
        (5, u64::MAX, vec![4, 5]),
        (5, 4000, vec![4, 5]),
        (0, 9, vec![0]),
    ] {
        let dir = TempDir::new().unwrap();
        let path = small_pack(dir.path(), 1 << 30).shards[0].clone();
        poke(&path, "name_offsets", index, value);
        let pack = Pack::open(&path).unwrap();
        let none: Vec<usize> = (0..12).filter(|at| pack.name(*at).is_none()).collect();
        assert_eq!(none, wrong, "{value}");
        let found = pack.verify(&mut |_, _| {}, &|| false).unwrap();
        assert_eq!(found.broken.len(), wrong.len());
        assert!(found.broken[0].reason.contains("its name"));
    }
    let dir = TempDir::new().unwrap();
    let path = small_pack(dir.path(), 1 << 30).shards[0].clone();
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(8).position(|at| at == b"sample 3").unwrap();
    bytes[at] = 0xFF;
    fs::write(&path, bytes).unwrap();
    let pack = Pack::open(&path).unwrap();
    assert_eq!((pack.name(2), pack.name(3)), (Some("sample 2"), None));
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
fn a_pack_may_be_spread_over_machines() {
    let dir = TempDir::new().unwrap();
    let report = small_pack(dir.path(), 16);
    let whole = Pack::open(dir.path().join("set")).unwrap();
    // The first machine has the first two shards, the second the last two.
    for (machine, shards) in [("a", 0..2), ("b", 1..3)] {
        fs::create_dir(dir.path().join(machine)).unwrap();
        for shard in &report.shards[shards] {
            let to = dir.path().join(machine).join(shard.file_name().unwrap());
            fs::copy(shard, to).unwrap();
        }
    }
    let path = |machine: &str| dir.path().join(machine).join("set");
    let says = |machine: &str| {
        let mut said = None;
        let failed = Pack::open_part(&path(machine), 0, |own| {
            said = Some(own);
            Err(DataError::Exchange("the others have gone".into()))
        });
        assert!(
            failed
                .unwrap_err()
                .to_string()
                .contains("the others have gone")
        );
        said.unwrap()
    };
    let said = vec![says("a"), says("b")];
    let open = |machine: &str, rank| Pack::open_part(&path(machine), rank, |_| Ok(said.clone()));
    let parts = [open("a", 0).unwrap(), open("b", 1).unwrap()];
    for (part, (here, elsewhere)) in parts.iter().zip([(0..8, 2), (4..12, 0)]) {
        assert_eq!((part.len(), part.fingerprint()), (12, whole.fingerprint()));
        let name = report.shards[elsewhere].file_name();
        assert_eq!(part.elsewhere().unwrap().file_name(), name);
        for index in 0..12 {
            let expected = here.contains(&index).then(|| whole.bytes(index).unwrap());
            assert_eq!(part.bytes(index), expected, "sample {index}");
            assert_eq!(part.decode(index).is_ok(), here.contains(&index));
        }
        let missing = 4 * elsewhere;
        let message = part.decode(missing).unwrap_err().to_string();
        let file = name.unwrap().to_str().unwrap();
        assert!(
            message.contains(&format!("sample {missing} is in ")) && message.contains(file),
            "{message}"
        );
        let found = part.here().unwrap();
        assert_eq!(found.len(), 8);
        assert_eq!(found.bytes(0), whole.bytes(here.start));
        assert!(matches!(part.decode(12), Err(DataError::Index { .. })));
    }
    // What both have is shared out, and so is a subset.
    assert_eq!(parts[0].share(), [0, 1, 2, 3, 4, 6]);
    assert_eq!(parts[1].share(), [5, 7, 8, 9, 10, 11]);
    let subset = parts[0].select(&[2, 5, 6, 9]).unwrap();
    assert_eq!(subset.share(), [0, 2]);
    assert_eq!(whole.share().len(), 12);
    assert!(whole.elsewhere().is_none() && whole.here().unwrap().len() == 12);

    let alone = Pack::open_part(&path("a"), 0, |own| Ok(vec![own])).unwrap_err();
    assert_eq!(alone.to_string(), open_error(&path("a")));
    let both = Pack::open_part(&path("a"), 0, |own| Ok(vec![own.clone(), own]));
    let message = both.unwrap_err().to_string();
    assert!(
        message.contains("00002-of-00003.safetensors is missing on every rank"),
        "{message}"
    );
    let mut other = says("b");
    other[8] = 9; // samples of the second shard
    let message = Pack::open_part(&path("a"), 0, |own| Ok(vec![own, other]));
    let message = message.unwrap_err().to_string();
    assert!(
        message.contains("4 samples on rank 0 and 9 on rank 1"),
        "{message}"
    );
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
fn statistics_count_every_image_alike_whatever_its_size() {
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join("images");
    fs::create_dir(&folder).unwrap();
    let picture = |name: &str, (width, height): (u32, u32), left: [u8; 3], right: [u8; 3]| {
        let pixel = |x, _| image::Rgb(if 2 * x < width { left } else { right });
        let picture = image::RgbImage::from_fn(width, height, pixel);
        picture.save(folder.join(name)).unwrap();
    };
    let statistics = |name: &str| {
        let set = dir.path().join(name);
        let source = ImageFolder::open(&folder).unwrap();
        write(&source, &set, &PackOptions::default());
        measure(&Pack::open(set).unwrap(), 500)
    };
    let (black, white) = ([0; 3], [255; 3]);
    picture("a.png", (4, 9), black, white);
    picture("b.png", (60, 50), white, white);
    picture("c.png", (12, 8), black, white);
    let gray = statistics("gray");
    assert_eq!(
        (gray.images, gray.shorter_side.median, gray.gray),
        (3, 8, true)
    );
    // A half of two images and all of one, so 2/3 of the pixels are 1, the others 0.
    near(&gray.mean, &[2.0 / 3.0; 3]);
    near(&gray.std, &[(2.0f64 / 9.0).sqrt(); 3]);

    picture("d.png", (30, 30), [255, 0, 0], [255, 0, 0]);
    let red = statistics("red");
    assert_eq!(
        (red.images, red.shorter_side.median, red.gray),
        (4, 30, false)
    );
    near(&red.mean, &[0.75, 0.5, 0.5]);
}

/// Sums of whole numbers are exact, so what is left is the rounding of a few divisions.
fn near(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    let mut pairs = found.iter().zip(expected);
    assert!(
        pairs.all(|(a, b)| (a - b).abs() < 1e-12),
        "{found:?} {expected:?}"
    );
}

fn measure(pack: &Pack, sample: usize) -> ImageStatistics {
    ImageStatistics::of(pack, sample, &mut |_, _| {}, &|| false).unwrap()
}

/// `golden/make_statistics.py` measures the files of `golden/decode` that do not depend on a decoder's
/// rounding.
#[test]
fn statistics_are_those_of_numpy() {
    #[derive(serde::Deserialize)]
    struct Golden {
        images: Vec<String>,
        mean: Vec<f64>,
        std: Vec<f64>,
        shorter_sides: Vec<usize>,
        longer_sides: Vec<usize>,
    }
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let expected = fs::read_to_string(golden.join("statistics.json")).unwrap();
    let expected: Golden = serde_json::from_str(&expected).unwrap();
    let file = |name: &String| (fs::read(golden.join(name)).unwrap(), Encoding::Png, None);
    let mut source = Samples::raw(0, 0);
    source.samples = expected.images.iter().map(file).collect();
    let dir = TempDir::new().unwrap();
    write(&source, &dir.path().join("set"), &PackOptions::default());
    let pack = Pack::open(dir.path().join("set")).unwrap();
    let found = measure(&pack, 0);
    near(&found.mean, &expected.mean);
    near(&found.std, &expected.std);
    let sides = |sides: Sides| vec![sides.least, sides.median, sides.greatest];
    assert_eq!(sides(found.shorter_side), expected.shorter_sides);
    assert_eq!(sides(found.longer_side), expected.longer_sides);
    assert_eq!((found.images, found.duplicates), (source.samples.len(), 0));
    assert!(!found.gray && found.broken.is_empty());
    let lists = found.to_toml();
    assert!(lists.starts_with("[data]\nmean = [0."), "{lists}");
}

#[test]
fn statistics_name_what_is_broken_and_count_what_is_there_twice() {
    let dir = TempDir::new().unwrap();
    let mut source = Samples::raw(40, 0);
    source.samples[7] = source.samples[3].clone();
    source.samples[39] = source.samples[3].clone();
    write(&source, &dir.path().join("set"), &PackOptions::default());
    let pack = Pack::open(dir.path().join("set")).unwrap();
    let all = measure(&pack, 0);
    assert_eq!((all.images, all.duplicates), (40, 2));
    assert_eq!(all, measure(&pack, 99));
    // Evenly spaced: the even numbers.
    assert_eq!(measure(&pack, 20).duplicates, 0);
    let stopped = ImageStatistics::of(&pack, 0, &mut |_, _| {}, &|| true);
    assert!(matches!(stopped, Err(DataError::Stopped { .. })));

    // What was whole when it was packed.
    let folder = mixed_folder();
    let set = dir.path().join("files");
    write(
        &ImageFolder::open(folder.path()).unwrap(),
        &set,
        &PackOptions::default(),
    );
    let path = Pack::open(&set).unwrap().paths()[0].clone();
    let mut bytes = fs::read(&path).unwrap();
    let first = bytes
        .windows(4)
        .position(|window| window == b"IDAT")
        .unwrap();
    bytes[first + 9] ^= 0xFF;
    fs::write(&path, bytes).unwrap();
    let pack = Pack::open(&set).unwrap();
    let found = measure(&pack, 0);
    assert_eq!((found.images, found.broken.len()), (pack.len(), 1));
    assert!(found.broken[0].name.starts_with("sample 0 ("), "{found:?}");
    let text = found.describe(&pack, &pack.counts().unwrap());
    assert!(
        text.contains("sample 0") && text.contains("2, of 26 to 26 images"),
        "{text}"
    );
}

#[test]
fn a_split_takes_its_share_of_every_class() {
    let dir = TempDir::new().unwrap();
    write(
        &Samples::raw(100, 5),
        &dir.path().join("set"),
        &PackOptions::default(),
    );
    let whole = Pack::open(dir.path().join("set")).unwrap();
    let contents = |pack: &Pack| -> Vec<Vec<u8>> {
        (0..pack.len())
            .map(|index| pack.bytes(index).unwrap().to_vec())
            .collect()
    };
    let (kept, drawn) = whole.split(0.2, 1).unwrap();
    assert_eq!(kept.len() + drawn.len(), whole.len());
    let of_class = |pack: &Pack, class| (0..pack.len()).filter(|i| pack.label(*i) == class).count();
    for class in (0..whole.len()).map(|index| whole.label(index)) {
        let share = of_class(&whole, class) as f64 * 0.2;
        let expected = (share.round() as usize).max(1);
        assert_eq!(of_class(&drawn, class), expected, "{class:?}");
    }
    let mut together = [contents(&kept), contents(&drawn)].concat();
    together.sort();
    let mut all = contents(&whole);
    all.sort();
    assert_eq!(together, all);
    assert_eq!(contents(&drawn), contents(&whole.split(0.2, 1).unwrap().1));
    assert_ne!(contents(&drawn), contents(&whole.split(0.2, 2).unwrap().1));
    for share in [0.0, 1.0, f64::NAN] {
        assert!(whole.split(share, 1).is_err());
    }
    assert!(whole.subset(1, 1).unwrap().split(0.5, 1).is_err());
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
