//! Arguments of `pirl analyze` and `pirl report`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use pirl_model::Layer;

use super::RunArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum AnalyzeCommand {
    /// Draw images beside those whose features are nearest
    Neighbours(NeighboursArgs),
    /// Measure how far crops, colours and the pretext task's transformation move the features
    Invariance(InvarianceArgs),
    /// Draw all images as points of a page, alike ones near each other; outliers and near duplicates
    Map(MapArgs),
}

/// What every analysis takes.
#[derive(Debug, Args)]
pub(crate) struct AnalyzeArgs {
    /// Images to look at, labelled or not
    #[arg(long, value_name = "PACK")]
    pub(crate) data: PathBuf,
    /// Folder for the picture and result.json
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// The network's recipe, where --weights is not a run; a file's network is told from its tensors
    #[arg(long, value_name = "NAME|FILE.toml")]
    pub(crate) recipe: Option<String>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Debug, Args)]
pub(crate) struct NeighboursArgs {
    /// A run, a file of weights, or `random` for the untrained network of the recipe
    #[arg(long, value_name = "RUN|FILE.safetensors|FILE.pth|FILE.onnx|random")]
    pub(crate) weights: String,
    #[command(flatten)]
    pub(crate) analyze: AnalyzeArgs,
    /// Images to choose the neighbours from, instead of those of --data
    #[arg(long, value_name = "PACK")]
    pub(crate) gallery: Option<PathBuf>,
    /// Where features are read, averaged over the map
    #[arg(long, value_name = "LAYER", default_value = "res5")]
    pub(crate) layer: Layer,
    /// Images whose neighbours are drawn
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) queries: u32,
    /// Neighbours of each
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) neighbours: u32,
}

#[derive(Debug, Args)]
pub(crate) struct MapArgs {
    /// A run, a file of weights, or `random` for the untrained network of the recipe
    #[arg(long, value_name = "RUN|FILE.safetensors|FILE.pth|random")]
    pub(crate) weights: String,
    #[command(flatten)]
    pub(crate) analyze: AnalyzeArgs,
    /// Where features are read, averaged over the map
    #[arg(long, value_name = "LAYER", default_value = "res5")]
    pub(crate) layer: Layer,
    /// Neighbours that count, about
    #[arg(long, value_name = "COUNT", default_value_t = 30.0)]
    pub(crate) perplexity: f64,
    /// Images are near duplicates where the cosine of their features is at least this
    #[arg(long, value_name = "COSINE", default_value_t = 0.995)]
    pub(crate) near_duplicates: f32,
}

#[derive(Debug, Args)]
pub(crate) struct InvarianceArgs {
    /// A run, a file of weights, or `random`; may be repeated, to compare. Of a run the recipe is
    /// its own; the transformations are those of the first recipe
    #[arg(
        long,
        value_name = "RUN|FILE.safetensors|FILE.pth|FILE.onnx|random",
        required = true
    )]
    pub(crate) weights: Vec<String>,
    #[command(flatten)]
    pub(crate) analyze: AnalyzeArgs,
    /// Images to measure, drawn from the pack
    #[arg(long, value_name = "COUNT", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..))]
    pub(crate) images: u32,
}

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// Folder of the run, whose report.html is written
    #[arg(value_name = "RUN")]
    pub(crate) run: PathBuf,
    /// Images for the page, best those of a test set: how far changes move their features, what is near to
    /// what, a map
    #[arg(long, value_name = "PACK")]
    pub(crate) data: Option<PathBuf>,
    /// result.json of an evaluation of the run, for the page's table; may be repeated
    #[arg(long, value_name = "FILE.json")]
    pub(crate) results: Vec<PathBuf>,
    /// Where features are read, averaged over the map
    #[arg(long, value_name = "LAYER", default_value = "res5")]
    pub(crate) layer: Layer,
    /// Images of --data on the map, drawn by the seed
    #[arg(long, value_name = "COUNT", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(4..))]
    pub(crate) images: u32,
    #[command(flatten)]
    pub(crate) options: RunArgs,
}
