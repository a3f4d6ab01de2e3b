//! Unit rows as 16-bit integers, and how far their products may be from cosines.
//!
//! A row r of the gallery is kept as r - m, with m the mean of all rows: for one query q, r q and (r - m) q
//! differ by the same number for every row, and differences are smaller, so that the steps of the integers are
//! finer. With r - m = R / s + e and q = Q / t + f, where R and Q are of integers and s and t scales,
//! (r - m) q = R Q / (s t) + Q e / t + f (r - m), and by Cauchy and Schwarz the last two terms are at
//! most (1 + |f|) |e| + |f| |r - m|. All norms are measured, so the margin holds whatever the rounding was.

use std::ops::Range;

use pirl_core::vectorised;
use rayon::prelude::*;

use super::UnitRows;
use super::candidates::Estimate;
use super::kernel::{PANEL, PanelPair, TILE, TilePair, pair};

/// The scale of queries: their numbers are at most 1, and must be below 2^15 then.
const QUERY_SCALE: f64 = 32_000.0;
/// Rows that one thread sums; fixed, so that sums do not depend on the number of threads.
const ROWS: usize = 1024;
/// What rounding two cosines to `f32` moves them against each other, at most; generously.
const ROUNDING: f64 = 1.0 / (1 << 22) as f64;
/// Columns whose sums go side by side.
const LANES: usize = 8;

/// The rows of a gallery.
pub(super) struct Panels {
    mean: Vec<f64>,
    pairs: usize,
    /// `pairs` for each panel; the last is filled up with zeros.
    packed: Vec<PanelPair>,
    scale: f64,
    /// The largest norm of a row's difference from the mean.
    radius: f64,
    /// The largest norm of what rounding took from one.
    residual: f64,
}

impl Panels {
    pub(super) fn new(rows: &UnitRows<'_>) -> Self {
        let (len, dim) = (rows.len(), rows.dim());
        let mean = mean(rows);
        let spreads = (0..len).into_par_iter().map(|row| {
            let (values, inverse) = rows.row(row);
            spread(values, inverse, &mean)
        });
        let (largest, squares) = spreads.reduce(|| (0.0, 0.0), |a, b| (a.0.max(b.0), a.1.max(b.1)));
        let radius = squares.sqrt();
        let scale = scale(largest, radius, dim);
        let pairs = dim.div_ceil(2);
        let mut packed = vec![PanelPair([0; PANEL]); len.div_ceil(PANEL) * pairs];
        let residuals = packed.par_chunks_mut(pairs).enumerate().map_init(
            Vec::new,
            |integers, (number, panel)| {
                integers.resize(2 * pairs, 0);
                let of_panel = number * PANEL..len.min((number + 1) * PANEL);
                let of_row = |(place, row): (usize, usize)| {
                    let (values, inverse) = rows.row(row);
                    let residual = quantise(values, inverse, &mean, scale, &mut integers[..dim]);
                    for (to, columns) in panel.iter_mut().zip(integers.as_chunks().0) {
                        to.0[place] = pair(*columns);
                    }
                    residual
                };
                of_panel.enumerate().map(of_row).fold(0.0, f64::max)
            },
        );
        let residual = residuals.reduce(|| 0.0, f64::max).sqrt();
        Self {
            mean,
            pairs,
            packed,
            scale,
            radius,
            residual,
        }
    }

    /// The panels, each of [`PANEL`] rows.
    pub(super) fn each(&self) -> impl Iterator<Item = &[PanelPair]> {
        self.packed.chunks_exact(self.pairs)
    }

    /// Some queries in tiles, and what their products with the panels mean.
    pub(super) fn queries(
        &self,
        queries: &UnitRows<'_>,
        which: Range<usize>,
    ) -> (Vec<TilePair>, Vec<Estimate>) {
        let dim = queries.dim();
        let mut tiles = vec![[0; TILE]; which.len().div_ceil(TILE) * self.pairs];
        let mut integers = vec![0; 2 * self.pairs];
        let nothing = vec![0.0; dim];
        let unit = QUERY_SCALE * self.scale;
        let of_query = |(place, query): (usize, usize)| {
            let (values, inverse) = queries.row(query);
            let integers = &mut integers[..];
            let squares = quantise(values, inverse, &nothing, QUERY_SCALE, &mut integers[..dim]);
            let tile = &mut tiles[place / TILE * self.pairs..][..self.pairs];
            for (to, columns) in tile.iter_mut().zip(integers.as_chunks().0) {
                to[place % TILE] = pair(*columns);
            }
            let residual = squares.sqrt();
            let error = (1.0 + residual) * self.residual + residual * self.radius + ROUNDING;
            let products = values.iter().zip(&self.mean);
            Estimate {
                offset: inverse * products.map(|(x, m)| f64::from(*x) * m).sum::<f64>(),
                unit,
                margin: error * unit,
            }
        };
        let estimates = which.enumerate().map(of_query).collect();
        (tiles, estimates)
    }
}

/// The scale of rows of which no number is beyond `largest` and no norm beyond `radius`: numbers must be below
/// 2^15 then, and the products with queries, for which the norms of both sides stand, below 2^31.
fn scale(largest: f64, radius: f64, dim: usize) -> f64 {
    // What rounding adds to a norm, at most.
    let rounding = 0.5 * (dim as f64).sqrt() + 1.0;
    let norm = f64::from(i32::MAX) / (QUERY_SCALE + rounding) - rounding;
    let scale = (32_767.0 / largest).min(norm / radius);
    // All rows may be equal.
    if scale.is_finite() { scale } else { 1.0 }
}

fn mean(rows: &UnitRows<'_>) -> Vec<f64> {
    let (len, dim) = (rows.len(), rows.dim());
    let parts: Vec<Vec<f64>> = (0..len.div_ceil(ROWS))
        .into_par_iter()
        .map(|part| {
            let mut sums = vec![0.0; dim];
            for row in part * ROWS..len.min((part + 1) * ROWS) {
                let (values, inverse) = rows.row(row);
                add(values, inverse, &mut sums);
            }
            sums
        })
        .collect();
    let mut mean = vec![0.0; dim];
    for part in parts {
        add_parts(&part, 1.0 / len as f64, &mut mean);
    }
    mean
}

vectorised! {
    /// `sums += inverse * row`.
    fn add(row: &[f32], inverse: f64, sums: &mut [f64]) {
        for (sum, x) in sums.iter_mut().zip(row) {
            *sum += f64::from(*x) * inverse;
        }
    }
}

/// `sums += factor * part`.
fn add_parts(part: &[f64], factor: f64, sums: &mut [f64]) {
    for (sum, x) in sums.iter_mut().zip(part) {
        *sum += x * factor;
    }
}

vectorised! {
    /// Of `inverse * row - mean` the largest number, without its sign, and the squared norm.
    fn spread(row: &[f32], inverse: f64, mean: &[f64]) -> (f64, f64) {
        let (mut largest, mut squares) = ([0f64; LANES], [0f64; LANES]);
        for (row, mean) in row.chunks(LANES).zip(mean.chunks(LANES)) {
            let lanes = largest.iter_mut().zip(&mut squares);
            for ((largest, squares), (x, mean)) in lanes.zip(row.iter().zip(mean)) {
                let x = (f64::from(*x) * inverse - mean).abs();
                *largest = if x > *largest { x } else { *largest };
                *squares += x * x;
            }
        }
        (largest.into_iter().fold(0.0, f64::max), squares.iter().sum())
    }
}

vectorised! {
    /// Rounds `scale * (inverse * row - mean)`, and returns the squared norm of what that took from
    /// `inverse * row - mean`.
    fn quantise(row: &[f32], inverse: f64, mean: &[f64], scale: f64, integers: &mut [i16]) -> f64 {
        let mut squares = [0f64; LANES];
        let rows = row.chunks(LANES).zip(mean.chunks(LANES));
        for ((row, mean), integers) in rows.zip(integers.chunks_mut(LANES)) {
            let numbers = row.iter().zip(mean).zip(integers);
            for (squares, ((x, mean), integer)) in squares.iter_mut().zip(numbers) {
                let x = f64::from(*x) * inverse - mean;
                let rounded = (x * scale).round_ties_even();
                *integer = rounded as i32 as i16;
                let residual = x - rounded / scale;
                *squares += residual * residual;
            }
        }
        squares.iter().sum()
    }
}
