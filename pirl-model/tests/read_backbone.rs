//! Backbones found in the checkpoints of other programs, whose features must be PyTorch's, and files
//! that are refused.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use pirl_model::{
    Arch, Backbone, BackboneWeights, Export, ExportView, Mode, ModelConfig, ModelError, ResNet,
    Stem, Trainable, exporter, load_state_dict, read_backbone, read_backbone_under, save_backbone,
    save_tensors,
};

const CPU: Device = Device::Cpu;

fn golden(name: &str) -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    tests.join("golden/weights").join(name)
}

/// The network of a file, filled from it with nothing missing.
fn network(found: &BackboneWeights) -> ResNet {
    let network = ResNet::new(&found.config, 0, &CPU).unwrap();
    let report = network.load(&found.state).unwrap();
    assert_eq!(
        (report.missing, report.unexpected),
        (Vec::<String>::new(), Vec::new())
    );
    network
}

fn features(network: &ResNet) -> Vec<f32> {
    let images = benches::fill(3, 2 * 3 * 64 * 64);
    let images = Tensor::from_vec(images, (2, 3, 64, 64), &CPU).unwrap();
    let features = network.forward(&images, Mode::Eval).unwrap();
    features.flatten_all().unwrap().to_vec1().unwrap()
}

/// Every fourth number against `make_weights.py`'s, relative to the largest of them.
fn assert_features(name: &str, arch: &str, found: &[f32]) {
    let text = std::fs::read_to_string(golden("features.json")).unwrap();
    let golden: HashMap<String, Vec<f32>> = serde_json::from_str(&text).unwrap();
    let expected = &golden[arch];
    assert_eq!(found.len(), 4 * expected.len(), "{name}");
    let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
    let pairs = expected.iter().zip(found.iter().step_by(4));
    let error = pairs.fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(
        largest > 0.1 && error < 1e-4 * largest,
        "{name}: {error} of {largest}"
    );
}

#[test]
fn every_kind_of_checkpoint_gives_pytorchs_features() {
    let cases = [
        ("torchvision.pth", "resnet50", "", 2),
        ("timm.pth", "resnet18", "", 2),
        ("legacy.pth", "resnet18", "", 2),
        ("parallel.pth.tar", "resnet18", "state_dict.module.", 3),
        // The other encoder's 122 tensors, this one's classifier, and the queue.
        (
            "moco.pth.tar",
            "resnet18",
            "state_dict.module.encoder_q.",
            125,
        ),
        ("pycontrast.pth", "resnet18", "model.module.encoder.", 2),
        (
            "vissl.torch",
            "resnet18",
            "classy_state_dict.base_model.model.trunk._feature_blocks.",
            4,
        ),
    ];
    for (file, arch, prefix, left_over) in cases {
        let found = read_backbone(&golden(file)).unwrap();
        let expected = ModelConfig {
            arch: match arch {
                "resnet18" => Arch::Resnet18,
                _ => Arch::Resnet50,
            },
            ..ModelConfig::default()
        };
        assert_eq!(found.config, expected, "{file}");
        assert_eq!(found.prefix, prefix, "{file}");
        assert_eq!(
            found.left_over.len(),
            left_over,
            "{file}: {:?}",
            found.left_over
        );
        assert_features(file, arch, &features(&network(&found)));
    }
}

fn small(seed: u64) -> ResNet {
    let config = ModelConfig {
        arch: Arch::Resnet50,
        width: 0.25,
        stem: Stem::Imagenet,
        ..ModelConfig::default()
    };
    let network = ResNet::new(&config, seed, &CPU).unwrap();
    // Statistics that are not those of every network.
    let images = Tensor::from_vec(benches::fill(5, 4 * 3 * 32 * 32), (4, 3, 32, 32), &CPU);
    network.forward(&images.unwrap(), Mode::Train).unwrap();
    network
}

fn state(network: &ResNet) -> HashMap<String, Tensor> {
    network.state().unwrap()
}

fn bits(state: &HashMap<String, Tensor>) -> HashMap<String, (DType, Vec<u64>)> {
    let bits = |tensor: &Tensor| {
        let numbers = tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap();
        let numbers: Vec<f64> = numbers.to_vec1().unwrap();
        numbers.into_iter().map(f64::to_bits).collect()
    };
    let entry = |(name, tensor): (&String, &Tensor)| (name.clone(), (tensor.dtype(), bits(tensor)));
    state.iter().map(entry).collect()
}

#[test]
fn both_exports_come_back_bit_for_bit_under_any_prefix() {
    let folder = tempfile::tempdir().unwrap();
    let exported = small(1);
    let own = state(&exported);
    let expected = bits(&own);
    let path = folder.path().join("renamed.safetensors");
    let export = Export {
        backbone: &exported,
        precise_batch_norm: None,
        view: ExportView {
            resize: 40,
            crop: 32,
            mean: vec![0.5; 3],
            std: vec![0.25; 3],
        },
        card: "",
    };
    exporter("detectron2")
        .unwrap()
        .write(&export, &path)
        .unwrap();
    let renamed = load_state_dict(&path).unwrap();
    assert_eq!(renamed.len(), own.len());
    assert!(renamed.contains_key("res5.2.conv3.norm.running_var"));
    for (name, exported) in [("torchvision", own), ("detectron2", renamed)] {
        for prefix in ["", "module.", "model.trunk._feature_blocks."] {
            let path = folder.path().join(format!("{name}.safetensors"));
            let under = exported.iter();
            let mut under: HashMap<String, Tensor> = under
                .map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone()))
                .collect();
            let head = Tensor::zeros((2, 3), DType::F32, &CPU).unwrap();
            under.insert(format!("{prefix}fc.weight"), head);
            save_tensors(&path, &under).unwrap();
            let found = read_backbone(&path).unwrap();
            assert_eq!(found.prefix, prefix);
            assert_eq!(found.left_over, [format!("{prefix}fc.weight")]);
            assert_eq!(found.precise_batch_norm, None);
            save_backbone(&path, &under, Some(4096)).unwrap();
            let noted = read_backbone(&path).unwrap();
            assert_eq!(noted.precise_batch_norm, Some(4096));
            assert_eq!(bits(&noted.state), bits(&found.state));
            assert_eq!(bits(&found.state), expected, "{name} {prefix}");
            assert_eq!(features(&network(&found)), features(&small(1)));
        }
    }
}

#[test]
fn of_two_networks_one_can_be_chosen() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("both.safetensors");
    let (student, teacher) = (state(&small(1)), state(&small(2)));
    let under = |prefix: &str, state: &HashMap<String, Tensor>| -> Vec<(String, Tensor)> {
        state
            .iter()
            .map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone()))
            .collect()
    };
    let both = under("student.", &student)
        .into_iter()
        .chain(under("teacher.", &teacher));
    save_tensors(&path, &both.collect()).unwrap();
    let found = read_backbone(&path).unwrap();
    assert_eq!(
        (found.prefix.as_str(), &found.others[..]),
        ("student.", &["teacher.".to_owned()][..])
    );
    let said = found.fill(&network(&found)).unwrap().to_string();
    assert!(
        said.contains("WARNING") && said.contains("teacher.") && said.contains("--weights-prefix"),
        "{said}"
    );
    let chosen = read_backbone_under(&path, Some("teacher")).unwrap();
    assert_eq!(bits(&chosen.state), bits(&teacher));
    let neither = read_backbone_under(&path, Some("pupil"))
        .unwrap_err()
        .to_string();
    assert!(
        neither.contains("pupil") && neither.contains("student., teacher."),
        "{neither}"
    );
}

#[test]
fn weights_that_are_no_numbers_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("diverged.safetensors");
    for broken in [f32::NAN, f32::INFINITY] {
        let mut own = state(&small(1));
        let shape = own["layer3.1.bn2.running_var"].dims().to_vec();
        let mut numbers = vec![1.0; shape[0]];
        numbers[shape[0] - 1] = broken;
        let tensor = Tensor::from_vec(numbers, shape, &CPU).unwrap();
        own.insert("layer3.1.bn2.running_var".to_owned(), tensor);
        save_tensors(&path, &own).unwrap();
        let said = reason(&path);
        assert!(
            said.contains("diverged") && said.contains("layer3.1.bn2.running_var"),
            "{said}"
        );
    }
}

fn reason(path: &Path) -> String {
    read_backbone(path).unwrap_err().to_string()
}

#[test]
fn a_pickled_call_is_refused_and_not_run() {
    let message = reason(&golden("command.pth"));
    for part in [
        "command.pth",
        "posix.system",
        "refused",
        "safetensors.torch",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert!(!Path::new("pickled-call-was-run").exists());
}

#[test]
fn a_broken_or_foreign_file_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["timm.pth", "legacy.pth"] {
        let whole = std::fs::read(golden(name)).unwrap();
        let path = folder.path().join(format!("cut-{name}"));
        for cut in (0..whole.len()).step_by(1777).chain([whole.len() - 1]) {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let message = reason(&path);
            assert!(message.contains("cut-"), "{cut}: {message}");
        }
    }
    let path = folder.path().join("text.pth");
    std::fs::write(&path, "not weights").unwrap();
    assert!(reason(&path).contains("torch.save"));
    let path = folder.path().join("none.safetensors");
    save_tensors(
        &path,
        &HashMap::from([(
            "a.b".to_owned(),
            Tensor::zeros(1, DType::F32, &CPU).unwrap(),
        )]),
    )
    .unwrap();
    assert!(matches!(
        read_backbone(&path),
        Err(ModelError::NoBackbone { .. })
    ));
}

/// Bytes of a whole file changed one at a time: an error or other numbers, never a panic.
#[test]
fn no_byte_of_a_pickle_can_make_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.pth");
    let whole = std::fs::read(golden("legacy.pth")).unwrap();
    for (i, at) in (14..8000).step_by(61).enumerate() {
        let mut changed = whole.clone();
        changed[at] = changed[at].wrapping_add(1 + (i * 37 % 251) as u8);
        std::fs::write(&path, &changed).unwrap();
        if let Err(error) = read_backbone(&path) {
            assert!(error.to_string().contains("changed.pth"), "{error}");
        }
    }
}
