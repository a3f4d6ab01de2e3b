//! The features of a pack written to a file while they are computed, for other programs.
//!
//! Rows are in the pack's order. A file is written aside and renamed, so that it is whole or absent.

mod csv;
mod npy;
#[cfg(feature = "parquet")]
mod parquet;
mod safetensors;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use pirl_core::file;
use pirl_data::Pack;
use pirl_model::{Backbone, Layer};
use serde::Serialize;

use crate::error::{EvalError, Result};
use crate::extract::{Extraction, visit_features};
use crate::feature_set::LayerFeatures;
use crate::memory::feature_sizes;

/// A format of files of features. Names of images are those of the pack; of one without, none are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EmbedFormat {
    /// NumPy's: a `float32` array `(images, features)` of one layer. A table `FILE.labels.csv` beside it has
    /// the columns `index`, `label`, `class` and `name`.
    Npy,
    /// A line for each image: `index`, `label`, `class`, `name`, then `res5_0`, `res5_1`, ... of each layer.
    Csv,
    /// A tensor `(images, features)` for each layer, by its name, `labels` (I64; -1 for none), and `names` (U8,
    /// UTF-8) with `name_offsets` (U64, one more than images), as in a pack. The metadata has `class_names`, a
    /// JSON list, and the notes.
    Safetensors,
    /// A row for each image: `index`, `label`, `class`, `name`, and for each layer a list of floats. The file's
    /// metadata has the notes. With the feature `parquet`.
    Parquet,
}

impl EmbedFormat {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Npy, Self::Csv, Self::Safetensors, Self::Parquet];

    /// Its name, which is the ending of its files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Npy => "npy",
            Self::Csv => "csv",
            Self::Safetensors => "safetensors",
            Self::Parquet => "parquet",
        }
    }

    /// The format of the file `path`, by its ending.
    ///
    /// # Errors
    /// [`EvalError::EmbedFile`] for an ending that no format has, or for Parquet without the feature
    /// `parquet`.
    pub fn of(path: &Path) -> Result<Self> {
        let refused = |reason: String| EvalError::EmbedFile {
            path: path.to_owned(),
            reason,
        };
        let ending = path.extension().unwrap_or_default().to_string_lossy();
        let ending = ending.to_lowercase();
        match Self::ALL.into_iter().find(|format| format.name() == ending) {
            Some(Self::Parquet) if cfg!(not(feature = "parquet")) => Err(refused(
                "this program was built without Parquet: build it with --features parquet, or write \
                 .safetensors, .npy or .csv"
                    .to_owned(),
            )),
            Some(format) => Ok(format),
            None => Err(refused(
                "its ending says the format, which must be .npy, .csv, .safetensors or .parquet"
                    .to_owned(),
            )),
        }
    }
}

impl fmt::Display for EmbedFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What was written by [`embed`]. Displayed, it is a line that says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Embedded {
    /// The file.
    pub output: PathBuf,
    /// Its format.
    pub format: EmbedFormat,
    /// Images, which are rows.
    pub images: usize,
    /// Each layer with the number of its features.
    pub layers: BTreeMap<Layer, usize>,
    /// The table of labels beside the file, of a format that cannot hold them.
    pub labels: Option<PathBuf>,
}

impl fmt::Display for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layers = self.layers.iter();
        let layers: Vec<_> = layers
            .map(|(layer, dim)| format!("{dim} of {layer}"))
            .collect();
        let (output, layers) = (self.output.display(), layers.join(", "));
        write!(f, "{output}: {} images, {layers}", self.images)?;
        match &self.labels {
            Some(path) => write!(f, "; labels in {}", path.display()),
            None => Ok(()),
        }
    }
}

/// What a file says before its first row.
struct Header<'a> {
    /// Rows to come.
    images: usize,
    layers: &'a [(Layer, usize)],
    /// Of which the images, their classes and names are.
    pack: &'a Pack,
    /// Where the features are from: keys and values of the format's own metadata.
    notes: &'a [(&'a str, String)],
}

/// Features of neighbouring images.
struct Rows<'a> {
    /// The number of the first image.
    first: usize,
    /// In the header's order.
    layers: &'a [LayerFeatures],
    labels: &'a [Option<u32>],
    pack: &'a Pack,
}

impl Rows<'_> {
    fn class(&self, label: Option<u32>) -> Option<&str> {
        let class = self.pack.class_names().get(label? as usize);
        class.map(String::as_str)
    }

    /// The number of row `row`, its label, its class and, if the pack has names, its name, as text.
    fn describe(&self, row: usize) -> Vec<String> {
        let label = self.labels.get(row).copied().flatten();
        let number = self.first + row;
        let mut fields = vec![
            number.to_string(),
            label.map_or(String::new(), |label| label.to_string()),
            self.class(label).unwrap_or_default().to_owned(),
        ];
        if self.pack.has_names() {
            fields.push(self.pack.name(number).unwrap_or_default().to_owned());
        }
        fields
    }
}

/// The names of the columns of [`Rows::describe`].
fn columns(pack: &Pack) -> Vec<String> {
    let name = pack.has_names().then_some("name");
    let columns = ["index", "label", "class"].into_iter().chain(name);
    columns.map(str::to_owned).collect()
}

/// A file that rows are added to.
trait Sink {
    fn add(&mut self, rows: &Rows<'_>) -> std::io::Result<()>;

    /// Writes what is left.
    fn finish(self: Box<Self>) -> std::io::Result<()>;
}

/// Reads the features of every image of `pack` as [`extract_features`](crate::extract_features) does, and
/// writes them to `output` in the pack's order, in the format of its ending. `notes` say where they are
/// from, for formats that have a place for it. Calls `progress` with the images done and the images in all.
/// Memory holds one batch, however large the pack is; of Parquet a row group of 64 MiB.
///
/// # Errors
/// [`EvalError::EmbedFile`] for a format that cannot hold what is asked for, before any work;
/// [`EvalError::Write`], and those of [`extract_features`](crate::extract_features): there is no new file
/// then.
pub fn embed(
    backbone: &dyn Backbone,
    pack: &Pack,
    extraction: &Extraction,
    notes: &[(&str, String)],
    output: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Embedded> {
    let format = EmbedFormat::of(output)?;
    let sizes = feature_sizes(backbone, extraction)?;
    let layers: Vec<_> = sizes
        .into_iter()
        .map(|(layer, dim, _)| (layer, dim))
        .collect();
    if let (EmbedFormat::Npy, [_, _, ..]) = (format, &layers[..]) {
        return Err(EvalError::EmbedFile {
            path: output.to_owned(),
            reason: "an .npy file holds one array: ask for one layer by one pooling, or write .safetensors"
                .to_owned(),
        });
    }
    let header = Header {
        images: pack.len(),
        layers: &layers,
        pack,
        notes,
    };
    let labels = (format == EmbedFormat::Npy).then(|| output.with_extension("labels.csv"));
    if let Some(path) = &labels {
        written(path, |file| npy::write_labels(file, pack))?;
    }
    written(output, |file| {
        let mut sink: Box<dyn Sink + '_> = match format {
            EmbedFormat::Npy => Box::new(npy::Npy::begin(file, &header)?),
            EmbedFormat::Csv => Box::new(csv::Csv::begin(file, &header)?),
            EmbedFormat::Safetensors => Box::new(safetensors::Safetensors::begin(file, &header)?),
            #[cfg(feature = "parquet")]
            EmbedFormat::Parquet => Box::new(parquet::Parquet::begin(file, &header)?),
            #[cfg(not(feature = "parquet"))]
            EmbedFormat::Parquet => return Ok(()), // refused by `EmbedFormat::of`
        };
        let mut first = 0;
        visit_features(backbone, pack, extraction, &mut |layers, labels| {
            let rows = Rows {
                first,
                layers: &layers,
                labels: &labels,
                pack,
            };
            sink.add(&rows).map_err(|error| failed(output, error))?;
            first += labels.len();
            progress(first, header.images);
            Ok(())
        })?;
        Ok(sink.finish()?)
    })?;
    Ok(Embedded {
        output: output.to_owned(),
        format,
        images: header.images,
        layers: layers.into_iter().collect(),
        labels,
    })
}

/// Writes the file `path`, whole or not at all.
fn written(path: &Path, write: impl FnOnce(&mut File) -> Result<(), Failed>) -> Result<()> {
    file::write_with(path, write).map_err(|error| match error {
        Failed::Write(error) => failed(path, error),
        Failed::Read(error) => error,
    })
}

fn failed(path: &Path, error: std::io::Error) -> EvalError {
    EvalError::Write {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

/// Why there is no file.
enum Failed {
    Write(std::io::Error),
    Read(EvalError),
}

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Self {
        Self::Write(error)
    }
}

impl From<EvalError> for Failed {
    fn from(error: EvalError) -> Self {
        Self::Read(error)
    }
}
