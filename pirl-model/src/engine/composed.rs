//! The engine of devices other than CPUs, and the reference: the same networks as Candle tensors, op
//! by op. The ops are this crate's where it has some for the device; else, or if the plain reference
//! is asked for, they are Candle's own.
//!
//! Nothing is read back from the device during a pass; the statistics of all its batch norms are
//! fetched together at the end.

use candle_core::{DType, Tensor};

use super::{Conv, Engine, Linear, Norm};
use crate::config::Precision;
use crate::error::{ModelError, Result};
use crate::mode::Mode;
use crate::ops::{self, reference};
use crate::params::{Buffers, NormId, NormUpdate, Param, ParamId, ParamSet};
use pirl_core::Ops;

/// A forward pass in progress; values are NCHW or `(n, c)` tensors, the maps of this crate's ops views
/// of NHWC memory.
pub(crate) struct Composed<'a> {
    set: &'a ParamSet,
    /// Of the set, in order and flat.
    params: Vec<Tensor>,
    buffers: &'a Buffers,
    mode: Mode,
    ops: Ops,
    /// Of maps and vectors, and of the factors of products.
    precision: Precision,
    statistics: Vec<Seen>,
}

/// What a batch norm saw.
struct Seen {
    norm: NormId,
    mean: Tensor,
    /// Unbiased.
    var: Tensor,
}

impl<'a> Composed<'a> {
    /// A pass with the chosen `ops` and activations in `precision`, `f32` for the reference.
    pub(crate) fn new(
        set: &'a ParamSet,
        buffers: &'a Buffers,
        mode: Mode,
        ops: Ops,
        precision: Precision,
    ) -> Result<Self> {
        let flat = if mode.records() {
            set.var().as_tensor().clone()
        } else {
            set.var().as_detached_tensor()
        };
        let mut params = Vec::with_capacity(set.params().len());
        split(&flat, set.params(), &mut params)?;
        Ok(Self {
            set,
            params,
            buffers,
            mode,
            ops,
            precision,
            statistics: Vec::new(),
        })
    }

    fn param(&self, id: ParamId) -> Result<Tensor> {
        let shape = self.set.param(id).shape.as_slice();
        Ok(self.params[id.index()].reshape(shape)?)
    }

    /// A parameter as the factor of a product.
    fn factor(&self, id: ParamId) -> Result<Tensor> {
        Ok(self.param(id)?.to_dtype(self.precision.dtype())?)
    }

    /// What the pass adds to the running statistics.
    pub(crate) fn updates(self) -> Result<Vec<NormUpdate>> {
        if self.statistics.is_empty() {
            return Ok(Vec::new());
        }
        let both = |seen: &Seen| [seen.mean.detach(), seen.var.detach()];
        let numbers: Vec<Tensor> = self.statistics.iter().flat_map(both).collect();
        let numbers = Tensor::cat(&numbers, 0)?.to_vec1::<f32>()?;
        let mut rest = numbers.as_slice();
        let updates = self.statistics.iter().map(|seen| {
            let mut next = || {
                let (head, tail) = rest.split_at(seen.mean.elem_count());
                rest = tail;
                head.to_vec()
            };
            NormUpdate {
                norm: seen.norm,
                mean: next(),
                var: next(),
            }
        });
        Ok(updates.collect())
    }
}

/// Cuts `flat`, which holds `params` one after the other, into them. It is halved again and again:
/// the gradient of a part is padded to the size of what it was cut from, and cutting all parts from
/// the whole would pad each to the size of the whole.
fn split(flat: &Tensor, params: &[Param], parts: &mut Vec<Tensor>) -> Result<()> {
    if let [_] | [] = params {
        parts.extend(params.iter().map(|_| flat.clone()));
        return Ok(());
    }
    let (left, right) = params.split_at(params.len() / 2);
    let len = right[0].offset - left[0].offset;
    split(&flat.narrow(0, 0, len)?, left, parts)?;
    split(&flat.narrow(0, len, flat.dim(0)? - len)?, right, parts)
}

impl Engine for Composed<'_> {
    type Value = Tensor;

    fn conv_norm(
        &mut self,
        conv: &Conv,
        norm: &Norm,
        x: &Tensor,
        residual: Option<&Tensor>,
        relu: bool,
    ) -> Result<Tensor> {
        let weight = self.factor(conv.weight)?;
        let conv2d = match (self.ops, self.precision) {
            (Ops::Fast, Precision::Tf32) => ops::conv2d_tf32,
            (Ops::Fast, _) => ops::conv2d,
            (Ops::Reference, _) => reference::conv2d,
        };
        let x = conv2d(x, &weight, conv.stride, conv.padding)?;
        self.batch_norm(norm, &x, residual, relu)
    }

    fn batch_norm(
        &mut self,
        layer: &Norm,
        x: &Tensor,
        residual: Option<&Tensor>,
        relu: bool,
    ) -> Result<Tensor> {
        let (gamma, beta) = (self.param(layer.weight)?, self.param(layer.bias)?);
        // A vector is a map of one pixel.
        let maps = if x.rank() == 2 {
            x.unsqueeze(2)?.unsqueeze(3)?
        } else {
            x.clone()
        };
        let (n, c, h, w) = maps.dims4()?;
        let out = if self.mode.uses_batch() {
            let rows = n * h * w;
            if rows < 2 {
                let layer = self.buffers.with(layer.stats, |norm| norm.name.clone());
                return Err(ModelError::SingleValue { layer });
            }
            let normalise = match self.ops {
                Ops::Fast => ops::batch_norm_train,
                Ops::Reference => reference::batch_norm_train,
            };
            let (out, mean, var) =
                normalise(&maps, &gamma, &beta, Norm::EPS.into(), residual, relu)?;
            let unbiased = (var * (rows as f64 / (rows - 1) as f64))?;
            self.statistics.push(Seen {
                norm: layer.stats,
                mean,
                var: unbiased,
            });
            out
        } else {
            let (mean, var) = self.buffers.with(layer.stats, |norm| {
                let mean = Tensor::from_slice(&norm.mean, c, x.device());
                let var = Tensor::from_slice(&norm.var, c, x.device());
                (mean, var)
            });
            let (mean, var) = (mean?, var?);
            let normalise = match self.ops {
                Ops::Fast => ops::batch_norm_eval,
                Ops::Reference => reference::batch_norm_eval,
            };
            normalise(
                &maps,
                &gamma,
                &beta,
                &mean,
                &var,
                Norm::EPS.into(),
                residual,
                relu,
            )?
        };
        match x.rank() {
            2 => Ok(out.reshape(x.shape())?),
            _ => Ok(out),
        }
    }

    fn max_pool(&mut self, x: &Tensor) -> Result<Tensor> {
        let max_pool2d = match self.ops {
            Ops::Fast => ops::max_pool2d,
            Ops::Reference => reference::max_pool2d,
        };
        Ok(max_pool2d(x, 3, 2, 1)?)
    }

    fn average_pool(&mut self, x: &Tensor) -> Result<Tensor> {
        // In short types the sum over a map would be rounded at every term.
        let mean = reference::global_average_pool(&x.to_dtype(DType::F32)?)?;
        Ok(mean.to_dtype(self.precision.dtype())?)
    }

    fn linear(&mut self, layer: &Linear, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (self.factor(layer.weight)?, self.factor(layer.bias)?);
        Ok(reference::linear(x, &weight, Some(&bias))?)
    }

    fn relu(&mut self, x: &Tensor) -> Result<Tensor> {
        Ok(reference::relu(x)?)
    }

    fn join(&mut self, x: &Tensor, group: usize) -> Result<Tensor> {
        let (n, c) = x.dims2()?;
        Ok(x.reshape((n / group, group * c))?)
    }
}
