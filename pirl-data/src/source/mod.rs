//! Where samples come from before they are packed.
//!
//! The MNIST and CIFAR readers are our own: those of candle-datasets 0.11 want files already
//! unzipped, hold every image as `f32`, check no length against the header and no label against the
//! classes. Its download of Fashion-MNIST is used, behind the feature `hub`.

mod cifar;
mod fetch;
mod idx;
mod image_folder;
mod list;
mod voc;
mod voc_xml;

use std::borrow::Cow;
use std::fmt;

use pirl_core::SettingError;

use crate::{DataError, Objects, Skipped};

pub use cifar::Cifar;
pub use fetch::{fetch_cifar10, fetch_fashion_mnist};
pub use idx::Idx;
pub use image_folder::ImageFolder;
pub use list::List;
pub use voc::Voc;

/// How the bytes of a sample become pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// A JPEG file.
    Jpeg,
    /// A PNG file.
    Png,
    /// Of a whole pack: JPEG and PNG files mixed; the first bytes of each sample say which it is.
    Mixed,
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

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jpeg => f.write_str("jpeg"),
            Self::Png => f.write_str("png"),
            Self::Mixed => f.write_str("mixed"),
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

/// Reads an image file. Its encoding is found from its first bytes, not from its name.
fn read_image_file(
    path: &std::path::Path,
    name: String,
    label: Option<u32>,
) -> Result<RawSample<'static>, DataError> {
    let bytes = std::fs::read(path).map_err(DataError::io("read", path))?;
    match crate::decode::sniff(&bytes) {
        Some(encoding) => Ok(RawSample {
            name,
            bytes: Cow::Owned(bytes),
            encoding,
            label,
            objects: None,
        }),
        None => Err(DataError::Decode {
            name,
            reason: format!(
                "neither JPEG nor PNG: {} bytes that begin with \"{}\"",
                bytes.len(),
                bytes.get(..12).unwrap_or(&bytes).escape_ascii()
            ),
        }),
    }
}

/// One class name a line; `None` when there is no such file.
fn read_class_names(path: &std::path::Path) -> Result<Option<Vec<String>>, DataError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(
            text.lines()
                .map(|line| line.trim().to_owned())
                .filter(|line| !line.is_empty())
                .collect(),
        )),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(DataError::io("read", path)(error)),
    }
}
