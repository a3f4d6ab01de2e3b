//! Features of a pack's images, read once.

use candle_core::Tensor;
use pirl_data::{EvalView, Pack, eval_batches};
use pirl_model::{Backbone, Layer, precise_batch_norm};
use pirl_train::{Collective, Ranks};

use crate::error::{EvalError, Result};
use crate::feature_set::{FeatureSet, LayerFeatures, from_bytes, to_bytes};
use crate::helpers::{self, Helpers};
use crate::pool::{Cells, Choice, Maps, Pools, Reading};

/// Most images of `pixels` pixels in a forward pass: 32 of 224 x 224.
pub(crate) fn images_in_pass(pixels: usize) -> usize {
    const PIXELS: usize = 32 * 224 * 224;
    (PIXELS / pixels.max(1)).max(1)
}

/// How features are read.
#[derive(Clone, Debug)]
pub struct Extraction {
    /// How images are seen.
    pub view: EvalView,
    /// Where features are read; res2 to res5 by default. A name such as `res4/grid` says how the layer's maps
    /// become vectors, too; one such as `res4+res5` joins the vectors of several layers.
    pub layers: Vec<Layer>,
    /// How maps become vectors; in several ways, each layer is there once for each of them, unless its
    /// maps are so small that two are the same.
    pub pool: Pools,
    /// Images decoded together; 256 by default. A forward pass takes a part of them, at most the pixels
    /// of 32 images of 224 x 224, so that large maps are pooled before the next are computed.
    pub batch_size: usize,
    /// Threads that decode; 0 for one for each core.
    pub workers: usize,
    /// Other ranks that read with this one: see [`Extraction::over`].
    pub helpers: Helpers,
}

impl Extraction {
    /// The defaults with this view.
    pub fn new(view: EvalView) -> Self {
        Self {
            view,
            layers: vec![Layer::RES2, Layer::RES3, Layer::RES4, Layer::RES5],
            pool: Pools::default(),
            batch_size: 256,
            workers: 0,
            helpers: Helpers::default(),
        }
    }

    /// Shares the reading of features over `ranks`, on all of which this is called at the same time. Rank 0
    /// gets an extraction that has them all read the batches of a pack in turn, for the same features as it
    /// would read alone. The others do so here, with the weights that rank 0 has at the time, until it has
    /// dropped what it got; they get `None` then, and `backbone` is left with these weights.
    ///
    /// The other ranks wait as long as rank 0 lives, whatever it does in between.
    ///
    /// # Errors
    /// On a rank that is not the first: [`EvalError::OtherImages`] for images that are none of `packs`, or
    /// read in another way; those of [`extract_features`]; if rank 0 has ended.
    pub fn over(
        self,
        ranks: &Ranks,
        backbone: &dyn Backbone,
        packs: &[&Pack],
    ) -> Result<Option<Self>> {
        match (ranks.size(), ranks.rank()) {
            (1, _) => Ok(Some(self)),
            (_, 0) => Ok(Some(Self {
                helpers: Helpers::of(ranks)?,
                ..self
            })),
            _ => {
                helpers::help(ranks.as_ref(), backbone, packs, &self)?;
                Ok(None)
            }
        }
    }

    /// What is read, each once, in the order of the layers.
    pub(crate) fn readings(&self) -> Vec<Reading> {
        let mut readings: Vec<Reading> = Vec::new();
        for reading in self.layers.iter().flat_map(|name| self.pool.readings(name)) {
            if readings.iter().all(|other| other.name != reading.name) {
                readings.push(reading);
            }
        }
        readings
    }
}

/// Reads the features of every image of `pack` in its order, the backbone in evaluation mode, and
/// calls `progress` with the images done and the images in all. Memory holds one batch of images, the
/// maps of a part of it, and the pooled features.
///
/// # Errors
/// [`EvalError::Data`] for an image that cannot be decoded; [`EvalError::Model`];
/// [`EvalError::NotFinite`]; [`EvalError::Shape`] if the pack or the list of layers is empty.
pub fn extract_features(
    backbone: &dyn Backbone,
    pack: &Pack,
    extraction: &Extraction,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<FeatureSet> {
    let mut layers: Vec<LayerFeatures> = Vec::new();
    let mut labels = Vec::with_capacity(pack.len());
    visit_features(backbone, pack, extraction, &mut |read, batch_labels| {
        labels.extend(batch_labels);
        for (place, features) in read.into_iter().enumerate() {
            match layers.get_mut(place) {
                Some(before) => before.append(features),
                None => layers.push(features),
            }
        }
        progress(labels.len(), pack.len());
        Ok(())
    })?;
    FeatureSet::new(layers, labels, pack.class_names().to_vec())
}

/// Reads the features of every image of `pack` in its order, and hands those of each batch to `visit`, with
/// the labels of its images.
pub(crate) fn visit_features(
    backbone: &dyn Backbone,
    pack: &Pack,
    extraction: &Extraction,
    visit: &mut dyn FnMut(Vec<LayerFeatures>, Vec<Option<u32>>) -> Result<()>,
) -> Result<()> {
    let helpers = &extraction.helpers;
    helpers.read(backbone, pack, extraction, |ranks| {
        read_in_turn(ranks, backbone, pack, extraction, visit)
    })
}

/// Does the same with other ranks, each of which reads a batch in its turn. They call this at the same time,
/// and rank 0 alone visits.
pub(crate) fn read_in_turn(
    ranks: &dyn Collective,
    backbone: &dyn Backbone,
    pack: &Pack,
    extraction: &Extraction,
    visit: &mut dyn FnMut(Vec<LayerFeatures>, Vec<Option<u32>>) -> Result<()>,
) -> Result<()> {
    let Extraction {
        view,
        batch_size,
        workers,
        ..
    } = extraction;
    let (rank, size) = (ranks.rank(), ranks.size());
    let device = backbone.device();
    let batches = eval_batches(pack, view, *batch_size, *workers, &device)?;
    let mut own = batches.skip(rank).step_by(size);
    let count = pack.len().div_ceil(*batch_size);
    for turn in (0..count).step_by(size) {
        let mut read = match own.next() {
            None => Vec::new(),
            Some(batch) => {
                let first = (turn + rank) * batch_size;
                read_features(backbone, &batch?.0, extraction, |row| first + row)?
            }
        };
        let of_rank_0: Vec<_> = read.iter().map(LayerFeatures::kind).collect();
        for reader in 0..size.min(count - turn) {
            let first = (turn + reader) * batch_size;
            let images = first..pack.len().min(first + batch_size);
            if reader > 0 {
                let given = match rank == reader {
                    true => to_bytes(&read),
                    false => Vec::new(),
                };
                let given = ranks.broadcast(reader, given)?;
                if rank == 0 {
                    read = from_bytes(&of_rank_0, images.len(), &given)?;
                }
            }
            if rank == 0 {
                let labels = images.map(|index| pack.label(index)).collect();
                visit(std::mem::take(&mut read), labels)?;
            }
        }
    }
    Ok(())
}

/// The pooled features of a batch of images, `(b, 3, h, w)`, at each of the extraction's layers, in
/// their order. `number` maps a row to the image's number, for errors.
pub(crate) fn read_features(
    backbone: &dyn Backbone,
    images: &Tensor,
    extraction: &Extraction,
    number: impl Fn(usize) -> usize,
) -> Result<Vec<LayerFeatures>> {
    let readings = extraction.readings();
    let mut layers: Vec<&Layer> = Vec::new();
    for layer in readings.iter().flat_map(|reading| &reading.layers) {
        if !layers.contains(&layer) {
            layers.push(layer);
        }
    }
    let layers: Vec<Layer> = layers.into_iter().cloned().collect();
    let (rows, _, height, width) = images.dims4()?;
    let part = images_in_pass(height * width);
    // Of each reading, what each of its layers gives.
    let mut found: Vec<Vec<Option<Pooled>>> = readings
        .iter()
        .map(|reading| reading.layers.iter().map(|_| None).collect())
        .collect();
    for start in (0..rows).step_by(part) {
        let images = images.narrow(0, start, part.min(rows - start))?;
        let maps = backbone.feature_maps(&images, &layers)?;
        for layer in &layers {
            let Some((_, maps)) = maps.iter().find(|(other, _)| other == layer) else {
                return Err(EvalError::Shape {
                    what: "the backbone's layers".to_owned(),
                    expected: layer.to_string(),
                    found: "a backbone without it".to_owned(),
                });
            };
            let maps = Maps::of(maps)?;
            for (reading, found) in readings.iter().zip(&mut found) {
                for (_, found) in reading.layers.iter().zip(found).filter(|of| of.0 == layer) {
                    let pooled = found.get_or_insert_with(|| Pooled {
                        cells: maps.cells(reading.pool, layer),
                        values: Vec::new(),
                    });
                    pooled.values.extend(maps.average(&pooled.cells));
                }
            }
        }
    }
    let mut kept: Vec<(Reading, Vec<Pooled>)> = Vec::new();
    for (reading, found) in readings.into_iter().zip(found) {
        let found: Vec<Pooled> = found.into_iter().flatten().collect();
        let same = |(other, others): &(Reading, Vec<Pooled>)| {
            [other, &reading].map(|of| of.choice) == [Choice::Several; 2]
                && other.layers == reading.layers
                && others.iter().zip(&found).all(|(a, b)| a.cells == b.cells)
        };
        if !found.is_empty() && !kept.iter().any(same) {
            kept.push((reading, found));
        }
    }
    let found = kept.into_iter().map(|(reading, mut found)| {
        let (cells, values) = match &mut found[..] {
            [pooled] => (pooled.cells.count(), std::mem::take(&mut pooled.values)),
            _ => (1, join(rows, &found)),
        };
        let dim = values.len() / rows.max(1);
        let pool = reading.reported();
        let features = LayerFeatures::with_cells(reading.name, rows, dim, cells, values);
        let features = features.map(|features| features.pooled_by(pool));
        features.map_err(|error| match error {
            EvalError::NotFinite {
                layer,
                row,
                column,
                value,
            } => EvalError::NotFinite {
                layer,
                row: number(row),
                column,
                value,
            },
            error => error,
        })
    });
    found.collect()
}

/// A layer's pooled maps.
struct Pooled {
    /// What is averaged.
    cells: Cells,
    /// A row for each image.
    values: Vec<f32>,
}

/// The rows of several layers, one behind the other.
fn join(rows: usize, layers: &[Pooled]) -> Vec<f32> {
    let row = |row: usize| {
        let of_layer = layers.iter().map(move |pooled| {
            let dim = pooled.values.len() / rows;
            &pooled.values[row * dim..][..dim]
        });
        of_layer.flatten()
    };
    (0..rows).flat_map(row).copied().collect()
}

/// Images over which batch-norm statistics are recomputed where they must be: those wanted, or 4,096 for 0.
pub(crate) fn batch_norm_images(wanted: usize) -> usize {
    match wanted {
        0 => 4096,
        images => images,
    }
}

/// Recomputes the backbone's running batch-norm statistics on plain views of `images` images of
/// `pack`, chosen by `seed` (all of them if there are fewer), and returns how many were used.
///
/// Pre-training leaves statistics of patches and images mixed; see [`precise_batch_norm`]. A last
/// batch smaller than the others is left out, unless it is the only one.
///
/// # Errors
/// [`EvalError::Data`], [`EvalError::Model`]; the statistics are then as before.
pub fn recompute_batch_norm(
    backbone: &dyn Backbone,
    pack: &Pack,
    extraction: &Extraction,
    images: usize,
    seed: u64,
) -> Result<usize> {
    let subset = pack.subset(images.min(pack.len()), seed)?;
    let device = backbone.device();
    let size = extraction.batch_size;
    let whole = subset.len()
        - if subset.len() > size {
            subset.len() % size.max(1)
        } else {
            0
        };
    let batches = eval_batches(&subset, &extraction.view, size, extraction.workers, &device)?;
    let batches = batches
        .take(whole.div_ceil(size.max(1)))
        .map(|batch| -> Result<_> { Ok(batch?.0) });
    precise_batch_norm(backbone, batches)?;
    Ok(whole)
}
