//! Pre-training and evaluations by several processes that MPI joins: `cargo test -p pirl-cli --features mpi`.
#![cfg(feature = "mpi")]

mod common;

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{Bench, rows};
use serde_json::Value;

/// 48 images, batches of 12, steps of 4 an epoch.
fn bench() -> Bench {
    let bench = Bench::new();
    bench.pack("pack", 48);
    bench
}

/// `pirl` on so many ranks of one thread.
fn mpirun(bench: &Bench, ranks: usize, arguments: &[&str]) -> Command {
    let mut command = Command::new("mpirun");
    command
        .args([
            "--allow-run-as-root",
            "--oversubscribe",
            "--bind-to",
            "none",
        ])
        .args(["-n", &ranks.to_string()])
        .arg(assert_cmd::cargo::cargo_bin("pirl"))
        .args(arguments)
        .current_dir(bench.path("."))
        .env("RAYON_NUM_THREADS", "1")
        .env_remove("RUST_LOG");
    command
}

/// A pretrain command's further arguments, with `--set` before each of `settings`.
fn with<'a>(settings: &[&'a str]) -> Vec<&'a str> {
    let set = settings.iter().flat_map(|&setting| ["--set", setting]);
    ["--set", "train.batch_size=12"]
        .into_iter()
        .chain(set)
        .collect()
}

/// A run that must succeed, and its losses.
fn run(bench: &Bench, ranks: usize, out: &str, settings: &[&str]) -> Vec<f32> {
    let arguments = bench.pretrain(out, &with(settings));
    if ranks == 1 {
        bench.pirl(&arguments).success();
    } else {
        let output = mpirun(bench, ranks, &arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }
    losses(bench, out)
}

fn losses(bench: &Bench, out: &str) -> Vec<f32> {
    let losses = bench.losses(out).into_iter();
    losses.map(|(_, bits)| f32::from_bits(bits)).collect()
}

#[test]
fn two_and_three_ranks_have_the_losses_of_one_process() {
    let kinds: [&[&str]; 5] = [
        &["loss.kind=paper"],
        &["loss.kind=paper", "pretext.kind=none"],
        &["loss.kind=covariant", "pretext.permutations=5"],
        &["loss.kind=supervised", "pretext.kind=none"],
        &["loss.kind=paper", "bank.sharded=true"],
    ];
    for kind in kinds {
        let bench = bench();
        // Rounding grows from step to step, the faster the larger the steps.
        let steps = ["optim.lr=0.0001", "train.micro_batch=2", "train.epochs=5"];
        let settings = [kind, &steps].concat();
        let expected = run(&bench, 1, "one", &settings);
        assert_eq!(expected.len(), 20);
        for ranks in [2, 3] {
            let out = format!("ranks-{ranks}");
            let found = run(&bench, ranks, &out, &settings);
            assert_eq!(found.len(), 20);
            let error = |step: usize| (found[step] / expected[step] - 1.0).abs();
            assert!(error(0) < 1e-6, "{kind:?}: {found:?}, alone {expected:?}");
            let worst = (0..20).map(error).fold(0.0, f32::max);
            assert!(worst < 1e-3, "{kind:?}: {found:?}, alone {expected:?}");
            assert!(bench.path(&out).join("rank-1.log").is_file());
        }
    }
}

#[test]
fn ranks_with_synced_batch_norm_have_the_losses_of_one_process_with_all_of_the_batch() {
    let bench = bench();
    let settings = ["optim.lr=0.0001", "train.micro_batch=0", "train.epochs=5"];
    let expected = run(&bench, 1, "one", &settings);
    let synced = [settings.as_slice(), &["model.batch_norm=synced"]].concat();
    for ranks in [2, 3] {
        let found = run(&bench, ranks, &format!("ranks-{ranks}"), &synced);
        assert_eq!(found.len(), 20);
        let error = |step: usize| (found[step] / expected[step] - 1.0).abs();
        assert!(error(0) < 1e-5, "{found:?}, alone {expected:?}");
        let worst = (0..20).map(error).fold(0.0, f32::max);
        assert!(worst < 1e-3, "{found:?}, alone {expected:?}");
    }
    let uneven = [synced.as_slice(), &["train.micro_batch=5"]].concat();
    let arguments = bench.pretrain("uneven", &with(&uneven));
    let output = mpirun(&bench, 2, &arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("a multiple of 2 parts"), "{said}");
}

/// Sends a signal to one of the processes that `mpirun` started.
fn signal_rank(child: &Child, rank: usize, signal: i32) {
    let id = child.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    if let Some(process) = children.split_whitespace().nth(rank) {
        // SAFETY: kill has no memory to be unsafe with, and the process is a child of a child.
        unsafe { libc::kill(process.parse().unwrap(), signal) };
    }
}

#[test]
fn a_run_whose_ranks_are_killed_resumes_to_the_bit() {
    let bench = bench();
    let settings = [
        "train.epochs=10",
        "checkpoint.every=3",
        "train.micro_batch=3",
    ];
    run(&bench, 2, "whole", &settings);
    let begin = bench.pretrain("killed", &with(&settings));
    let resume = [begin.as_slice(), &["--resume"]].concat();
    for round in 0..6_u64 {
        let begun = bench.path("killed").join("config.toml").is_file();
        let arguments = if begun { &resume } else { &begin };
        let mut child = mpirun(&bench, 2, arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let metrics = bench.path("killed").join("metrics.jsonl");
        let started = Instant::now();
        while !metrics.is_file() && started.elapsed() < Duration::from_secs(60) {
            thread::sleep(Duration::from_millis(20));
        }
        thread::sleep(Duration::from_millis(150 + 330 * round));
        signal_rank(&child, round as usize % 2, libc::SIGKILL);
        let _ = child.wait().unwrap();
    }
    let output = mpirun(&bench, 2, &resume).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(bench.losses("whole"), bench.losses("killed"));
    let model = "checkpoints/step-00000040/model.safetensors";
    let weights = |out: &str| fs::read(bench.path(out).join(model)).unwrap();
    assert!(weights("whole") == weights("killed"), "weights differ");
}

#[test]
fn a_rank_that_stops_ends_the_run_by_the_time_out_and_is_named() {
    let bench = bench();
    let begin = bench.pretrain("run", &with(&["train.epochs=500", "train.micro_batch=4"]));
    let begin = [begin.as_slice(), &["--rank-timeout", "3s"]].concat();
    let child = mpirun(&bench, 3, &begin)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let metrics = bench.path("run").join("metrics.jsonl");
    let started = Instant::now();
    while !metrics.is_file() && started.elapsed() < Duration::from_secs(60) {
        thread::sleep(Duration::from_millis(50));
    }
    signal_rank(&child, 1, libc::SIGSTOP);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("error: rank").count(), 1, "{said}");
    assert!(said.contains("did not come within 3 s"), "{said}");
}

#[test]
fn an_error_of_one_rank_ends_all_with_one_message() {
    let bench = bench();
    let mut arguments = bench.pretrain("run", &with(&[]));
    let data = arguments
        .iter()
        .position(|&argument| argument == "pack")
        .unwrap();
    arguments[data] = "pack-{rank}";
    fs::copy(
        bench.path("pack.safetensors"),
        bench.path("pack-0.safetensors"),
    )
    .unwrap();
    let output = mpirun(&bench, 2, &arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("error:").count(), 1, "{said}");
    assert!(
        said.contains("error: rank 1: ") && said.contains("pack-1"),
        "{said}"
    );
}

/// `pirl` on so many ranks, or in one process, which must succeed: what it prints.
fn printed(bench: &Bench, ranks: usize, arguments: &[&str]) -> String {
    let output = match ranks {
        1 => bench.command(arguments).output().unwrap(),
        _ => mpirun(bench, ranks, arguments).output().unwrap(),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn evaluations_by_ranks_have_the_result_of_one_process() {
    let bench = bench();
    run(&bench, 1, "run", &["train.epochs=1"]);
    let probe = ["--set=eval.layers=[\"res4\",\"res5\"]", "--cache=features"];
    let random = [
        "--set=eval.linear.crops=random",
        "--set=eval.linear.batch_size=8",
        "--set=eval.linear.epochs=2",
        "--set=eval.linear.lrs=[0.01]",
        "--out=random",
    ];
    let tune = [
        "--set=eval.finetune.batch_size=8",
        "--set=eval.finetune.micro_batch=4",
        "--set=eval.finetune.epochs=2",
        "--set=eval.finetune.lr=0.001",
        "--out=tuned",
    ];
    for (what, more, written) in [
        ("knn", &probe[..], "features"),
        ("linear", &random, "random"),
        ("finetune", &tune, "tuned"),
    ] {
        let settings = ["--weights=run", "--train=pack", "--json"];
        let arguments = [&["eval", what], &settings[..], more].concat();
        let expected: Value = serde_json::from_str(&printed(&bench, 1, &arguments)).unwrap();
        // The ranks write the same anew.
        fs::rename(bench.path(written), bench.path(&format!("{written}-one"))).unwrap();
        let found: Value = serde_json::from_str(&printed(&bench, 2, &arguments)).unwrap();
        match what {
            "finetune" => {
                let losses = [losses(&bench, "tuned-one"), losses(&bench, "tuned")];
                assert_eq!(losses[1].len(), losses[0].len());
                let pairs = losses[1].iter().zip(&losses[0]);
                let worst = pairs.map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-3, "{losses:?}");
                assert_eq!(found["steps"], expected["steps"]);
                assert!(bench.path("tuned/labels.txt").is_file());
            }
            "linear" => {
                assert_eq!(found, expected);
                assert_eq!(losses(&bench, "random"), losses(&bench, "random-one"));
                let classes = |out: &str| bench.read(&format!("{out}/confusion.csv"));
                assert_eq!(classes("random"), classes("random-one"));
            }
            _ => {
                assert_eq!(found, expected);
                let files = |out: &str| fs::read_dir(bench.path(out)).unwrap().count();
                assert_eq!((files("features"), files("features-one")), (6, 6));
            }
        }
    }
    for (ranks, output) in [(1, "one.csv"), (3, "three.csv")] {
        let arguments = ["embed", "--weights=run", "--data=pack", "--output", output];
        printed(&bench, ranks, &arguments);
    }
    assert_eq!(bench.read("one.csv"), bench.read("three.csv"));

    let watched = ["--probe-train", "pack", "--probe-test", "pack"];
    let arguments = with(&["train.epochs=1", "train.micro_batch=2"]);
    let arguments = bench.pretrain("watched", &[&arguments[..], &watched].concat());
    printed(&bench, 2, &arguments);
    let rows = rows(&bench.path("watched"));
    assert!(rows.iter().any(|row| row["knn_top1"].is_number()));

    fs::rename(
        bench.path("pack.safetensors"),
        bench.path("pack-0.safetensors"),
    )
    .unwrap();
    let arguments = ["eval", "knn", "--weights=run", "--train=pack-{rank}"];
    let output = mpirun(&bench, 2, &arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("error: rank 1: ") && said.contains("pack-1"),
        "{said}"
    );
}

#[test]
fn shards_on_other_machines_are_left_to_their_ranks() {
    let bench = Bench::new();
    let mut state = 1_u32;
    for index in 0..48 {
        let noise = image::RgbImage::from_fn(100, 100, |_, _| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            image::Rgb([state >> 8, state >> 16, state >> 24].map(|word| word as u8))
        });
        fs::create_dir_all(bench.path("images")).unwrap();
        noise
            .save(bench.path(&format!("images/{index:02}.png")))
            .unwrap();
    }
    let pack = [
        "data",
        "pack",
        "--input=images",
        "--output=pack",
        "--shard-mib=1",
    ];
    bench.pirl(&pack).success();
    for rank in 0..2 {
        let shard = format!("pack-{rank:05}-of-00002.safetensors");
        fs::create_dir(bench.path(&format!("machine-{rank}"))).unwrap();
        fs::rename(
            bench.path(&shard),
            bench.path(&format!("machine-{rank}/{shard}")),
        )
        .unwrap();
    }
    let mut arguments = bench.pretrain("run", &with(&["train.epochs=3", "train.micro_batch=0"]));
    let data = arguments
        .iter()
        .position(|&argument| argument == "pack")
        .unwrap();
    arguments[data] = "machine-{rank}/pack";
    let output = mpirun(&bench, 2, &arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("of-00002.safetensors is not on this machine")
            && said.contains("data.partial"),
        "{said}"
    );
    let partial = ["--set=data.partial=true", "--set=bank.init=random"];
    printed(&bench, 2, &[&arguments, &partial[..]].concat());
    let found = losses(&bench, "run");
    // The smaller of the shards says how many steps an epoch has.
    assert!(
        found.len() >= 3 && found.len().is_multiple_of(3) && found.len() < 12,
        "{found:?}"
    );
    assert!(found.iter().all(|loss| loss.is_finite()));
}

#[test]
fn sigterm_saves_and_another_number_of_ranks_goes_on() {
    let bench = bench();
    let settings = ["train.epochs=20", "optim.lr=0.0001", "train.micro_batch=2"];
    let whole = run(&bench, 1, "whole", &settings);
    for sharded in ["bank.sharded=false", "bank.sharded=true"] {
        let out = if sharded.ends_with("true") {
            "sharded"
        } else {
            "replicated"
        };
        let settings = [settings.as_slice(), &[sharded]].concat();
        let begin = bench.pretrain(out, &with(&settings));
        let mut child = mpirun(&bench, 2, &begin)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let metrics = bench.path(out).join("metrics.jsonl");
        let started = Instant::now();
        while !metrics.is_file() && started.elapsed() < Duration::from_secs(60) {
            thread::sleep(Duration::from_millis(20));
        }
        signal_rank(&child, 1, libc::SIGTERM);
        let _ = child.wait().unwrap();
        let done = losses(&bench, out).len();
        assert!(
            !bench.checkpoints(out).is_empty(),
            "nothing saved after {done} steps"
        );
        let resume = [begin.as_slice(), &["--resume"]].concat();
        let output = mpirun(&bench, 3, &resume).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let found = losses(&bench, out);
        assert_eq!(found.len(), whole.len());
        // Rounding grows from step to step.
        let errors = found.iter().zip(&whole).map(|(a, b)| (a / b - 1.0).abs());
        assert!(errors.take(20).fold(0.0, f32::max) < 1e-3);
    }
}
