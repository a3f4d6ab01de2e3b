//! The rows of a bank, and their update.

use std::collections::HashSet;
use std::ops::Range;

use candle_core::{D, DType, Device, Storage, Tensor};
use pirl_core::{Ops, SettingError, check, prefetch, vectorised};
use rand::RngExt;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rayon::prelude::*;

use crate::BankError;

/// Rows made from one stream of the generator: the rows do not depend on the number of threads.
const ROWS_PER_STREAM: usize = 4096;

/// How far from 1 the length of a row may be: rounding leaves 1e-6, a damaged row far more.
const UNIT_TOLERANCE: f32 = 1e-3;

/// One unit vector for each image of the data set: `(rows, dim)`, `f32`, on one device.
///
/// The rows live in one Candle tensor whose storage [`MemoryBank::update`] writes in place,
/// touching only the batch's rows: at 1.28 million rows of 128 a copy would move 655 MB a step.
/// So a clone of [`MemoryBank::rows`] changes with later updates; update after the backward pass.
#[derive(Debug)]
pub struct MemoryBank {
    rows: Tensor,
    momentum: f64,
    /// What gathers rows in the CPU's memory.
    ops: Ops,
}

impl MemoryBank {
    /// A bank of random unit rows: uniform in `[-a, a]`, `a = 1 / sqrt(dim / 3)`, then normalised
    /// (VISSL, `vissl/losses/nce_loss.py`).
    ///
    /// `momentum` in `[0, 1]` is the weight of the old row in an update; the paper's is 0.5.
    /// The same `seed` gives the same rows on every machine.
    ///
    /// # Errors
    /// [`BankError::Size`] if `rows` or `dim` is 0 or `rows` exceeds 32 bits,
    /// [`BankError::Setting`] for a momentum outside `[0, 1]`.
    pub fn random(
        rows: usize,
        dim: usize,
        momentum: f64,
        seed: u64,
        device: &Device,
    ) -> Result<Self, BankError> {
        Self::random_rows(0..rows, dim, momentum, seed, device)
    }

    /// Rows `range` alone of the bank that [`MemoryBank::random`] makes, bit for bit: a share of a bank
    /// that lies on several machines.
    ///
    /// # Errors
    /// As [`MemoryBank::random`].
    pub fn random_rows(
        range: Range<usize>,
        dim: usize,
        momentum: f64,
        seed: u64,
        device: &Device,
    ) -> Result<Self, BankError> {
        let rows = range.len();
        check_size(range.end, dim)?;
        check_size(rows, dim)?;
        check_momentum(momentum)?;
        let len = rows.checked_mul(dim).ok_or(BankError::Size { rows, dim })?;
        let mut values = vec![0f32; len];
        values
            .par_chunks_mut(ROWS_PER_STREAM * dim)
            .enumerate()
            .for_each(|(chunk, values)| {
                let first = range.start + chunk * ROWS_PER_STREAM;
                RandomRows::new(seed, dim).fill(first, values);
            });
        let rows = Tensor::from_vec(values, (rows, dim), device)?;
        Ok(Self::from_checked(rows, momentum))
    }

    /// A bank that starts from `rows`, `(images, dim)`, `f32`, unit length: for example the
    /// embeddings of one pass over the data. The values are copied, so the caller's tensor never
    /// changes.
    ///
    /// # Errors
    /// [`BankError::Tensor`] for another rank or type, [`BankError::Size`],
    /// [`BankError::Setting`] for a momentum outside `[0, 1]`, [`BankError::NotUnit`].
    pub fn from_rows(rows: Tensor, momentum: f64) -> Result<Self, BankError> {
        check_momentum(momentum)?;
        let (n, dim) = match *rows.dims() {
            [n, dim] if rows.dtype() == DType::F32 => (n, dim),
            _ => {
                return Err(wrong_tensor(
                    "rows of a bank",
                    "(images, dim) of f32",
                    &rows,
                ));
            }
        };
        check_size(n, dim)?;
        let rows = rows.detach().force_contiguous()?;
        let norms = rows.sqr()?.sum(D::Minus1)?.sqrt()?.to_vec1::<f32>()?;
        check_norms(&norms, "the given rows")?;
        Ok(Self::from_checked(rows, momentum))
    }

    /// A bank of contiguous unit rows; the caller keeps no other reference to the tensor.
    pub(crate) fn from_checked(rows: Tensor, momentum: f64) -> Self {
        Self {
            rows,
            momentum,
            ops: Ops::Fast,
        }
    }

    /// What gathers rows in the CPU's memory: this crate, the default, or Candle's own op, as on other
    /// devices. The bits are the same.
    #[must_use]
    pub fn with_ops(self, ops: Ops) -> Self {
        Self { ops, ..self }
    }

    /// All rows, `(len, dim)`. The tensor shares the bank's storage and changes with its updates.
    pub fn rows(&self) -> &Tensor {
        &self.rows
    }

    /// Number of rows: one for each image.
    pub fn len(&self) -> usize {
        self.rows.dims()[0]
    }

    /// Never true: a bank has at least one row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Numbers in a row.
    pub fn dim(&self) -> usize {
        self.rows.dims()[1]
    }

    /// Weight of the old row in an update, in `[0, 1]`.
    pub fn momentum(&self) -> f64 {
        self.momentum
    }

    /// A copy of the rows at `indices`, `(indices.len(), dim)`, in that order; indices may repeat.
    ///
    /// # Errors
    /// [`BankError::Index`] for an index that is not below [`MemoryBank::len`].
    pub fn gather(&self, indices: &[u32]) -> Result<Tensor, BankError> {
        self.check_indices(indices)?;
        let dim = self.dim();
        let (storage, layout) = self.rows.storage_and_layout();
        if let (Ops::Fast, Storage::Cpu(storage), Some((start, end))) =
            (self.ops, &*storage, layout.contiguous_offsets())
            && let Some(rows) = storage.as_slice::<f32>()?.get(start..end)
        {
            let gathered = gather_rows(rows, dim, indices);
            return Ok(Tensor::from_vec(
                gathered,
                (indices.len(), dim),
                &Device::Cpu,
            )?);
        }
        drop(storage);
        let indices = Tensor::from_slice(indices, indices.len(), self.rows.device())?;
        Ok(self.rows.index_select(&indices, 0)?)
    }

    /// Moves the rows at `indices` towards `embeddings`, `(indices.len(), dim)`, in place:
    /// `m <- normalise(momentum m + (1 - momentum) v)`.
    ///
    /// A row whose sum with the embedding has length 0 (`v = -m` at momentum 0.5) has no direction
    /// and stays as it is. Any gradient history of `embeddings` is ignored.
    ///
    /// # Errors
    /// [`BankError::Index`], [`BankError::Duplicate`] if an index occurs twice,
    /// [`BankError::Tensor`] for embeddings of another shape or type, [`BankError::NotFinite`].
    /// The bank is unchanged after an error.
    pub fn update(&mut self, indices: &[u32], embeddings: &Tensor) -> Result<(), BankError> {
        self.check_indices(indices)?;
        let mut seen = HashSet::with_capacity(indices.len());
        if let Some(&index) = indices.iter().find(|index| !seen.insert(**index)) {
            return Err(BankError::Duplicate { index });
        }
        if indices.is_empty() {
            return Ok(());
        }
        let new = moved(&self.gather(indices)?, embeddings, indices, self.momentum)?;
        let targets = Tensor::from_slice(indices, (indices.len(), 1), self.rows.device())?
            .broadcast_as(new.shape())?
            .contiguous()?;
        self.rows.scatter_set(&targets, &new.contiguous()?, 0)?;
        Ok(())
    }

    fn check_indices(&self, indices: &[u32]) -> Result<(), BankError> {
        let rows = self.len();
        match indices.iter().find(|&&index| index as usize >= rows) {
            Some(&index) => Err(BankError::Index { index, rows }),
            None => Ok(()),
        }
    }
}

/// The rows `old`, of `indices`, moved towards `embeddings` of the same shape.
pub(crate) fn moved(
    old: &Tensor,
    embeddings: &Tensor,
    indices: &[u32],
    momentum: f64,
) -> Result<Tensor, BankError> {
    let shape = old.dims2()?;
    if embeddings.dims() != [shape.0, shape.1] || embeddings.dtype() != DType::F32 {
        let expected = format!("{shape:?} of f32");
        return Err(wrong_tensor(
            "embeddings of an update",
            &expected,
            embeddings,
        ));
    }
    let sum = ((old * momentum)? + (embeddings.detach() * (1.0 - momentum))?)?;
    let norm = sum.sqr()?.sum_keepdim(1)?.sqrt()?;
    let lengths = norm.flatten_all()?.to_vec1::<f32>()?;
    if let Some((&index, _)) = indices.iter().zip(&lengths).find(|(_, l)| !l.is_finite()) {
        return Err(BankError::NotFinite { index });
    }
    let mut new = sum.broadcast_div(&norm)?;
    if lengths
        .iter()
        .any(|&length| length < f32::MIN_POSITIVE.sqrt())
    {
        let keep = norm.lt(f32::MIN_POSITIVE.sqrt())?.broadcast_as(shape)?;
        new = keep.where_cond(old, &new)?;
    }
    Ok(new)
}

/// The random unit rows that a bank begins with, any of them.
#[derive(Clone)]
pub(crate) struct RandomRows {
    rng: ChaCha8Rng,
    dim: usize,
    /// Of one row.
    words: Vec<u32>,
}

impl RandomRows {
    pub(crate) fn new(seed: u64, dim: usize) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        let words = vec![0; dim];
        Self { rng, dim, words }
    }

    /// Fills `values` with the rows from number `first` on.
    pub(crate) fn fill(&mut self, first: usize, values: &mut [f32]) {
        let a = 1.0 / (self.dim as f32 / 3.0).sqrt();
        for (at, row) in values.chunks_exact_mut(self.dim).enumerate() {
            let at = first + at;
            if at.is_multiple_of(ROWS_PER_STREAM) || at == first {
                self.rng.set_stream((at / ROWS_PER_STREAM) as u64);
                let before = (at % ROWS_PER_STREAM) * self.dim;
                self.rng.set_word_pos(before as u128);
            }
            // A row of zeros has no direction; of one column it comes up once in 2^24.
            loop {
                self.rng.fill(&mut self.words[..]);
                if unit_row(&self.words, a, row) {
                    break;
                }
            }
        }
    }
}

vectorised! {
    /// Makes a unit row of numbers that are `random_range(-a..=a)` of each word; false if they are about
    /// zero.
    fn unit_row(words: &[u32], a: f32, row: &mut [f32]) -> bool {
        for (x, word) in row.iter_mut().zip(words) {
            let unit = f32::from_bits(1f32.to_bits() | word >> 9) - 1.0;
            *x = unit * (2.0 * a) - a;
        }
        let norm = norm(row);
        if norm <= 1e-6 * a {
            return false;
        }
        row.iter_mut().for_each(|x| *x /= norm);
        true
    }
}

/// How many rows ahead of the copy to prefetch.
const AHEAD: usize = 6;

/// Copies rows that lie anywhere in hundreds of megabytes: memory latency dominates, so all threads copy
/// and prefetch. The caller has checked the indices.
fn gather_rows(rows: &[f32], dim: usize, indices: &[u32]) -> Vec<f32> {
    /// Rows that one Rayon task copies.
    const ROWS: usize = 256;
    let len = indices.len() * dim;
    let mut gathered = Vec::with_capacity(len);
    gathered.spare_capacity_mut()[..len]
        .par_chunks_mut(ROWS * dim)
        .zip(indices.par_chunks(ROWS))
        .for_each(|(gathered, indices)| {
            for (i, (to, &index)) in gathered.chunks_exact_mut(dim).zip(indices).enumerate() {
                if let Some(&next) = indices.get(i + AHEAD) {
                    prefetch(&rows[next as usize * dim..][..dim]);
                }
                for (to, &x) in to.iter_mut().zip(&rows[index as usize * dim..][..dim]) {
                    to.write(x);
                }
            }
        });
    // SAFETY: `len` is a row for each index, and each row was written above from one as long.
    unsafe { gathered.set_len(len) };
    gathered
}

pub(crate) fn check_momentum(value: f64) -> Result<(), SettingError> {
    let fits = (0.0..=1.0).contains(&value);
    check("momentum", value, fits, "must lie in [0, 1]")
}

pub(crate) fn check_size(rows: usize, dim: usize) -> Result<(), BankError> {
    if rows == 0 || dim == 0 || rows > u32::MAX as usize {
        return Err(BankError::Size { rows, dim });
    }
    Ok(())
}

/// Every length must be 1 within rounding; `what` names the rows in the error.
pub(crate) fn check_norms(norms: &[f32], what: &str) -> Result<(), BankError> {
    let is_unit = |norm: f32| (norm - 1.0).abs() <= UNIT_TOLERANCE;
    match norms.iter().position(|&norm| !is_unit(norm)) {
        Some(row) => Err(BankError::NotUnit {
            what: what.to_owned(),
            row,
            norm: norms[row],
        }),
        None => Ok(()),
    }
}

#[inline]
pub(crate) fn norm(row: &[f32]) -> f32 {
    row.iter().map(|x| x * x).sum::<f32>().sqrt()
}

fn wrong_tensor(what: &'static str, expected: &str, found: &Tensor) -> BankError {
    BankError::Tensor {
        what,
        expected: expected.to_owned(),
        found: format!("{:?} of {}", found.dims(), found.dtype().as_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also where one stream of the generator ends and the next begins.
    #[test]
    fn random_rows_are_uniform_numbers_one_by_one() {
        for (dim, first, rows) in [(1, 0, 40), (3, 4093, 9), (128, 4095, 5), (131, 7, 3)] {
            let mut found = vec![0.0; rows * dim];
            RandomRows::new(5, dim).fill(first, &mut found);
            let mut rng = ChaCha8Rng::seed_from_u64(5);
            let a = 1.0 / (dim as f32 / 3.0).sqrt();
            for (at, row) in (first..).zip(found.chunks_exact(dim)) {
                if at == first || at.is_multiple_of(ROWS_PER_STREAM) {
                    rng.set_stream((at / ROWS_PER_STREAM) as u64);
                    rng.set_word_pos(((at % ROWS_PER_STREAM) * dim) as u128);
                }
                let mut expected: Vec<f32> = (0..dim).map(|_| rng.random_range(-a..=a)).collect();
                let norm = norm(&expected);
                expected.iter_mut().for_each(|x| *x /= norm);
                assert_eq!(row, expected, "row {at} of {dim}");
            }
        }
    }
}
