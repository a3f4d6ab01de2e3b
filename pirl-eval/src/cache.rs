//! Features kept on disk, so that a second probe of the same backbone need not read them again.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::DType;
use pirl_data::Pack;
use pirl_model::Backbone;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::error::{EvalError, Result};
use crate::extract::{Extraction, extract_features};
use crate::feature_set::{FeatureSet, LayerFeatures};
use crate::memory::{check_memory, feature_bytes};
use crate::pool::Choice;

/// Stands for "no label" on disk.
const UNLABELLED: i64 = -1;

/// A folder of extracted features, one safetensors file for each combination of weights, pack and
/// [`Extraction`]. A file that is damaged or of another combination is ignored and replaced.
#[derive(Clone, Debug)]
pub struct FeatureCache {
    folder: PathBuf,
}

impl FeatureCache {
    /// A cache in `folder`, which is created if it does not exist.
    ///
    /// # Errors
    /// [`EvalError::Write`] if it cannot be created.
    pub fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// The features stored for these `weights` (a [`weights_fingerprint`], with whatever else the features
    /// depend on), pack and settings; if there are none, those that `extract` returns, which are stored.
    ///
    /// # Errors
    /// Those of `extract`; [`EvalError::Write`] if its result cannot be written.
    pub fn get_or_extract(
        &self,
        weights: &str,
        pack: &Pack,
        extraction: &Extraction,
        extract: impl FnOnce() -> Result<FeatureSet>,
    ) -> Result<FeatureSet> {
        let key = key(weights, pack, extraction);
        let path = self.folder.join(format!(
            "features-{:032x}.safetensors",
            xxh3_128(key.as_bytes())
        ));
        if let Some(set) = read(&path, &key, pack, extraction) {
            return Ok(set);
        }
        let set = extract()?;
        write(&path, &key, &set)?;
        Ok(set)
    }
}

/// The features of every image of `pack`, once it is clear that they fit into memory: those kept in the folder
/// `cache` for these weights, images and settings, or by [`extract_features`], which are kept there. `network`
/// says what else they depend on, such as the network's settings.
///
/// # Errors
/// [`EvalError::Memory`]; those of [`extract_features`]; [`EvalError::Write`].
pub fn features(
    backbone: &dyn Backbone,
    pack: &Pack,
    extraction: &Extraction,
    (cache, network): (Option<&Path>, &str),
    progress: &mut dyn FnMut(usize, usize),
) -> Result<FeatureSet> {
    let mut extract = || {
        check_memory(feature_bytes(backbone, extraction, pack.len())?, cache)?;
        extract_features(backbone, pack, extraction, progress)
    };
    let Some(folder) = cache else {
        return extract();
    };
    // The statistics as they are now: recomputed ones make other features.
    let key = format!("{} {network}", weights_fingerprint(backbone)?);
    FeatureCache::new(folder)?.get_or_extract(&key, pack, extraction, extract)
}

/// A hash of every parameter and statistic of a backbone, in hexadecimal.
///
/// # Errors
/// [`EvalError::Tensor`] if they cannot be read from their device.
pub fn weights_fingerprint(backbone: &dyn Backbone) -> Result<String> {
    let state = backbone.state()?;
    let mut hash = Xxh3::new();
    for (name, tensor) in state.into_iter().collect::<BTreeMap<_, _>>() {
        hash.update(format!("{name} {:?}", tensor.dims()).as_bytes());
        let values = tensor
            .to_dtype(DType::F64)?
            .flatten_all()?
            .to_vec1::<f64>()?;
        values
            .iter()
            .for_each(|value| hash.update(&value.to_le_bytes()));
    }
    Ok(format!("{:032x}", hash.digest128()))
}

/// A text with everything the features depend on.
pub(crate) fn key(weights: &str, pack: &Pack, extraction: &Extraction) -> String {
    let Extraction {
        view,
        layers,
        pool,
        batch_size: _,
        workers: _,
        helpers: _,
    } = extraction;
    let pool = match pool.only() {
        Some(pool) => format!("{pool:?}"),
        None => pool.to_string(),
    };
    format!(
        "1 {weights} {} {view:?} {layers:?} {pool}",
        pack.fingerprint()
    )
}

fn read(path: &Path, key: &str, pack: &Pack, extraction: &Extraction) -> Option<FeatureSet> {
    let bytes = fs::read(path).ok()?;
    let (_, metadata) = SafeTensors::read_metadata(&bytes).ok()?;
    if metadata.metadata().as_ref()?.get("key")? != key {
        return None;
    }
    let tensors = SafeTensors::deserialize(&bytes).ok()?;
    let labels = tensors.tensor("labels").ok()?;
    let labels: Vec<Option<u32>> = labels
        .data()
        .chunks_exact(8)
        .map(|word| {
            let label = i64::from_le_bytes(word.try_into().ok()?);
            u32::try_from(label).ok()
        })
        .collect();
    // Of several poolings, one that is the same as another is not there.
    let readings = extraction.readings().into_iter();
    let readings = readings.filter(|reading| {
        reading.choice != Choice::Several || tensors.tensor(reading.name.as_str()).is_ok()
    });
    let layers = readings.map(|reading| {
        let tensor = tensors.tensor(reading.name.as_str()).ok()?;
        let &[rows, channels, cells] = tensor.shape() else {
            return None;
        };
        if tensor.dtype() != Dtype::F32 || rows != pack.len() {
            return None;
        }
        let words = tensor.data().chunks_exact(4);
        let values: Option<Vec<f32>> = words
            .map(|word| Some(f32::from_le_bytes(word.try_into().ok()?)))
            .collect();
        let (dim, pool) = (channels.checked_mul(cells)?, reading.reported());
        let features = LayerFeatures::with_cells(reading.name, rows, dim, cells, values?);
        Some(features.ok()?.pooled_by(pool))
    });
    FeatureSet::new(
        layers.collect::<Option<_>>()?,
        labels,
        pack.class_names().to_vec(),
    )
    .ok()
}

/// Writes beside `path` and renames, so that a reader finds a whole file or none.
fn write(path: &Path, key: &str, set: &FeatureSet) -> Result<()> {
    let labels: Vec<u8> = set
        .labels()
        .iter()
        .flat_map(|label| label.map_or(UNLABELLED, i64::from).to_le_bytes())
        .collect();
    let layers: Vec<(String, Vec<usize>, Vec<u8>)> = set
        .layers()
        .iter()
        .map(|layer| {
            let shape = vec![layer.rows(), layer.dim() / layer.cells(), layer.cells()];
            let bytes = layer
                .values()
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            (layer.layer().to_string(), shape, bytes)
        })
        .collect();
    let mut views = vec![(
        "labels".to_owned(),
        view(Dtype::I64, &[set.labels().len()], &labels, path)?,
    )];
    for (name, shape, bytes) in &layers {
        views.push((name.clone(), view(Dtype::F32, shape, bytes, path)?));
    }
    let metadata = HashMap::from([("key".to_owned(), key.to_owned())]);
    let bytes =
        safetensors::serialize(views, Some(metadata)).map_err(|error| failed(path, &error))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(|error| failed(path, &error))?;
    file.write_all(&bytes)
        .map_err(|error| failed(path, &error))?;
    file.as_file()
        .sync_all()
        .map_err(|error| failed(path, &error))?;
    file.persist(path)
        .map_err(|error| failed(path, &error.error))?;
    Ok(())
}

fn view<'a>(dtype: Dtype, shape: &[usize], bytes: &'a [u8], path: &Path) -> Result<TensorView<'a>> {
    TensorView::new(dtype, shape.to_vec(), bytes).map_err(|error| failed(path, &error))
}

fn failed(path: &Path, reason: &dyn std::fmt::Display) -> EvalError {
    EvalError::Write {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}
