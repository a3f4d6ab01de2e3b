//! Average precisions against pycocotools and a VOC evaluation in NumPy, on random detections with
//! difficult objects, tied scores, and classes without objects or detections
//! (`golden/make_detect_metrics.py`).

use pirl_data::Objects;
use pirl_eval::EvalError;
use pirl_eval::detect::{DetectMetric, Detection, VocReport, coco_metrics, voc_metrics};
use serde::Deserialize;

const TOLERANCE: f64 = 1e-6;

/// Corners, class, difficult.
type Annotated = (f32, f32, f32, f32, u32, bool);
/// Corners, class, score.
type Found = (f32, f32, f32, f32, usize, f64);

#[derive(Deserialize)]
struct Golden {
    objects: Vec<Vec<Annotated>>,
    detections: Vec<Vec<Found>>,
    /// By class and IoU threshold, percent.
    voc2007: Vec<[f64; 10]>,
    area: Vec<[f64; 10]>,
    curve: [Vec<f64>; 2],
    coco: [f64; 12],
    coco_per_class: Vec<f64>,
}

impl Golden {
    fn load() -> Self {
        serde_json::from_str(include_str!("golden/detect_metrics.json")).expect("the fixture")
    }

    fn objects(&self) -> Vec<Objects> {
        let image = |rows: &Vec<Annotated>| {
            let mut objects = Objects::default();
            for &(x0, y0, x1, y1, label, difficult) in rows {
                objects.push([x0, y0, x1, y1], label, difficult);
            }
            objects
        };
        self.objects.iter().map(image).collect()
    }

    fn detections(&self) -> Vec<Vec<Detection>> {
        let found = |&(x0, y0, x1, y1, label, score): &Found| Detection {
            bbox: [x0, y0, x1, y1],
            label,
            score: score as f32,
        };
        let images = self.detections.iter();
        images
            .map(|rows| rows.iter().map(found).collect())
            .collect()
    }
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|label| format!("class {label}")).collect()
}

fn assert_close(name: &str, got: f64, want: f64) {
    assert!(
        (got - want).abs() < TOLERANCE,
        "{name} is {got}, should be {want}"
    );
}

#[test]
fn voc_precisions_are_the_devkits() {
    let golden = Golden::load();
    let classes = names(golden.area.len());
    for (metric, table) in [
        (DetectMetric::Voc2007, &golden.voc2007),
        (DetectMetric::Area, &golden.area),
    ] {
        let report =
            voc_metrics(&golden.detections(), &golden.objects(), &classes, metric).unwrap();
        assert_eq!(report.per_class.len(), table.len());
        for (name, row) in classes.iter().zip(table) {
            let class = &report.per_class[name];
            assert_close(name, class.ap, row.iter().sum::<f64>() / 10.0);
            assert_close(name, class.ap50, row[0]);
            assert_close(name, class.ap75, row[5]);
        }
        let mean = |at: usize| table.iter().map(|row| row[at]).sum::<f64>() / table.len() as f64;
        assert_close("AP", report.ap, (0..10).map(mean).sum::<f64>() / 10.0);
        assert_close("AP50", report.ap50, mean(0));
        assert_close("AP75", report.ap75, mean(5));
        let curve = &report.per_class[&classes[0]].curve;
        for (got, want) in [
            (&curve.recall, &golden.curve[0]),
            (&curve.precision, &golden.curve[1]),
        ] {
            assert_eq!(got.len(), want.len());
            got.iter()
                .zip(want)
                .for_each(|(g, w)| assert_close("the curve", *g, *w));
        }
        assert!(curve.scores.is_sorted_by(|a, b| a >= b));
    }
    let table = golden.area.as_flattened();
    assert!(table.iter().any(|&ap| ap > 50.0) && table.contains(&0.0));
}

#[test]
fn coco_numbers_are_pycocotools() {
    let golden = Golden::load();
    let classes = names(golden.area.len());
    let report = coco_metrics(&golden.detections(), &golden.objects(), &classes).unwrap();
    let got = report.statistics();
    for (i, (got, want)) in got.into_iter().zip(golden.coco).enumerate() {
        assert_close(&format!("statistic {i}"), got.unwrap(), 100.0 * want);
        assert!(want > 0.0, "statistic {i} shows nothing");
    }
    for (name, &want) in classes.iter().zip(&golden.coco_per_class) {
        match report.per_class[name] {
            Some(got) => assert_close(name, got, 100.0 * want),
            None => assert_eq!(want, -1.0, "{name}"),
        }
    }
    assert!(report.per_class.values().any(Option::is_none));
}

fn objects(boxes: &[([f32; 4], bool)]) -> Objects {
    let mut objects = Objects::default();
    boxes
        .iter()
        .for_each(|&(bbox, difficult)| objects.push(bbox, 0, difficult));
    objects
}

fn found(bbox: [f32; 4], score: f32) -> Detection {
    Detection {
        bbox,
        label: 0,
        score,
    }
}

fn voc(detections: &[Vec<Detection>], objects: &[Objects]) -> VocReport {
    voc_metrics(detections, objects, &names(1), DetectMetric::Area).unwrap()
}

#[test]
fn duplicates_are_wrong_and_difficult_objects_do_not_count() {
    let (a, b) = ([0.0, 0.0, 10.0, 10.0], [50.0, 0.0, 60.0, 10.0]);
    let truth = [objects(&[(a, false), (b, true)])];
    let once = voc(&[vec![found(a, 0.9)]], &truth);
    assert_eq!((once.ap50, once.ap), (100.0, 100.0));
    assert_eq!(once.per_class["class 0"].objects, 1);
    // Difficult ones found first and twice change nothing; the duplicate comes too late to matter.
    let more = vec![found(b, 0.99), found(b, 0.95), found(a, 0.9), found(a, 0.8)];
    let report = voc(&[more], &truth);
    assert_eq!(report.ap50, 100.0);
    assert_eq!(
        report.per_class["class 0"].curve.precision,
        [0.0, 0.0, 1.0, 0.5]
    );
    // In another image the object is not there.
    let elsewhere = voc(
        &[vec![], vec![found(a, 0.9)]],
        &[truth[0].clone(), objects(&[])],
    );
    assert_eq!(elsewhere.ap50, 0.0);
}

#[test]
fn sets_without_images_objects_or_detections_have_numbers() {
    let empty = voc(&[], &[]);
    assert_eq!((empty.ap, empty.ap50, empty.ap75), (0.0, 0.0, 0.0));
    assert_eq!(
        voc(&[vec![found([0.0, 0.0, 5.0, 5.0], 0.5)]], &[objects(&[])]).ap,
        0.0
    );
    let none = voc_metrics(&[], &[], &[], DetectMetric::Voc2007).unwrap();
    assert!(none.ap == 0.0 && none.per_class.is_empty());
    let coco = coco_metrics(&[vec![]], &[objects(&[])], &names(2)).unwrap();
    assert!(coco.ap.is_none() && coco.ar100.is_none() && coco.per_class["class 1"].is_none());
    let missed = coco_metrics(
        &[vec![]],
        &[objects(&[([0.0, 0.0, 5.0, 5.0], false)])],
        &names(1),
    );
    assert_eq!(missed.unwrap().ap, Some(0.0));
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let bbox = [0.0, 0.0, 5.0, 5.0];
    let truth = [objects(&[(bbox, false)])];
    let refused = |detections: &[Vec<Detection>], truth: &[Objects], classes: usize| -> EvalError {
        let classes = names(classes);
        let coco = coco_metrics(detections, truth, &classes).unwrap_err();
        let voc = voc_metrics(detections, truth, &classes, DetectMetric::Area).unwrap_err();
        assert_eq!(coco.to_string(), voc.to_string());
        voc
    };
    let error = refused(&[], &truth, 1).to_string();
    assert!(
        error.contains("expected 1") && error.contains("found 0"),
        "{error}"
    );
    assert!(matches!(
        refused(&[vec![]], &truth, 0),
        EvalError::Label {
            index: 0,
            label: 0,
            ..
        }
    ));
    for bad in [
        found([0.0, f32::NAN, 5.0, 5.0], 0.5),
        found(bbox, f32::INFINITY),
        Detection {
            label: 1,
            ..found(bbox, 0.5)
        },
    ] {
        let error = refused(&[vec![found(bbox, 0.5), bad]], &truth, 1).to_string();
        assert!(error.contains("detection 1 of image 0"), "{error}");
    }
}
