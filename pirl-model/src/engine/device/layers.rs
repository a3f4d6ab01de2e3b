//! Every layer but batch norm.

use candle_core::{DType, Tensor};

use super::backward::{Backward, Recorded};
use super::{Forward, Value};
use crate::config::Precision;
use crate::engine::{Conv, Linear};
use crate::error::Result;
use crate::ops::conv2d::ConvShape;
use crate::ops::pool::PoolShape;
use crate::ops::{nhwc, reference};

struct Convolution {
    shape: ConvShape,
    weight: Tensor,
    /// Where it lies among the parameters.
    start: usize,
    x: Value,
    out: usize,
}

pub(super) fn convolution(pass: &mut Forward<'_>, conv: &Conv, x: &Value) -> Result<Value> {
    let (n, h, w, c_in) = x.data.dims4()?;
    let shape = ConvShape {
        n,
        h,
        w,
        c_in,
        c_out: conv.c_out,
        kernel: conv.kernel,
        stride: conv.stride,
        padding: conv.padding,
    };
    let start = pass.params.param(conv.weight).offset;
    let weight = pass.weights.narrow(0, start, shape.weight_len())?;
    let weight = weight.reshape((conv.c_out, conv.kernel, conv.kernel, c_in))?;
    let tf32 = pass.precision == Precision::Tf32;
    let data = nhwc::conv2d(&shape, tf32, &x.data, &weight)?;
    let out = pass.value(data);
    pass.record(|| Convolution {
        shape,
        weight,
        start,
        x: x.clone(),
        out: out.id,
    });
    Ok(out)
}

impl Recorded for Convolution {
    fn output(&self) -> usize {
        self.out
    }

    fn backward(self: Box<Self>, dy: Tensor, pass: &mut Backward) -> Result<()> {
        let (s, place) = (&self.shape, (&pass.weight_gradients, self.start));
        nhwc::conv2d_weight_gradient(s, pass.tf32, &self.x.data, &dy, place)?;
        if pass.wants(self.x.id) {
            let dx = nhwc::conv2d_input_gradient(s, pass.tf32, &self.weight, &dy)?;
            pass.add(self.x.id, dx)?;
        }
        Ok(())
    }
}

struct MaxPool {
    shape: PoolShape,
    x: Value,
    out: usize,
}

/// The maximum of each 3x3 window, stride 2, padding 1.
pub(super) fn max_pool(pass: &mut Forward<'_>, x: &Value) -> Result<Value> {
    let (n, h, w, c) = x.data.dims4()?;
    let shape = PoolShape {
        n,
        h,
        w,
        c,
        kernel: 3,
        stride: 2,
        padding: 1,
    };
    let data = nhwc::max_pool(&shape, &x.data)?;
    let out = pass.value(data);
    pass.record(|| MaxPool {
        shape,
        x: x.clone(),
        out: out.id,
    });
    Ok(out)
}

impl Recorded for MaxPool {
    fn output(&self) -> usize {
        self.out
    }

    fn backward(self: Box<Self>, dy: Tensor, pass: &mut Backward) -> Result<()> {
        let dx = nhwc::max_pool_gradient(&self.shape, &self.x.data, &dy)?;
        pass.add(self.x.id, dx)
    }
}

struct AveragePool {
    shape: (usize, usize, usize, usize),
    x: usize,
    out: usize,
}

/// The mean over each map.
pub(super) fn average_pool(pass: &mut Forward<'_>, x: &Value) -> Result<Value> {
    let shape = x.data.dims4()?;
    // In short types the sum over a map would be rounded at every term.
    let mean = x.data.to_dtype(DType::F32)?.mean((1, 2))?;
    let out = pass.value(mean.to_dtype(x.data.dtype())?);
    pass.record(|| AveragePool {
        shape,
        x: x.id,
        out: out.id,
    });
    Ok(out)
}

impl Recorded for AveragePool {
    fn output(&self) -> usize {
        self.out
    }

    fn backward(self: Box<Self>, dy: Tensor, pass: &mut Backward) -> Result<()> {
        let (n, h, w, c) = self.shape;
        let each = (dy.to_dtype(DType::F32)? / (h * w) as f64)?.to_dtype(dy.dtype())?;
        let dx = each.reshape((n, 1, 1, c))?.broadcast_as(self.shape)?;
        pass.add(self.x, dx.contiguous()?)
    }
}

struct LinearRecord {
    weight: Tensor,
    /// Where weight and bias lie among the parameters.
    starts: (usize, usize),
    x: Value,
    out: usize,
}

/// `x * weight^T + bias`.
pub(super) fn linear(pass: &mut Forward<'_>, layer: &Linear, x: &Value) -> Result<Value> {
    let dtype = x.data.dtype();
    let weight = pass.parameter(layer.weight, (layer.outputs, layer.inputs))?;
    let weight = weight.to_dtype(dtype)?;
    let bias = pass.parameter(layer.bias, layer.outputs)?.to_dtype(dtype)?;
    let data = reference::linear(&x.data, &weight, Some(&bias))?;
    let out = pass.value(data);
    let start = |id| pass.params.param(id).offset;
    let starts = (start(layer.weight), start(layer.bias));
    pass.record(|| LinearRecord {
        weight,
        starts,
        x: x.clone(),
        out: out.id,
    });
    Ok(out)
}

impl Recorded for LinearRecord {
    fn output(&self) -> usize {
        self.out
    }

    fn backward(self: Box<Self>, dy: Tensor, pass: &mut Backward) -> Result<()> {
        let (weight, bias) = self.starts;
        pass.set_gradient(weight, &dy.t()?.matmul(&self.x.data)?)?;
        pass.set_gradient(bias, &dy.to_dtype(DType::F32)?.sum(0)?)?;
        if pass.wants(self.x.id) {
            pass.add(self.x.id, dy.matmul(&self.weight)?)?;
        }
        Ok(())
    }
}

struct Relu {
    x: usize,
    out: Value,
}

/// The positive part.
pub(super) fn relu(pass: &mut Forward<'_>, x: &Value) -> Result<Value> {
    let out = pass.value(reference::relu(&x.data)?);
    pass.record(|| Relu {
        x: x.id,
        out: out.clone(),
    });
    Ok(out)
}

impl Recorded for Relu {
    fn output(&self) -> usize {
        self.out.id
    }

    fn backward(self: Box<Self>, dy: Tensor, pass: &mut Backward) -> Result<()> {
        let dx = reference::before_relu(&self.out.data, &dy)?;
        pass.add(self.x, dx)
    }
}
