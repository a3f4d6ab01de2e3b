//! Top-1 and top-5 accuracy.

use crate::classification::{Classification, Prediction, share_right};
use crate::error::Result;
use crate::probe::percent;

/// What was predicted for each row, and how often the right class is among the first five.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    predictions: Vec<Prediction>,
    among_five: usize,
}

impl Tally {
    /// Adds a row of logits and its class. `None`, and nothing added, for a logit that is not
    /// finite or a class without one.
    pub(crate) fn add(&mut self, logits: &[f32], label: usize) -> Option<()> {
        self.among_five += usize::from(rank(logits, label)? < 5);
        let mut predicted = 0;
        for (class, z) in logits.iter().enumerate() {
            if *z > logits[predicted] {
                predicted = class;
            }
        }
        let highest = logits[predicted];
        let sum: f32 = logits.iter().map(|z| (z - highest).exp()).sum();
        self.predictions.push(Prediction {
            label: label as u32,
            predicted: predicted as u32,
            confidence: Some(1.0 / sum),
        });
        Some(())
    }

    /// As numbers, for [`Tally::from_words`].
    pub(crate) fn to_words(&self) -> Vec<u32> {
        let mut words = vec![self.among_five as u32, self.predictions.len() as u32];
        for one in &self.predictions {
            let confidence = one.confidence.unwrap_or_default();
            words.extend([one.label, one.predicted, confidence.to_bits()]);
        }
        words
    }

    /// What another rank has counted; `None` if `words` ends before it.
    pub(crate) fn from_words(words: &mut impl Iterator<Item = u32>) -> Option<Self> {
        let (among_five, rows) = (words.next()?, words.next()?);
        let prediction = |_| {
            Some(Prediction {
                label: words.next()?,
                predicted: words.next()?,
                confidence: Some(f32::from_bits(words.next()?)),
            })
        };
        Some(Self {
            predictions: (0..rows).map(prediction).collect::<Option<_>>()?,
            among_five: among_five as usize,
        })
    }

    /// The rows of both.
    pub(crate) fn merge(mut self, other: Self) -> Self {
        self.predictions.extend(other.predictions);
        self.among_five += other.among_five;
        self
    }

    /// Class by class.
    pub(crate) fn classification(&self, names: &[String]) -> Result<Classification> {
        Classification::new(&self.predictions, names)
    }

    /// Share of rows whose right class is first, in percent.
    pub(crate) fn top1(&self) -> f64 {
        share_right(&self.predictions)
    }

    /// Share of rows whose right class is among the first five, in percent.
    pub(crate) fn top5(&self) -> f64 {
        percent(self.among_five, self.predictions.len())
    }
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
        assert_eq!(rank(&[1.0], 1), None);
    }

    #[test]
    fn a_tally_counts_firsts_and_fives() {
        let mut tally = Tally::default();
        let z: Vec<f32> = (0..8).map(|class| class as f32).collect();
        for label in [7, 6, 3, 2] {
            tally.add(&z, label).unwrap();
        }
        assert_eq!((tally.top1(), tally.top5()), (25.0, 50.0 + 25.0));
        assert_eq!(tally.add(&[f32::NAN; 8], 0), None);
        let words = tally.to_words();
        let back = Tally::from_words(&mut words.iter().copied()).unwrap();
        assert_eq!((back.top1(), back.top5()), (tally.top1(), tally.top5()));
        assert_eq!(back.predictions, tally.predictions);
        assert!(Tally::from_words(&mut words[1..].iter().copied()).is_none());
        let both = tally.clone().merge(tally);
        assert_eq!((both.predictions.len(), both.top1()), (8, 25.0));
    }
}
