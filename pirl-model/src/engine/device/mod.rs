//! The fast engine of GPUs: a forward pass over channels-last tensors outside Candle's graph that records what its
//! own backward pass needs, as the [tape](super::tape) does on CPUs. A whole network is a single node of Candle's
//! graph, whose own backward pass would begin every gradient as zeros and add to it.
//!
//! It runs on CPUs too, by Candle's ops: so tests hold it against the tape and the reference.
//!
//! Nothing is read back from the device, neither during a pass nor at its end: what it adds to the running
//! statistics stays there until somebody asks for them. Batch norm that is synced is the exception.

mod backward;
mod layers;
mod node;
mod norm;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use candle_core::{DType, Shape, Tensor};

use super::{Conv, Engine, Linear, Norm};
use crate::config::Precision;
use crate::error::Result;
use crate::mode::Mode;
use crate::ops::weights::ConvWeights;
use crate::params::{Buffers, ParamId, ParamSet, Seen};
use crate::peers::Peers;

use backward::{Recorded, Tape};

pub(in crate::engine) use node::Node;

/// What a network's layers pass on: a batch of maps `(n, h, w, c)` or of vectors `(n, c)`, contiguous.
#[derive(Clone)]
pub(crate) struct Value {
    /// Its number among the values of its pass.
    id: usize,
    data: Tensor,
}

/// The id of a network's input.
const INPUT: usize = 0;

/// A forward pass in progress.
pub(crate) struct Forward<'a> {
    params: &'a ParamSet,
    /// Their numbers.
    flat: Tensor,
    convolutions: Arc<ConvWeights>,
    /// The weights of convolutions as products take them, each at its place in the flat tensor.
    weights: Tensor,
    buffers: &'a Buffers,
    mode: Mode,
    precision: Precision,
    /// The parts of a batch that batch norm is synced with.
    peers: Option<Arc<dyn Peers>>,
    operations: Vec<Box<dyn Recorded>>,
    /// Of each value so far.
    shapes: Vec<Shape>,
    /// What the batch norms saw.
    seen: Vec<Seen>,
    /// Mean and biased variance of each of those, one after the other, in room for all of the network's.
    statistics: Option<Tensor>,
}

impl<'a> Forward<'a> {
    /// A pass with activations in `precision`; `convolutions`: of the weights among `params`.
    pub(crate) fn new(
        params: &'a ParamSet,
        convolutions: &Arc<ConvWeights>,
        buffers: &'a Buffers,
        mode: Mode,
        precision: Precision,
    ) -> Result<Self> {
        let flat = params.var().as_detached_tensor();
        Ok(Self {
            params,
            weights: convolutions.channels_last(&flat, precision.dtype())?,
            convolutions: Arc::clone(convolutions),
            buffers,
            mode,
            precision,
            peers: None,
            operations: Vec::new(),
            shapes: Vec::new(),
            seen: Vec::new(),
            statistics: None,
            flat,
        })
    }

    /// The same pass, with batch norm over the parts of `peers` too.
    pub(crate) fn synced_with(self, peers: Option<Arc<dyn Peers>>) -> Self {
        Self { peers, ..self }
    }

    /// The input of the network: `x`, `(n, c, h, w)` or `(n, c)`.
    pub(crate) fn input(&mut self, x: &Tensor) -> Result<Value> {
        let x = match x.rank() {
            4 => x.permute((0, 2, 3, 1))?,
            _ => x.clone(),
        };
        let x = x.to_dtype(self.precision.dtype())?.contiguous()?;
        Ok(self.value(x.detach()))
    }

    /// A value as others take it: `f32`, and maps `(n, c, h, w)`, as a view.
    pub(crate) fn output(value: &Value) -> Result<Tensor> {
        let out = value.data.to_dtype(DType::F32)?;
        Ok(match out.rank() {
            4 => out.permute((0, 3, 1, 2))?,
            _ => out,
        })
    }

    /// Ends the pass: adds to the running statistics what it has seen, and returns what it recorded.
    pub(crate) fn finish(self, output: &Value) -> Result<Tape> {
        if let Some(statistics) = &self.statistics {
            let all = statistics.narrow(0, 0, Seen::numbers(&self.seen))?;
            self.buffers
                .see(&self.seen, &all, self.mode == Mode::Calibrate)?;
        }
        Ok(Tape {
            operations: self.operations,
            shapes: self.shapes,
            output: output.id,
            convolutions: self.convolutions,
            flat: self.flat,
            precision: self.precision,
        })
    }

    /// Room for mean and variance of the next batch norm, of `channels`.
    fn next_statistics(&mut self, channels: usize) -> Result<Tensor> {
        let all = match self.statistics.take() {
            Some(all) => all,
            None => Tensor::zeros(self.buffers.numbers(), DType::F32, self.flat.device())?,
        };
        let start = Seen::numbers(&self.seen);
        Ok(self.statistics.insert(all).narrow(0, start, 2 * channels)?)
    }

    /// A new value.
    fn value(&mut self, data: Tensor) -> Value {
        let id = self.shapes.len();
        self.shapes.push(data.shape().clone());
        Value { id, data }
    }

    /// The numbers of parameter `id` and those after it that make up `shape`.
    fn parameter(&self, id: ParamId, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        let start = self.params.param(id).offset;
        Ok(self
            .flat
            .narrow(0, start, shape.elem_count())?
            .reshape(shape)?)
    }

    /// Puts an operation on the tape, if this pass records.
    fn record<R: Recorded + 'static>(&mut self, operation: impl FnOnce() -> R) {
        if self.mode.records() {
            self.operations.push(Box::new(operation()));
        }
    }
}

impl Engine for Forward<'_> {
    type Value = Value;

    fn conv_norm(
        &mut self,
        conv: &Conv,
        norm: &Norm,
        x: &Value,
        residual: Option<&Value>,
        relu: bool,
    ) -> Result<Value> {
        let x = layers::convolution(self, conv, x)?;
        norm::forward(self, norm, &x, residual, relu)
    }

    fn batch_norm(
        &mut self,
        layer: &Norm,
        x: &Value,
        residual: Option<&Value>,
        relu: bool,
    ) -> Result<Value> {
        norm::forward(self, layer, x, residual, relu)
    }

    fn max_pool(&mut self, x: &Value) -> Result<Value> {
        layers::max_pool(self, x)
    }

    fn average_pool(&mut self, x: &Value) -> Result<Value> {
        layers::average_pool(self, x)
    }

    fn linear(&mut self, layer: &Linear, x: &Value) -> Result<Value> {
        layers::linear(self, layer, x)
    }

    fn relu(&mut self, x: &Value) -> Result<Value> {
        layers::relu(self, x)
    }

    fn join(&mut self, x: &Value, group: usize) -> Result<Value> {
        let (n, c) = x.data.dims2()?;
        // The rows of a group are neighbours, so the same numbers, and the same gradient, serve.
        Ok(Value {
            id: x.id,
            data: x.data.reshape((n / group, group * c))?,
        })
    }
}
