//! Checkpoints that earlier versions wrote are resumed as they would have been by those.

mod common;

use std::fs;
use std::path::Path;

use common::Bench;

/// The run of `fixtures/run-445a1a6`, in a folder of the test's own.
fn old_run(bench: &Bench) {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/run-445a1a6");
    let checkpoint = "checkpoints/step-00000007";
    fs::create_dir_all(bench.path("run").join(checkpoint)).unwrap();
    fs::copy(
        fixture.join("pack.safetensors"),
        bench.path("pack.safetensors"),
    )
    .unwrap();
    let state =
        ["model", "optimizer", "bank"].map(|name| format!("{checkpoint}/{name}.safetensors"));
    let other = [
        "config.toml",
        "metrics.jsonl",
        "checkpoints/step-00000007/state.json",
    ];
    for file in state.iter().map(String::as_str).chain(other) {
        fs::copy(fixture.join(file), bench.path("run").join(file)).unwrap();
    }
    fs::create_dir(bench.path("whole")).unwrap();
    fs::copy(
        fixture.join("uninterrupted.jsonl"),
        bench.path("whole/metrics.jsonl"),
    )
    .unwrap();
}

/// With the momentum of the optimiser, the rows of the bank, and the constant Z of NCE.
#[test]
fn a_run_of_445a1a6_goes_on_as_if_it_had_never_stopped() {
    let bench = Bench::new();
    old_run(&bench);
    bench
        .pirl(&[
            "pretrain",
            "--recipe",
            "run/config.toml",
            "--set",
            "train.steps=0",
            // What that version had not: it rounds otherwise.
            "--set",
            "model.winograd=off",
            "--data",
            "pack",
            "--out",
            "run",
            "--resume",
        ])
        .success();
    let (found, expected) = (bench.losses("run"), bench.losses("whole"));
    assert_eq!(found.len(), 15);
    // Results are reproducible to the bit on one kind of processor; the fixture is from AVX2.
    if same_kind_of_processor() {
        return assert_eq!(found, expected);
    }
    for ((_, found), (_, expected)) in found.iter().zip(&expected) {
        let (found, expected) = (f32::from_bits(*found), f32::from_bits(*expected));
        assert!((found / expected - 1.0).abs() < 1e-3, "{found}, {expected}");
    }
}

#[cfg(target_arch = "x86_64")]
fn same_kind_of_processor() -> bool {
    is_x86_feature_detected!("avx2") && !is_x86_feature_detected!("avx512f")
}

#[cfg(not(target_arch = "x86_64"))]
fn same_kind_of_processor() -> bool {
    false
}
