//! The command line. It only parses; what the values mean is checked by the commands.

mod analyze;
mod data;
mod eval;
mod export;
mod program;
mod train;

use clap::{Args, Parser, Subcommand};
use pirl_recipes::{Recipe, RecipeError, Setting};

pub(crate) use analyze::{
    AnalyzeArgs, AnalyzeCommand, InvarianceArgs, MapArgs, NeighboursArgs, ReportArgs,
};
pub(crate) use data::{
    ComposeArgs, DataBenchArgs, DataCommand, DataSet, FetchArgs, InspectArgs, LabelsArg, PackArgs,
    PreviewArgs, ReencodeArg, StatsArgs,
};
pub(crate) use eval::{
    DetectArgs, Eval, EvalArgs, EvalCommand, FinetuneArgs, LinearArgs, LowShotArgs, ProbeArgs,
};
pub(crate) use export::{EmbedArgs, ExportArgs};
pub(crate) use program::{CompletionsArgs, DoctorArgs, ManArgs, RecipesArgs};
pub(crate) use train::{PretrainArgs, StudyArgs};

/// Pre-train a ConvNet on images without labels (PIRL, arXiv:1912.01991) and see what it learned.
#[derive(Debug, Parser)]
#[command(name = "pirl", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// End when standard input does: a study's runs end with it, however it ends
    #[arg(long, global = true, hide = true)]
    pub(crate) end_with_stdin: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Fetch, pack and look at images
    #[command(subcommand)]
    Data(DataCommand),
    /// Pre-train a backbone on a pack
    Pretrain(PretrainArgs),
    /// Judge a backbone by what a simple classifier makes of its features
    Eval(Eval),
    /// Look at what a backbone's features are near to, and at what moves them
    #[command(subcommand)]
    Analyze(AnalyzeCommand),
    /// Write the page of a run to send round: curves, results, neighbours, map, settings
    Report(ReportArgs),
    /// Make many runs that differ in a few settings, and compare them: the paper's figures, or a sweep of
    /// one's own
    Study(StudyArgs),
    /// Write the features of a pack's images for another program
    Embed(EmbedArgs),
    /// Write a backbone's weights for another program
    Export(ExportArgs),
    /// List the recipes, or print one as TOML
    Recipes(RecipesArgs),
    /// Check every op on this machine against the plain reference, and measure its speed
    Doctor(DoctorArgs),
    /// Print the script by which a shell completes this command line
    Completions(CompletionsArgs),
    /// Write a manual page for this command and each of its commands
    Man(ManArgs),
}

/// What every command takes that trains a network or shows it images.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Change a setting of the recipe; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) settings: Vec<Setting>,
    /// cpu or cuda:N; to pre-train on several, cuda:0,cuda:1; of several ranks, each one's own: cuda:local
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
    /// Seed of everything random, instead of the recipe's
    #[arg(long, value_parser = clap::value_parser!(u64).range(0..=i64::MAX as u64))]
    pub(crate) seed: Option<u64>,
    /// Of a file of weights with several networks, what the names of the one that is meant begin with
    #[arg(long, value_name = "PREFIX")]
    pub(crate) weights_prefix: Option<String>,
    /// Print one JSON object on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// The recipe of a command without a run.
#[derive(Debug, Args)]
pub(crate) struct RecipeArgs {
    /// Recipe whose views, batches and network are meant
    #[arg(
        long = "recipe",
        value_name = "NAME|FILE.toml",
        default_value = "imagenet-resnet50-jigsaw"
    )]
    pub(crate) name: String,
    /// Change a setting of the recipe; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) settings: Vec<Setting>,
}

impl RecipeArgs {
    pub(crate) fn load(&self) -> Result<Recipe, RecipeError> {
        Recipe::load(&self.name, &self.settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent_and_every_flag_explained() {
        fn walk(command: &clap::Command) {
            for argument in command.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{} of {} has no help",
                    argument.get_id(),
                    command.get_name()
                );
            }
            command.get_subcommands().for_each(walk);
        }
        let command = Cli::command();
        walk(&command);
        command.debug_assert();
    }

    #[test]
    fn every_command_of_the_documentation_is_one() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let pages = std::fs::read_dir(root.join("docs")).unwrap();
        let pages = pages.map(|entry| entry.unwrap().path());
        let pages = pages.filter(|page| page.extension().is_some_and(|it| it == "md"));
        let mut commands = 0;
        for page in pages.chain([root.join("README.md"), root.join("pirl-cli/README.md")]) {
            let text = std::fs::read_to_string(&page).unwrap().replace("\\\n", " ");
            let blocks = text.split("```sh\n").skip(1);
            for line in blocks.flat_map(|block| block.split("```").next().unwrap().lines()) {
                let line = line.split(" #").next().unwrap();
                // What is quoted is one word.
                let parts = line.split('\'').enumerate();
                let line: String = parts
                    .map(|(part, text)| match part % 2 {
                        0 => text.to_owned(),
                        _ => text.replace(' ', "_"),
                    })
                    .collect();
                let Some(at) = line.find("pirl ").filter(|_| !line.contains("cargo")) else {
                    continue;
                };
                let words = line[at..].split_whitespace();
                let words = words.take_while(|word| ![">", ">>", "|", "&&"].contains(word));
                let words = words.filter(|word| !word.starts_with("\"${")); // a shell's own
                if let Err(error) = Cli::try_parse_from(words) {
                    panic!("{}: {line}\n{error}", page.display());
                }
                commands += 1;
            }
        }
        assert!(commands > 25, "{commands}");
    }
}
