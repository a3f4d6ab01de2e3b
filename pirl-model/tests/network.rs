//! Networks against PyTorch and torchvision: outputs, every gradient, running statistics; and the
//! fast engine against the reference.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use pirl_model::{
    Arch, Backbone, Buffers, ClassifierHead, Head, HeadKind, JigsawHead, Layer, Mode, ModelConfig,
    ModelError, Ops, ParamSet, ProjectionHead, ResNet, Stem, load_state_dict, precise_batch_norm,
};

const CPU: Device = Device::Cpu;

fn formula(seed: u32, shape: &[usize]) -> Tensor {
    let values = benches::fill(seed, shape.iter().product());
    Tensor::from_vec(values, shape, &CPU).unwrap()
}

/// The weights and statistics that `make_network.py` gives its modules.
fn initialise(params: &ParamSet, buffers: &Buffers, shift: f64) {
    for (i, param) in params.params().iter().enumerate() {
        let x = formula(100 + i as u32, &param.shape);
        let x = match param.shape.as_slice() {
            [_, rest @ ..] if !rest.is_empty() => {
                (x * (6.0 / rest.iter().product::<usize>() as f64).sqrt()).unwrap()
            }
            _ => {
                let is_gamma = param.name.ends_with("weight");
                let of_norm = !param.name.contains("fc");
                let at = if is_gamma {
                    1.0
                } else if of_norm {
                    shift
                } else {
                    0.0
                };
                x.affine(0.2, at).unwrap()
            }
        };
        params.set(&param.name, &x).unwrap();
    }
    let entries = buffers.entries().unwrap();
    let running = entries.iter().filter(|(name, _)| name.contains("running"));
    for (i, (name, value)) in running.enumerate() {
        let is_var = f64::from(u8::from(name.ends_with("var")));
        let x = formula(5000 + i as u32, value.dims()).affine(0.2, is_var);
        buffers.set(name, &x.unwrap()).unwrap();
    }
}

/// What a module computes: its output, and the gradients of a fixed weighting of it.
struct Pass {
    output: Tensor,
    parameters: Vec<Vec<f32>>,
    input: Vec<f32>,
}

fn pass(
    params: &ParamSet,
    forward: impl Fn(&Tensor) -> Result<Tensor, ModelError>,
    input: &Tensor,
) -> Pass {
    let input = Var::from_tensor(input).unwrap();
    let output = forward(&input).unwrap();
    let loss = (&output * formula(7, output.dims()))
        .unwrap()
        .sum_all()
        .unwrap();
    let gradients = loss.backward().unwrap();
    let flat: Vec<f32> = gradients.get(params.var()).unwrap().to_vec1().unwrap();
    let parameters = params.params().iter();
    let parameters = parameters
        .map(|p| flat[p.offset..][..p.elements()].to_vec())
        .collect();
    let input = gradients
        .get(&input)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap();
    Pass {
        output: output.detach(),
        parameters,
        input,
    }
}

fn norm(x: &[f32]) -> f64 {
    x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

/// `|a - b| / |b|`.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let difference: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    norm(&difference) / norm(b).max(1e-30)
}

fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all()
        .unwrap()
        .to_dtype(DType::F32)
        .unwrap()
        .to_vec1()
        .unwrap()
}

struct Golden(HashMap<String, Tensor>);

impl Golden {
    fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/network.safetensors");
        Self(load_state_dict(&path).unwrap())
    }

    fn get(&self, name: &str) -> Vec<f32> {
        flat(&self.0[name])
    }

    /// Compares norms and sampled entries; an entry's error counts relative to the root mean
    /// square of its tensor.
    fn compare(&self, what: &str, norms: &str, samples: &str, tensors: &[Vec<f32>]) {
        const SAMPLES: usize = 16;
        let (norms, samples) = (self.get(norms), self.get(samples));
        assert_eq!(norms.len(), tensors.len(), "{what}");
        // A gradient that cancels, like that of a bias before a batch norm, has only the digits
        // that the network's largest ones leave it: hence the second term of the tolerances.
        let largest = norms.iter().fold(0f32, |a, &b| a.max(b));
        let floor = 1e-6 * f64::from(largest);
        for (i, x) in tensors.iter().enumerate() {
            let (found, expected) = (norm(x), f64::from(norms[i]));
            let tolerance = 1e-4 * expected + floor;
            assert!(
                (found - expected).abs() < tolerance,
                "{what}: norm of tensor {i} is {found}, expected {expected}"
            );
            let root = (x.len() as f64).sqrt();
            let (mean_square, floor) = (expected / root, floor / root);
            for k in 0..SAMPLES {
                let at = k * (x.len() - 1) / (SAMPLES - 1);
                let (found, expected) = (f64::from(x[at]), f64::from(samples[i * SAMPLES + k]));
                let tolerance = 1e-4 * mean_square.max(expected.abs()) + floor;
                assert!(
                    (found - expected).abs() < tolerance,
                    "{what}: entry {at} of tensor {i} is {found}, expected {expected}"
                );
            }
        }
    }

    fn check(
        &self,
        name: &str,
        (params, buffers): (&ParamSet, &Buffers),
        forward: impl Fn(&Tensor, Mode) -> Result<Tensor, ModelError>,
        input: &Tensor,
        shift: f64,
    ) {
        initialise(params, buffers, shift);
        for (mode, key) in [(Mode::Frozen, "eval"), (Mode::Train, "train")] {
            let what = format!("{name}.{key}");
            let found = pass(params, |x| forward(x, mode), input);
            let error = distance(&flat(&found.output), &self.get(&format!("{what}.output")));
            assert!(error < 1e-4, "{what}: output is off by {error}");
            let key = |field: &str| format!("{what}.{field}");
            self.compare(
                &what,
                &key("grad_norms"),
                &key("grad_samples"),
                &found.parameters,
            );
            let (norm, sample) = (key("input_norm"), key("input_sample"));
            self.compare(&what, &norm, &sample, &[found.input]);
            if mode == Mode::Frozen {
                let evaluated = forward(input, Mode::Eval).unwrap();
                // It folds batch norm into the convolutions, which rounds otherwise.
                let error = distance(&flat(&evaluated), &flat(&found.output));
                assert!(error < 1e-5, "{what}: evaluation is off by {error}");
            }
        }
        let entries = buffers.entries().unwrap();
        let (running, counts): (Vec<_>, Vec<_>) = entries
            .iter()
            .partition(|(name, _)| name.contains("running"));
        if running.is_empty() {
            return;
        }
        let running: Vec<_> = running.iter().map(|(_, x)| flat(x)).collect();
        let (norms, samples) = (
            format!("{name}.running_norms"),
            format!("{name}.running_samples"),
        );
        self.compare(name, &norms, &samples, &running);
        for (name, count) in counts {
            assert_eq!(count.to_scalar::<i64>().unwrap(), 1, "{name}");
        }
    }
}

fn config(arch: Arch, width: f64, stem: Stem) -> ModelConfig {
    ModelConfig {
        arch,
        width,
        stem,
        ..ModelConfig::default()
    }
}

fn check_resnet(name: &str, config: &ModelConfig, size: usize) {
    let network = ResNet::new(config, 0, &CPU).unwrap();
    Golden::read().check(
        name,
        (network.parameters(), network.buffers()),
        |images, mode| network.forward(images, mode),
        &formula(3, &[3, 3, size, size]),
        if config.width == 1.0 { 3.0 } else { 0.0 },
    );
}

fn check_head(name: &str, head: &dyn Head) {
    Golden::read().check(
        name,
        (&head.parameter_sets()[0], &head.buffer_sets()[0]),
        |features, mode| head.forward(features, mode),
        &formula(1, &[12, 24]),
        0.0,
    );
}

#[test]
fn resnet18_computes_what_torchvision_computes() {
    check_resnet("resnet18", &config(Arch::Resnet18, 1.0, Stem::Imagenet), 64);
}

#[test]
fn resnet50_computes_what_torchvision_computes() {
    check_resnet("resnet50", &config(Arch::Resnet50, 1.0, Stem::Imagenet), 64);
}

#[test]
fn a_quarter_width_small_stem_network_computes_what_pytorch_computes() {
    let config = config(Arch::Resnet18, 0.25, Stem::Small);
    check_resnet("small12", &config, 12);
    check_resnet("small28", &config, 28);
}

#[test]
fn heads_compute_what_pytorch_computes() {
    let mut config = config(Arch::Resnet18, 1.0, Stem::Imagenet);
    check_head(
        "jigsaw",
        &JigsawHead::new(&config, 24, 3, 8, 0, &CPU).unwrap(),
    );
    check_head(
        "covariant",
        &ClassifierHead::new(&config, 24, 3, 5, 0, &CPU).unwrap(),
    );
    config.head = HeadKind::Mlp;
    check_head(
        "jigsaw_mlp",
        &JigsawHead::new(&config, 24, 3, 8, 0, &CPU).unwrap(),
    );
}

#[test]
fn the_engines_agree() {
    // Images for which no activation is so near 0 that rounding decides whether a ReLU passes it:
    // one that does changes the gradient by a hundredth, as seed 2 showed.
    let images = formula(4, &[3, 3, 40, 40]);
    for (arch, stem) in [
        (Arch::Resnet18, Stem::Small),
        (Arch::Resnet50, Stem::Imagenet),
    ] {
        for mode in [Mode::Train, Mode::Frozen] {
            let run = |ops| {
                let config = ModelConfig {
                    ops,
                    ..config(arch, 0.25, stem)
                };
                let network = ResNet::new(&config, 3, &CPU).unwrap();
                initialise(network.parameters(), network.buffers(), 3.0);
                let pass = pass(network.parameters(), |x| network.forward(x, mode), &images);
                let statistics = network.buffers().entries().unwrap();
                let statistics: Vec<_> = statistics.iter().map(|(_, x)| flat(x)).collect();
                (pass, statistics.concat())
            };
            let ((fast, fast_stats), (slow, slow_stats)) = (run(Ops::Fast), run(Ops::Reference));
            let what = format!("{arch:?} {mode:?}");
            assert!(
                distance(&flat(&fast.output), &flat(&slow.output)) < 1e-4,
                "{what}"
            );
            assert!(distance(&fast.input, &slow.input) < 1e-3, "{what}");
            let (fast, slow) = (fast.parameters.concat(), slow.parameters.concat());
            assert!(distance(&fast, &slow) < 1e-3, "{what}");
            assert!(distance(&fast_stats, &slow_stats) < 1e-4, "{what}");
        }
    }
}

#[test]
fn both_engines_show_the_same_maps() {
    let images = formula(2, &[2, 3, 32, 32]);
    let maps = |ops| {
        let config = ModelConfig {
            ops,
            ..config(Arch::Resnet18, 0.25, Stem::Imagenet)
        };
        let network = ResNet::new(&config, 3, &CPU).unwrap();
        network.feature_maps(&images, &network.layers()).unwrap()
    };
    let (fast, slow) = (maps(Ops::Fast), maps(Ops::Reference));
    let names: Vec<_> = fast.iter().map(|(layer, _)| layer.to_string()).collect();
    assert_eq!(names, ["conv1", "res2", "res3", "res4", "res5", "res5avg"]);
    let shapes: Vec<_> = fast.iter().map(|(_, map)| map.dims().to_vec()).collect();
    assert_eq!(shapes[0], [2, 16, 16, 16]);
    assert_eq!(shapes[1], [2, 16, 8, 8]);
    assert_eq!(shapes[4], [2, 128, 1, 1]);
    assert_eq!(shapes[5], [2, 128, 1, 1]);
    for ((layer, fast), (_, slow)) in fast.iter().zip(&slow) {
        assert!(distance(&flat(fast), &flat(slow)) < 1e-5, "{layer}");
    }
    let network = ResNet::new(&config(Arch::Resnet18, 0.25, Stem::Imagenet), 3, &CPU).unwrap();
    let some = network.feature_maps(&images, &[Layer::RES5, Layer::RES3]);
    let some = some.unwrap();
    let names: Vec<_> = some.iter().map(|(layer, _)| layer.as_str()).collect();
    assert_eq!(names, ["res3", "res5"]);
    assert_eq!(flat(&some[1].1), flat(&fast[4].1));
    let error = network.feature_maps(&images, &[Layer::RES5, Layer::new("res6")]);
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("no layer res6; it has conv1, res2"),
        "{error}"
    );
}

#[test]
fn two_passes_before_one_backward_add_their_gradients() {
    let network = ResNet::new(&config(Arch::Resnet18, 0.25, Stem::Small), 1, &CPU).unwrap();
    let (patches, images) = (formula(1, &[6, 3, 8, 8]), formula(2, &[2, 3, 16, 16]));
    let gradient = |inputs: &[&Tensor]| -> Vec<f32> {
        let losses: Vec<_> = inputs
            .iter()
            .map(|x| {
                network
                    .forward(x, Mode::Train)
                    .unwrap()
                    .sqr()
                    .unwrap()
                    .sum_all()
                    .unwrap()
            })
            .collect();
        let total = losses
            .iter()
            .skip(1)
            .fold(losses[0].clone(), |a, b| (a + b).unwrap());
        let gradients = total.backward().unwrap();
        gradients
            .get(network.parameters().var())
            .unwrap()
            .to_vec1()
            .unwrap()
    };
    let (first, second) = (gradient(&[&patches]), gradient(&[&images]));
    let sum: Vec<f32> = first.iter().zip(&second).map(|(a, b)| a + b).collect();
    assert!(distance(&gradient(&[&patches, &images]), &sum) < 1e-6);
}

#[test]
fn a_second_backward_through_one_pass_is_an_error() {
    let network = ResNet::new(&config(Arch::Resnet18, 0.25, Stem::Small), 1, &CPU).unwrap();
    let features = network
        .forward(&formula(1, &[2, 3, 8, 8]), Mode::Train)
        .unwrap();
    let loss = features.sum_all().unwrap();
    loss.backward().unwrap();
    let error = loss.backward().unwrap_err().to_string();
    assert!(error.contains("already differentiated"), "{error}");
}

#[test]
fn evaluation_records_nothing_and_changes_nothing() {
    let network = ResNet::new(&config(Arch::Resnet18, 0.25, Stem::Small), 1, &CPU).unwrap();
    let images = formula(1, &[2, 3, 8, 8]);
    let before: Vec<_> = network
        .buffers()
        .entries()
        .unwrap()
        .iter()
        .map(|(_, x)| flat(x))
        .collect();
    let features = network.forward(&images, Mode::Eval).unwrap();
    let gradients = features.sum_all().unwrap().backward().unwrap();
    assert!(gradients.get(network.parameters().var()).is_none());
    let after: Vec<_> = network
        .buffers()
        .entries()
        .unwrap()
        .iter()
        .map(|(_, x)| flat(x))
        .collect();
    assert_eq!(before, after);
}

#[test]
fn precise_batch_norm_is_the_mean_over_batches() {
    let network = ResNet::new(&config(Arch::Resnet18, 0.25, Stem::Small), 1, &CPU).unwrap();
    let batches = [formula(1, &[4, 3, 8, 8]), formula(2, &[4, 3, 8, 8])];
    let stem_mean = |batches: &[&Tensor]| {
        let batches = batches.iter().map(|&b| Ok::<_, ModelError>(b.clone()));
        precise_batch_norm(&network, batches).unwrap();
        let entries = network.buffers().entries().unwrap();
        let (_, mean) = entries
            .iter()
            .find(|(name, _)| name == "bn1.running_mean")
            .unwrap();
        flat(mean)
    };
    let (a, b) = (stem_mean(&[&batches[0]]), stem_mean(&[&batches[1]]));
    let both = stem_mean(&[&batches[0], &batches[1]]);
    let mean: Vec<f32> = a.iter().zip(&b).map(|(a, b)| (a + b) / 2.0).collect();
    assert!(distance(&both, &mean) < 1e-6);
    assert!(distance(&a, &b) > 1e-3);

    let none = std::iter::empty::<Result<Tensor, ModelError>>();
    assert!(matches!(
        precise_batch_norm(&network, none),
        Err(ModelError::NoBatches)
    ));
    let entries = network.buffers().entries().unwrap();
    assert_eq!(
        flat(&entries[0].1),
        both,
        "an error leaves the statistics alone"
    );
}

#[test]
fn wrong_inputs_are_named() {
    let config = config(Arch::Resnet18, 0.25, Stem::Small);
    let network = ResNet::new(&config, 1, &CPU).unwrap();
    for shape in [&[2, 1, 8, 8][..], &[0, 3, 8, 8], &[3, 8, 8]] {
        let error = network.forward(&formula(1, shape), Mode::Eval).unwrap_err();
        assert!(matches!(error, ModelError::Input { .. }), "{error}");
        assert!(error.to_string().contains(&format!("{shape:?}")), "{error}");
    }
    // One image whose last map is one pixel.
    let error = network
        .forward(&formula(1, &[1, 3, 8, 8]), Mode::Train)
        .unwrap_err();
    assert!(error.to_string().contains("layer4.0"), "{error}");

    let head = ProjectionHead::new(&config, 128, 16, 1, &CPU).unwrap();
    let error = head.forward(&formula(1, &[4, 64]), Mode::Eval).unwrap_err();
    assert!(error.to_string().contains("[4, 64]"), "{error}");
    let head = JigsawHead::new(&config, 128, 9, 16, 1, &CPU).unwrap();
    assert!(head.forward(&formula(1, &[10, 128]), Mode::Eval).is_err());

    let wide = ModelConfig {
        width: 0.3,
        ..config
    };
    let error = ResNet::new(&wide, 1, &CPU).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("width = 0.3"), "{error}");
}
