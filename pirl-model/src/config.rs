//! What a network is built from.

use std::fmt;

use candle_core::DType;
use pirl_core::{Ops, SettingError, check};
use serde::{Deserialize, Serialize};

use crate::ops::conv2d::Winograd;

/// Depth of a ResNet (He et al., arXiv:1512.03385), built as torchvision builds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// Basic blocks, 1-1-1-1.
    Resnet10,
    /// Basic blocks, 2-2-2-2.
    Resnet18,
    /// Basic blocks, 3-4-6-3.
    Resnet34,
    /// Bottlenecks, 3-4-6-3.
    Resnet50,
    /// Bottlenecks, 3-4-23-3.
    Resnet101,
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resnet10 => "resnet10",
            Self::Resnet18 => "resnet18",
            Self::Resnet34 => "resnet34",
            Self::Resnet50 => "resnet50",
            Self::Resnet101 => "resnet101",
        })
    }
}

impl Arch {
    /// Blocks of each of the four stages.
    pub(crate) fn blocks(self) -> [usize; 4] {
        match self {
            Self::Resnet10 => [1, 1, 1, 1],
            Self::Resnet18 => [2, 2, 2, 2],
            Self::Resnet34 | Self::Resnet50 => [3, 4, 6, 3],
            Self::Resnet101 => [3, 4, 23, 3],
        }
    }

    /// Whether the blocks are bottlenecks, whose output is four times as wide as their 3x3.
    pub(crate) fn bottleneck(self) -> bool {
        matches!(self, Self::Resnet50 | Self::Resnet101)
    }
}

/// What comes before the first stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stem {
    /// 7x7 convolution of stride 2, then a 3x3 max-pool of stride 2: maps are a quarter the image.
    Imagenet,
    /// 5x5 convolution of stride 2 and no pool: maps are half the image, for images of tens of pixels.
    Medium,
    /// 3x3 convolution of stride 1 and no pool, for images of some tens of pixels.
    Small,
}

impl fmt::Display for Stem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Imagenet => "imagenet",
            Self::Medium => "medium",
            Self::Small => "small",
        })
    }
}

/// How features become embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadKind {
    /// One linear layer (the paper).
    Linear,
    /// Linear, ReLU, linear, with a hidden layer as wide as the features.
    Mlp,
}

/// Over which images batch norm takes mean and variance in training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BatchNorm {
    /// Those of a part of a batch, which goes through the network on one device (the paper).
    #[default]
    Local,
    /// Those of all parts that go through copies of the network at the same time, on all devices of all
    /// ranks, as `torch.nn.SyncBatchNorm` does.
    Synced,
}

/// The number type in which activations are stored and products computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 32 bits, but cuDNN may round the inputs of convolutions to TF32 (10 bits of mantissa), which
    /// GPUs since Ampere multiply several times as fast; PyTorch's default. Where cuDNN does not run
    /// it is the same as [`Precision::F32`].
    Tf32,
    /// bfloat16, mixed: activations, their gradients and the factors of products are rounded to it,
    /// at half the memory. Weights, their gradients, batch-norm statistics and all sums stay `f32`.
    Bf16,
    /// As [`Precision::Bf16`], in IEEE half precision, for GPUs that are fast only in it. It is eight
    /// times as precise, but gradients below 6e-8 become 0 and those above 65,504 infinite: scale the
    /// loss by a [`LossScale`](crate::LossScale).
    F16,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

impl Precision {
    /// As tensors have it.
    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F32 | Self::Tf32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }
}

/// The architecture of a network and its heads, and what runs them. The default is the paper's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// Depth; `resnet50` by default.
    pub arch: Arch,
    /// Multiplies every number of channels, the stem's included; from 0.25 to 4, and `64 * width`
    /// must be whole. 1 by default.
    pub width: f64,
    /// The stem; `imagenet` by default.
    pub stem: Stem,
    /// Channels of the images, from 1 to 16; 3 by default. A recipe says it of its data, and so not here.
    #[serde(skip)]
    pub channels: usize,
    /// The heads f and g; `linear` by default.
    pub head: HeadKind,
    /// Which implementation runs the network, its optimiser, loss and bank; `fast` by default.
    pub ops: Ops,
    /// Whether fast ops on a CPU may compute `f32` convolutions of 3x3 taps and stride 1 by Winograd's
    /// way; `auto` by default.
    pub winograd: Winograd,
    /// Over which images batch norm takes mean and variance in training, where several devices or ranks
    /// share a batch; `local` by default. Whoever shares it out sees to it
    /// ([`Trainable::sync_batch_norm`](crate::Trainable::sync_batch_norm)); a network alone is `local`.
    pub batch_norm: BatchNorm,
}

/// The most channels of an image, as pirl-data has them.
pub(crate) const MAX_CHANNELS: usize = 16;

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            arch: Arch::Resnet50,
            width: 1.0,
            stem: Stem::Imagenet,
            channels: 3,
            head: HeadKind::Linear,
            ops: Ops::Fast,
            winograd: Winograd::Auto,
            batch_norm: BatchNorm::Local,
        }
    }
}

impl ModelConfig {
    /// The network by its keys in a recipe: `model.arch = resnet50, model.width = 1, model.stem =
    /// imagenet`, and `data.channels` of others than RGB images.
    pub fn network(&self) -> String {
        let Self {
            arch,
            width,
            stem,
            channels,
            ..
        } = self;
        let of_images = match channels {
            3 => String::new(),
            channels => format!(", data.channels = {channels}"),
        };
        format!("model.arch = {arch}, model.width = {width}, model.stem = {stem}{of_images}")
    }

    /// # Errors
    /// Names the first field whose value cannot work.
    pub fn check(&self) -> Result<(), SettingError> {
        let width = self.width;
        let fits = (0.25..=4.0).contains(&width) && (64.0 * width).fract() == 0.0;
        let expected = "must lie in [0.25, 4], and 64 * width must be whole";
        check("width", width, fits, expected)?;
        let channels = self.channels;
        let fits = (1..=MAX_CHANNELS).contains(&channels);
        let expected = format!("must lie between 1 and {MAX_CHANNELS}");
        check("channels", channels, fits, &expected)
    }

    /// Channels of the stem.
    ///
    /// # Errors
    /// As [`ModelConfig::check`].
    pub(crate) fn stem_channels(&self) -> Result<usize, SettingError> {
        self.check()?;
        Ok((64.0 * self.width) as usize)
    }
}
