//! VOC's layout: which boxes come through, and what becomes of broken annotations.

mod common;

use std::fmt::Write;
use std::fs;
use std::path::Path;

use common::{Samples, jpeg, picture};
use pirl_data::{Annotated, DataError, Objects, Pack, PackOptions, PackReport, Source, pack};
use safetensors::SafeTensors;
use tempfile::TempDir;

/// An object of an annotation: class, the four numbers of the file, what stands in `difficult`.
type Thing<'a> = (&'a str, [&'a str; 4], &'a str);

fn annotation(objects: &[Thing<'_>]) -> String {
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
    let source = Annotated::voc(&[dir.path()], "trainval").unwrap();
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
    let source = Annotated::voc(&[dir.path()], "trainval").unwrap();
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
    let source = Annotated::voc(&[&two, &one], "trainval").unwrap();
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
        let source = Annotated::voc(&[dir.path()], split).unwrap();
        assert_eq!(source.class_names(), ["cat", "dog", "mask"], "{split}");
    }
    fs::write(dir.path().join("class_names.txt"), "mask\nhat\n").unwrap();
    let source = Annotated::voc(&[dir.path()], "trainval").unwrap();
    assert_eq!(source.class_names(), ["mask", "hat"]);
    assert_eq!(source.skipped().len(), 1);
    let skipped = &source.skipped()[0];
    assert!(skipped.name.ends_with("b.xml, object 0"), "{skipped:?}");
    assert!(
        skipped.reason.contains("\"dog\" is not in class_names.txt"),
        "{skipped:?}"
    );
    fs::write(dir.path().join("class_names.txt"), "mask\nmask\n").unwrap();
    assert!(matches!(
        Annotated::voc(&[dir.path()], "trainval"),
        Err(DataError::Format { .. })
    ));
}

/// An object that is lost would leave its pixels to the background, so its image goes with it.
#[test]
fn an_image_goes_with_an_object_that_cannot_be_read_and_is_named_or_fails_when_strict() {
    let good = ("dog", ["1", "1", "9", "9"], "0");
    let cases: &[(Thing<'_>, &str)] = &[
        (("dog", ["9", "1", "3", "9"], "0"), "inverted"),
        (("dog", ["1", "one", "9", "9"], "0"), "ymin is \"one\""),
        (("dog", ["1", "1", "inf", "9"], "0"), "xmax is \"inf\""),
        (("dog", ["1", "nan", "9", "9"], "0"), "ymin is \"nan\""),
        (("dog", ["1", "1", "9,5", "9"], "0"), "xmax is \"9,5\""),
        (("", ["1", "1", "9", "9"], "0"), "name is empty"),
    ];
    for (broken, expected) in cases {
        let dir = TempDir::new().unwrap();
        let images = [
            ("img", annotation(&[*broken, good])),
            ("sound", annotation(&[good])),
        ];
        folder(dir.path(), &images);
        let source = Annotated::voc(&[dir.path()], "trainval").unwrap();
        let report = write(&source, &dir.path().join("set"), &PackOptions::default());
        assert_eq!((report.packed, report.skipped.len()), (1, 1), "{broken:?}");
        let skipped = &report.skipped[0];
        assert!(skipped.reason.contains(expected), "{skipped:?}");
        assert!(skipped.name.contains("img."), "{skipped:?}");
        let strict = PackOptions {
            strict: true,
            ..PackOptions::default()
        };
        let output = dir.path().join("strict");
        let error = pack(&source, &output, &strict, &mut |_, _| {}).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn boxes_are_cut_at_the_edge_and_left_out_when_nothing_is_left() {
    let cases: &[(Thing<'_>, Option<[f32; 4]>, &str)] = &[
        (
            ("dog", ["1", "1", "62", "9"], "0"),
            Some([0.0, 0.0, 60.0, 9.0]),
            "cut at the edge",
        ),
        (
            ("dog", ["-5", "-9", "9", "400"], "0"),
            Some([0.0, 0.0, 9.0, 40.0]),
            "cut at the edge",
        ),
        // One pixel outside is how tools that count from 0 write the edge: not worth a word.
        (
            ("dog", ["0", "0", "61", "41"], "0"),
            Some([0.0, 0.0, 60.0, 40.0]),
            "",
        ),
        (
            ("dog", ["62", "1", "70", "9"], "0"),
            None,
            "nothing of its box lies in",
        ),
        (
            ("dog", ["5", "5", "4", "9"], "0"),
            None,
            "nothing of its box lies in",
        ),
    ];
    for (object, expected, said) in cases {
        let dir = TempDir::new().unwrap();
        let good = ("cat", ["1", "1", "9", "9"], "0");
        folder(dir.path(), &[("a", annotation(&[*object, good]))]);
        let source = Annotated::voc(&[dir.path()], "trainval").unwrap();
        let report = write(&source, &dir.path().join("set"), &PackOptions::default());
        let pack = Pack::open(dir.path().join("set")).unwrap();
        let mut boxes: Vec<[f32; 4]> = expected.iter().copied().collect();
        boxes.push([0.0, 0.0, 9.0, 9.0]);
        assert_eq!(pack.objects(0).unwrap().boxes, boxes, "{object:?}");
        let words = [&report.notes[..], &report.skipped].concat();
        assert_eq!(words.len(), usize::from(!said.is_empty()), "{words:?}");
        assert!(
            words.iter().all(|word| word.reason.contains(said)),
            "{words:?}"
        );
        assert_eq!(report.skipped.len(), usize::from(expected.is_none()));
    }
}

#[test]
fn difficult_is_a_number_and_else_not_difficult_with_a_note() {
    for (text, difficult, noted) in [
        ("0", false, false),
        ("1", true, false),
        ("0.0", false, false),
        ("1.0", true, false),
        (" 1 ", true, false),
        ("", false, true),
        ("Unspecified", false, true),
        ("true", false, true),
    ] {
        let dir = TempDir::new().unwrap();
        folder(
            dir.path(),
            &[("a", annotation(&[("dog", ["1", "1", "9", "9"], text)]))],
        );
        let source = Annotated::voc(&[dir.path()], "trainval").unwrap();
        let objects = source.read(0).unwrap().objects.unwrap();
        assert_eq!(objects.difficult, [difficult], "{text}");
        assert_eq!(source.notes().len(), usize::from(noted), "{text}");
    }
}

/// A JPEG of 60 x 40 pixels that is to be turned, so that it stands 40 x 60.
fn turned_jpeg(orientation: u8) -> Vec<u8> {
    let exif = [
        &b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0"[..],
        &[orientation, 0, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    let mut bytes = vec![0xFF, 0xD8, 0xFF, 0xE1];
    bytes.extend((exif.len() as u16 + 2).to_be_bytes());
    bytes.extend(exif);
    bytes.extend(&jpeg(&picture(60, 40))[2..]);
    bytes
}

#[test]
fn boxes_are_turned_with_their_image_when_they_were_drawn_on_it_unturned() {
    let object = [("dog", ["1", "11", "20", "40"], "0")];
    let sized = |width: &str, height: &str| {
        let text = annotation(&object);
        text.replace("<width>60", &format!("<width>{width}"))
            .replace("<height>40", &format!("<height>{height}"))
    };
    let unturned = [0.0, 10.0, 20.0, 40.0];
    for (orientation, size, expected) in [
        (6, ("60", "40"), Ok([0.0, 0.0, 30.0, 20.0])),
        (8, ("60", "40"), Ok([10.0, 40.0, 40.0, 60.0])),
        (5, ("60", "40"), Ok([10.0, 0.0, 40.0, 20.0])),
        (7, ("60", "40"), Ok([0.0, 40.0, 30.0, 60.0])),
        (6, ("40", "60"), Ok(unturned)),
        (6, ("0", "0"), Ok(unturned)),
        (6, ("", "-3"), Ok(unturned)),
        (1, ("60", "40"), Ok(unturned)),
        (1, ("120", "80"), Err(["120 x 80", "60 x 40"])),
        (1, ("40", "60"), Err(["40 x 60", "60 x 40"])),
        (6, ("120", "80"), Err(["120 x 80", "40 x 60"])),
    ] {
        let dir = TempDir::new().unwrap();
        let images = [("a", sized(size.0, size.1)), ("b", annotation(&object))];
        folder(dir.path(), &images);
        fs::write(
            dir.path().join("JPEGImages/a.jpg"),
            turned_jpeg(orientation),
        )
        .unwrap();
        let source = Annotated::voc(&[dir.path()], "trainval").unwrap();
        let report = write(&source, &dir.path().join("set"), &PackOptions::default());
        let case = format!("orientation {orientation}, {size:?}");
        match expected {
            Ok(expected) => {
                let pack = Pack::open(dir.path().join("set")).unwrap();
                assert_eq!(pack.objects(0).unwrap().boxes, [expected], "{case}");
                let turned = expected != unturned;
                assert_eq!(
                    report.notes.len(),
                    usize::from(turned),
                    "{case}: {:?}",
                    report.notes
                );
            }
            Err(named) => {
                assert_eq!(report.packed, 1, "{case}");
                let reason = &report.skipped[0].reason;
                assert!(
                    named.iter().all(|size| reason.contains(size)),
                    "{case}: {reason}"
                );
            }
        }
    }
}

#[test]
fn what_is_missing_is_named() {
    let dir = TempDir::new().unwrap();
    let image = annotation(&[("dog", ["1", "1", "9", "9"], "0")]);
    folder(dir.path(), &[("a", image.clone()), ("b", image)]);
    let left_out = |wanted: &[&str]| {
        let source = Annotated::voc(&[dir.path()], "trainval").unwrap();
        assert_eq!((source.len(), source.skipped().len()), (1, 1));
        let said = format!("{:?}", source.skipped()[0]);
        assert!(wanted.iter().all(|part| said.contains(part)), "{said}");
    };
    let rename = |from: &str, to: &str| {
        fs::rename(dir.path().join(from), dir.path().join(to)).unwrap();
    };
    rename("JPEGImages/b.jpg", "JPEGImages/c.jpg");
    left_out(&["\"b\"", "no such image"]);
    rename("JPEGImages/c.jpg", "JPEGImages/b.png");
    assert_eq!(Annotated::voc(&[dir.path()], "trainval").unwrap().len(), 2);
    rename("Annotations/a.xml", "z.xml");
    left_out(&["a.jpg", "no annotation"]);
    rename("z.xml", "Annotations/a.xml");
    let error = Annotated::voc(&[dir.path()], "val")
        .unwrap_err()
        .to_string();
    assert!(error.contains("ImageSets/Main/val.txt"), "{error}");
    fs::write(dir.path().join("ImageSets/Main/trainval.txt"), "\n\n").unwrap();
    let error = Annotated::voc(&[dir.path()], "trainval")
        .unwrap_err()
        .to_string();
    assert!(error.contains("ImageSets/Main/trainval.txt"), "{error}");
    assert!(Annotated::voc(&[] as &[&Path], "trainval").is_err());
}

#[test]
fn annotations_that_are_none_are_named_with_their_line() {
    let bomb =
        "<!DOCTYPE a [<!ENTITY b \"cc\"><!ENTITY d \"&b;&b;\">]><annotation>&d;</annotation>";
    for (text, expected) in [
        ("<annotation>\n<object>", "never closed"),
        ("<annotation>\n</object>", "2:1"),
        ("<html/>", "<html>"),
        ("", "root"),
        (bomb, "entities"),
        ("<annotation/>\n\njunk", "3:1"),
        (
            "<annotation><object><bndbox/></object></annotation>",
            "object 0: it has no <name>",
        ),
        (
            "<?xml version=\"1.0\" encoding=\"klingon\"?><annotation/>",
            "\"klingon\"",
        ),
    ] {
        let dir = TempDir::new().unwrap();
        let good = annotation(&[("dog", ["1", "1", "9", "9"], "0")]);
        folder(dir.path(), &[("a", text.to_owned()), ("b", good)]);
        let source = Annotated::voc(&[dir.path()], "trainval").unwrap();
        assert_eq!((source.len(), source.skipped().len()), (1, 1), "{text}");
        let skipped = &source.skipped()[0];
        assert!(skipped.name.ends_with("Annotations/a.xml"), "{skipped:?}");
        assert!(skipped.reason.contains(expected), "{skipped:?}");
    }
    // When all have the same fault the first are named.
    let dir = TempDir::new().unwrap();
    let all: Vec<(String, String)> = (0..30)
        .map(|n| (format!("i{n:02}"), "<a/>".to_owned()))
        .collect();
    let all: Vec<(&str, String)> = all
        .iter()
        .map(|(name, text)| (&**name, text.clone()))
        .collect();
    folder(dir.path(), &all);
    let error = Annotated::voc(&[dir.path()], "trainval")
        .unwrap_err()
        .to_string();
    assert!(error.contains("i00.xml") && error.contains("i19.xml") && !error.contains("i20.xml"));
    assert!(
        error.contains("30 in all") && error.contains("and 10 more"),
        "{error}"
    );
    folder(dir.path(), &[("a", annotation(&[]))]);
    let error = Annotated::voc(&[dir.path()], "trainval")
        .unwrap_err()
        .to_string();
    assert!(error.contains("no object is annotated"), "{error}");
}

#[test]
fn doctypes_and_declared_encodings_are_read() {
    let plain = annotation(&[("caf\u{e9}", ["1", "1", "9", "9"], "0")]);
    let utf16 = |text: &str, big: bool| -> Vec<u8> {
        let units = text.encode_utf16();
        let pair = |unit: u16| {
            if big {
                unit.to_be_bytes()
            } else {
                unit.to_le_bytes()
            }
        };
        units.flat_map(pair).collect()
    };
    let declared = |name: &str| format!("<?xml version='1.0' encoding='{name}'?>\r\n{plain}");
    let latin: Vec<u8> = declared("ISO-8859-1")
        .chars()
        .map(|letter| letter as u8)
        .collect();
    let variants: [(&str, Vec<u8>); 8] = [
        (
            "doctype",
            format!("<!DOCTYPE annotation SYSTEM \"voc.dtd\">{plain}").into_bytes(),
        ),
        (
            "inner doctype",
            format!("<!DOCTYPE annotation [<!ELEMENT name (#PCDATA)>]>{plain}").into_bytes(),
        ),
        ("byte-order mark", format!("\u{feff}{plain}").into_bytes()),
        ("ISO-8859-1", latin),
        (
            "UTF-16 little-endian",
            utf16(&format!("\u{feff}{}", declared("UTF-16")), false),
        ),
        (
            "UTF-16 big-endian",
            utf16(&format!("\u{feff}{}", declared("UTF-16")), true),
        ),
        ("UTF-16 without a mark", utf16(&declared("utf-16"), false)),
        ("empty lines before", format!("\n\n{plain}\n").into_bytes()),
    ];
    for (what, bytes) in variants {
        let dir = TempDir::new().unwrap();
        folder(dir.path(), &[("a", String::new())]);
        fs::write(dir.path().join("Annotations/a.xml"), bytes).unwrap();
        let source = Annotated::voc(&[dir.path()], "trainval")
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(source.class_names(), ["caf\u{e9}"], "{what}");
    }
}

#[test]
fn image_sets_as_public_data_sets_have_them() {
    let dir = TempDir::new().unwrap();
    let image = annotation(&[("dog", ["1", "1", "9", "9"], "0")]);
    let names = ["2007_1", "b c", "d", "e"];
    let images: Vec<(&str, String)> = names.iter().map(|name| (*name, image.clone())).collect();
    folder(dir.path(), &images);
    let read = |set: &str| -> Vec<String> {
        fs::write(dir.path().join("ImageSets/Main/dog_train.txt"), set).unwrap();
        let source = Annotated::voc(&[dir.path()], "dog_train").unwrap();
        let stem = |index| {
            let name = source.read(index).unwrap().name;
            let name = name.rsplit('/').next().unwrap().to_owned();
            name.trim_end_matches(".jpg").to_owned()
        };
        (0..source.len()).map(stem).collect()
    };
    assert_eq!(read("2007_1  1\nd -1\ne  0\n"), ["2007_1", "e"]);
    assert_eq!(read("b c\r\n2007_1.jpg\n"), ["b c", "2007_1"]);
    assert_eq!(read("JPEGImages/d.jpg\n./JPEGImages/e\n"), ["d", "e"]);
    assert_eq!(read("VOC2007\\JPEGImages\\d.jpg\n"), ["d"]);
    assert_eq!(read("\u{feff}d\n\ne\n"), ["d", "e"]);
    assert_eq!(read("JPEGImages/d.jpg Annotations/d.xml\n"), ["d"]);
    // A list elsewhere.
    let list = dir.path().join("mine.list");
    fs::write(&list, "e\n").unwrap();
    assert_eq!(
        Annotated::voc(&[dir.path()], list.to_str().unwrap())
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn folders_without_image_sets() {
    let image = annotation(&[("mask", ["1", "1", "9", "9"], "0")]);
    let hat = annotation(&[("hat", ["1", "1", "9", "9"], "0")]);
    let photo = jpeg(&picture(60, 40));
    let webp = {
        let mut bytes = std::io::Cursor::new(Vec::new());
        let pixels = image::RgbImage::from_raw(60, 40, picture(60, 40).pixels).unwrap();
        pixels
            .write_to(&mut bytes, image::ImageFormat::WebP)
            .unwrap();
        bytes.into_inner()
    };
    for (images, annotations) in [
        ("images", "annots"),
        ("JPEGImages", "Annotations"),
        ("images", "annotations/xmls"),
        ("img", "xml"),
        ("", ""),
        ("images/day", "annots/day"),
    ] {
        let dir = TempDir::new().unwrap();
        let put = |folder: &str, name: &str, bytes: &[u8]| {
            let folder = dir.path().join(folder);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(name), bytes).unwrap();
        };
        put(images, "a.JPG", &photo);
        put(annotations, "a.xml", image.as_bytes());
        put(images, "b.webp", &webp);
        put(annotations, "b.xml", hat.as_bytes());
        put(images, "bare.jpg", &photo);
        put(annotations, "lonely.xml", image.as_bytes());
        let source = Annotated::voc(&[dir.path()], "all").unwrap();
        assert_eq!(source.class_names(), ["hat", "mask"], "{images}");
        let report = write(&source, &dir.path().join("set"), &PackOptions::default());
        assert_eq!(report.packed, 2, "{images}: {:?}", report.skipped);
        assert_eq!(
            (report.tally.formats["webp"], report.tally.reencoded),
            (1, 0)
        );
        let skipped = format!("{:?}", report.skipped);
        assert!(
            skipped.contains("bare.jpg") && skipped.contains("lonely.xml"),
            "{skipped}"
        );
    }
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
    assert_eq!(found.broken[0].name, "sample 1 (sample 1)");
    assert!(found.broken[0].reason.contains("object 1"), "{found:?}");
    assert_ne!(found.fingerprint, Pack::open(&path).unwrap().fingerprint());
}
