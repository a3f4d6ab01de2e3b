//! Which object, if any, an anchor or a proposal is matched to.

use super::boxes::IouMatrix;

/// The role of a box in training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchLabel {
    /// Neither: takes part in no loss.
    Ignored,
    /// Background.
    Negative,
    /// Shows the object it is matched to.
    Positive,
}

/// Matches boxes to the objects that overlap them most, as detectron2's `Matcher`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Matcher {
    /// A box whose largest IoU is below this is negative; 0.3 in the proposal network, 0.5 in the box
    /// head.
    pub negative_below: f32,
    /// A box whose largest IoU is at least this is positive; 0.7 and 0.5. Between the two it is
    /// ignored.
    pub positive_from: f32,
    /// Whether the boxes that overlap an object most (all that tie) are positive however little that
    /// is; true in the proposal network, so that every object has an anchor.
    pub allow_low_quality: bool,
}

/// The object and label of every box.
#[derive(Clone, Debug, PartialEq)]
pub struct Matches {
    /// The object of largest IoU, the first among equals; 0 if there are no objects.
    ///
    /// A box positive only for being some object's best may be matched to another object, which it
    /// overlaps more.
    pub objects: Vec<usize>,
    /// As many labels.
    pub labels: Vec<MatchLabel>,
}

impl Matcher {
    /// Matches the columns of `overlaps` (anchors or proposals) to its rows (objects).
    ///
    /// Without objects all boxes are negative. An object that overlaps no box at all makes none
    /// positive; detectron2 would then make all of them positive.
    pub fn matches(&self, overlaps: &IouMatrix) -> Matches {
        let boxes = overlaps.columns();
        let mut objects = vec![0; boxes];
        let mut largest = vec![f32::NEG_INFINITY; boxes];
        for (object, row) in overlaps.rows().enumerate() {
            for ((largest, best), &value) in largest.iter_mut().zip(&mut objects).zip(row) {
                if value > *largest {
                    (*largest, *best) = (value, object);
                }
            }
        }
        let mut labels: Vec<MatchLabel> = largest.iter().map(|&value| self.label(value)).collect();
        if self.allow_low_quality {
            for row in overlaps.rows() {
                let best = row.iter().fold(0f32, |best, &value| best.max(value));
                let tied = |&(_, &value): &(&mut MatchLabel, &f32)| best > 0.0 && value == best;
                for (label, _) in labels.iter_mut().zip(row).filter(tied) {
                    *label = MatchLabel::Positive;
                }
            }
        }
        Matches { objects, labels }
    }

    fn label(&self, largest: f32) -> MatchLabel {
        if largest >= self.positive_from {
            MatchLabel::Positive
        } else if largest < self.negative_below {
            MatchLabel::Negative
        } else {
            MatchLabel::Ignored
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::pairwise_iou;

    const RPN: Matcher = Matcher {
        negative_below: 0.3,
        positive_from: 0.7,
        allow_low_quality: true,
    };

    #[test]
    fn without_objects_all_is_background() {
        let anchors = [[0.0, 0.0, 8.0, 8.0]; 5];
        let matches = RPN.matches(&pairwise_iou(&[], &anchors));
        assert_eq!(matches.labels, [MatchLabel::Negative; 5]);
        assert_eq!(matches.objects, [0; 5]);
        let none = RPN.matches(&pairwise_iou(&anchors, &[]));
        assert!(none.labels.is_empty() && none.objects.is_empty());
    }

    #[test]
    fn an_object_out_of_reach_makes_nothing_positive() {
        let anchors = [[0.0, 0.0, 8.0, 8.0], [8.0, 0.0, 16.0, 8.0]];
        for far in [[100.0, 100.0, 110.0, 110.0], [4.0, 4.0, 4.0, 9.0]] {
            let matches = RPN.matches(&pairwise_iou(&[far], &anchors));
            assert_eq!(matches.labels, [MatchLabel::Negative; 2], "{far:?}");
        }
    }
}
