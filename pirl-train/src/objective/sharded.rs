//! A bank whose rows lie on several ranks, each of which scores the queries of all against its own.

use std::ops::Range;

use candle_core::{D, Tensor};
use pirl_loss::{ContrastiveLoss, LossError, Negatives};

use super::bank::Bank;
use crate::collective::{Collective, Ranks, from_bytes, to_bytes};
use crate::error::Result;

/// Which rows of the whole bank are on a rank: neighbouring ones, about as many on each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owned {
    pub(super) rows: Range<usize>,
    /// Of all ranks.
    pub(super) all: usize,
}

impl Owned {
    pub(super) fn of(ranks: &dyn Collective, all: usize) -> Self {
        Self {
            rows: Self::share(ranks.rank(), ranks.size(), all),
            all,
        }
    }

    /// Those of a rank, of so many ranks.
    pub(super) fn share(rank: usize, ranks: usize, all: usize) -> Range<usize> {
        rank * all / ranks..(rank + 1) * all / ranks
    }

    /// Where a row of the whole is on this rank, if it is.
    pub(super) fn place(&self, row: u32) -> Option<u32> {
        let row = row as usize;
        let owned = self.rows.contains(&row);
        owned.then(|| (row - self.rows.start) as u32)
    }

    /// The places here of those of `rows` that are on this rank, and which of `rows` they are.
    pub(super) fn places(&self, rows: &[u32]) -> (Vec<u32>, Vec<usize>) {
        let found = rows.iter().enumerate();
        let found = found.filter_map(|(at, &row)| Some((self.place(row)?, at)));
        found.unzip()
    }

    /// The rows of all of `indices`, `(indices.len(), dim)` numbers, whatever rank they are on.
    pub(super) fn gather(
        &self,
        ranks: &dyn Collective,
        bank: &Bank,
        indices: &[u32],
    ) -> Result<Vec<f32>> {
        ranks.all_reduce(self.spread(bank, indices)?)?.wait()
    }

    /// The same, with 0 in place of rows that are not on this rank.
    pub(super) fn spread(&self, bank: &Bank, indices: &[u32]) -> Result<Vec<f32>> {
        let dim = bank.dim();
        let (places, ats) = self.places(indices);
        let own = bank.gather(&places)?.flatten_all()?.to_vec1::<f32>()?;
        let mut rows = vec![0.0; indices.len() * dim];
        for (row, at) in own.chunks_exact(dim).zip(ats) {
            rows[at * dim..(at + 1) * dim].copy_from_slice(row);
        }
        Ok(rows)
    }
}

/// Which of the losses that need nothing but sums over the negatives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardedKind {
    /// Equations (4) and (5) of arXiv:1912.01991.
    Paper,
    /// Cross-entropy of the positive among it and the negatives.
    InfoNce,
}

/// The paper's loss or InfoNCE over negatives that are spread over ranks, as classes are in Partial FC
/// (An et al., arXiv:2010.05222).
///
/// `negatives` are the rows drawn that are on this rank, with the columns of the images of *all* ranks:
/// every rank scores the queries of all, and sums over negatives, of numbers and of gradients with
/// respect to queries, are added up over ranks. Each rank has the loss of its own queries.
pub(super) struct ShardedLoss {
    pub(super) kind: ShardedKind,
    pub(super) temperature: f64,
    pub(super) ranks: Ranks,
    /// Images of each rank's part.
    pub(super) sizes: Vec<usize>,
}

impl std::fmt::Debug for ShardedLoss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = f.debug_struct("ShardedLoss");
        parts.field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl ContrastiveLoss for ShardedLoss {
    fn forward(
        &self,
        query: &Tensor,
        positive: &Tensor,
        negatives: &Negatives,
    ) -> std::result::Result<Tensor, LossError> {
        let failed = |error| LossError::Candle(candle_core::Error::wrap(error));
        let (batch, dim) = query.dims2()?;
        let device = query.device();
        let own = to_bytes(&query.detach().flatten_all()?.to_vec1()?);
        let all = from_bytes(&self.ranks.all_gather(own).map_err(failed)?.concat());
        let queries = Tensor::from_vec(all, (self.sizes.iter().sum::<usize>(), dim), device)?;
        let Negatives::Shared { rows, own } = negatives else {
            return Err(LossError::Shape {
                what: "negatives of a sharded bank",
                expected: "shared ones".to_owned(),
                found: "those of each image".to_owned(),
            });
        };
        let scores = Scores::new(&queries, rows, own, self.temperature)?;
        let partial = scores.log_sums()?;
        let gathered = self.ranks.all_gather(to_bytes(&partial)).map_err(failed)?;
        let log_sums = add_logs(gathered.iter().map(|bytes| from_bytes(bytes)));
        let sums = scores.sums(&log_sums)?;
        let width = 2 + 2 * dim;
        let lengths: Vec<usize> = self.sizes.iter().map(|size| size * width).collect();
        let sums = self.ranks.reduce_scatter(sums, &lengths).map_err(failed)?;
        let sums = Tensor::from_vec(sums, (batch, width), device)?;
        let (share, loss) = (sums.narrow(1, 0, 1)?, sums.narrow(1, 1, 1)?);
        let drawn = sums.narrow(1, 2, dim)?;
        let mean = sums.narrow(1, 2 + dim, dim)?;
        // ln S of this rank's queries.
        let start: usize = self.sizes.iter().take(self.ranks.rank()).sum();
        let log_sums = Tensor::from_slice(&log_sums[start..start + batch], (batch, 1), device)?;
        let own = (query.detach() * positive)?.sum_keepdim(D::Minus1)?;
        let gap = (log_sums - (own / self.temperature)?)?;
        let pull = sigmoid(&gap)?;
        let (loss, gradient) = match self.kind {
            ShardedKind::InfoNce => {
                let gradient = (mean - positive)?.broadcast_mul(&pull)?;
                (softplus(&gap)?, gradient)
            }
            ShardedKind::Paper => {
                let push = mean.broadcast_mul(&(&pull - share)?)?;
                let gradient = ((drawn + push)? - positive.broadcast_mul(&pull)?)?;
                ((softplus(&gap)? + loss)?, gradient)
            }
        };
        let loss = loss.mean_all()?;
        let gradient = (gradient / (self.temperature * batch as f64))?;
        // A scalar whose value is the loss and whose gradient is the one above.
        let linear = (query * gradient.detach())?.sum_all()?;
        Ok((&linear + (loss - linear.detach())?)?)
    }
}

/// The scores of queries against this rank's negatives.
struct Scores<'a> {
    rows: &'a Tensor,
    /// `(queries, rows)`, over the temperature; `None` without rows.
    z: Option<Tensor>,
    queries: usize,
    dim: usize,
}

impl<'a> Scores<'a> {
    fn new(
        queries: &Tensor,
        rows: &'a Tensor,
        own: &[Option<u32>],
        temperature: f64,
    ) -> candle_core::Result<Self> {
        let (count, dim) = queries.dims2()?;
        let z = match rows.dim(0)? {
            0 => None,
            columns => {
                let z = (queries.matmul(&rows.t()?)? / temperature)?;
                let mut mask = vec![0_f32; count * columns];
                for (image, column) in own.iter().enumerate() {
                    if let Some(column) = column {
                        mask[image * columns + *column as usize] = Negatives::MASKED as f32;
                    }
                }
                Some((z + Tensor::from_vec(mask, (count, columns), queries.device())?)?)
            }
        };
        Ok(Self {
            rows,
            z,
            queries: count,
            dim,
        })
    }

    /// `ln sum exp` over the rows, of each query.
    fn log_sums(&self) -> candle_core::Result<Vec<f32>> {
        match &self.z {
            Some(z) => z.log_sum_exp(D::Minus1)?.to_vec1(),
            None => Ok(vec![Negatives::MASKED as f32; self.queries]),
        }
    }

    /// With `s = exp(z - ln S)` and `h = s / (1 + s)`, of each query: the sums of `h`, of `-ln(1 - h)`,
    /// of `h` times the row (`dim` numbers) and of `s` times the row.
    fn sums(&self, log_sums: &[f32]) -> candle_core::Result<Vec<f32>> {
        let Some(z) = &self.z else {
            return Ok(vec![0.0; self.queries * (2 + 2 * self.dim)]);
        };
        let log_sums = Tensor::from_slice(log_sums, (self.queries, 1), z.device())?;
        let t = z.broadcast_sub(&log_sums)?;
        let h = sigmoid(&t)?;
        let sums = [
            h.sum_keepdim(D::Minus1)?,
            softplus(&t)?.sum_keepdim(D::Minus1)?,
            h.matmul(self.rows)?,
            t.exp()?.matmul(self.rows)?,
        ];
        Tensor::cat(&sums, 1)?.flatten_all()?.to_vec1()
    }
}

/// `ln sum exp` of the vectors, place by place.
fn add_logs(vectors: impl Iterator<Item = Vec<f32>>) -> Vec<f32> {
    let vectors: Vec<Vec<f32>> = vectors.collect();
    let places = vectors.first().map_or(0, Vec::len);
    let at = |place: usize| {
        let values = vectors.iter().map(|vector| f64::from(vector[place]));
        let most = values.clone().fold(f64::NEG_INFINITY, f64::max);
        (most + values.map(|value| (value - most).exp()).sum::<f64>().ln()) as f32
    };
    (0..places).map(at).collect()
}

/// `ln(1 + exp(x))`.
fn softplus(x: &Tensor) -> candle_core::Result<Tensor> {
    x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?
}

/// `1 / (1 + exp(-x))`, of any finite x.
fn sigmoid(x: &Tensor) -> candle_core::Result<Tensor> {
    ((x * 0.5)?.tanh()? + 1.0)? * 0.5
}
