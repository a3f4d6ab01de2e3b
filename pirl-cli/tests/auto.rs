//! `pirl pretrain` without a recipe, and recipes on fewer images than they were made for.

mod common;

use common::Bench;

#[test]
fn small_images_need_no_recipe_but_a_time() {
    let bench = Bench::new();
    bench.pack("pack", 60);
    let command = ["pretrain", "--data", "pack", "--out", "run"];
    let said =
        bench.stderr(&[&command[..], &["--time", "3s", "--set", "loader.workers=1"]].concat());
    for part in [
        "recipe             cifar10",
        "train.batch_size   16                       for 60 images",
        "loss.negatives     59                       all other images",
        "epochs of 60 images: about",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let config = bench.read("run/config.toml");
    assert!(config.contains("batch_size = 16"), "{config}");
    assert!(!config.contains("loader.workers"), "{config}");
    // It needs no recipe to go on, either, and what was chosen is kept.
    let more = [&command[..], &["--resume"]].concat();
    let again = bench.json(&more);
    assert!(again["steps"].as_u64().unwrap() >= 3, "{again}");
    assert_eq!(bench.read("run/config.toml"), config);
}

#[test]
fn a_recipe_shrinks_to_the_images_but_what_was_typed_does_not() {
    let bench = Bench::new();
    bench.pack("pack", 24);
    let run = |out: &str, more: &[&str]| {
        let mut command = vec![
            "pretrain",
            "--recipe",
            "tiny.toml",
            "--data",
            "pack",
            "--out",
            out,
        ];
        command.extend(["--set", "train.epochs=1"]);
        command.extend(more);
        command.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let text = bench.read("tiny.toml");
    let text = text
        .replace("negatives = 16", "negatives = 400")
        .replace("batch_size = 8", "batch_size = 64");
    std::fs::write(bench.path("tiny.toml"), text).unwrap();
    let arguments = run("run", &[]);
    let said = bench.stderr(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    for part in [
        "loss.negatives is 23 instead of the recipe's 400: there are 24 images",
        "train.batch_size is 8 instead of the recipe's 64",
        "optim.lr is 0.0125 instead of the recipe's 0.1",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let arguments = run("other", &["--set", "loss.negatives=400"]);
    let error = bench.fails(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(error.contains("loss.negatives is 400"), "{error}");
    assert!(!bench.path("other").exists());
    let arguments = run("other", &["--time", "1m"]);
    let error = bench.fails(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(error.contains("give one"), "{error}");
}

#[test]
fn nearest_neighbours_are_measured_during_the_run_and_change_nothing() {
    let bench = Bench::new();
    bench.pack("pack", 48);
    let command = |out: &'static str| {
        [
            "pretrain",
            "--recipe",
            "tiny.toml",
            "--data",
            "pack",
            "--out",
            out,
        ]
    };
    let probe = [
        "--probe-train",
        "pack",
        "--probe-test",
        "pack",
        "--set",
        "eval.every=2",
    ];
    let said = bench.stderr(&[&command("probed")[..], &probe].concat());
    assert!(said.contains("epoch 2: nearest neighbours"), "{said}");
    bench.stderr(&command("plain"));
    let losses = |run: &str| {
        let lines = bench.read(&format!("{run}/metrics.jsonl"));
        let rows = lines
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let rows: Vec<_> = rows.collect();
        let measured = rows
            .iter()
            .filter(|row| row["knn_top1"].is_number())
            .count();
        let losses: Vec<_> = rows.iter().map(|row| row["loss"].clone()).collect();
        assert!(rows.iter().all(|row| row["effective_rank"].is_number()));
        (losses, measured)
    };
    let (probed, plain) = (losses("probed"), losses("plain"));
    assert_eq!(probed.0, plain.0);
    assert_eq!((probed.1, plain.1), (2, 0)); // after epochs 2 and 3, the last
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
