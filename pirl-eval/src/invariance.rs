//! How far a change of an image moves its representation.
//!
//! The figure of the paper (arXiv:1912.01991, section 4.4): the L2 distance between the unit-norm
//! features of an image and of its transformed copy, over many images. PIRL trains it to be small for
//! its pretext task. Features are the backbone's (res5, averaged), which any network has, and not the
//! heads' embeddings; those of several views, such as patches, are averaged first. The distance between
//! two different images is reported as well, as the scale to compare with.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use pirl_core::{SettingError, check, random};
use pirl_data::{
    DataConfig, EvalView, Image, ImageView, Normalize, Pack, Pretext, Scratch, ViewConfig,
};
use pirl_model::{Backbone, Buffers, Layer, Mode, precise_batch_norm};
use rand::Rng;
use rayon::prelude::*;
use serde::Serialize;

use crate::error::{EvalError, Result};
use crate::extract::images_in_pass;
use crate::nearest::normalise;

/// The name of the distance between two different images.
pub const ANOTHER_IMAGE: &str = "another image";

/// A change of images, by name.
pub struct Change {
    /// Its name in reports and charts.
    pub name: String,
    /// Makes the changed views.
    pub views: Box<dyn Pretext>,
}

/// A change with one view that no pretext task makes.
struct Single {
    /// The view that is changed; `None`: the whole image.
    of: Option<EvalView>,
    view: ImageView,
}

impl Change {
    /// The plain view `view` in the colours of `config`, nothing moved: jitter, photometric set, grey
    /// and blur, each with its probability.
    ///
    /// # Errors
    /// [`EvalError::Data`] names the setting whose value cannot work.
    pub fn photometric(view: EvalView, data: &DataConfig, config: &ViewConfig) -> Result<Self> {
        let still = ViewConfig {
            scale: [1.0; 2],
            ratio: [1.0; 2],
            flip: 0.0,
            ..config.clone()
        };
        Ok(Self {
            name: "photometric".to_owned(),
            views: Box::new(Single {
                of: Some(view),
                view: ImageView::new(data, &still)?,
            }),
        })
    }

    /// A random crop of `config`, mirrored or not, in the colours it had.
    ///
    /// # Errors
    /// [`EvalError::Data`] names the setting whose value cannot work.
    pub fn crop(data: &DataConfig, config: &ViewConfig) -> Result<Self> {
        Ok(Self {
            name: "crop".to_owned(),
            views: Box::new(Single {
                of: None,
                view: ImageView::new(data, &config.without_colors())?,
            }),
        })
    }
}

impl Pretext for Single {
    fn views(&self) -> usize {
        1
    }

    fn view_size(&self) -> usize {
        self.view.size()
    }

    fn labels(&self) -> usize {
        0
    }

    fn apply(
        &self,
        image: &Image,
        rng: &mut dyn Rng,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> std::result::Result<u32, pirl_data::DataError> {
        match &self.of {
            Some(plain) => {
                let image = plain.pixels(image, scratch)?;
                self.view.apply(&image, rng, scratch, out)?;
            }
            None => self.view.apply(image, rng, scratch, out)?,
        }
        Ok(0)
    }
}

/// The L2 distances between unit-norm features that a change causes: in `[0, 2]`, or in `[0, sqrt(2)]`
/// where no feature is negative.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Distances {
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation.
    pub std: f64,
    /// Quantiles by the share of the images below: 0.05, 0.25, 0.5, 0.75 and 0.95; linearly
    /// interpolated.
    pub quantiles: BTreeMap<String, f64>,
    /// The median as a part of the median distance to another image: networks whose features differ more or
    /// less from image to image are compared by it. `None` if most images have the same features.
    pub relative: Option<f64>,
    /// One for each image, in the order of the pack.
    #[serde(skip)]
    pub values: Vec<f64>,
}

impl Distances {
    fn new(values: Vec<f64>) -> Self {
        let count = values.len().max(1) as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
        let mut sorted = values.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let quantile = |share: f64| {
            let at = share * sorted.len().saturating_sub(1) as f64;
            let entry = |at: f64| sorted.get(at as usize).copied().unwrap_or_default();
            let (low, high) = (entry(at.floor()), entry(at.ceil()));
            low + (high - low) * at.fract()
        };
        Self {
            mean,
            std: variance.sqrt(),
            quantiles: [0.05, 0.25, 0.5, 0.75, 0.95]
                .map(|share| (share.to_string(), quantile(share)))
                .into(),
            relative: None,
            values,
        }
    }

    fn median(&self) -> f64 {
        self.quantiles.get("0.5").copied().unwrap_or_default()
    }

    /// The median as a part of another.
    fn part_of(&self, whole: &Self) -> Option<f64> {
        let whole = whole.median();
        (whole > 0.0).then(|| self.median() / whole)
    }
}

/// Streams of the draws.
const CHANGE: u64 = 0x696e_7661;

/// For each of `changes`, and for [`ANOTHER_IMAGE`] (the next of the pack), the distances between the
/// features of the plain view `view` of every image of `pack` and of its change.
///
/// With `own_statistics` batch norm has, for each change, the statistics of its views, as in training, where
/// patches and images pass apart: those of plain images would move small patches further than what they show.
/// The backbone's statistics are what they were when this returns.
///
/// All randomness comes from `seed`, the change's place among `changes` and the image's in the pack.
/// `progress` is called with the share of the work that is done, in images, and the images in all.
///
/// # Errors
/// [`EvalError::Setting`] for fewer than 2 images, a change without views or two of one name;
/// [`EvalError::Data`], [`EvalError::Model`], [`EvalError::NotFinite`].
pub fn invariance(
    backbone: &dyn Backbone,
    pack: &Pack,
    view: &EvalView,
    changes: &[Change],
    own_statistics: bool,
    seed: u64,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<BTreeMap<String, Distances>> {
    check_inputs(pack, changes)?;
    let buffers = backbone.buffer_sets();
    let own_statistics = own_statistics && !buffers.is_empty();
    let (total, dim) = (pack.len(), backbone.feature_dim());
    let mut done = 0;
    let passes = total * (1 + changes.len() * (1 + usize::from(own_statistics)));
    let mut progress = |images: usize| {
        done += images;
        progress(done * total / passes, total);
    };
    let plain = Views {
        pack,
        size: (1, view.crop),
        normalize: view.normalize()?,
        device: backbone.device(),
        make: Box::new(|_, image, scratch, out| Ok(view.apply(image, scratch, out)?)),
    };
    let plain = plain.features(backbone, &mut progress)?;
    let plain = || plain.chunks_exact(dim);
    let next = plain().cycle().skip(1);
    let mut others = Distances::new(plain().zip(next).map(distance).collect());
    others.relative = others.part_of(&others);

    let mut all = BTreeMap::new();
    for (number, Change { name, views }) in changes.iter().enumerate() {
        let changed = Views {
            size: (views.views(), views.view_size()),
            make: Box::new(move |index, image, scratch, out| {
                let mut rng = random::stream(seed, CHANGE, number as u64, index as u64);
                views.apply(image, &mut rng, scratch, out)?;
                Ok(())
            }),
            pack,
            normalize: view.normalize()?,
            device: backbone.device(),
        };
        let changed = if own_statistics {
            let before = buffers.iter().map(Buffers::snapshot);
            let before = before.collect::<std::result::Result<Vec<_>, _>>()?;
            let measured = precise_batch_norm(backbone, changed.batches(&mut progress))
                .and_then(|_| changed.features(backbone, &mut progress));
            let restored = buffers.iter().zip(before);
            restored.for_each(|(buffers, before)| buffers.restore(before));
            measured?
        } else {
            changed.features(backbone, &mut progress)?
        };
        let changed = changed.chunks_exact(dim);
        let mut found = Distances::new(plain().zip(changed).map(distance).collect());
        found.relative = found.part_of(&others);
        all.insert(name.clone(), found);
    }
    all.insert(ANOTHER_IMAGE.to_owned(), others);
    Ok(all)
}

fn check_inputs(pack: &Pack, changes: &[Change]) -> Result<(), SettingError> {
    let images = pack.len();
    check(
        "images",
        images,
        images >= 2,
        "must be at least 2, to compare with",
    )?;
    for (number, change) in changes.iter().enumerate() {
        let taken = |other: &Change| other.name == change.name;
        let is_new = change.name != ANOTHER_IMAGE && !changes[..number].iter().any(taken);
        check("name", &change.name, is_new, "must differ from other names")?;
        let views = change.views.views();
        let expected = format!("must be at least 1 of the change {}", change.name);
        check("views", views, views > 0, &expected)?;
    }
    Ok(())
}

/// Writes the views of the image with this index.
type MakeViews<'a> =
    Box<dyn Fn(usize, &Image, &mut Scratch, &mut [u8]) -> Result<()> + Send + Sync + 'a>;

/// The views of every image of a pack.
struct Views<'a> {
    pack: &'a Pack,
    /// How many of an image, and of how many pixels a side.
    size: (usize, usize),
    normalize: Normalize,
    device: Device,
    make: MakeViews<'a>,
}

impl Views<'_> {
    /// Views of some images after another, `[images * views, channels, side, side]`. `progress` is called with
    /// the images of each batch.
    fn batches(&self, progress: &mut dyn FnMut(usize)) -> impl Iterator<Item = Result<Tensor>> {
        let (views, side) = self.size;
        let (total, channels) = (self.pack.len(), self.normalize.channels());
        // Batch norm needs more than one value: a last batch is no smaller than a half of the others.
        let most = images_in_pass(views * side.pow(2));
        let count = total.div_ceil(most);
        (0..count).map(move |batch| {
            let images = batch * total / count..(batch + 1) * total / count;
            let size = views * channels * side * side;
            let pixels =
                images
                    .clone()
                    .into_par_iter()
                    .map_init(Scratch::default, |scratch, index| {
                        let mut out = vec![0; size];
                        let image = self.pack.decode(index)?;
                        (self.make)(index, &image, scratch, &mut out)?;
                        Ok(out)
                    });
            let pixels = pixels.collect::<Result<Vec<_>>>()?.concat();
            let shape = (images.len() * views, channels, side, side);
            let pixels = Tensor::from_vec(pixels, shape, &Device::Cpu)?;
            progress(images.len());
            Ok(self.normalize.apply(&pixels, &self.device)?)
        })
    }

    /// The unit-norm features of each image, averaged over its views.
    fn features(
        &self,
        backbone: &dyn Backbone,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<f32>> {
        let (views, dim) = (self.size.0, backbone.feature_dim());
        let mut rows: Vec<f32> = Vec::with_capacity(self.pack.len() * dim);
        for images in self.batches(progress) {
            let found = backbone.forward(&images?, Mode::Eval)?;
            let found = found.flatten_all()?.to_vec1::<f32>()?;
            if let Some(at) = found.iter().position(|value| !value.is_finite()) {
                return Err(EvalError::NotFinite {
                    layer: Layer::RES5,
                    row: rows.len() / dim + at / dim / views,
                    column: at % dim,
                    value: found[at],
                });
            }
            for of_image in found.chunks_exact(views * dim) {
                let start = rows.len();
                rows.extend_from_slice(&of_image[..dim]);
                let row = &mut rows[start..];
                for other in of_image[dim..].chunks_exact(dim) {
                    row.iter_mut().zip(other).for_each(|(sum, x)| *sum += x);
                }
                normalise(row);
            }
        }
        Ok(rows)
    }
}

fn distance((a, b): (&[f32], &[f32])) -> f64 {
    let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
    squares.sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_numpy() {
        // numpy.quantile([3, 1, 2, 10], [0.05, 0.25, 0.5, 0.75, 0.95])
        let found = Distances::new(vec![3.0, 1.0, 2.0, 10.0]);
        let expected = [1.15, 1.75, 2.5, 4.75, 8.95];
        for ((share, found), expected) in found.quantiles.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-9, "{share}: {found}");
        }
        assert_eq!((found.mean, found.std), (4.0, 12.5f64.sqrt()));
    }
}
