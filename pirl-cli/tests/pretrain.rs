//! Pre-training from the command line: the run's folder, resuming, interruption.

mod common;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Bench, rows};

/// 40 images, batches of 8: 5 steps an epoch, 15 in all.
fn bench() -> Bench {
    let bench = Bench::new();
    bench.pack("pack", 40);
    bench
}

#[test]
fn a_run_leaves_everything_it_promises() {
    let bench = bench();
    let summary = bench.json(&bench.pretrain("run", &["--set", "checkpoint.every=4"]));
    assert_eq!(summary["steps"], 15);
    let run = bench.path("run");
    for row in rows(&run) {
        for key in [
            "step",
            "epoch",
            "loss",
            "lr",
            "images_per_second",
            "data_wait",
            "skipped",
        ] {
            assert!(row[key].is_number(), "{key} in {row}");
        }
        let terms =
            0.5 * (row["loss_image"].as_f64().unwrap() + row["loss_patch"].as_f64().unwrap());
        assert!((row["loss"].as_f64().unwrap() - terms).abs() < 1e-4);
    }
    let steps: Vec<u64> = bench.losses("run").iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, (1..=15).collect::<Vec<_>>());
    assert_eq!(bench.checkpoints("run"), ["step-00000012", "step-00000015"]);
    let newest = run.join("checkpoints/step-00000015");
    for file in [
        "model.safetensors",
        "optimizer.safetensors",
        "bank.safetensors",
        "state.json",
    ] {
        assert!(newest.join(file).is_file(), "{file}");
    }
    let model = fs::read(newest.join("model.safetensors")).unwrap();
    let model = safetensors::SafeTensors::deserialize(&model).unwrap();
    for name in ["conv1.weight", "layer4.1.bn2.running_var"] {
        assert!(model.tensor(name).is_ok(), "{name}");
    }
    assert!(model.names().iter().any(|name| name.starts_with("head.f.")));
    assert!(model.names().iter().any(|name| name.starts_with("head.g.")));
    let config: toml::Table = fs::read_to_string(run.join("config.toml"))
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(config["seed"].as_integer(), Some(3));
    assert_eq!(config["checkpoint"]["every"].as_integer(), Some(4));
    assert!(!config.contains_key("base"));
    let report = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(report.contains("<polyline") && report.contains("checkpoint"));
    assert_eq!(events(&run), 1);
}

fn events(run: &Path) -> usize {
    let names = fs::read_dir(run)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    names
        .filter(|name| name.to_string_lossy().starts_with("events.out.tfevents."))
        .count()
}

#[test]
fn losses_do_not_depend_on_the_number_of_workers() {
    let bench = bench();
    bench
        .pirl(&bench.pretrain("one", &["--set", "loader.workers=1"]))
        .success();
    bench
        .pirl(&bench.pretrain("four", &["--set", "loader.workers=4"]))
        .success();
    assert_eq!(bench.losses("one"), bench.losses("four"));
    bench
        .pirl(&bench.pretrain("other", &["--seed", "4"]))
        .failure()
        .code(2); // twice
    let mut other = bench.pretrain("other", &[]);
    other[8] = "4";
    bench.pirl(&other).success();
    assert_ne!(bench.losses("one"), bench.losses("other"));
}

#[test]
fn a_run_stopped_and_resumed_equals_one_never_stopped() {
    for kind in [
        "loss.kind=paper",
        "loss.kind=nce",
        "train.precision=bf16",
        "train.precision=f16",
    ] {
        let bench = bench();
        bench
            .pirl(&bench.pretrain("whole", &["--set", kind]))
            .success();
        // 7 is in the middle of the second epoch.
        let part = ["--set", kind, "--set", "train.steps=7"];
        bench.pirl(&bench.pretrain("parts", &part)).success();
        assert_eq!(bench.losses("parts").len(), 7);
        bench
            .pirl(&bench.pretrain("parts", &["--set", kind, "--resume"]))
            .success();
        assert_eq!(bench.losses("parts"), bench.losses("whole"), "{kind}");
        assert_eq!(events(&bench.path("parts")), 2);
        let weights = |run: &str| {
            fs::read(
                bench
                    .path(run)
                    .join("checkpoints/step-00000015/model.safetensors"),
            )
            .unwrap()
        };
        assert!(
            weights("whole") == weights("parts"),
            "weights differ with {kind}"
        );
    }
}

#[test]
fn lines_after_the_checkpoint_are_written_anew() {
    let bench = bench();
    let stop = ["--set", "checkpoint.every=4", "--set", "train.steps=6"];
    bench.pirl(&bench.pretrain("run", &stop)).success();
    let before = bench.losses("run");
    // As if the process had been killed after step 6, before its last checkpoint.
    fs::remove_dir_all(bench.path("run/checkpoints/step-00000006")).unwrap();
    bench
        .pirl(&bench.pretrain("run", &["--resume", "--set", "train.steps=6"]))
        .success();
    assert_eq!(bench.losses("run"), before);
}

#[test]
fn an_interrupted_run_finishes_its_step_and_says_how_to_go_on() {
    let bench = bench();
    bench
        .pirl(&bench.pretrain("whole", &["--set", "train.epochs=12"]))
        .success();
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let out = format!("run{signal}");
        let mut child = Command::new(env!("CARGO_BIN_EXE_pirl"))
            .args(bench.pretrain(&out, &["--set", "train.epochs=12"]))
            .current_dir(bench.path(""))
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let metrics = bench.path(&out).join("metrics.jsonl");
        let begun = Instant::now();
        while fs::read(&metrics).map_or(0, |text| text.len()) == 0 {
            assert!(
                begun.elapsed() < Duration::from_secs(120),
                "no step was done"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        // SAFETY: `kill` takes no pointer; the process is our child, not yet waited for.
        let sent = unsafe { libc::kill(child.id() as i32, signal) };
        assert_eq!(sent, 0);
        let mut said = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{said}");
        assert!(
            said.contains("interrupted") && !said.contains("error:"),
            "{said}"
        );
        let done = bench.losses(&out).len();
        assert!(done < 60, "the run was over before it was interrupted");
        assert_eq!(bench.checkpoints(&out), [format!("step-{done:08}")]);
        let command = said.lines().find(|line| line.contains("--resume")).unwrap();
        let arguments: Vec<&str> = command.split_whitespace().skip(1).collect();
        bench.pirl(&arguments).success();
        assert_eq!(bench.losses(&out), bench.losses("whole"));
    }
}

#[test]
fn every_kind_of_run_trains() {
    let bench = bench();
    let cases: &[&[&str]] = &[
        &["pretext.kind=none", "loss.lambda=0", "bank.init=random"],
        &["loss.lambda=0"],
        &[
            "loss.lambda=1",
            "loss.kind=infonce",
            "loss.sampling=per-image",
        ],
        &["pretext.kind=rotation", "model.head=mlp", "optim.kind=lars"],
        &["pretext.kind=jigsaw-rotation", "model.head=mlp"],
        &["loss.kind=covariant", "pretext.permutations=12"],
        &["loss.kind=covariant", "pretext.kind=rotation"],
        &[
            "loss.kind=nce",
            "schedule.kind=multi-step",
            "schedule.milestones=[1]",
        ],
    ];
    for (number, settings) in cases.iter().enumerate() {
        let out = format!("run{number}");
        let mut more = vec!["--set", "train.steps=2"];
        more.extend(settings.iter().flat_map(|setting| ["--set", *setting]));
        let arguments = bench.pretrain(&out, &more);
        bench.pirl(&arguments).success();
        let rows = rows(&bench.path(&out));
        assert_eq!(rows.len(), 2, "{settings:?}");
        let patches = number > 1 && !settings[0].contains("covariant");
        assert_eq!(rows[0]["loss_patch"].is_number(), patches, "{settings:?}");
        let bank = bench
            .path(&out)
            .join("checkpoints/step-00000002/bank.safetensors");
        assert_eq!(
            bank.is_file(),
            !settings[0].contains("covariant"),
            "{settings:?}"
        );
        // A finished run resumes to nothing left to do.
        let again: Vec<&str> = arguments.iter().copied().chain(["--resume"]).collect();
        assert_eq!(bench.json(&again)["steps"], 2);
    }
}

#[test]
fn training_lowers_the_loss() {
    let bench = bench();
    bench
        .pirl(&bench.pretrain(
            "run",
            &["--set", "train.epochs=20", "--set", "optim.lr=0.03"],
        ))
        .success();
    let losses: Vec<f64> = rows(&bench.path("run"))
        .iter()
        .map(|row| row["loss"].as_f64().unwrap())
        .collect();
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let (first, last) = (mean(&losses[..10]), mean(&losses[90..]));
    assert!(last < first - 0.05, "from {first} to {last}");
}
