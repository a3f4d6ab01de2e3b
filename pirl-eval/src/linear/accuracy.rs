//! Top-1 and top-5 accuracy.

use rayon::prelude::*;

use super::Task;
use super::gradient::logits;
use super::sgd::Classifiers;
use crate::probe::percent;

/// Rows whose logits are computed together by one thread.
const ROWS: usize = 256;

/// In percent of the rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Accuracy {
    pub(crate) top1: f64,
    pub(crate) top5: f64,
}

/// The accuracy of each classifier on `rows`; `None` for one whose logits are not finite.
pub(crate) fn accuracy(
    task: &Task<'_>,
    rows: &[u32],
    classifiers: &Classifiers,
) -> Vec<Option<Accuracy>> {
    let (weight, bias) = classifiers.effective();
    let count = classifiers.count();
    // For each classifier: first right, among five right, finite throughout.
    let ranks: Vec<Vec<Option<usize>>> = rows
        .par_chunks(ROWS)
        .flat_map_iter(|rows| {
            let [z, _] = logits(task, rows, &weight, &bias);
            let ranks = rows.iter().zip(z.chunks_exact(bias.len())).map(|(row, z)| {
                let label = task.labels[*row as usize] as usize;
                z.chunks_exact(task.classes)
                    .map(|z| rank(z, label))
                    .collect()
            });
            ranks.collect::<Vec<_>>()
        })
        .collect();
    (0..count)
        .map(|which| {
            let ranks: Option<Vec<usize>> = ranks
                .iter()
                .map(|row| row.get(which).copied().flatten())
                .collect();
            let ranks = ranks?;
            let within = |n: usize| ranks.iter().filter(|rank| **rank < n).count();
            Some(Accuracy {
                top1: percent(within(1), rows.len()),
                top5: percent(within(5), rows.len()),
            })
        })
        .collect()
}

/// How many classes come before `label`; of equal logits the lower class comes first. `None` if a
/// logit is not finite.
fn rank(z: &[f32], label: usize) -> Option<usize> {
    if z.iter().any(|z| !z.is_finite()) {
        return None;
    }
    let own = z.get(label)?;
    Some(
        z.iter()
            .enumerate()
            .filter(|(class, z)| *z > own || (*z == own && *class < label))
            .count(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_break_ties_by_class_and_refuse_what_is_not_finite() {
        assert_eq!(rank(&[0.5, 2.0, 1.0], 0), Some(2));
        assert_eq!(rank(&[1.0, 1.0, 1.0], 0), Some(0));
        assert_eq!(rank(&[1.0, 1.0, 1.0], 2), Some(2));
        assert_eq!(rank(&[1.0, f32::NAN], 0), None);
        assert_eq!(rank(&[f32::INFINITY, 0.0], 0), None);
    }
}
