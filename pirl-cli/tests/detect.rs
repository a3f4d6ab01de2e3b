//! `pirl data compose` and `pirl eval detect`, from a pack of items to a result.

mod common;

use std::fs;

use common::Bench;
use serde_json::Value;

/// A detector that takes a second.
const TINY_DETECTOR: &str = r#"
base = "tiny.toml"
[model]
stem = "imagenet"
[log]
every = 2
[checkpoint]
every = 2
[eval.detect]
steps = 6
batch_size = 2
micro_batch = 1
evaluate_every = 4
[eval.detect.optim]
warmup_steps = 2
milestones = [5]
[eval.detect.input]
train_sizes = [64, 80]
test_size = 64
[eval.detect.backbone]
frozen_stages = 1
norm = "train"
[eval.detect.anchors]
sizes = [16.0, 32.0]
[eval.detect.rpn]
samples = 16
post_nms_train = 20
post_nms_test = 10
[eval.detect.roi]
samples = 8
pool_size = 4
"#;

/// Packs of scenes called `scenes-train` and `scenes-test`, and the recipe of a tiny detector.
fn bench() -> Bench {
    let bench = Bench::new();
    fs::write(bench.path("detector.toml"), TINY_DETECTOR).unwrap();
    bench.pack("items", 8);
    for (split, scenes) in [("train", "6"), ("test", "4")] {
        let compose = ["data", "compose", "--input", "items", "--output", "scenes"];
        let report = bench.json(&[&compose[..], &["--split", split, "--scenes", scenes]].concat());
        assert_eq!(report["scenes"].to_string(), scenes);
        assert!(report["objects"].as_u64().unwrap() >= 4, "{report}");
        let pack = ["data", "pack", "--format", "voc", "--input", "scenes"];
        let output = format!("scenes-{split}");
        let pack = [&pack[..], &["--split", split, "--output", &output]].concat();
        bench.pirl(&pack).success();
    }
    bench
}

fn detect<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let arguments = [
        "eval",
        "detect",
        "--weights",
        "random",
        "--recipe",
        "detector.toml",
    ];
    let packs = ["--train", "scenes-train", "--test", "scenes-test"];
    [&arguments[..], &packs, more].concat()
}

fn rows(bench: &Bench, run: &str) -> Vec<Value> {
    let text = fs::read_to_string(bench.path(run).join("metrics.jsonl")).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str(line).unwrap());
    rows.collect()
}

#[test]
fn a_detector_is_trained_tested_and_resumed() {
    let bench = bench();
    let result = bench.json(&detect(&["--out", "whole"]));
    for key in ["ap", "ap50", "ap75"] {
        let value = result[key].as_f64().unwrap();
        assert!((0.0..=100.0).contains(&value), "{key}: {value}");
    }
    let classes: Vec<_> = result["per_class"].as_object().unwrap().keys().collect();
    assert_eq!(classes, ["bars", "rings"]);
    assert_eq!(result["steps"], 6);
    assert_eq!(result["settings"]["optim"]["milestones"][0], 5);
    let saved = fs::read(bench.path("whole/result.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&saved).unwrap(), result);
    let found = fs::read(bench.path("whole/detections.json")).unwrap();
    assert!(serde_json::from_slice::<Value>(&found).unwrap().is_array());

    for (picture, least) in [("detections.png", 320), ("precision_recall.png", 480)] {
        let picture = image::open(bench.path("whole").join(picture)).unwrap();
        assert!(
            picture.width() >= least && picture.height() >= 200,
            "{picture:?}"
        );
    }

    let whole = rows(&bench, "whole");
    let steps: Vec<_> = whole
        .iter()
        .map(|row| row["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [2, 4, 6]);
    for row in &whole {
        for key in ["epoch", "loss", "lr", "images_per_second", "loss_rpn_box"] {
            assert!(row[key].as_f64().unwrap() >= 0.0, "{key} of {row}");
        }
    }
    let evaluated = |row: &Value| row["ap50"].is_number();
    assert_eq!(
        whole.iter().map(evaluated).collect::<Vec<_>>(),
        [false, true, true]
    );

    // Stopped after 4 steps and resumed, the losses and the result are the same.
    bench
        .pirl(&detect(&["--out", "cut", "--set", "eval.detect.steps=4"]))
        .success();
    let resumed = bench.json(&detect(&["--out", "cut", "--resume"]));
    assert_eq!(resumed["per_class"], result["per_class"]);
    let losses = |run: &str| -> Vec<_> {
        let rows = rows(&bench, run);
        rows.iter().map(|row| row["loss"].to_string()).collect()
    };
    assert_eq!(losses("cut"), losses("whole"));

    // Other settings or weights are another run.
    let other = [
        "--out",
        "cut",
        "--resume",
        "--set",
        "eval.detect.optim.lr=1",
    ];
    assert!(
        bench
            .fails(&detect(&other))
            .contains("eval.detect.optim.lr")
    );
    let other = ["--out", "cut", "--resume", "--seed", "9"];
    assert!(bench.fails(&detect(&other)).contains("seed"));
    assert!(bench.fails(&detect(&["--out", "cut"])).contains("--resume"));
}

#[test]
fn the_reference_ops_have_the_same_losses() {
    let bench = bench();
    let settings = ["--set", "log.every=1", "--set", "eval.detect.steps=2"];
    let losses = |out: &str, more: &[&str]| -> Vec<f64> {
        bench
            .pirl(&detect(&[&settings[..], more, &["--out", out]].concat()))
            .success();
        let rows = rows(&bench, out);
        let keys = [
            "loss_rpn_objectness",
            "loss_rpn_box",
            "loss_class",
            "loss_box",
        ];
        let of = |row: &Value| keys.map(|key| row[key].as_f64().unwrap());
        rows.iter().flat_map(of).collect()
    };
    let fast = losses("fast", &[]);
    let slow = losses("reference", &["--set", "model.ops=reference"]);
    assert_eq!(fast.len(), 8);
    for (fast, slow) in fast.iter().zip(&slow) {
        assert!(
            (fast - slow).abs() < 1e-4 * slow.max(0.1),
            "{fast}, reference {slow}"
        );
    }
    assert_ne!(fast, slow, "the same code ran twice");
}

#[test]
fn packs_without_objects_and_other_classes_are_refused() {
    let bench = bench();
    let with = |train, test| {
        let arguments = [
            "eval",
            "detect",
            "--weights",
            "random",
            "--recipe",
            "detector.toml",
        ];
        bench.fails(&[&arguments[..], &["--train", train, "--test", test]].concat())
    };
    let message = with("items", "items");
    assert!(message.contains("annotated object"), "{message}");
    fs::create_dir_all(bench.path("other/ImageSets/Main")).unwrap();
    for folder in ["JPEGImages", "Annotations"] {
        fs::create_dir_all(bench.path("other").join(folder)).unwrap();
        for entry in fs::read_dir(bench.path("scenes").join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let target = bench
                .path("other")
                .join(folder)
                .join(path.file_name().unwrap());
            fs::copy(path, target).unwrap();
        }
    }
    fs::write(bench.path("other/ImageSets/Main/test.txt"), "test_000000\n").unwrap();
    // The same classes in another order are matched by name; one that nothing was learnt of is not.
    let annotation = bench.path("other/Annotations/test_000000.xml");
    let text = fs::read_to_string(&annotation).unwrap();
    assert!(text.contains("<name>bars</name>"), "{text}");
    fs::write(
        &annotation,
        text.replace("<name>bars</name>", "<name>stars</name>"),
    )
    .unwrap();
    fs::write(bench.path("other/class_names.txt"), "stars\nrings\n").unwrap();
    let pack = [
        "data", "pack", "--format", "voc", "--input", "other", "--split", "test",
    ];
    bench
        .pirl(&[&pack[..], &["--output", "other"]].concat())
        .success();
    let message = with("scenes-train", "other");
    assert!(message.contains("stars"), "{message}");
    // No image set is left half done.
    let compose = [
        "data", "compose", "--input", "items", "--output", "scenes", "--split",
    ];
    let message = bench.fails(&[&compose[..], &["train"]].concat());
    assert!(message.contains("train.txt"), "{message}");
}
