//! Weights in and out on the command line.

mod common;

use std::path::Path;

use common::Bench;

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
    let knn = |weights: &str, more: &[&str]| {
        let mut arguments = vec![
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
        arguments.extend(more);
        bench.json(&arguments)["layers"].clone()
    };
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
