//! Max-pooling and the average over a map.

use super::backward::{Backward, Recorded};
use super::forward::Forward;
use super::value::Value;
use crate::engine::buffer::Buffer;
use crate::error::Result;
use crate::ops::Element;
use crate::ops::pool::{self, PoolShape};

/// A recorded max-pool.
struct MaxPool {
    shape: PoolShape,
    argmax: Buffer<u32>,
    x: usize,
    out: usize,
}

/// The maximum of each 3x3 window, stride 2, padding 1.
pub(super) fn max<T: Element>(pass: &mut Forward<'_, T>, x: &Value<T>) -> Value<T> {
    let shape = PoolShape {
        n: x.n,
        h: x.h,
        w: x.w,
        c: x.c,
        kernel: 3,
        stride: 2,
        padding: 1,
    };
    let mut data = pass.buffer(shape.out_len());
    let records = pass.mode.records();
    let mut argmax = records.then(|| pass.indices(shape.out_len()));
    pool::max_forward(&shape, &x.data, &mut data, argmax.as_deref_mut());
    let (h, w) = shape.out_hw();
    let out = pass.value((x.n, h, w, x.c), data);
    if let Some(argmax) = argmax {
        pass.record(|| MaxPool {
            shape,
            argmax,
            x: x.id,
            out: out.id,
        });
    }
    out
}

impl<T: Element> Recorded<T> for MaxPool {
    fn output(&self) -> usize {
        self.out
    }

    fn backward(self: Box<Self>, dy: Buffer<T>, pass: &mut Backward<'_, T>) -> Result<()> {
        let mut dx = pass.buffer(self.shape.in_len());
        pool::max_backward(&self.shape, &self.argmax, &dy, &mut dx);
        pass.add(self.x, dx);
        Ok(())
    }
}

/// A recorded average.
struct AveragePool {
    n: usize,
    /// Pixels of a map.
    hw: usize,
    c: usize,
    x: usize,
    out: usize,
}

/// The mean over each map.
pub(super) fn average<T: Element>(pass: &mut Forward<'_, T>, x: &Value<T>) -> Value<T> {
    let (n, hw, c) = (x.n, x.h * x.w, x.c);
    let mut data = pass.buffer(n * c);
    pool::average_forward(n, hw, c, &x.data, &mut data);
    let out = pass.value((n, 1, 1, c), data);
    pass.record(|| AveragePool {
        n,
        hw,
        c,
        x: x.id,
        out: out.id,
    });
    out
}

impl<T: Element> Recorded<T> for AveragePool {
    fn output(&self) -> usize {
        self.out
    }

    fn backward(self: Box<Self>, dy: Buffer<T>, pass: &mut Backward<'_, T>) -> Result<()> {
        let Self { n, hw, c, x, .. } = *self;
        let mut dx = pass.buffer(n * hw * c);
        pool::average_backward(n, hw, c, &dy, &mut dx);
        pass.add(x, dx);
        Ok(())
    }
}
