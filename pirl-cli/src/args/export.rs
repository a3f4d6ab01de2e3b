//! Arguments of the commands that write for other programs: `pirl embed` and `pirl export`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser};
use pirl_model::{Exporter, Layer, exporters};
use pirl_recipes::Setting;

use super::RunArgs;

#[derive(Debug, Args)]
pub(crate) struct EmbedArgs {
    /// A run, a file of weights, or `random` for the untrained network of the recipe
    #[arg(long, value_name = "RUN|FILE.safetensors|FILE.pth|FILE.onnx|random")]
    pub(crate) weights: String,
    /// Images to read, labelled or not; {rank} stands for the number of the rank
    #[arg(long, value_name = "PACK")]
    pub(crate) data: PathBuf,
    /// The file to write; its ending says the format. Rows are in the pack's order, with number, label and
    /// class of each image; those of an .npy are in a table beside it
    #[arg(long, value_name = "FILE.npy|.csv|.safetensors|.parquet")]
    pub(crate) output: PathBuf,
    /// Where features are read: conv1, res2 to res5, res5avg, or embedding, what the head f of a run makes
    /// of them; several with commas, joined to one vector with +. Maps are pooled by eval.pool (of several
    /// the average), or as a name such as res5/grid says
    #[arg(
        long,
        value_name = "LAYER,...",
        value_delimiter = ',',
        default_value = "res5"
    )]
    pub(crate) layer: Vec<Layer>,
    /// The network's recipe, where --weights is not a run; a file's network is told from its tensors
    #[arg(long, value_name = "NAME|FILE.toml")]
    pub(crate) recipe: Option<String>,
    /// How long a rank waits for the others before all end
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "10m")]
    pub(crate) rank_timeout: Duration,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// A run, a file of weights, or `random` for the untrained network of the recipe
    #[arg(long, value_name = "RUN|FILE.safetensors|FILE.pth|FILE.onnx|random")]
    pub(crate) weights: String,
    /// Of a file with several networks, what the names of the one that is meant begin with
    #[arg(long, value_name = "PREFIX")]
    pub(crate) weights_prefix: Option<String>,
    /// What to write
    #[arg(long, value_name = "FORMAT", value_parser = export_format())]
    pub(crate) format: String,
    /// The file to write, or the folder, which must not exist
    #[arg(long, value_name = "FILE|DIR")]
    pub(crate) output: PathBuf,
    /// result.json of an evaluation of these weights, for the model card of a folder; may be repeated
    #[arg(long, value_name = "FILE.json")]
    pub(crate) results: Vec<PathBuf>,
    /// The network's recipe, where --weights is not a run; a file's network is told from its tensors
    #[arg(long, value_name = "NAME|FILE.toml")]
    pub(crate) recipe: Option<String>,
    /// Change a setting of the recipe; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) settings: Vec<Setting>,
    /// Print one JSON object on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// `--format` of `export`
fn export_format() -> PossibleValuesParser {
    let value = |format: &dyn Exporter| PossibleValue::new(format.name()).help(format.title());
    PossibleValuesParser::new(exporters().map(value))
}
