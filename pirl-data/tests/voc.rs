//! VOC's layout: which boxes come through, and what becomes of broken annotations.

mod common;

use std::fmt::Write;
use std::fs;
use std::path::Path;

use common::{Samples, jpeg, picture};
use pirl_data::{DataError, Objects, Pack, PackOptions, PackReport, Source, Voc, pack};
use safetensors::SafeTensors;
use tempfile::TempDir;

/// An object of an annotation: class, the four numbers of the file, what stands in `difficult`.
type Annotated<'a> = (&'a str, [&'a str; 4], &'a str);

fn annotation(objects: &[Annotated<'_>]) -> String {
    let mut text = "<annotation><size><width>60</width><height>40</height></size>".to_owned();
    for (name, [xmin, ymin, xmax, ymax], difficult) in objects {
        write!(
            text,
            "<object><name>{name}</name><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>\
             <difficult>{difficult}</difficult><bndbox><xmax>{xmax}</xmax><xmin>{xmin}</xmin>\
             <ymin>{ymin}</ymin><ymax>{ymax}</ymax></bndbox></object>"
        )
        .unwrap();
    }
    text + "</annotation>"
}

/// A folder of images of 60 x 40 pixels, and one image set `trainval`.
fn folder(root: &Path, images: &[(&str, String)]) {
    for sub in ["JPEGImages", "Annotations", "ImageSets/Main"] {
        fs::create_dir_all(root.join(sub)).unwrap();
    }
    let mut set = String::new();
    for (name, annotation) in images {
        let image = jpeg(&picture(60, 40));
        fs::write(root.join(format!("JPEGImages/{name}.jpg")), image).unwrap();
        fs::write(root.join(format!("Annotations/{name}.xml")), annotation).unwrap();
        writeln!(set, "{name}").unwrap();
    }
    fs::write(root.join("ImageSets/Main/trainval.txt"), set).unwrap();
}

fn write(source: &dyn Source, output: &Path, options: &PackOptions) -> PackReport {
    pack(source, output, options, &mut |_, _| {}).expect("packs")
}

fn objects(list: &[([f32; 4], u32, bool)]) -> Objects {
    let mut objects = Objects::default();
    for (bounds, label, difficult) in list {
        objects.push(*bounds, *label, *difficult);
    }
    objects
}

#[test]
fn boxes_become_zero_based_and_come_back_from_any_cut() {
    let dir = TempDir::new().unwrap();
    let images = [
        (
            "000005",
            annotation(&[
                ("dog", ["1", "1", "60", "40"], "0"),
                ("person", ["11.5", "2", "20", "30"], "1"),
            ]),
        ),
        ("000007", annotation(&[])),
        ("000001", annotation(&[("dog", ["3", "4", "5", "6"], "0")])),
    ];
    folder(dir.path(), &images);
    let source = Voc::open(&[dir.path()], "trainval").unwrap();
    assert_eq!(source.class_names().len(), 20);
    assert_eq!(source.class_names()[11], "dog");
    assert!(source.skipped().is_empty());
    let expected = [
        objects(&[
            ([0.0, 0.0, 60.0, 40.0], 11, false),
            ([10.5, 1.0, 20.0, 30.0], 14, true),
        ]),
        Objects::default(),
        objects(&[([2.0, 3.0, 5.0, 6.0], 11, false)]),
    ];
    let whole = dir.path().join("whole");
    let report = write(&source, &whole, &PackOptions::default());
    let cut = PackOptions {
        shard_bytes: 1,
        ..PackOptions::default()
    };
    let cut_report = write(&source, &dir.path().join("cut"), &cut);
    assert_eq!(cut_report.shards.len(), 3);
    assert_eq!(report.fingerprint, cut_report.fingerprint);
    for path in [&whole, &dir.path().join("cut")] {
        let pack = Pack::open(path).unwrap();
        assert!(pack.has_objects() && pack.labels().is_none());
        for (index, expected) in expected.iter().enumerate() {
            assert_eq!(pack.objects(index).as_ref(), Some(expected));
        }
        assert_eq!(pack.objects(3), None);
        assert_eq!(pack.subset(2, 1).unwrap().objects(2), None);
    }
    let bytes = fs::read(&report.shards[0]).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.tensor("boxes").unwrap().shape(), [3, 4]);
    assert_eq!(tensors.tensor("box_offsets").unwrap().shape(), [4]);
    assert_eq!(tensors.tensor("box_labels").unwrap().shape(), [3]);
    assert_eq!(tensors.tensor("difficult").unwrap().data(), [0, 1, 0]);
}

#[test]
fn boxes_follow_the_image_when_it_shrinks() {
    let dir = TempDir::new().unwrap();
    let image = annotation(&[("cat", ["31", "11", "60", "40"], "0")]);
    folder(dir.path(), &[("a", image)]);
    let source = Voc::open(&[dir.path()], "trainval").unwrap();
    let options = PackOptions {
        resize_shorter: Some(20),
        ..PackOptions::default()
    };
    write(&source, &dir.path().join("set"), &options);
    let pack = Pack::open(dir.path().join("set")).unwrap();
    assert_eq!(pack.decode(0).unwrap().width, 30);
    assert_eq!(pack.objects(0).unwrap().boxes, [[15.0, 5.0, 30.0, 20.0]]);
}

#[test]
fn folders_are_put_together_in_order() {
    let dir = TempDir::new().unwrap();
    let (one, two) = (dir.path().join("VOC2007"), dir.path().join("VOC2012"));
    let image = |x: &str| annotation(&[("bus", [x, "1", "9", "9"], "0")]);
    folder(&one, &[("a", image("1")), ("b", image("2"))]);
    folder(&two, &[("a", image("3"))]);
    let source = Voc::open(&[&two, &one], "trainval").unwrap();
    let left: Vec<f32> = (0..source.len())
        .map(|index| source.read(index).unwrap().objects.unwrap().boxes[0][0])
        .collect();
    assert_eq!(left, [2.0, 0.0, 1.0]);
    assert!(source.read(0).unwrap().name.contains("VOC2012"));
    assert!(source.read(3).is_err());
}

#[test]
fn other_data_sets_have_their_own_classes_whatever_the_image_set() {
    let dir = TempDir::new().unwrap();
    let image = |name| annotation(&[(name, ["1", "1", "9", "9"], "0")]);
    folder(dir.path(), &[("a", image("mask")), ("b", image("dog"))]);
    fs::write(dir.path().join("Annotations/c.xml"), image("cat")).unwrap();
    fs::write(dir.path().join("ImageSets/Main/test.txt"), "b\n").unwrap();
    for split in ["trainval", "test"] {
        let source = Voc::open(&[dir.path()], split).unwrap();
        assert_eq!(source.class_names(), ["cat", "dog", "mask"], "{split}");
    }
    fs::write(dir.path().join("class_names.txt"), "mask\nhat\n").unwrap();
    let source = Voc::open(&[dir.path()], "trainval").unwrap();
    assert_eq!(source.class_names(), ["mask", "hat"]);
    assert_eq!(source.skipped().len(), 1);
    let skipped = &source.skipped()[0];
    assert!(skipped.name.ends_with("b.xml, object 0"), "{skipped:?}");
    assert!(skipped.reason.contains("\"dog\" is unknown"), "{skipped:?}");
    fs::write(dir.path().join("class_names.txt"), "mask\nmask\n").unwrap();
    assert!(matches!(
        Voc::open(&[dir.path()], "trainval"),
        Err(DataError::Format { .. })
    ));
}

#[test]
fn broken_objects_are_left_out_and_named_or_fail_when_strict() {
    let good = ("dog", ["1", "1", "9", "9"], "0");
    let cases: &[(Annotated<'_>, &str)] = &[
        (("dog", ["9", "1", "3", "9"], "0"), "inverted"),
        (("dog", ["1", "9", "9", "8"], "0"), "inverted"),
        (("dog", ["1", "1", "62", "9"], "0"), "60 x 40"),
        (("dog", ["-1", "1", "9", "9"], "0"), "60 x 40"),
        (("dog", ["61", "1", "61", "9"], "0"), "60 x 40"),
        (("dog", ["1", "one", "9", "9"], "0"), "ymin is \"one\""),
        (("dog", ["1", "1", "inf", "9"], "0"), "xmax is \"inf\""),
        (("dog", ["1", "1", "9", "9"], "yes"), "difficult is \"yes\""),
        (("", ["1", "1", "9", "9"], "0"), "name is empty"),
    ];
    for (broken, expected) in cases {
        let dir = TempDir::new().unwrap();
        folder(dir.path(), &[("img", annotation(&[*broken, good]))]);
        let source = Voc::open(&[dir.path()], "trainval").unwrap();
        let report = write(&source, &dir.path().join("set"), &PackOptions::default());
        assert_eq!((report.packed, report.skipped.len()), (1, 1), "{broken:?}");
        let skipped = &report.skipped[0];
        assert!(skipped.reason.contains(expected), "{skipped:?}");
        assert!(skipped.name.contains("img."), "{skipped:?}");
        let pack_of = Pack::open(dir.path().join("set")).unwrap();
        assert_eq!(pack_of.objects(0).unwrap().boxes, [[0.0, 0.0, 9.0, 9.0]]);
        let strict = PackOptions {
            strict: true,
            ..PackOptions::default()
        };
        let output = dir.path().join("strict");
        let error = pack(&source, &output, &strict, &mut |_, _| {}).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    // One pixel outside is how tools that count from 0 write the edge.
    let dir = TempDir::new().unwrap();
    let edge = annotation(&[("dog", ["0", "0", "61", "41"], "0")]);
    folder(dir.path(), &[("a", edge)]);
    let source = Voc::open(&[dir.path()], "trainval").unwrap();
    write(&source, &dir.path().join("set"), &PackOptions::default());
    let pack = Pack::open(dir.path().join("set")).unwrap();
    assert_eq!(pack.objects(0).unwrap().boxes, [[0.0, 0.0, 60.0, 40.0]]);
}

#[test]
fn what_is_missing_is_named() {
    let dir = TempDir::new().unwrap();
    let image = annotation(&[("dog", ["1", "1", "9", "9"], "0")]);
    folder(dir.path(), &[("a", image.clone()), ("b", image)]);
    let refused = |wanted: &[&str]| {
        let error = Voc::open(&[dir.path()], "trainval")
            .unwrap_err()
            .to_string();
        for part in wanted {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
    };
    let rename = |from: &str, to: &str| {
        fs::rename(dir.path().join(from), dir.path().join(to)).unwrap();
    };
    rename("JPEGImages/b.jpg", "JPEGImages/c.jpg");
    refused(&["JPEGImages/b.jpg", "not there"]);
    rename("JPEGImages/c.jpg", "JPEGImages/b.png");
    Voc::open(&[dir.path()], "trainval").unwrap();
    rename("Annotations/a.xml", "Annotations/z.xml");
    refused(&["Annotations/a.xml"]);
    rename("Annotations/z.xml", "Annotations/a.xml");
    let error = Voc::open(&[dir.path()], "val").unwrap_err().to_string();
    assert!(error.contains("ImageSets/Main/val.txt"), "{error}");
    fs::write(dir.path().join("ImageSets/Main/trainval.txt"), "\n\n").unwrap();
    refused(&["ImageSets/Main/trainval.txt", "no images"]);
    assert!(Voc::open(&[] as &[&Path], "trainval").is_err());
}

#[test]
fn annotations_that_are_none() {
    for (text, expected) in [
        ("<annotation><object>", "never closed"),
        ("<html/>", "<html>"),
        ("", "root"),
        ("<!DOCTYPE a [<!ENTITY b \"c\">]><annotation/>", "DTD"),
    ] {
        let dir = TempDir::new().unwrap();
        let good = annotation(&[("dog", ["1", "1", "9", "9"], "0")]);
        folder(dir.path(), &[("a", text.to_owned()), ("b", good)]);
        let source = Voc::open(&[dir.path()], "trainval").unwrap();
        assert_eq!((source.len(), source.skipped().len()), (1, 1));
        let skipped = &source.skipped()[0];
        assert!(skipped.name.ends_with("Annotations/a.xml"), "{skipped:?}");
        assert!(skipped.reason.contains(expected), "{skipped:?}");
    }
    let dir = TempDir::new().unwrap();
    folder(dir.path(), &[("a", annotation(&[]))]);
    assert!(matches!(
        Voc::open(&[dir.path()], "trainval"),
        Err(DataError::Empty { .. })
    ));
}

/// A pack of two samples, the second with two objects.
fn with_objects(dir: &Path) -> std::path::PathBuf {
    let boxes = [[0.0, 0.0, 1.0, 1.0], [0.0, 0.5, 2.0, 2.0]];
    let mut source = Samples::raw(2, 3);
    source.samples.iter_mut().for_each(|sample| sample.2 = None);
    let one = objects(&[(boxes[0], 2, false), (boxes[1], 0, true)]);
    source.objects = Some(vec![Objects::default(), one]);
    write(&source, &dir.join("set"), &PackOptions::default());
    dir.join("set.safetensors")
}

#[test]
fn objects_in_a_file_are_not_trusted() {
    let nan = f32::NAN.to_le_bytes().to_vec();
    for (tensor, at, bytes, expected) in [
        ("box_offsets", 16, vec![1], "belong to no sample"),
        ("box_offsets", 16, vec![3], "past the end of its 2 objects"),
        ("box_offsets", 8, vec![9], "offset 1 is 9"),
        ("box_labels", 8, vec![3], "object 1 has label 3"),
        ("box_labels", 15, vec![0x80], "object 1 has label -"),
        ("difficult", 0, vec![2], "object 0"),
        ("boxes", 16, nan, "object 1 has the box [NaN"),
        ("boxes", 8, vec![0; 4], "object 0 has the box"),
        ("boxes", 3, vec![0xBF], "object 0 has the box"),
    ] {
        let dir = TempDir::new().unwrap();
        let path = with_objects(dir.path());
        assert_eq!(Pack::open(&path).unwrap().objects(1).unwrap().len(), 2);
        let mut file = fs::read(&path).unwrap();
        let (header, metadata) = SafeTensors::read_metadata(&file).unwrap();
        let at = 8 + header + metadata.info(tensor).unwrap().data_offsets.0 + at;
        file[at..at + bytes.len()].copy_from_slice(&bytes);
        fs::write(&path, file).unwrap();
        let error = Pack::open(&path).unwrap_err().to_string();
        assert!(error.contains(expected), "{tensor}: {error}");
    }
}

#[test]
fn samples_that_cannot_stand_in_one_pack() {
    let one = || objects(&[([0.0, 0.0, 1.0, 1.0], 0, false)]);
    let mut both = Samples::raw(1, 2);
    both.objects = Some(vec![one()]);
    both.samples[0].2 = Some(0);
    let mut beyond = Samples::raw(1, 2);
    beyond.samples[0].2 = None;
    beyond.objects = Some(vec![objects(&[([0.0, 0.0, 1.0, 1.0], 2, false)])]);
    let mut uneven = Samples::raw(1, 2);
    uneven.samples[0].2 = None;
    uneven.objects = Some(vec![Objects {
        labels: vec![],
        ..one()
    }]);
    for (source, expected) in [
        (both, "a label and objects"),
        (beyond, "label 2, but there are 2 classes"),
        (uneven, "not as many"),
    ] {
        let dir = TempDir::new().unwrap();
        let output = dir.path().join("set");
        let error = pack(&source, &output, &PackOptions::default(), &mut |_, _| {}).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn verifying_finds_objects_that_leave_their_image() {
    let dir = TempDir::new().unwrap();
    let path = with_objects(dir.path());
    let verify = || Pack::open(&path).unwrap().verify(&mut |_, _| {}, &|| false);
    assert!(verify().unwrap().broken.is_empty());
    let mut file = fs::read(&path).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&file).unwrap();
    let at = 8 + header + metadata.info("boxes").unwrap().data_offsets.0 + 16 + 8;
    file[at..at + 4].copy_from_slice(&2.5_f32.to_le_bytes());
    fs::write(&path, file).unwrap();
    let found = verify().unwrap();
    assert_eq!(found.broken.len(), 1);
    assert_eq!(found.broken[0].name, "sample 1");
    assert!(found.broken[0].reason.contains("object 1"), "{found:?}");
    assert_ne!(found.fingerprint, Pack::open(&path).unwrap().fingerprint());
}
