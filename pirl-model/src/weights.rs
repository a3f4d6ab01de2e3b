//! State dicts: weights in and out, under torchvision's names.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, TensorView};

use crate::error::{ModelError, Result};
use crate::params::{Buffers, ParamSet};

/// What became of the entries of a state dict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Names loaded.
    pub matched: Vec<String>,
    /// Names the network has and the state dict lacks; these kept their values.
    pub missing: Vec<String>,
    /// Names the state dict has and the network lacks.
    pub unexpected: Vec<String>,
}

/// Saves modules in one safetensors file, each under its prefix (empty, or ending in a dot).
/// The file is whole or untouched: it is written beside, synced and renamed.
///
/// # Errors
/// [`ModelError::Io`].
pub fn save_state_dict(path: &Path, modules: &[(&str, &ParamSet, &Buffers)]) -> Result<()> {
    save_tensors(path, &state_dict(modules)?)
}

/// The tensors of modules, each under its prefix (empty, or ending in a dot).
///
/// # Errors
/// Only if Candle cannot copy a tensor.
pub fn state_dict(modules: &[(&str, &ParamSet, &Buffers)]) -> Result<HashMap<String, Tensor>> {
    let mut state = HashMap::new();
    for (prefix, params, buffers) in modules {
        for param in params.params() {
            state.insert(format!("{prefix}{}", param.name), params.get(&param.name)?);
        }
        for (name, tensor) in buffers.entries()? {
            state.insert(format!("{prefix}{name}"), tensor);
        }
    }
    Ok(state)
}

/// Saves `f32`, `f64`, `i64`, `u32` and `u8` tensors in a safetensors file, which is whole or
/// untouched: it is written beside, synced and renamed.
///
/// # Errors
/// [`ModelError::Io`]; nothing is left behind.
pub fn save_tensors(path: &Path, tensors: &HashMap<String, Tensor>) -> Result<()> {
    let mut entries = BTreeMap::new();
    for (name, tensor) in tensors {
        entries.insert(name, (tensor.dims().to_vec(), bytes(tensor)?));
    }
    let mut views = Vec::with_capacity(entries.len());
    for (name, (shape, (dtype, bytes))) in &entries {
        let view = TensorView::new(*dtype, shape.clone(), bytes).map_err(|e| format(path, &e))?;
        views.push((name.as_str(), view));
    }
    let file = safetensors::serialize(views, None).map_err(|e| format(path, &e))?;
    let mut aside = path.as_os_str().to_owned();
    aside.push(".tmp");
    let aside = Path::new(&aside);
    let write = || -> std::io::Result<()> {
        let mut out = File::create(aside)?;
        out.write_all(&file)?;
        out.sync_all()?;
        fs::rename(aside, path)
    };
    write().map_err(|source| {
        // The error to report is the first one; a file that cannot be removed adds nothing to it.
        let _ = fs::remove_file(aside);
        ModelError::Io {
            path: path.to_owned(),
            source,
        }
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
    let data = fs::read(path).map_err(|source| ModelError::Io {
        path: path.to_owned(),
        source,
    })?;
    candle_core::safetensors::load_buffer(&data, &Device::Cpu).map_err(|e| format(path, &e))
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

/// Checks every shape, then loads.
pub(crate) fn load_into(
    state: &HashMap<String, Tensor>,
    params: &ParamSet,
    buffers: &Buffers,
) -> Result<LoadReport> {
    let params_of = params
        .params()
        .iter()
        .map(|p| (p.name.clone(), p.shape.clone()));
    let expected: Vec<_> = params_of.chain(buffers.names()).collect();
    let mut report = LoadReport::default();
    for (name, shape) in &expected {
        match state.get(name) {
            None => report.missing.push(name.clone()),
            Some(tensor) if tensor.dims() == shape => report.matched.push(name.clone()),
            Some(tensor) => {
                return Err(ModelError::WrongShape {
                    name: name.clone(),
                    expected: shape.clone(),
                    found: tensor.dims().to_vec(),
                    hint: describe(state),
                });
            }
        }
    }
    let known: HashSet<_> = expected.iter().map(|(name, _)| name).collect();
    report.unexpected = state
        .keys()
        .filter(|name| !known.contains(name))
        .cloned()
        .collect();
    report.unexpected.sort();
    let parameters = params.params().len();
    let names: HashSet<_> = report.matched.iter().collect();
    for (i, (name, _)) in expected
        .iter()
        .enumerate()
        .filter(|(_, (name, _))| names.contains(name))
    {
        if let Some(tensor) = state.get(name) {
            if i < parameters {
                params.set(name, tensor)?;
            } else {
                buffers.set(name, tensor)?;
            }
        }
    }
    Ok(report)
}

/// Which ResNet a state dict looks like, as the end of an error message; empty if it is none.
fn describe(state: &HashMap<String, Tensor>) -> String {
    let blocks = |stage: usize| {
        (0..)
            .take_while(|b| state.contains_key(&format!("layer{stage}.{b}.conv1.weight")))
            .count()
    };
    let bottleneck = state.contains_key("layer1.0.conv3.weight");
    let arch = match ([1, 2, 3, 4].map(blocks), bottleneck) {
        ([2, 2, 2, 2], false) => "resnet18",
        ([3, 4, 6, 3], false) => "resnet34",
        ([3, 4, 6, 3], true) => "resnet50",
        ([3, 4, 23, 3], true) => "resnet101",
        _ => return String::new(),
    };
    let (width, stem) = match state.get("conv1.weight").map(Tensor::dims) {
        Some(&[channels, _, kernel, _]) => (
            channels as f64 / 64.0,
            if kernel == 7 { "imagenet" } else { "small" },
        ),
        _ => return format!("; the file looks like a {arch}"),
    };
    format!("; the file looks like model.arch = {arch}, model.width = {width}, model.stem = {stem}")
}
