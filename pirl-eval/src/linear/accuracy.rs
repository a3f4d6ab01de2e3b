//! The accuracy of classifiers on rows of features.

use rayon::prelude::*;

use super::gradient::{FoldedWeights, logits};
use super::samples::Samples;
use crate::accuracy::Tally;

/// Rows whose logits are computed together by one thread.
const ROWS: usize = 256;

/// The tally of each classifier on `rows`; `None` for one whose logits are not finite.
pub(crate) fn accuracy(
    samples: &Samples<'_>,
    rows: &[u32],
    folded: &FoldedWeights,
) -> Vec<Option<Tally>> {
    let none_yet = || vec![Some(Tally::default()); folded.classifiers];
    rows.par_chunks(ROWS)
        .map(|rows| {
            let [z, _] = logits(samples, rows, folded);
            let mut tallies = none_yet();
            for (row, z) in rows.iter().zip(z.chunks_exact(folded.bias.len())) {
                let label = samples.labels[*row as usize] as usize;
                for (tally, z) in tallies.iter_mut().zip(z.chunks_exact(samples.classes)) {
                    if tally
                        .as_mut()
                        .and_then(|tally| tally.add(z, label))
                        .is_none()
                    {
                        *tally = None;
                    }
                }
            }
            tallies
        })
        .reduce(none_yet, |a, b| {
            let pairs = a.into_iter().zip(b);
            pairs.map(|(a, b)| Some(a?.merge(b?))).collect()
        })
}
