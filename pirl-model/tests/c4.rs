//! The halves of a C4 detector against the ResNet they come from.

use candle_core::{Device, Tensor, Var};
use pirl_model::{
    Arch, Backbone, C4, C4Config, C4Norm, Mode, ModelConfig, ModelError, Ops, OptimConfig,
    Optimizer, ResNet, Stem, Trainable,
};

const CPU: Device = Device::Cpu;
const SETTINGS: [(Arch, Stem); 3] = [
    (Arch::Resnet18, Stem::Imagenet),
    (Arch::Resnet18, Stem::Small),
    (Arch::Resnet50, Stem::Imagenet),
];

fn formula(seed: u32, shape: &[usize]) -> Tensor {
    Tensor::from_vec(benches::fill(seed, shape.iter().product()), shape, &CPU).unwrap()
}

/// A network whose statistics are not those of a new one.
fn network(arch: Arch, stem: Stem, ops: Ops) -> ResNet {
    let config = ModelConfig {
        arch,
        stem,
        width: 0.25,
        ops,
        ..ModelConfig::default()
    };
    let network = ResNet::new(&config, 3, &CPU).unwrap();
    for batch in 0..3 {
        network
            .forward(&formula(batch, &[2, 3, 40, 56]), Mode::Train)
            .unwrap();
    }
    network
}

fn c4(network: &ResNet, frozen_stages: usize, norm: C4Norm) -> C4 {
    let config = C4Config {
        frozen_stages,
        norm,
        extra_norm: false,
    };
    C4::new(network, &config).unwrap()
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn both_halves_on_a_whole_image_are_the_network() {
    let images = formula(9, &[2, 3, 45, 62]);
    for (arch, stem) in SETTINGS {
        let network = network(arch, stem, Ops::Fast);
        let expected = values(&network.forward(&images, Mode::Eval).unwrap());
        for frozen_stages in 0..=4 {
            for norm in [C4Norm::Frozen, C4Norm::Train] {
                let c4 = c4(&network, frozen_stages, norm);
                let maps = c4.features(&images, Mode::Eval).unwrap();
                let side = |pixels: usize| pixels.div_ceil(c4.stride());
                assert_eq!(maps.dims(), [2, c4.channels(), side(45), side(62)]);
                let found = c4.region_features(&maps, Mode::Eval).unwrap();
                assert_eq!(values(&found), expected, "{arch:?} {stem:?}");
            }
        }
    }
}

#[test]
fn gradients_and_statistics_are_those_of_the_network() {
    let images = formula(9, &[2, 3, 45, 62]);
    let loss = |features: &Tensor| {
        let weighted = features * formula(8, features.dims());
        weighted.unwrap().sum_all().unwrap().backward().unwrap()
    };
    for (arch, stem) in SETTINGS {
        let network = network(arch, stem, Ops::Fast);
        let c4 = c4(&network, 0, C4Norm::Train);
        let gradients = loss(&network.forward(&images, Mode::Train).unwrap());
        let expected = values(gradients.get(network.parameters().var()).unwrap());
        let maps = c4.features(&images, Mode::Train).unwrap();
        let gradients = loss(&c4.region_features(&maps, Mode::Train).unwrap());
        let found: Vec<f32> = c4
            .trained()
            .iter()
            .flat_map(|set| values(gradients.get(set.var()).unwrap()))
            .collect();
        assert_eq!(found, expected, "{arch:?} {stem:?}");
        let statistics: Vec<_> = c4
            .buffer_sets()
            .iter()
            .flat_map(|buffers| buffers.entries().unwrap())
            .map(|(name, value)| (name, value.to_string()))
            .collect();
        let expected = network.buffers().entries().unwrap();
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(name, value)| (name, value.to_string()))
            .collect();
        assert_eq!(statistics, expected);
    }
}

#[test]
fn the_fast_engine_agrees_with_the_reference_on_maps_and_regions() {
    let images = formula(9, &[1, 3, 40, 56]);
    let run = |ops: Ops, norm: C4Norm| {
        let c4 = c4(&network(Arch::Resnet18, Stem::Imagenet, ops), 1, norm);
        let maps = c4.features(&images, Mode::Train).unwrap();
        let regions = formula(4, &[5, c4.channels(), 7, 7]);
        let regions = Var::from_tensor(&regions).unwrap();
        let features = c4.region_features(&regions, Mode::Train).unwrap();
        let loss = (&features * formula(8, features.dims())).unwrap();
        let other = (&maps * formula(7, maps.dims())).unwrap();
        let loss = (loss.sum_all().unwrap() + other.sum_all().unwrap()).unwrap();
        let gradients = loss.backward().unwrap();
        let mut found = vec![values(&maps), values(&features)];
        found.push(values(gradients.get(&regions).unwrap()));
        let of = |set: &pirl_model::ParamSet| values(gradients.get(set.var()).unwrap());
        found.extend(c4.trained().iter().map(of));
        found
    };
    for norm in [C4Norm::Frozen, C4Norm::Train] {
        let pairs = run(Ops::Fast, norm)
            .into_iter()
            .zip(run(Ops::Reference, norm));
        for (fast, reference) in pairs {
            let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
            let size = norm(&mut reference.iter().copied());
            let error = norm(&mut fast.iter().zip(&reference).map(|(a, b)| a - b));
            assert!(
                fast.len() == reference.len() && error < 2e-3 * size,
                "{error} of {size}"
            );
        }
    }
}

/// The tensors that differ between two states, by name.
fn moved(c4: &C4, act: impl FnOnce()) -> Vec<String> {
    let state = || c4.state().unwrap();
    let before = state();
    act();
    let after = state();
    let mut names: Vec<_> = before
        .into_iter()
        .filter(|(name, value)| value.to_string() != after[name].to_string())
        .map(|(name, _)| name)
        .collect();
    names.sort();
    names
}

#[test]
fn what_is_frozen_does_not_move() {
    let network = network(Arch::Resnet18, Stem::Imagenet, Ops::Fast);
    let images = formula(9, &[2, 3, 48, 48]);
    let train = |c4: &C4| {
        moved(c4, || {
            let mut optimizer = Optimizer::new(&OptimConfig::default(), c4.trained()).unwrap();
            let maps = c4.features(&images, Mode::Train).unwrap();
            let features = c4.region_features(&maps, Mode::Train).unwrap();
            let loss = (&features * formula(8, features.dims())).unwrap();
            let gradients = loss.sum_all().unwrap().backward().unwrap();
            optimizer.accumulate(&gradients).unwrap();
            optimizer.step(0.1).unwrap();
        })
    };
    // With frozen norms only convolutions move, and of the frozen stages nothing.
    let names = train(&c4(&network, 2, C4Norm::Frozen));
    assert_eq!(names.len(), 15, "{names:?}");
    assert!(
        names
            .iter()
            .all(|name| name.contains("conv") || name.contains("downsample.0"))
    );
    assert!(
        names
            .iter()
            .all(|name| name > &"layer2".to_owned() && name.starts_with("layer"))
    );
    // With trained ones scale, shift and statistics move too, above the frozen stages.
    let names = train(&c4(&network, 1, C4Norm::Train));
    assert!(names.contains(&"layer1.0.bn1.weight".to_owned()));
    assert!(names.contains(&"layer4.1.bn2.running_mean".to_owned()));
    assert!(names.iter().all(|name| name.starts_with("layer")));
    // The network itself was only copied.
    assert_eq!(
        values(&network.forward(&images, Mode::Eval).unwrap()),
        values(&{
            let c4 = c4(&network, 0, C4Norm::Train);
            let maps = c4.features(&images, Mode::Eval).unwrap();
            c4.region_features(&maps, Mode::Eval).unwrap()
        })
    );
}

#[test]
fn calibration_moves_the_statistics_that_training_would() {
    let network = network(Arch::Resnet18, Stem::Imagenet, Ops::Fast);
    let images = formula(9, &[2, 3, 48, 48]);
    let calibrate = |c4: &C4| {
        moved(c4, || {
            c4.reset_statistics();
            let maps = c4.features(&images, Mode::Calibrate).unwrap();
            c4.region_features(&maps, Mode::Calibrate).unwrap();
        })
    };
    assert!(calibrate(&c4(&network, 2, C4Norm::Frozen)).is_empty());
    let names = calibrate(&c4(&network, 2, C4Norm::Train));
    assert!(
        names
            .iter()
            .all(|name| name > &"layer2".to_owned() && name.contains("bn")
                || name.contains("downsample.1"))
    );
    assert!(
        names
            .iter()
            .any(|name| name == "layer2.0.bn1.running_mean" || name == "layer4.1.bn2.running_var")
    );
}

#[test]
fn the_extra_norm_is_the_last_thing_before_the_average() {
    let network = network(Arch::Resnet18, Stem::Imagenet, Ops::Fast);
    let config = C4Config {
        frozen_stages: 0,
        norm: C4Norm::Train,
        extra_norm: true,
    };
    let extra = C4::new(&network, &config).unwrap();
    let regions = formula(4, &[5, extra.channels(), 7, 7]);
    let plain = c4(&network, 0, C4Norm::Train);
    let (a, b) = (
        extra.region_features(&regions, Mode::Eval).unwrap(),
        plain.region_features(&regions, Mode::Eval).unwrap(),
    );
    // Untrained, it divides by the root of 1 + 1e-5.
    for (a, b) in values(&a).iter().zip(values(&b)) {
        assert!((a - b / (1.0f32 + 1e-5).sqrt()).abs() < 1e-6 * b.abs().max(1.0));
    }
    // Trained, it takes out the mean.
    let normed = extra.region_features(&regions, Mode::Train).unwrap();
    assert!(
        values(&normed.mean(0).unwrap())
            .iter()
            .all(|mean| mean.abs() < 1e-5)
    );
    let sets = extra.parameter_sets();
    let last = sets[1].params().last().unwrap();
    assert_eq!(last.name, "layer4.norm.bias");

    let frozen = C4Config {
        norm: C4Norm::Frozen,
        ..config
    };
    assert!(matches!(
        C4::new(&network, &frozen),
        Err(ModelError::Setting(error)) if error.field == "extra_norm"
    ));
    let deep = C4Config {
        frozen_stages: 5,
        ..C4Config::default()
    };
    assert!(C4::new(&network, &deep).is_err());
}

#[test]
fn images_and_regions_of_other_shapes_are_refused() {
    let c4 = c4(
        &network(Arch::Resnet18, Stem::Imagenet, Ops::Fast),
        2,
        C4Norm::Frozen,
    );
    for shape in [[1, 1, 32, 32], [0, 3, 32, 32], [1, 3, 0, 32]] {
        let images = Tensor::zeros(&shape[..], candle_core::DType::F32, &CPU).unwrap();
        assert!(matches!(
            c4.features(&images, Mode::Eval),
            Err(ModelError::Input { .. })
        ));
        assert!(c4.region_features(&images, Mode::Eval).is_err());
    }
}

#[test]
fn parameters_of_modules_written_elsewhere_start_as_told_and_are_trained() {
    let make = |seed| {
        let params: [(&str, &[usize], f64); 2] =
            [("fc.weight", &[40, 50], 0.01), ("fc.bias", &[40], 0.01)];
        pirl_model::ParamSet::normal(seed, &params, &CPU).unwrap()
    };
    let set = make(1);
    let weight = values(&set.get("fc.weight").unwrap());
    let std = (weight.iter().map(|w| w * w).sum::<f32>() / 2000.0).sqrt();
    assert!((std - 0.01).abs() < 0.001, "{std}");
    assert_eq!(values(&set.get("fc.bias").unwrap()), [0.0; 40]);
    assert_eq!(weight, values(&make(1).get("fc.weight").unwrap()));
    assert_ne!(weight, values(&make(2).get("fc.weight").unwrap()));
    assert!(
        set.params()
            .iter()
            .all(|param| param.decay && param.trained)
    );

    let (weight, bias) = (set.tracked("fc.weight"), set.tracked("fc.bias"));
    let product = weight.unwrap().sqr().unwrap().sum_all().unwrap();
    let loss = (product + bias.unwrap().sum_all().unwrap()).unwrap();
    let gradients = loss.backward().unwrap();
    let found = values(gradients.get(set.var()).unwrap());
    let weights = values(&set.get("fc.weight").unwrap());
    let expected = weights.iter().map(|w| 2.0 * w).chain([1.0; 40]);
    assert_eq!(found, expected.collect::<Vec<_>>());
}
