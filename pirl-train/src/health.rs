//! Is it learning at all? Signs that a pre-training goes wrong, found in its metrics.

use std::fmt;

use crate::run::Row;
use crate::training::Metric;

/// Below this effective rank embeddings lie on a line or two.
const COLLAPSED_RANK: f32 = 2.0;
/// Rows in a row with such a rank before it counts: single batches vary.
const COLLAPSED_ROWS: usize = 5;
/// Epochs without a lower loss before it counts, at least; in longer runs a tenth of the epochs.
const STALLED_EPOCHS: u64 = 5;

/// Watches the rows of a run's metrics, and warns once of each kind of trouble.
#[derive(Clone, Debug, Default)]
pub struct Health {
    epochs: u64,
    /// Rows since the rank was last above [`COLLAPSED_RANK`]; `None` once it was warned of.
    collapsed: Option<usize>,
    /// The epoch of the rows that come, the sum of their losses, and their number.
    epoch: (u64, f64, u64),
    /// The epoch with the lowest mean loss so far.
    lowest: Option<(u64, f64)>,
    warned_of_stall: bool,
}

/// What is wrong, as a message that ends in the way out.
#[derive(Clone, Debug, PartialEq)]
pub enum Trouble {
    /// All images have nearly the same embedding.
    Collapse {
        /// The effective rank of the batch's embeddings.
        effective_rank: f32,
    },
    /// The loss has stopped falling long before the end.
    Stall {
        /// Epochs since its mean was lowest.
        epochs: u64,
    },
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Collapse { effective_rank } => write!(
                f,
                "the embeddings have collapsed: their effective rank is {effective_rank:.1}, so nearly \
                 all images look the same to the network; lower the learning rate (optim.lr), or give \
                 it more negatives"
            ),
            Self::Stall { epochs } => write!(
                f,
                "the loss has not fallen for {epochs} epochs; if it is far from what such runs reach, \
                 lower the learning rate (optim.lr), and look at the views (pirl data preview)"
            ),
        }
    }
}

impl Health {
    /// Of a run of so many epochs.
    pub fn new(epochs: u64) -> Self {
        Self {
            epochs,
            collapsed: Some(0),
            ..Self::default()
        }
    }

    /// Takes the next row, and says what it reveals: nothing, if it is not of embeddings.
    pub fn observe(&mut self, row: &Row) -> Option<Trouble> {
        let Some(Metric::Real(rank)) = row.metrics.get("effective_rank").copied() else {
            return None;
        };
        self.collapse(row, rank).or_else(|| self.stall(row))
    }

    fn collapse(&mut self, row: &Row, rank: f32) -> Option<Trouble> {
        let rows = self.collapsed.as_mut()?;
        // An untrained network's embeddings are nearly the same, too.
        let low = row.epoch > 1 && rank < COLLAPSED_RANK;
        *rows = if low { *rows + 1 } else { 0 };
        (*rows == COLLAPSED_ROWS).then(|| {
            self.collapsed = None;
            Trouble::Collapse {
                effective_rank: rank,
            }
        })
    }

    fn stall(&mut self, row: &Row) -> Option<Trouble> {
        let (epoch, sum, rows) = self.epoch;
        if row.epoch == epoch {
            self.epoch = (epoch, sum + f64::from(row.loss), rows + 1);
            return None;
        }
        self.epoch = (row.epoch, f64::from(row.loss), 1);
        // The first epoch's loss is low where the bank is random: nothing is near a random row, but
        // nothing is nearer.
        if rows == 0 || epoch <= 1 {
            return None;
        }
        let mean = sum / rows as f64;
        match self.lowest {
            Some((_, lowest)) if mean >= lowest => {}
            _ => self.lowest = Some((epoch, mean)),
        }
        let since = epoch - self.lowest?.0;
        let patience = STALLED_EPOCHS.max(self.epochs / 10);
        // Towards the end of a schedule the loss is level.
        let early = epoch * 4 < self.epochs * 3;
        (!self.warned_of_stall && since >= patience && early).then(|| {
            self.warned_of_stall = true;
            Trouble::Stall { epochs: since }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn row(epoch: u64, loss: f32, rank: f32) -> Row {
        Row {
            step: epoch,
            epoch,
            loss,
            lr: 0.1,
            images_per_second: 1.0,
            data_wait: 0.0,
            metrics: BTreeMap::from([("effective_rank", Metric::Real(rank))]),
        }
    }

    fn troubles(rows: impl IntoIterator<Item = Row>) -> Vec<Trouble> {
        let mut health = Health::new(40);
        rows.into_iter()
            .filter_map(|row| health.observe(&row))
            .collect()
    }

    #[test]
    fn a_run_that_learns_is_not_warned_of() {
        assert_eq!(
            troubles((1..=40).map(|epoch| row(epoch, 9.0 - epoch as f32 * 0.1, 30.0))),
            []
        );
        // Level near the end, and of low rank at the very beginning.
        let level = |epoch: u64| row(epoch, 9.0 - epoch.min(32) as f32, 30.0);
        assert_eq!(troubles((1..=40).map(level)), []);
        assert_eq!(troubles((0..9).map(|_| row(1, 9.0, 1.0))), []);
    }

    #[test]
    fn collapse_and_stall_are_each_told_once() {
        let collapsed = (1..=40).map(|epoch| row(epoch, 9.0 - epoch as f32 * 0.1, 1.2));
        let effective_rank = 1.2;
        assert_eq!(troubles(collapsed), [Trouble::Collapse { effective_rank }]);
        let level = (1..=40).map(|epoch| row(epoch, 9.0, 30.0));
        assert_eq!(troubles(level), [Trouble::Stall { epochs: 5 }]);
    }
}
