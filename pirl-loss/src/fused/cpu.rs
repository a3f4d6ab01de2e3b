//! The fused losses on a CPU.

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};
use pirl_core::storage::with_slice;
use pirl_core::{Matrix, product};
use rayon::prelude::*;

use super::log_mean::{ln_add_exp, log_mean};
use super::packed::Packed;
use crate::inputs::Inputs;
use crate::kind::{Kind, NCE_EPS};
use crate::negatives::Sizes;
use crate::{LossError, Negatives, rows};

/// Images of a tile: enough to reuse each negative read, few enough for the logits of 32,000
/// negatives to take 6 MB. More would have `gemm` pack the negatives for the gradient.
const TILE: usize = 48;

/// Bytes that the logits of all tiles in progress may take, and as many that packed negatives may.
const SCRATCH: usize = 40 << 20;

/// The mean loss, with its gradient if `query` is tracked.
pub(super) fn forward(kind: Kind, inputs: Inputs<'_>) -> Result<Tensor, LossError> {
    let Inputs { query, sizes, .. } = inputs;
    let mut losses = vec![0f64; sizes.batch];
    let tracked = query.track_op();
    let mut gradient = vec![0f32; if tracked { sizes.batch * sizes.dim } else { 0 }];
    with_slices(inputs, |slices| {
        // Without a gradient to compute every tile gets `None`.
        let gradients = gradient.chunks_mut(slices.tile * sizes.dim).map(Some);
        let gradients = gradients.chain(std::iter::repeat_with(|| None));
        let tiles = losses.chunks_mut(slices.tile).zip(gradients).collect();
        slices.each_tile(tiles, |first, tile, (losses, gradient)| {
            let positives = slices.tile_losses(kind, first, tile, losses);
            if let Some(gradient) = gradient {
                slices.tile_gradient(first, tile, &positives, gradient);
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
pub(super) fn log_mean_exp(inputs: Inputs<'_>) -> Result<f64, LossError> {
    let n = inputs.sizes.negatives;
    let mut sums = vec![0f64; inputs.sizes.batch];
    with_slices(inputs, |slices| {
        let tiles = sums.chunks_mut(slices.tile).collect();
        slices.each_tile(tiles, |first, tile, sums| {
            for (i, (sum, row)) in sums.iter_mut().zip(tile.chunks_exact(n)).enumerate() {
                *sum = ln_add_exp(rows::log_sum_exp(row), slices.positive_logit(first + i));
            }
        });
    })?;
    Ok(log_mean(sums, inputs.count()))
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

/// The arguments as slices.
struct Slices<'a> {
    query: &'a [f32],
    positive: &'a [f32],
    /// Of shared negatives or of the bank.
    rows: &'a [f32],
    /// Shared negatives again, where packing them pays.
    packed: Option<Packed>,
    negatives: &'a Negatives,
    sizes: Sizes,
    /// Images of a tile; it depends on the sizes alone.
    tile: usize,
    /// `1 / temperature`.
    scale: f64,
}

fn with_slices<T>(
    inputs: Inputs<'_>,
    work: impl FnOnce(&Slices<'_>) -> T,
) -> candle_core::Result<T> {
    let Inputs {
        negatives, sizes, ..
    } = inputs;
    let (rows, shared) = match negatives {
        Negatives::Shared { rows, .. } => (rows, true),
        Negatives::PerImage { bank, .. } => (bank, false),
    };
    with_slice(inputs.query, |query| {
        with_slice(inputs.positive, |positive| {
            with_slice(rows, |rows| {
                let tile = (SCRATCH / (size_of::<f32>() * sizes.negatives)).clamp(1, TILE);
                // One tile alone is as fast without, and rows beyond all measure are not kept twice.
                let packs = shared && sizes.batch > tile && size_of_val(rows) <= SCRATCH;
                work(&Slices {
                    query,
                    positive,
                    packed: packs.then(|| Packed::new(rows, sizes.dim)).flatten(),
                    rows,
                    negatives,
                    sizes,
                    tile,
                    scale: 1.0 / inputs.temperature,
                })
            })
        })
    })??
}

impl Slices<'_> {
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
                let scale = self.scale as f32;
                match &self.packed {
                    Some(packed) => packed.products(query, scale, tile),
                    None => {
                        let queries = Matrix::new(query, images, dim);
                        let rows = Matrix::new(self.rows, n, dim);
                        product(tile, queries, rows.t(), scale);
                    }
                }
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
            let (value, positive) = reduce(kind, self.positive_logit(first + i), row, valid);
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
                let coefficients = Matrix::new(tile, positives.len(), n);
                product(out, coefficients, Matrix::new(self.rows, n, dim), 1.0);
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

/// The loss of one image and `dL/dz_p`; its row of logits becomes `dL/dz_n`. `valid` columns are
/// not masked.
fn reduce(kind: Kind, z_p: f64, row: &mut [f32], valid: usize) -> (f64, f64) {
    match kind {
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

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn sigmoid(x: f64) -> f64 {
    let e = (-x.abs()).exp();
    (if x < 0.0 { e } else { 1.0 }) / (1.0 + e)
}
