//! One whole PIRL step at the sizes of `peers/cases.json`, which its PyTorch twin reads too.

use candle_core::{Device, Tensor};
use pirl_bank::MemoryBank;
use pirl_loss::{ContrastiveLoss, InfoNce, Negatives, Paper};
use pirl_model::{
    Arch, Backbone, Head, JigsawHead, Mode, ModelConfig, OptimConfig, Optimizer, Precision,
    ProjectionHead, ResNet,
};
use serde::Deserialize;

const CPU: Device = Device::Cpu;
const PATCHES: usize = 9;
const DIM: usize = 128;

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

/// Everything a step needs, its batch included.
pub(crate) struct Learner {
    backbone: ResNet,
    f: ProjectionHead,
    g: JigsawHead,
    optimizer: Optimizer,
    loss: Box<dyn ContrastiveLoss>,
    bank: MemoryBank,
    negatives: Negatives,
    images: Tensor,
    patches: Tensor,
    indices: Vec<u32>,
}

impl Learner {
    pub(crate) fn new(case: &Case, precision: Precision) -> Self {
        let config = &ModelConfig {
            arch: arch(case.depth),
            width: case.width,
            ..ModelConfig::default()
        };
        let backbone = ResNet::new(config, 0, &CPU).unwrap();
        let backbone = backbone.with_precision(precision).unwrap();
        let features = backbone.feature_dim();
        let f = ProjectionHead::new(config, features, DIM, 0, &CPU).unwrap();
        let g = JigsawHead::new(config, features, PATCHES, DIM, 0, &CPU).unwrap();
        let sets = [backbone.parameters(), f.parameters(), g.parameters()];
        let optimizer = Optimizer::new(&OptimConfig::default(), sets.map(Clone::clone).to_vec());
        let bank = MemoryBank::random(case.bank, DIM, 0.5, 0, &CPU).unwrap();
        // The images of the batch are rows 0 to B of the bank, its negatives the last rows.
        let last = (case.bank - case.negatives) as u32..case.bank as u32;
        let negatives = Negatives::Shared {
            rows: bank.gather(&last.collect::<Vec<_>>()).unwrap(),
            own: vec![None; case.batch],
        };
        let tensor = |seed, n: usize, size: usize| {
            let values = benches::fill(seed, n * 3 * size * size);
            Tensor::from_vec(values, (n, 3, size, size), &CPU).unwrap()
        };
        Self {
            backbone,
            f,
            g,
            optimizer: optimizer.unwrap(),
            loss: match case.loss.as_str() {
                "infonce" => Box::new(InfoNce::new(case.tau).unwrap()),
                _ => Box::new(Paper::new(case.tau).unwrap()),
            },
            bank,
            negatives,
            images: tensor(1, case.batch, case.image),
            patches: tensor(2, case.batch * PATCHES, case.patch),
            indices: (0..case.batch as u32).collect(),
        }
    }

    /// A branch after the other, as `pirl pretrain` does.
    pub(crate) fn step(&mut self) {
        let positive = self.bank.gather(&self.indices).unwrap();
        let mut descend = |query: &Tensor| {
            let term = self.loss.forward(query, &positive, &self.negatives);
            let gradients = (term.unwrap() * 0.5).unwrap().backward().unwrap();
            self.optimizer.accumulate(&gradients).unwrap();
        };
        let features = self.backbone.forward(&self.patches, Mode::Train).unwrap();
        descend(&self.g.forward(&features, Mode::Train).unwrap());
        let features = self.backbone.forward(&self.images, Mode::Train).unwrap();
        let image = self.f.forward(&features, Mode::Train).unwrap();
        descend(&image);
        self.optimizer.step(0.01).unwrap();
        self.bank.update(&self.indices, &image.detach()).unwrap();
    }
}
