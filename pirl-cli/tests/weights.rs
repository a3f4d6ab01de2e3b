//! Weights in and out on the command line.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::Bench;
use serde_json::{Value, json};

/// A checkpoint of a ResNet-18 or -50 as other programs save them; pirl-model's tests read their
/// numbers.
fn checkpoint(name: &str) -> String {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let path = crates.join("pirl-model/tests/golden/weights").join(name);
    path.to_str().unwrap().to_owned()
}

fn export<'a>(
    weights: &'a str,
    format: &'a str,
    output: &'a str,
    more: &[&'a str],
) -> Vec<&'a str> {
    let mut arguments = vec![
        "export",
        "--weights",
        weights,
        "--format",
        format,
        "--output",
        output,
    ];
    arguments.extend(more);
    arguments
}

#[test]
fn exports_come_back_and_their_network_is_told_from_them() {
    let bench = Bench::new();
    bench.pack("pack", 24);
    let stem = "model.stem=imagenet";
    bench
        .pirl(&bench.pretrain("run", &["--set", "train.epochs=1", "--set", stem]))
        .success();
    bench
        .pirl(&export("run", "torchvision", "a.safetensors", &[]))
        .success();
    bench
        .pirl(&export("a.safetensors", "detectron2", "b.safetensors", &[]))
        .success();
    let back = bench.json(&export(
        "b.safetensors",
        "torchvision",
        "c.safetensors",
        &[],
    ));
    assert_eq!(back["model"]["arch"], "resnet18");
    assert_eq!(back["model"]["width"], 0.25);
    assert_eq!(back["read"]["missing"].as_array().unwrap().len(), 0);
    let read = |name: &str| std::fs::read(bench.path(name)).unwrap();
    assert!(read("a.safetensors") == read("c.safetensors"));
    assert!(read("a.safetensors") != read("b.safetensors"));

    // Without a recipe a file is evaluated like the run, once images are seen as there.
    let knn = |weights, more: &[&str]| knn(&bench, weights, more)["layers"].clone();
    let sizes = ["--set", "eval.resize=16", "--set", "data.image_size=16"];
    assert_eq!(knn("b.safetensors", &sizes), knn("run", &[]));
}

#[test]
fn what_became_of_a_files_tensors_is_said() {
    let bench = Bench::new();
    let file = checkpoint("vissl.torch");
    let arguments = export(&file, "torchvision", "out.safetensors", &[]);
    let assert = bench.pirl(&arguments).success();
    let said = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    for part in [
        "120 tensors of the backbone under classy_state_dict.base_model.model.trunk._feature_blocks.",
        "left over",
        "loss.nce_average (2)",
    ] {
        assert!(said.contains(part), "{said}");
    }
    let read = &bench.json(&arguments)["read"];
    assert_eq!(read["matched"].as_array().unwrap().len(), 120);
    let left_over = read["left_over"].as_array().unwrap();
    assert!(
        left_over.contains(&"loss.nce_average.memory".into()),
        "{read}"
    );
}

#[test]
fn weights_that_do_not_fit_are_refused_with_the_way_out() {
    let bench = Bench::new();
    let refused = |file: &str, format: &str, more: &[&str], wanted: &[&str]| {
        let message = bench.fails(&export(file, format, "out.safetensors", more));
        for part in wanted {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert!(!bench.path("out.safetensors").exists());
    };
    let large = checkpoint("torchvision.pth");
    let wanted = [
        "torchvision.pth",
        "resnet50",
        "model.width = 0.25",
        "--recipe",
    ];
    refused(&large, "torchvision", &["--recipe", "tiny.toml"], &wanted);
    let set = ["--set", "model.arch=resnet18"];
    refused(
        &large,
        "torchvision",
        &set,
        &["model.arch = resnet50", "resnet18"],
    );
    let random = ["--recipe", "tiny.toml"];
    refused(
        "random",
        "detectron2",
        &random,
        &["stem = small", "torchvision"],
    );
    let call = checkpoint("command.pth");
    refused(
        &call,
        "torchvision",
        &[],
        &["command.pth", "posix.system", "nothing was run"],
    );
    assert!(!bench.path("pickled-call-was-run").exists());
    refused(
        "none.pth",
        "torchvision",
        &[],
        &["none.pth", "no such run or file"],
    );
}

/// `eval knn` of weights on the images they were trained on.
fn knn(bench: &Bench, weights: &str, more: &[&str]) -> Value {
    let arguments = [
        "eval",
        "knn",
        "--weights",
        weights,
        "--train",
        "pack",
        "--test",
        "pack",
        "--set",
        "eval.knn.k=5",
    ];
    bench.json(&[&arguments[..], more].concat())
}

/// The tensors of a file, bit for bit.
fn tensors(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.iter();
    tensors
        .map(|(name, tensor)| (name.to_owned(), tensor.data().to_vec()))
        .collect()
}

#[test]
fn what_is_exported_is_what_was_measured() {
    let bench = Bench::new();
    bench.pack("pack", 40);
    let precise = ["--set", "eval.precise_batch_norm=24"];
    let steps = |count: &'static str| [&precise[..], &["--set", count]].concat();
    let summary = bench.json(&bench.pretrain("run", &steps("train.steps=3")));
    let step = |count: u32| format!("run/checkpoints/step-0000000{count}");
    let weights = summary["weights"].as_str().unwrap();
    assert_eq!(weights, step(3) + "/backbone.safetensors");
    let (raw, saved) = (
        tensors(&bench.path(&step(3)).join("model.safetensors")),
        tensors(&bench.path(weights)),
    );
    for (name, tensor) in &saved {
        let same = !name.contains("running_");
        let counted = name.ends_with("num_batches_tracked");
        assert!(counted || (raw[name] == *tensor) == same, "{name}");
    }

    // Probes take it as it is, and so do exports, whose file says what it is.
    let probe = knn(&bench, "run", &[]);
    let statistics = json!({ "used": true, "images": 16, "saved": true });
    assert_eq!(
        probe["precise_batch_norm"], statistics,
        "whole batches of 16"
    );
    let exported = bench.json(&export("run", "torchvision", "a.safetensors", &[]));
    assert_eq!(exported["precise_batch_norm"], 16);
    assert!(tensors(&bench.path("a.safetensors")) == saved);
    let of_export = knn(&bench, "a.safetensors", &["--recipe", "run/config.toml"]);
    for key in ["layers", "precise_batch_norm"] {
        assert_eq!(of_export[key], probe[key]);
    }
    assert_eq!(
        of_export["weights"]["fingerprint"],
        probe["weights"]["fingerprint"]
    );

    // On the same images a probe that is told to recompute them finds the same; or it takes the raw ones.
    let again = knn(&bench, "run", &precise);
    assert_eq!(again["layers"], probe["layers"]);
    assert_eq!(again["precise_batch_norm"]["saved"], false);
    let raw = knn(&bench, "run", &["--set", "eval.precise_batch_norm=0"]);
    assert_eq!(raw["precise_batch_norm"]["used"], false);
    let file = step(3) + "/model.safetensors";
    assert_eq!(knn(&bench, &file, &[])["layers"], probe["layers"]);

    // A longer run goes on from the raw ones.
    let more = [&steps("train.steps=5")[..], &["--resume"]].concat();
    bench.pirl(&bench.pretrain("run", &more)).success();
    bench
        .pirl(&bench.pretrain("plain", &["--set", "train.steps=5"]))
        .success();
    let model = |run: &str| {
        tensors(
            &bench
                .path(run)
                .join("checkpoints/step-00000005/model.safetensors"),
        )
    };
    assert!(model("run") == model("plain"));
    assert!(bench.path(&step(5)).join("backbone.safetensors").is_file());
    let plain = bench.path("plain/checkpoints/step-00000005");
    assert!(!plain.join("backbone.safetensors").exists());
    let statistics = json!({ "used": false, "images": 0, "saved": false });
    assert_eq!(knn(&bench, "plain", &[])["precise_batch_norm"], statistics);
}

#[test]
fn a_run_begins_at_the_features_of_its_initial_weights() {
    let bench = Bench::new();
    bench.pack("pack", 40);
    let recipe = "base = \"tiny.toml\"\nbank.init = \"random\"\ncheckpoint.keep = 9\n";
    fs::write(bench.path("random-bank.toml"), recipe).unwrap();
    fn run<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let arguments = ["pretrain", "--recipe", "random-bank.toml", "--data", "pack"];
        [&arguments[..], &["--out", out, "--seed", "3"], more].concat()
    }
    let pretrain = |out: &str, more: &[&str]| bench.json(&run(out, more));
    let refused = |out: &str, more: &[&str], wanted: &[&str]| {
        let message = bench.fails(&run(out, more));
        for part in wanted {
            assert!(message.contains(part), "{part}: {message}");
        }
    };
    pretrain("source", &["--set", "train.steps=3"]);
    bench
        .pirl(&export("source", "torchvision", "a.safetensors", &[]))
        .success();
    let init = ["--init-weights", "a.safetensors"];
    let (two, four) = (["--set", "train.steps=2"], ["--set", "train.steps=4"]);

    let summary = pretrain("run", &[&init[..], &two].concat());
    let first = "run/checkpoints/step-00000000/model.safetensors";
    let of_file = ["--recipe", "tiny.toml", "--seed", "3", "--cache", "of-file"];
    let (file, begun) = (
        knn(&bench, "a.safetensors", &of_file),
        knn(&bench, first, &["--cache", "of-run"]),
    );
    assert_eq!(begun["layers"], file["layers"]);
    assert_eq!(
        begun["weights"]["fingerprint"],
        file["weights"]["fingerprint"]
    );
    let fingerprint = &summary["init_weights"]["fingerprint"];
    assert_eq!(*fingerprint, file["weights"]["fingerprint"]);
    let features = |cache: &str| -> Vec<Vec<u8>> {
        let mut files: Vec<_> = fs::read_dir(bench.path(cache))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        files.sort_by_key(|file| file.file_name());
        files
            .iter()
            .map(|file| fs::read(file.path()).unwrap())
            .collect()
    };
    assert!(!features("of-run").is_empty() && features("of-run") == features("of-file"));
    let bank = |run: &str| {
        let config = fs::read_to_string(bench.path(run).join("config.toml")).unwrap();
        let config: toml::Table = config.parse().unwrap();
        config["bank"]["init"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        (bank("source"), bank("run")),
        ("random".into(), "features".into())
    );

    // It goes on without being told, even without the file, and equals a run never stopped.
    pretrain("whole", &[&init[..], &four].concat());
    fs::rename(bench.path("a.safetensors"), bench.path("b.safetensors")).unwrap();
    pretrain("run", &[&four[..], &["--resume"]].concat());
    assert_eq!(bench.losses("run"), bench.losses("whole"));
    fs::remove_dir_all(bench.path("run/checkpoints")).unwrap();
    refused("run", &["--resume"], &["a.safetensors"]);
    fs::copy(bench.path("b.safetensors"), bench.path("a.safetensors")).unwrap();
    pretrain("run", &[&four[..], &["--resume"]].concat());
    assert_eq!(bench.losses("run"), bench.losses("whole"));

    // Other weights are refused, and so is a run that did not begin with any.
    let other = ["--resume", "--init-weights", "run"];
    refused(
        "whole",
        &other,
        &["whole", "a.safetensors", "step-00000004"],
    );
    refused("source", &other, &["random weights", "step-00000004"]);
    pretrain(
        "whole",
        &[&four[..], &["--resume", "--init-weights", "b.safetensors"]].concat(),
    );

    // A run's backbone serves, too; what was typed of the bank stays.
    let typed = ["--init-weights", "source", "--set", "bank.init=random"];
    let summary = pretrain("typed", &[&typed[..], &two].concat());
    assert_eq!(summary["init_weights"]["fingerprint"], *fingerprint);
    assert_eq!(bank("typed"), "random");
    pretrain("typed", &[&four[..], &["--resume"]].concat());

    let large = checkpoint("torchvision.pth");
    let wanted = [
        "torchvision.pth",
        "model.arch = resnet50",
        "model.width = 0.25",
    ];
    refused("new", &["--init-weights", &large], &wanted);
    refused("new", &["--init-weights", "random"], &["leave it out"]);
    refused(
        "new",
        &["--init-weights", "nowhere"],
        &["--init-weights", "no such run"],
    );
    assert!(!bench.path("new").exists());
}

#[test]
fn exports_for_other_programs_are_read_back() {
    let bench = Bench::new();
    bench.pack("pack", 24);
    let stem = ["--set", "train.epochs=1", "--set", "model.stem=imagenet"];
    bench.pirl(&bench.pretrain("run", &stem)).success();
    let measured = knn(&bench, "run", &["--out", "knn"]);

    // A folder with a page that says what it is and what it is worth.
    let results = ["--results", "knn/result.json"];
    bench
        .pirl(&export("run", "hugging-face", "folder", &results))
        .success();
    let card = bench.read("folder/README.md");
    let top1 = format!(
        "top-1 {:.1} |",
        measured["chosen"]["top1"].as_f64().unwrap()
    );
    for part in [
        "library_name: transformers",
        "nearest neighbours on",
        &top1,
        "[bank]\ndim = 16",
    ] {
        assert!(card.contains(part), "{part}: {card}");
    }
    let back = export(
        "folder/model.safetensors",
        "torchvision",
        "a.safetensors",
        &[],
    );
    bench.pirl(&back).success();
    bench
        .pirl(&export("run", "torchvision", "b.safetensors", &[]))
        .success();
    assert!(tensors(&bench.path("a.safetensors")) == tensors(&bench.path("b.safetensors")));

    // ONNX: half the tensors, and the same features.
    let exported = bench.json(&export("run", "onnx", "a.onnx", &[]));
    assert_eq!(exported["tensors"], 2 * 20);
    let embed = |weights, output, more: &[&str]| {
        let arguments = [
            "embed",
            "--weights",
            weights,
            "--data",
            "pack",
            "--output",
            output,
        ];
        bench.pirl(&[&arguments[..], more].concat()).success();
        let tensors = tensors(&bench.path(output));
        let words = tensors["res5"].chunks(4);
        words
            .map(|word| f32::from_le_bytes(word.try_into().unwrap()))
            .collect::<Vec<f32>>()
    };
    let sizes = ["--set", "eval.resize=16", "--set", "data.image_size=16"];
    let (own, of_onnx) = (
        embed("run", "run.safetensors", &[]),
        embed("a.onnx", "onnx.safetensors", &sizes),
    );
    assert_eq!(own.len(), 24 * 128);
    assert!(own.iter().zip(&of_onnx).all(|(a, b)| (a - b).abs() < 1e-4));
    assert_eq!(knn(&bench, "a.onnx", &sizes)["model"], measured["model"]);

    let refused = |arguments: &[&str], wanted: &[&str]| {
        let message = bench.fails(arguments);
        for part in wanted {
            assert!(message.contains(part), "{part}: {message}");
        }
    };
    let other = export("random", "hugging-face", "other", &results);
    let other = [&other[..], &["--recipe", "run/config.toml"]].concat();
    refused(&other, &["knn/result.json", "of other weights"]);
    assert!(!bench.path("other").exists());
    let again = export("run", "hugging-face", "folder", &[]);
    refused(&again, &["folder", "exists already"]);
    refused(
        &export("run", "timm", "timm", &[]),
        &["model.width = 1", "--format torchvision"],
    );
    let folded = ["a.onnx", "no batch norms", "exported from"];
    refused(
        &export("a.onnx", "torchvision", "c.safetensors", &[]),
        &folded,
    );
    let train = ["--train", "pack", "--test", "pack", "--weights", "a.onnx"];
    refused(&[&["eval", "finetune"], &train[..]].concat(), &folded);
    let statistics = ["--set", "eval.precise_batch_norm=8"];
    refused(
        &[&["eval", "knn"], &train[..], &statistics].concat(),
        &folded,
    );
    let init = ["--init-weights", "a.onnx", "--set", "model.stem=imagenet"];
    refused(&bench.pretrain("new", &init), &folded);
}
