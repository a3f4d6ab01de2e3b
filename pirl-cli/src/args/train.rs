//! Arguments of the commands that train: `pirl pretrain` and `pirl study`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use pirl_recipes::Setting;

use super::RunArgs;

#[derive(Debug, Args)]
pub(crate) struct PretrainArgs {
    /// A recipe's name (see `pirl recipes`) or file; without it, settings are chosen for the images and
    /// the device, and printed with their reasons
    #[arg(long, value_name = "NAME|FILE.toml")]
    pub(crate) recipe: Option<String>,
    /// Images to learn from: a shard, or the stem of a set of shards; {rank} stands for the number of
    /// the rank; a resumed run need not be told again
    #[arg(long, value_name = "PACK", required_unless_present = "resume")]
    pub(crate) data: Option<PathBuf>,
    /// Folder of the run
    #[arg(long, value_name = "RUN")]
    pub(crate) out: PathBuf,
    /// Train for as many epochs as fit into this time, such as 90m or 2h: a few steps are measured first
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, conflicts_with = "resume")]
    pub(crate) time: Option<Duration>,
    /// Labelled images; with --probe-test, nearest neighbours are measured every eval.every epochs; a
    /// resumed run need not be told again
    #[arg(long, value_name = "PACK", requires = "probe_test")]
    pub(crate) probe_train: Option<PathBuf>,
    /// Labelled images whose labels those of --probe-train are to tell
    #[arg(long, value_name = "PACK", requires = "probe_train")]
    pub(crate) probe_test: Option<PathBuf>,
    /// Go on from the newest checkpoint of the run
    #[arg(long)]
    pub(crate) resume: bool,
    /// Begin with this backbone: a run's, or that in a file of any program that `eval` reads. Heads
    /// are new; the bank is filled from features unless --set bank.init=random; a resumed run need not
    /// be told again
    #[arg(long, value_name = "RUN|FILE.safetensors|FILE.pth")]
    pub(crate) init_weights: Option<String>,
    /// Command of the shell that gets each line of metrics.jsonl on its standard input, such as a script
    /// for a tracker of experiments; it neither holds the training up nor ends it
    #[arg(long, value_name = "COMMAND")]
    pub(crate) log_command: Option<String>,
    /// How long a rank waits for the others before all end
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "10m")]
    pub(crate) rank_timeout: Duration,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Debug, Args)]
pub(crate) struct StudyArgs {
    /// A built-in study (lambda, permutations, negatives, transforms, layers, invariance, methods, or
    /// paper: all of them), or a file
    #[arg(value_name = "NAME|FILE.toml")]
    pub(crate) study: String,
    /// Images to train on
    #[arg(long, value_name = "PACK")]
    pub(crate) data: PathBuf,
    /// Labelled images to learn from; may be repeated, for measures of data = 1, 2, ...
    #[arg(long, value_name = "PACK")]
    pub(crate) probe_train: Vec<PathBuf>,
    /// Labelled images to be judged by, one for each --probe-train
    #[arg(long, value_name = "PACK")]
    pub(crate) probe_test: Vec<PathBuf>,
    /// Images with objects that detectors learn from; without it, what a study says of detection is left
    /// out
    #[arg(long, value_name = "PACK", requires = "detect_test")]
    pub(crate) detect_train: Option<PathBuf>,
    /// Images with objects that detectors are judged by
    #[arg(long, value_name = "PACK", requires = "detect_train")]
    pub(crate) detect_test: Option<PathBuf>,
    /// Folder of the study; run again, it goes on with what is missing
    #[arg(long, value_name = "STUDY")]
    pub(crate) out: PathBuf,
    /// Recipe of the runs, instead of the study's and its budget
    #[arg(long, value_name = "NAME|FILE.toml")]
    pub(crate) recipe: Option<String>,
    /// Change a setting of all runs; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) settings: Vec<Setting>,
    /// Seeds of the runs, instead of the study's
    #[arg(long, value_name = "SEED,...", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(0..=i64::MAX as u64))]
    pub(crate) seeds: Vec<u64>,
    /// cpu, cuda:N, or several with commas: runs take them in turn
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
    /// Runs at the same time, which share the cores; by default one a device, or on a CPU one for each of
    /// up to four cores
    #[arg(long, value_name = "COUNT", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=256))]
    pub(crate) jobs: Option<usize>,
    /// Give every run as many epochs as make all of them fit into this time, such as 8h
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) time: Option<Duration>,
    /// Say what there is to do, how long it takes and what room it needs, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print one JSON object on standard output
    #[arg(long)]
    pub(crate) json: bool,
}
