//! Value and gradient of a loss in one pass over tiles of logits, in `f32`: here on a CPU, and with
//! the feature `cuda` in `cuda` on a CUDA device.
//!
//! A tile is a few images by all negatives. One matrix product makes its logits, each row is
//! reduced and turned into the coefficients `dL/dz` in place, and a second product of coefficients
//! and negatives is the gradient, `dL/dv = (1 / (B tau)) (dL/dz_p m_p + sum_n dL/dz_n m_n)`.
//! A tile depends on its own images alone, so the result does not depend on the threads.

#[cfg(feature = "cuda")]
mod cuda;

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Storage, Tensor};
use rayon::prelude::*;

use crate::contrastive::{Kind, NCE_EPS};
use crate::negatives::Sizes;
use crate::{LossError, Negatives, rows};

/// Images of a tile: enough to reuse each negative read, few enough for the logits of 32,000
/// negatives to take 8 MB.
const TILE: usize = 64;

/// Bytes that the logits of all tiles in progress may take.
const SCRATCH: usize = 48 << 20;

/// Whether this module computes the loss of `query`.
pub(crate) fn runs_on(query: &Tensor) -> bool {
    let device = query.device();
    query.dtype() == DType::F32 && (device.is_cpu() || (cfg!(feature = "cuda") && device.is_cuda()))
}

/// The mean loss, with its gradient if `query` is tracked. The arguments are checked.
pub(crate) fn forward(
    kind: Kind,
    query: &Tensor,
    positive: &Tensor,
    negatives: &Negatives,
    sizes: Sizes,
    temperature: f64,
) -> Result<Tensor, LossError> {
    #[cfg(feature = "cuda")]
    if query.device().is_cuda() {
        return cuda::forward(kind, query, positive, negatives, sizes, temperature);
    }
    let mut losses = vec![0f64; sizes.batch];
    let tracked = query.track_op();
    let mut gradient = vec![0f32; if tracked { sizes.batch * sizes.dim } else { 0 }];
    with_input(query, positive, negatives, sizes, temperature, |input| {
        // Without a gradient to compute every tile gets `None`.
        let gradients = gradient.chunks_mut(input.tile * sizes.dim).map(Some);
        let gradients = gradients.chain(std::iter::repeat_with(|| None));
        let tiles = losses.chunks_mut(input.tile).zip(gradients).collect();
        input.each_tile(tiles, |first, tile, (losses, gradient)| {
            let positives = input.tile_losses(kind, first, tile, losses);
            if let Some(gradient) = gradient {
                input.tile_gradient(first, tile, &positives, gradient);
            }
        });
    })?;
    let gradient = match tracked {
        true => Some(Tensor::from_vec(gradient, query.shape(), query.device())?),
        false => None,
    };
    let value = losses.iter().sum::<f64>() / sizes.batch as f64;
    Ok(query.apply_op1(Computed {
        value: value as f32,
        gradient,
    })?)
}

/// `ln mean exp(z)` over positives and negatives.
pub(crate) fn log_mean_exp(
    query: &Tensor,
    positive: &Tensor,
    negatives: &Negatives,
    sizes: Sizes,
    temperature: f64,
) -> Result<f64, LossError> {
    #[cfg(feature = "cuda")]
    if query.device().is_cuda() {
        return cuda::log_mean_exp(query, positive, negatives, sizes, temperature);
    }
    let mut sums = vec![0f64; sizes.batch];
    with_input(query, positive, negatives, sizes, temperature, |input| {
        let tiles = sums.chunks_mut(input.tile).collect();
        input.each_tile(tiles, |first, tile, sums| {
            for (i, sum) in sums.iter_mut().enumerate() {
                let z_p = input.positive_logit(first + i);
                let row = &tile[i * sizes.negatives..][..sizes.negatives];
                *sum = ln_add_exp(rows::log_sum_exp(row), z_p);
            }
        });
    })?;
    Ok(log_mean(sums, negatives, sizes))
}

/// From `ln sum exp(z)` of each image to `ln mean exp(z)` over all.
fn log_mean(sums: Vec<f64>, negatives: &Negatives, sizes: Sizes) -> f64 {
    let count: usize = (0..sizes.batch)
        .map(|image| 1 + negatives.valid(sizes, image))
        .sum();
    let total = sums.into_iter().fold(f64::NEG_INFINITY, ln_add_exp);
    total - (count as f64).ln()
}

/// A value computed beforehand, and its gradient: the op only puts them into Candle's graph.
struct Computed {
    value: f32,
    gradient: Option<Tensor>,
}

impl CustomOp1 for Computed {
    fn name(&self) -> &'static str {
        "contrastive-loss"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![self.value]), Shape::from(())))
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        upstream: &Tensor,
    ) -> candle_core::Result<Option<Tensor>> {
        self.gradient
            .as_ref()
            .map(|gradient| gradient.broadcast_mul(upstream))
            .transpose()
    }
}

/// The checked arguments as slices.
struct Input<'a> {
    query: &'a [f32],
    positive: &'a [f32],
    rows: &'a [f32],
    negatives: &'a Negatives,
    sizes: Sizes,
    /// Images of a tile; it depends on the sizes alone.
    tile: usize,
    /// `1 / temperature`.
    scale: f64,
}

fn with_input<T>(
    query: &Tensor,
    positive: &Tensor,
    negatives: &Negatives,
    sizes: Sizes,
    temperature: f64,
    work: impl FnOnce(&Input<'_>) -> T,
) -> Result<T, LossError> {
    let rows = match negatives {
        Negatives::Shared { rows, .. } => rows,
        Negatives::PerImage { bank, .. } => bank,
    };
    let (query, positive, rows) = (
        query.contiguous()?,
        positive.contiguous()?,
        rows.contiguous()?,
    );
    let (query, query_layout) = query.storage_and_layout();
    let (positive, positive_layout) = positive.storage_and_layout();
    let (rows, rows_layout) = rows.storage_and_layout();
    let scratch_row = size_of::<f32>() * sizes.negatives;
    Ok(work(&Input {
        query: slice(&query, query_layout)?,
        positive: slice(&positive, positive_layout)?,
        rows: slice(&rows, rows_layout)?,
        negatives,
        sizes,
        tile: (SCRATCH / scratch_row).clamp(1, TILE),
        scale: 1.0 / temperature,
    }))
}

fn slice<'a>(storage: &'a Storage, layout: &Layout) -> Result<&'a [f32], LossError> {
    let values = match (storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => values.get(start..end),
        _ => None,
    };
    let error = || candle_core::Error::Msg("the fused loss needs contiguous f32 on a CPU".into());
    Ok(values.ok_or_else(error)?)
}

impl Input<'_> {
    /// Calls `work(first image, logits, part)` for each tile, where `parts` are what the tiles
    /// fill, in order. Masked columns are minus infinity.
    fn each_tile<P: Send>(&self, parts: Vec<P>, work: impl Fn(usize, &mut [f32], P) + Sync) {
        let n = self.sizes.negatives;
        let room = SCRATCH / (size_of::<f32>() * self.tile * n);
        let workers = rayon::current_num_threads()
            .min(room)
            .min(parts.len())
            .max(1);
        let queue = Mutex::new(parts.into_iter().enumerate());
        (0..workers).into_par_iter().for_each(|_| {
            let mut scratch = vec![0f32; self.tile * n];
            loop {
                // A worker that panics is rethrown by rayon, so a poisoned queue is not used.
                let next = queue.lock().map_or(None, |mut queue| queue.next());
                let Some((index, part)) = next else { break };
                let first = index * self.tile;
                let images = self.tile.min(self.sizes.batch - first);
                let tile = &mut scratch[..images * n];
                self.logits(first, tile);
                work(first, tile, part);
            }
        });
    }

    /// `z = s / tau` of the images from `first` on with their negatives.
    fn logits(&self, first: usize, tile: &mut [f32]) {
        let Sizes {
            dim, negatives: n, ..
        } = self.sizes;
        let images = tile.len() / n;
        let query = &self.query[first * dim..][..images * dim];
        match self.negatives {
            Negatives::Shared { .. } => {
                let out = Matrix {
                    values: &mut *tile,
                    rows: images,
                    columns: n,
                };
                let rows = Matrix {
                    values: self.rows,
                    rows: n,
                    columns: dim,
                };
                product_transposed(out, query, rows, self.scale as f32);
                for (image, row) in tile.chunks_exact_mut(n).enumerate() {
                    if let Some(own) = self.negatives.own(first + image) {
                        row[own] = f32::NEG_INFINITY;
                    }
                }
            }
            Negatives::PerImage { indices, .. } => {
                let indices = indices[first * n..].chunks_exact(n);
                for ((row, query), indices) in tile
                    .chunks_exact_mut(n)
                    .zip(query.chunks_exact(dim))
                    .zip(indices)
                {
                    rows::dots(query, self.rows, indices, self.scale as f32, row);
                }
            }
        }
    }

    /// Fills `losses` and turns the logits into `dL/dz_n`; returns `dL/dz_p` of each image.
    fn tile_losses(
        &self,
        kind: Kind,
        first: usize,
        tile: &mut [f32],
        losses: &mut [f64],
    ) -> Vec<f64> {
        let rows = tile.chunks_exact_mut(self.sizes.negatives);
        let images = rows.zip(losses).enumerate().map(|(i, (row, loss))| {
            let valid = self.negatives.valid(self.sizes, first + i);
            let (value, positive) = kind.reduce(self.positive_logit(first + i), row, valid);
            *loss = value;
            positive
        });
        images.collect()
    }

    /// The gradient with respect to the queries of a tile, from `dL/dz`.
    fn tile_gradient(&self, first: usize, tile: &[f32], positives: &[f64], out: &mut [f32]) {
        let Sizes {
            batch,
            dim,
            negatives: n,
        } = self.sizes;
        match self.negatives {
            Negatives::Shared { .. } => {
                let coefficients = Matrix {
                    values: tile,
                    rows: positives.len(),
                    columns: n,
                };
                let rows = Matrix {
                    values: self.rows,
                    rows: n,
                    columns: dim,
                };
                product(out, coefficients, rows);
            }
            Negatives::PerImage { indices, .. } => {
                let indices = indices[first * n..].chunks_exact(n);
                for ((out, row), indices) in out
                    .chunks_exact_mut(dim)
                    .zip(tile.chunks_exact(n))
                    .zip(indices)
                {
                    rows::combine(row, self.rows, indices, out);
                }
            }
        }
        let scale = (self.scale / batch as f64) as f32;
        let rows = self.positive[first * dim..].chunks_exact(dim);
        for ((out, row), &positive) in out.chunks_exact_mut(dim).zip(rows).zip(positives) {
            for (out, &x) in out.iter_mut().zip(row) {
                *out = scale * (*out + positive as f32 * x);
            }
        }
    }

    fn positive_logit(&self, image: usize) -> f64 {
        let dim = self.sizes.dim;
        let query = &self.query[image * dim..][..dim];
        let row = &self.positive[image * dim..][..dim];
        let dot: f64 = query
            .iter()
            .zip(row)
            .map(|(&a, &b)| f64::from(a) * f64::from(b))
            .sum();
        dot * self.scale
    }
}

impl Kind {
    /// One image: its loss and `dL/dz_p`; the row of logits becomes `dL/dz_n`. `valid` columns
    /// are not masked.
    fn reduce(self, z_p: f64, row: &mut [f32], valid: usize) -> (f64, f64) {
        match self {
            Kind::Paper => {
                let log_s = rows::log_sum_exp(row);
                let (repulsion, squares) = rows::paper_sums(row, log_s as f32);
                let pull = sigmoid(log_s - z_p);
                // dL/dz_n = q_n + (pull - sum q) p_n with q = p / (1 + p). As the p sum to 1,
                // 1 - sum q is sum p q, which does not cancel: p_n (pull + sum p q - q_n).
                rows::paper_coefficients(row, (pull + squares) as f32);
                (softplus(log_s - z_p) + repulsion, -pull)
            }
            Kind::Nce {
                log_z,
                dataset_size,
            } => {
                let noise = valid as f64 / dataset_size as f64;
                let threshold = log_z + (noise + NCE_EPS).ln();
                let repulsion = rows::softplus(row, threshold as f32);
                // ln((c + eps) / c), once for each negative.
                let constant = valid as f64 * (NCE_EPS / noise).ln_1p();
                let value = softplus(threshold - z_p) + repulsion + constant;
                (value, -sigmoid(threshold - z_p))
            }
            Kind::InfoNce => {
                let log_s = rows::log_sum_exp(row);
                let pull = sigmoid(log_s - z_p);
                rows::shares(row, log_s as f32, pull as f32);
                (softplus(log_s - z_p), -pull)
            }
        }
    }
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn sigmoid(x: f64) -> f64 {
    let e = (-x.abs()).exp();
    (if x < 0.0 { e } else { 1.0 }) / (1.0 + e)
}

fn ln_add_exp(a: f64, b: f64) -> f64 {
    let max = a.max(b);
    max + ((a - max).exp() + (b - max).exp()).ln()
}

/// A row-major matrix.
struct Matrix<T> {
    values: T,
    rows: usize,
    columns: usize,
}

/// `out = scale * a b^T`, where `a` has as many rows as `out` and as many columns as `b`.
fn product_transposed(out: Matrix<&mut [f32]>, a: &[f32], b: Matrix<&[f32]>, scale: f32) {
    let (m, n, k) = (out.rows, out.columns, b.columns);
    assert!(out.values.len() == m * n && a.len() == m * k && b.values.len() == n * k);
    let (n_stride, k_stride) = (n as isize, k as isize);
    // SAFETY: `gemm` reads m x k of `a`, k x n of `b` by the strides (row, column) = (k, 1) and
    // (1, k) and writes m x n of `out` by (n, 1), all within the lengths asserted; `out` is
    // borrowed mutably, so it overlaps neither; with `read_dst` false its old content is not read.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.values.as_mut_ptr(),
            1,
            n_stride,
            false,
            a.as_ptr(),
            1,
            k_stride,
            b.values.as_ptr(),
            k_stride,
            1,
            0.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// `out = a b`, row-major.
fn product(out: &mut [f32], a: Matrix<&[f32]>, b: Matrix<&[f32]>) {
    let (m, n, k) = (a.rows, b.columns, b.rows);
    assert!(a.columns == k && out.len() == m * n);
    assert!(a.values.len() == m * k && b.values.len() == k * n);
    let (n_stride, k_stride) = (n as isize, k as isize);
    // SAFETY: as above, with the strides (row, column) = (k, 1), (n, 1) and (n, 1).
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n_stride,
            false,
            a.values.as_ptr(),
            1,
            k_stride,
            b.values.as_ptr(),
            1,
            n_stride,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
