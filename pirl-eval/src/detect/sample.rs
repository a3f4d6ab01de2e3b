//! Sampling of the matched boxes that take part in a loss.

use rand::Rng;
use rand::seq::index;

use super::matcher::MatchLabel;

/// Indices drawn by [`subsample`], without repetition and in no particular order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Boxes with a positive label.
    pub positive: Vec<usize>,
    /// Boxes with a negative label.
    pub negative: Vec<usize>,
}

/// Draws `count` boxes by their labels, at most `positive_fraction` of them positive and the rest
/// negative; fewer if there are not enough. Detectron2's `subsample_labels`.
pub fn subsample(
    labels: &[MatchLabel],
    count: usize,
    positive_fraction: f64,
    rng: &mut dyn Rng,
) -> Sample {
    let labelled = |wanted: MatchLabel| -> Vec<usize> {
        let indices = labels.iter().enumerate();
        indices
            .filter(|&(_, &label)| label == wanted)
            .map(|(index, _)| index)
            .collect()
    };
    let mut draw = |from: Vec<usize>, amount: usize| -> Vec<usize> {
        let drawn = index::sample(&mut *rng, from.len(), amount.min(from.len()));
        drawn.into_iter().map(|at| from[at]).collect()
    };
    let most = ((count as f64 * positive_fraction) as usize).min(count);
    let positive = draw(labelled(MatchLabel::Positive), most);
    let negative = draw(labelled(MatchLabel::Negative), count - positive.len());
    Sample { positive, negative }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use MatchLabel::{Ignored, Negative, Positive};

    /// `(positive, negative)` drawn of so many boxes of each kind; checks what was drawn.
    fn drawn([positive, negative]: [usize; 2], count: usize, fraction: f64) -> (usize, usize) {
        let mut labels = vec![Ignored; 5];
        labels.extend(vec![Positive; positive]);
        labels.extend(vec![Negative; negative]);
        let middle = labels.len() / 2;
        labels.rotate_left(middle);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let sample = subsample(&labels, count, fraction, &mut rng);
        for (indices, label) in [(&sample.positive, Positive), (&sample.negative, Negative)] {
            assert!(indices.iter().all(|&at| labels[at] == label));
            let mut sorted = indices.clone();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(sorted.len(), indices.len(), "no box twice");
        }
        (sample.positive.len(), sample.negative.len())
    }

    #[test]
    fn negatives_fill_what_positives_leave() {
        assert_eq!(drawn([300, 900], 256, 0.5), (128, 128));
        assert_eq!(drawn([20, 900], 256, 0.5), (20, 236));
        assert_eq!(drawn([300, 40], 256, 0.5), (128, 40));
        assert_eq!(drawn([0, 0], 256, 0.5), (0, 0));
        assert_eq!(drawn([9, 9], 7, 0.25), (1, 6));
        assert_eq!(drawn([9, 9], 7, 1.0), (7, 0));
    }

    #[test]
    fn every_box_is_as_likely() {
        let labels = vec![Negative; 10];
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut counts = [0; 10];
        for _ in 0..10_000 {
            for at in subsample(&labels, 3, 0.5, &mut rng).negative {
                counts[at] += 1;
            }
        }
        // Binomial with mean 3000 and standard deviation 46.
        assert!(
            counts.iter().all(|&n: &i32| (n - 3000).abs() < 230),
            "{counts:?}"
        );
    }
}
