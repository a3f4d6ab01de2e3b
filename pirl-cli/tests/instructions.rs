//! `PIRL_INSTRUCTIONS` holds a run to fewer instruction sets than the processor has.

mod common;

use std::fs;

use common::Bench;
use pirl_core::Instructions;

#[test]
fn packs_are_the_same_and_losses_nearly_by_every_instruction_set() {
    let bench = Bench::new();
    bench.images("images", 24);
    let mut found = Vec::new();
    for set in Instructions::ALL.map(Instructions::name) {
        let (pack, out) = (format!("pack-{set}"), format!("run-{set}"));
        let packing = ["data", "pack", "--input", "images", "--output", &pack];
        let packing = [&packing[..], &["--reencode", "jpeg"]].concat();
        let with = |arguments: &[&str]| {
            let mut command = bench.command(arguments);
            command.env("PIRL_INSTRUCTIONS", set).assert().success();
        };
        with(&packing);
        let training = [
            "pretrain",
            "--recipe",
            "tiny.toml",
            "--data",
            &pack,
            "--out",
            &out,
        ];
        with(&[&training[..], &["--set", "train.steps=4"]].concat());
        let pack = fs::read(bench.path(&format!("{pack}.safetensors"))).unwrap();
        found.push((set, pack, bench.losses(&out)));
    }
    let (_, pack, losses) = &found[0];
    assert_eq!(losses.len(), 4);
    // Without fused products something rounds otherwise, or the variable does nothing.
    if Instructions::of_processor() > Instructions::Baseline {
        assert_ne!(losses, &found[1].2);
    }
    for (set, other, others) in &found[1..] {
        assert!(other == pack, "{set}: another pack");
        for ((step, loss), (_, other)) in losses.iter().zip(others) {
            let (loss, other) = (f32::from_bits(*loss), f32::from_bits(*other));
            let near = if *step == 1 { 1e-5 } else { 1e-3 };
            assert!((other / loss - 1.0).abs() < near, "{set}: {other}, {loss}");
        }
    }
}

#[test]
fn a_set_that_there_is_not_is_refused_with_all_there_are() {
    let bench = Bench::new();
    let mut command = bench.command(&["data", "inspect", "pack"]);
    let assert = command.env("PIRL_INSTRUCTIONS", "AVX3").assert().code(1);
    let said = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    let expected = "PIRL_INSTRUCTIONS = AVX3: must be one of baseline, avx2, avx512, avx512_bf16";
    assert!(said.contains(expected), "{said}");
}
