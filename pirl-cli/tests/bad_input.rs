//! Bad input ends in exit code 1, a message that says what and where, and nothing half-written.

mod common;

use std::fs;
use std::process::Command;

use common::{Bench, eval};

/// Says what the message should hold and lacks.
fn says(message: &str, wanted: &[&str]) {
    for part in wanted {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

fn absent(bench: &Bench, name: &str) {
    assert!(!bench.path(name).exists(), "{name} was made");
}

#[test]
fn images_that_cannot_be_packed() {
    let bench = Bench::new();
    let pack = |input: &str, more: &[&str]| {
        let mut arguments = vec![
            "data",
            "pack",
            "--format",
            "image-folder",
            "--input",
            input,
            "--output",
            "out",
        ];
        arguments.extend(more);
        arguments
            .iter()
            .map(|text| (*text).to_owned())
            .collect::<Vec<_>>()
    };
    let run = |arguments: Vec<String>| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        bench.fails(&arguments)
    };
    fs::create_dir(bench.path("empty")).unwrap();
    says(&run(pack("empty", &[])), &["empty", "no images"]);
    says(&run(pack("nowhere", &[])), &["nowhere"]);

    bench.images("some", 6);
    let train = ["pretrain", "--data", "some", "--out", "run"];
    says(
        &bench.fails(&train),
        &["some.safetensors", "pack them first"],
    );
    fs::write(bench.path("some/bars/text.jpg"), "not a picture").unwrap();
    let photo = image::RgbImage::from_pixel(32, 32, image::Rgb([200, 10, 10]));
    photo.save(bench.path("some/rings/cut.jpg")).unwrap();
    let jpeg = fs::read(bench.path("some/rings/cut.jpg")).unwrap();
    fs::write(bench.path("some/rings/cut.jpg"), &jpeg[..jpeg.len() / 2]).unwrap();
    says(&run(pack("some", &["--strict"])), &["some", ".jpg"]);
    absent(&bench, "out.safetensors");

    let arguments = pack("some", &[]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let report = bench.json(&arguments);
    assert_eq!(report["packed"], 6);
    let mut skipped: Vec<&str> = report["skipped"]
        .as_array()
        .unwrap()
        .iter()
        .map(|skipped| skipped["name"].as_str().unwrap())
        .collect();
    skipped.sort_unstable();
    assert_eq!(skipped.len(), 2);
    assert!(
        skipped[0].ends_with("text.jpg") && skipped[1].ends_with("cut.jpg"),
        "{skipped:?}"
    );
    assert_eq!(bench.json(&["data", "inspect", "out"])["images"], 6);
    says(
        &bench.fails(&[
            "data", "pack", "--format", "mnist", "--input", "some", "--output", "m",
        ]),
        &["--split"],
    );
}

#[test]
fn packs_that_cannot_be_read() {
    let bench = Bench::new();
    bench.pack("pack", 20);
    let whole = fs::read(bench.path("pack.safetensors")).unwrap();
    let refuse = |bytes: &[u8], wanted: &[&str]| {
        fs::write(bench.path("pack.safetensors"), bytes).unwrap();
        says(&bench.fails(&["data", "inspect", "pack"]), wanted);
        let message = bench.fails(&bench.pretrain("run", &[]));
        says(&message, wanted);
        absent(&bench, "run");
    };
    refuse(&whole[..whole.len() / 2], &["pack.safetensors"]);
    refuse(&[], &["pack.safetensors"]);

    // Offsets that run backwards, and past the end; a label beyond the classes.
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let parsed: serde_json::Value = serde_json::from_slice(&whole[8..8 + header]).unwrap();
    let start = |name: &str| {
        let at = parsed[name]["data_offsets"][0].as_u64().unwrap() as usize;
        8 + header + at
    };
    let with = |name: &str, index: usize, value: u64| {
        let mut bytes = whole.clone();
        let at = start(name) + 8 * index;
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    refuse(&with("offsets", 2, 0), &["pack.safetensors", "offset"]);
    refuse(
        &with("offsets", 20, 1 << 40),
        &["pack.safetensors", "offset"],
    );
    refuse(&with("labels", 4, 7), &["pack.safetensors", "label"]);
    fs::remove_file(bench.path("pack.safetensors")).unwrap();
    says(&bench.fails(&bench.pretrain("run", &[])), &["pack"]);
    absent(&bench, "run");
}

#[test]
fn settings_that_cannot_work() {
    let bench = Bench::new();
    bench.pack("pack", 20);
    let cases: &[(&str, &[&str])] = &[
        ("loss.negatives=20", &["loss.negatives is 20", "19"]),
        ("loss.negatives=0", &["loss.negatives"]),
        (
            "train.batch_size=21",
            &["train.batch_size is 21", "20 images"],
        ),
        ("data.limit=21", &["data.limit", "20"]),
        ("data.patch_size=9", &["patch_size"]),
        ("train.epoch=3", &["train.epoch", "\"train.epochs\""]),
        ("optim.lr=fast", &["optim.lr", "float"]),
        ("loss.temperature=0", &["loss.temperature"]),
        ("loss.kind=covariant", &["pretext.permutations"]),
        ("model.width=0.01", &["model.width"]),
        ("transform.image.hue=0.7", &["transform.image.hue"]),
    ];
    for (setting, wanted) in cases {
        says(
            &bench.fails(&bench.pretrain("run", &["--set", setting])),
            wanted,
        );
        absent(&bench, "run");
    }
    says(
        &bench.fails(&bench.pretrain("run", &["--device", "cuda:0"])),
        &["--device cuda:0", "without CUDA"],
    );
    bench.pirl(&bench.pretrain("run", &["--set", "lr"])).code(2);
    bench.pirl(&["pretrain", "--recipe", "tiny.toml"]).code(2);
    bench.pirl(&["trian"]).code(2);
    absent(&bench, "run");
}

#[test]
fn folders_that_cannot_be_used() {
    let bench = Bench::new();
    bench.pack("pack", 20);
    fs::create_dir(bench.path("full")).unwrap();
    fs::write(bench.path("full/note"), "mine").unwrap();
    says(
        &bench.fails(&bench.pretrain("full", &[])),
        &["full", "not empty"],
    );
    says(
        &bench.fails(&bench.pretrain("full", &["--resume"])),
        &["full", "config.toml"],
    );
    assert_eq!(fs::read_dir(bench.path("full")).unwrap().count(), 1);
    // A file where a folder should be: not writable by anyone, root included.
    says(
        &bench.fails(&bench.pretrain("pack.safetensors/run", &[])),
        &["pack.safetensors/run"],
    );
    let unwritable = [
        "data",
        "pack",
        "--format",
        "image-folder",
        "--input",
        "pack-images",
        "--output",
        "tiny.toml/out",
    ];
    says(&bench.fails(&unwritable), &["tiny.toml/out"]);
}

#[test]
fn checkpoints_that_do_not_fit() {
    let bench = Bench::new();
    bench.pack("pack", 20);
    bench.pack("other", 22);
    bench
        .pirl(&bench.pretrain("run", &["--set", "train.steps=2"]))
        .success();
    let before = fs::read(bench.path("run/metrics.jsonl")).unwrap();

    let mut other = bench.pretrain("run", &["--resume"]);
    other[4] = "other";
    says(&bench.fails(&other), &["other data", "step-00000002"]);
    says(
        &bench.fails(&bench.pretrain("run", &["--resume", "--set", "bank.dim=32"])),
        &["bank.dim = 16, now 32", "run/config.toml"],
    );

    // A bank of the wrong size for the pack.
    let checkpoint = bench.path("run/checkpoints/step-00000002");
    let bank = pirl_bank::MemoryBank::random(19, 16, 0.5, 1, &candle_core::Device::Cpu).unwrap();
    let whole = fs::read(checkpoint.join("bank.safetensors")).unwrap();
    bank.save(checkpoint.join("bank.safetensors")).unwrap();
    says(
        &bench.fails(&bench.pretrain("run", &["--resume"])),
        &["bank.safetensors", "19 rows", "20 rows"],
    );
    fs::write(
        checkpoint.join("bank.safetensors"),
        &whole[..whole.len() / 2],
    )
    .unwrap();
    says(
        &bench.fails(&bench.pretrain("run", &["--resume"])),
        &["bank.safetensors"],
    );
    fs::write(checkpoint.join("bank.safetensors"), whole).unwrap();
    fs::write(checkpoint.join("state.json"), "{").unwrap();
    says(
        &bench.fails(&bench.pretrain("run", &["--resume"])),
        &["state.json"],
    );
    assert_eq!(fs::read(bench.path("run/metrics.jsonl")).unwrap(), before);
}

#[test]
fn a_full_disk_leaves_the_last_checkpoint_whole() {
    let bench = Bench::new();
    bench.pack("pack", 20);
    bench
        .pirl(&bench.pretrain("run", &["--set", "train.steps=2"]))
        .success();
    let read =
        |name: &str| fs::read(bench.path("run/checkpoints/step-00000002").join(name)).unwrap();
    let model = read("model.safetensors");
    // No file may grow beyond 64 KiB, and going beyond is an error rather than a signal, as on a
    // full disk.
    let script = "trap '' XFSZ; ulimit -f 64; exec \"$@\"";
    let output = Command::new("bash")
        .args(["-c", script, "bash", env!("CARGO_BIN_EXE_pirl")])
        .args(bench.pretrain("run", &["--resume", "--set", "train.steps=4"]))
        .current_dir(bench.path(""))
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    says(
        &message,
        &["model.safetensors", "step-00000002 is whole", "--resume"],
    );
    assert_eq!(bench.checkpoints("run"), ["step-00000002"]);
    assert!(read("model.safetensors") == model);
    bench
        .pirl(&bench.pretrain("run", &["--resume", "--set", "train.steps=4"]))
        .success();
    assert_eq!(bench.losses("run").len(), 4);
}

#[test]
fn a_loss_that_is_no_number_stops_the_run() {
    let bench = Bench::new();
    bench.pack("pack", 20);
    let wild = [
        "--set",
        "optim.lr=1e38",
        "--set",
        "checkpoint.every=1",
        "--set",
        "train.epochs=9",
    ];
    let message = bench.fails(&bench.pretrain("run", &wild));
    says(&message, &["of step", "optim.lr"]);
    let done = bench.losses("run").len();
    assert!(
        bench
            .checkpoints("run")
            .contains(&format!("step-{done:08}"))
    );
}

#[test]
fn a_pack_of_nothing_says_what_was_left_out_also_as_json() {
    let bench = Bench::new();
    fs::create_dir(bench.path("photos")).unwrap();
    fs::write(bench.path("photos/a.jpg"), "text").unwrap();
    let arguments = [
        "data",
        "pack",
        "--format",
        "image-folder",
        "--input",
        "photos",
        "--output",
        "out",
        "--json",
    ];
    let assert = bench.pirl(&arguments).code(1);
    let output = assert.get_output();
    says(
        &String::from_utf8_lossy(&output.stderr),
        &["a.jpg", "no image"],
    );
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&report["packed"], &report["skipped"][0]["name"]),
        (&0.into(), &"a.jpg".into())
    );
    absent(&bench, "out.safetensors");
}

#[test]
fn a_stray_picture_and_a_single_class_are_questioned() {
    let bench = Bench::new();
    bench.images("photos", 8);
    fs::copy(
        bench.path("photos/bars/0000.png"),
        bench.path("photos/stray.png"),
    )
    .unwrap();
    let pack = |input: &'static str, more: &[&'static str]| {
        let start = [
            "data",
            "pack",
            "--format",
            "image-folder",
            "--input",
            input,
            "--output",
            "pack",
        ];
        [&start, more].concat()
    };
    says(
        &bench.fails(&pack("photos", &[])),
        &["stray.png", "--labels folders", "--labels none"],
    );
    let report = bench.json(&pack("photos", &["--labels", "folders"]));
    assert_eq!(
        (
            &report["packed"],
            report["classes"].as_array().unwrap().len()
        ),
        (&8.into(), 2)
    );
    fs::remove_file(bench.path("photos/stray.png")).unwrap();
    fs::create_dir(bench.path("around")).unwrap();
    fs::rename(bench.path("photos"), bench.path("around/photos")).unwrap();
    let said = bench.pirl(&pack("around", &[])).success();
    says(
        &String::from_utf8_lossy(&said.get_output().stdout),
        &["1 class", "one class only"],
    );
    says(&bench.fails(&eval("knn", &[])), &["one class, \"photos\""]);
}

#[test]
fn a_folder_that_another_process_works_in_is_left_alone() {
    let bench = Bench::new();
    bench.pack("pack", 16);
    bench
        .pirl(&bench.pretrain("run", &["--set", "train.epochs=1"]))
        .success();
    let metrics = bench.read("run/metrics.jsonl");
    let held = pirl_core::FolderLock::acquire(&bench.path("run")).unwrap();
    let resume = bench.pretrain("run", &["--resume"]);
    let holder = format!("process {} on ", std::process::id());
    says(
        &bench.fails(&resume),
        &["run", &holder, "works in this folder"],
    );
    assert_eq!(bench.read("run/metrics.jsonl"), metrics);
    drop(held);
    bench.pirl(&resume).success();
}
