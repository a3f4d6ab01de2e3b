//! t-SNE: points whose closeness is as likely as that of the features.

use rayon::prelude::*;

use super::MapConfig;
use super::quadtree::Quadtree;
use crate::neighbours::Neighbour;

/// Attraction in the first third of the steps, in which groups form.
const EXAGGERATION: f64 = 12.0;
/// Points that one thread moves at a time.
const POINTS: usize = 256;

/// How likely each image takes each of its neighbours for one, both ways: a sparse matrix whose entries
/// sum to 1.
pub(super) struct Affinities {
    /// Where each row begins in the other two.
    starts: Vec<usize>,
    columns: Vec<u32>,
    values: Vec<f64>,
}

impl Affinities {
    /// From the nearest neighbours of each image by cosine. Each row is a Gaussian whose width makes it as
    /// uncertain as `perplexity` equal neighbours.
    pub(super) fn new(neighbours: &[Vec<Neighbour>], perplexity: f64) -> Self {
        let images = neighbours.len();
        let given: Vec<Vec<f64>> = neighbours
            .par_iter()
            .map(|row| {
                // The squared distance of two vectors of unit length.
                let squared = row
                    .iter()
                    .map(|other| (2.0 - 2.0 * f64::from(other.cosine)).max(0.0));
                gaussian(&squared.collect::<Vec<_>>(), perplexity)
            })
            .collect();
        // (p(j|i) + p(i|j)) / 2n, in the order of the columns.
        let mut rows: Vec<Vec<(u32, f64)>> = vec![Vec::new(); images];
        for (row, (others, given)) in neighbours.iter().zip(&given).enumerate() {
            for (other, p) in others.iter().zip(given) {
                let p = p / (2.0 * images as f64);
                rows[row].push((other.index as u32, p));
                rows[other.index].push((row as u32, p));
            }
        }
        let (mut starts, mut columns, mut values) = (vec![0], Vec::new(), Vec::new());
        for mut row in rows {
            row.sort_by_key(|(column, _)| *column);
            for (column, p) in row {
                match (columns.last(), values.last_mut()) {
                    (Some(last), Some(value))
                        if *last == column && columns.len() > *starts.last().unwrap_or(&0) =>
                    {
                        *value += p;
                    }
                    _ => {
                        columns.push(column);
                        values.push(p);
                    }
                }
            }
            starts.push(columns.len());
        }
        Self {
            starts,
            columns,
            values,
        }
    }

    fn row(&self, row: usize) -> impl Iterator<Item = (usize, f64)> {
        let range = self.starts[row]..self.starts[row + 1];
        let columns = self.columns[range.clone()].iter();
        columns
            .zip(&self.values[range])
            .map(|(column, p)| (*column as usize, *p))
    }
}

/// The weights of neighbours at these squared distances, summing to 1, whose entropy is that of
/// `perplexity` equal ones.
fn gaussian(squared: &[f64], perplexity: f64) -> Vec<f64> {
    let nearest = squared.iter().copied().fold(f64::INFINITY, f64::min);
    let wanted = perplexity.ln();
    let weights = |beta: f64| -> (Vec<f64>, f64) {
        let weights: Vec<f64> = squared
            .iter()
            .map(|d| (-beta * (d - nearest)).exp())
            .collect();
        let sum: f64 = weights.iter().sum();
        let mean: f64 = weights
            .iter()
            .zip(squared)
            .map(|(w, d)| w * (d - nearest))
            .sum::<f64>()
            / sum;
        let entropy = sum.ln() + beta * mean;
        (
            weights.into_iter().map(|weight| weight / sum).collect(),
            entropy,
        )
    };
    let (mut low, mut high, mut beta) = (0.0, f64::INFINITY, 1.0);
    for _ in 0..100 {
        let (_, entropy) = weights(beta);
        if (entropy - wanted).abs() < 1e-5 {
            break;
        }
        if entropy > wanted {
            low = beta;
            beta = if high.is_finite() {
                0.5 * (beta + high)
            } else {
                2.0 * beta
            };
        } else {
            high = beta;
            beta = 0.5 * (beta + low);
        }
    }
    weights(beta).0
}

/// The gradient of the Kullback-Leibler divergence at `points`, with `attraction` times the affinities.
fn gradient(
    affinities: &Affinities,
    points: &[[f64; 2]],
    attraction: f64,
    theta: f64,
) -> Vec<[f64; 2]> {
    let tree = Quadtree::new(points);
    let pushed: Vec<(f64, [f64; 2])> = points
        .par_chunks(POINTS)
        .flat_map_iter(|part| {
            let (tree, mut stack) = (&tree, Vec::new());
            part.iter()
                .map(move |point| tree.repulsion(*point, theta, &mut stack))
        })
        .collect();
    let total: f64 = pushed
        .iter()
        .map(|(sum, _)| sum)
        .sum::<f64>()
        .max(f64::MIN_POSITIVE);
    let of = |(row, (_, push)): (usize, &(f64, [f64; 2]))| {
        let own = points[row];
        let mut pull = [0.0; 2];
        for (column, p) in affinities.row(row) {
            let way = [own[0] - points[column][0], own[1] - points[column][1]];
            let weight = attraction * p / (1.0 + way[0] * way[0] + way[1] * way[1]);
            pull = [pull[0] + weight * way[0], pull[1] + weight * way[1]];
        }
        [0, 1].map(|axis| 4.0 * (pull[axis] - push[axis] / total))
    };
    pushed.par_iter().enumerate().map(of).collect()
}

/// Moves points down the gradient, from `start` made small; scikit-learn's schedule.
pub(super) fn descend(
    affinities: &Affinities,
    start: &[[f64; 2]],
    config: &MapConfig,
    progress: &mut dyn FnMut(usize, usize),
) -> Vec<[f64; 2]> {
    let images = start.len() as f64;
    let spread = (start.iter().map(|point| point[0] * point[0]).sum::<f64>() / images).sqrt();
    let scale = 1e-4 / spread.max(f64::MIN_POSITIVE);
    // Equal images must not lie on each other for ever: no force would part them.
    let apart = |row: usize| [(row as f64).sin(), (row as f64).cos()].map(|x| 1e-6 * x);
    let first = |(row, point): (usize, &[f64; 2])| {
        let small = point.map(|x| (x * scale).clamp(-1.0, 1.0));
        let apart = apart(row);
        [small[0] + apart[0], small[1] + apart[1]]
    };
    let mut points: Vec<[f64; 2]> = start.iter().enumerate().map(first).collect();
    let mut moves = vec![[0.0; 2]; points.len()];
    let mut gains = vec![[1.0f64; 2]; points.len()];
    let rate = (images / EXAGGERATION / 4.0).max(50.0);
    for step in 0..config.iterations {
        let early = step < config.iterations / 3;
        let (attraction, momentum) = if early {
            (EXAGGERATION, 0.5)
        } else {
            (1.0, 0.8)
        };
        let slopes = gradient(affinities, &points, attraction, config.theta);
        for (row, slope) in slopes.iter().enumerate() {
            for axis in 0..2 {
                let gain = &mut gains[row][axis];
                let turned = moves[row][axis] * slope[axis] < 0.0;
                *gain = if turned {
                    *gain + 0.2
                } else {
                    (*gain * 0.8).max(0.01)
                };
                moves[row][axis] = momentum * moves[row][axis] - rate * *gain * slope[axis];
                points[row][axis] += moves[row][axis];
            }
        }
        progress(step + 1, config.iterations);
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> (Affinities, Vec<[f64; 2]>) {
        let images = 12;
        let noise = benches::fill(1, 400);
        let neighbours: Vec<Vec<Neighbour>> = (0..images)
            .map(|row| {
                let others =
                    (0..images).filter(|other| (row * 5 + other * 7) % 3 != 0 && *other != row);
                let cosine = |other: usize| 0.5 * noise[row.min(other) * images + row.max(other)];
                others
                    .map(|index| Neighbour {
                        index,
                        cosine: cosine(index),
                    })
                    .collect()
            })
            .collect();
        let points = noise[200..200 + 2 * images].chunks_exact(2);
        let points = points.map(|pair| [3.0 * f64::from(pair[0]), 3.0 * f64::from(pair[1])]);
        (Affinities::new(&neighbours, 3.0), points.collect())
    }

    /// sum p ln(p / q), of every pair.
    fn divergence(affinities: &Affinities, points: &[[f64; 2]]) -> f64 {
        let q = |a: usize, b: usize| {
            let way = [points[a][0] - points[b][0], points[a][1] - points[b][1]];
            1.0 / (1.0 + way[0] * way[0] + way[1] * way[1])
        };
        let pairs = || (0..points.len()).flat_map(|a| (0..points.len()).map(move |b| (a, b)));
        let total: f64 = pairs().filter(|(a, b)| a != b).map(|(a, b)| q(a, b)).sum();
        let rows = 0..points.len();
        rows.flat_map(|a| affinities.row(a).map(move |(b, p)| (a, b, p)))
            .map(|(a, b, p)| p * (p * total / q(a, b)).ln())
            .sum()
    }

    #[test]
    fn the_gradient_is_that_of_finite_differences() {
        let (affinities, points) = example();
        assert!((affinities.values.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        let found = gradient(&affinities, &points, 1.0, 0.0);
        for row in 0..points.len() {
            for axis in 0..2 {
                let at = |by: f64| {
                    let mut points = points.clone();
                    points[row][axis] += by;
                    divergence(&affinities, &points)
                };
                let expected = (at(1e-5) - at(-1e-5)) / 2e-5;
                let error = (found[row][axis] - expected).abs();
                assert!(
                    error < 1e-8,
                    "{row} {axis}: {} {expected}",
                    found[row][axis]
                );
            }
        }
    }

    #[test]
    fn steps_lower_the_divergence() {
        let (affinities, points) = example();
        let config = MapConfig {
            iterations: 300,
            ..MapConfig::default()
        };
        let after = descend(&affinities, &points, &config, &mut |_, _| {});
        let [before, after] = [&points, &after].map(|points| divergence(&affinities, points));
        assert!(after < 0.8 * before, "{before}, {after}");
    }

    #[test]
    fn weights_are_as_uncertain_as_the_perplexity() {
        let squared: Vec<f64> = benches::fill(2, 90)
            .iter()
            .map(|x| f64::from(x * x))
            .collect();
        for perplexity in [2.0, 12.5, 30.0, 60.0] {
            let weights = gaussian(&squared, perplexity);
            let entropy: f64 = weights
                .iter()
                .filter(|p| **p > 0.0)
                .map(|p| -p * p.ln())
                .sum();
            assert!(
                (entropy.exp() - perplexity).abs() < 1e-3 * perplexity,
                "{entropy}"
            );
            assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        }
        // Equal distances leave no choice.
        let equal = gaussian(&[0.25; 7], 2.0);
        assert!(equal.iter().all(|p| (p - 1.0 / 7.0).abs() < 1e-12));
    }
}
