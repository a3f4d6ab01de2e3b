//! Where samples come from before they are packed.
//!
//! The MNIST and CIFAR readers are our own: those of candle-datasets 0.11 want files already
//! unzipped, hold every image as `f32`, check no length against the header and no label against the
//! classes, and its downloads bring an asynchronous runtime and a second TLS library.

mod cifar;
mod detection;
mod fetch;
mod files;
mod guess;
mod idx;
mod image_folder;
mod joined;
mod labels;
mod list;
mod open;
#[cfg(feature = "parquet")]
mod parquet;
mod part;
mod text;
mod webdataset;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use pirl_core::SettingError;
use xxhash_rust::xxh3::Xxh3;

use crate::{DataError, Objects, Skipped};

pub use cifar::Cifar;
pub use detection::Annotated;
pub use fetch::{fetch_cifar10, fetch_fashion_mnist};
pub(crate) use files::shown_ending;
pub use idx::Idx;
pub use image_folder::ImageFolder;
pub use joined::Joined;
pub use list::{Columns, List};
pub use open::{SourceFormat, SourceOptions, open_source};
#[cfg(feature = "parquet")]
pub use parquet::Parquet;
pub use part::Part;
pub use webdataset::WebDataset;

/// How the bytes of a sample become pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// A JPEG file.
    Jpeg,
    /// A PNG file.
    Png,
    /// A WebP file, lossy or lossless. Of an animation, which packing turns into a PNG or a JPEG, the first
    /// frame.
    WebP,
    /// A file of another format, which packing turns into a PNG or a JPEG.
    Other(OtherFormat),
    /// Of a whole pack: JPEG, PNG and WebP files mixed; the first bytes of each sample say which it is.
    Mixed,
    /// A grey PNG of an image's channels below each other, the first uppermost: how images of another number
    /// of channels than 3 are packed, so that any program can look at them.
    Planes {
        /// From 1 to [`Image::MAX_CHANNELS`](crate::Image::MAX_CHANNELS).
        channels: u32,
    },
    /// `height * width * channels` bytes, row by row, channels interleaved.
    Raw {
        /// Rows.
        height: u32,
        /// Columns.
        width: u32,
        /// 1 (grey) or 3 (red, green, blue).
        channels: u32,
    },
}

/// A format that is read and not packed: loading images in it again and again would be slow, or its files are
/// large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherFormat {
    /// Windows' bitmap.
    Bmp,
    /// TIFF, its first page.
    Tiff,
    /// GIF, its first frame.
    Gif,
    /// PBM, PGM, PPM and PAM.
    Pnm,
    /// The Quite OK Image format.
    Qoi,
    /// JPEG XL, in a build with the feature `jxl`; the first frame of an animation.
    JpegXl,
}

impl fmt::Display for OtherFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bmp => "bmp",
            Self::Tiff => "tiff",
            Self::Gif => "gif",
            Self::Pnm => "pnm",
            Self::Qoi => "qoi",
            Self::JpegXl => "jpeg xl",
        })
    }
}

/// Whether the sub-folders of an image folder are classes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Labels {
    /// They are when images lie in sub-folders alone.
    #[default]
    Auto,
    /// They are; images outside of them are left out.
    Folders,
    /// They are not: no image has a label.
    None,
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jpeg => f.write_str("jpeg"),
            Self::Png => f.write_str("png"),
            Self::WebP => f.write_str("webp"),
            Self::Other(format) => format.fmt(f),
            Self::Mixed => f.write_str("mixed"),
            Self::Planes { channels } => write!(f, "planes of {channels} channels"),
            Self::Raw {
                height,
                width,
                channels,
            } => write!(f, "raw {height} x {width} x {channels}"),
        }
    }
}

/// One image as its source stores it.
#[derive(Clone, Debug)]
pub struct RawSample<'a> {
    /// A name to find it by: a path inside the source, or a file and a number.
    pub name: String,
    /// The encoded image.
    pub bytes: Cow<'a, [u8]>,
    /// How to decode it; never [`Encoding::Mixed`].
    pub encoding: Encoding,
    /// Its class, an index into [`Source::class_names`].
    pub label: Option<u32>,
    /// The annotated objects in it, labelled like the images of other sources. `None` if the source
    /// does not annotate objects; an annotated image without objects has an empty list.
    pub objects: Option<Objects>,
}

/// An ordered set of images that can be packed.
///
/// The order is part of the contract: the same files give the same order on every machine.
/// Either all samples of a source have a label or none has, and so with objects; not both.
pub trait Source: Sync {
    /// How many samples there are.
    fn len(&self) -> usize;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Class names by label; empty when neither images nor objects are labelled.
    fn class_names(&self) -> &[String];

    /// Reads sample `index`; called from many threads at once.
    ///
    /// # Errors
    /// [`DataError::Decode`] when the sample is not an image at all (packing may skip it),
    /// [`DataError::Io`] when it cannot be read, [`DataError::Index`] past the end.
    fn read(&self, index: usize) -> Result<RawSample<'_>, DataError>;

    /// A description in one line, kept in the pack's metadata.
    fn describe(&self) -> String;

    /// What was left out when the source was opened; packing adds it to its report.
    fn skipped(&self) -> &[Skipped] {
        &[]
    }

    /// What was read, but not as it stands, or may not be what was meant; packing adds it to its report.
    fn notes(&self) -> &[Skipped] {
        &[]
    }

    /// How many files that are no images lie among them, by their endings.
    fn passed_over(&self) -> BTreeMap<String, usize> {
        BTreeMap::new()
    }

    /// Width and height that the annotation of sample `index` says its image has, if it says so. Boxes of
    /// an image that is turned by its Exif data are turned with it when they are those of the unturned
    /// image.
    fn annotated_size(&self, _index: usize) -> Option<(usize, usize)> {
        None
    }

    /// A number that is another once sample `index` has changed: its name, label, objects or file. A
    /// packing that resumes compares it; the default reads the sample.
    fn stamp(&self, index: usize) -> u128 {
        match self.read(index) {
            Ok(sample) => {
                let mut hash = Xxh3::new();
                hash.update(sample.name.as_bytes());
                hash.update(&sample.label.map_or(-1, i64::from).to_le_bytes());
                if let Some(objects) = &sample.objects {
                    objects.hash(&mut hash);
                }
                hash.update(&sample.bytes);
                hash.digest128()
            }
            Err(_) => 0,
        }
    }
}

/// The stamp of a sample that is a file: of its path, size and time, and of what is known of it besides.
fn stamp_file(path: &Path, label: Option<u32>, objects: Option<&Objects>) -> u128 {
    let mut hash = Xxh3::new();
    hash.update(path.as_os_str().as_encoded_bytes());
    if let Ok(metadata) = path.metadata() {
        hash.update(&metadata.len().to_le_bytes());
        let time = metadata.modified().ok();
        let time = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        hash.update(&time.map_or(0, |time| time.as_nanos()).to_le_bytes());
    }
    hash.update(&label.map_or(-1, i64::from).to_le_bytes());
    if let Some(objects) = objects {
        objects.hash(&mut hash);
    }
    hash.digest128()
}

/// Which part of a data set that is published in two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// The training images.
    Train,
    /// The test images.
    Test,
}

impl std::str::FromStr for Split {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        match name {
            "train" => Ok(Self::Train),
            "test" => Ok(Self::Test),
            _ => {
                let expected = "must be \"train\" or \"test\"";
                Err(SettingError::new("split", format!("{name:?}"), expected).into())
            }
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Test => "test",
        })
    }
}

/// One class name a line, in any encoding that [`text::decode`] reads; `None` when there is no such file.
fn read_class_names(path: &Path) -> Result<Option<Vec<String>>, DataError> {
    if !path.exists() {
        return Ok(None);
    }
    const FORMAT: &str = "class names";
    let bytes = text::read_bytes(path, 64 << 20, FORMAT)?;
    let text = text::decode(&bytes).map_err(|(line, reason)| DataError::Format {
        path: path.to_owned(),
        format: FORMAT,
        reason: format!("line {line}: {reason}"),
    })?;
    let lines = text.lines().map(|line| line.trim().to_owned());
    Ok(Some(lines.filter(|line| !line.is_empty()).collect()))
}
