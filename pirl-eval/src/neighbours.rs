//! Retrieval: images, and the images whose features are nearest.

use pirl_core::check;
use pirl_data::draw::{Canvas, Color, INK, LETTER, fit};
use pirl_data::{Image, Pack};
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

/// Longer side of an image on the sheet, pixels.
const PANEL: usize = 112;
const GAP: usize = 6;
/// Height of the two lines of words under an image, pixels.
const CAPTION: usize = 2 * (LETTER + 3);
const SAME: Color = [24, 128, 56];
const OTHER: Color = [200, 39, 40];

/// A contact sheet: a row for each of the images `queries` of `pack`, first the image, then its
/// `neighbours` in `gallery`, each with its class, number and cosine; the class in green where it is
/// the query's, in red where it is another.
///
/// # Errors
/// [`EvalError::Shape`] without rows, or unless there is one for each query;
/// [`EvalError::Data`] for an image that is not there or cannot be decoded.
pub fn neighbour_sheet(
    pack: &Pack,
    queries: &[u32],
    gallery: &Pack,
    neighbours: &[Vec<Neighbour>],
) -> Result<Image> {
    let columns = neighbours.iter().map(Vec::len).max().unwrap_or(0) + 1;
    if neighbours.len() != queries.len() || columns < 2 {
        return Err(EvalError::Shape {
            what: "a sheet of neighbours".to_owned(),
            expected: format!("neighbours of {} queries", queries.len()),
            found: neighbours.len().to_string(),
        });
    }
    // Neighbours stand a little apart from their query.
    let left = |column: usize| column * (PANEL + GAP) + if column > 0 { 2 * GAP } else { 0 };
    let row_height = PANEL + CAPTION + GAP;
    let (width, height) = (left(columns) - GAP, neighbours.len() * row_height - GAP);
    let mut sheet = Canvas::new(width, height);
    for (row, found) in neighbours.iter().enumerate() {
        let top = row * row_height;
        let query = queries[row] as usize;
        let class = pack.label(query).map(|label| name(pack, label));
        let mut show = |column: usize, pack: &Pack, index: usize, words: String| -> Result<()> {
            let (image, _) = fit(&pack.decode(index)?, PANEL)?;
            let at = |y: usize| (left(column) as i64, (top + y) as i64);
            let (wide, high) = ((PANEL - image.width) / 2, (PANEL - image.height) / 2);
            sheet.paste((at(0).0 + wide as i64, at(high).1), &image);
            let own = pack.label(index).map(|label| name(pack, label));
            let hue = match own {
                Some(_) if column == 0 || class.is_none() => INK,
                own if own == class => SAME,
                _ => OTHER,
            };
            let letters = own.unwrap_or_default().chars();
            let name: String = letters.take(PANEL / LETTER).collect();
            sheet.text(at(PANEL + 3), &name, hue);
            sheet.text(at(PANEL + LETTER + 5), &words, INK);
            Ok(())
        };
        show(0, pack, query, format!("{query}, query"))?;
        for (place, neighbour) in found.iter().enumerate() {
            let words = format!("{} {:.3}", neighbour.index, neighbour.cosine);
            show(place + 1, gallery, neighbour.index, words)?;
        }
    }
    Ok(sheet.into_image())
}

fn name(pack: &Pack, label: u32) -> &str {
    let name = pack.class_names().get(label as usize);
    name.map_or("", String::as_str)
}
