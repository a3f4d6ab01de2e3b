//! The rectifier.

use super::backward::{Backward, Recorded};
use super::forward::Forward;
use super::value::Value;
use crate::engine::buffer::Buffer;
use crate::error::Result;
use crate::ops::{Element, relu};

/// A recorded ReLU.
struct Relu<T: Element> {
    x: usize,
    out: Value<T>,
}

/// The positive part.
pub(super) fn forward<T: Element>(pass: &mut Forward<'_, T>, x: &Value<T>) -> Value<T> {
    let mut data = pass.buffer(x.data.len());
    relu::forward(&x.data, &mut data);
    let out = pass.value((x.n, x.h, x.w, x.c), data);
    pass.record(|| Relu {
        x: x.id,
        out: out.clone(),
    });
    out
}

impl<T: Element> Recorded<T> for Relu<T> {
    fn output(&self) -> usize {
        self.out.id
    }

    fn backward(self: Box<Self>, dy: Buffer<T>, pass: &mut Backward<'_, T>) -> Result<()> {
        let mut dx = pass.buffer(self.out.data.len());
        relu::backward(&self.out.data, &dy, &mut dx);
        pass.add(self.x, dx);
        Ok(())
    }
}
