//! The rows of a table nearest to others by cosine.
//!
//! Exact, though most of the work is on 16-bit integers, which AVX2 multiplies twice as fast as `f32`: a
//! product of integers gives a cosine within a known margin (`quantised`), and the cosines themselves are
//! computed, in `f64`, of those rows alone that may be among the nearest by that (`candidates`). So neighbours and
//! cosines depend neither on threads nor on tiles or the processor. The product of all queries with all
//! rows is never whole in memory: each query keeps its candidates while one panel of rows after another
//! passes (`kernel`).

mod candidates;
mod kernel;
mod quantised;

use std::ops::Range;

use pirl_core::vectorised;
use rayon::prelude::*;

use crate::feature_set::LayerFeatures;

pub(crate) use candidates::Candidate;
use candidates::Candidates;
use kernel::{PANEL, TILE};
use quantised::Panels;

/// Queries that one thread takes at a time.
pub(crate) const QUERIES: usize = 16 * TILE;
/// Shorter vectors are divided by this instead of their norm, as in PyTorch's `normalize`.
const MIN_NORM: f64 = 1e-12;
/// Columns whose products are summed side by side.
const LANES: usize = 16;

/// Some rows of a table, compared as if each were divided by its L2 norm.
pub(crate) struct UnitRows<'a> {
    features: &'a LayerFeatures,
    numbers: Vec<u32>,
    /// Of the norms.
    inverse: Vec<f64>,
}

impl<'a> UnitRows<'a> {
    /// Those of the given numbers.
    pub(crate) fn of(features: &'a LayerFeatures, numbers: Vec<u32>) -> Self {
        let rows = numbers.par_iter();
        let inverse = rows.map(|row| 1.0 / norm(features.row(*row as usize)));
        Self {
            inverse: inverse.collect(),
            features,
            numbers,
        }
    }

    /// All of them.
    pub(crate) fn all(features: &'a LayerFeatures) -> Self {
        Self::of(features, (0..features.rows() as u32).collect())
    }

    /// How many rows there are.
    pub(crate) fn len(&self) -> usize {
        self.numbers.len()
    }

    fn dim(&self) -> usize {
        self.features.dim()
    }

    /// A row, and what divides it by its norm.
    fn row(&self, row: usize) -> (&[f32], f64) {
        let values = self.features.row(self.numbers[row] as usize);
        (values, self.inverse[row])
    }
}

/// The cosine of two rows, given what divides them by their norms; the same in either order.
fn cosine((a, inverse_a): (&[f32], f64), (b, inverse_b): (&[f32], f64)) -> f32 {
    (dot(a, b) * (inverse_a * inverse_b)) as f32
}

vectorised! {
    /// The product of two vectors of one length.
    fn dot(a: &[f32], b: &[f32]) -> f64 {
        let mut sums = [0f64; LANES];
        let (a, a_rest) = a.as_chunks::<LANES>();
        let (b, b_rest) = b.as_chunks::<LANES>();
        for (a, b) in a.iter().zip(b) {
            for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
                *sum += f64::from(*a) * f64::from(*b);
            }
        }
        for (sum, (a, b)) in sums.iter_mut().zip(a_rest.iter().zip(b_rest)) {
            *sum += f64::from(*a) * f64::from(*b);
        }
        sums.iter().sum()
    }
}

/// Rows to find the nearest among.
pub(crate) struct Gallery<'a> {
    rows: &'a UnitRows<'a>,
    panels: Panels,
}

impl<'a> Gallery<'a> {
    /// Prepares the rows for all queries: half their size again.
    pub(crate) fn new(rows: &'a UnitRows<'a>) -> Self {
        Self {
            panels: Panels::new(rows),
            rows,
        }
    }

    /// The `k` nearest rows for each of some queries, nearest first, on the calling thread; of equally near
    /// ones the lower index counts as nearer. A `which` of [`QUERIES`] makes good use of the caches.
    pub(crate) fn nearest(
        &self,
        queries: &UnitRows<'_>,
        which: Range<usize>,
        k: usize,
    ) -> Vec<Vec<Candidate>> {
        let cosine_of = |query: usize| {
            let query = queries.row(which.start + query);
            move |row: u32| cosine(query, self.rows.row(row as usize))
        };
        let (tiles, estimates) = self.panels.queries(queries, which.clone());
        let estimates = estimates.into_iter();
        let mut nearest: Vec<Candidates> = estimates.map(|of| Candidates::new(k, of)).collect();
        let mut sums = vec![[[0; PANEL]; TILE]; which.len().div_ceil(TILE)];
        // What fills the last tile up reaches no bound.
        let mut bounds = vec![[i32::MAX; TILE]; sums.len()];
        bounds.as_flattened_mut()[..which.len()].fill(i32::MIN);
        let mut reached = Vec::new();
        for (number, panel) in self.panels.each().enumerate() {
            let first = number * PANEL;
            let rows = PANEL.min(self.rows.len() - first);
            kernel::scan(panel, &tiles, &bounds, &mut sums, &mut reached);
            for query in reached.drain(..) {
                let products = &sums.as_flattened()[query][..rows];
                let nearest = &mut nearest[query];
                nearest.offer(products, first as u32, cosine_of(query));
                bounds.as_flattened_mut()[query] = nearest.bound;
            }
        }
        let nearest = nearest.into_iter().enumerate();
        nearest
            .map(|(query, nearest)| nearest.finish(cosine_of(query)))
            .collect()
    }
}

/// The rows divided by their L2 norms.
pub(crate) fn normalised(features: &LayerFeatures) -> Vec<f32> {
    let mut values = features.values().to_vec();
    values.par_chunks_mut(features.dim()).for_each(normalise);
    values
}

/// Divides a vector by its L2 norm.
pub(crate) fn normalise(row: &mut [f32]) {
    let norm = norm(row);
    row.iter_mut()
        .for_each(|value| *value = (f64::from(*value) / norm) as f32);
}

/// The L2 norm of a vector, at least [`MIN_NORM`].
fn norm(row: &[f32]) -> f64 {
    let squares: f64 = row.iter().map(|value| f64::from(*value).powi(2)).sum();
    squares.sqrt().max(MIN_NORM)
}

#[cfg(test)]
mod tests {
    use pirl_model::Layer;

    use super::*;

    fn table(rows: usize, dim: usize, value: impl Fn(usize) -> f32) -> LayerFeatures {
        let values = (0..rows * dim).map(value).collect();
        LayerFeatures::new(Layer::RES5, rows, dim, values).unwrap()
    }

    /// Compares the neighbours of the first rows of `table` with those by all cosines.
    fn check(what: &str, table: &LayerFeatures) {
        let rows = UnitRows::all(table);
        let gallery = Gallery::new(&rows);
        let queries = rows.len().min(QUERIES + 1);
        for k in [1, 7, 200, rows.len()] {
            let k = k.min(rows.len());
            let found = (0..queries)
                .step_by(QUERIES)
                .flat_map(|first| gallery.nearest(&rows, first..queries.min(first + QUERIES), k));
            for (query, found) in found.enumerate() {
                let cosine_of = |row: usize| cosine(rows.row(query), rows.row(row));
                let mut expected: Vec<usize> = (0..rows.len()).collect();
                let cosines: Vec<f32> = expected.iter().map(|row| cosine_of(*row)).collect();
                expected.sort_by(|a, b| cosines[*b].total_cmp(&cosines[*a]).then(a.cmp(b)));
                let indices: Vec<usize> = found.iter().map(|near| near.index as usize).collect();
                assert_eq!(indices, expected[..k], "{what}: query {query}, k = {k}");
                for near in &found {
                    assert_eq!(near.similarity, cosines[near.index as usize], "{what}");
                }
            }
        }
    }

    #[test]
    fn the_nearest_are_exact_with_ties_in_the_order_of_the_table() {
        let random =
            |seed, dim| move |i: usize| benches::formula(seed, i as u32) * (1 + i / dim) as f32;
        for (rows, dim) in [(3, 2), (700, 5), (1500, 64), (400, 600)] {
            check("random", &table(rows, dim, random(1, dim)));
        }
        let coarse = |i: usize| (benches::formula(2, i as u32) * 2.0).round();
        check(
            "a coarse grid, most rows tied, some of zeros",
            &table(1200, 3, coarse),
        );
        check(
            "one number of a row",
            &table(1000, 40, |i| f32::from(u8::from(i / 40 % 40 == i % 40))),
        );
        // Rows that differ by less than the steps of integers would, were the mean not taken off, and by
        // less than cosines in `f32` can tell.
        for spread in [1e-3, 1e-6, 0.0] {
            let near = |i: usize| (i % 30) as f32 + spread * benches::formula(3, i as u32);
            check("collapsed", &table(1000, 30, near));
        }
        let sizes = |i: usize| benches::formula(4, i as u32) * [1e-30, 1.0, 1e30][i / 20 % 3];
        check("tiny and huge", &table(600, 20, sizes));
        let opposite = |i: usize| if (i / 8).is_multiple_of(2) { 1.0 } else { -1.0 };
        check("opposite", &table(300, 8, opposite));
    }
}
