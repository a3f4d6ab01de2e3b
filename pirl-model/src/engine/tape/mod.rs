//! The fast engine of CPUs: a forward pass over plain NHWC buffers that records what its own
//! backward pass needs.
//!
//! Of every convolution, batch norm and ReLU only the convolution's output and the activation are
//! kept; the backward pass walks the tape from its end and drops each buffer after its last use.
//!
//! Activations and their gradients are stored as `T`; parameters, their gradients and statistics are
//! `f32`.

mod backward;
mod convolution;
mod forward;
mod layout;
mod linear;
mod norm;
mod pool;
mod relu;
mod value;

use super::{Conv, Engine, Linear, Norm};
use crate::error::Result;
use crate::mode::Mode;
use crate::ops::Element;

pub(crate) use backward::Tape;
pub(crate) use forward::Forward;
pub(crate) use layout::nchw_from_nhwc;
pub(crate) use value::Value;

impl<T: Element> Engine for Forward<'_, T> {
    type Value = Value<T>;

    fn conv_norm(
        &mut self,
        conv: &Conv,
        norm: &Norm,
        x: &Value<T>,
        residual: Option<&Value<T>>,
        relu: bool,
    ) -> Result<Value<T>> {
        if self.mode == Mode::Eval {
            let layers = (conv, norm);
            return convolution::forward_folded(self, layers, x, residual, relu);
        }
        let x = convolution::forward(self, conv, x);
        norm::forward(self, norm, &x, residual, relu)
    }

    fn batch_norm(
        &mut self,
        layer: &Norm,
        x: &Value<T>,
        residual: Option<&Value<T>>,
        relu: bool,
    ) -> Result<Value<T>> {
        norm::forward(self, layer, x, residual, relu)
    }

    fn max_pool(&mut self, x: &Value<T>) -> Result<Value<T>> {
        Ok(pool::max(self, x))
    }

    fn average_pool(&mut self, x: &Value<T>) -> Result<Value<T>> {
        Ok(pool::average(self, x))
    }

    fn linear(&mut self, layer: &Linear, x: &Value<T>) -> Result<Value<T>> {
        Ok(linear::forward(self, layer, x))
    }

    fn relu(&mut self, x: &Value<T>) -> Result<Value<T>> {
        Ok(relu::forward(self, x))
    }

    fn join(&mut self, x: &Value<T>, group: usize) -> Result<Value<T>> {
        // The rows of a group are neighbours, so the same buffer, and the same gradient, serves.
        Ok(Value {
            n: x.n / group,
            c: x.c * group,
            ..x.clone()
        })
    }
}
