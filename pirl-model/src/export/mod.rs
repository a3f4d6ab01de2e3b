//! Backbones written for other programs: an [`Exporter`] for each format.

mod detectron2;
mod hugging_face;
mod onnx;
mod timm;
mod torchvision;

use std::collections::HashMap;
use std::io;
use std::path::Path;

use candle_core::Tensor;
use pirl_core::file;

use crate::config::{ModelConfig, Stem};
use crate::error::{ModelError, Result};
use crate::resnet::ResNet;
use crate::weights::{self, PRECISE};

/// A backbone about to be written for another program, and what that program should know of it.
#[derive(Clone)]
pub struct Export<'a> {
    /// The network.
    pub backbone: &'a ResNet,
    /// On how many plain images its batch-norm statistics were computed; `None` if they are those of
    /// training.
    pub precise_batch_norm: Option<usize>,
    /// How it sees images.
    pub view: ExportView,
    /// A page that says what the weights are, in Markdown, for formats that are folders.
    pub card: &'a str,
}

/// How a network sees images: resized, cropped at the centre, and normalised.
#[derive(Clone, Debug, PartialEq)]
pub struct ExportView {
    /// Length of the shorter side after resizing, in pixels.
    pub resize: usize,
    /// Side of the centre crop, in pixels.
    pub crop: usize,
    /// Mean of each channel, of values in 0..=1.
    pub mean: Vec<f32>,
    /// Standard deviation of each channel, of values in 0..=1.
    pub std: Vec<f32>,
}

/// A format that backbones can be written in.
pub trait Exporter: Sync {
    /// Its name, as `pirl export --format` takes it.
    fn name(&self) -> &'static str;

    /// What it is, in a line.
    fn title(&self) -> &'static str;

    /// An error unless the format can hold the network of `config`.
    ///
    /// # Errors
    /// [`ModelError::NotExportable`], which names what it cannot hold and the way out.
    fn check(&self, config: &ModelConfig) -> Result<()>;

    /// Writes the file or folder `output`, whole or not at all, and returns how many tensors it has. A folder
    /// must not exist.
    ///
    /// # Errors
    /// As [`Exporter::check`]; [`ModelError::Io`].
    fn write(&self, export: &Export<'_>, output: &Path) -> Result<usize>;

    /// How the other program reads `output`: lines of Python.
    fn usage(&self, export: &Export<'_>, output: &Path) -> String;
}

/// All formats.
pub fn exporters() -> [&'static dyn Exporter; 5] {
    [
        &torchvision::Torchvision,
        &detectron2::Detectron2,
        &timm::Timm,
        &hugging_face::HuggingFace,
        &onnx::Onnx,
    ]
}

/// The format called `name`.
pub fn exporter(name: &str) -> Option<&'static dyn Exporter> {
    exporters().into_iter().find(|format| format.name() == name)
}

/// An error unless the stem is torchvision's, the only one of `format`.
fn only_imagenet_stem(format: &'static str, config: &ModelConfig) -> Result<()> {
    if config.stem == Stem::Imagenet {
        return Ok(());
    }
    let reason = "its ResNets begin with a 7x7 convolution and a max-pool (model.stem = imagenet)";
    Err(refused(format, config, reason))
}

fn refused(format: &'static str, config: &ModelConfig, reason: &str) -> ModelError {
    ModelError::NotExportable {
        format,
        network: config.network(),
        reason: reason.to_owned(),
    }
}

/// Files of a folder, each by its name.
type Files<'a> = [(&'a str, &'a [u8])];

/// Writes a folder with `model.safetensors` and `files`, whole or not at all.
fn write_folder(
    folder: &Path,
    export: &Export<'_>,
    tensors: &HashMap<String, Tensor>,
    files: &Files<'_>,
) -> Result<()> {
    let failed = |source| ModelError::Io {
        path: folder.to_owned(),
        source,
    };
    if folder.exists() {
        let reason = "it exists already; name a folder that does not, or remove it";
        return Err(failed(io::Error::other(reason)));
    }
    // What PyTorch's libraries look for.
    let mut notes = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    notes.extend(
        export
            .precise_batch_norm
            .map(|images| (PRECISE.to_owned(), images.to_string())),
    );
    let written: Result<(), Failed> = file::write_folder(folder, |aside| {
        weights::save(&aside.join("model.safetensors"), tensors, Some(notes))?;
        for (name, content) in files {
            file::write(&aside.join(name), content)?;
        }
        Ok(())
    });
    written.map_err(|error| match error {
        Failed::Io(source) => failed(source),
        Failed::Model(error) => error,
    })
}

enum Failed {
    Io(io::Error),
    Model(ModelError),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<ModelError> for Failed {
    fn from(error: ModelError) -> Self {
        Self::Model(error)
    }
}

/// Numbers as JSON files have them: 0.485, and not the nearest `f32` to it with all digits.
fn decimal(values: &[f32]) -> Vec<f64> {
    let decimal = |value: &f32| value.to_string().parse().unwrap_or(f64::from(*value));
    values.iter().map(decimal).collect()
}

/// A JSON file's text.
fn json(value: &serde_json::Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}
