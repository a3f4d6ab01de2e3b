//! Training with labels on the command line.

mod common;

use common::{Bench, rows};

const SUPERVISED: [&str; 4] = [
    "--set",
    "loss.kind=supervised",
    "--set",
    "pretext.kind=none",
];

#[test]
fn labels_are_learnt_and_a_resumed_run_is_the_same() {
    let bench = Bench::new();
    bench.pack("pack", 48);
    let train = |out: &str, more: &[&str]| {
        let more = [&SUPERVISED, more].concat();
        bench.pirl(&bench.pretrain(out, &more)).success();
    };
    // Colours and shapes stay, so that few steps are enough.
    let settings = [
        "train.epochs=10",
        "optim.lr=0.02",
        "transform.image.scale=[0.8, 1.0]",
        "transform.image.jitter_probability=0.0",
        "transform.image.photometric=0.0",
        "transform.image.gray=0.0",
    ]
    .map(|setting| ["--set", setting])
    .concat();
    train("whole", &settings);
    let lines = rows(&bench.path("whole"));
    let mean = |rows: &[serde_json::Value]| {
        let top1 = rows.iter().map(|row| row["top1"].as_f64().unwrap());
        top1.sum::<f64>() / rows.len() as f64
    };
    let (first, last) = (mean(&lines[..6]), mean(&lines[54..]));
    assert!(last > 90.0 && last > first, "{first} to {last}");
    assert!(lines[0].get("loss_image").is_none());

    train(
        "parts",
        &[&settings[..], &["--set", "train.steps=20"]].concat(),
    );
    train("parts", &[&settings[..], &["--resume"]].concat());
    assert_eq!(bench.losses("parts"), bench.losses("whole"));

    // What it learnt, by the way of every other run.
    let knn = bench.json(&[
        "eval",
        "knn",
        "--weights",
        "whole",
        "--train",
        "pack",
        "--test",
        "pack",
        "--set",
        "eval.knn.k=5",
    ]);
    assert!(knn["top1"].as_f64().unwrap() > 90.0, "{knn}");
}

#[test]
fn images_without_labels_and_views_without_use_are_refused() {
    let bench = Bench::new();
    bench.images("images", 16);
    std::fs::create_dir(bench.path("flat")).unwrap();
    for class in ["bars", "rings"] {
        for entry in std::fs::read_dir(bench.path("images").join(class)).unwrap() {
            let entry = entry.unwrap();
            std::fs::rename(entry.path(), bench.path("flat").join(entry.file_name())).unwrap();
        }
    }
    let pack = [
        "data",
        "pack",
        "--format",
        "image-folder",
        "--input",
        "flat",
        "--output",
        "pack",
    ];
    bench.pirl(&pack).success();
    let message = bench.fails(&bench.pretrain("run", &SUPERVISED));
    assert!(
        message.contains("labels") && message.contains("sub-folder"),
        "{message}"
    );
    let message = bench.fails(&bench.pretrain("run", &SUPERVISED[..2]));
    assert!(message.contains("pretext.kind"), "{message}");
    assert!(!bench.path("run").exists());
}
