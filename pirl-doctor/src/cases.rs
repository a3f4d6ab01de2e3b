//! What is compared: every op that training and evaluations are made of, at odd sizes too, and whole
//! networks.

use candle_core::{DType, Device, Tensor, Var};
use pirl_bank::MemoryBank;
use pirl_eval::detect::{
    BBox, Roi, RoiAlignConfig, nms, nms_reference, roi_align, roi_align_reference,
};
use pirl_loss::{ContrastiveLoss, InfoNce, Nce, Negatives, Paper, cross_entropy};
use pirl_model::{
    Arch, Backbone, ClassifierHead, Head, JigsawHead, Mode, ModelConfig, Ops, OptimConfig,
    OptimKind, Optimizer, ParamSet, Precision, ProjectionHead, ResNet, SingleOp, Stem, Upload, ops,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::parity::{Case, Measure, Numbers, Result};

/// Sums of some thousand products in another order stay below a third of this.
const OP: f64 = 3e-5;

/// Rounding adds up over the layers of a network; a wrong op is off by far more.
const NETWORK: f64 = 2e-3;

/// Every op, the heads and whole networks.
pub fn cases() -> Vec<Case> {
    let mut cases = convolutions();
    cases.extend(layers());
    cases.extend(pools());
    cases.extend(losses());
    cases.extend([upload(), bank(), sgd(), lars(), regions(), suppression()]);
    cases.extend(heads());
    cases.extend(networks());
    cases.extend([
        rounded_network("ResNet-18 in tf32; training", Precision::Tf32),
        rounded_network("ResNet-18 in bf16; training", Precision::Bf16),
        rounded_network("ResNet-18 in f16; training", Precision::F16),
    ]);
    cases
}

/// `n, c, h, w` of the input; channels of the output, kernel, stride.
const CONVOLUTIONS: [([usize; 4], usize, usize, usize); 6] = [
    ([2, 3, 37, 41], 16, 7, 2),
    ([2, 64, 14, 14], 64, 3, 1),
    ([1, 5, 9, 7], 8, 3, 1),
    ([3, 32, 15, 12], 48, 3, 2),
    ([2, 64, 8, 8], 256, 1, 1),
    ([2, 24, 7, 7], 40, 1, 2),
];

fn convolutions() -> Vec<Case> {
    let convolution = |(shape, outputs, kernel, stride): ([usize; 4], usize, usize, usize)| {
        let [n, c, h, w] = shape;
        let name = format!("convolution {kernel}x{kernel}/{stride}, {n}x{c}x{h}x{w} to {outputs}");
        Case::new(name, OP, Measure::Largest, move |ops, device| {
            let x = variable(1, &shape, device)?;
            let weight = variable(2, &[outputs, c, kernel, kernel], device)?;
            let conv2d = match ops {
                Ops::Fast => ops::conv2d,
                Ops::Reference => ops::reference::conv2d,
            };
            let out = conv2d(&x, &weight, stride, kernel / 2)?;
            differentiated(
                &out,
                &[("input gradient", &x), ("weight gradient", &weight)],
            )
        })
    };
    let normed = |(shape, channels, kernel, stride): ([usize; 4], usize, usize, usize)| {
        let op = SingleOp::ConvNorm {
            channels,
            kernel,
            stride,
            relu: true,
        };
        let modes = [
            (Mode::Train, "training"),
            (Mode::Frozen, "frozen"),
            (Mode::Eval, "evaluation"),
        ];
        modes.map(|(mode, name)| {
            let name = format!("convolution {kernel}x{kernel}/{stride}, batch norm, ReLU; {name}");
            single(name, op, shape.to_vec(), mode)
        })
    };
    let plain = CONVOLUTIONS.into_iter().map(convolution);
    plain
        .chain(CONVOLUTIONS[..2].iter().flat_map(|&sizes| normed(sizes)))
        .collect()
}

fn layers() -> Vec<Case> {
    let norm = |name: &str, shape: &[usize], (residual, relu), mode| {
        let op = SingleOp::BatchNorm { residual, relu };
        single(format!("batch norm{name}"), op, shape.to_vec(), mode)
    };
    vec![
        norm("; training", &[4, 13, 5, 7], (false, false), Mode::Train),
        norm(
            ", ReLU; training",
            &[2, 64, 9, 9],
            (false, true),
            Mode::Train,
        ),
        norm(
            ", residual, ReLU; training",
            &[3, 48, 7, 5],
            (true, true),
            Mode::Train,
        ),
        norm(
            ", residual, ReLU; frozen",
            &[3, 48, 7, 5],
            (true, true),
            Mode::Frozen,
        ),
        norm("; evaluation", &[1, 16, 6, 6], (false, false), Mode::Eval),
        norm(
            " of vectors, ReLU; training",
            &[18, 100],
            (false, true),
            Mode::Train,
        ),
        single(
            "linear, 7x130 to 33",
            SingleOp::Linear { outputs: 33 },
            vec![7, 130],
            Mode::Train,
        ),
        single(
            "linear, 1x512 to 128",
            SingleOp::Linear { outputs: 128 },
            vec![1, 512],
            Mode::Train,
        ),
        single("ReLU", SingleOp::Relu, vec![5, 33], Mode::Train),
    ]
}

fn single(name: impl Into<String>, op: SingleOp, shape: Vec<usize>, mode: Mode) -> Case {
    Case::new(name, OP, Measure::Largest, move |ops, device| {
        Ok(op.run(&shape, mode, ops, device)?)
    })
}

fn pools() -> Vec<Case> {
    let pool = |shape: [usize; 4], kernel: usize, stride: usize, padding: usize| {
        let [n, c, h, w] = shape;
        let name = format!("max-pool {kernel}x{kernel}/{stride}, {n}x{c}x{h}x{w}");
        Case::new(name, OP, Measure::Largest, move |ops, device| {
            let x = variable(1, &shape, device)?;
            let max_pool2d = match ops {
                Ops::Fast => ops::max_pool2d,
                Ops::Reference => ops::reference::max_pool2d,
            };
            let out = max_pool2d(&x, kernel, stride, padding)?;
            differentiated(&out, &[("input gradient", &x)])
        })
    };
    vec![
        pool([2, 16, 19, 22], 3, 2, 1),
        pool([1, 3, 8, 8], 2, 2, 0),
        single(
            "max-pool of a network",
            SingleOp::MaxPool,
            vec![2, 33, 13, 11],
            Mode::Train,
        ),
        single(
            "average pool",
            SingleOp::AveragePool,
            vec![3, 65, 7, 5],
            Mode::Train,
        ),
    ]
}

fn losses() -> Vec<Case> {
    type Make = fn(Ops, &Tensor, &Tensor, &Negatives) -> Result<Box<dyn ContrastiveLoss>>;
    let kinds: [(&str, Make); 3] = [
        ("paper", |ops, _, _, _| {
            Ok(Box::new(Paper::new(0.07)?.with_ops(ops)))
        }),
        ("nce", |ops, query, positive, negatives| {
            let nce = Nce::estimated(0.07, 5000, query, positive, negatives, ops)?;
            Ok(Box::new(nce))
        }),
        ("infonce", |ops, _, _, _| {
            Ok(Box::new(InfoNce::new(0.1)?.with_ops(ops)))
        }),
    ];
    const DIM: usize = 128;
    let case = |(name, make): (&str, Make), shared: bool| {
        let drawn = if shared { "shared" } else { "per-image" };
        let name = format!("loss {name}, {drawn} negatives");
        Case::new(name, OP, Measure::Largest, move |ops, device| {
            let (batch, negatives) = if shared { (37, 1000) } else { (5, 300) };
            let query = Var::from_tensor(&unit(1, batch, DIM, device)?)?;
            let positive = unit(2, batch, DIM, device)?;
            let rows = unit(3, 1000, DIM, device)?;
            let negatives = if shared {
                let own = (0..batch)
                    .map(|i| (i % 3 == 1).then_some(i as u32 * 7))
                    .collect();
                Negatives::Shared { rows, own }
            } else {
                let indices = (0..batch * negatives)
                    .map(|i| i as u32 * 31 % 1000)
                    .collect();
                Negatives::PerImage {
                    bank: rows,
                    indices,
                }
            };
            let loss = make(ops, &query, &positive, &negatives)?;
            let loss = loss.forward(&query, &positive, &negatives)?;
            let gradients = loss.backward()?;
            let gradient = gradients.get(&query).map(host).transpose()?;
            Ok(vec![
                ("loss", host(&loss)?),
                ("gradient", gradient.unwrap_or_default()),
            ])
        })
    };
    let mut cases: Vec<Case> = kinds
        .into_iter()
        .flat_map(|kind| [case(kind, true), case(kind, false)])
        .collect();
    cases.push(Case::new(
        "loss covariant (cross-entropy)",
        OP,
        Measure::Largest,
        |_, device| {
            let logits = variable(1, &[9, 100], device)?;
            let targets: Vec<u32> = (0..9).map(|i| i * 11).collect();
            let loss = cross_entropy(&logits, &targets)?;
            differentiated(&loss, &[("gradient", &logits)])
        },
    ));
    cases
}

fn bank() -> Case {
    Case::new(
        "memory bank: gather, update",
        1e-6,
        Measure::Largest,
        |ops, device| {
            let bank = MemoryBank::from_rows(unit(1, 500, 128, device)?, 0.5)?;
            let mut bank = bank.with_ops(ops);
            let drawn: Vec<u32> = (0..700).map(|i| i * 13 % 500).collect();
            let gathered = host(&bank.gather(&drawn)?)?;
            bank.update(&[3, 499, 0, 77], &unit(2, 4, 128, device)?)?;
            Ok(vec![("gathered", gathered), ("rows", host(bank.rows())?)])
        },
    )
}

fn sgd() -> Case {
    optimiser(
        "optimiser SGD, Nesterov",
        OptimConfig {
            nesterov: true,
            ..OptimConfig::default()
        },
    )
}

fn lars() -> Case {
    optimiser(
        "optimiser LARS",
        OptimConfig {
            kind: OptimKind::Lars,
            ..OptimConfig::default()
        },
    )
}

fn optimiser(name: &str, config: OptimConfig) -> Case {
    Case::new(name, OP, Measure::Largest, move |ops, device| {
        let params: [(&str, &[usize], f64); 3] = [
            ("a.weight", &[40, 30], 0.1),
            ("a.bias", &[40], 0.0),
            ("b.weight", &[7, 40], 0.3),
        ];
        let set = ParamSet::normal(5, &params, device)?;
        let mut optimizer = Optimizer::new(&config, vec![set.clone()])?.with_ops(ops);
        for step in 0..3 {
            let slope = random(step, &[set.var().elem_count()], device)?;
            let loss = (set.var().as_tensor() * slope)?.sum_all()?;
            optimizer.backward(&loss)?;
            optimizer.step(0.1)?;
        }
        let momentum = optimizer.state()?;
        let momentum = momentum.get("momentum.0").map(host).transpose()?;
        Ok(vec![
            ("parameters", host(set.var())?),
            ("momentum", momentum.unwrap_or_default()),
        ])
    })
}

/// Batches of two sizes in turn, sent while the device still has work to do on those before: none may
/// overwrite another.
fn upload() -> Case {
    Case::new("upload of views", 0.0, Measure::Largest, |ops, device| {
        let mut upload = match ops {
            Ops::Fast => Some(Upload::new(device)?),
            Ops::Reference => None,
        };
        let factor = random(1, &[512, 512], device)?;
        let mut sent = Vec::new();
        for batch in 0..12 {
            let size = [3 * 96 * 96, 3 * 40 * 41][batch % 2];
            let bytes = (0..size).map(|place| ((place + batch) * 37 % 251) as u8);
            let views = Tensor::from_vec(bytes.collect(), (size,), &Device::Cpu)?;
            let views = match &mut upload {
                Some(upload) => upload.send(&views)?,
                None => views.to_device(device)?,
            };
            for _ in 0..20 {
                factor.matmul(&factor)?;
            }
            sent.push(views.to_dtype(DType::F32)?);
        }
        Ok(vec![("bytes", host(&Tensor::cat(&sent, 0)?)?)])
    })
}

fn regions() -> Case {
    Case::new("ROIAlign", OP, Measure::Largest, |ops, device| {
        let features = variable(1, &[2, 35, 13, 17], device)?;
        let rois: Vec<Roi> = boxes(40)
            .into_iter()
            .enumerate()
            .map(|(index, bbox)| Roi {
                image: index % 2,
                bbox,
            })
            .collect();
        let config = RoiAlignConfig {
            output_size: (7, 7),
            ..RoiAlignConfig::default()
        };
        let align = match ops {
            Ops::Fast => roi_align,
            Ops::Reference => roi_align_reference,
        };
        let out = align(&features, &rois, &config)?;
        differentiated(&out, &[("feature gradient", &features)])
    })
}

/// Runs on the CPU whatever the device: what it is given was read back.
fn suppression() -> Case {
    Case::new(
        "non-maximum suppression",
        0.0,
        Measure::Largest,
        |ops, _| {
            let boxes = boxes(500);
            let mut rng = ChaCha8Rng::seed_from_u64(9);
            let scores: Vec<f32> = boxes.iter().map(|_| rng.random()).collect();
            let nms = match ops {
                Ops::Fast => nms,
                Ops::Reference => nms_reference,
            };
            let kept = nms(&boxes, &scores, 0.5);
            Ok(vec![(
                "boxes kept",
                kept.into_iter().map(|index| index as f32).collect(),
            )])
        },
    )
}

/// In an image of 272 x 208 pixels.
fn boxes(count: usize) -> Vec<BBox> {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let mut within = |least: f32, most: f32| rng.random_range(least..most);
    let bbox = |_| {
        let (x, y) = (within(-20.0, 250.0), within(-20.0, 190.0));
        [x, y, x + within(2.0, 120.0), y + within(2.0, 120.0)]
    };
    (0..count).map(bbox).collect()
}

fn heads() -> Vec<Case> {
    type Make = fn(&ModelConfig, &Device) -> Result<Box<dyn Head>>;
    let makes: [(&str, Make); 3] = [
        ("head f, MLP", |config, device| {
            Ok(Box::new(ProjectionHead::new(config, 96, 32, 1, device)?))
        }),
        ("head g, 9 patches", |config, device| {
            Ok(Box::new(JigsawHead::new(config, 96, 9, 32, 1, device)?))
        }),
        ("covariant head, 9 patches", |config, device| {
            Ok(Box::new(ClassifierHead::new(config, 96, 9, 50, 1, device)?))
        }),
    ];
    let case = |(name, make): (&str, Make)| {
        Case::new(name, OP, Measure::Largest, move |ops, device| {
            let config = ModelConfig {
                ops,
                head: pirl_model::HeadKind::Mlp,
                ..ModelConfig::default()
            };
            let head = make(&config, device)?;
            let features = variable(1, &[36, 96], device)?;
            let out = head.forward(&features, Mode::Train)?;
            let sets = head.parameter_sets();
            differentiated(
                &out,
                &[
                    ("input gradient", &features),
                    ("parameter gradient", sets[0].var().as_tensor()),
                ],
            )
        })
    };
    makes.into_iter().map(case).collect()
}

fn networks() -> Vec<Case> {
    let case = |name: &str, (arch, stem): (Arch, Stem), mode: Mode, shape: [usize; 4]| {
        Case::new(name, NETWORK, Measure::Distance, move |ops, device| {
            let config = ModelConfig {
                arch,
                stem,
                width: 0.25,
                ops,
                ..ModelConfig::default()
            };
            pass(&network(&config, device)?, mode, &shape)
        })
    };
    let (small, imagenet) = (
        (Arch::Resnet18, Stem::Small),
        (Arch::Resnet50, Stem::Imagenet),
    );
    vec![
        case(
            "ResNet-18, small stem; training",
            small,
            Mode::Train,
            [16, 3, 16, 16],
        ),
        case("ResNet-50; training", imagenet, Mode::Train, [8, 3, 64, 64]),
        case(
            "ResNet-50; frozen batch norm",
            imagenet,
            Mode::Frozen,
            [2, 3, 70, 50],
        ),
        case(
            "ResNet-50; evaluation",
            imagenet,
            Mode::Eval,
            [2, 3, 70, 50],
        ),
    ]
}

/// A network that rounds its activations, beside one that does not.
fn rounded_network(name: &'static str, precision: Precision) -> Case {
    Case::new(name, 0.01, Measure::Angle, move |ops, device| {
        let config = ModelConfig {
            arch: Arch::Resnet18,
            width: 0.25,
            ops,
            ..ModelConfig::default()
        };
        let network = network(&config, device)?;
        let network = match ops {
            Ops::Fast => network.with_precision(precision)?,
            Ops::Reference => network,
        };
        pass(&network, Mode::Train, &[8, 3, 64, 64])
    })
}

/// An untrained network whose batch norms have a shift that keeps activations off the kink of ReLUs,
/// where rounding turns the gradient of any implementation.
fn network(config: &ModelConfig, device: &Device) -> Result<ResNet> {
    const SHIFT: f32 = 3.0;
    let network = ResNet::new(config, 1, device)?;
    let parameters = network.parameters();
    for param in parameters.params() {
        if param.name.ends_with(".bias") {
            let value = Tensor::full(SHIFT, param.shape.as_slice(), device)?;
            parameters.set(&param.name, &value)?;
        }
    }
    Ok(network)
}

fn pass(network: &ResNet, mode: Mode, shape: &[usize]) -> Result<Numbers> {
    let device = network.parameters().var().device();
    let features = network.forward(&random(1, shape, device)?, mode)?;
    let parameters = network.parameters().var().as_tensor();
    let mut numbers = match mode {
        Mode::Eval | Mode::Calibrate => vec![("features", host(&features)?)],
        Mode::Train | Mode::Frozen => {
            differentiated(&features, &[("parameter gradient", parameters)])?
        }
    };
    let mut statistics = Vec::new();
    for (name, tensor) in network.buffers().entries()? {
        if !name.ends_with("num_batches_tracked") {
            statistics.extend(host(&tensor)?);
        }
    }
    numbers.push(("running statistics", statistics));
    Ok(numbers)
}

/// The output, and the gradients of a random weighting of it.
fn differentiated(out: &Tensor, of: &[(&'static str, &Tensor)]) -> Result<Numbers> {
    let weights = random(11, out.dims(), out.device())?.to_dtype(out.dtype())?;
    let gradients = (out * weights)?.sum_all()?.backward()?;
    let mut numbers = vec![("output", host(out)?)];
    for &(name, tensor) in of {
        if let Some(gradient) = gradients.get(tensor) {
            numbers.push((name, host(gradient)?));
        }
    }
    Ok(numbers)
}

/// Uniform numbers in -1..1, the same on every device.
fn random(seed: u64, shape: &[usize], device: &Device) -> Result<Tensor> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let count = shape.iter().product();
    let numbers: Vec<f32> = (0..count).map(|_| rng.random_range(-1.0..1.0)).collect();
    Ok(Tensor::from_vec(numbers, shape, device)?)
}

fn variable(seed: u64, shape: &[usize], device: &Device) -> Result<Var> {
    Ok(Var::from_tensor(&random(seed, shape, device)?)?)
}

fn unit(seed: u64, rows: usize, dim: usize, device: &Device) -> Result<Tensor> {
    let rows = random(seed, &[rows, dim], &Device::Cpu)?;
    Ok(pirl_model::l2_normalize(&rows)?.to_device(device)?)
}

fn host(x: &Tensor) -> Result<Vec<f32>> {
    Ok(x.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?)
}
