//! A whole training step: backbone on patches and images, heads, loss, backward pass, optimiser and
//! bank, for the quickstart's small network and for the paper's ResNet-50.

use candle_core::{Device, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pirl_bank::MemoryBank;
use pirl_loss::{ContrastiveLoss, Negatives, Paper};
use pirl_model::{
    Arch, Backbone, Head, JigsawHead, Mode, ModelConfig, OptimConfig, Optimizer, ProjectionHead,
    ResNet, Stem,
};

const CPU: Device = Device::Cpu;
const PATCHES: usize = 9;
const DIM: usize = 128;

struct Setting {
    name: &'static str,
    model: ModelConfig,
    batch: usize,
    image: usize,
    patch: usize,
    negatives: usize,
    bank: usize,
}

struct Learner {
    backbone: ResNet,
    f: ProjectionHead,
    g: JigsawHead,
    optimizer: Optimizer,
    loss: Paper,
    bank: MemoryBank,
    negatives: Negatives,
}

impl Learner {
    fn new(setting: &Setting) -> Self {
        let config = &setting.model;
        let backbone = ResNet::new(config, 0, &CPU).unwrap();
        let features = backbone.feature_dim();
        let f = ProjectionHead::new(config, features, DIM, 0, &CPU).unwrap();
        let g = JigsawHead::new(config, features, PATCHES, DIM, 0, &CPU).unwrap();
        let sets = [backbone.parameters(), f.parameters(), g.parameters()];
        let optimizer = Optimizer::new(&OptimConfig::default(), sets.map(Clone::clone).to_vec());
        let bank = MemoryBank::random(setting.bank, DIM, 0.5, 0, &CPU).unwrap();
        // The images of the batch are rows 0 to B of the bank, its negatives the last rows.
        let last = (setting.bank - setting.negatives) as u32..setting.bank as u32;
        let negatives = Negatives::Shared {
            rows: bank.gather(&last.collect::<Vec<_>>()).unwrap(),
            own: vec![None; setting.batch],
        };
        Self {
            backbone,
            f,
            g,
            optimizer: optimizer.unwrap(),
            loss: Paper::new(0.07).unwrap(),
            bank,
            negatives,
        }
    }

    fn step(&mut self, images: &Tensor, patches: &Tensor, indices: &[u32]) {
        let of_patches = self.backbone.forward(patches, Mode::Train).unwrap();
        let of_images = self.backbone.forward(images, Mode::Train).unwrap();
        let g = self.g.forward(&of_patches, Mode::Train).unwrap();
        let f = self.f.forward(&of_images, Mode::Train).unwrap();
        let positive = self.bank.gather(indices).unwrap();
        let term = |query| {
            self.loss
                .forward(query, &positive, &self.negatives)
                .unwrap()
        };
        let loss = ((term(&g) + term(&f)).unwrap() * 0.5).unwrap();
        let gradients = loss.backward().unwrap();
        self.optimizer.step(&gradients, 0.01).unwrap();
        self.bank.update(indices, &f.detach()).unwrap();
    }
}

fn steps(c: &mut Criterion) {
    let small = Setting {
        name: "resnet18-quarter-32px-12px",
        model: ModelConfig {
            arch: Arch::Resnet18,
            width: 0.25,
            stem: Stem::Small,
            ..ModelConfig::default()
        },
        batch: 128,
        image: 32,
        patch: 12,
        negatives: 4096,
        bank: 20_000,
    };
    let paper = Setting {
        name: "resnet50-224px-64px",
        model: ModelConfig::default(),
        batch: 16,
        image: 224,
        patch: 64,
        negatives: 32_000,
        bank: 131_072,
    };
    let mut group = c.benchmark_group("step");
    group.sample_size(10);
    for setting in [small, paper] {
        let (batch, image, patch) = (setting.batch, setting.image, setting.patch);
        let tensor = |seed, n: usize, size: usize| {
            let values = benches::fill(seed, n * 3 * size * size);
            Tensor::from_vec(values, (n, 3, size, size), &CPU).unwrap()
        };
        let images = tensor(1, batch, image);
        let patches = tensor(2, batch * PATCHES, patch);
        let indices: Vec<u32> = (0..batch as u32).collect();
        let mut learner = Learner::new(&setting);
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_function(setting.name, |b| {
            b.iter(|| learner.step(&images, &patches, &indices));
        });
    }
    group.finish();
}

criterion_group!(benches, steps);
criterion_main!(benches);
