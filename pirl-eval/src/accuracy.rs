//! Top-1 and top-5 accuracy.

use crate::probe::percent;

/// Counts how often the right class is first, and among the first five.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    first: usize,
    among_five: usize,
    rows: usize,
}

impl Tally {
    /// Adds a row of logits and its class. `None`, and nothing added, for a logit that is not
    /// finite or a class without one.
    pub(crate) fn add(&mut self, logits: &[f32], label: usize) -> Option<()> {
        let rank = rank(logits, label)?;
        self.rows += 1;
        self.first += usize::from(rank < 1);
        self.among_five += usize::from(rank < 5);
        Some(())
    }

    /// The counts of both.
    pub(crate) fn merge(self, other: Self) -> Self {
        Self {
            first: self.first + other.first,
            among_five: self.among_five + other.among_five,
            rows: self.rows + other.rows,
        }
    }

    /// Share of rows whose right class is first, in percent.
    pub(crate) fn top1(&self) -> f64 {
        percent(self.first, self.rows)
    }

    /// Share of rows whose right class is among the first five, in percent.
    pub(crate) fn top5(&self) -> f64 {
        percent(self.among_five, self.rows)
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
        let both = tally.clone().merge(tally);
        assert_eq!((both.rows, both.top1()), (8, 25.0));
    }
}
