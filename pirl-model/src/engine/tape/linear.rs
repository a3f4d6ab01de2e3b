//! Linear layers.

use std::ops::Range;

use super::backward::{Backward, Recorded};
use super::forward::Forward;
use super::value::Value;
use crate::engine::Linear;
use crate::engine::buffer::Buffer;
use crate::error::Result;
use crate::ops::{Element, linear};

/// A recorded linear layer.
struct LinearRecord<T: Element> {
    weight: Range<usize>,
    bias: Range<usize>,
    outputs: usize,
    x: Value<T>,
    out: usize,
}

/// `x * weight^T + bias`.
pub(super) fn forward<T: Element>(
    pass: &mut Forward<'_, T>,
    layer: &Linear,
    x: &Value<T>,
) -> Value<T> {
    let (weight, bias) = (pass.range(layer.weight), pass.range(layer.bias));
    let (inputs, outputs) = (layer.inputs, layer.outputs);
    let mut data = pass.buffer(x.n * outputs);
    let (w, b) = (pass.parameter(&weight), pass.parameter(&bias));
    linear::forward(x.n, inputs, outputs, &x.data, w, Some(b), &mut data);
    let out = pass.value((x.n, 1, 1, outputs), data);
    pass.record(|| LinearRecord {
        weight,
        bias,
        outputs,
        x: x.clone(),
        out: out.id,
    });
    out
}

impl<T: Element> Recorded<T> for LinearRecord<T> {
    fn output(&self) -> usize {
        self.out
    }

    fn parameters_end(&self) -> usize {
        self.weight.end.max(self.bias.end)
    }

    fn backward(self: Box<Self>, dy: Buffer<T>, pass: &mut Backward<'_, T>) -> Result<()> {
        let Self {
            weight,
            bias,
            outputs,
            x,
            ..
        } = *self;
        let mut dx = pass.wants(x.id).then(|| pass.buffer(x.data.len()));
        let (mut dw, mut db) = (vec![0.0; weight.len()], vec![0.0; outputs]);
        linear::backward(
            x.n,
            x.c,
            outputs,
            &x.data,
            pass.parameter(&weight),
            &dy,
            dx.as_deref_mut(),
            &mut dw,
            Some(&mut db),
        );
        pass.set_gradient(weight, &dw);
        pass.set_gradient(bias, &db);
        if let Some(dx) = dx {
            pass.add(x.id, dx);
        }
        Ok(())
    }
}
