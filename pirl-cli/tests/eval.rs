//! Evaluations that keep something on the way.

mod common;

use std::fs;

use common::{Bench, eval};

fn tune<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let quick = [
        "--set=eval.finetune.batch_size=4",
        "--set=eval.finetune.epochs=2",
    ];
    eval("finetune", &[&quick[..], more].concat())
}

#[test]
fn fine_tuning_writes_the_labels_it_used_and_takes_them_again() {
    let bench = Bench::new();
    bench.pack("pack", 40);
    let first = bench.json(&tune(&["--label-fraction", "0.2", "--out", "few"]));
    assert_eq!(first["label_fraction"], 0.2);
    assert_eq!(
        (&first["labelled_images"], &first["steps"]),
        (&8.into(), &4.into())
    );
    assert!(first["top1"].is_number() && first["top5"] == 100.0);
    assert_eq!(first["settings"]["epochs"], 2);
    assert_eq!(first["per_class"]["bars"]["support"], 20);
    assert!(first["calibration"]["ece"].is_number());
    let matrix = bench.read("few/confusion.csv");
    let sums = matrix.lines().skip(1).map(|line| {
        let numbers = line.split(',').skip(1);
        numbers.map(|number| number.parse::<u32>().unwrap()).sum()
    });
    assert_eq!(sums.collect::<Vec<u32>>(), [20, 20]);
    let page = bench.read("few/classes.html");
    assert!(
        page.contains("fine-tuning") || page.contains("semi-supervised"),
        "{page}"
    );
    assert!(page.contains("Calibration") && page.contains("taken for rings"));
    assert!(first["weights"]["fingerprint"].is_string() && first["seed"].is_number());
    let list = fs::read_to_string(bench.path("few/labels.txt")).unwrap();
    assert_eq!(
        list.lines().filter(|line| !line.starts_with('#')).count(),
        8
    );

    let again = bench.json(&tune(&["--labels", "few/labels.txt"]));
    for key in ["top1", "top5", "label_fraction", "labelled_images"] {
        assert_eq!(again[key], first[key], "{key}");
    }
    fs::write(bench.path("wrong.txt"), "3\n40\n").unwrap();
    let message = bench.fails(&tune(&["--labels", "wrong.txt"]));
    assert!(
        message.contains("wrong.txt") && message.contains("line 2"),
        "{message}"
    );
}

#[test]
fn fine_tuning_goes_on_from_its_checkpoint() {
    let bench = Bench::new();
    bench.pack("pack", 16);
    let saves = [
        "--set",
        "checkpoint.every=3",
        "--set",
        "checkpoint.keep=9",
        "--out",
    ];
    let whole = bench.json(&tune(&[&saves[..], &["whole"]].concat()));
    assert_eq!(whole["steps"], 8);
    // As if the process had been killed after step 6.
    fs::create_dir_all(bench.path("cut/checkpoints")).unwrap();
    let (from, to) = (
        bench.path("whole/checkpoints/step-00000006"),
        bench.path("cut/checkpoints/step-00000006"),
    );
    fs::rename(from, to).unwrap();
    let config = |out: &str| bench.path(out).join("config.toml");
    fs::copy(config("whole"), config("cut")).unwrap();
    let message = bench.fails(&tune(&[&saves[..], &["cut"]].concat()));
    assert!(message.contains("--resume"), "{message}");
    let message = bench.fails(&tune(
        &[
            &saves[..],
            &["cut", "--resume", "--set", "eval.finetune.lr=0.5"],
        ]
        .concat(),
    ));
    assert!(message.contains("eval.finetune.lr"), "{message}");
    let resumed = bench.json(&tune(&[&saves[..], &["cut", "--resume"]].concat()));
    assert_eq!(resumed["top1"], whole["top1"]);
    let last = |out: &str| {
        fs::read(
            bench
                .path(out)
                .join("checkpoints/step-00000008/model.safetensors"),
        )
        .unwrap()
    };
    assert!(last("cut") == last("whole"), "the very same weights");
}

#[test]
fn a_data_set_brings_its_protocol_and_figures() {
    let bench = Bench::new();
    bench.pack("pack", 240);
    let small = ["--dataset", "imagenet", "--label-fraction", "0.1"];
    let quick = ["--set=data.image_size=16", "--set=eval.resize=16"];
    let result = bench.json(&tune(&[&small[..], &quick].concat()));
    assert_eq!(result["settings"]["milestones"], serde_json::json!([30]));
    assert_eq!(
        result["settings"]["batch_size"], 4,
        "--set has the last word"
    );
    assert_eq!(result["published"]["figures"]["PIRL"], 83.8);
    assert_eq!(result["published"]["here"], result["top5"]);
    let message = bench.fails(&tune(&["--dataset", "voc07"]));
    assert!(
        message.contains("no published settings for full fine-tuning on voc07"),
        "{message}"
    );
}

#[test]
fn the_linear_probes_of_a_data_set_have_its_layers_and_schedule() {
    let bench = Bench::new();
    bench.pack("pack", 16);
    let places = [
        "--dataset",
        "places205",
        "--set=data.image_size=16",
        "--set=eval.resize=16",
        "--set=eval.linear.batch_size=8",
    ];
    let result = bench.json(&eval("linear", &places));
    let layers: Vec<_> = result["layers"].as_object().unwrap().keys().collect();
    assert_eq!(layers, ["conv1", "res2", "res3", "res4", "res5", "res5avg"]);
    assert_eq!(result["settings"]["crops"], "random");
    assert_eq!(result["settings"]["epochs"], 14);
    assert_eq!(
        result["settings"]["milestones"],
        serde_json::json!([4, 8, 12])
    );
    assert_eq!(result["published"]["figures"]["PIRL"], 49.8);
    assert_eq!(result["published"]["here"], result["best"]["top1"]);
}

#[test]
fn linear_probes_on_random_crops_go_on_from_their_checkpoint() {
    let bench = Bench::new();
    bench.pack("pack", 16);
    fn linear<'a>(more: &[&'a str]) -> Vec<&'a str> {
        let quick = [
            "--set=eval.linear.crops=random",
            "--set=eval.linear.batch_size=4",
            "--set=eval.linear.epochs=2",
            "--set=checkpoint.every=3",
            "--set=checkpoint.keep=9",
        ];
        eval("linear", &[&quick[..], more].concat())
    }
    let assert = bench.pirl(&linear(&["--out", "whole"])).success();
    let log = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(
        log.contains("2 epochs of 16 images") && log.contains("hours"),
        "{log}"
    );
    let checkpoint =
        |out: &str, step: u32| bench.path(out).join(format!("checkpoints/step-{step:08}"));
    // As if the process had been killed after step 6.
    fs::create_dir_all(bench.path("cut/checkpoints")).unwrap();
    fs::rename(checkpoint("whole", 6), checkpoint("cut", 6)).unwrap();
    let config = |out: &str| bench.path(out).join("config.toml");
    fs::copy(config("whole"), config("cut")).unwrap();
    let message = bench.fails(&linear(&["--out", "cut"]));
    assert!(message.contains("--resume"), "{message}");
    let other = ["--out", "cut", "--resume", "--set=eval.linear.lrs=[0.5]"];
    let message = bench.fails(&linear(&other));
    assert!(message.contains("eval.linear.lrs"), "{message}");
    let workers = ["--out", "cut", "--resume", "--set=loader.workers=3"];
    bench.pirl(&linear(&workers)).success();
    let last = |out: &str| fs::read(checkpoint(out, 8).join("linear.safetensors")).unwrap();
    assert!(last("cut") == last("whole"), "the very same classifiers");
    let result = |out: &str| -> serde_json::Value {
        let text = fs::read(bench.path(out).join("result.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    };
    assert_eq!(result("cut")["layers"], result("whole")["layers"]);

    for (flag, said) in [
        ("--cache", "never the same twice"),
        (
            "--set=eval.linear.batch_size=17",
            "eval.linear: batch_size = 17: must lie between 2 and 16",
        ),
    ] {
        let more = if flag == "--cache" {
            vec![flag, "kept"]
        } else {
            vec![flag]
        };
        let message = bench.fails(&linear(&more));
        assert!(message.contains(said), "{message}");
    }
    let message = bench.fails(&linear(&[
        "--set=eval.linear.crops=centre",
        "--out",
        "x",
        "--resume",
    ]));
    assert!(message.contains("--cache keeps"), "{message}");
}

#[test]
fn probes_say_class_by_class_what_they_take_for_what() {
    let bench = Bench::new();
    bench.pack("pack", 40);
    for (probe, calibrated) in [("linear", true), ("knn", false)] {
        let result = bench.json(&eval(probe, &["--set=eval.knn.k=3", "--out", probe]));
        let classes = result["per_class"].as_object().unwrap();
        let found = classes.values().map(|class| {
            let recall = class["recall"].as_f64().unwrap();
            recall * class["support"].as_f64().unwrap() / 40.0
        });
        let top1 = result["chosen"]["top1"].as_f64().unwrap();
        assert!((found.sum::<f64>() - top1).abs() < 1e-9, "{result}");
        assert_eq!(result["calibration"].is_object(), calibrated);
        assert!(result["baselines"]["pixels"]["per_class"]["rings"].is_object());
        let matrix = bench.read(&format!("{probe}/confusion.csv"));
        assert!(matrix.starts_with("class,bars,rings\nbars,"), "{matrix}");
        let page = bench.read(&format!("{probe}/classes.html"));
        assert_eq!(page.contains("Calibration"), calibrated);
        assert!(page.contains("pack by random"), "{page}");
    }
}

/// Every layer is a candidate once by each pooling, res5avg, a pixel, once alone.
#[test]
fn layer_and_pooling_are_chosen_together() {
    let bench = Bench::new();
    bench.pack("pack", 40);
    let common = [
        "--cache",
        "features",
        "--set=eval.layers=[\"res5\", \"res5avg\"]",
        "--set=eval.pool=[\"average\", \"grid\"]",
        "--set=eval.knn.k=3",
        "--set=eval.linear.epochs=2",
        "--set=eval.svm.costs=[1]",
        "--set=eval.low_shot.shots=4",
    ];
    for probe in ["knn", "linear", "svm", "low-shot"] {
        let of = |more: &[&str]| bench.json(&eval(probe, &[&common[..], more].concat()));
        let result = of(&[]);
        assert_eq!(result["pool"], serde_json::json!(["average", "grid"]));
        let report = report_of(&result, probe);
        let layers: Vec<_> = report["layers"].as_object().unwrap().keys().collect();
        assert_eq!(layers, ["res5", "res5/grid", "res5avg"], "{probe}");
        assert_eq!(report["layers"]["res5/grid"]["pool"], "grid");
        assert_eq!(
            report["layers"]["res5/grid"]["dim"].as_u64(),
            report["layers"]["res5"]["dim"].as_u64().map(|dim| 4 * dim)
        );
        let chosen = &report["chosen"];
        let key = match probe {
            "svm" => "map",
            "low-shot" => "mean",
            _ => "top1",
        };
        let layer = &report["layers"][chosen["layer"].as_str().unwrap()];
        assert_eq!(chosen["pool"], layer["pool"]);
        assert_eq!(chosen["held_out"], layer["held_out"]);
        assert_eq!(chosen[key], layer[key]);
        for other in report["layers"].as_object().unwrap().values() {
            assert!(other["held_out"].as_f64() <= chosen["held_out"].as_f64());
        }
        // One pooling by its name alone is what it has always been.
        let one = of(&["--set=eval.pool=grid"]);
        assert_eq!(one["pool"], "grid");
        let alone = report_of(&one, probe);
        assert_eq!(
            alone["layers"]["res5"][key],
            report["layers"]["res5/grid"][key]
        );
        assert!(alone["chosen"]["pool"].is_null() && alone["layers"]["res5"]["pool"].is_null());
    }
    let random = [&common[2..], &["--set=eval.linear.crops=random"]].concat();
    let message = bench.fails(&eval("linear", &random));
    assert!(message.contains("eval.pool=grid"), "{message}");
}

/// The part of a probe's result that has layers.
fn report_of<'a>(result: &'a serde_json::Value, probe: &str) -> &'a serde_json::Value {
    match probe {
        "low-shot" => &result["shots"]["4"],
        _ => result,
    }
}

#[test]
fn support_vector_machines_rank_each_class() {
    let bench = Bench::new();
    bench.pack("pack", 40);
    let svm = eval("svm", &["--set=eval.layers=[\"res2\", \"res5\"]"]);
    let result = bench.json(&[&svm[..], &["--out", "svm", "--cache", "features"]].concat());
    assert!(result["map"].as_f64().unwrap() > 50.0);
    assert!(result["per_class"]["bars"].is_number() && result["per_class"]["rings"].is_number());
    assert_eq!(result["layers"].as_object().unwrap().len(), 2);
    assert_eq!(result["view"]["stretch"], true);
    let again = bench.json(&[&svm[..], &["--cache", "features"]].concat());
    assert_eq!(again["layers"], result["layers"]);
    let grid = [
        "--dataset",
        "voc07",
        "--set=data.image_size=16",
        "--set=eval.resize=16",
    ];
    let published = bench.json(&[&svm[..], &grid].concat());
    assert_eq!(published["published"]["figures"]["PIRL"], 81.1);
    assert_eq!(published["pool"], "grid");
}

#[test]
fn a_few_labels_are_drawn_several_times_beside_the_baselines() {
    let bench = Bench::new();
    bench.pack("pack", 40);
    let few = [
        "--set=eval.layers=[\"res2\", \"res5\"]",
        "--shots",
        "4,1,96",
        "--draws",
        "2",
        "--cache",
        "features",
    ];
    let low_shot = eval("low-shot", &few);
    for method in ["svm", "linear", "knn"] {
        let more = ["--method", method, "--out", method];
        let result = bench.json(&[&low_shot[..], &more].concat());
        assert_eq!(result["method"], method);
        assert_eq!(
            (&result["metric"], &result["draws"]),
            (&"top1".into(), &2.into())
        );
        let shots: Vec<_> = result["shots"].as_object().unwrap().keys().collect();
        assert_eq!(shots, ["1", "4"]);
        let reason = result["left_out"]["96"].as_str().unwrap();
        assert!(
            reason.contains("show \"") && reason.contains("not 96"),
            "{reason}"
        );
        let four = &result["shots"]["4"];
        assert!(four["chosen"]["mean"].as_f64().unwrap() >= 50.0);
        assert_eq!(four["layers"].as_object().unwrap().len(), 2);
        assert_eq!(
            four["layers"]["res5"]["by_draw"].as_array().unwrap().len(),
            2
        );
        let pixels = &result["baselines"]["pixels"]["shots"]["4"]["chosen"];
        assert!(pixels["mean"].is_number() && pixels["layer"] == "pixels");
        assert_eq!(result["settings"]["shots"], serde_json::json!([4, 1, 96]));
        assert!(result["settings"][method].is_object());
        let written: serde_json::Value =
            serde_json::from_str(&bench.read(&format!("{method}/result.json"))).unwrap();
        assert_eq!(written, result);
    }
    let text = bench.pirl(&low_shot).success();
    let text = String::from_utf8_lossy(&text.get_output().stdout).into_owned();
    assert!(text.contains("k = 4") && text.contains("±"), "{text}");
    assert!(text.contains("with 96: left out"), "{text}");
    let message = bench.fails(&eval("low-shot", &["--shots", "90"]));
    assert!(message.contains("at least 90 are needed"), "{message}");
}
