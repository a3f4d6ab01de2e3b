//! The rows an embedding is compared with, and the checks on what a loss is given.

use candle_core::{DType, Tensor};

use crate::LossError;

/// The negatives of a batch of `B` images: rows of the memory bank, which carry no gradient.
#[derive(Debug, Clone)]
pub enum Negatives {
    /// One set for the whole batch.
    Shared {
        /// `(N, D)`, unit rows.
        rows: Tensor,
        /// For each of the `B` images the row of `rows` that is the image itself, if there is
        /// one; it is left out of that image's sums.
        own: Vec<Option<u32>>,
    },
    /// A set for each image, given by index, so that no row is copied.
    PerImage {
        /// `(M, D)`, unit rows: the whole bank.
        bank: Tensor,
        /// `B * N` rows of `bank`, those of image `b` at `b * N .. (b + 1) * N`.
        indices: Vec<u32>,
    },
}

/// The sizes of a checked input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) batch: usize,
    pub(crate) dim: usize,
    /// Negatives of an image before masking.
    pub(crate) negatives: usize,
}

impl Negatives {
    /// Checks every shape, type and index, so that the computation need not.
    pub(crate) fn check(&self, query: &Tensor, positive: &Tensor) -> Result<Sizes, LossError> {
        let (batch, dim) = matrix("query", "(B, D)", query)?;
        if batch == 0 {
            return Err(LossError::EmptyBatch);
        }
        let dtype = query.dtype();
        if !matches!(dtype, DType::F32 | DType::F64) {
            return Err(LossError::DType {
                what: "query",
                expected: "f32 or f64",
                found: dtype.as_str(),
            });
        }
        same_type("positive", positive, dtype)?;
        if matrix("positive", "(B, D)", positive)? != (batch, dim) {
            return Err(shape("positive", format!("{:?}", (batch, dim)), positive));
        }
        let negatives = match self {
            Self::Shared { rows, own } => {
                let n = check_rows("shared negatives", rows, dim, dtype)?;
                if own.len() != batch {
                    return Err(LossError::Shape {
                        what: "own columns of shared negatives",
                        expected: format!("{batch}, one an image"),
                        found: own.len().to_string(),
                    });
                }
                for (position, &column) in own.iter().enumerate() {
                    if let Some(index) = column.filter(|&column| column as usize >= n) {
                        let what = "own columns of shared negatives";
                        return Err(LossError::Index {
                            what,
                            index,
                            position,
                            limit: n,
                        });
                    }
                }
                n
            }
            Self::PerImage { bank, indices } => {
                let limit = check_rows("bank of the negatives", bank, dim, dtype)?;
                if indices.len() % batch != 0 {
                    return Err(LossError::Shape {
                        what: "indices of negatives",
                        expected: format!("a multiple of the batch, {batch}"),
                        found: indices.len().to_string(),
                    });
                }
                if let Some(position) = indices.iter().position(|&i| i as usize >= limit) {
                    let (what, index) = ("indices of negatives", indices[position]);
                    return Err(LossError::Index {
                        what,
                        index,
                        position,
                        limit,
                    });
                }
                indices.len() / batch
            }
        };
        let sizes = Sizes {
            batch,
            dim,
            negatives,
        };
        match (0..batch).find(|&image| self.valid(sizes, image) == 0) {
            Some(image) => Err(LossError::NoNegatives {
                image,
                drawn: negatives,
            }),
            None => Ok(sizes),
        }
    }

    /// The products of each query, `(B, D)`, with its negatives: `(B, N)`, differentiable in `query`.
    /// Where a negative is the image itself the product is [`Negatives::MASKED`], whose exponential is 0
    /// in every type. For losses made of Candle's operations; memory grows with `B x N`, and for a set
    /// for each image with `B x N x D`.
    ///
    /// # Errors
    /// Those of [`ContrastiveLoss::forward`](crate::ContrastiveLoss::forward).
    pub fn scores(&self, query: &Tensor) -> Result<Tensor, LossError> {
        let sizes = self.check(query, query)?;
        Ok(self.scores_of(query, sizes)?)
    }

    /// Stands for minus infinity where a row is masked: finite, so that no difference of two is NaN.
    pub const MASKED: f64 = -1e30;

    /// [`Negatives::scores`] of checked arguments.
    pub(crate) fn scores_of(&self, query: &Tensor, sizes: Sizes) -> candle_core::Result<Tensor> {
        match self {
            Self::Shared { rows, own } => mask(&query.matmul(&rows.detach().t()?)?, own),
            Self::PerImage { bank, indices } => {
                let bank = bank.detach();
                let indices = indices.chunks(sizes.negatives).enumerate();
                let rows = indices.map(|(image, indices)| {
                    let indices = Tensor::from_slice(indices, indices.len(), bank.device())?;
                    let rows = bank.index_select(&indices, 0)?;
                    query.narrow(0, image, 1)?.matmul(&rows.t()?)
                });
                Tensor::cat(&rows.collect::<candle_core::Result<Vec<_>>>()?, 0)
            }
        }
    }

    /// Negatives of `image` that count.
    pub(crate) fn valid(&self, sizes: Sizes, image: usize) -> usize {
        sizes.negatives - usize::from(self.own(image).is_some() && sizes.negatives > 0)
    }

    /// The column that is `image` itself.
    pub(crate) fn own(&self, image: usize) -> Option<usize> {
        match self {
            Self::Shared { own, .. } => own[image].map(|column| column as usize),
            Self::PerImage { .. } => None,
        }
    }
}

/// `z` `(B, N)` with each image's own column, if it was drawn, masked.
fn mask(z: &Tensor, own: &[Option<u32>]) -> candle_core::Result<Tensor> {
    let (batch, columns) = z.dims2()?;
    let places = own.iter().enumerate();
    let places: Vec<i64> = places
        .filter_map(|(image, column)| Some((image * columns) as i64 + i64::from((*column)?)))
        .collect();
    if places.is_empty() {
        return Ok(z.clone());
    }
    let count = places.len();
    let masks = Tensor::full(Negatives::MASKED as f32, count, z.device())?.to_dtype(z.dtype())?;
    let places = Tensor::from_vec(places, count, z.device())?;
    // z is bounded, so that adding drowns it: its gradient there is then 0 by the formulas.
    let z = z.flatten_all()?.index_add(&places, &masks, 0)?;
    z.reshape((batch, columns))
}

fn check_rows(
    what: &'static str,
    rows: &Tensor,
    dim: usize,
    dtype: DType,
) -> Result<usize, LossError> {
    same_type(what, rows, dtype)?;
    match matrix(what, "(N, D)", rows)? {
        (n, d) if d == dim => Ok(n),
        _ => Err(shape(what, format!("rows of {dim}"), rows)),
    }
}

fn matrix(
    what: &'static str,
    expected: &str,
    tensor: &Tensor,
) -> Result<(usize, usize), LossError> {
    tensor
        .dims2()
        .map_err(|_| shape(what, expected.to_owned(), tensor))
}

fn shape(what: &'static str, expected: String, tensor: &Tensor) -> LossError {
    LossError::Shape {
        what,
        expected,
        found: format!("{:?}", tensor.dims()),
    }
}

fn same_type(what: &'static str, tensor: &Tensor, dtype: DType) -> Result<(), LossError> {
    if tensor.dtype() == dtype {
        return Ok(());
    }
    Err(LossError::DType {
        what,
        expected: dtype.as_str(),
        found: tensor.dtype().as_str(),
    })
}
