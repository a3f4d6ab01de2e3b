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
    /// A set for each image, named by index so that nothing need be gathered.
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
