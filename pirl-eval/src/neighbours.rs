//! Retrieval: images, and those whose features are nearest.

use pirl_core::check;
use pirl_data::Pack;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;

use crate::error::{EvalError, Result};
use crate::feature_set::LayerFeatures;
use crate::nearest::{Gallery, QUERIES, UnitRows};
use crate::probe::percent;

/// An image near a query.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Neighbour {
    /// Its number in the gallery.
    pub index: usize,
    /// The cosine of its features and the query's.
    pub cosine: f32,
}

/// An image of a pack, as results name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageName {
    /// Its number.
    pub index: usize,
    /// Its name, if the pack has names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its class, if it has one.
    pub class: Option<String>,
}

impl ImageName {
    /// Of image `index` of `pack`.
    pub fn of(pack: &Pack, index: usize) -> Self {
        let class = |label: u32| pack.class_names().get(label as usize).cloned();
        Self {
            index,
            name: pack.name(index).map(str::to_owned),
            class: pack.label(index).and_then(class),
        }
    }
}

/// Queries with their neighbours, by name.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NeighbourReport {
    /// Share of the neighbours that are of their query's class, in percent, of those that both have one;
    /// `None` where there are none.
    pub same_class: Option<f64>,
    /// In their order.
    pub queries: Vec<QueryReport>,
}

/// A query with its neighbours.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QueryReport {
    /// The query.
    #[serde(flatten)]
    pub image: ImageName,
    /// The nearest first.
    pub neighbours: Vec<NeighbourName>,
}

/// A neighbour, by name.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NeighbourName {
    /// The image of the gallery.
    #[serde(flatten)]
    pub image: ImageName,
    /// As of [`Neighbour`].
    pub cosine: f32,
}

impl NeighbourReport {
    /// Of the images `queries` of `pack`, and what [`nearest_neighbours`] found for each in `gallery`.
    pub fn new(pack: &Pack, queries: &[u32], gallery: &Pack, found: &[Vec<Neighbour>]) -> Self {
        let (mut same, mut labelled) = (0, 0);
        let queries = queries.iter().zip(found).map(|(query, found)| {
            let image = ImageName::of(pack, *query as usize);
            let neighbours = found.iter().map(|found| {
                let other = ImageName::of(gallery, found.index);
                if image.class.is_some() && other.class.is_some() {
                    labelled += 1;
                    same += usize::from(image.class == other.class);
                }
                NeighbourName {
                    image: other,
                    cosine: found.cosine,
                }
            });
            let neighbours = neighbours.collect();
            QueryReport { image, neighbours }
        });
        let queries = queries.collect();
        Self {
            same_class: (labelled > 0).then(|| percent(same, labelled)),
            queries,
        }
    }
}

/// The numbers of `count` of `len` images, or of all, rising; `seed` says which.
pub fn draw_images(len: usize, count: usize, seed: u64) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let drawn = rand::seq::index::sample(&mut rng, len, count.min(len));
    let mut drawn: Vec<u32> = drawn.into_iter().map(|index| index as u32).collect();
    drawn.sort_unstable();
    drawn
}

/// The `k` rows of `gallery` nearest to each row of `queries` by cosine, nearest first; of equally
/// near ones the lower index comes first.
///
/// `own`: the numbers of the queries in the gallery, where they come from it; a query is then not
/// its own neighbour.
///
/// # Errors
/// [`EvalError::Setting`] unless the gallery has `k` images beside the query;
/// [`EvalError::Layers`] for features of different sizes; [`EvalError::Shape`] if `own` has another
/// length than there are queries.
pub fn nearest_neighbours(
    queries: &LayerFeatures,
    gallery: &LayerFeatures,
    k: usize,
    own: Option<&[u32]>,
) -> Result<Vec<Vec<Neighbour>>> {
    if (queries.layer(), queries.dim()) != (gallery.layer(), gallery.dim()) {
        let describe = |set: &LayerFeatures| format!("{} of {}", set.layer(), set.dim());
        return Err(EvalError::Layers {
            train: describe(gallery),
            test: describe(queries),
        });
    }
    if let Some(own) = own
        && own.len() != queries.rows()
    {
        return Err(EvalError::Shape {
            what: "the queries' numbers in the gallery".to_owned(),
            expected: queries.rows().to_string(),
            found: own.len().to_string(),
        });
    }
    let others = gallery.rows() - usize::from(own.is_some());
    let expected = format!("must lie between 1 and {others}, the other images of the gallery");
    check("k", k, (1..=others).contains(&k), &expected)?;
    let (rows, queries) = (UnitRows::all(gallery), UnitRows::all(queries));
    let gallery = Gallery::new(&rows);
    // The query may be among its nearest: one more is then enough to have `k` others.
    let wanted = k + usize::from(own.is_some());
    let blocks = (0..queries.len()).into_par_iter().step_by(QUERIES);
    let found: Vec<_> = blocks
        .flat_map_iter(|first| {
            let block = first..queries.len().min(first + QUERIES);
            gallery.nearest(&queries, block, wanted)
        })
        .collect();
    let rows = found.into_iter().enumerate().map(|(row, candidates)| {
        let own = own.map(|own| own[row]);
        let others = candidates.iter().filter(|other| Some(other.index) != own);
        let neighbours = others.take(k).map(|other| Neighbour {
            index: other.index as usize,
            cosine: other.similarity,
        });
        neighbours.collect()
    });
    Ok(rows.collect())
}
