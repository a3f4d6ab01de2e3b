//! The rows of a table nearest to others by cosine.
//!
//! The product of all queries with all rows is never whole in memory: it is made tile by tile, and
//! each query keeps only its nearest candidates.

use std::cmp::Ordering;

use pirl_core::{Matrix, product};
use rayon::prelude::*;

use crate::feature_set::LayerFeatures;

/// Queries whose similarities are computed together by one thread.
pub(crate) const QUERIES: usize = 128;
/// Rows in a tile.
const TILE: usize = 1024;
/// Shorter vectors are divided by this instead of their norm, as in PyTorch's `normalize`.
const MIN_NORM: f64 = 1e-12;

/// A row and its cosine to the query.
#[derive(Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) similarity: f32,
    pub(crate) index: u32,
}

impl Candidate {
    /// Nearer first; a total order, so the choice of neighbours has no ties.
    fn nearer(&self, other: &Self) -> Ordering {
        other
            .similarity
            .total_cmp(&self.similarity)
            .then(self.index.cmp(&other.index))
    }
}

/// The `k` nearest candidates of one query seen so far. Candidates are collected up to twice `k`, then
/// the farther half is dropped.
struct Nearest {
    k: usize,
    candidates: Vec<Candidate>,
    /// Similarity of the k-th nearest when the candidates were last cut.
    bound: f32,
}

impl Nearest {
    fn new(k: usize) -> Self {
        Self {
            k,
            candidates: Vec::with_capacity(2 * k),
            bound: f32::NEG_INFINITY,
        }
    }

    fn offer(&mut self, similarities: &[f32], first: usize) {
        for (offset, &similarity) in similarities.iter().enumerate() {
            // Indices only rise, so a later equal of the bound is the farther of the two.
            if similarity > self.bound || self.candidates.len() < self.k {
                self.candidates.push(Candidate {
                    similarity,
                    index: (first + offset) as u32,
                });
                if self.candidates.len() >= 2 * self.k {
                    self.cut();
                }
            }
        }
    }

    fn cut(&mut self) {
        if self.candidates.len() > self.k {
            self.candidates
                .select_nth_unstable_by(self.k - 1, Candidate::nearer);
            self.candidates.truncate(self.k);
        }
        if let Some(last) = self.candidates.iter().max_by(|a, b| a.nearer(b)) {
            self.bound = last.similarity;
        }
    }

    fn finish(mut self) -> Vec<Candidate> {
        self.cut();
        self.candidates.sort_unstable_by(Candidate::nearer);
        self.candidates
    }
}

/// The `k` nearest rows of `bank` for every row of `block`, nearest first; of equally near ones the
/// lower index counts as nearer. Rows have `dim` entries and norm 1.
pub(crate) fn nearest(block: &[f32], bank: &[f32], dim: usize, k: usize) -> Vec<Vec<Candidate>> {
    let queries = block.len() / dim;
    let mut nearest: Vec<Nearest> = (0..queries).map(|_| Nearest::new(k)).collect();
    let mut similarities = vec![0f32; queries * TILE];
    for (number, tile) in bank.chunks(TILE * dim).enumerate() {
        let columns = tile.len() / dim;
        let similarities = &mut similarities[..queries * columns];
        product(
            similarities,
            Matrix::new(block, queries, dim),
            Matrix::new(tile, columns, dim).t(),
            1.0,
        );
        for (nearest, row) in nearest.iter_mut().zip(similarities.chunks_exact(columns)) {
            nearest.offer(row, number * TILE);
        }
    }
    nearest.into_iter().map(Nearest::finish).collect()
}

/// The rows divided by their L2 norms.
pub(crate) fn normalised(features: &LayerFeatures) -> Vec<f32> {
    let mut values = features.values().to_vec();
    values.par_chunks_mut(features.dim()).for_each(normalise);
    values
}

/// Divides a vector by its L2 norm.
pub(crate) fn normalise(row: &mut [f32]) {
    let squares: f64 = row.iter().map(|value| f64::from(*value).powi(2)).sum();
    let norm = squares.sqrt().max(MIN_NORM);
    row.iter_mut()
        .for_each(|value| *value = (f64::from(*value) / norm) as f32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_are_exact_with_ties_in_the_order_of_the_bank() {
        // Similarities on a coarse grid, so most are tied; more than one tile; k across the ties.
        let bank: Vec<f32> = benches::fill(3, 2 * TILE + 1)
            .iter()
            .map(|x| (x * 4.0).round() / 4.0)
            .collect();
        for k in [1, 7, 200, bank.len()] {
            let found = &nearest(&[1.0], &bank, 1, k)[0];
            let mut expected: Vec<usize> = (0..bank.len()).collect();
            expected.sort_by(|a, b| bank[*b].total_cmp(&bank[*a]).then(a.cmp(b)));
            let found: Vec<usize> = found.iter().map(|n| n.index as usize).collect();
            assert_eq!(found, expected[..k], "k = {k}");
        }
    }
}
