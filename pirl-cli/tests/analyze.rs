//! `pirl analyze`: pictures and figures of what a backbone learned.

mod common;

use std::fs;

use common::Bench;

const NEIGHBOURS: [&str; 8] = [
    "analyze",
    "neighbours",
    "--recipe",
    "tiny.toml",
    "--data",
    "pack",
    "--out",
    "found",
];

fn neighbours<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&NEIGHBOURS[..], more].concat()
}

#[test]
fn neighbours_are_drawn_and_listed() {
    let bench = Bench::new();
    bench.pack("pack", 30);
    let random = ["--weights", "random", "--queries", "4", "--neighbours", "3"];
    let result = bench.json(&neighbours(&random));
    let queries = result["queries"].as_array().unwrap();
    assert_eq!(queries.len(), 4);
    for query in queries {
        let others = query["neighbours"].as_array().unwrap();
        assert_eq!(others.len(), 3);
        assert!(others.iter().all(|other| other["index"] != query["index"]));
        let cosines: Vec<f64> = others
            .iter()
            .map(|o| o["cosine"].as_f64().unwrap())
            .collect();
        assert!(cosines.is_sorted_by(|a, b| a >= b), "{cosines:?}");
        let class = query["class"].as_str().unwrap();
        assert!(["bars", "rings"].contains(&class));
        assert!(
            query["name"].as_str().unwrap().starts_with(class),
            "{query}"
        );
        assert!(others[0]["name"].as_str().unwrap().ends_with(".png"));
    }
    assert!(result["same_class"].is_number() && result["weights"]["fingerprint"].is_string());
    assert_eq!(
        (&result["layer"], &result["gallery"]),
        (&"res5".into(), &().into())
    );
    let sheet = image::open(bench.path("found/neighbours.png")).unwrap();
    // A row for each query, a panel for it and each neighbour, each with a caption.
    assert!(sheet.width() > 4 * 112 && sheet.height() > 4 * 140);
    let written = fs::read(bench.path("found/result.json")).unwrap();
    let written: serde_json::Value = serde_json::from_slice(&written).unwrap();
    assert_eq!(written, result);

    // In a gallery that is the very same pack, each image finds itself.
    let itself = [&random[..], &["--gallery", "pack", "--layer", "res3"]].concat();
    let result = bench.json(&neighbours(&itself));
    for query in result["queries"].as_array().unwrap() {
        assert_eq!(query["neighbours"][0]["index"], query["index"]);
    }
    assert_eq!(result["layer"], "res3");
}

#[test]
fn neighbours_that_cannot_be_are_explained() {
    let bench = Bench::new();
    bench.pack("pack", 4);
    let message = bench.fails(&neighbours(&["--weights", "random", "--neighbours", "4"]));
    assert!(message.contains("only 3 images"), "{message}");
    let message = bench.fails(&neighbours(&["--weights", "absent", "--neighbours", "2"]));
    assert!(message.contains("absent"), "{message}");
    let of_two = [
        "--weights",
        "random",
        "--neighbours",
        "2",
        "--layer",
        "res9",
    ];
    let message = bench.fails(&neighbours(&of_two));
    assert!(message.contains("no layer res9; it has conv1"), "{message}");
    assert!(!bench.path("found/result.json").exists());
}

#[test]
fn networks_are_compared_by_what_moves_their_features() {
    let bench = Bench::new();
    bench.pack("pack", 30);
    bench
        .pirl(&bench.pretrain("run", &["--set", "train.steps=2"]))
        .success();
    let common = ["analyze", "invariance", "--data", "pack", "--out", "moved"];
    let both = [
        "--weights",
        "run",
        "--weights",
        "random",
        "--recipe",
        "tiny.toml",
    ];
    let result = bench.json(&[&common[..], &both, &["--images", "12"]].concat());
    let rows = result["weights"].as_array().unwrap();
    assert_eq!((rows.len(), &result["images"]), (2, &12.into()));
    for row in rows {
        let distances = row["distances"].as_object().unwrap();
        let names: Vec<&str> = distances.keys().map(String::as_str).collect();
        assert_eq!(names, ["another image", "crop", "jigsaw", "photometric"]);
        for found in distances.values() {
            let quantiles = found["quantiles"].as_object().unwrap();
            let quantiles: Vec<f64> = quantiles.values().map(|x| x.as_f64().unwrap()).collect();
            assert_eq!(quantiles.len(), 5);
            assert!(quantiles.is_sorted() && found["mean"].is_number());
        }
    }
    assert_ne!(rows[0]["fingerprint"], rows[1]["fingerprint"]);
    assert!(image::open(bench.path("moved/invariance.png")).is_ok());

    let turned = ["--weights", "run", "--set", "pretext.kind=rotation"];
    let result = bench.json(&[&common[..], &turned].concat());
    assert!(result["weights"][0]["distances"]["rotation"]["mean"].is_number());
    assert_eq!(result["images"], 30, "no more than there are");
    bench.pirl(&common).code(2);
}

#[test]
fn images_are_mapped_on_a_page_with_outliers_and_near_duplicates() {
    let bench = Bench::new();
    bench.images("images", 30);
    let copy = bench.path("images/bars/copy.png");
    fs::copy(bench.path("images/bars/0004.png"), copy).unwrap();
    let pack = [
        "data",
        "pack",
        "--format",
        "image-folder",
        "--input",
        "images",
    ];
    bench
        .pirl(&[&pack[..], &["--output", "pack"]].concat())
        .success();
    let map = [
        "analyze",
        "map",
        "--recipe",
        "tiny.toml",
        "--weights",
        "random",
        "--data",
        "pack",
        "--out",
        "map",
    ];
    let result = bench.json(&[&map[..], &["--near-duplicates", "0.999999"]].concat());
    assert!(
        result["silhouette"].as_f64().unwrap().abs() <= 1.0,
        "{result}"
    );
    assert_eq!(result["outliers"].as_array().unwrap().len(), 24);
    // The copy's number is that of its name among the others of its class.
    let pair = &result["near_duplicates"][0];
    assert_eq!(pair["images"], serde_json::json!([2, 15]), "{result}");
    let names = serde_json::json!(["bars/0004.png", "bars/copy.png"]);
    assert_eq!(pair["names"], names);
    let outlier = &result["outliers"][0];
    assert!(
        outlier["index"].is_number() && outlier["name"].is_string(),
        "{outlier}"
    );
    for file in [
        "map.html",
        "map.png",
        "outliers.png",
        "near_duplicates.png",
        "result.json",
    ] {
        assert!(bench.path("map").join(file).is_file(), "{file}");
    }
    // The same again, to the byte.
    let page = bench.read("map/map.html");
    bench.pirl(&map).success();
    assert_eq!(bench.read("map/map.html"), page);
    let message = bench.fails(&[&map[..], &["--perplexity", "0"]].concat());
    assert!(message.contains("perplexity"), "{message}");
    let message = bench.fails(&[&map[..], &["--near-duplicates", "nan"]].concat());
    assert!(message.contains("between -1 and 1"), "{message}");
}

#[test]
fn the_page_of_a_run_is_made_whole() {
    let bench = Bench::new();
    bench.pack("pack", 40);
    bench.pirl(&bench.pretrain("run", &[])).success();
    let knn = ["eval", "knn", "--train", "pack", "--test", "pack", "--out"];
    let settings = ["--set", "eval.baselines=false"];
    let of_run = [&knn[..], &["found", "--weights", "run"], &settings].concat();
    bench.pirl(&of_run).success();
    let random = ["other", "--weights", "random", "--recipe", "tiny.toml"];
    bench
        .pirl(&[&knn[..], &random, &settings].concat())
        .success();

    let plain = bench.read("run/report.html");
    let config = bench.read("run/config.toml");
    let head = format!(
        "# pirl {}: pirl pretrain --recipe tiny.toml --data pack --out run --seed 3",
        env!("CARGO_PKG_VERSION")
    );
    assert!(config.starts_with(&head), "{config}");
    assert!(plain.contains(&head) && !plain.contains("Neighbours"));

    let error = bench.fails(&["report", "run", "--results", "other/result.json"]);
    assert!(error.contains("other weights, \"random\""), "{error}");
    assert_eq!(bench.read("run/report.html"), plain);

    let training = pirl_core::FolderLock::acquire(&bench.path("run")).unwrap();
    let error = bench.fails(&["report", "run"]);
    assert!(
        error.contains("run") && error.contains("process"),
        "{error}"
    );
    assert_eq!(bench.read("run/report.html"), plain);
    drop(training);

    let report = ["report", "run", "--data", "pack", "--images", "20"];
    let made = bench.json(&[&report[..], &["--results", "found/result.json"]].concat());
    assert_eq!(made["report"], "run/report.html");
    let page = bench.read("run/report.html");
    for part in [
        "nearest neighbours on res",
        "<h2>Loss</h2>",
        "<h2>Invariance: crop</h2>",
        "<h2>Invariance: jigsaw</h2>",
        "alt=\"Neighbours\"",
        "of 20 images",
        "alt=\"Map\"",
        "Silhouette of the classes",
        &head,
    ] {
        assert!(page.contains(part), "{part}");
    }

    // Those who worked on it are all named, each once.
    let resume = ["--resume", "--set", "log.every=2"];
    for _ in 0..2 {
        bench.pirl(&bench.pretrain("run", &resume)).success();
    }
    let config = bench.read("run/config.toml");
    let heads: Vec<&str> = config
        .lines()
        .take_while(|it| it.starts_with('#'))
        .collect();
    assert_eq!(heads, [head.clone(), head + " --resume --set log.every=2"]);
}
