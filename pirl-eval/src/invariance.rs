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
use pirl_model::{Backbone, Layer, Mode};
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
}

/// Streams of the draws.
const CHANGE: u64 = 0x696e_7661;

/// For each of `changes`, and for [`ANOTHER_IMAGE`] (the next of the pack), the distances between the
/// features of the plain view `view` of every image of `pack` and of its change.
///
/// All randomness comes from `seed`, the change's place among `changes` and the image's in the pack.
/// `progress` is called with the images done and the images in all.
///
/// # Errors
/// [`EvalError::Setting`] for fewer than 2 images, a change without views or two of one name;
/// [`EvalError::Data`], [`EvalError::Model`], [`EvalError::NotFinite`].
pub fn invariance(
    backbone: &dyn Backbone,
    pack: &Pack,
    view: &EvalView,
    changes: &[Change],
    seed: u64,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<BTreeMap<String, Distances>> {
    check_inputs(pack, changes)?;
    let normalize = view.normalize()?;
    let total = pack.len();
    let pixels = |change: &Change| change.views.views() * change.views.view_size().pow(2);
    let most = changes.iter().map(pixels).max().unwrap_or(0);
    let part = images_in_pass(most.max(view.crop.pow(2)));
    let mut plain: Vec<f32> = Vec::new();
    let mut distances = vec![Vec::with_capacity(total); changes.len()];
    for start in (0..total).step_by(part) {
        let images = start..(start + part).min(total);
        let views = images
            .clone()
            .into_par_iter()
            .map_init(Scratch::default, |scratch, index| {
                views(pack, view, changes, (seed, index), scratch)
            });
        let views: Vec<Vec<Vec<u8>>> = views.collect::<Result<_>>()?;
        let own = features((backbone, &normalize), start, &views, 0, (1, view.crop))?;
        let dim = backbone.feature_dim();
        for (number, change) in changes.iter().enumerate() {
            let shape = (change.views.views(), change.views.view_size());
            let changed = features((backbone, &normalize), start, &views, number + 1, shape)?;
            let pairs = own.chunks_exact(dim).zip(changed.chunks_exact(dim));
            distances[number].extend(pairs.map(|(a, b)| distance(a, b)));
        }
        plain.extend(own);
        progress(images.end, total);
    }
    let rows: Vec<&[f32]> = plain.chunks_exact(backbone.feature_dim()).collect();
    let next = rows.iter().cycle().skip(1);
    let others = rows.iter().zip(next).map(|(a, b)| distance(a, b)).collect();
    let others = Distances::new(others);
    let apart = others.median();
    let names = changes.iter().map(|change| change.name.clone());
    let distances = distances.into_iter().map(Distances::new);
    let all = names
        .zip(distances)
        .chain([(ANOTHER_IMAGE.to_owned(), others)]);
    let relative = |mut found: Distances| {
        found.relative = (apart > 0.0).then(|| found.median() / apart);
        found
    };
    Ok(all.map(|(name, found)| (name, relative(found))).collect())
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

/// Of an image, the plain view and those of each change.
fn views(
    pack: &Pack,
    view: &EvalView,
    changes: &[Change],
    (seed, index): (u64, usize),
    scratch: &mut Scratch,
) -> Result<Vec<Vec<u8>>> {
    let image = pack.decode(index)?;
    let channels = view.channels();
    let mut plain = vec![0; channels * view.crop * view.crop];
    view.apply(&image, scratch, &mut plain)?;
    let mut all = vec![plain];
    for (number, change) in changes.iter().enumerate() {
        let mut rng = random::stream(seed, CHANGE, number as u64, index as u64);
        let side = change.views.view_size();
        let mut out = vec![0; change.views.views() * channels * side * side];
        change.views.apply(&image, &mut rng, scratch, &mut out)?;
        all.push(out);
    }
    Ok(all)
}

/// The unit-norm features of kind `kind` of each image's views, `count` of `side` pixels that are
/// averaged. `first` is the number of the first image.
fn features(
    (backbone, normalize): (&dyn Backbone, &Normalize),
    first: usize,
    views: &[Vec<Vec<u8>>],
    kind: usize,
    (count, side): (usize, usize),
) -> Result<Vec<f32>> {
    let pixels = views.iter().flat_map(|views| &views[kind]).copied();
    let shape = (views.len() * count, normalize.channels(), side, side);
    let device = &backbone.device();
    let images = Tensor::from_vec(pixels.collect::<Vec<u8>>(), shape, &Device::Cpu)?;
    let images = normalize.apply(&images, device)?;
    let found = backbone.forward(&images, Mode::Eval)?;
    let found = found.flatten_all()?.to_vec1::<f32>()?;
    let dim = backbone.feature_dim();
    if let Some(at) = found.iter().position(|value| !value.is_finite()) {
        return Err(EvalError::NotFinite {
            layer: Layer::RES5,
            row: first + at / dim / count,
            column: at % dim,
            value: found[at],
        });
    }
    let mut rows = Vec::with_capacity(views.len() * dim);
    for of_image in found.chunks_exact(count * dim) {
        let start = rows.len();
        rows.extend_from_slice(&of_image[..dim]);
        let row = &mut rows[start..];
        for other in of_image[dim..].chunks_exact(dim) {
            row.iter_mut().zip(other).for_each(|(sum, x)| *sum += x);
        }
        normalise(row);
    }
    Ok(rows)
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
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
