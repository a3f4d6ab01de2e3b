//! Which reader a format has, and what its parts are called.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use pirl_core::SettingError;

use super::part::Shares;
use super::{
    Annotated, Cifar, Columns, Idx, ImageFolder, Joined, Labels, List, Part, Source, Split,
    WebDataset,
};
use crate::DataError;

/// The formats that [`open_source`] knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceFormat {
    /// [`ImageFolder`]
    ImageFolder,
    /// [`List`]
    List,
    /// [`Idx`]
    Mnist,
    /// [`Cifar::ten`]
    Cifar10,
    /// [`Cifar::hundred`]
    Cifar100,
    /// [`Annotated::voc`]
    Voc,
    /// [`Annotated::coco`]
    Coco,
    /// [`Annotated::yolo`]
    Yolo,
    /// [`Annotated::cvat`]
    Cvat,
    /// [`WebDataset`]
    WebDataset,
    /// `Parquet`, in a build with the feature `parquet`
    Parquet,
}

impl SourceFormat {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::ImageFolder,
        Self::List,
        Self::Mnist,
        Self::Cifar10,
        Self::Cifar100,
        Self::Voc,
        Self::Coco,
        Self::Yolo,
        Self::Cvat,
        Self::WebDataset,
        Self::Parquet,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::ImageFolder => "image-folder",
            Self::List => "list",
            Self::Mnist => "mnist",
            Self::Cifar10 => "cifar10",
            Self::Cifar100 => "cifar100",
            Self::Voc => "voc",
            Self::Coco => "coco",
            Self::Yolo => "yolo",
            Self::Cvat => "cvat",
            Self::WebDataset => "webdataset",
            Self::Parquet => "parquet",
        }
    }

    /// What it is, in a few words.
    pub fn title(self) -> &'static str {
        match self {
            Self::ImageFolder => "Image files, in a sub-folder for each class or in none",
            Self::List => "A text file or CSV: a path a line, with a label or none",
            Self::Mnist => "IDX files, as of MNIST and Fashion-MNIST, zipped or not",
            Self::Cifar10 | Self::Cifar100 => "The binary version",
            Self::Voc => {
                "PASCAL VOC 2007 and 2012, and all sets of an XML file an image, as LabelImg writes them"
            }
            Self::Coco => "The JSON file of COCO's instances",
            Self::Yolo => "A text file an image, as YOLO's programs have them",
            Self::Cvat => "The XML file of CVAT for images 1.1",
            Self::WebDataset => "Tar archives in WebDataset's layout, or a folder of them",
            Self::Parquet => "Parquet files with a column of images, as Hugging Face has them",
        }
    }
}

impl FromStr for SourceFormat {
    type Err = SettingError;

    fn from_str(name: &str) -> Result<Self, SettingError> {
        let mut all = Self::ALL.into_iter();
        all.find(|format| format.name() == name).ok_or_else(|| {
            let known = format!("must be one of {}", Self::ALL.map(Self::name).join(", "));
            SettingError::new("format", name, known)
        })
    }
}

/// What else decides what [`open_source`] reads.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SourceOptions {
    /// The part of the set: `train` or `test` of sets that are published in two; of image folders and YOLO
    /// a sub-folder; of Parquet files the part that their names begin with; of VOC an image set, the path of a list, or `all`; of each format shares such as
    /// `80/20`, of which the first is read, and with `80/20:test` the second.
    pub split: Option<String>,
    /// Seed of a split by shares.
    pub seed: u64,
    /// Whether sub-folders of an image folder are classes.
    pub labels: Labels,
    /// The columns of a list or of Parquet files.
    pub columns: Columns,
    /// The folder of the images of COCO's and CVAT's files.
    pub images: Option<PathBuf>,
}

/// Opens the source of a format; several inputs become one, in their order.
///
/// # Errors
/// Those of the readers; [`DataError::Setting`] for a split that the format does not have, or when it needs
/// one; [`DataError::Shards`] when the inputs cannot be put together.
pub fn open_source(
    format: SourceFormat,
    inputs: &[PathBuf],
    options: &SourceOptions,
) -> Result<Box<dyn Source>, DataError> {
    let shares = match &options.split {
        Some(split) => Shares::parse(split)?,
        None => None,
    };
    let whole = SourceOptions {
        split: match shares {
            Some(_) => match format {
                SourceFormat::Voc => Some("all".to_owned()),
                SourceFormat::Mnist | SourceFormat::Cifar10 | SourceFormat::Cifar100 => {
                    Some("train".to_owned())
                }
                _ => None,
            },
            None => options.split.clone(),
        },
        ..options.clone()
    };
    let source = match (format, inputs) {
        (SourceFormat::Voc, inputs) => Box::new(Annotated::voc(inputs, needed(&whole, VOC)?)?),
        (_, [input]) => one(format, input, &whole)?,
        (_, inputs) => {
            let sources = inputs.iter().map(|input| one(format, input, &whole));
            Box::new(Joined::new(sources.collect::<Result<_, _>>()?)?)
        }
    };
    Ok(match shares {
        Some(Shares { train, which }) => Box::new(Part::new(source, train, which, options.seed)?),
        None => source,
    })
}

const VOC: &str = "must be an image set such as trainval or test, the path of a list, all, or shares such \
                   as 80/20";

fn needed<'a>(options: &'a SourceOptions, expected: &str) -> Result<&'a str, SettingError> {
    let split = options.split.as_deref();
    split.ok_or_else(|| SettingError::new("split", "absent", expected))
}

fn one(
    format: SourceFormat,
    input: &Path,
    options: &SourceOptions,
) -> Result<Box<dyn Source>, DataError> {
    let two = || -> Result<Split, DataError> { needed(options, "must be train or test")?.parse() };
    let no_split = || match &options.split {
        Some(split) => {
            let expected = "must be absent, or shares such as 80/20: this format has no parts";
            Err(SettingError::new("split", split, expected))
        }
        None => Ok(()),
    };
    let images = options.images.as_deref();
    Ok(match format {
        SourceFormat::ImageFolder => match &options.split {
            Some(name) => Box::new(ImageFolder::labelled(input.join(name), options.labels)?),
            None => Box::new(ImageFolder::labelled(input, options.labels)?),
        },
        SourceFormat::List => {
            no_split()?;
            Box::new(List::with_columns(input, &options.columns)?)
        }
        SourceFormat::Mnist => Box::new(Idx::open(input, two()?)?),
        SourceFormat::Cifar10 => Box::new(Cifar::ten(input, two()?)?),
        SourceFormat::Cifar100 => Box::new(Cifar::hundred(input, two()?)?),
        SourceFormat::Voc => Box::new(Annotated::voc(&[input], needed(options, VOC)?)?),
        SourceFormat::Coco => {
            no_split()?;
            Box::new(Annotated::coco(input, images)?)
        }
        SourceFormat::Yolo => Box::new(Annotated::yolo(input, options.split.as_deref())?),
        SourceFormat::Cvat => {
            no_split()?;
            Box::new(Annotated::cvat(input, images)?)
        }
        SourceFormat::WebDataset => {
            no_split()?;
            Box::new(WebDataset::open(input)?)
        }
        #[cfg(feature = "parquet")]
        SourceFormat::Parquet => {
            let split = options.split.as_deref();
            Box::new(super::Parquet::open(input, split, &options.columns)?)
        }
        #[cfg(not(feature = "parquet"))]
        SourceFormat::Parquet => {
            let expected =
                "needs a build with the feature parquet (cargo install ... --features parquet)";
            return Err(SettingError::new("format", "parquet", expected).into());
        }
    })
}
