//! `pirl study`.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::Bench;
use serde_json::Value;

/// Twelve runs, one of them in both figures.
const STUDY: &str = r#"
title = "Weights"
recipe = "tiny.toml"
seeds = [1, 2]
budget = { train.epochs = 2 }
set = { eval.knn.k = [3], checkpoint.every = 3 }

[[figures]]
name = "weights"
title = "What the weight does"
x = { key = "loss.lambda", label = "weight", values = [0.25, 0.5, 0.75] }
measures = [{ probe = "knn", layer = "res5" }]
series = [{ name = "jigsaw" }, { name = "rotation", set = { pretext.kind = "rotation" } }]
findings = [{ claim = "a half is not below a quarter", higher = { series = "jigsaw", x = "0.5" }, lower = { series = "jigsaw", x = "0.25" }, by = -100 }]

[[figures]]
name = "tasks"
title = "Pretext tasks"
measures = [{ probe = "knn" }, { probe = "detect" }]
series = [{ name = "jigsaw" }, { name = "untrained", weights = "untrained" }, { name = "pixels", weights = "pixels" }]
"#;

fn bench() -> Bench {
    let bench = Bench::new();
    bench.pack("pack", 24);
    fs::write(bench.path("study.toml"), STUDY).unwrap();
    bench
}

fn study<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let pack = [
        "--data",
        "pack",
        "--probe-train",
        "pack",
        "--probe-test",
        "pack",
    ];
    [&["study", "study.toml", "--out", out][..], &pack, more].concat()
}

/// When each run's training ended, by its folder.
fn trained(bench: &Bench, out: &str) -> BTreeMap<String, std::time::SystemTime> {
    let Ok(runs) = fs::read_dir(bench.path(out).join("runs")) else {
        return BTreeMap::new();
    };
    let ended = runs.filter_map(|run| {
        let run = run.unwrap();
        let time = run.path().join("pretrain.json").metadata().ok()?.modified();
        Some((run.file_name().into_string().unwrap(), time.unwrap()))
    });
    ended.collect()
}

#[test]
fn a_study_makes_each_run_once_and_says_what_it_found() {
    let bench = bench();
    let plan = bench.json(&study("study", &["--dry-run"]));
    assert!(!bench.path("study").exists());
    // Two series of three values with two seeds, and the untrained network with each.
    assert_eq!(plan["runs"].as_array().unwrap().len(), 14, "{plan}");
    assert!(plan["seconds"].as_f64().unwrap() > 0.0);

    let found = bench.json(&study("study", &[]));
    let cells = |figure: usize, series: usize| -> Vec<Value> {
        let cells = &found["figures"][figure]["measures"][0]["series"][series]["cells"];
        cells.as_array().unwrap().clone()
    };
    let jigsaw = cells(0, 0);
    assert_eq!(jigsaw.len(), 3);
    for cell in jigsaw.iter().chain(&cells(1, 1)).chain(&cells(1, 2)) {
        assert_eq!(cell["values"].as_array().unwrap().len(), 2, "{cell}");
        assert!(cell["deviation"].is_number(), "{cell}");
    }
    // The same runs: of the middle value and of the other figure.
    let runs = |cell: &Value| {
        [
            cell["values"][0]["run"].clone(),
            cell["values"][1]["run"].clone(),
        ]
    };
    assert_eq!(runs(&jigsaw[1]), runs(&cells(1, 0)[0]));
    assert_eq!(trained(&bench, "study").len(), 12);
    // A cell's number is that of the result it is from.
    let run = jigsaw[0]["values"][0]["run"].as_str().unwrap();
    let run = bench
        .path("study")
        .join(run.split("/network").next().unwrap());
    let task = fs::read_dir(&run)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let result = task
        .map(|path| path.join("result.json"))
        .find(|path| path.is_file());
    let result: Value = serde_json::from_slice(&fs::read(result.unwrap()).unwrap()).unwrap();
    assert_eq!(
        jigsaw[0]["values"][0]["value"],
        result["layers"]["res5"]["top1"]
    );

    assert_eq!(found["figures"][0]["findings"][0]["holds"], true);
    let page = bench.read("study/report.html");
    for part in [
        "What the weight does",
        "a half is not below a quarter",
        "left out",
        "<svg",
    ] {
        assert!(page.contains(part), "{part}");
    }
    let table = bench.read("study/weights.csv");
    assert_eq!(table.lines().count(), 1 + 12, "{table}");

    // Nothing is left to do, and nothing is done.
    let before = trained(&bench, "study");
    let again = bench.json(&study("study", &[]));
    assert_eq!((again, trained(&bench, "study")), (found, before));

    // Of one that is missing again alone it is measured what it takes.
    let place = plan["runs"].as_array().unwrap().len() - 1;
    let folder = plan["runs"][place]["folder"].as_str().unwrap();
    fs::remove_dir_all(bench.path(folder)).unwrap();
    let plan = bench.json(&study("study", &["--dry-run"]));
    for (at, run) in plan["runs"].as_array().unwrap().iter().enumerate() {
        assert_eq!(run["done"], at != place, "{run}");
        assert_eq!(run["seconds"].is_number(), at == place, "{run}");
    }
}

/// `PIRL_KILLS=20` tries harder.
#[test]
fn a_killed_study_goes_on_to_the_same_results_and_makes_no_run_twice() {
    let bench = bench();
    bench.pirl(&study("whole", &[])).success();
    let kills = std::env::var("PIRL_KILLS")
        .ok()
        .and_then(|kills| kills.parse().ok());
    let kills: u64 = kills.unwrap_or(4);
    let mut ended = BTreeMap::new();
    for kill in 0..kills {
        let mut child = Command::new(assert_cmd::cargo::cargo_bin!("pirl"))
            .args(study("killed", &[]))
            .current_dir(bench.path(""))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Some instant, later and later: a study has planned after a second or so.
        std::thread::sleep(Duration::from_millis(900 + (kill * 7919) % 1700));
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        for (run, time) in trained(&bench, "killed") {
            let known = *ended.entry(run.clone()).or_insert(time);
            assert_eq!(known, time, "{run} was made twice");
        }
    }
    bench.pirl(&study("killed", &[])).success();
    for (run, time) in trained(&bench, "killed") {
        assert!(
            *ended.get(&run).unwrap_or(&time) == time,
            "{run} was made twice"
        );
    }
    assert_eq!(
        bench.read("killed/study.json"),
        bench.read("whole/study.json")
    );
    for name in trained(&bench, "whole").keys() {
        let run = |out: &str| format!("{out}/runs/{name}/network");
        assert_eq!(
            bench.losses(&run("killed")),
            bench.losses(&run("whole")),
            "{name}"
        );
    }
}

#[test]
fn an_interrupted_study_ends_its_runs_and_goes_on() {
    let bench = bench();
    let longer = ["--set", "train.epochs=20", "--seeds", "1"];
    let mut child = Command::new(assert_cmd::cargo::cargo_bin!("pirl"))
        .args(study("study", &longer))
        .current_dir(bench.path(""))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while !bench.path("study/runs").exists() {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(300));
    // SAFETY: `kill` takes no pointer; the process is our child, not yet waited for.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGTERM) }, 0);
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{said}");
    assert!(
        said.contains("interrupted") && said.contains("same command"),
        "{said}"
    );
    assert!(!said.contains("failed"), "{said}");
    let found = bench.json(&study("study", &longer));
    let series = &found["figures"][0]["measures"][0]["series"];
    for cell in [0, 1, 2].map(|x| &series[0]["cells"][x]) {
        assert!(cell["mean"].is_number(), "{cell}");
    }
}

#[test]
fn a_run_that_fails_is_reported_and_the_others_are_made() {
    let bench = bench();
    let text = r#"
        title = "Rates"
        recipe = "tiny.toml"
        seeds = [1]
        [[figures]]
        name = "rates"
        title = "Rates"
        x = { key = "optim.lr", label = "rate", values = [1e9, 0.1] }
        measures = [{ probe = "knn" }]
        series = [{ name = "jigsaw" }]
    "#;
    fs::write(bench.path("study.toml"), text).unwrap();
    let assert = bench.pirl(&study("study", &[])).code(1);
    let said = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    for part in [
        "1 of 2 runs failed",
        "optim.lr=1000000000.0",
        "diverged",
        "tries them again",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let found: Value = serde_json::from_str(&bench.read("study/study.json")).unwrap();
    let cells = &found["figures"][0]["measures"][0]["series"][0]["cells"];
    assert!(
        cells[0]["mean"].is_null() && cells[1]["mean"].is_number(),
        "{cells}"
    );
}

#[test]
fn what_cannot_be_is_said_before_the_first_run() {
    let bench = bench();
    let check = |from: &str, to: &str, named: &[&str]| {
        assert!(STUDY.contains(from), "{from}");
        fs::write(bench.path("study.toml"), STUDY.replace(from, to)).unwrap();
        let error = bench.fails(&study("study", &[]));
        for part in named {
            assert!(error.contains(part), "{part} in {error}");
        }
        assert!(!bench.path("study").exists(), "{error}");
    };
    check("loss.lambda", "loss.lamda", &["loss.lamda", "loss.lambda"]);
    check(
        "key = \"loss.lambda\", label = \"weight\", values = [0.25, 0.5, 0.75]",
        "key = \"loss.negatives\", label = \"N\", values = [8, 24], names = [\"0.25\", \"0.5\"]",
        &["loss.negatives", "24", "weights jigsaw"],
    );
    check("tiny.toml", "tony.toml", &["tony.toml"]);
    check("seeds = [1, 2]", "seeds = []", &["seeds"]);
    fs::write(bench.path("study.toml"), STUDY).unwrap();
    let error = bench.fails(&["study", "study.toml", "--data", "pack", "--out", "study"]);
    assert!(error.contains("--probe-train"), "{error}");
    let error = bench.fails(&["study", "lamda", "--data", "pack", "--out", "study"]);
    assert!(error.contains("permutations"), "{error}");
    let error = bench.fails(&study("pack-images", &[]));
    assert!(error.contains("not the folder of a study"), "{error}");

    // The folder of another study is left as it is.
    fs::create_dir(bench.path("other")).unwrap();
    fs::write(bench.path("other/study.txt"), "title = Others\n").unwrap();
    let error = bench.fails(&study("other", &[]));
    for part in ["another study", "title = Others", "title = Weights"] {
        assert!(error.contains(part), "{part} in {error}");
    }
    assert_eq!(bench.read("other/study.txt"), "title = Others\n");
}

#[test]
fn a_few_labels_are_a_measure() {
    let bench = bench();
    let text = r#"
        title = "Labels"
        recipe = "tiny.toml"
        seeds = [1]
        set = { eval.low_shot.method = "knn", eval.low_shot.draws = 2 }
        [[figures]]
        name = "labels"
        title = "Labels"
        measures = [{ probe = "low-shot", shots = 2 }, { probe = "low-shot", shots = 5 }]
        series = [{ name = "untrained", weights = "untrained" }, { name = "pixels", weights = "pixels" }]
    "#;
    fs::write(bench.path("study.toml"), text).unwrap();
    let found = bench.json(&study("study", &[]));
    for (place, shots) in [(0, "2"), (1, "5")] {
        let measure = &found["figures"][0]["measures"][place];
        assert_eq!(measure["label"], format!("{shots} labels a class, in %"));
        let values = [0, 1].map(|series| {
            let value = &measure["series"][series]["cells"][0]["values"][0];
            let run = bench.path("study").join(value["run"].as_str().unwrap());
            (run, value["value"].as_f64().unwrap())
        });
        let result = fs::read_dir(&values[0].0).unwrap().find_map(|entry| {
            let text = fs::read(entry.unwrap().path().join("result.json")).ok()?;
            let result: Value = serde_json::from_slice(&text).unwrap();
            result["shots"].get(shots).is_some().then_some(result)
        });
        let result = result.unwrap();
        let mean = |of: &Value| of["shots"][shots]["chosen"]["mean"].clone();
        assert_eq!(values[0].1, mean(&result));
        assert_eq!(values[1].1, mean(&result["baselines"]["pixels"]));
    }
}
