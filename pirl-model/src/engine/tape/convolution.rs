//! Convolution, and in evaluations the batch norm after it.

use std::ops::Range;

use super::backward::{Backward, Recorded};
use super::forward::Forward;
use super::value::Value;
use crate::engine::buffer::Buffer;
use crate::engine::{Conv, Norm};
use crate::error::Result;
use crate::ops::Element;
use crate::ops::batch_norm::{Affine, Statistics};
use crate::ops::conv2d::{self, ConvShape};

/// A recorded convolution.
struct Convolution<T: Element> {
    shape: ConvShape,
    weight: Range<usize>,
    x: Value<T>,
    out: usize,
}

/// A convolution.
pub(super) fn forward<T: Element>(
    pass: &mut Forward<'_, T>,
    conv: &Conv,
    x: &Value<T>,
) -> Value<T> {
    let (shape, weight) = (shape(conv, x), pass.range(conv.weight));
    let mut data = pass.buffer(shape.out_len());
    conv2d::forward(
        &shape,
        pass.winograd,
        &x.data,
        pass.parameter(&weight),
        &mut data,
    );
    let (h, w) = shape.out_hw();
    let out = pass.value((x.n, h, w, conv.c_out), data);
    pass.record(|| Convolution {
        shape,
        weight,
        x: x.clone(),
        out: out.id,
    });
    out
}

/// A convolution with the batch norm after it, by the running statistics, folded in; nothing is
/// recorded.
pub(super) fn forward_folded<T: Element>(
    pass: &mut Forward<'_, T>,
    (conv, norm): (&Conv, &Norm),
    x: &Value<T>,
    residual: Option<&Value<T>>,
    relu: bool,
) -> Result<Value<T>> {
    let shape = shape(conv, x);
    let weight = pass.parameter(&pass.range(conv.weight));
    let gamma = pass.parameter(&pass.range(norm.weight));
    let beta = pass.parameter(&pass.range(norm.bias));
    let statistics = pass.buffers.with(norm.stats, |stats| {
        Statistics::running(stats.mean.clone(), stats.var.clone(), Norm::EPS)
    })?;
    let affine = Affine::new(gamma, beta, &statistics);
    let residual = residual.map(|residual| &residual.data[..]);
    let mut data = pass.buffer(shape.out_len());
    conv2d::forward_affine(
        &shape,
        pass.winograd,
        &x.data,
        weight,
        &affine,
        residual,
        relu,
        &mut data,
    );
    let (h, w) = shape.out_hw();
    Ok(pass.value((x.n, h, w, conv.c_out), data))
}

fn shape<T: Element>(conv: &Conv, x: &Value<T>) -> ConvShape {
    ConvShape {
        n: x.n,
        h: x.h,
        w: x.w,
        c_in: conv.c_in,
        c_out: conv.c_out,
        kernel: conv.kernel,
        stride: conv.stride,
        padding: conv.padding,
    }
}

impl<T: Element> Recorded<T> for Convolution<T> {
    fn output(&self) -> usize {
        self.out
    }

    fn parameters_end(&self) -> usize {
        self.weight.end
    }

    fn backward(self: Box<Self>, dy: Buffer<T>, pass: &mut Backward<'_, T>) -> Result<()> {
        let Self {
            shape, weight, x, ..
        } = *self;
        let winograd = pass.winograd;
        let (weight, dw) = pass.parameter_and_gradient(&weight);
        conv2d::backward_weight(&shape, winograd, &x.data, &dy, dw);
        if pass.wants(x.id) {
            let mut dx = pass.buffer(shape.in_len());
            conv2d::backward_input(&shape, winograd, weight, &dy, &mut dx);
            drop(dy);
            pass.add(x.id, dx);
        }
        Ok(())
    }
}
