//! The engine of GPUs on a CPU, against the one of CPUs and the reference.

use std::error::Error;
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use candle_core::{DType, Device, Tensor, Var};
use pirl_core::Ops;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::config::{Arch, ModelConfig, Precision};
use crate::engine::{Conv, Engine, Linear, Network, Norm, Traced};
use crate::error::{ModelError, Result};
use crate::layer::Layer;
use crate::mode::Mode;
use crate::ops::conv2d::Winograd;
use crate::params::Builder;
use crate::peers::Peers;
use crate::residual::{Stage, StemConv};

/// Of every kind of layer, with residuals, and values that are used twice.
struct Small {
    units: Vec<(Conv, Norm)>,
    vectors: Norm,
    linear: Linear,
    maps: bool,
}

impl Small {
    fn new(builder: &mut Builder, maps: bool) -> Self {
        let sizes = [
            ("a", (3, 6), 3, 2),
            ("b", (6, 6), 1, 1),
            ("c", (6, 5), 3, 2),
            ("d", (6, 5), 1, 2),
        ];
        let unit = |(name, channels, kernel, stride): (&str, (usize, usize), usize, usize)| {
            let conv = Conv::new(builder, name, channels, kernel, stride);
            (
                conv,
                Norm::new(builder, &format!("{name}.norm"), channels.1),
            )
        };
        Self {
            units: sizes.map(unit).into(),
            vectors: Norm::new(builder, "vectors", 5),
            linear: Linear::new(builder, "linear", 5, 4),
            maps,
        }
    }
}

impl Network for Small {
    fn returns_maps(&self) -> bool {
        self.maps
    }

    fn forward<E: Engine>(
        &self,
        engine: &mut E,
        x: &E::Value,
        show: &mut dyn FnMut(Layer, &E::Value),
    ) -> Result<E::Value> {
        let mut unit = |at: usize, x: &E::Value, residual: Option<&E::Value>, relu| {
            let (conv, norm) = &self.units[at];
            let out = engine.conv_norm(conv, norm, x, residual, relu)?;
            match at {
                0 => engine.max_pool(&out),
                _ => Ok(out),
            }
        };
        let x = unit(0, x, None, true)?;
        let x = unit(1, &x, Some(&x), true)?;
        let shortcut = unit(3, &x, None, false)?;
        let x = unit(2, &x, Some(&shortcut), true)?;
        show(Layer::RES2, &x);
        if self.maps {
            return Ok(x);
        }
        let x = engine.average_pool(&x)?;
        show(Layer::RES5_AVG, &x);
        let x = engine.batch_norm(&self.vectors, &x, None, false)?;
        let x = engine.relu(&x)?;
        let x = engine.linear(&self.linear, &x)?;
        engine.join(&x, 2)
    }
}

/// A backbone's parts.
struct Whole {
    stem: StemConv,
    stages: Vec<Stage>,
}

impl Whole {
    fn new(builder: &mut Builder, arch: Arch) -> Self {
        let config = ModelConfig {
            arch,
            width: 0.25,
            ..ModelConfig::default()
        };
        Self {
            stem: StemConv::new(&config, builder).unwrap(),
            stages: (0..4)
                .map(|stage| Stage::new(&config, stage, builder).unwrap())
                .collect(),
        }
    }
}

impl Network for Whole {
    fn forward<E: Engine>(
        &self,
        engine: &mut E,
        x: &E::Value,
        _: &mut dyn FnMut(Layer, &E::Value),
    ) -> Result<E::Value> {
        let mut x = self.stem.forward(engine, x)?;
        x = engine.max_pool(&x)?;
        for stage in &self.stages {
            x = stage.forward(engine, x)?;
        }
        engine.average_pool(&x)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Tape,
    Device,
    Reference,
}

fn traced<N: Network>(way: Way, describe: impl FnOnce(&mut Builder) -> N) -> Traced<N> {
    let mut builder = Builder::new(ChaCha8Rng::seed_from_u64(1));
    let network = describe(&mut builder);
    let ops = match way {
        Way::Reference => Ops::Reference,
        Way::Tape | Way::Device => Ops::Fast,
    };
    let traced = Traced::new(network, builder, ops, Winograd::Off, &Device::Cpu).unwrap();
    match way {
        Way::Device => traced.on_a_device().unwrap(),
        _ => traced,
    }
}

/// The images from the `start`th on.
fn images((start, images): (usize, usize), (h, w): (usize, usize)) -> Tensor {
    let image = 3 * h * w;
    let numbers = benches::fill(1, (start + images) * image)[start * image..].to_vec();
    Tensor::from_vec(numbers, (images, 3, h, w), &Device::Cpu).unwrap()
}

/// Output, gradients of input and parameters if the mode has any, and the running statistics after a pass.
fn pass<N: Network>(traced: &Traced<N>, mode: Mode, first: usize, x: &Tensor) -> Vec<Vec<f32>> {
    let x = Var::from_tensor(x).unwrap();
    let out = traced.forward(x.as_tensor(), mode).unwrap();
    let mut found = vec![out.clone()];
    if mode.records() {
        let before = first * out.elem_count() / x.dims()[0];
        let weights = benches::fill(2, before + out.elem_count())[before..].to_vec();
        let weights = Tensor::from_vec(weights, out.shape(), x.device());
        let loss = (&out * weights.unwrap()).unwrap().sum_all().unwrap();
        let gradients = loss.backward().unwrap();
        let set = traced.params().var().as_tensor();
        found.extend([x.as_tensor(), set].map(|of| gradients.get(of).unwrap().clone()));
    }
    let statistics = traced.buffers().entries().unwrap().into_iter();
    found.extend(statistics.map(|(_, tensor)| tensor.to_dtype(DType::F32).unwrap()));
    let flat = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1().unwrap();
    found.into_iter().map(flat).collect()
}

fn assert_near(what: &str, found: &[Vec<f32>], expected: &[Vec<f32>], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let scale = expected.iter().fold(1e-3, |most: f32, x| most.max(x.abs()));
        let pairs = found.iter().zip(expected);
        let error = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert_eq!(found.len(), expected.len(), "{what}, {at}");
        assert!(
            error < tolerance * scale,
            "{what}, {at}: {error} of {scale}"
        );
    }
}

/// Shifts what ReLUs are given: one so near 0 that rounding decides whether it passes changes the gradient by a
/// hundredth, whatever the engines.
fn away_from_zero<N: Network>(traced: &Traced<N>) {
    let params = traced.params();
    let shifts = params
        .params()
        .iter()
        .filter(|param| param.shape.len() == 1);
    for shift in shifts.filter(|param| param.name.ends_with(".bias")) {
        let numbers = Tensor::full(3f32, shift.shape.as_slice(), &Device::Cpu).unwrap();
        params.set(&shift.name, &numbers).unwrap();
    }
}

const MODES: [Mode; 4] = [Mode::Train, Mode::Frozen, Mode::Eval, Mode::Calibrate];

#[test]
fn every_layer_is_that_of_the_other_engines() {
    for (mode, maps) in MODES
        .into_iter()
        .flat_map(|mode| [(mode, false), (mode, true)])
    {
        let [device, tape, reference] = [Way::Device, Way::Tape, Way::Reference].map(|way| {
            let traced = traced(way, |builder| Small::new(builder, maps));
            // The second pass is by running statistics that the first has moved.
            pass(&traced, mode, 0, &images((4, 4), (11, 9)));
            pass(&traced, mode, 0, &images((0, 4), (11, 9)))
        });
        let what = format!("{mode:?}, maps: {maps}");
        assert_near(&format!("{what}, tape"), &device, &tape, 1e-4);
        assert_near(&format!("{what}, reference"), &device, &reference, 1e-4);
    }
}

#[test]
fn a_pass_is_differentiated_once() {
    let traced = traced(Way::Device, |builder| Small::new(builder, false));
    let out = traced.forward(&images((0, 2), (11, 9)), Mode::Train);
    let loss = out.unwrap().sum_all().unwrap();
    loss.backward().unwrap();
    let again = loss.backward().err().map(|error| error.to_string());
    assert!(again.is_some_and(|error| error.contains("already differentiated")));
}

#[test]
fn networks_are_those_of_the_reference() {
    for (arch, mode) in [
        (Arch::Resnet18, Mode::Train),
        (Arch::Resnet50, Mode::Train),
        (Arch::Resnet50, Mode::Frozen),
    ] {
        let [device, tape, reference] = [Way::Device, Way::Tape, Way::Reference].map(|way| {
            let traced = traced(way, |builder| Whole::new(builder, arch));
            away_from_zero(&traced);
            pass(&traced, mode, 0, &images((0, 4), (64, 64)))
        });
        let what = format!("{arch:?}, {mode:?}");
        assert_near(&format!("{what}, tape"), &device, &tape, 1e-4);
        assert_near(&format!("{what}, reference"), &device, &reference, 1e-4);
    }
}

#[test]
fn half_precision_is_rounded_where_the_tape_rounds() {
    for precision in [Precision::Bf16, Precision::F16] {
        let [device, tape, exact] = [
            (Way::Device, precision),
            (Way::Tape, precision),
            (Way::Tape, Precision::F32),
        ]
        .map(|(way, precision)| {
            let mut traced = traced(way, |builder| Small::new(builder, true));
            traced.set_precision(precision).unwrap();
            pass(&traced, Mode::Train, 0, &images((0, 4), (11, 9)))
        });
        assert_near(&format!("{precision:?}"), &device, &tape, 0.02);
        assert_ne!(device[0], exact[0]);
    }
}

#[test]
fn maps_inside_the_network_are_those_of_the_tape() {
    let layers = [Layer::RES2, Layer::RES5_AVG];
    let [device, tape, reference] = [Way::Device, Way::Tape, Way::Reference].map(|way| {
        let traced = traced(way, |builder| Small::new(builder, false));
        let maps = traced.maps(&images((0, 4), (11, 9)), &layers).unwrap();
        let maps = maps.into_iter().map(|(layer, map)| {
            let dims = map.dims().to_vec();
            (layer, dims, map.flatten_all().unwrap().to_vec1().unwrap())
        });
        maps.collect::<Vec<(Layer, Vec<usize>, Vec<f32>)>>()
    });
    for others in [tape, reference] {
        assert_eq!(device.len(), others.len());
        for (device, other) in device.iter().zip(&others) {
            assert_eq!((&device.0, &device.1), (&other.0, &other.1));
            let maps = std::slice::from_ref;
            assert_near("maps", maps(&device.2), maps(&other.2), 1e-5);
        }
    }
}

#[test]
fn a_single_value_has_no_statistics() {
    for way in [Way::Device, Way::Tape, Way::Reference] {
        let traced = traced(way, |builder| Small::new(builder, false));
        let found = traced.forward(&images((0, 1), (11, 9)), Mode::Train);
        let expected =
            matches!(&found, Err(ModelError::SingleValue { layer }) if layer == "vectors");
        assert!(expected, "{way:?}: {:?}", found.err());
    }
}

/// Two threads with half of the images each.
struct Halves {
    barrier: Barrier,
    given: Mutex<[Vec<f64>; 2]>,
}

struct Half(usize, Arc<Halves>);

impl Peers for Half {
    fn any(&self) -> bool {
        true
    }

    fn gather(&self, own: Vec<f64>) -> Result<Vec<Vec<f64>>, Box<dyn Error + Send + Sync>> {
        self.1.given.lock().unwrap()[self.0] = own;
        self.1.barrier.wait();
        let both = self.1.given.lock().unwrap().to_vec();
        self.1.barrier.wait();
        Ok(both)
    }
}

#[test]
fn synced_halves_are_the_whole() {
    let whole = traced(Way::Tape, |builder| Small::new(builder, false));
    let whole = pass(&whole, Mode::Train, 0, &images((0, 4), (11, 9)));
    // The fast engines may be synced with each other.
    for ways in [
        [Way::Device, Way::Device],
        [Way::Device, Way::Tape],
        [Way::Reference, Way::Reference],
    ] {
        let halves = Arc::new(Halves {
            barrier: Barrier::new(2),
            given: Mutex::default(),
        });
        let half = |at: usize| {
            let (halves, way) = (Arc::clone(&halves), ways[at]);
            thread::spawn(move || {
                let traced = traced(way, |builder| Small::new(builder, false));
                traced.sync_batch_norm(Arc::new(Half(at, halves)));
                pass(&traced, Mode::Train, 2 * at, &images((2 * at, 2), (11, 9)))
            })
        };
        let threads = [half(0), half(1)];
        let [first, second] = threads.map(|half| half.join().unwrap());
        let mut both = first.clone();
        for at in [0, 1] {
            both[at].extend(&second[at]);
        }
        for (sum, other) in both[2].iter_mut().zip(&second[2]) {
            *sum += other;
        }
        let what = format!("{ways:?}");
        assert_near(&what, &first[3..], &second[3..], 1e-6);
        assert_near(&what, &both, &whole, 1e-4);
    }
}
