//! The tables of a recipe, and their defaults: the paper's.

use pirl_bank::BankPrecision;
use pirl_data::{DataConfig, EvalView, OnCorrupt, PretextConfig, ViewConfig};
use pirl_eval::EvalConfig;
use pirl_model::{ModelConfig, OptimConfig, Precision, ScheduleConfig};
use pirl_train::Positives;
use serde::{Deserialize, Serialize};

/// All settings of a run, as the `config.toml` of its folder keeps them.
///
/// The default is the paper's PIRL with ResNet-50 on ImageNet, `imagenet-resnet50-jigsaw`. Fields may be
/// changed at will; [`Recipe::check`] says whether the values work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Seed of everything random.
    pub seed: u64,
    /// Sizes of the views, and how many images to train on.
    pub data: DataConfig,
    /// Random crops and colours of both views.
    pub transform: TransformConfig,
    /// The transformation that makes I^t of an image.
    pub pretext: PretextConfig,
    /// The network.
    pub model: ModelConfig,
    /// What is learned, and from which negatives.
    pub loss: LossConfig,
    /// The memory bank; of contrastive losses alone.
    pub bank: BankConfig,
    /// The optimiser.
    pub optim: OptimConfig,
    /// The learning rate's course.
    pub schedule: ScheduleConfig,
    /// Batches, and the length of the training.
    pub train: TrainConfig,
    /// The threads that make batches.
    pub loader: LoaderTable,
    /// How often metrics are written.
    pub log: LogConfig,
    /// How often checkpoints are written, and how many are kept.
    pub checkpoint: CheckpointConfig,
    /// How the backbone is judged.
    pub eval: EvalConfig,
}

/// `[transform.image]` and `[transform.patch]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransformConfig {
    /// Of the image view I.
    pub image: ViewConfig,
    /// Of the crop that becomes I^t, and of its patches.
    pub patch: ViewConfig,
}

/// `[loss]`: what is learned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossConfig {
    /// Which loss.
    pub kind: LossKind,
    /// Weight of the transformed view's term, in `[0, 1]`.
    pub lambda: f64,
    /// Divides every cosine; finite and above 0.
    pub temperature: f64,
    /// Rows of the bank that each embedding is compared with; at least 1, and fewer than the images.
    pub negatives: usize,
    /// What a view is drawn to.
    pub positives: Positives,
    /// For whom negatives are drawn.
    pub sampling: Sampling,
}

/// `loss.kind`: which loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossKind {
    /// The paper's, equations 4 to 6.
    Paper,
    /// The released code's noise-contrastive estimation.
    Nce,
    /// InfoNCE: cross entropy of the positive among the negatives.
    InfoNce,
    /// The baseline that predicts the transformation.
    Covariant,
    /// Prediction of the images' labels.
    Supervised,
}

impl LossKind {
    /// Whether it compares embeddings with a bank's.
    pub fn is_contrastive(self) -> bool {
        matches!(self, Self::Paper | Self::Nce | Self::InfoNce)
    }
}

/// `loss.sampling`: for whom negatives are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sampling {
    /// Once a step, for all its images and both terms.
    Shared,
    /// For each image on its own.
    PerImage,
}

/// `[bank]`: the memory bank, a row for each image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BankConfig {
    /// Numbers in an embedding; at least 1.
    pub dim: usize,
    /// Weight of the old row in an update, in `[0, 1]`.
    pub momentum: f64,
    /// What its rows are before the first step.
    pub init: BankInit,
    /// Whether it stays in the host's memory.
    pub on_host: bool,
    /// Whether its rows are shared out over the ranks, rather than all on each.
    pub sharded: bool,
    /// Where its rows are.
    pub storage: BankStorage,
    /// What a number of a mapped bank is stored as.
    pub precision: BankPrecision,
}

/// `bank.storage`: where the rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BankStorage {
    /// In memory, the device's or the host's.
    Memory,
    /// In a mapped file in the run's folder.
    Mapped,
}

/// `bank.init`: what the rows are before the first step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BankInit {
    /// Random unit vectors.
    Random,
    /// f(I) of the network that the run begins with.
    Features,
}

/// `[train]`: batches, and the length of the training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Images in a step; at least 1.
    pub batch_size: usize,
    /// Images that go through the networks at once; 0 for the whole batch.
    pub micro_batch: usize,
    /// Passes over the images; at least 1 unless `steps` is.
    pub epochs: usize,
    /// Stop after this many steps in all; 0 for no such limit.
    pub steps: u64,
    /// Of the backbone's activations and products.
    pub precision: Precision,
}

/// `[loader]`: the threads that make batches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderTable {
    /// Threads that make batches; 0 for one a CPU core.
    pub workers: usize,
    /// Batches made ahead of the step that needs them; at least 1.
    pub look_ahead: usize,
    /// MiB that these hold together, at most, unless a single part is larger; at least 1.
    pub look_ahead_mib: usize,
    /// What happens to an image that cannot be decoded.
    pub on_corrupt: OnCorrupt,
}

/// `[log]`: how often metrics are written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// Steps from one line of `metrics.jsonl` to the next; at least 1.
    pub every: u64,
}

/// `[checkpoint]`: what is kept to go on from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Steps from one checkpoint to the next; 0 for one at the end alone.
    pub every: u64,
    /// How many of the newest are kept; at least 1.
    pub keep: usize,
}

impl Default for Recipe {
    /// The paper's PIRL with ResNet-50 on ImageNet (arXiv:1912.01991, VISSL's base config).
    fn default() -> Self {
        Self {
            seed: 0,
            data: DataConfig::default(),
            transform: TransformConfig {
                image: ViewConfig::default(),
                patch: ViewConfig::patch(),
            },
            pretext: PretextConfig::default(),
            model: ModelConfig::default(),
            loss: LossConfig {
                kind: LossKind::Paper,
                lambda: 0.5,
                temperature: 0.07,
                negatives: 32_000,
                positives: Positives::Bank,
                sampling: Sampling::Shared,
            },
            bank: BankConfig {
                dim: 128,
                momentum: 0.5,
                init: BankInit::Random,
                on_host: false,
                sharded: false,
                storage: BankStorage::Memory,
                precision: BankPrecision::F32,
            },
            optim: OptimConfig::default(),
            schedule: ScheduleConfig::default(),
            train: TrainConfig {
                batch_size: 1024,
                micro_batch: 32,
                epochs: 800,
                steps: 0,
                precision: Precision::F32,
            },
            loader: LoaderTable {
                workers: 0,
                look_ahead: 4,
                look_ahead_mib: 256,
                on_corrupt: OnCorrupt::Skip,
            },
            log: LogConfig { every: 10 },
            checkpoint: CheckpointConfig {
                every: 1000,
                keep: 2,
            },
            eval: EvalConfig::default(),
        }
    }
}

impl Recipe {
    /// How images are seen by evaluations: `eval.resize`, `eval.crop`, and the mean and deviation of
    /// `[data]`.
    pub fn eval_view(&self) -> EvalView {
        EvalView {
            resize: self.eval.resize,
            crop: match self.eval.crop {
                0 => self.data.image_size,
                crop => crop,
            },
            stretch: false,
            mean: self.data.mean.clone(),
            std: self.data.std.clone(),
        }
    }
}
