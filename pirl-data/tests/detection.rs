//! COCO's JSON, YOLO's text files and CVAT's XML: which boxes and classes come through, and what becomes
//! of faults.

mod common;

use std::fs;
use std::path::Path;

use common::{jpeg, picture, write};
use pirl_data::{Annotated, DataError, Objects, Pack, PackOptions, Source};
use serde_json::json;
use tempfile::TempDir;

/// Puts files into a folder; those without bytes are photographs of 60 x 40 pixels.
fn put(root: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let photo = jpeg(&picture(60, 40));
        let bytes = if text.is_empty() {
            &photo[..]
        } else {
            text.as_bytes()
        };
        fs::write(path, bytes).unwrap();
    }
}

/// The objects of every image, by the last part of its name.
fn objects(source: &Annotated) -> Vec<(String, Objects)> {
    let of = |index| {
        let sample = source.read(index).unwrap();
        let name = Path::new(&sample.name)
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        (name, sample.objects.unwrap())
    };
    (0..source.len()).map(of).collect()
}

fn coco() -> serde_json::Value {
    json!({
        "info": { "year": 2017 },
        "licenses": [{ "id": 1, "name": "none" }],
        "images": [
            { "id": 9, "file_name": "b.jpg", "width": 60, "height": 40, "coco_url": "http://x/b.jpg" },
            { "id": 3, "file_name": "a.jpg", "width": 60, "height": 40 },
            { "id": 5, "file_name": "none.jpg", "width": 60, "height": 40 },
        ],
        "annotations": [
            { "id": 1, "image_id": 3, "category_id": 90, "bbox": [1, 2.5, 10, 20], "area": 200, "iscrowd": 0,
              "segmentation": [[1, 2, 3, 4, 5, 6]] },
            { "id": 2, "image_id": 9, "category_id": 7, "bbox": [0, 0, 60, 40], "iscrowd": 1,
              "segmentation": { "counts": "abc", "size": [40, 60] } },
            { "id": 3, "image_id": 3, "category_id": 7, "bbox": [5.0, 5.0, 5.0, 5.0] },
        ],
        "categories": [
            { "id": 90, "name": "toothbrush", "supercategory": "indoor" },
            { "id": 7, "name": "train", "supercategory": "vehicle" },
        ],
    })
}

#[test]
fn coco_boxes_crowds_and_categories_with_gaps() {
    for (file, images) in [
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/instances_val2017.json", "images/val2017"),
        ("annotations/instances.json", "images"),
        ("_annotations.coco.json", "."),
        ("train/_annotations.coco.json", "train"),
    ] {
        let dir = TempDir::new().unwrap();
        let names = ["a.jpg", "b.jpg", "none.jpg"].map(|name| format!("{images}/{name}"));
        put(
            dir.path(),
            &[(&names[0], ""), (&names[1], ""), (&names[2], "")],
        );
        put(dir.path(), &[(file, &coco().to_string())]);
        let source = Annotated::coco(&dir.path().join(file), None).unwrap();
        assert_eq!(
            source.class_names(),
            ["train", "toothbrush"],
            "in order of their ids"
        );
        let found = objects(&source);
        assert_eq!(found[0].0, "b.jpg", "in order of the file");
        assert_eq!(found[0].1.boxes, [[0.0, 0.0, 60.0, 40.0]]);
        assert_eq!(
            (&found[0].1.labels[..], &found[0].1.difficult[..]),
            (&[0][..], &[true][..])
        );
        assert_eq!(
            found[1].1.boxes,
            [[1.0, 2.5, 11.0, 22.5], [5.0, 5.0, 10.0, 10.0]]
        );
        assert_eq!(found[1].1.labels, [1, 0]);
        assert_eq!(
            found[2].1,
            Objects::default(),
            "an image without annotations is a sample"
        );
        let report = write(&source, &dir.path().join("set"), &PackOptions::default());
        assert_eq!((report.packed, report.tally.objects_per_class[&0]), (3, 2));
    }
}

/// What tools write besides: each is a change of the file, and what is then found.
#[test]
fn coco_as_tools_write_it() {
    type Change = fn(&mut serde_json::Value);
    let cases: [(&str, Change, usize, &str); 9] = [
        (
            "ids of text",
            |json| {
                let text = json
                    .to_string()
                    .replace("\"image_id\":3", "\"image_id\":\"3\"");
                *json = serde_json::from_str(
                    &text.replace("\"id\":3,\"width\"", "\"id\":\"3\",\"width\""),
                )
                .unwrap();
                json["images"][1]["id"] = json!("3");
            },
            3,
            "",
        ),
        (
            "a crowd of true",
            |json| json["annotations"][1]["iscrowd"] = json!(true),
            3,
            "",
        ),
        (
            "a path in the name",
            |json| json["images"][1]["file_name"] = json!("data/obj\\a.jpg"),
            3,
            "",
        ),
        (
            "no sizes",
            |json| {
                json["images"][0].as_object_mut().unwrap().remove("width");
            },
            3,
            "",
        ),
        (
            "an image that is not there",
            |json| json["images"][1]["file_name"] = json!("zz.jpg"),
            2,
            "no such image",
        ),
        (
            "an unknown image",
            |json| json["annotations"][2]["image_id"] = json!(77),
            3,
            "image 77 is not in the file",
        ),
        (
            "an unknown category",
            |json| json["annotations"][2]["category_id"] = json!(1),
            2,
            "category 1",
        ),
        (
            "a box of three",
            |json| json["annotations"][2]["bbox"] = json!([1, 2, 3]),
            2,
            "3 numbers, expected 4",
        ),
        (
            "an id twice",
            |json| json["images"][2]["id"] = json!(9),
            2,
            "id 9 is another image's",
        ),
    ];
    for (what, change, images, said) in cases {
        let dir = TempDir::new().unwrap();
        let mut json = coco();
        change(&mut json);
        let text = format!("\u{feff}{json}");
        put(
            dir.path(),
            &[
                ("a.jpg", ""),
                ("b.jpg", ""),
                ("none.jpg", ""),
                ("c.json", &text),
            ],
        );
        let source = Annotated::coco(&dir.path().join("c.json"), Some(dir.path())).unwrap();
        assert_eq!(source.len(), images, "{what}: {:?}", source.skipped());
        let skipped = format!("{:?}", source.skipped());
        assert!(skipped.contains(said), "{what}: {skipped}");
        assert_eq!(
            source.skipped().is_empty(),
            said.is_empty(),
            "{what}: {skipped}"
        );
    }
}

#[test]
fn coco_files_that_are_none() {
    for (text, said) in [
        ("[]", "expected"),
        ("{\"images\": [], \"categories\": []}", "annotations"),
        (
            "{\"images\": [{\"id\": 1, \"file_name\": \"a.jpg\"}], \"annotations\": [], \"categories\": []}",
            "categories are none",
        ),
        ("{\"images\": [NaN]}", "line 1"),
        ("{\"images\"", "EOF"),
        (
            "{\"images\": [{\"id\": 1, \"file_name\": \"a.jpg\"}], \"annotations\": [], \"categories\": [{\"id\": 1, \"name\": \"x\"}]}",
            "no object is annotated",
        ),
    ] {
        let dir = TempDir::new().unwrap();
        put(dir.path(), &[("a.jpg", ""), ("c.json", text)]);
        let error = Annotated::coco(&dir.path().join("c.json"), None)
            .unwrap_err()
            .to_string();
        assert!(error.contains(said), "{text}: {error}");
    }
}

#[test]
fn coco_images_are_compared_with_the_size_in_the_file() {
    let dir = TempDir::new().unwrap();
    let mut json = coco();
    json["images"][1]["width"] = json!(120);
    json["images"][1]["height"] = json!(80);
    put(
        dir.path(),
        &[
            ("a.jpg", ""),
            ("b.jpg", ""),
            ("none.jpg", ""),
            ("c.json", &json.to_string()),
        ],
    );
    let source = Annotated::coco(&dir.path().join("c.json"), None).unwrap();
    let report = write(&source, &dir.path().join("set"), &PackOptions::default());
    assert_eq!(report.packed, 2);
    assert!(
        report.skipped[0].reason.contains("120 x 80"),
        "{:?}",
        report.skipped
    );
}

#[test]
fn yolo_in_each_layout() {
    let label = "0 0.5 0.5 0.5 0.5\n1 0.25 0.25 0.1 0.2\n";
    let yaml = "path: .\ntrain: images/train # the images\nnc: 2\nnames: ['cat', \"dog\"]\n";
    let numbered = "names:\n  0: cat\n  1: dog\nval: x\n";
    for (image, text, names_file, names, split) in [
        (
            "images/train/a.jpg",
            "labels/train/a.txt",
            "data.yaml",
            yaml,
            Some("train"),
        ),
        (
            "train/images/a.jpg",
            "train/labels/a.txt",
            "data.yaml",
            numbered,
            Some("train"),
        ),
        (
            "images/a.jpg",
            "labels/a.txt",
            "classes.txt",
            "cat\r\ndog\r\n",
            None,
        ),
        (
            "obj/a.jpg",
            "obj/a.txt",
            "obj.names",
            "\u{feff}cat\ndog\n",
            Some("obj"),
        ),
        ("a.jpg", "a.txt", "my.yml", numbered, None),
        (
            "images/train/deep/a.jpg",
            "labels/train/deep/a.txt",
            "labels/../data.yaml",
            yaml,
            Some("train"),
        ),
    ] {
        let dir = TempDir::new().unwrap();
        put(
            dir.path(),
            &[(image, ""), (text, label), (names_file, names)],
        );
        let source =
            Annotated::yolo(dir.path(), split).unwrap_or_else(|error| panic!("{image}: {error}"));
        assert_eq!(source.class_names(), ["cat", "dog"], "{image}");
        let found = objects(&source);
        assert_eq!(found[0].1.boxes[0], [15.0, 10.0, 45.0, 30.0], "{image}");
        assert_eq!(found[0].1.labels, [0, 1], "{image}");
    }
}

#[test]
fn yolo_lines_of_every_kind() {
    /// The boxes of a text file, or why its image is left out.
    type Case<'a> = (&'a str, Result<&'a [[f32; 4]], &'a str>);
    let cases: [Case<'_>; 13] = [
        ("0 0.5 0.5 1 1", Ok(&[[0.0, 0.0, 60.0, 40.0]])),
        ("  0\t0.5  0.5 1 1 \r\n\n", Ok(&[[0.0, 0.0, 60.0, 40.0]])),
        ("1.0 0.5 0.5 1 1", Ok(&[[0.0, 0.0, 60.0, 40.0]])),
        ("0 0.5 0.5 1 1 0.93", Ok(&[[0.0, 0.0, 60.0, 40.0]])),
        (
            "0 0.1 0.1 0.5 0.1 0.5 0.75 0.2 0.5",
            Ok(&[[6.0, 4.0, 30.0, 30.0]]),
        ),
        ("0 0.5 0.5 1.01 1", Ok(&[[-0.3, 0.0, 60.3, 40.0]])),
        (
            "2 0.5 0.5 1 1",
            Err("line 1: the class is 2, there are 2 classes"),
        ),
        ("-1 0.5 0.5 1 1", Err("the class is \"-1\"")),
        ("cat 0.5 0.5 1 1", Err("the class is \"cat\"")),
        ("0 0.5 0.5 1", Err("3 numbers behind the class")),
        ("0 30 20 60 40", Err("no fractions")),
        ("0 0.5 nan 1 1", Err("\"nan\" is not a number")),
        ("0 0.5 0.5 1 1\n0 0.5", Err("line 2")),
    ];
    for (text, expected) in cases {
        let dir = TempDir::new().unwrap();
        let files = [
            ("a.jpg", ""),
            ("a.txt", text),
            ("b.jpg", ""),
            ("b.txt", "1 0.5 0.5 0.5 0.5"),
            ("c.jpg", ""),
            ("classes.txt", "cat\ndog"),
        ];
        put(dir.path(), &files);
        let source = Annotated::yolo(dir.path(), None).unwrap();
        assert!(
            source.notes()[0]
                .reason
                .starts_with("1 images have no text file"),
            "{text}"
        );
        let found = objects(&source);
        match expected {
            Ok(boxes) => {
                let pairs = found[0]
                    .1
                    .boxes
                    .iter()
                    .flatten()
                    .zip(boxes.iter().flatten());
                assert!(
                    pairs.clone().all(|(a, b)| (a - b).abs() < 1e-4),
                    "{text}: {found:?}"
                );
                assert_eq!(found[0].1.len(), boxes.len());
            }
            Err(said) => {
                assert_eq!((found.len(), found[0].0.as_str()), (2, "b.jpg"), "{text}");
                assert!(
                    source.skipped()[0].reason.contains(said),
                    "{:?}",
                    source.skipped()
                );
            }
        }
    }
}

#[test]
fn yolo_without_names_or_images_says_what_is_missing() {
    let dir = TempDir::new().unwrap();
    put(
        dir.path(),
        &[("images/a.jpg", ""), ("labels/a.txt", "0 0.5 0.5 1 1")],
    );
    let error = Annotated::yolo(dir.path(), None).unwrap_err().to_string();
    assert!(
        error.contains("data.yaml") && error.contains("classes.txt"),
        "{error}"
    );
    assert!(
        Annotated::yolo(dir.path(), Some("val"))
            .unwrap_err()
            .to_string()
            .contains("images/val")
    );
    put(dir.path(), &[("data.yaml", "names: {0: a, 2: b}")]);
    let error = Annotated::yolo(dir.path(), None).unwrap_err().to_string();
    assert!(error.contains("names has no 1"), "{error}");
    put(dir.path(), &[("data.yaml", "names: [a\n")]);
    assert!(matches!(
        Annotated::yolo(dir.path(), None),
        Err(DataError::Format { .. })
    ));
    let empty = TempDir::new().unwrap();
    assert!(matches!(
        Annotated::yolo(empty.path(), None),
        Err(DataError::Empty { .. })
    ));
}

const CVAT: &str = "<?xml version=\"1.0\" encoding=\"utf-8\"?><annotations><version>1.1</version><meta><task>\
    <labels><label><name>car</name><attributes/></label><label><name>bus</name></label></labels></task></meta>\
    <image id=\"0\" name=\"a.jpg\" width=\"60\" height=\"40\">\
    <box label=\"bus\" occluded=\"0\" xtl=\"1.5\" ytl=\"2\" xbr=\"20\" ybr=\"30.25\" z_order=\"0\"></box>\
    <polygon label=\"car\" points=\"5,6;20,8;10.5,30\"/><ellipse label=\"car\" cx=\"10\" cy=\"10\" rx=\"5\" ry=\"2\"/>\
    <polyline label=\"car\" points=\"1,1;2,2\"/></image>\
    <image id=\"1\" name=\"sub/b.jpg\" width=\"60\" height=\"40\"/></annotations>";

#[test]
fn cvat_boxes_polygons_and_what_is_neither() {
    for images in ["images", "."] {
        let dir = TempDir::new().unwrap();
        let names = [format!("{images}/a.jpg"), format!("{images}/sub/b.jpg")];
        put(
            dir.path(),
            &[(&names[0], ""), (&names[1], ""), ("annotations.xml", CVAT)],
        );
        let source = Annotated::cvat(&dir.path().join("annotations.xml"), None).unwrap();
        assert_eq!(source.class_names(), ["car", "bus"]);
        let found = objects(&source);
        assert_eq!(
            found[0].1.boxes,
            [
                [1.5, 2.0, 20.0, 30.25],
                [5.0, 6.0, 20.0, 30.0],
                [5.0, 8.0, 15.0, 12.0]
            ]
        );
        assert_eq!(found[0].1.labels, [1, 0, 0]);
        assert!(found[1].1.is_empty());
        assert!(source.notes()[0].reason.contains("<polyline>"));
        write(&source, &dir.path().join("set"), &PackOptions::default());
        assert_eq!(Pack::open(dir.path().join("set")).unwrap().len(), 2);
    }
    for (from, to, said) in [
        ("xtl=\"1.5\"", "", "it has no xtl"),
        ("xtl=\"1.5\"", "xtl=\"left\"", "xtl is \"left\""),
        (
            "label=\"bus\"",
            "label=\"tram\"",
            "label \"tram\" is unknown",
        ),
        ("5,6;20,8", "5;6", "points are"),
        ("name=\"a.jpg\"", "name=\"z.jpg\"", "no such image"),
    ] {
        let dir = TempDir::new().unwrap();
        // Another image with an object remains.
        let text = CVAT.replacen(from, to, 1).replace(
            "height=\"40\"/></annotations>",
            "height=\"40\"><box label=\"car\" xtl=\"1\" ytl=\"1\" xbr=\"9\" ybr=\"9\"/></image></annotations>",
        );
        put(
            dir.path(),
            &[("a.jpg", ""), ("sub/b.jpg", ""), ("annotations.xml", &text)],
        );
        let source =
            Annotated::cvat(&dir.path().join("annotations.xml"), Some(dir.path())).unwrap();
        assert_eq!((source.len(), source.skipped().len()), (1, 1), "{to}");
        assert!(
            source.skipped()[0].reason.contains(said),
            "{:?}",
            source.skipped()
        );
    }
    let dir = TempDir::new().unwrap();
    put(
        dir.path(),
        &[("v.xml", "<annotations><track id=\"0\"/></annotations>")],
    );
    let error = Annotated::cvat(&dir.path().join("v.xml"), None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("CVAT for images"), "{error}");
}
