//! State dicts: weights in and out, under torchvision's names.

mod fill;
pub(crate) mod load;
mod names;
mod pickle;
mod pth;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::config::ModelConfig;
use crate::error::{ModelError, Result};
use crate::onnx::OnnxFile;
use crate::trainable::Trainable;
use load::shapes;
use pth::Pth;

pub use fill::Filled;
pub(crate) use names::{Names, Shapes, infer};

/// Saves modules in one safetensors file, each under its prefix (empty, or ending in a dot).
/// The file is written under another name, synced and renamed: it is complete, or as it was.
///
/// # Errors
/// [`ModelError::Io`].
pub fn save_state_dict(path: &Path, modules: &[(&str, &dyn Trainable)]) -> Result<()> {
    save_tensors(path, &state_dict(modules)?)
}

/// The tensors of modules, each under its prefix (empty, or ending in a dot).
///
/// # Errors
/// Only if Candle cannot copy a tensor.
pub fn state_dict(modules: &[(&str, &dyn Trainable)]) -> Result<HashMap<String, Tensor>> {
    let mut state = HashMap::new();
    for (prefix, module) in modules {
        let own = module.state()?.into_iter();
        state.extend(own.map(|(name, tensor)| (format!("{prefix}{name}"), tensor)));
    }
    Ok(state)
}

/// Saves `f32`, `f64`, `i64`, `u32` and `u8` tensors in a safetensors file. It is written under
/// another name, synced and renamed: it is complete, or as it was.
///
/// # Errors
/// [`ModelError::Io`]; no partial file is left.
pub fn save_tensors(path: &Path, tensors: &HashMap<String, Tensor>) -> Result<()> {
    save(path, tensors, None)
}

/// As [`save_tensors`], of a backbone: notes in the file's metadata on how many plain images its
/// batch-norm statistics were computed, which [`read_backbone`] returns; `None` if they are those of
/// training.
///
/// # Errors
/// [`ModelError::Io`]; nothing is left behind.
pub fn save_backbone(
    path: &Path,
    tensors: &HashMap<String, Tensor>,
    precise_batch_norm: Option<usize>,
) -> Result<()> {
    let note = |images: usize| HashMap::from([(PRECISE.to_owned(), images.to_string())]);
    save(path, tensors, precise_batch_norm.map(note))
}

/// Key of the metadata of a backbone with precise batch-norm statistics: the number of images.
pub(crate) const PRECISE: &str = "precise_batch_norm";

/// As [`save_tensors`], with `metadata`.
pub(crate) fn save(
    path: &Path,
    tensors: &HashMap<String, Tensor>,
    metadata: Option<HashMap<String, String>>,
) -> Result<()> {
    let mut entries = BTreeMap::new();
    for (name, tensor) in tensors {
        entries.insert(name, (tensor.dims().to_vec(), bytes(tensor)?));
    }
    let mut views = Vec::with_capacity(entries.len());
    for (name, (shape, (dtype, bytes))) in &entries {
        let view = TensorView::new(*dtype, shape.clone(), bytes).map_err(|e| format(path, &e))?;
        views.push((name.as_str(), view));
    }
    let file = safetensors::serialize(views, metadata).map_err(|e| format(path, &e))?;
    pirl_core::file::write(path, &file).map_err(|source| ModelError::Io {
        path: path.to_owned(),
        source,
    })
}

fn bytes(tensor: &Tensor) -> Result<(Dtype, Vec<u8>)> {
    let flat = tensor.flatten_all()?;
    macro_rules! le {
        ($t:ty) => {
            flat.to_vec1::<$t>()?
                .iter()
                .flat_map(|x| x.to_le_bytes())
                .collect()
        };
    }
    Ok(match tensor.dtype() {
        DType::F64 => (Dtype::F64, le!(f64)),
        DType::I64 => (Dtype::I64, le!(i64)),
        DType::U32 => (Dtype::U32, le!(u32)),
        DType::U8 => (Dtype::U8, flat.to_vec1()?),
        _ => {
            let flat = flat.to_dtype(DType::F32)?;
            let bytes = flat
                .to_vec1::<f32>()?
                .iter()
                .flat_map(|x| x.to_le_bytes())
                .collect();
            (Dtype::F32, bytes)
        }
    })
}

/// Reads every tensor of a safetensors file into memory, on the CPU.
///
/// # Errors
/// [`ModelError::Io`], or [`ModelError::Format`] for anything but a whole safetensors file.
pub fn load_state_dict(path: &Path) -> Result<HashMap<String, Tensor>> {
    let data = read(path)?;
    candle_core::safetensors::load_buffer(&data, &Device::Cpu).map_err(|e| format(path, &e))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|source| ModelError::Io {
        path: path.to_owned(),
        source,
    })
}

fn format(path: &Path, error: &dyn std::fmt::Display) -> ModelError {
    ModelError::Format {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

/// The entries of `state` under `prefix`, without it.
pub fn strip_prefix(state: &HashMap<String, Tensor>, prefix: &str) -> HashMap<String, Tensor> {
    let stripped = |(name, tensor): (&String, &Tensor)| {
        Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()))
    };
    state.iter().filter_map(stripped).collect()
}

/// The backbone found in a file of weights, by [`read_backbone`].
#[derive(Debug)]
pub struct BackboneWeights {
    /// Its tensors, under torchvision's names.
    pub state: HashMap<String, Tensor>,
    /// The network they are of: its `arch`, `width`, `stem` and `channels`; the rest is the default.
    pub config: ModelConfig,
    /// What their names begin with in the file; empty, or ending in a dot.
    pub prefix: String,
    /// What the names of other ResNets in the file begin with: a teacher, a key encoder.
    pub others: Vec<String>,
    /// The file's other tensors: heads, a classifier, a memory bank, an optimiser's state.
    pub left_over: Vec<String>,
    /// On how many plain images its batch-norm statistics were computed, if [`save_backbone`] noted so.
    pub precise_batch_norm: Option<usize>,
    /// Whether its batch norms were folded into its convolutions, as in an ONNX file. In evaluation mode the
    /// network does what it did; trained, or with other statistics, it would be another.
    pub folded: bool,
}

/// Finds a ResNet in a file of weights and reads it, on the CPU.
///
/// The file is safetensors, or (by its ending `.pth`, `.pt`, `.pth.tar`, `.ckpt`, `.torch` or `.bin`)
/// what `torch.save` wrote of a state dict, however deep in other dictionaries: the names of tensors
/// are then the keys on the way to them, joined by dots. The backbone is where names end in
/// torchvision's (or timm's, which are the same), whatever they begin with: VISSL's
/// `classy_state_dict.base_model.model.trunk._feature_blocks.`, PyContrast's `model.module.encoder.`,
/// MoCo's `state_dict.module.encoder_q.`, `module.` of `DataParallel`; or in detectron2's
/// (`stem.conv1.weight`, `res2.0.conv1.weight`, ...); or in transformers'
/// (`encoder.stages.0.layers.0.layer.0.convolution.weight`). An `.onnx` file is one that [`Exporter`](crate::Exporter)
/// `onnx` wrote. A momentum encoder beside it is passed over.
///
/// Nothing in a file is ever run: a pickle that names a function or class which is no part of a state
/// dict is refused.
///
/// # Errors
/// [`ModelError::Io`], [`ModelError::Format`], [`ModelError::Pth`] or [`ModelError::Onnx`] for a file that
/// cannot be read;
/// [`ModelError::NoBackbone`] if it holds none, several, or a network that this crate does not have;
/// [`ModelError::NotFinite`] if a weight is no finite number.
pub fn read_backbone(path: &Path) -> Result<BackboneWeights> {
    read_backbone_under(path, None)
}

/// As [`read_backbone`], of a file with several: the one whose names begin with `prefix`, with or without
/// the dot at its end.
///
/// # Errors
/// As [`read_backbone`].
pub fn read_backbone_under(path: &Path, prefix: Option<&str>) -> Result<BackboneWeights> {
    let no_backbone = |reason: String| ModelError::NoBackbone {
        path: path.to_owned(),
        reason,
    };
    let file = WeightsFile::open(path)?;
    let all = file.shapes();
    let (place, others) = names::find(&all, prefix).map_err(no_backbone)?;
    let (mut own, mut left_over) = (BTreeMap::new(), Vec::new());
    for (name, shape) in all {
        match place.torchvision_name(&name) {
            Some(torchvision) => drop(own.insert(torchvision, (name, shape))),
            None => left_over.push(name),
        }
    }
    let shapes = own
        .iter()
        .map(|(name, (_, shape))| (name.clone(), shape.clone()));
    let config = names::infer(&shapes.collect()).map_err(no_backbone)?;
    let mut tensors = file.read(own.values().map(|(name, _)| name.as_str()))?;
    for (name, tensor) in &tensors {
        if !is_finite(tensor)? {
            return Err(ModelError::NotFinite {
                path: path.to_owned(),
                name: name.clone(),
            });
        }
    }
    let state = own
        .into_iter()
        .filter_map(|(torchvision, (name, _))| Some((torchvision, tensors.remove(&name)?)))
        .collect();
    Ok(BackboneWeights {
        state,
        config,
        prefix: place.prefix,
        others,
        left_over,
        precise_batch_norm: file.precise_batch_norm(),
        folded: matches!(file, WeightsFile::Onnx(_)),
    })
}

/// Whether every number is finite.
fn is_finite(tensor: &Tensor) -> Result<bool> {
    if !tensor.dtype().is_float() {
        return Ok(true);
    }
    let numbers = tensor
        .flatten_all()?
        .to_dtype(DType::F32)?
        .to_vec1::<f32>()?;
    Ok(numbers.iter().all(|number| number.is_finite()))
}

/// The tensors of a backbone under other names, from torchvision's. Tensors of no backbone are left out.
pub(crate) fn renamed(state: HashMap<String, Tensor>, names: Names) -> HashMap<String, Tensor> {
    let renamed = |(name, tensor): (String, Tensor)| Some((names.of_torchvision(&name)?, tensor));
    state.into_iter().filter_map(renamed).collect()
}

/// A file of weights, whose names and shapes are known before its numbers are read.
enum WeightsFile {
    Safetensors {
        state: HashMap<String, Tensor>,
        precise_batch_norm: Option<usize>,
    },
    Pth(Pth),
    Onnx(OnnxFile),
}

impl WeightsFile {
    fn open(path: &Path) -> Result<Self> {
        const PYTORCH: [&str; 6] = ["pth", "pt", "tar", "ckpt", "torch", "bin"];
        let ending = path.extension().and_then(|ending| ending.to_str());
        Ok(match ending {
            Some(ending) if PYTORCH.contains(&ending) => Self::Pth(Pth::open(path)?),
            Some("onnx") => Self::Onnx(OnnxFile::read(path, &read(path)?)?),
            _ => {
                let data = read(path)?;
                let (_, header) =
                    SafeTensors::read_metadata(&data).map_err(|e| format(path, &e))?;
                let note = header
                    .metadata()
                    .as_ref()
                    .and_then(|notes| notes.get(PRECISE));
                Self::Safetensors {
                    precise_batch_norm: note.and_then(|images| images.parse().ok()),
                    state: candle_core::safetensors::load_buffer(&data, &Device::Cpu)
                        .map_err(|e| format(path, &e))?,
                }
            }
        })
    }

    fn precise_batch_norm(&self) -> Option<usize> {
        match self {
            Self::Safetensors {
                precise_batch_norm, ..
            } => *precise_batch_norm,
            Self::Onnx(onnx) => onnx.precise_batch_norm,
            Self::Pth(_) => None,
        }
    }

    fn shapes(&self) -> Shapes {
        match self {
            Self::Safetensors { state, .. } | Self::Onnx(OnnxFile { state, .. }) => shapes(state),
            Self::Pth(pth) => {
                let shape = |(name, shape): (&str, &[usize])| (name.to_owned(), shape.to_vec());
                pth.shapes().map(shape).collect()
            }
        }
    }

    fn read<'a>(&self, names: impl Iterator<Item = &'a str>) -> Result<HashMap<String, Tensor>> {
        match self {
            Self::Safetensors { state, .. } | Self::Onnx(OnnxFile { state, .. }) => Ok(names
                .filter_map(|name| Some((name.to_owned(), state.get(name)?.clone())))
                .collect()),
            Self::Pth(pth) => pth.read(names),
        }
    }
}
