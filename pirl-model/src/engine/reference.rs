//! The plain engine: the same networks from Candle's own differentiable ops, on any device.

use candle_core::Tensor;

use super::{Conv, Engine, Linear, Norm};
use crate::error::{ModelError, Result};
use crate::mode::Mode;
use crate::ops::reference;
use crate::params::{Buffers, NormUpdate, ParamId, ParamSet};

/// A forward pass in progress; values are NCHW or `(n, c)` tensors.
pub(crate) struct Reference<'a> {
    params: &'a ParamSet,
    flat: Tensor,
    buffers: &'a Buffers,
    mode: Mode,
    pub(crate) updates: Vec<NormUpdate>,
}

impl<'a> Reference<'a> {
    pub(crate) fn new(params: &'a ParamSet, buffers: &'a Buffers, mode: Mode) -> Self {
        let flat = if mode.records() {
            params.var().as_tensor().clone()
        } else {
            params.var().as_detached_tensor()
        };
        Self {
            params,
            flat,
            buffers,
            mode,
            updates: Vec::new(),
        }
    }

    fn param(&self, id: ParamId) -> Result<Tensor> {
        let param = self.params.param(id);
        let part = self.flat.narrow(0, param.offset, param.elements())?;
        Ok(part.reshape(param.shape.as_slice())?)
    }
}

impl Engine for Reference<'_> {
    type Value = Tensor;

    fn conv_norm(
        &mut self,
        conv: &Conv,
        norm: &Norm,
        x: &Tensor,
        residual: Option<&Tensor>,
        relu: bool,
    ) -> Result<Tensor> {
        let weight = self.param(conv.weight)?;
        let x = reference::conv2d(x, &weight, conv.stride, conv.padding)?;
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
            let (out, mean, var) = reference::batch_norm_train(
                &maps,
                &gamma,
                &beta,
                Norm::EPS.into(),
                residual,
                relu,
            )?;
            let unbiased = (var * (rows as f64 / (rows - 1) as f64))?;
            self.updates.push(NormUpdate {
                norm: layer.stats,
                mean: mean.flatten_all()?.to_vec1()?,
                var: unbiased.flatten_all()?.to_vec1()?,
            });
            out
        } else {
            let (mean, var) = self.buffers.with(layer.stats, |norm| {
                let mean = Tensor::from_slice(&norm.mean, c, x.device());
                let var = Tensor::from_slice(&norm.var, c, x.device());
                (mean, var)
            });
            let (mean, var) = (mean?, var?);
            reference::batch_norm_eval(
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
        Ok(out.reshape(x.shape())?)
    }

    fn max_pool(&mut self, x: &Tensor) -> Result<Tensor> {
        Ok(reference::max_pool2d(x, 3, 2, 1)?)
    }

    fn average_pool(&mut self, x: &Tensor) -> Result<Tensor> {
        Ok(reference::global_average_pool(x)?)
    }

    fn linear(&mut self, layer: &Linear, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (self.param(layer.weight)?, self.param(layer.bias)?);
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
