//! `pirl pretrain` without a recipe, and recipes on fewer images than they were made for.

mod common;

use std::fs;

use common::Bench;

#[test]
fn small_images_need_no_recipe_but_a_time() {
    let bench = Bench::new();
    bench.pack("pack", 60);
    let command = ["pretrain", "--data", "pack", "--out", "run"];
    let said =
        bench.stderr(&[&command[..], &["--time", "3s", "--set", "loader.workers=1"]].concat());
    for part in [
        "recipe              cifar10",
        "data.image_size     20                      as large as the images",
        "train.batch_size    16                      for 60 images",
        "loss.negatives      59                      for 60 images",
        "epochs of 60 images: about",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let settings = || {
        let config = bench.read("run/config.toml");
        config
            .lines()
            .filter(|line| !line.starts_with('#'))
            .collect::<Vec<_>>()
            .join("\n")
    };
    let config = settings();
    assert!(config.contains("batch_size = 16"), "{config}");
    assert!(!config.contains("loader.workers"), "{config}");
    // It needs no recipe to go on, either, and what was chosen is kept.
    let more = [&command[..], &["--resume"]].concat();
    let again = bench.json(&more);
    assert!(again["steps"].as_u64().unwrap() >= 3, "{again}");
    assert_eq!(settings(), config);
}

#[test]
fn weights_to_begin_with_bring_their_network() {
    let bench = Bench::new();
    bench.pack("pack", 24);
    bench.stderr(&bench.pretrain("first", &["--set", "train.epochs=1"]));
    let command = ["pretrain", "--data", "pack", "--out", "run", "--time", "1s"];
    let said = bench.stderr(&[&command[..], &["--init-weights", "first"]].concat());
    let wanted = "model.stem          \"small\"                 that of the weights to begin with";
    assert!(said.contains(wanted), "{said}");
    assert!(bench.read("run/config.toml").contains("width = 0.25"));
}

#[test]
fn a_recipe_shrinks_to_the_images_but_what_was_typed_does_not() {
    let bench = Bench::new();
    bench.pack("pack", 24);
    let text = bench
        .read("tiny.toml")
        .replace("negatives = 16", "negatives = 400");
    let text = text.replace("batch_size = 8", "batch_size = 64");
    std::fs::write(bench.path("tiny.toml"), text).unwrap();
    let said = bench.stderr(&bench.pretrain("run", &["--set", "train.epochs=1"]));
    for part in [
        "loss.negatives is 23 instead of the recipe's 400: there are 24 images",
        "train.batch_size is 8 instead of the recipe's 64",
        "optim.lr is 0.0125 instead of the recipe's 0.1",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let error = bench.fails(&bench.pretrain("other", &["--set", "loss.negatives=400"]));
    assert!(error.contains("loss.negatives is 400"), "{error}");
    assert!(!bench.path("other").exists());
    let both = ["--time", "1m", "--set", "train.epochs=1"];
    let error = bench.fails(&bench.pretrain("other", &both));
    assert!(error.contains("give one"), "{error}");
}

#[test]
fn nearest_neighbours_are_measured_during_the_run_and_change_nothing() {
    let bench = Bench::new();
    bench.pack("pack", 48);
    let probe = [
        "--probe-train",
        "pack",
        "--probe-test",
        "pack",
        "--set",
        "eval.every=2",
    ];
    let said = bench.stderr(&bench.pretrain("probed", &probe));
    assert!(said.contains("epoch 2: nearest neighbours"), "{said}");
    bench.stderr(&bench.pretrain("plain", &[]));
    assert_eq!(bench.losses("probed"), bench.losses("plain"));
    let measured = |run| {
        let rows = common::rows(&bench.path(run));
        assert!(rows.iter().all(|row| row["effective_rank"].is_number()));
        rows.iter()
            .filter(|row| row["knn_top1"].is_number())
            .count()
    };
    assert_eq!(measured("probed"), 2, "after epochs 2 and 3, the last");
    assert_eq!(measured("plain"), 0);
}

#[test]
fn a_resumed_run_knows_its_packs_and_says_when_they_are_gone() {
    let bench = Bench::new();
    bench.pack("pack", 48);
    let probe = ["--probe-train", "pack", "--probe-test", "pack"];
    let every = ["--set", "eval.every=1", "--set", "train.steps=6"];
    bench.stderr(&bench.pretrain("run", &[&probe[..], &every].concat()));
    let resume = ["pretrain", "--resume", "--out", "run", "--set"];
    let more = |steps| [&resume[..], &[steps]].concat();
    // No pack is named again.
    bench.stderr(&more("train.steps=12"));
    let rows = common::rows(&bench.path("run"));
    let measured = rows.iter().filter(|row| row["knn_top1"].is_number());
    assert_eq!((rows.len(), measured.count()), (12, 2));

    let (shard, moved) = ("pack.safetensors", "moved.safetensors");
    fs::rename(bench.path(shard), bench.path(moved)).unwrap();
    let error = bench.fails(&more("train.steps=18"));
    for part in ["run was started with", "--data", "pack"] {
        assert!(error.contains(part), "{error}");
    }
    let elsewhere = [
        "--data",
        "moved",
        "--probe-train",
        "moved",
        "--probe-test",
        "moved",
    ];
    bench.stderr(&[&more("train.steps=18")[..], &elsewhere].concat());
    assert_eq!(bench.losses("run").len(), 18);
    fs::remove_file(bench.path("run/packs.json")).unwrap();
    let error = bench.fails(&more("train.steps=24"));
    assert!(error.contains("does not say which pack"), "{error}");
}

#[test]
fn images_without_a_test_set_are_judged_by_a_fifth_of_their_own() {
    let bench = Bench::new();
    bench.pack("pack", 60);
    let knn = |more: &[&str]| {
        let command = [
            "eval",
            "knn",
            "--weights",
            "random",
            "--recipe",
            "tiny.toml",
        ];
        let arguments = [
            &command[..],
            &["--train", "pack", "--set", "eval.knn.k=3"],
            more,
        ]
        .concat();
        bench.json(&arguments)
    };
    let found = knn(&[]);
    let images = |set: &str| found[set]["images"].as_u64().unwrap();
    assert_eq!((images("train"), images("test")), (48, 12));
    assert_eq!(
        knn(&["--seed", "5"])["test"],
        found["test"],
        "the same for all networks"
    );
}
