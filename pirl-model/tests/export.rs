//! Exports beside what the libraries they are for have: names, settings, features.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use pirl_model::{
    Arch, Backbone, Export, ExportView, Exporter, Mode, ModelConfig, ResNet, Stem, Trainable,
    exporter, exporters, load_state_dict, read_backbone, save_tensors,
};
use serde_json::{Value, json};

const CPU: Device = Device::Cpu;

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/exports.json")).unwrap()
}

fn format(name: &str) -> &'static dyn Exporter {
    exporter(name).unwrap()
}

fn config(arch: Arch, width: f64, stem: Stem) -> ModelConfig {
    ModelConfig {
        arch,
        width,
        stem,
        ..ModelConfig::default()
    }
}

/// A network after a batch, so that its statistics are its own.
fn network(config: &ModelConfig) -> ResNet {
    let network = ResNet::new(config, 1, &CPU).unwrap();
    network.forward(&images(), Mode::Train).unwrap();
    network
}

fn images() -> Tensor {
    Tensor::from_vec(benches::fill(9, 2 * 3 * 40 * 33), (2, 3, 40, 33), &CPU).unwrap()
}

fn export(backbone: &ResNet) -> Export<'_> {
    Export {
        backbone,
        precise_batch_norm: Some(80),
        view: ExportView {
            resize: 256,
            crop: 224,
            mean: vec![0.485, 0.456, 0.406],
            std: vec![0.229, 0.224, 0.225],
        },
        card: "what it is",
    }
}

fn features(network: &ResNet) -> Vec<f32> {
    let features = network.forward(&images(), Mode::Eval).unwrap();
    features.flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{a} {b}");
    }
}

fn read_json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn every_format_comes_back_with_the_same_features() {
    let folder = tempfile::tempdir().unwrap();
    for arch in [Arch::Resnet10, Arch::Resnet50] {
        for (format, width) in
            exporters().map(|it| (it, if it.name() == "timm" { 1.0 } else { 0.25 }))
        {
            let network = network(&config(arch, width, Stem::Imagenet));
            let output = folder.path().join(format!("{arch}-{}.onnx", format.name()));
            let count = format.write(&export(&network), &output).unwrap();
            assert!(
                format
                    .usage(&export(&network), &output)
                    .contains(output.to_str().unwrap())
            );
            let file = match output.is_dir() {
                true => output.join("model.safetensors"),
                false if format.name() == "onnx" => output,
                false => {
                    let file = output.with_extension("safetensors");
                    fs::rename(output, &file).unwrap();
                    file
                }
            };
            let found = read_backbone(&file).unwrap();
            assert_eq!(found.config, *network.config(), "{}", format.name());
            assert_eq!(
                (found.precise_batch_norm, found.folded),
                (Some(80), format.name() == "onnx")
            );
            let back = ResNet::new(&found.config, 2, &CPU).unwrap();
            found.fill(&back).unwrap();
            match format.name() {
                "onnx" => {
                    assert_eq!(count, 2 * network.parameters().params().len() / 3);
                    assert_close(&features(&back), &features(&network), 1e-5);
                }
                _ => {
                    assert_eq!(count, network.state().unwrap().len());
                    assert_eq!(features(&back), features(&network), "{}", format.name());
                }
            }
        }
    }
}

#[test]
fn a_hugging_face_folder_is_what_transformers_has() {
    let folder = tempfile::tempdir().unwrap();
    for (name, arch) in [("resnet10", Arch::Resnet10), ("resnet50", Arch::Resnet50)] {
        let golden = &golden()["hugging_face"][name];
        let tensors: Vec<(String, Vec<usize>)> =
            serde_json::from_value(golden["tensors"].clone()).unwrap();

        // Its own weights, whose features it computed, are read.
        let mut state = HashMap::new();
        for (seed, (name, shape)) in (100..).zip(&tensors) {
            let numbers = benches::fill(seed, shape.iter().product());
            let numbers = Tensor::from_vec(numbers, shape.as_slice(), &CPU).unwrap();
            let one = name.ends_with("normalization.weight") || name.ends_with("running_var");
            let inputs: usize = shape[1..].iter().product();
            let numbers = match shape.len() {
                4 => numbers * (3.0 / inputs as f64).sqrt(),
                _ => numbers.affine(f64::from(0.2f32), f64::from(u8::from(one))),
            };
            state.insert(format!("resnet.{name}"), numbers.unwrap());
        }
        let file = folder.path().join("theirs.safetensors");
        save_tensors(&file, &state).unwrap();
        let found = read_backbone(&file).unwrap();
        assert_eq!(
            (&*found.prefix, &found.config),
            ("resnet.", &config(arch, 0.25, Stem::Imagenet))
        );
        let network = ResNet::new(&found.config, 0, &CPU).unwrap();
        found.fill(&network).unwrap();
        let expected: Vec<f32> = serde_json::from_value(golden["features"].clone()).unwrap();
        let every_eighth: Vec<f32> = features(&network).into_iter().step_by(8).collect();
        assert_close(&every_eighth, &expected, 1e-4); // f32 sums in another order

        // And what is written has the same names, shapes and settings.
        let output = folder.path().join(name);
        format("hugging-face")
            .write(&export(&network), &output)
            .unwrap();
        let mut written: Vec<(String, Vec<usize>)> =
            load_state_dict(&output.join("model.safetensors"))
                .unwrap()
                .into_iter()
                .filter(|(name, _)| !name.ends_with("num_batches_tracked"))
                .map(|(name, tensor)| (name, tensor.dims().to_vec()))
                .collect();
        let mut tensors = tensors;
        written.sort();
        tensors.sort();
        assert_eq!(written, tensors);
        let config = read_json(&output.join("config.json"));
        for (key, value) in golden["config"].as_object().unwrap() {
            assert_eq!(&config[key], value, "{key}");
        }
        let preprocessor = read_json(&output.join("preprocessor_config.json"));
        assert_eq!(preprocessor["size"], json!({ "shortest_edge": 256 }));
        assert_eq!(preprocessor["image_mean"], json!([0.485, 0.456, 0.406]));
        assert_eq!(
            preprocessor["crop_size"],
            json!({ "height": 224, "width": 224 })
        );
        assert_eq!(
            fs::read_to_string(output.join("README.md")).unwrap(),
            "what it is"
        );
    }
}

#[test]
fn a_timm_folder_has_the_keys_of_timms_own() {
    let folder = tempfile::tempdir().unwrap();
    let golden = &golden()["timm"];
    let output = folder.path().join("timm");
    let network = network(&config(Arch::Resnet50, 1.0, Stem::Imagenet));
    format("timm").write(&export(&network), &output).unwrap();
    let config = read_json(&output.join("config.json"));
    for key in [
        "architecture",
        "num_classes",
        "num_features",
        "global_pool",
        "model_args",
    ] {
        assert_eq!(config[key], golden[key], "{key}");
    }
    let (own, theirs) = (&config["pretrained_cfg"], &golden["pretrained_cfg"]);
    for (key, value) in own.as_object().unwrap() {
        match key.as_str() {
            "tag" | "interpolation" => assert!(value.is_string() && theirs[key].is_string()),
            "crop_pct" => assert_eq!(value, 0.875),
            _ => assert_eq!(value, &theirs[key], "{key}"),
        }
    }
}

#[test]
fn what_a_format_cannot_hold_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    for (name, arch, width, stem, wanted) in [
        (
            "timm",
            Arch::Resnet18,
            1.0,
            Stem::Small,
            "model.stem = imagenet",
        ),
        (
            "timm",
            Arch::Resnet18,
            0.5,
            Stem::Imagenet,
            "model.width = 1",
        ),
        (
            "hugging-face",
            Arch::Resnet10,
            0.25,
            Stem::Medium,
            "model.stem = imagenet",
        ),
        (
            "detectron2",
            Arch::Resnet10,
            0.25,
            Stem::Small,
            "model.stem = imagenet",
        ),
    ] {
        let config = config(arch, width, stem);
        let output = folder.path().join("out");
        let network = ResNet::new(&config, 0, &CPU).unwrap();
        let error = format(name)
            .write(&export(&network), &output)
            .unwrap_err()
            .to_string();
        for part in [name, &config.network(), wanted, "--format torchvision"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(!output.exists());
    }
    // 42 million parameters, sixteen times.
    let large = config(Arch::Resnet101, 4.0, Stem::Small);
    assert!(format("torchvision").check(&large).is_ok());
    let error = format("onnx").check(&large).unwrap_err().to_string();
    assert!(error.contains("2 GiB"), "{error}");
    for arch in [Arch::Resnet10, Arch::Resnet34, Arch::Resnet101] {
        for stem in [Stem::Imagenet, Stem::Medium, Stem::Small] {
            format("onnx").check(&config(arch, 0.5, stem)).unwrap();
        }
    }

    let network = network(&config(Arch::Resnet10, 0.25, Stem::Imagenet));
    let output = folder.path().join("there");
    fs::create_dir(&output).unwrap();
    let error = format("hugging-face")
        .write(&export(&network), &output)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("there") && error.contains("exists already"),
        "{error}"
    );
    assert_eq!(fs::read_dir(&output).unwrap().count(), 0);
    let absent = folder.path().join("absent/a.onnx");
    assert!(format("onnx").write(&export(&network), &absent).is_err());
}
