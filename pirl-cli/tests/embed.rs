//! `pirl embed`: features in files.

mod common;

use std::fs;

use common::Bench;
use serde_json::json;

fn embed<'a>(weights: &'a str, output: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let arguments = [
        "embed",
        "--weights",
        weights,
        "--data",
        "pack",
        "--output",
        output,
    ];
    [&arguments[..], more].concat()
}

#[test]
fn a_runs_features_and_embeddings_are_written() {
    let bench = Bench::new();
    bench.pack("pack", 24);
    let precise = [
        "--set",
        "train.epochs=1",
        "--set",
        "eval.precise_batch_norm=16",
    ];
    bench.pirl(&bench.pretrain("run", &precise)).success();
    let result = bench.json(&embed(
        "run",
        "all.safetensors",
        &["--layer", "res4,res5,embedding"],
    ));
    assert_eq!(
        result["layers"],
        json!({ "res4": 64, "res5": 128, "embedding": 16 })
    );
    assert_eq!(
        (&result["images"], &result["format"]),
        (&json!(24), &json!("safetensors"))
    );
    assert_eq!(result["weights"]["precise_batch_norm"]["saved"], true);
    let bytes = fs::read(bench.path("all.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let embeddings = file.tensor("embedding").unwrap();
    assert_eq!(embeddings.shape(), [24, 16]);
    let numbers = embeddings.data().chunks(4);
    let numbers: Vec<f32> = numbers
        .map(|word| f32::from_le_bytes(word.try_into().unwrap()))
        .collect();
    for row in numbers.chunks(16) {
        assert!((row.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
    }

    let grid = ["--set", "eval.pool=grid"];
    let result = bench.json(&embed("run", "res5.npy", &grid));
    assert_eq!(
        (&result["layers"]["res5"], &result["pool"]),
        (&json!(128 * 4), &json!("grid"))
    );
    assert_eq!(
        bench
            .read(result["labels"].as_str().unwrap())
            .lines()
            .count(),
        25
    );

    let both = ["--set", "eval.pool=[\"average\", \"grid\"]"];
    for (layer, dim) in [("res5", 128), ("res5/grid", 128 * 4)] {
        let layers = ["--layer", layer];
        let result = bench.json(&embed("run", "res5.npy", &[&both[..], &layers].concat()));
        assert_eq!(result["layers"], json!({ layer: dim }));
    }

    let text = bench.read(result["labels"].as_str().unwrap());
    assert!(
        text.starts_with("index,label,class,name\n0,0,bars,bars/0000.png\n"),
        "{text}"
    );

    let of_file = "run/checkpoints/step-00000003/model.safetensors";
    bench
        .pirl(&embed(of_file, "a.csv", &["--layer", "embedding"]))
        .success();
}

#[test]
fn what_cannot_be_embedded_is_refused_with_the_way_out() {
    let bench = Bench::new();
    bench.pack("pack", 8);
    let recipe = ["--recipe", "tiny.toml"];
    let refused = |output: &str, more: &[&str], wanted: &[&str]| {
        let message = bench.fails(&embed("random", output, &[&recipe[..], more].concat()));
        for part in wanted {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert!(!bench.path(output).exists());
    };
    refused(
        "a.csv",
        &["--layer", "embedding"],
        &["--layer embedding", "a run of PIRL"],
    );
    refused("a.csv", &["--layer", "res9"], &["no layer res9", "res5avg"]);
    refused("a.bin", &[], &["a.bin", ".safetensors"]);
    refused("a.npy", &["--layer", "res4,res5"], &["one layer"]);
}
