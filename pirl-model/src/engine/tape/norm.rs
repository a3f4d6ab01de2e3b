//! Batch norm, with the residual and the ReLU after it.

use std::ops::Range;

use super::backward::{Backward, Recorded};
use super::forward::Forward;
use super::value::Value;
use crate::engine::Norm;
use crate::engine::buffer::Buffer;
use crate::error::{ModelError, Result};
use crate::ops::Element;
use crate::ops::batch_norm::{self, Affine, Gradients, Statistics};
use crate::params::NormUpdate;

/// A recorded batch norm.
struct BatchNorm<T: Element> {
    weight: Range<usize>,
    bias: Range<usize>,
    statistics: Statistics,
    x: Value<T>,
    residual: Option<usize>,
    relu: bool,
    out: Value<T>,
}

/// Batch norm by the batch's statistics or the running ones, as the mode says, then `residual`
/// added, then ReLU if asked.
pub(super) fn forward<T: Element>(
    pass: &mut Forward<'_, T>,
    layer: &Norm,
    x: &Value<T>,
    residual: Option<&Value<T>>,
    relu: bool,
) -> Result<Value<T>> {
    let (weight, bias) = (pass.range(layer.weight), pass.range(layer.bias));
    let statistics = match pass.mode.uses_batch() {
        true => of_batch(pass, layer, x)?,
        false => pass.buffers.with(layer.stats, |stats| {
            Statistics::running(stats.mean.clone(), stats.var.clone(), Norm::EPS)
        })?,
    };
    let (gamma, beta) = (pass.parameter(&weight), pass.parameter(&bias));
    let affine = Affine::new(gamma, beta, &statistics);
    let mut data = pass.buffer(x.data.len());
    let added = residual.map(|residual| &residual.data[..]);
    batch_norm::forward(&x.data, &affine, added, relu, &mut data);
    let out = pass.value((x.n, x.h, x.w, x.c), data);
    pass.record(|| BatchNorm {
        weight,
        bias,
        statistics,
        x: x.clone(),
        residual: residual.map(|residual| residual.id),
        relu,
        out: out.clone(),
    });
    Ok(out)
}

/// The statistics of the batch `x`, which the pass notes for the running ones.
fn of_batch<T: Element>(
    pass: &mut Forward<'_, T>,
    layer: &Norm,
    x: &Value<T>,
) -> Result<Statistics> {
    let rows = x.n * x.h * x.w;
    if rows < 2 {
        let layer = pass.buffers.with(layer.stats, |stats| stats.name.clone())?;
        return Err(ModelError::SingleValue { layer });
    }
    let statistics = Statistics::of_batch(&x.data, x.c, Norm::EPS);
    let channels = statistics.channels();
    let unbiased = rows as f32 / (rows - 1) as f32;
    pass.updates.push(NormUpdate {
        norm: layer.stats,
        mean: channels.mean.clone(),
        var: channels.var.iter().map(|v| v * unbiased).collect(),
    });
    Ok(statistics)
}

impl<T: Element> Recorded<T> for BatchNorm<T> {
    fn output(&self) -> usize {
        self.out.id
    }

    fn parameters_end(&self) -> usize {
        self.weight.end.max(self.bias.end)
    }

    fn backward(self: Box<Self>, dy: Buffer<T>, pass: &mut Backward<'_, T>) {
        let Self {
            weight,
            bias,
            statistics,
            x,
            residual,
            relu,
            out,
        } = *self;
        let mut dx = pass.buffer(x.data.len());
        let mut dresidual = residual.map(|_| pass.buffer(x.data.len()));
        let (mut dgamma, mut dbeta) = (vec![0.0; x.c], vec![0.0; x.c]);
        batch_norm::backward(
            &x.data,
            relu.then_some(&out.data[..]),
            &dy,
            pass.parameter(&weight),
            &statistics,
            Gradients {
                gamma: &mut dgamma,
                beta: &mut dbeta,
                x: &mut dx,
                residual: dresidual.as_deref_mut(),
            },
        );
        pass.set_gradient(weight, &dgamma);
        pass.set_gradient(bias, &dbeta);
        drop((dy, out));
        if let (Some(id), Some(dresidual)) = (residual, dresidual) {
            pass.add(id, dresidual);
        }
        pass.add(x.id, dx);
    }
}
