//! Average precision of a ranking, in the two ways of the protocol.

use std::cmp::Ordering;

/// The highest score first; equal ones stay in their order.
fn ranked(mut scored: Vec<(f64, bool)>) -> Vec<(f64, bool)> {
    scored.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal));
    scored
}

/// scikit-learn's `average_precision_score`: the sum of the precision at each threshold times the
/// recall it adds. 0 without a positive.
pub(super) fn stepwise(scored: Vec<(f64, bool)>) -> f64 {
    let scored = ranked(scored);
    let positives = scored.iter().filter(|(_, positive)| *positive).count();
    let (mut seen, mut hits, mut sum) = (0, 0, 0.0);
    // Equal scores pass a threshold together.
    for group in scored.chunk_by(|a, b| a.0 == b.0) {
        let new = group.iter().filter(|(_, positive)| *positive).count();
        seen += group.len();
        hits += new;
        sum += new as f64 * hits as f64 / seen as f64;
    }
    sum / positives.max(1) as f64
}

/// The area under the precision envelope (VISSL's `get_precision_recall`): at each recall the
/// highest precision of any recall as high. 0 without a positive.
pub(crate) fn envelope(scored: Vec<(f64, bool)>) -> f64 {
    let scored = ranked(scored);
    let mut hits = 0;
    let precisions: Vec<f64> = scored
        .iter()
        .enumerate()
        .filter_map(|(before, (_, positive))| {
            hits += usize::from(*positive);
            positive.then(|| f64::from(hits as u32) / (before + 1) as f64)
        })
        .collect();
    let mut highest: f64 = 0.0;
    let mut sum = 0.0;
    for precision in precisions.iter().rev() {
        highest = highest.max(*precision);
        sum += highest;
    }
    sum / precisions.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_areas_of_a_small_ranking() {
        // Precisions at the positives: 1, 2/4, 3/5.
        let order = [true, false, false, true, true];
        let scored: Vec<(f64, bool)> = (0..5)
            .map(|i| (f64::from(9 - i), order[i as usize]))
            .collect();
        assert!((stepwise(scored.clone()) - (1.0 + 0.5 + 0.6) / 3.0).abs() < 1e-12);
        assert!((envelope(scored) - (1.0 + 0.6 + 0.6) / 3.0).abs() < 1e-12);
        // All tied: one threshold, precision 3/5.
        let tied = order.map(|positive| (1.0, positive)).to_vec();
        assert!((stepwise(tied) - 0.6).abs() < 1e-12);
        assert_eq!((stepwise(vec![(1.0, false)]), envelope(vec![])), (0.0, 0.0));
    }
}
