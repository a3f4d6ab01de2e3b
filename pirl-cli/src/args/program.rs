//! Arguments of the commands about this program: its recipes, this machine, its own help.

use std::path::PathBuf;

use clap::Args;

use super::RecipeArgs;

#[derive(Debug, Args)]
pub(crate) struct RecipesArgs {
    /// The recipe to print, every key resolved
    pub(crate) name: Option<String>,
    /// List every key with its default and meaning
    #[arg(long, conflicts_with = "name")]
    pub(crate) keys: bool,
    /// Print one JSON object on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// cpu or cuda:N
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
    /// Batches to time, instead of 2, 4 and 8 images on a CPU and 16 to 128 on a GPU
    #[arg(long, value_name = "IMAGES,...", value_delimiter = ',', value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(2..=65536))]
    pub(crate) batch_sizes: Vec<usize>,
    /// Time training alone: compare no op with the reference
    #[arg(long)]
    pub(crate) skip_checks: bool,
    /// How long the loader is measured, after its first batch
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) seconds: u32,
    /// Print one JSON object on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Folder for pirl.1, pirl-pretrain.1, ...
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,
}
