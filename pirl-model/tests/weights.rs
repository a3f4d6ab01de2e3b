//! State dicts: torchvision's names, whole files, clear refusals.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use pirl_model::{
    Arch, Backbone, Mode, ModelConfig, ProjectionHead, ResNet, Stem, Trainable, load_state_dict,
    save_state_dict, save_tensors, strip_prefix,
};

const CPU: Device = Device::Cpu;

fn network(arch: Arch, width: f64, stem: Stem, seed: u64) -> ResNet {
    let config = ModelConfig {
        arch,
        width,
        stem,
        ..ModelConfig::default()
    };
    ResNet::new(&config, seed, &CPU).unwrap()
}

fn names(network: &ResNet) -> Vec<(String, Vec<usize>)> {
    let params = network.parameters().params().iter();
    let params = params.map(|p| (p.name.clone(), p.shape.clone()));
    let buffers = network.buffers().entries().unwrap();
    let buffers = buffers
        .iter()
        .map(|(name, x)| (name.clone(), x.dims().to_vec()));
    let mut names: Vec<_> = params.chain(buffers).collect();
    names.sort();
    names
}

#[test]
fn names_and_shapes_are_torchvisions() {
    let golden = include_str!("golden/torchvision.json");
    let golden: HashMap<String, Vec<(String, Vec<usize>)>> = serde_json::from_str(golden).unwrap();
    for (name, arch) in [
        ("resnet18", Arch::Resnet18),
        ("resnet34", Arch::Resnet34),
        ("resnet50", Arch::Resnet50),
        ("resnet101", Arch::Resnet101),
    ] {
        let mut expected = golden[name].clone();
        expected.sort();
        assert_eq!(
            names(&network(arch, 1.0, Stem::Imagenet, 0)),
            expected,
            "{name}"
        );
    }
}

#[test]
fn a_torchvision_state_dict_loads_and_comes_back_the_same() {
    let golden = include_str!("golden/torchvision.json");
    let golden: HashMap<String, Vec<(String, Vec<usize>)>> = serde_json::from_str(golden).unwrap();
    let mut state = HashMap::new();
    for (i, (name, shape)) in golden["resnet18"].iter().enumerate() {
        let values = benches::fill(i as u32, shape.iter().product());
        let tensor = Tensor::from_vec(values, shape.as_slice(), &CPU).unwrap();
        let tensor = if name.ends_with("tracked") {
            Tensor::new(42i64, &CPU).unwrap()
        } else {
            tensor
        };
        state.insert(name.clone(), tensor);
    }
    state.insert(
        "fc.weight".to_owned(),
        Tensor::zeros((10, 512), DType::F32, &CPU).unwrap(),
    );
    let network = network(Arch::Resnet18, 1.0, Stem::Imagenet, 0);
    let report = network.load(&state).unwrap();
    assert_eq!(report.matched.len(), 120);
    assert!(report.missing.is_empty());
    assert_eq!(report.unexpected, ["fc.weight"]);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    save_state_dict(&path, &[("", &network)]).unwrap();
    let saved = load_state_dict(&path).unwrap();
    assert_eq!(saved.len(), 120);
    for (name, found) in &saved {
        let expected = &state[name];
        assert_eq!(
            (found.dtype(), found.dims()),
            (expected.dtype(), expected.dims()),
            "{name}"
        );
        let values = |x: &Tensor| {
            x.flatten_all()
                .unwrap()
                .to_dtype(DType::F64)
                .unwrap()
                .to_vec1::<f64>()
                .unwrap()
        };
        assert_eq!(values(found), values(expected), "{name}");
    }
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        1,
        "no file beside it"
    );
}

#[test]
fn modules_share_a_file_under_their_prefixes() {
    let (a, b) = (
        network(Arch::Resnet18, 0.25, Stem::Small, 1),
        network(Arch::Resnet18, 0.25, Stem::Small, 2),
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("two.safetensors");
    let modules = [("a.", &a as &dyn Trainable), ("b.", &b)];
    save_state_dict(&path, &modules).unwrap();
    let state = load_state_dict(&path).unwrap();
    let images = Tensor::ones((2, 3, 8, 8), DType::F32, &CPU).unwrap();
    let features = |n: &ResNet| {
        n.forward(&images, Mode::Eval)
            .unwrap()
            .to_vec2::<f32>()
            .unwrap()
    };
    let expected = features(&b);
    assert_ne!(features(&a), expected);
    a.load(&strip_prefix(&state, "b.")).unwrap();
    assert_eq!(features(&a), expected);
}

#[test]
fn a_wrong_shape_names_tensor_shapes_and_architecture_and_loads_nothing() {
    let wide = network(Arch::Resnet18, 0.5, Stem::Small, 1);
    let state = wide.state().unwrap();
    let narrow = network(Arch::Resnet18, 0.25, Stem::Small, 2);
    let before: Vec<f32> = narrow.parameters().var().to_vec1().unwrap();
    let error = narrow.load(&state).unwrap_err().to_string();
    for part in [
        "conv1.weight",
        "[16, 3, 3, 3]",
        "[32, 3, 3, 3]",
        "resnet18",
        "width = 0.5",
        "stem = small",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(narrow.parameters().var().to_vec1::<f32>().unwrap(), before);
}

#[test]
fn a_broken_file_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.safetensors");
    let tensors = HashMap::from([("x".to_owned(), Tensor::ones(100, DType::F32, &CPU).unwrap())]);
    save_tensors(&path, &tensors).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for cut in [0, 4, 20, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        let error = load_state_dict(&path).unwrap_err().to_string();
        assert!(error.contains("cut.safetensors"), "{error}");
    }
    let error = load_state_dict(&folder.path().join("none"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("none"), "{error}");
}

#[test]
fn a_failed_save_leaves_what_stood_there_and_nothing_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    // A folder where the file would go, which no file replaces.
    let path = folder.path().join("model.safetensors");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("old"), "whole").unwrap();
    let tensors = HashMap::from([("x".to_owned(), Tensor::ones(100, DType::F32, &CPU).unwrap())]);
    let error = save_tensors(&path, &tensors).unwrap_err().to_string();
    assert!(error.contains("model.safetensors"), "{error}");
    assert_eq!(std::fs::read(path.join("old")).unwrap(), b"whole");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// A checkpoint holds every parameter at once: were each to keep the storage of all, a ResNet-50's
/// would need 15 GB.
#[test]
fn a_parameter_taken_out_brings_nothing_else_along() {
    let head = ProjectionHead::new(&ModelConfig::default(), 64, 8, 0, &CPU).unwrap();
    let bias = head.parameters().get("fc.bias").unwrap();
    let (storage, layout) = bias.storage_and_layout();
    let candle_core::Storage::Cpu(storage) = &*storage else {
        panic!("a head on the CPU")
    };
    assert_eq!(storage.as_slice::<f32>().unwrap().len(), 8);
    assert_eq!(layout.start_offset(), 0);
}
