//! `model.ops = "reference"`: everything by Candle's own differentiable operations, the way that
//! devices without fast ones go, beside the fast way, step by step.

mod common;

use std::fs;

use common::{Bench, rows};
use serde_json::Value;

const REFERENCE: [&str; 2] = ["--set", "model.ops=reference"];

/// `--set` before each.
fn set<'a>(settings: &[&'a str]) -> Vec<&'a str> {
    settings
        .iter()
        .flat_map(|&setting| ["--set", setting])
        .collect()
}

/// Every number of `key` in a run's metrics.
fn numbers(rows: &[Value], key: &str) -> Vec<f64> {
    rows.iter().filter_map(|row| row[key].as_f64()).collect()
}

fn assert_near(what: &str, fast: &[f64], reference: &[f64], tolerance: f64) {
    assert_eq!(fast.len(), reference.len(), "{what}");
    for (step, (fast, reference)) in fast.iter().zip(reference).enumerate() {
        assert!(
            (fast - reference).abs() <= tolerance * reference.abs().max(1e-3),
            "{what}, line {step}: {fast} by the fast ops, {reference} by the reference"
        );
    }
}

#[test]
fn every_kind_of_training_has_the_same_losses() {
    let bench = Bench::new();
    bench.pack("pack", 40);
    let kinds: [(&str, &[&str]); 7] = [
        ("jigsaw", &["bank.init=random"]),
        (
            "imagenet-stem",
            &[
                "model.stem=imagenet",
                "data.image_size=64",
                "eval.resize=64",
            ],
        ),
        (
            "nce",
            &[
                "loss.kind=nce",
                "loss.sampling=per-image",
                "optim.kind=lars",
                "train.micro_batch=4",
            ],
        ),
        (
            "rotation",
            &[
                "pretext.kind=rotation",
                "loss.kind=infonce",
                "model.head=mlp",
            ],
        ),
        (
            "npid",
            &[
                "pretext.kind=none",
                "loss.lambda=0.0",
                "optim.nesterov=true",
            ],
        ),
        (
            "covariant",
            &["loss.kind=covariant", "pretext.permutations=10"],
        ),
        ("supervised", &["loss.kind=supervised", "pretext.kind=none"]),
    ];
    for (name, settings) in kinds {
        // Training on a few images is chaotic: at larger rates rounding is soon seen. What a step
        // does is compared with PyTorch in both ways in pirl-train's `tests/trajectory.rs`.
        let small = ["train.steps=3", "train.batch_size=16", "optim.lr=0.0001"];
        let settings = set(&[&small[..], settings].concat());
        let reference = format!("{name}-reference");
        bench.pirl(&bench.pretrain(name, &settings)).success();
        let settings = [&settings[..], &REFERENCE].concat();
        bench.pirl(&bench.pretrain(&reference, &settings)).success();
        let (fast, slow) = (rows(&bench.path(name)), rows(&bench.path(&reference)));
        assert_eq!(fast.len(), 3);
        let (fast, slow) = (numbers(&fast, "loss"), numbers(&slow, "loss"));
        assert_near(name, &fast, &slow, 1e-4);
        assert_ne!(fast, slow, "{name}: the same code ran twice");
    }
}

#[test]
fn every_evaluation_comes_to_the_same() {
    let bench = Bench::new();
    bench.pack("pack", 40);
    bench
        .pirl(&bench.pretrain("run", &set(&["train.steps=2"])))
        .success();
    let eval = |kind: &str, more: &[&str]| -> Value {
        let arguments = [
            "eval",
            kind,
            "--weights",
            "run",
            "--train",
            "pack",
            "--test",
            "pack",
        ];
        bench.json(&[&arguments[..], more].concat())
    };
    let precise = set(&["eval.precise_batch_norm=32", "eval.knn.k=3"]);
    for kind in ["linear", "knn"] {
        let fast = eval(kind, &precise);
        let slow = eval(kind, &[&precise[..], &REFERENCE].concat());
        for (layer, fast) in fast["layers"].as_object().unwrap() {
            let top1 = |report: &Value| report["top1"].as_f64().unwrap();
            let (fast, slow) = (top1(fast), top1(&slow["layers"][layer]));
            // An image of the 40 may lie on the boundary.
            assert!(
                (fast - slow).abs() <= 2.5,
                "{kind} {layer}: {fast}, reference {slow}"
            );
        }
    }
    let tune = set(&[
        "eval.finetune.batch_size=8",
        "eval.finetune.epochs=1",
        "eval.finetune.lr=0.001",
        "checkpoint.every=1",
    ]);
    let mut weights = Vec::new();
    for (out, more) in [("fast", &[][..]), ("reference", &REFERENCE)] {
        eval("finetune", &[&tune[..], more, &["--out", out]].concat());
        let file = bench
            .path(out)
            .join("checkpoints/step-00000005/model.safetensors");
        let file = fs::read(file).unwrap();
        let file = safetensors::SafeTensors::deserialize(&file).unwrap();
        let (floats, _) = file.tensor("fc.weight").unwrap().data().as_chunks::<4>();
        let floats = floats.iter().map(|x| f64::from(f32::from_le_bytes(*x)));
        weights.push(floats.collect::<Vec<_>>());
    }
    let largest = weights[1].iter().fold(0f64, |most, x| most.max(x.abs()));
    for (fast, slow) in weights[0].iter().zip(&weights[1]) {
        assert!(
            (fast - slow).abs() < 1e-4 * largest,
            "{fast}, reference {slow}"
        );
    }
    assert_ne!(weights[0], weights[1], "the same code ran twice");
}
