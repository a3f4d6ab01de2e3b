//! What a probe reaches without any learnt feature: on raw pixels, and on the untrained network.
//!
//! A representation is worth what it adds to these. Both baselines see the images exactly as the
//! network in question does, and run the same probe with the same choices.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::path::Path;

use candle_core::Device;
use pirl_data::{Pack, eval_batches};
use pirl_model::{Backbone, Layer};
use serde::Serialize;

use crate::cache::{FeatureCache, weights_fingerprint};
use crate::error::{EvalError, Result};
use crate::extract::{Extraction, batch_norm_images, extract_features, recompute_batch_norm};
use crate::feature_set::{FeatureSet, LayerFeatures};
use crate::memory::{check_memory, feature_bytes};
use crate::pool::{Maps, Pool};
use crate::probe::Probe;
use crate::table::ReportTable;

/// Rows and columns of an image as features, at most.
const SIDE: usize = 32;
/// The only layer of pixels.
const PIXELS: &str = "pixels";
/// The reports of the baselines; one that was not asked for or did not fit into memory is `None`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Baselines<R> {
    /// On raw pixels: [`pixel_features`], of which grey images count one colour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pixels: Option<R>,
    /// On the untrained network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub untrained: Option<R>,
    /// Why a baseline is missing that was asked for, by its name here.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub left_out: BTreeMap<&'static str, String>,
}

/// What baselines are measured on.
pub struct BaselineInputs<'a> {
    /// The images that the probe is trained on.
    pub train: &'a Pack,
    /// The images that it is tested on.
    pub test: &'a Pack,
    /// How images are seen and features are read, as for the trained network.
    pub extraction: &'a Extraction,
    /// The untrained network; `None` for pixels alone.
    pub untrained: Option<Untrained>,
    /// A folder that keeps features for other probes of the same packs.
    pub cache: Option<&'a Path>,
}

/// A network before its training. The running batch-norm statistics that it is drawn with say nothing
/// about images, so they are always recomputed on plain training images.
pub struct Untrained {
    /// The network; its statistics are replaced.
    pub backbone: Box<dyn Backbone>,
    /// Its settings in words: features of networks that differ in them are kept apart.
    pub settings: String,
    /// Training images that the statistics are recomputed over; 0 for 4,096.
    pub batch_norm_images: usize,
    /// Says which images these are.
    pub seed: u64,
}

impl BaselineInputs<'_> {
    /// Runs `probe` on each baseline, one after the other, and calls `progress` with what is being done,
    /// the units done and those in all. A baseline whose features do not fit into memory or on the
    /// disk of the cache is left out, and the result says why.
    ///
    /// # Errors
    /// Those of [`extract_features`], of [`recompute_batch_norm`] and of the probe;
    /// [`EvalError::Write`].
    pub fn evaluate<P: Probe>(
        &self,
        probe: &P,
        progress: &mut dyn FnMut(&'static str, usize, usize),
    ) -> Result<Baselines<P::Report>> {
        let mut left_out = BTreeMap::new();
        let mut or_why = |name, found: Result<P::Report>| match found {
            Err(error @ EvalError::Memory { .. }) => {
                left_out.insert(name, error.to_string());
                Ok(None)
            }
            found => found.map(Some),
        };
        let pixels = or_why("pixels", self.pixels(probe, progress))?;
        let untrained = match &self.untrained {
            Some(untrained) => or_why("untrained", self.untrained(untrained, probe, progress))?,
            None => None,
        };
        Ok(Baselines {
            pixels,
            untrained,
            left_out,
        })
    }

    fn pixels<P: Probe>(
        &self,
        probe: &P,
        progress: &mut dyn FnMut(&'static str, usize, usize),
    ) -> Result<P::Report> {
        let extraction = &Extraction {
            layers: vec![Layer::new(PIXELS)],
            pool: Pool::Average.into(), // of no meaning here, and so the same for every probe
            ..self.extraction.clone()
        };
        self.fits(|pack| Ok(pixel_bytes(extraction, pack.len())))?;
        let sets = self.read(PIXELS, extraction, |pack, before| {
            pixel_features(pack, extraction, &mut |done, _| {
                progress("reading raw pixels", before + done, self.images());
            })
        })?;
        let [train, test] = match sets.iter().all(FeatureSet::repeats_channels) {
            true => sets.map(FeatureSet::first_channel), // grey
            false => sets,
        };
        probe.evaluate(&train, &test, &mut |done, total| {
            progress("probing raw pixels", done, total);
        })
    }

    fn untrained<P: Probe>(
        &self,
        untrained: &Untrained,
        probe: &P,
        progress: &mut dyn FnMut(&'static str, usize, usize),
    ) -> Result<P::Report> {
        let (extraction, backbone) = (self.extraction, untrained.backbone.as_ref());
        self.fits(|pack| feature_bytes(backbone, extraction, pack.len()))?;
        let images = batch_norm_images(untrained.batch_norm_images);
        recompute_batch_norm(backbone, self.train, extraction, images, untrained.seed)?;
        let weights = weights_fingerprint(backbone)?;
        let key = format!("{weights} {}", untrained.settings);
        let [train, test] = self.read(&key, extraction, |pack, before| {
            extract_features(backbone, pack, extraction, &mut |done, _| {
                progress("reading untrained features", before + done, self.images());
            })
        })?;
        probe.evaluate(&train, &test, &mut |done, total| {
            progress("probing untrained features", done, total);
        })
    }

    /// Whether the features of both packs, of which `bytes` says the size, fit together.
    fn fits(&self, bytes: impl Fn(&Pack) -> Result<u64>) -> Result<()> {
        let bytes = bytes(self.train)?.saturating_add(bytes(self.test)?);
        check_memory(bytes, self.cache)
    }

    fn images(&self) -> usize {
        self.train.len() + self.test.len()
    }

    /// The features of both packs: those of the cache for `key`, or by `extract`, which is told how many
    /// images were read before.
    fn read(
        &self,
        key: &str,
        extraction: &Extraction,
        mut extract: impl FnMut(&Pack, usize) -> Result<FeatureSet>,
    ) -> Result<[FeatureSet; 2]> {
        let cache = self.cache.map(FeatureCache::new).transpose()?;
        let mut of = |pack, before| match &cache {
            Some(cache) => cache.get_or_extract(key, pack, extraction, || extract(pack, before)),
            None => extract(pack, before),
        };
        Ok([of(self.train, 0)?, of(self.test, self.train.len())?])
    }
}

/// The pixels of every image of `pack` in its order, as the one layer `pixels`: the view of the
/// extraction, normalised, averaged adaptively (as PyTorch's `adaptive_avg_pool2d`) to at most 32 x 32
/// positions. A view of 224 pixels gives 3,072 features, the positions of a colour side by side; one
/// of 28 pixels stays as it is. Calls `progress` with the images done and the images in all.
///
/// # Errors
/// [`EvalError::Data`] for an image that cannot be decoded; [`EvalError::Shape`] if the pack is empty.
pub fn pixel_features(
    pack: &Pack,
    extraction: &Extraction,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<FeatureSet> {
    let Extraction {
        view,
        batch_size,
        workers,
        ..
    } = extraction;
    let (mut values, mut labels, mut cells) = (Vec::new(), Vec::new(), 1);
    for batch in eval_batches(pack, view, *batch_size, *workers, &Device::Cpu)? {
        let (images, batch_labels) = batch?;
        let images = Maps::of(&images)?;
        let positions = images.at_most(SIDE);
        cells = positions.count();
        values.extend(images.average(&positions));
        labels.extend(batch_labels);
        progress(labels.len(), pack.len());
    }
    let (rows, dim) = (labels.len(), view.channels() * cells);
    let layer = LayerFeatures::with_cells(Layer::new(PIXELS), rows, dim, cells, values)?;
    FeatureSet::new(vec![layer], labels, pack.class_names().to_vec())
}

/// Bytes of [`pixel_features`] of so many images.
fn pixel_bytes(extraction: &Extraction, images: usize) -> u64 {
    let side = extraction.view.crop.min(SIDE);
    let values = extraction.view.channels() * side * side;
    (values * size_of::<f32>()) as u64 * images as u64
}

/// A report beside those of its baselines. As JSON, the fields of the report and `baselines`; as text, a
/// table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WithBaselines<R> {
    /// Of the network.
    #[serde(flatten)]
    pub report: R,
    /// `None` where none were run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baselines: Option<Baselines<R>>,
}

impl<R: ReportTable> Display for WithBaselines<R> {
    /// A row for each layer and baseline, then the headline of each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let baselines = self.baselines.as_ref();
        let pixels = baselines.and_then(|baselines| baselines.pixels.as_ref());
        let untrained = baselines.and_then(|baselines| baselines.untrained.as_ref());
        let reports = [
            ("", Some(&self.report)),
            ("", pixels),
            ("untrained ", untrained),
        ];
        let rows = reports.iter().flat_map(|(prefix, report)| {
            let rows = report.iter().flat_map(|report| report.rows());
            rows.map(move |(layer, row)| (format!("{prefix}{layer}"), row))
        });
        let rows: Vec<(String, String)> = rows.collect();
        let names = rows.iter().map(|(name, _)| name.len());
        let width = names.max().unwrap_or(0).max(16);
        writeln!(f, "{:<width$}{}", "layer", self.report.heading())?;
        for (name, row) in rows {
            writeln!(f, "{name:<width$}{row}")?;
        }
        for (name, report) in [("raw pixels", pixels), ("untrained", untrained)] {
            if let Some(report) = report {
                writeln!(f, "{name}: {}", report.headline())?;
            }
        }
        write!(f, "chosen: {}", self.report.headline())
    }
}
