//! Our side of `peers/compare.py`: does one run of a case whenever it is told to.
//!
//! Speaks lines: says `ready` once warmed up, answers `run` with the seconds of one run and `peak`
//! with the most memory this process ever held, in MiB.

mod cases;
mod learner;
mod regions;

use std::hint::black_box;
use std::io::BufRead;
use std::time::Instant;

use candle_core::{Device, Tensor, Var};
use cases::cases;
use half::{bf16, f16};
use learner::{Case, Steps};
use pirl_bank::{MemoryBank, NegativeSampler, SharedSampler};
use pirl_core::allocator::{self, Allocator};
use pirl_eval::{FeatureSet, Knn, KnnConfig, LayerFeatures, LinearConfig, LinearProbe, Probe};
use pirl_loss::{ContrastiveLoss, Negatives, Paper, total_loss};
use pirl_model::ops::Element;
use pirl_model::ops::conv2d::{self, ConvShape, Winograd};
use pirl_model::{Backbone, Layer, Mode, ModelConfig, Precision, ResNet};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use serde::Deserialize;

const CPU: Device = Device::Cpu;

#[global_allocator]
static ALLOCATOR: Allocator = allocator::allocator(); // as the `pirl` command

fn main() {
    allocator::keep_freed_memory();
    pirl_core::join_pool();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kind, name, precision, ..] = &arguments[..] else {
        eprintln!("usage: peer KIND CASE f32|direct|bf16|f16 (peers/compare.py starts it)");
        std::process::exit(2);
    };
    // `f32` without Winograd's convolutions is what products of `bf16` are to be measured by.
    let (precision, winograd) = match precision.as_str() {
        "bf16" => (Precision::Bf16, Winograd::Auto),
        "f16" => (Precision::F16, Winograd::Auto),
        "direct" => (Precision::F32, Winograd::Off),
        _ => (Precision::F32, Winograd::Auto),
    };
    let mut run = case(kind, name, precision, winograd);
    for _ in 0..2 {
        run();
    }
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        match line.expect("a line").as_str() {
            "run" => {
                let start = Instant::now();
                run();
                println!("{}", start.elapsed().as_secs_f64());
            }
            _ => println!("{}", peak_mib()),
        }
    }
}

fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux's /proc");
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.and_then(|kib| kib.parse::<f64>().ok()).expect("a size") / 1024.0
}

/// Loss, bank and probes are `f32` whatever the precision.
fn case(kind: &str, name: &str, precision: Precision, winograd: Winograd) -> Box<dyn FnMut()> {
    match kind {
        "step" => {
            let mut steps = Steps::new(&cases::<Case>(kind)[name], precision, winograd);
            Box::new(move || steps.step())
        }
        "features" => features(&cases(kind)[name], precision, winograd),
        "loss" => loss(&cases(kind)[name]),
        "bank" => bank(&cases(kind)[name]),
        "probe" | "sklearn" => probe(&cases("probe")[name]),
        "op" => match precision {
            Precision::F32 | Precision::Tf32 => op::<f32>(cases(kind)[name], winograd),
            Precision::Bf16 => op::<bf16>(cases(kind)[name], winograd),
            Precision::F16 => op::<f16>(cases(kind)[name], winograd),
        },
        "detect" => cases::<regions::Case>(kind)[name].runner(),
        _ => panic!("no kind {kind}"),
    }
}

#[derive(Deserialize)]
struct FeaturesCase {
    depth: usize,
    width: f64,
    batch: usize,
    image: usize,
}

/// Features of a batch by a frozen network.
fn features(case: &FeaturesCase, precision: Precision, winograd: Winograd) -> Box<dyn FnMut()> {
    let config = ModelConfig {
        arch: learner::arch(case.depth),
        width: case.width,
        winograd,
        ..ModelConfig::default()
    };
    let backbone = ResNet::new(&config, 0, &CPU).unwrap();
    let backbone = backbone.with_precision(precision).unwrap();
    let shape = (case.batch, 3, case.image, case.image);
    let images = benches::fill(1, case.batch * 3 * case.image * case.image);
    let images = Tensor::from_vec(images, shape, &CPU).unwrap();
    Box::new(move || {
        black_box(backbone.forward(&images, Mode::Eval).unwrap());
    })
}

fn unit(rows: usize, dim: usize, seed: u64) -> Tensor {
    let bank = MemoryBank::random(rows, dim, 0.5, seed, &CPU).unwrap();
    bank.rows().clone()
}

#[derive(Deserialize)]
struct LossCase {
    batch: usize,
    dim: usize,
    negatives: usize,
}

/// Both branches, forward and backward.
fn loss(case: &LossCase) -> Box<dyn FnMut()> {
    let query = |seed| Var::from_tensor(&unit(case.batch, case.dim, seed)).unwrap();
    let (g, v, positive) = (query(1), query(2), unit(case.batch, case.dim, 3));
    let negatives = Negatives::Shared {
        rows: unit(case.negatives, case.dim, 4),
        own: vec![None; case.batch],
    };
    let loss = Paper::new(0.07).unwrap();
    Box::new(move || {
        let term = |query| loss.forward(query, &positive, &negatives).unwrap();
        let total = total_loss(0.5, &term(&g), &term(&v)).unwrap();
        black_box(total.backward().unwrap());
    })
}

#[derive(Deserialize)]
struct BankCase {
    rows: usize,
    dim: usize,
    batch: usize,
    negatives: usize,
}

/// A step's share of the bank: draw negatives, gather them, update the batch's rows.
fn bank(case: &BankCase) -> Box<dyn FnMut()> {
    let mut bank = MemoryBank::random(case.rows, case.dim, 0.5, 1, &CPU).unwrap();
    let embeddings = unit(case.batch, case.dim, 2);
    let own: Vec<u32> = (0..case.batch)
        .map(|b| (b * 999_983 % case.rows) as u32)
        .collect();
    let (rows, negatives) = (case.rows, case.negatives);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    Box::new(move || {
        let drawn = SharedSampler.draw(rows, &own, negatives, &mut rng).unwrap();
        black_box(bank.gather(drawn.indices()).unwrap());
        bank.update(&own, &embeddings).unwrap();
    })
}

/// Which of the two, and its own setting.
#[derive(Deserialize)]
#[serde(tag = "probe", rename_all = "lowercase")]
enum ProbeKind {
    Knn { k: usize },
    Linear { epochs: usize },
}

#[derive(Deserialize)]
struct ProbeCase {
    #[serde(flatten)]
    kind: ProbeKind,
    train: usize,
    test: usize,
    dim: usize,
    classes: u32,
}

/// A probe of features that are in memory already, trained and tested.
fn probe(case: &ProbeCase) -> Box<dyn FnMut()> {
    let features = |seed, rows: usize| {
        let values = benches::fill(seed, rows * case.dim);
        let layer = LayerFeatures::new(Layer::RES5, rows, case.dim, values).unwrap();
        let labels = (0..rows as u32).map(|row| Some(row % case.classes));
        let names = (0..case.classes).map(|class| class.to_string());
        FeatureSet::new(vec![layer], labels.collect(), names.collect()).unwrap()
    };
    let (train, test) = (features(1, case.train), features(2, case.test));
    match case.kind {
        ProbeKind::Knn { k } => {
            let config = KnnConfig {
                k: vec![k],
                ..KnnConfig::default()
            };
            let knn = Knn::new(config, 0).unwrap();
            Box::new(move || {
                black_box(knn.evaluate(&train, &test, &mut |_, _| {}).unwrap());
            })
        }
        ProbeKind::Linear { epochs } => {
            let config = LinearConfig {
                epochs,
                ..LinearConfig::default()
            };
            let linear = LinearProbe::new(config, 0).unwrap();
            Box::new(move || {
                black_box(linear.evaluate(&train, &test, &mut |_, _| {}).unwrap());
            })
        }
    }
}

/// A convolution alone, forward and both gradients.
fn op<T: Element>(
    [n, side, c_in, c_out, kernel, stride]: [usize; 6],
    winograd: Winograd,
) -> Box<dyn FnMut()> {
    let s = ConvShape {
        n,
        h: side,
        w: side,
        c_in,
        c_out,
        kernel,
        stride,
        padding: kernel / 2,
    };
    let stored = |seed, len| -> Vec<T> {
        let numbers = benches::fill(seed, len);
        numbers.into_iter().map(T::from_f32).collect()
    };
    let (x, dy) = (stored(1, s.in_len()), stored(3, s.out_len()));
    let weight = benches::fill(2, s.weight_len());
    let (mut out, mut dx) = (dy.clone(), x.clone());
    let mut dw = vec![0f32; s.weight_len()];
    Box::new(move || {
        conv2d::forward(&s, winograd, &x, &weight, &mut out);
        conv2d::backward_input(&s, winograd, &weight, &dy, &mut dx);
        conv2d::backward_weight(&s, winograd, &x, &dy, &mut dw);
    })
}
