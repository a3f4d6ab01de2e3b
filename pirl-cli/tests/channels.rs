//! Images of five bands of 16 bits, from their files to a probe and an export.

mod common;

use std::fs;

use common::Bench;

const CHANNELS: usize = 5;
const SIDE: usize = 20;

/// A TIFF file of 16-bit bands, uncompressed; `class` and `index` decide what is on it.
fn tiff(class: usize, index: usize) -> Vec<u8> {
    let entries: [(u16, u16, usize); 9] = [
        (256, 4, SIDE),
        (257, 4, SIDE),
        (258, 3, 16),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8 + 2 + 9 * 12 + 4),
        (277, 3, CHANNELS),
        (278, 4, SIDE),
        (279, 4, SIDE * SIDE * CHANNELS * 2),
    ];
    let mut bytes = b"II*\0\x08\0\0\0".to_vec();
    bytes.extend((entries.len() as u16).to_le_bytes());
    for (tag, kind, value) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend((value as u32).to_le_bytes());
    }
    bytes.extend([0; 4]);
    for place in 0..SIDE * SIDE {
        let (x, y) = (place % SIDE, place / SIDE);
        for channel in 0..CHANNELS {
            let stripes = (x + index + channel * (1 + class)) % 5 < 2;
            let value = if stripes {
                900 + 300 * channel
            } else {
                100 + y + 7 * index
            };
            bytes.extend((value as u16).to_le_bytes());
        }
    }
    bytes
}

/// A pack of `count` images called `name`, and what was printed.
fn pack(bench: &Bench, name: &str, count: usize, more: &[&str]) -> serde_json::Value {
    for index in 0..count {
        let folder = bench.path("bands").join(["field", "water"][index % 2]);
        fs::create_dir_all(&folder).unwrap();
        fs::write(
            folder.join(format!("{index:03}.tif")),
            tiff(index % 2, index),
        )
        .unwrap();
    }
    let arguments = [
        "data",
        "pack",
        "--format",
        "image-folder",
        "--input",
        "bands",
        "--output",
        name,
    ];
    bench.json(&[&arguments, more].concat())
}

#[test]
fn images_of_five_bands_are_learnt_from_probed_and_exported() {
    let bench = Bench::new();
    let report = pack(
        &bench,
        "pack",
        40,
        &["--channels", "5", "--range", "0..2500"],
    );
    assert_eq!(
        (&report["packed"], &report["encoding"]),
        (&40.into(), &"planes of 5 channels".into())
    );
    assert_eq!(report["notes"].as_array().unwrap().len(), 40);

    // What is measured is pasted behind a recipe.
    let refused = bench.fails(&bench.pretrain("run", &[]));
    assert!(
        refused.contains("5 channels") && refused.contains("pirl data stats"),
        "{refused}"
    );
    let measured = bench.pirl(&["data", "stats", "pack"]).success();
    let measured = String::from_utf8(measured.get_output().stdout.clone()).unwrap();
    let lines = measured.split_once("[data]\n").unwrap().1;
    assert!(lines.starts_with("channels = 5\n"), "{lines}");
    let tiny = bench
        .read("tiny.toml")
        .replace("[data]\n", &format!("[data]\n{lines}"));
    fs::write(bench.path("tiny.toml"), tiny).unwrap();
    bench
        .pirl(&bench.pretrain("run", &["--set", "checkpoint.every=5"]))
        .success();
    bench
        .pirl(&bench.pretrain(
            "halves",
            &["--set", "checkpoint.every=5", "--set", "train.steps=7"],
        ))
        .success();
    let ending = bench.losses("run");
    assert_eq!(ending[..7], bench.losses("halves")[..]);

    let probe = [
        "eval",
        "knn",
        "--weights",
        "run",
        "--train",
        "pack",
        "--test",
        "pack",
    ];
    let found = bench.json(&probe);
    assert!(found["top1"].as_f64().unwrap() > 50.0, "{found}");
    assert!(found["baselines"]["pixels"].is_object(), "{found}");
    bench.json(&[
        "eval",
        "linear",
        "--weights",
        "run",
        "--train",
        "pack",
        "--test",
        "pack",
        "--set",
        "eval.linear.epochs=1",
    ]);
    bench
        .pirl(&[
            "analyze",
            "invariance",
            "--weights",
            "run",
            "--data",
            "pack",
            "--out",
            "seen",
        ])
        .success();
    bench
        .pirl(&[
            "data",
            "preview",
            "pack",
            "--recipe",
            "tiny.toml",
            "--output",
            "sheet.png",
        ])
        .success();

    let exported = bench.json(&[
        "export",
        "--weights",
        "run",
        "--format",
        "torchvision",
        "--output",
        "b.safetensors",
    ]);
    assert_eq!(exported["model"]["channels"], 5);
    let bytes = fs::read(bench.path("b.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(
        tensors.tensor("conv1.weight").unwrap().shape(),
        [16, 5, 3, 3]
    );
    // Read back, the network is told from the file; mean and deviation are not in it.
    let file = [
        "eval",
        "knn",
        "--weights",
        "b.safetensors",
        "--train",
        "pack",
        "--test",
        "pack",
    ];
    let refused = bench.fails(&file);
    assert!(
        refused.contains("data.mean") && refused.contains("5 numbers"),
        "{refused}"
    );
    let again = bench.json(&[&file[..], &["--recipe", "tiny.toml"]].concat());
    assert_eq!(again["top1"], found["top1"]);

    // What takes RGB alone says so.
    let compose = [
        "data", "compose", "--input", "pack", "--output", "scenes", "--split", "train",
    ];
    assert!(bench.fails(&compose).contains("channels = 5"));
    let of_rgb = bench.fails(&[
        "eval",
        "knn",
        "--weights",
        "random",
        "--recipe",
        "cifar10",
        "--train",
        "pack",
        "--test",
        "pack",
    ]);
    assert!(of_rgb.contains("pirl data stats"), "{of_rgb}");
}

#[test]
fn without_a_recipe_the_channels_are_those_of_the_pack() {
    let bench = Bench::new();
    pack(&bench, "pack", 40, &["--channels", "5", "--range", "image"]);
    let chosen = bench.stderr(&[
        "pretrain",
        "--data",
        "pack",
        "--out",
        "run",
        "--set",
        "train.steps=2",
        "--set",
        "model.width=0.25",
    ]);
    assert!(chosen.contains("data.channels"), "{chosen}");
    let config: toml::Table = bench.read("run/config.toml").parse().unwrap();
    assert_eq!(config["data"]["channels"].as_integer(), Some(5));
    assert_eq!(config["data"]["mean"].as_array().unwrap().len(), 5);

    // Without the option these are no images, and the report has the way out.
    let folder = [
        "data",
        "pack",
        "--format",
        "image-folder",
        "--input",
        "bands",
        "--output",
        "rgb",
    ];
    let refused = bench.fails(&folder);
    assert!(refused.contains("--channels 5"), "{refused}");
}
