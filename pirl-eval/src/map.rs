//! A map of a set: its images as points of a plane, alike ones near each other.

use pirl_core::{SettingError, check};
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::feature_set::LayerFeatures;
use crate::nearest::normalised;
use crate::neighbours::{Neighbour, nearest_neighbours};

mod pca;
mod quadtree;
mod silhouette;
mod tsne;

pub use silhouette::silhouette;
use tsne::Affinities;

/// Settings of [`map_features`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MapConfig {
    /// How many neighbours count, about; 30 by default. With few images it is a third of the others.
    pub perplexity: f64,
    /// Steps of t-SNE, a third of them with exaggerated attraction; 750 by default.
    pub iterations: usize,
    /// Cells of far points count as one where their side is below this share of their distance, 0 to 0.7;
    /// 0 is exact, 0.5 the default.
    pub theta: f64,
}

impl Default for MapConfig {
    fn default() -> Self {
        Self {
            perplexity: 30.0,
            iterations: 750,
            theta: 0.5,
        }
    }
}

impl MapConfig {
    /// # Errors
    /// Names the first field whose value cannot work.
    pub fn check(&self) -> std::result::Result<(), SettingError> {
        let Self {
            perplexity,
            iterations,
            theta,
        } = *self;
        let fits = perplexity >= 1.0 && perplexity.is_finite();
        check("perplexity", perplexity, fits, "must be at least 1")?;
        check(
            "iterations",
            iterations,
            iterations > 0,
            "must be at least 1",
        )?;
        let fits = (0.0..=0.7).contains(&theta);
        check("theta", theta, fits, "must lie between 0 and 0.7")
    }
}

/// Images as points of a plane, by their features; in the order of the images.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureMap {
    /// The first two principal components of the features of unit length.
    pub pca: Vec<[f32; 2]>,
    /// Their share of the variance, 0 to 1.
    pub explained: [f64; 2],
    /// t-SNE, which begins with them: neighbours stay neighbours, distances between groups mean little.
    pub tsne: Vec<[f32; 2]>,
    /// The most alike images of each, at most five, nearest first.
    pub neighbours: Vec<Vec<Neighbour>>,
}

impl FeatureMap {
    /// Pairs of images whose features have at least this cosine, the most alike first, each once: the number
    /// of the first, and the second, whose number is higher.
    pub fn near_duplicates(&self, cosine: f32) -> Vec<(u32, Neighbour)> {
        let rows = self.neighbours.iter().enumerate();
        let pairs = rows.flat_map(|(row, others)| {
            let others = others.iter().filter(move |other| other.cosine >= cosine);
            others.map(move |other| {
                let (low, high) = (row.min(other.index), row.max(other.index));
                let cosine = other.cosine;
                (
                    low as u32,
                    Neighbour {
                        index: high,
                        cosine,
                    },
                )
            })
        });
        let mut pairs: Vec<_> = pairs.collect();
        pairs.sort_by(|(a, x), (b, y)| (a, x.index).cmp(&(b, y.index)));
        pairs.dedup_by_key(|(first, second)| (*first, second.index));
        pairs.sort_by(|(_, x), (_, y)| y.cosine.total_cmp(&x.cosine));
        pairs
    }

    /// The numbers of the images that are least like their neighbours, by the mean cosine, the least first.
    pub fn outliers(&self, count: usize) -> Vec<u32> {
        let mean = |row: &u32| {
            let others = &self.neighbours[*row as usize];
            others.iter().map(|other| other.cosine).sum::<f32>() / others.len().max(1) as f32
        };
        let mut rows: Vec<u32> = (0..self.neighbours.len() as u32).collect();
        rows.sort_by(|a, b| mean(a).total_cmp(&mean(b)));
        rows.truncate(count);
        rows
    }
}

/// Neighbours of each image that are kept.
const KEPT: usize = 5;
/// Fewest images of a map.
const FEWEST: usize = 4;

/// Maps the rows of `features` by their directions: principal components, and Barnes-Hut t-SNE (van der
/// Maaten, JMLR 15, 2014) over the exact nearest neighbours by cosine, with scikit-learn's schedule. The
/// map is the same for any number of threads. `progress` gets the steps done and those in all.
///
/// # Errors
/// [`EvalError::Setting`](crate::EvalError::Setting) as [`MapConfig::check`], and for fewer than 4 images.
pub fn map_features(
    features: &LayerFeatures,
    config: &MapConfig,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<FeatureMap> {
    config.check()?;
    let images = features.rows();
    check("images", images, images >= FEWEST, "must be at least 4")?;
    let (pca, explained) = pca::principal_components(&normalised(features), features.dim());
    let perplexity = config.perplexity.min((images - 1) as f64 / 3.0);
    let k = ((3.0 * perplexity) as usize).clamp(1, images - 1);
    let own: Vec<u32> = (0..images as u32).collect();
    let mut neighbours =
        nearest_neighbours(features, features, k.max(KEPT.min(images - 1)), Some(&own))?;
    let nearest = neighbours
        .iter()
        .map(|row| row.iter().take(KEPT).copied().collect());
    let nearest: Vec<Vec<Neighbour>> = nearest.collect();
    neighbours.iter_mut().for_each(|row| row.truncate(k));
    let affinities = Affinities::new(&neighbours, perplexity);
    let tsne = tsne::descend(&affinities, &pca, config, progress);
    let single = |points: Vec<[f64; 2]>| -> Vec<[f32; 2]> {
        let point = |point: [f64; 2]| point.map(|x| x as f32);
        points.into_iter().map(point).collect()
    };
    Ok(FeatureMap {
        pca: single(pca),
        explained,
        tsne: single(tsne),
        neighbours: nearest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pirl_model::Layer;

    /// Three groups of directions, and which of them each row is of.
    fn groups(rows: usize) -> (LayerFeatures, Vec<Option<u32>>) {
        let noise = benches::fill(5, rows * 8);
        let values = (0..rows * 8).map(|at| {
            let (row, column) = (at / 8, at % 8);
            let group = if column == row % 3 { 2.0 } else { 0.0 };
            group + 0.3 * noise[at]
        });
        let labels = (0..rows).map(|row| Some((row % 3) as u32)).collect();
        let features = LayerFeatures::new(Layer::RES5, rows, 8, values.collect()).unwrap();
        (features, labels)
    }

    #[test]
    fn groups_stay_apart_and_any_number_of_threads_draws_the_same() {
        let (features, labels) = groups(240);
        let config = MapConfig::default();
        let map = || map_features(&features, &config, &mut |_, _| {}).unwrap();
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.build().unwrap().install(map)
        };
        let found = on(1);
        assert_eq!(found, on(3));
        for points in [&found.pca, &found.tsne] {
            let apart = silhouette(points, &labels).unwrap();
            assert!(apart > 0.7, "{apart}");
        }
        assert!(
            found.explained[0] > 0.3 && found.explained[1] > 0.2,
            "{found:?}"
        );
    }

    #[test]
    fn copies_and_strangers_are_found() {
        let (features, _) = groups(60);
        let mut values = features.values().to_vec();
        values.copy_within(8 * 10..8 * 11, 8 * 40); // image 40 is image 10
        values[8 * 25..8 * 26].copy_from_slice(&[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
        let features = LayerFeatures::new(Layer::RES5, 60, 8, values).unwrap();
        let map = map_features(&features, &MapConfig::default(), &mut |_, _| {}).unwrap();
        let pairs = map.near_duplicates(0.9999);
        assert_eq!(pairs.len(), 1, "{pairs:?}");
        assert_eq!((pairs[0].0, pairs[0].1.index), (10, 40));
        assert_eq!(map.outliers(1), [25]);
        let all = map.near_duplicates(-1.0);
        assert!(all.is_sorted_by(|a, b| a.1.cosine >= b.1.cosine));
        assert!(
            all.iter()
                .all(|(first, second)| (*first as usize) < second.index)
        );
    }

    #[test]
    fn equal_images_and_few_of_them_have_a_map() {
        for rows in [4, 5, 40] {
            let values = vec![1.0; rows * 3];
            let features = LayerFeatures::new(Layer::RES5, rows, 3, values).unwrap();
            let found = map_features(&features, &MapConfig::default(), &mut |_, _| {}).unwrap();
            assert_eq!(found.tsne.len(), rows);
            assert!(found.tsne.iter().flatten().all(|x| x.is_finite()));
        }
        let few = LayerFeatures::new(Layer::RES5, 3, 1, vec![1.0; 3]).unwrap();
        let error = map_features(&few, &MapConfig::default(), &mut |_, _| {}).unwrap_err();
        assert!(error.to_string().contains("images = 3"), "{error}");
    }
}
