//! L2-regularised squared-hinge support vector machines by dual coordinate descent with shrinking:
//! Hsieh et al., "A dual coordinate descent method for large-scale linear SVM" (ICML 2008), which
//! is what LIBLINEAR, and so scikit-learn's `LinearSVC`, runs.
//!
//! The intercept is one more feature, of value 1, and regularised as the others are.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// A multiplier with a smaller projected gradient is not changed.
const STILL: f64 = 1e-12;

/// All samples, of which a machine may learn from some.
pub(crate) struct Problem<'a> {
    /// `(samples, dim)`, row by row.
    pub(crate) rows: &'a [f32],
    pub(crate) dim: usize,
    pub(crate) positive: &'a [bool],
}

impl Problem<'_> {
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.rows[row * self.dim..][..self.dim]
    }
}

pub(crate) struct Solver {
    pub(crate) cost: f64,
    pub(crate) positive_weight: f64,
    pub(crate) tolerance: f64,
    pub(crate) max_passes: usize,
    pub(crate) seed: u64,
}

/// A trained machine.
pub(crate) struct Machine {
    weight: Vec<f64>,
    intercept: f64,
    /// Whether it came within the tolerance.
    pub(crate) finished: bool,
}

/// A sample with its multiplier.
struct Sample<'a> {
    row: &'a [f32],
    sign: f64,
    alpha: f64,
    /// 1 / (2 C).
    diagonal: f64,
    /// x.x + 1 + 1 / (2 C).
    curvature: f64,
}

impl Machine {
    /// w.x + b
    pub(crate) fn score(&self, row: &[f32]) -> f64 {
        dot(&self.weight, row) + self.intercept
    }

    fn add(&mut self, step: f64, row: &[f32]) {
        for (weight, x) in self.weight.iter_mut().zip(row) {
            *weight += step * f64::from(*x);
        }
        self.intercept += step;
    }
}

impl Solver {
    /// Minimises |w|^2 / 2 + sum over `chosen` of C_i max(0, 1 - y_i (w.x_i + b))^2, C_i being the
    /// cost, times the positive weight for positives.
    pub(crate) fn train(&self, problem: &Problem<'_>, chosen: &[u32]) -> Machine {
        let mut samples: Vec<Sample<'_>> = chosen
            .iter()
            .map(|row| {
                let positive = problem.positive[*row as usize];
                let (sign, weight) = if positive {
                    (1.0, self.positive_weight)
                } else {
                    (-1.0, 1.0)
                };
                let row = problem.row(*row as usize);
                let diagonal = 0.5 / (self.cost * weight);
                let squares: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
                Sample {
                    row,
                    sign,
                    alpha: 0.0,
                    diagonal,
                    curvature: squares + 1.0 + diagonal,
                }
            })
            .collect();
        let mut machine = Machine {
            weight: vec![0.0; problem.dim],
            intercept: 0.0,
            finished: false,
        };
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let every: Vec<usize> = (0..samples.len()).collect();
        let mut active = every.clone();
        let mut shrink_above = f64::INFINITY;
        for _ in 0..self.max_passes {
            active.shuffle(&mut rng);
            let (mut most, mut least) = (f64::NEG_INFINITY, f64::INFINITY);
            active.retain(|at| {
                let sample = &mut samples[*at];
                let slope =
                    machine.score(sample.row) * sample.sign - 1.0 + sample.alpha * sample.diagonal;
                // What the bound alpha >= 0 leaves of it.
                let projected = if sample.alpha == 0.0 {
                    if slope > shrink_above {
                        return false;
                    }
                    slope.min(0.0)
                } else {
                    slope
                };
                most = most.max(projected);
                least = least.min(projected);
                if projected.abs() > STILL {
                    let before = sample.alpha;
                    sample.alpha = (before - slope / sample.curvature).max(0.0);
                    let (step, row) = ((sample.alpha - before) * sample.sign, sample.row);
                    machine.add(step, row);
                }
                true
            });
            if most - least <= self.tolerance || active.is_empty() {
                if active.len() == every.len() {
                    machine.finished = true;
                    break;
                }
                // Within the tolerance on the active samples: check all of them again.
                active.clone_from(&every);
                shrink_above = f64::INFINITY;
            } else {
                shrink_above = if most <= 0.0 { f64::INFINITY } else { most };
            }
        }
        machine
    }
}

/// The sum of the products, in eight parts.
fn dot(weight: &[f64], row: &[f32]) -> f64 {
    let mut sums = [0.0; 8];
    let (weights, weights_left) = weight.as_chunks::<8>();
    let (rows, row_left) = row.as_chunks::<8>();
    for (weights, row) in weights.iter().zip(rows) {
        for ((sum, weight), x) in sums.iter_mut().zip(weights).zip(row) {
            *sum += weight * f64::from(*x);
        }
    }
    let left = weights_left.iter().zip(row_left);
    sums.iter().sum::<f64>() + left.map(|(weight, x)| weight * f64::from(*x)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The gradient of the primal objective vanishes at the minimum, and nowhere else.
    #[test]
    fn a_finished_machine_is_at_the_minimum() {
        let (count, dim) = (120, 11);
        let rows = benches::fill(3, count * dim);
        let noise = benches::fill(4, count);
        let positive: Vec<bool> = rows
            .chunks(dim)
            .zip(&noise)
            .map(|(row, noise)| row[0] + row[1] + noise > 0.6)
            .collect();
        let problem = Problem {
            rows: &rows,
            dim,
            positive: &positive,
        };
        let chosen: Vec<u32> = (5..count as u32).collect();
        for cost in [0.01, 1.0, 20.0] {
            let solver = Solver {
                cost,
                positive_weight: 2.0,
                tolerance: 1e-9,
                max_passes: 100_000,
                seed: 1,
            };
            let machine = solver.train(&problem, &chosen);
            assert!(machine.finished);
            let mut gradient = machine.weight.clone();
            gradient.push(machine.intercept);
            for row in &chosen {
                let row = *row as usize;
                let (y, c) = if positive[row] {
                    (1.0, 2.0 * cost)
                } else {
                    (-1.0, cost)
                };
                let gap = (1.0 - y * machine.score(problem.row(row))).max(0.0);
                for (i, g) in gradient.iter_mut().enumerate() {
                    let x = problem.row(row).get(i).map_or(1.0, |x| f64::from(*x));
                    *g -= 2.0 * c * gap * y * x;
                }
            }
            let size = machine.weight.iter().map(|w| w * w).sum::<f64>().sqrt();
            assert!(size > 0.0);
            let worst = gradient.iter().fold(0f64, |worst, g| worst.max(g.abs()));
            assert!(worst < 1e-6 * (1.0 + cost), "C = {cost}: {worst}");
        }
    }
}
