//! The nearest rows of one query among those seen so far.

use std::cmp::Ordering;

use super::kernel::PANEL;

/// A row and its cosine to the query.
#[derive(Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) similarity: f32,
    pub(crate) index: u32,
}

impl Candidate {
    /// Nearer first; a total order, so the choice of neighbours has no ties.
    fn nearer(&self, other: &Self) -> Ordering {
        other
            .similarity
            .total_cmp(&self.similarity)
            .then(self.index.cmp(&other.index))
    }
}

/// What an integer product says of a cosine: `cosine = offset + product / unit`, give or take
/// `margin / unit`. `offset` and `margin` are of the query.
#[derive(Clone, Copy)]
pub(super) struct Estimate {
    pub(super) offset: f64,
    pub(super) unit: f64,
    pub(super) margin: f64,
}

/// A row and the integer product with it.
#[derive(Clone, Copy)]
struct Estimated {
    product: i32,
    index: u32,
}

/// The `k` nearest rows of a query. Products say which rows may be among them, and cosines are computed of
/// those alone: at the end, or when there are too many of them.
pub(super) struct Candidates {
    k: usize,
    estimate: Estimate,
    /// Rows whose cosines are not known, at most about [`Candidates::room`].
    open: Vec<Estimated>,
    /// The nearest of those whose cosines are.
    settled: Vec<Candidate>,
    /// The least product that a row among the nearest can have.
    pub(super) bound: i32,
}

impl Candidates {
    pub(super) fn new(k: usize, estimate: Estimate) -> Self {
        Self {
            k,
            estimate,
            open: Vec::with_capacity(Self::room(k) + PANEL),
            settled: Vec::new(),
            bound: i32::MIN,
        }
    }

    /// Rows that wait before they are cut to those that may be among the nearest.
    fn room(k: usize) -> usize {
        (2 * k).max(128)
    }

    /// Takes the products with rows that lie side by side, from row `first` on; `cosine` is that of a row.
    pub(super) fn offer(&mut self, products: &[i32], first: u32, cosine: impl Fn(u32) -> f32) {
        for (index, &product) in (first..).zip(products) {
            if product >= self.bound {
                self.open.push(Estimated { product, index });
            }
        }
        let room = Self::room(self.k);
        if self.open.len() >= room {
            self.cut();
            // Products too alike to tell apart would wait in vain.
            if self.open.len() > room - room / 4 {
                self.settle(cosine);
            }
        }
    }

    /// Drops the rows that at least `k` others are nearer than, by their products.
    fn cut(&mut self) {
        if self.open.len() > self.k {
            let by_product = |a: &Estimated, b: &Estimated| b.product.cmp(&a.product);
            let (_, kth, _) = self.open.select_nth_unstable_by(self.k - 1, by_product);
            // The k-th nearest of the open rows may be a margin below this product, and the product of a
            // row as near a margin below that.
            let bound = f64::from(kth.product) - 2.0 * self.estimate.margin;
            self.bound = self.bound.max(bound.floor() as i32);
        }
        self.open.retain(|open| open.product >= self.bound);
    }

    /// Computes the cosines of the open rows and keeps the nearest.
    fn settle(&mut self, cosine: impl Fn(u32) -> f32) {
        let open = self.open.drain(..).map(|open| Candidate {
            similarity: cosine(open.index),
            index: open.index,
        });
        self.settled.extend(open);
        if self.settled.len() >= self.k.max(1) {
            let (_, kth, _) = self
                .settled
                .select_nth_unstable_by(self.k - 1, Candidate::nearer);
            let Estimate {
                offset,
                unit,
                margin,
            } = self.estimate;
            let bound = (f64::from(kth.similarity) - offset) * unit - margin;
            self.bound = self.bound.max(bound.floor() as i32);
            self.settled.truncate(self.k);
        }
    }

    /// The nearest rows, the nearest first.
    pub(super) fn finish(mut self, cosine: impl Fn(u32) -> f32) -> Vec<Candidate> {
        self.cut();
        self.settle(cosine);
        self.settled.sort_unstable_by(Candidate::nearer);
        self.settled
    }
}
