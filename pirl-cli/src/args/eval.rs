//! Arguments of `pirl eval`.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use pirl_eval::{Dataset, LowShotMethod};

use super::RunArgs;

#[derive(Debug, Args)]
pub(crate) struct Eval {
    /// How long a rank waits for the others before all end
    #[arg(long, global = true, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "10m")]
    pub(crate) rank_timeout: Duration,
    #[command(subcommand)]
    pub(crate) command: EvalCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EvalCommand {
    /// Linear classifiers on the features of each layer
    Linear(LinearArgs),
    /// Weighted nearest neighbours
    Knn(ProbeArgs),
    /// One-versus-rest linear support vector machines; images may show several classes
    Svm(ProbeArgs),
    /// A few labels of each class, in several draws: support vector machines, linear classifiers or nearest
    /// neighbours
    LowShot(LowShotArgs),
    /// The whole network, fine-tuned on all labels or a few
    Finetune(FinetuneArgs),
    /// Faster R-CNN, trained and tested on detection data sets
    Detect(DetectArgs),
}

/// What every evaluation takes.
#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// A run, a file of weights, or `random` for the untrained network of the recipe
    #[arg(long, value_name = "RUN|FILE.safetensors|FILE.pth|FILE.onnx|random")]
    pub(crate) weights: String,
    /// Images to learn from, with labels or, for a detector, annotated objects; {rank} stands for the number
    /// of the rank
    #[arg(long, value_name = "PACK")]
    pub(crate) train: PathBuf,
    /// Images to be judged by, annotated likewise; without it a fifth of those of --train, of every
    /// class, is kept from learning and taken for that
    #[arg(long, value_name = "PACK")]
    pub(crate) test: Option<PathBuf>,
    /// Folder for result.json, checkpoints and pictures
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Recipe of the network and the evaluation, instead of the run's; a file's network is told from
    /// its tensors
    #[arg(long, value_name = "NAME|FILE.toml")]
    pub(crate) recipe: Option<String>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

/// Evaluations of frozen features.
#[derive(Debug, Args)]
pub(crate) struct ProbeArgs {
    #[command(flatten)]
    pub(crate) eval: EvalArgs,
    /// What the packs are: takes the published protocol's settings, and compares with its figures
    #[arg(long, value_name = "NAME", value_parser = dataset())]
    pub(crate) dataset: Option<Dataset>,
    /// Folder that keeps the features, for other probes of the same weights and packs
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct LowShotArgs {
    #[command(flatten)]
    pub(crate) probe: ProbeArgs,
    /// What learns, instead of the recipe's: svm, linear or knn
    #[arg(long, value_name = "NAME", value_parser = low_shot_method())]
    pub(crate) method: Option<LowShotMethod>,
    /// Numbers of labels of each class, instead of the recipe's
    #[arg(long, value_name = "COUNT,...", value_delimiter = ',')]
    pub(crate) shots: Vec<usize>,
    /// Draws of the labelled images, instead of the recipe's
    #[arg(long, value_name = "COUNT")]
    pub(crate) draws: Option<usize>,
}

/// `--method` of `eval low-shot`
fn low_shot_method() -> impl TypedValueParser<Value = LowShotMethod> {
    let names = LowShotMethod::ALL.map(LowShotMethod::name);
    PossibleValuesParser::new(names).try_map(|name| name.parse::<LowShotMethod>())
}

/// `--dataset`
fn dataset() -> impl TypedValueParser<Value = Dataset> {
    let value = |dataset: Dataset| PossibleValue::new(dataset.name()).help(dataset.title());
    PossibleValuesParser::new(Dataset::ALL.map(value)).try_map(|name| name.parse::<Dataset>())
}

#[derive(Debug, Args)]
pub(crate) struct LinearArgs {
    #[command(flatten)]
    pub(crate) probe: ProbeArgs,
    /// Go on from the newest checkpoint in --out, of probes on random crops
    #[arg(long)]
    pub(crate) resume: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DetectArgs {
    #[command(flatten)]
    pub(crate) eval: EvalArgs,
    /// Go on from the newest checkpoint in --out
    #[arg(long, requires = "out")]
    pub(crate) resume: bool,
}

#[derive(Debug, Args)]
pub(crate) struct FinetuneArgs {
    #[command(flatten)]
    pub(crate) eval: EvalArgs,
    /// What the packs are: takes the published protocol's settings, and compares with its figures
    #[arg(long, value_name = "NAME", value_parser = dataset())]
    pub(crate) dataset: Option<Dataset>,
    /// Part of the labels used, as many of each class: 0.01 for 1 %; instead of the recipe's
    #[arg(long, value_name = "FRACTION", conflicts_with = "labels")]
    pub(crate) label_fraction: Option<f64>,
    /// The images whose labels are used: a labels.txt of an earlier --out
    #[arg(long, value_name = "FILE")]
    pub(crate) labels: Option<PathBuf>,
    /// Go on from the newest checkpoint in --out
    #[arg(long)]
    pub(crate) resume: bool,
}
