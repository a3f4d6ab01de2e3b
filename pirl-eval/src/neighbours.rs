//! Retrieval: images, and those whose features are nearest.

use pirl_core::check;
use rayon::prelude::*;
use serde::Serialize;

use crate::error::{EvalError, Result};
use crate::feature_set::LayerFeatures;
use crate::nearest::{QUERIES, nearest, normalised};

/// An image near a query.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Neighbour {
    /// Its number in the gallery.
    pub index: usize,
    /// The cosine of its features and the query's.
    pub cosine: f32,
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
    let dim = gallery.dim();
    if (queries.layer(), queries.dim()) != (gallery.layer(), dim) {
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
    let bank = normalised(gallery);
    let queries = normalised(queries);
    // The query may be among its nearest: one more is then enough to have `k` others.
    let wanted = k + usize::from(own.is_some());
    let found: Vec<_> = queries
        .par_chunks(QUERIES * dim)
        .flat_map_iter(|block| nearest(block, &bank, dim, wanted))
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
