//! Pre-training on several devices: here copies of the networks on one CPU, a thread each.

mod common;

use std::fs;

use common::Bench;

/// 40 images, batches of 8, 15 steps.
fn bench() -> Bench {
    let bench = Bench::new();
    bench.pack("pack", 40);
    bench
}

/// A pretrain command's further arguments, with `--set` before each of `settings`.
fn with<'a>(devices: &'a str, settings: &[&'a str]) -> Vec<&'a str> {
    let set = settings.iter().flat_map(|&setting| ["--set", setting]);
    ["--device", devices].into_iter().chain(set).collect()
}

#[test]
fn several_devices_have_the_losses_of_one() {
    let kinds: [&[&str]; 5] = [
        &["loss.kind=paper"],
        &["loss.kind=nce", "bank.on_host=true"],
        &["loss.kind=covariant", "pretext.permutations=5"],
        &["loss.kind=supervised", "pretext.kind=none"],
        &["train.precision=f16"],
    ];
    for kind in kinds {
        let bench = bench();
        let run = |out: &str, devices: &str, micro_batch: &str| {
            // Rounding grows from step to step, the faster the larger the steps.
            let steps = ["optim.lr=0.0001", micro_batch];
            let settings = [kind, &steps].concat();
            bench
                .pirl(&bench.pretrain(out, &with(devices, &settings)))
                .success();
            let losses = bench.losses(out).into_iter();
            losses
                .map(|(_, bits)| f32::from_bits(bits))
                .collect::<Vec<_>>()
        };
        let expected = run("one", "cpu", "train.micro_batch=4");
        assert_eq!(expected.len(), 15);
        let shared = run("two", "cpu,cpu", "train.micro_batch=4");
        // All of a batch is an equal share for each.
        let halves = run("halves", "cpu,cpu", "train.micro_batch=0");
        assert_eq!(shared, halves, "{kind:?}");
        for (found, expected) in shared.iter().zip(&expected).take(6) {
            let error = (found / expected - 1.0).abs();
            assert!(error < 1e-3, "{kind:?}: {shared:?}, on one {expected:?}");
        }
        // Parts of two images on three devices: the last round has one.
        let expected = run("one-of-two", "cpu", "train.micro_batch=2");
        let shared = run("three", "cpu,cpu,cpu", "train.micro_batch=2");
        let error = (shared[0] / expected[0] - 1.0).abs();
        assert!(error < 1e-5, "{kind:?}: {shared:?}, on one {expected:?}");
    }
}

#[test]
fn several_devices_with_synced_batch_norm_have_the_losses_of_one_with_all_of_the_batch() {
    let bench = bench();
    let run = |out: &str, devices: &str, settings: &[&str]| {
        let steps = ["optim.lr=0.0001", "train.micro_batch=0"];
        let settings = [settings, &steps].concat();
        let arguments = bench.pretrain(out, &with(devices, &settings));
        bench.pirl(&arguments).success();
        let losses = bench.losses(out).into_iter();
        losses
            .map(|(_, bits)| f32::from_bits(bits))
            .collect::<Vec<_>>()
    };
    let expected = run("one", "cpu", &[]);
    let shared = run("shared", "cpu,cpu,cpu", &["model.batch_norm=synced"]);
    let error = |losses: &[f32], step: usize| (losses[step] / expected[step] - 1.0).abs();
    assert!(error(&shared, 0) < 1e-5, "{shared:?}, on one {expected:?}");
    // Rounding grows from step to step.
    let worst = (0..6).map(|step| error(&shared, step)).fold(0.0, f32::max);
    assert!(worst < 1e-3, "{shared:?}, on one {expected:?}");
    let local = run("local", "cpu,cpu,cpu", &[]);
    assert!(error(&local, 0) > 1e-3, "{local:?}, on one {expected:?}");
    // Another value is another run.
    let settings = with("cpu,cpu,cpu", &["model.batch_norm=synced"]);
    let resume = [bench.pretrain("local", &settings), vec!["--resume"]].concat();
    let said = bench.fails(&resume);
    assert!(said.contains("model.batch_norm"), "{said}");
}

#[test]
fn a_run_on_several_devices_stopped_and_resumed_equals_one_never_stopped() {
    let bench = bench();
    let run = |out: &str, more: &[&str]| {
        let settings = with("cpu,cpu", &["train.micro_batch=4"]);
        let arguments = [settings.as_slice(), more].concat();
        bench.pirl(&bench.pretrain(out, &arguments)).success();
        let step = "checkpoints/step-00000015/model.safetensors";
        fs::read(bench.path(out).join(step)).ok()
    };
    let whole = run("whole", &[]);
    assert!(whole.is_some());
    assert_eq!(run("parts", &["--set", "train.steps=7"]), None);
    let resumed = run("parts", &["--resume"]);
    assert_eq!(bench.losses("whole"), bench.losses("parts"));
    assert!(whole == resumed, "weights differ");
}

#[test]
fn what_one_device_alone_can_do_is_refused_on_two() {
    let bench = bench();
    let said = bench.fails(&bench.pretrain("run", &with("cpu,cpu", &["loss.sampling=per-image"])));
    assert!(said.contains("set loss.sampling = \"shared\""), "{said}");
    assert!(!bench.path("run").exists());
    let eval = [
        "eval",
        "knn",
        "--weights",
        "random",
        "--recipe",
        "tiny.toml",
    ];
    let packs = ["--train", "pack", "--test", "pack", "--device", "cpu,cpu"];
    let said = bench.fails(&[eval.as_slice(), &packs].concat());
    assert!(said.contains("--device \"cpu,cpu\""), "{said}");
}
