//! The data sets whose protocols and results are published: settings, and figures to compare with.

use std::fmt;
use std::str::FromStr;

use pirl_model::{Layer, ScheduleKind};
use serde::Serialize;

use crate::error::{EvalError, Result};
use crate::{Crops, EvalConfig, FinetuneConfig, LinearConfig, LowShotConfig, Pool};

/// Which evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Linear probes on random crops.
    Linear,
    /// Nearest neighbours.
    Knn,
    /// Support vector machines.
    Svm,
    /// A few labels of each class.
    LowShot,
    /// Fine-tuning of the whole network.
    Finetune {
        /// On all labels.
        full: bool,
    },
}

/// A data set that backbones are compared on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dataset {
    /// ImageNet, 1000 classes.
    Imagenet,
    /// Places205.
    Places205,
    /// iNaturalist 2018.
    Inaturalist18,
    /// Pascal VOC 2007 classification.
    Voc07,
}

/// The shorter side and the crop, in pixels, of VISSL's evaluations.
const RESIZE: usize = 256;
const CROP: usize = 224;

impl Dataset {
    /// Every one of them.
    pub const ALL: [Self; 4] = [
        Self::Imagenet,
        Self::Places205,
        Self::Inaturalist18,
        Self::Voc07,
    ];

    /// As [`FromStr`] reads it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Imagenet => "imagenet",
            Self::Places205 => "places205",
            Self::Inaturalist18 => "inaturalist18",
            Self::Voc07 => "voc07",
        }
    }

    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Imagenet => "ImageNet, 1000 classes",
            Self::Places205 => "Places205",
            Self::Inaturalist18 => "iNaturalist 2018",
            Self::Voc07 => "Pascal VOC 2007 classification",
        }
    }

    /// Takes over the settings of the published protocol: `image_size` is the side of the centre
    /// crop. Those that the protocol is silent about stay as they are.
    ///
    /// # Errors
    ///
    /// Fails if there is no such protocol for this data set.
    pub fn apply(
        self,
        protocol: Protocol,
        image_size: &mut usize,
        config: &mut EvalConfig,
    ) -> Result<()> {
        match (self, protocol) {
            (_, Protocol::Knn) => {
                config.knn.k = vec![200];
                config.knn.temperature = 0.07;
            }
            (Self::Imagenet, Protocol::Linear) => linear(config, 28, &[8, 16, 24]),
            (Self::Places205, Protocol::Linear) => linear(config, 14, &[4, 8, 12]),
            (Self::Inaturalist18, Protocol::Linear) => linear(config, 84, &[24, 48, 72]),
            (Self::Imagenet, Protocol::Finetune { full: true }) => {
                finetune(config, 105, 0.1, &[30, 60, 90, 100]);
            }
            (Self::Imagenet, Protocol::Finetune { full: false }) => {
                finetune(config, 70, 0.01, &[30]);
            }
            (Self::Voc07, Protocol::Svm) | (Self::Voc07 | Self::Places205, Protocol::LowShot) => {
                svm(config);
                config.low_shot = LowShotConfig::default();
            }
            (dataset, protocol) => {
                return Err(EvalError::NoProtocol {
                    dataset: dataset.name(),
                    protocol: protocol.to_string(),
                });
            }
        }
        (*image_size, config.resize, config.flip) = (CROP, RESIZE, 0.5);
        Ok(())
    }

    /// Published figures; `label_fraction` is the part of the labels that a fine-tuning used.
    pub fn published(self, protocol: Protocol, label_fraction: Option<f64>) -> Option<Published> {
        let (metric, figures): (_, &[(&str, f64)]) = match (self, protocol) {
            (Self::Imagenet, Protocol::Linear) => (
                "top1",
                &[
                    ("PIRL", 63.6),
                    ("NPID++", 59.0),
                    ("Rotation", 48.9),
                    ("Jigsaw", 45.7),
                    ("supervised", 75.9),
                ],
            ),
            (Self::Places205, Protocol::Linear) => (
                "top1",
                &[
                    ("PIRL", 49.8),
                    ("NPID++", 46.4),
                    ("Rotation", 41.4),
                    ("Jigsaw", 41.2),
                    ("supervised", 51.5),
                ],
            ),
            (Self::Inaturalist18, Protocol::Linear) => (
                "top1",
                &[
                    ("PIRL", 34.1),
                    ("NPID++", 32.4),
                    ("Rotation", 23.0),
                    ("Jigsaw", 21.3),
                    ("supervised", 45.4),
                ],
            ),
            (Self::Imagenet, Protocol::Finetune { full: false }) => match label_fraction? {
                // The lists in use are not of exactly these sizes.
                fraction if (0.009..0.011).contains(&fraction) => (
                    "top5",
                    &[
                        ("PIRL", 57.2),
                        ("NPID++", 52.6),
                        ("Jigsaw", 45.3),
                        ("untrained", 22.0),
                    ],
                ),
                fraction if (0.09..0.11).contains(&fraction) => (
                    "top5",
                    &[
                        ("PIRL", 83.8),
                        ("NPID++", 81.5),
                        ("Jigsaw", 79.3),
                        ("untrained", 59.0),
                    ],
                ),
                _ => return None,
            },
            (Self::Voc07, Protocol::Svm) => (
                "map",
                &[
                    ("PIRL", 81.1),
                    ("NPID++", 76.6),
                    ("Jigsaw", 64.5),
                    ("Rotation", 63.9),
                    ("supervised", 87.5),
                ],
            ),
            _ => return None,
        };
        Some(Published {
            source: "arXiv:1912.01991, ResNet-50",
            dataset: self,
            metric,
            figures,
        })
    }
}

/// VISSL's `linear_image_classification/*/eval_resnet_8gpu_*`, but for what differs by data set.
fn linear(config: &mut EvalConfig, epochs: usize, milestones: &[usize]) {
    config.pool = Pool::Grid.into();
    config.layers = vec![
        Layer::CONV1,
        Layer::RES2,
        Layer::RES3,
        Layer::RES4,
        Layer::RES5,
        Layer::RES5_AVG,
    ];
    config.crop_scale = [0.08, 1.0];
    config.linear = LinearConfig {
        crops: Crops::Random,
        epochs,
        milestones: milestones.to_vec(),
        lrs: vec![0.01],
        batch_size: 256,
        schedule: ScheduleKind::MultiStep,
        gamma: 0.1,
        momentum: 0.9,
        weight_decay: 5e-4,
        affine: true,
        ..config.linear.clone()
    };
}

/// VISSL's `voc07/eval_resnet_8gpu_transfer_voc07_svm.yaml`.
fn svm(config: &mut EvalConfig) {
    config.pool = Pool::Grid.into();
    config.layers = vec![
        Layer::CONV1,
        Layer::RES2,
        Layer::RES3,
        Layer::RES4,
        Layer::RES5,
    ];
    config.svm.costs = vec![
        0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0,
    ];
    config.svm.folds = 3;
    config.svm.positive_weight = 2.0;
}

/// VISSL's `semi_supervised/imagenet1k` and `fulltune/imagenet1k`, but for what differs.
fn finetune(config: &mut EvalConfig, epochs: usize, lr: f64, milestones: &[usize]) {
    config.crop_scale = [0.08, 1.0];
    config.finetune = FinetuneConfig {
        epochs,
        lr,
        milestones: milestones.to_vec(),
        batch_size: 256,
        schedule: ScheduleKind::MultiStep,
        gamma: 0.1,
        momentum: 0.9,
        weight_decay: 0.0,
        ..config.finetune.clone()
    };
}

/// Figures of the paper (arXiv:1912.01991, ResNet-50 pre-trained on ImageNet).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Published {
    /// Where they are published.
    pub source: &'static str,
    /// What they were measured on.
    pub dataset: Dataset,
    /// top1, top5 or map, in percent.
    pub metric: &'static str,
    /// By method.
    #[serde(serialize_with = "as_map")]
    pub figures: &'static [(&'static str, f64)],
}

fn as_map<S: serde::Serializer>(
    figures: &&'static [(&'static str, f64)],
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_map(figures.iter().copied())
}

impl FromStr for Dataset {
    type Err = EvalError;

    fn from_str(name: &str) -> Result<Self> {
        let mut all = Self::ALL.into_iter();
        let found = all.find(|dataset| dataset.name() == name);
        found.ok_or_else(|| EvalError::NoDataset {
            name: name.to_owned(),
            known: Self::ALL.map(Self::name).join(", "),
        })
    }
}

impl fmt::Display for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linear => "linear",
            Self::Knn => "k-NN",
            Self::Svm => "SVM",
            Self::LowShot => "low-shot",
            Self::Finetune { full: true } => "full fine-tuning",
            Self::Finetune { full: false } => "semi-supervised",
        })
    }
}

impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figures: Vec<String> = self
            .figures
            .iter()
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        write!(
            f,
            "published for {} ({}): {}",
            self.dataset,
            self.source,
            figures.join(", ")
        )
    }
}
