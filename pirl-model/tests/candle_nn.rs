//! Networks made of `candle_nn`'s layers train like ours, and ours is at home in Candle's programs.

use candle_core::{DType, Device, Tensor};
use candle_nn::{Activation, BatchNorm, Conv2d, Conv2dConfig, Module, ModuleT, VarBuilder, VarMap};
use pirl_model::{
    Arch, Backbone, Layer, Mode, ModelConfig, ModelError, Ops, OptimConfig, OptimKind, Optimizer,
    ParamSet, Precision, ResNet, Stem, Trainable,
};

const CPU: Device = Device::Cpu;

/// A convolution, `candle_nn`'s batch norm, GELU and the average.
struct Foreign {
    variables: VarMap,
    conv: Conv2d,
    norm: BatchNorm,
}

impl Foreign {
    fn new() -> Self {
        let variables = VarMap::new();
        let vb = VarBuilder::from_varmap(&variables, DType::F32, &CPU);
        let config = Conv2dConfig {
            stride: 2,
            ..Default::default()
        };
        let conv = candle_nn::conv2d(3, 8, 4, config, vb.pp("stem.conv")).unwrap();
        let norm = candle_nn::batch_norm(8, 1e-5, vb.pp("stem.norm")).unwrap();
        // Candle draws from a generator of its own.
        let seed = |len: usize| benches::fill(len as u32, len);
        for set in ParamSet::of_var_map(&variables) {
            let param = &set.params()[0];
            if param.name.starts_with("stem.conv") {
                let value = Tensor::from_vec(seed(param.elements()), param.shape.as_slice(), &CPU);
                set.set(&param.name, &value.unwrap()).unwrap();
            }
        }
        Self {
            variables,
            conv,
            norm,
        }
    }
}

impl Trainable for Foreign {
    fn parameter_sets(&self) -> Vec<ParamSet> {
        ParamSet::of_var_map(&self.variables)
    }
}

impl Backbone for Foreign {
    fn feature_dim(&self) -> usize {
        8
    }

    fn forward(&self, images: &Tensor, mode: Mode) -> Result<Tensor, ModelError> {
        let maps = self.conv.forward(images)?;
        let maps = self.norm.forward_t(&maps, mode == Mode::Train)?;
        Ok(Activation::Gelu.forward(&maps)?.mean((2, 3))?)
    }
}

fn images() -> Tensor {
    Tensor::from_vec(benches::fill(1, 4 * 3 * 8 * 8), (4, 3, 8, 8), &CPU).unwrap()
}

fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// The state after two steps of training, by name.
fn trained(ops: Ops, kind: OptimKind) -> Vec<(String, Vec<f32>)> {
    let network = Foreign::new();
    let config = OptimConfig {
        kind,
        weight_decay: 0.01,
        ..OptimConfig::default()
    };
    let optimizer = Optimizer::new(&config, network.parameter_sets()).unwrap();
    let mut optimizer = optimizer.with_ops(ops);
    for _ in 0..2 {
        let features = network.forward(&images(), Mode::Train).unwrap();
        let loss = features.sqr().unwrap().sum_all().unwrap();
        optimizer.accumulate(&loss.backward().unwrap()).unwrap();
        optimizer.step(0.1).unwrap();
    }
    let mut state: Vec<_> = network
        .state()
        .unwrap()
        .into_iter()
        .map(|(name, value)| (name, flat(&value)))
        .collect();
    state.sort_by(|a, b| a.0.cmp(&b.0));
    state
}

#[test]
fn variables_of_a_var_map_are_trained_as_flat_sets_are() {
    for kind in [OptimKind::Sgd, OptimKind::Lars] {
        let (fast, slow) = (trained(Ops::Fast, kind), trained(Ops::Reference, kind));
        let names: Vec<_> = fast.iter().map(|(name, _)| name.as_str()).collect();
        let expected = [
            "stem.conv.bias",
            "stem.conv.weight",
            "stem.norm.bias",
            "stem.norm.running_mean",
            "stem.norm.running_var",
            "stem.norm.weight",
        ];
        assert_eq!(names, expected);
        let before = Foreign::new().state().unwrap();
        for ((name, fast), (_, slow)) in fast.iter().zip(&slow) {
            // Batch norm subtracts whatever the convolution's bias is.
            if name != "stem.conv.bias" {
                assert_ne!(*fast, flat(&before[name]), "{name} has not moved");
            }
            for (fast, slow) in fast.iter().zip(slow) {
                assert!((fast - slow).abs() < 1e-5, "{name}: {fast}, {slow}");
            }
        }
    }
}

/// Against the same steps written out: momentum 0.9, decay on the kernel alone.
#[test]
fn steps_on_a_var_map_are_those_of_sgd() {
    let network = Foreign::new();
    let [rate, decay] = [0.1, 0.01];
    let gradients = |network: &Foreign| {
        let features = network.forward(&images(), Mode::Train).unwrap();
        let loss = features.sqr().unwrap().sum_all().unwrap();
        loss.backward().unwrap()
    };
    let found = trained(Ops::Fast, OptimKind::Sgd);
    let sets = network.parameter_sets();
    let mut momentum = vec![None::<Tensor>; sets.len()];
    for _ in 0..2 {
        let gradients = gradients(&network);
        for (set, momentum) in sets.iter().zip(&mut momentum) {
            let Some(gradient) = gradients.get(set.var()) else {
                continue;
            };
            let values = set.var().as_detached_tensor();
            let decay = if set.var().rank() > 1 { decay } else { 0.0 };
            let mut step = (gradient + (&values * decay).unwrap()).unwrap();
            if let Some(before) = momentum.take() {
                step = (step + (before * 0.9).unwrap()).unwrap();
            }
            let moved = (values - (&step * rate).unwrap()).unwrap();
            set.var().set(&moved).unwrap();
            *momentum = Some(step);
        }
    }
    let state = network.state().unwrap();
    for (name, found) in &found {
        for (found, expected) in found.iter().zip(flat(&state[name])) {
            assert!(
                (found - expected).abs() < 1e-5,
                "{name}: {found}, {expected}"
            );
        }
    }
}

#[test]
fn the_state_of_a_var_map_loads_whole_or_not_at_all() {
    let (from, to) = (Foreign::new(), Foreign::new());
    from.forward(&images(), Mode::Train).unwrap(); // moves its statistics
    let mut state = from.state().unwrap();
    let report = to.load(&state).unwrap();
    assert_eq!((report.matched.len(), report.missing.len()), (6, 0));
    let features = |network: &Foreign| flat(&network.forward(&images(), Mode::Eval).unwrap());
    assert_eq!(features(&to), features(&from));
    assert_ne!(features(&to), features(&Foreign::new()));
    let wrong = Tensor::zeros(3, DType::F32, &CPU).unwrap();
    state.insert("stem.norm.bias".to_owned(), wrong);
    state.insert(
        "stem.norm.weight".to_owned(),
        Tensor::zeros(8, DType::F32, &CPU).unwrap(),
    );
    assert!(to.load(&state).is_err());
    assert_eq!(features(&to), features(&from));
}

#[test]
fn a_backbone_that_names_no_layers_shows_its_features_and_runs_in_f32_alone() {
    let mut network = Foreign::new();
    let maps = network.feature_maps(&images(), &[Layer::FEATURES]).unwrap();
    assert_eq!(maps[0].1.dims(), [4, 8, 1, 1]);
    let features = network.forward(&images(), Mode::Eval).unwrap();
    assert_eq!(flat(&maps[0].1), flat(&features));
    let error = network.feature_maps(&images(), &[Layer::RES5]).unwrap_err();
    assert!(error.to_string().contains("it has features"), "{error}");
    network.set_precision(Precision::F32).unwrap();
    let error = network.set_precision(Precision::Bf16).unwrap_err();
    assert!(error.to_string().contains("precision = bf16"), "{error}");
}

#[test]
fn a_resnet_goes_to_candle_and_comes_back() {
    let config = ModelConfig {
        arch: Arch::Resnet18,
        width: 0.25,
        stem: Stem::Small,
        ..ModelConfig::default()
    };
    let network = ResNet::new(&config, 5, &CPU).unwrap();
    network.forward(&images(), Mode::Train).unwrap(); // moves its statistics
    let again = ResNet::from_var_builder(&config, network.var_builder().unwrap()).unwrap();
    let features = |network: &ResNet| flat(&network.forward(&images(), Mode::Eval).unwrap());
    assert_eq!(features(&again), features(&network));

    // Candle's own layers, from the same builder, make the same of an image.
    let vb = network.var_builder().unwrap();
    let conv_config = Conv2dConfig {
        padding: 1,
        ..Default::default()
    };
    let conv = candle_nn::conv2d_no_bias(3, 16, 3, conv_config, vb.pp("conv1")).unwrap();
    let norm = candle_nn::batch_norm(16, 1e-5, vb.pp("bn1")).unwrap();
    let maps = conv.forward(&images()).unwrap();
    let maps = norm.forward_t(&maps, false).unwrap().relu().unwrap();
    let ours = network.feature_maps(&images(), &[Layer::CONV1]).unwrap();
    for (found, expected) in flat(&ours[0].1).iter().zip(flat(&maps)) {
        assert!((found - expected).abs() < 1e-4, "{found}, {expected}");
    }

    // A file, as any safetensors reader sees it.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backbone.safetensors");
    pirl_model::save_state_dict(&path, &[("backbone.", &network)]).unwrap();
    // SAFETY: nobody else writes to the file.
    let vb = unsafe { VarBuilder::from_mmaped_safetensors(&[&path], DType::F32, &CPU) };
    let read = ResNet::from_var_builder(&config, vb.unwrap().pp("backbone")).unwrap();
    assert_eq!(features(&read), features(&network));
    let wider = ModelConfig {
        width: 0.5,
        ..config
    };
    let vb = network.var_builder().unwrap();
    let error = ResNet::from_var_builder(&wider, vb).err().unwrap();
    assert!(error.to_string().contains("conv1.weight"), "{error}");
}
