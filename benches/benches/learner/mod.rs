//! One whole PIRL step at the sizes of `peers/cases.json`, which its PyTorch twin reads too.

use candle_core::{Device, Tensor};
use pirl_bank::{BankError, Drawn, NegativeSampler};
use pirl_data::{Batch, Normalize};
use pirl_loss::{InfoNce, Paper};
use pirl_model::ops::conv2d::Winograd;
use pirl_model::{Arch, ModelConfig, OptimConfig, Precision, ResNet};
use pirl_train::{Learner, Pirl};
use rand::Rng;
use serde::Deserialize;

const CPU: Device = Device::Cpu;
const PATCHES: usize = 9;

/// The sizes of a step.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Case {
    depth: usize,
    width: f64,
    pub(crate) batch: usize,
    image: usize,
    patch: usize,
    loss: String,
    tau: f64,
    negatives: usize,
    bank: usize,
}

/// The ResNet of `depth` layers.
pub(crate) fn arch(depth: usize) -> Arch {
    match depth {
        18 => Arch::Resnet18,
        _ => Arch::Resnet50,
    }
}

/// The last rows of the bank, the same in every step; the images of the batch are the first.
struct LastRows;

impl NegativeSampler for LastRows {
    fn draw(
        &self,
        rows: usize,
        batch: &[u32],
        count: usize,
        _: &mut dyn Rng,
    ) -> Result<Drawn, BankError> {
        Ok(Drawn::Shared {
            indices: ((rows - count) as u32..rows as u32).collect(),
            own: vec![None; batch.len()],
        })
    }
}

/// A learner and its batch.
pub(crate) struct Steps {
    learner: Learner<Pirl>,
    batch: Batch,
    done: u64,
}

impl Steps {
    pub(crate) fn new(case: &Case, precision: Precision, winograd: Winograd) -> Self {
        let config = ModelConfig {
            arch: arch(case.depth),
            width: case.width,
            winograd,
            ..ModelConfig::default()
        };
        let objective = Pirl::builder(case.bank, PATCHES)
            .negatives(case.negatives)
            .sampler(LastRows);
        let objective = match case.loss.as_str() {
            "infonce" => objective.loss(InfoNce::new(case.tau).unwrap()),
            _ => objective.loss(Paper::new(case.tau).unwrap()),
        };
        let network = move |device: &Device| ResNet::new(&config, 0, device);
        let learner = Learner::builder(network, objective.build().unwrap())
            .precision(precision)
            .optimizer(&OptimConfig::default());
        let tensor = |seed, n: usize, size: usize| {
            let values = benches::fill(seed, n * 3 * size * size);
            Tensor::from_vec(values, (n, 3, size, size), &CPU).unwrap()
        };
        Self {
            learner: learner.build().unwrap(),
            // Numbers, not bytes: normalising is not part of PyTorch's step either.
            batch: Batch {
                images: tensor(1, case.batch, case.image),
                transformed: Some(tensor(2, case.batch * PATCHES, case.patch)),
                indices: (0..case.batch as u32).collect(),
                targets: vec![0; case.batch],
                skipped: 0,
                batch_size: case.batch,
                normalize: Normalize::new([0.5; 3], [0.25; 3]).unwrap(),
            },
            done: 0,
        }
    }

    /// The step of `pirl pretrain`.
    pub(crate) fn step(&mut self) {
        self.done += 1;
        let batch = [Ok(self.batch.clone())];
        self.learner.step(batch, self.done, 0.01).unwrap();
    }
}
