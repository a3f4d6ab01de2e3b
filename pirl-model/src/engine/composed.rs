//! The reference: the same networks from Candle's own differentiable ops on NCHW tensors, op by op, in `f32`. It
//! also runs on devices for which this crate has no ops.
//!
//! Nothing is read back from the device, neither during a pass nor at its end: what it adds to the running
//! statistics stays there until somebody asks for them. Batch norm that is synced is the exception.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::cut::{Cut, cut_out};
use super::{Conv, Engine, Linear, Norm};
use crate::error::{ModelError, Result};
use crate::mode::Mode;
use crate::ops::{batch_norm, reference};
use crate::params::{Buffers, ParamId, ParamSet, Seen};
use crate::peers::Peers;

/// A forward pass in progress; values are `(n, c)` tensors or NCHW maps.
pub(crate) struct Composed<'a> {
    set: &'a ParamSet,
    /// Of a pass that is differentiated.
    cut: Option<Cut>,
    /// Those asked for so far.
    parts: Vec<Option<Tensor>>,
    buffers: &'a Buffers,
    mode: Mode,
    /// The parts of a batch that batch norm is synced with.
    peers: Option<Arc<dyn Peers>>,
    /// What the batch norms saw.
    seen: Vec<Seen>,
    /// Mean, then biased variance, of each of those.
    statistics: Vec<Tensor>,
}

impl<'a> Composed<'a> {
    pub(crate) fn new(set: &'a ParamSet, buffers: &'a Buffers, mode: Mode) -> Result<Self> {
        let flat = set.var().as_tensor();
        Ok(Self {
            set,
            cut: mode.records().then(|| Cut::new(flat)).transpose()?,
            parts: vec![None; set.params().len()],
            buffers,
            mode,
            peers: None,
            seen: Vec::new(),
            statistics: Vec::new(),
        })
    }

    /// The same pass, with batch norm over the parts of `peers` too.
    pub(crate) fn synced_with(self, peers: Option<Arc<dyn Peers>>) -> Self {
        Self { peers, ..self }
    }

    /// A parameter in its own shape; always the same for the same one.
    fn param(&mut self, id: ParamId) -> Result<Tensor> {
        if let Some(found) = &self.parts[id.index()] {
            return Ok(found.clone());
        }
        let param = self.set.param(id);
        let part = match &self.cut {
            Some(cut) => cut.part(param.offset, &param.shape)?,
            None => {
                let flat = self.set.var().as_detached_tensor();
                cut_out(&flat, param.offset, &param.shape)?
            }
        };
        Ok(self.parts[id.index()].insert(part).clone())
    }

    /// Batch norm of `x`, of `rows` numbers a channel, by mean and variance over the parts of `peers` too, then
    /// the residual, then ReLU. Returns the output, mean and biased variance, and the numbers of a channel in all
    /// parts.
    fn synced_norm(
        &mut self,
        layer: &Norm,
        x: &Tensor,
        rows: usize,
        residual: Option<&Tensor>,
        relu: bool,
        peers: &Arc<dyn Peers>,
    ) -> Result<(Tensor, Tensor, usize)> {
        let c = x.dim(1)?;
        let (gamma, beta) = (self.param(layer.weight)?, self.param(layer.bias)?);
        let mean = x.mean_keepdim((0, 2, 3))?;
        let var = x.broadcast_sub(&mean)?.sqr()?.mean_keepdim((0, 2, 3))?;
        let own = Tensor::cat(&[mean.flatten_all()?, var.flatten_all()?], 0)?;
        let (joined, all) = batch_norm::join(&own.to_device(&Device::Cpu)?, rows, peers)?;
        if all < 2 {
            return Err(self.single_value(layer));
        }
        let joined = joined.to_device(x.device())?;
        let (mean, var) = (joined.narrow(0, 0, c)?, joined.narrow(0, c, c)?);
        let eps = Norm::EPS.into();
        let out = reference::batch_norm_eval(x, &gamma, &beta, &mean, &var, eps, residual, relu)?;
        Ok((out, joined, all))
    }

    fn single_value(&self, layer: &Norm) -> ModelError {
        let name = self.buffers.with(layer.stats, |norm| norm.name.clone());
        match name {
            Ok(layer) => ModelError::SingleValue { layer },
            Err(error) => error,
        }
    }

    /// Adds to the running statistics what the pass has seen.
    pub(crate) fn finish(self) -> Result<()> {
        if self.seen.is_empty() {
            return Ok(());
        }
        let statistics: Vec<Tensor> = self.statistics.iter().map(Tensor::detach).collect();
        let numbers = Tensor::cat(&statistics, 0)?;
        self.buffers
            .see(&self.seen, &numbers, self.mode == Mode::Calibrate)
    }
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
        // A vector is a map of one pixel.
        let maps = match *x.dims() {
            [n, c] => x.reshape((n, c, 1, 1))?,
            _ => x.clone(),
        };
        let channels = self.set.param(layer.weight).elements();
        let mut rows = maps.elem_count() / channels.max(1);
        let eps = Norm::EPS.into();
        let out = if self.mode.uses_batch() {
            let (out, statistics) = match self.peers.clone() {
                Some(peers) => {
                    let (out, statistics, all) =
                        self.synced_norm(layer, &maps, rows, residual, relu, &peers)?;
                    rows = all;
                    (out, statistics)
                }
                None if rows < 2 => return Err(self.single_value(layer)),
                None => {
                    let (gamma, beta) = (self.param(layer.weight)?, self.param(layer.bias)?);
                    let (out, mean, var) =
                        reference::batch_norm_train(&maps, &gamma, &beta, eps, residual, relu)?;
                    (out, Tensor::cat(&[mean, var], 0)?)
                }
            };
            self.statistics.push(statistics);
            self.seen.push(Seen {
                norm: layer.stats,
                channels,
                rows,
            });
            out
        } else {
            let tensor = |numbers: &[f32]| Tensor::from_slice(numbers, channels, x.device());
            let running = self.buffers.with(layer.stats, |norm| {
                Ok::<_, ModelError>((tensor(&norm.mean)?, tensor(&norm.var)?))
            });
            let (mean, var) = running??;
            let (gamma, beta) = (self.param(layer.weight)?, self.param(layer.bias)?);
            reference::batch_norm_eval(&maps, &gamma, &beta, &mean, &var, eps, residual, relu)?
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
