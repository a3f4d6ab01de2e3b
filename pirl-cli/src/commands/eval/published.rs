//! The data sets whose protocols and results are published: settings, and figures to compare with.

use std::fmt;

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::recipe::Setting;

/// Which evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Linear,
    Knn,
    Svm,
    /// `full`: on all labels.
    Finetune {
        full: bool,
    },
}

/// `--dataset`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dataset {
    /// ImageNet, 1000 classes
    Imagenet,
    /// Places205
    Places205,
    /// iNaturalist 2018
    #[value(name = "inaturalist18")]
    Inaturalist18,
    /// Pascal VOC 2007 classification
    Voc07,
}

/// VISSL's views of evaluations.
const VIEW: &[&str] = &["data.image_size=224", "eval.resize=256", "eval.flip=0.5"];

/// VISSL's `linear_image_classification/*/eval_resnet_8gpu_*`, but for what differs by data set.
const LINEAR: &[&str] = &[
    "eval.pool=grid",
    "eval.layers=[\"conv1\", \"res2\", \"res3\", \"res4\", \"res5\", \"res5avg\"]",
    "eval.crop_scale=[0.08, 1.0]",
    "eval.linear.crops=random",
    "eval.linear.lrs=[0.01]",
    "eval.linear.batch_size=256",
    "eval.linear.schedule=multi-step",
    "eval.linear.gamma=0.1",
    "eval.linear.momentum=0.9",
    "eval.linear.weight_decay=0.0005",
    "eval.linear.affine=true",
];

/// VISSL's `voc07/eval_resnet_8gpu_transfer_voc07_svm.yaml`.
const SVM: &[&str] = &[
    "eval.pool=grid",
    "eval.layers=[\"conv1\", \"res2\", \"res3\", \"res4\", \"res5\"]",
    "eval.svm.costs=[0.01, 0.1, 1, 2, 5, 10, 15, 20, 50, 100, 1000]",
    "eval.svm.folds=3",
    "eval.svm.positive_weight=2",
];

/// VISSL's `semi_supervised/imagenet1k` and `fulltune/imagenet1k`, but for what differs.
const FINETUNE: &[&str] = &[
    "eval.crop_scale=[0.08, 1.0]",
    "eval.finetune.batch_size=256",
    "eval.finetune.schedule=multi-step",
    "eval.finetune.gamma=0.1",
    "eval.finetune.momentum=0.9",
    "eval.finetune.weight_decay=0.0",
];

impl Dataset {
    /// The published protocol's settings, to be laid over a recipe.
    pub(super) fn settings(self, protocol: Protocol) -> Result<Vec<Setting>> {
        let own: [&[&str]; 2] = match (self, protocol) {
            (_, Protocol::Knn) => [&[], &["eval.knn.k=200", "eval.knn.temperature=0.07"]],
            (Self::Imagenet, Protocol::Linear) => [
                LINEAR,
                &[
                    "eval.linear.epochs=28",
                    "eval.linear.milestones=[8, 16, 24]",
                ],
            ],
            (Self::Places205, Protocol::Linear) => [
                LINEAR,
                &["eval.linear.epochs=14", "eval.linear.milestones=[4, 8, 12]"],
            ],
            (Self::Inaturalist18, Protocol::Linear) => [
                LINEAR,
                &[
                    "eval.linear.epochs=84",
                    "eval.linear.milestones=[24, 48, 72]",
                ],
            ],
            (Self::Imagenet, Protocol::Finetune { full: true }) => [
                FINETUNE,
                &[
                    "eval.finetune.epochs=105",
                    "eval.finetune.lr=0.1",
                    "eval.finetune.milestones=[30, 60, 90, 100]",
                ],
            ],
            (Self::Imagenet, Protocol::Finetune { full: false }) => [
                FINETUNE,
                &[
                    "eval.finetune.epochs=70",
                    "eval.finetune.lr=0.01",
                    "eval.finetune.milestones=[30]",
                ],
            ],
            (Self::Voc07, Protocol::Svm) => [SVM, &[]],
            (_, protocol) => bail!(
                "--dataset {self}: there are no settings for {protocol} on it; leave --dataset out \
                 and choose them with --set"
            ),
        };
        let all = VIEW.iter().chain(own.into_iter().flatten());
        all.map(|setting| setting.parse().map_err(anyhow::Error::msg))
            .collect()
    }

    /// Figures to compare `result` with.
    pub(super) fn published(self, protocol: Protocol, result: &Value) -> Option<Published> {
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
            (Self::Imagenet, Protocol::Finetune { full: false }) => {
                let fraction = result["label_fraction"].as_f64()?;
                let one: &[(&str, f64)] = &[
                    ("PIRL", 57.2),
                    ("NPID++", 52.6),
                    ("Jigsaw", 45.3),
                    ("untrained", 22.0),
                ];
                let ten: &[(&str, f64)] = &[
                    ("PIRL", 83.8),
                    ("NPID++", 81.5),
                    ("Jigsaw", 79.3),
                    ("untrained", 59.0),
                ];
                match fraction {
                    // The lists in use are not of exactly these sizes.
                    x if (0.009..0.011).contains(&x) => ("top5", one),
                    x if (0.09..0.11).contains(&x) => ("top5", ten),
                    _ => return None,
                }
            }
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
        let here = match protocol {
            Protocol::Linear => &result["best"][metric],
            _ => &result[metric],
        };
        Some(Published {
            dataset: self,
            metric,
            figures,
            here: here.as_f64()?,
        })
    }
}

impl fmt::Display for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Imagenet => "imagenet",
            Self::Places205 => "places205",
            Self::Inaturalist18 => "inaturalist18",
            Self::Voc07 => "voc07",
        })
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linear => "linear",
            Self::Knn => "k-NN",
            Self::Svm => "SVM",
            Self::Finetune { full: true } => "full fine-tuning",
            Self::Finetune { full: false } => "semi-supervised",
        })
    }
}

/// The paper's figures (arXiv:1912.01991, ResNet-50 pre-trained on ImageNet) and ours.
pub(super) struct Published {
    dataset: Dataset,
    metric: &'static str,
    figures: &'static [(&'static str, f64)],
    here: f64,
}

impl Published {
    pub(super) fn to_json(&self) -> Value {
        let figures: serde_json::Map<_, _> = self
            .figures
            .iter()
            .map(|(name, value)| ((*name).to_owned(), json!(value)))
            .collect();
        json!({
            "source": "arXiv:1912.01991, ResNet-50",
            "dataset": self.dataset.to_string(),
            "metric": self.metric,
            "figures": figures,
            "here": self.here,
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
            "{} here {:.1}; published for {} (arXiv:1912.01991, ResNet-50): {}",
            self.metric,
            self.here,
            self.dataset,
            figures.join(", ")
        )
    }
}
