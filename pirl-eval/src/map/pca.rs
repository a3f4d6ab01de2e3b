//! Principal components, by subspace iteration.

use pirl_core::{Matrix, product};

/// Directions that are iterated, of which the first two are kept: more of them converge sooner.
const DIRECTIONS: usize = 8;
const ROUNDS: usize = 24;

/// The rows of `values`, `(rows, dim)`, along the two directions in which they vary most, and the share of
/// the variance along each. The sign of a direction is that of its largest entry.
pub(super) fn principal_components(values: &[f32], dim: usize) -> (Vec<[f64; 2]>, [f64; 2]) {
    let rows = values.len() / dim;
    let centred = centred(values, dim);
    let x = || Matrix::new(&centred, rows, dim);
    let directions = DIRECTIONS.min(dim);
    // Any start that is not orthogonal to the components will do: a fixed one draws the same map each time.
    let mut basis: Vec<Vec<f64>> = (0..directions)
        .map(|row| {
            (0..dim)
                .map(|at| ((row + 1) as f64 * (at as f64 + 0.5)).sin())
                .collect()
        })
        .collect();
    orthonormalise(&mut basis);
    let mut along = vec![0f32; rows * directions];
    for _ in 0..ROUNDS {
        project(&mut along, x(), &basis);
        let mut turned = vec![0f32; dim * directions];
        product(
            &mut turned,
            x().t(),
            Matrix::new(&along, rows, directions),
            1.0,
        );
        for (place, direction) in basis.iter_mut().enumerate() {
            for (at, value) in direction.iter_mut().enumerate() {
                *value = f64::from(turned[at * directions + place]);
            }
        }
        orthonormalise(&mut basis);
    }
    for direction in &mut basis {
        let largest = direction
            .iter()
            .copied()
            .reduce(|a, b| if b.abs() > a.abs() { b } else { a });
        if largest.is_some_and(|largest| largest < 0.0) {
            direction.iter_mut().for_each(|value| *value = -*value);
        }
    }
    project(&mut along, x(), &basis);
    let total: f64 = centred.iter().map(|value| f64::from(*value).powi(2)).sum();
    let component = |row: &[f32], place: usize| row.get(place).map_or(0.0, |x| f64::from(*x));
    let points: Vec<[f64; 2]> = along
        .chunks_exact(directions)
        .map(|row| [component(row, 0), component(row, 1)])
        .collect();
    let explained = [0, 1].map(|place| {
        let variance: f64 = points.iter().map(|point| point[place].powi(2)).sum();
        if total > 0.0 { variance / total } else { 0.0 }
    });
    (points, explained)
}

fn centred(values: &[f32], dim: usize) -> Vec<f32> {
    let rows = (values.len() / dim).max(1) as f64;
    let mut mean = vec![0f64; dim];
    for row in values.chunks_exact(dim) {
        for (sum, value) in mean.iter_mut().zip(row) {
            *sum += f64::from(*value) / rows;
        }
    }
    let mut centred = values.to_vec();
    for row in centred.chunks_exact_mut(dim) {
        for (value, mean) in row.iter_mut().zip(&mean) {
            *value = (f64::from(*value) - mean) as f32;
        }
    }
    centred
}

/// `x` times the directions: `(rows, directions)`.
fn project(along: &mut [f32], x: Matrix<'_>, basis: &[Vec<f64>]) {
    let (dim, directions) = (basis[0].len(), basis.len());
    let flat: Vec<f32> = basis.iter().flatten().map(|value| *value as f32).collect();
    product(along, x, Matrix::new(&flat, directions, dim).t(), 1.0);
}

/// Gram and Schmidt's, twice; what has no length is left as it is, next to nothing.
fn orthonormalise(basis: &mut [Vec<f64>]) {
    for place in 0..basis.len() {
        let (before, rest) = basis.split_at_mut(place);
        let Some(direction) = rest.first_mut() else {
            return;
        };
        for other in before.iter().chain(before.iter()) {
            let along: f64 = other.iter().zip(direction.iter()).map(|(a, b)| a * b).sum();
            for (value, other) in direction.iter_mut().zip(other) {
                *value -= along * other;
            }
        }
        let norm = direction
            .iter()
            .map(|value| value * value)
            .sum::<f64>()
            .sqrt();
        let norm = norm.max(1e-30);
        direction.iter_mut().for_each(|value| *value /= norm);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axes_of_an_ellipsoid_are_found_with_their_shares() {
        // Independent columns of widths 3, 2, 0.1, ... about a mean that is far away.
        let (rows, dim) = (4000, 12);
        let widths = [0.1, 2.0, 0.1, 3.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1];
        let noise = benches::fill(9, rows * dim);
        let value = |at: usize| 5.0 + widths[at % dim] * noise[at];
        let values: Vec<f32> = (0..rows * dim).map(value).collect();
        let (points, explained) = principal_components(&values, dim);
        let total: f32 = widths.iter().map(|width| width * width).sum();
        for (found, width) in explained.into_iter().zip([3f32, 2.0]) {
            let expected = f64::from(width * width / total);
            assert!((found - expected).abs() < 0.02, "{found}, {expected}");
        }
        // The components are the columns, up to their means, their signs made positive.
        let mean = |column| values.iter().skip(column).step_by(dim).sum::<f32>() / rows as f32;
        let means = [mean(3), mean(1)];
        for (row, point) in points.iter().enumerate().step_by(97) {
            for (place, column) in [3, 1].into_iter().enumerate() {
                let expected = f64::from(values[row * dim + column] - means[place]);
                assert!(
                    (point[place] - expected).abs() < 0.15,
                    "{point:?}, {expected}"
                );
            }
        }
    }

    #[test]
    fn one_column_has_one_component() {
        let (points, explained) = principal_components(&[1.0, 2.0, 6.0], 1);
        assert_eq!(points, [[-2.0, 0.0], [-1.0, 0.0], [3.0, 0.0]]);
        assert_eq!(explained, [1.0, 0.0]);
    }
}
