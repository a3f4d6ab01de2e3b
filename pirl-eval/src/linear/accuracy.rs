//! How classifiers do on rows of features.

use rayon::prelude::*;

use super::Task;
use super::gradient::logits;
use super::sgd::Classifiers;
use crate::accuracy::Tally;

/// Rows whose logits are computed together by one thread.
const ROWS: usize = 256;

/// The tally of each classifier on `rows`; `None` for one whose logits are not finite.
pub(crate) fn accuracy(
    task: &Task<'_>,
    rows: &[u32],
    classifiers: &Classifiers,
) -> Vec<Option<Tally>> {
    let (weight, bias) = classifiers.effective();
    let none_yet = || vec![Some(Tally::default()); classifiers.count()];
    rows.par_chunks(ROWS)
        .map(|rows| {
            let [z, _] = logits(task, rows, &weight, &bias);
            let mut tallies = none_yet();
            for (row, z) in rows.iter().zip(z.chunks_exact(bias.len())) {
                let label = task.labels[*row as usize] as usize;
                for (tally, z) in tallies.iter_mut().zip(z.chunks_exact(task.classes)) {
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
