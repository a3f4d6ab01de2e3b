//! How far classes lie apart.

use rayon::prelude::*;

/// Points that are compared at most, evenly spaced in the set.
const MOST: usize = 10_000;

/// The mean silhouette of the labelled points (Rousseeuw 1987): of each, how much nearer its own class is than
/// the nearest other one, from -1 to 1; 0 for a class of one point. Sets of more than 10,000 points are
/// sampled. `None` with fewer than two classes.
pub fn silhouette(points: &[[f32; 2]], labels: &[Option<u32>]) -> Option<f64> {
    let labelled: Vec<(&[f32; 2], u32)> = points
        .iter()
        .zip(labels)
        .filter_map(|(point, label)| Some((point, (*label)?)))
        .collect();
    let stride = labelled.len().div_ceil(MOST).max(1);
    let sample: Vec<(&[f32; 2], u32)> = labelled.into_iter().step_by(stride).collect();
    let classes = sample.iter().map(|(_, class)| *class as usize + 1).max()?;
    let mut counts = vec![0usize; classes];
    sample
        .iter()
        .for_each(|(_, class)| counts[*class as usize] += 1);
    if counts.iter().filter(|count| **count > 0).count() < 2 {
        return None;
    }
    let of = |(point, class): &(&[f32; 2], u32)| {
        let own = *class as usize;
        if counts[own] < 2 {
            return 0.0;
        }
        let mut sums = vec![0f64; classes];
        for (other, class) in &sample {
            let way = [point[0] - other[0], point[1] - other[1]].map(f64::from);
            sums[*class as usize] += way[0].hypot(way[1]);
        }
        let within = sums[own] / (counts[own] - 1) as f64;
        let means = sums.iter().zip(&counts).enumerate();
        let others = means.filter(|(class, (_, count))| *class != own && **count > 0);
        let nearest = others
            .map(|(_, (sum, count))| sum / *count as f64)
            .fold(f64::INFINITY, f64::min);
        (nearest - within) / nearest.max(within).max(f64::MIN_POSITIVE)
    };
    let each: Vec<f64> = sample.par_iter().map(of).collect();
    Some(each.iter().sum::<f64>() / each.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_mean_over_points_of_how_much_nearer_their_own_class_is() {
        let points = [[0.0, 0.0], [1.0, 0.0], [4.0, 0.0], [5.0, 1.0], [0.0, 3.0]];
        let labels = [0, 0, 1, 1, 2].map(Some);
        let found = silhouette(&points, &labels).unwrap();
        let (d, root) = (|a: f64, b: f64| (a * a + b * b).sqrt(), 2f64.sqrt());
        let first = (3.0 - 1.0) / 3.0;
        let second = (d(1.0, 3.0) - 1.0) / d(1.0, 3.0);
        let third = (3.5 - root) / 3.5;
        let other = 0.5 * (d(5.0, 1.0) + d(4.0, 1.0));
        let fourth = (other - root) / other;
        let expected = (first + second + third + fourth) / 5.0;
        assert!((found - expected).abs() < 1e-6, "{found}, {expected}");
    }

    #[test]
    fn one_class_or_none_has_no_silhouette() {
        let points = [[0.0, 0.0], [1.0, 0.0]];
        assert_eq!(silhouette(&points, &[None, None]), None);
        assert_eq!(silhouette(&points, &[Some(3), Some(3)]), None);
        assert_eq!(silhouette(&points, &[Some(0), Some(1)]), Some(0.0));
    }
}
