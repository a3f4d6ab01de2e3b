//! A bank in a file of the run's folder.

mod common;

use std::process::Stdio;
use std::time::Duration;

use common::Bench;

fn with<'a>(settings: &[&'a str]) -> Vec<&'a str> {
    let set = settings.iter().flat_map(|&setting| ["--set", setting]);
    ["--set", "bank.init=random"]
        .into_iter()
        .chain(set)
        .collect()
}

#[test]
fn a_mapped_bank_has_the_losses_of_one_in_memory_and_resumes_to_the_bit() {
    let bench = Bench::new();
    bench.pack("pack", 40);
    let mapped = ["bank.storage=mapped", "checkpoint.every=4"];
    bench.pirl(&bench.pretrain("memory", &with(&[]))).success();
    bench
        .pirl(&bench.pretrain("mapped", &with(&mapped)))
        .success();
    assert_eq!(bench.losses("memory"), bench.losses("mapped"));
    // Killed between checkpoints, its file has steps that the run does again.
    let begin = bench.pretrain("killed", &with(&mapped));
    let resume = [begin.as_slice(), &["--resume"]].concat();
    for round in 0..3 {
        let begun = bench.path("killed").join("config.toml").is_file();
        let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("pirl"))
            .args(if begun { &resume } else { &begin })
            .current_dir(bench.path("."))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(150 + 120 * round));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    bench.pirl(&resume).success();
    assert_eq!(bench.losses("memory"), bench.losses("killed"));
}

#[test]
fn settings_that_need_the_bank_in_memory_are_refused() {
    let bench = Bench::new();
    bench.pack("pack", 40);
    let settings = ["bank.storage=mapped", "loss.sampling=per-image"];
    let said = bench.fails(&bench.pretrain("run", &with(&settings)));
    assert!(said.contains("loss.sampling = \"shared\""), "{said}");
    assert!(!bench.path("run").exists());
}
