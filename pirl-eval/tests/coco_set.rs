//! A set read from COCO's own JSON is judged as pycocotools judges it (`golden/make_coco_set.py`).

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use pirl_data::{Annotated, Objects, Source};
use pirl_eval::detect::{Detection, coco_metrics};
use serde_json::Value;

#[test]
fn coco_numbers_of_a_set_read_from_its_json_are_those_of_pycocotools() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/coco_set.json");
    let golden: Value = serde_json::from_slice(&fs::read(golden).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("instances_val.json");
    fs::write(&file, golden["instances"].to_string()).unwrap();
    let images = golden["instances"]["images"].as_array().unwrap();
    for image in images {
        // A file of this name is enough: boxes are judged, not pixels.
        let name = image["file_name"].as_str().unwrap();
        fs::write(folder.path().join(name), b"\x89PNG\r\n\x1a\n").unwrap();
    }
    let source = Annotated::coco(&file, None).unwrap();
    assert_eq!(source.class_names(), ["bus", "pen", "cup", "fox"]);
    let objects: Vec<Objects> = (0..source.len())
        .map(|index| source.read(index).unwrap().objects.unwrap())
        .collect();
    let place: HashMap<u64, usize> = images
        .iter()
        .enumerate()
        .map(|(place, image)| (image["id"].as_u64().unwrap(), place))
        .collect();
    let label = |id: &Value| {
        [2, 17, 44, 90]
            .iter()
            .position(|known| id == known)
            .unwrap()
    };
    let mut detections = vec![Vec::new(); objects.len()];
    for found in golden["detections"].as_array().unwrap() {
        let side = |at: usize| found["bbox"][at].as_f64().unwrap() as f32;
        detections[place[&found["image_id"].as_u64().unwrap()]].push(Detection {
            bbox: [side(0), side(1), side(0) + side(2), side(1) + side(3)],
            label: label(&found["category_id"]),
            score: found["score"].as_f64().unwrap() as f32,
        });
    }
    let report = coco_metrics(&detections, &objects, source.class_names()).unwrap();
    let found = report.statistics();
    for (number, (found, expected)) in found
        .iter()
        .zip(golden["stats"].as_array().unwrap())
        .enumerate()
    {
        let (found, expected) = (found.unwrap(), expected.as_f64().unwrap());
        assert!(
            (found - expected).abs() < 1e-6,
            "{number}: {found}, pycocotools {expected}"
        );
    }
    assert!(
        report.to_string().contains("COCO precision: AP "),
        "{report}"
    );
}
