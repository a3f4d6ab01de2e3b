//! Batch norm, with the residual and the ReLU after it.

use std::ops::Range;
use std::sync::Arc;

use super::backward::{Backward, Recorded};
use super::forward::Forward;
use super::value::Value;
use crate::engine::Norm;
use crate::engine::buffer::Buffer;
use crate::error::{ModelError, Result};
use crate::ops::Element;
use crate::ops::batch_norm::{self, Affine, Gradients, Moments, Statistics};
use crate::params::NormUpdate;
use crate::peers::{self, Peers};

/// A recorded batch norm.
struct BatchNorm<T: Element> {
    weight: Range<usize>,
    bias: Range<usize>,
    statistics: Statistics,
    /// Whose rows the statistics are of beside the own, and how many they have together.
    synced: Synced,
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
    let (statistics, synced) = match pass.mode.uses_batch() {
        true => of_batch(pass, layer, x)?,
        false => {
            let running = pass.buffers.with(layer.stats, |stats| {
                Statistics::running(stats.mean.clone(), stats.var.clone(), Norm::EPS)
            })?;
            (running, None)
        }
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
        synced,
        x: x.clone(),
        residual: residual.map(|residual| residual.id),
        relu,
        out: out.clone(),
    });
    Ok(out)
}

/// What else a batch norm's statistics are of: [`BatchNorm::synced`].
type Synced = Option<(Arc<dyn Peers>, f64)>;

/// The statistics of the batch `x` and of the parts that it is synced with, which the pass notes for the
/// running ones.
fn of_batch<T: Element>(
    pass: &mut Forward<'_, T>,
    layer: &Norm,
    x: &Value<T>,
) -> Result<(Statistics, Synced)> {
    let mut moments = Moments::of_rows(&x.data, x.c);
    if let Some(peers) = &pass.peers {
        moments = moments.over(peers.as_ref())?;
    }
    let rows = moments.rows();
    if rows < 2.0 {
        let layer = pass.buffers.with(layer.stats, |stats| stats.name.clone())?;
        return Err(ModelError::SingleValue { layer });
    }
    let channels = moments.statistics(Norm::EPS);
    let unbiased = rows as f32 / (rows - 1.0) as f32;
    pass.updates.push(NormUpdate {
        norm: layer.stats,
        mean: channels.mean.clone(),
        var: channels.var.iter().map(|v| v * unbiased).collect(),
    });
    let synced = pass.peers.clone().map(|peers| (peers, rows));
    Ok((Statistics::Batch(channels), synced))
}

impl<T: Element> Recorded<T> for BatchNorm<T> {
    fn output(&self) -> usize {
        self.out.id
    }

    fn parameters_end(&self) -> usize {
        self.weight.end.max(self.bias.end)
    }

    fn backward(self: Box<Self>, mut dy: Buffer<T>, pass: &mut Backward<'_, T>) -> Result<()> {
        let Self {
            weight,
            bias,
            statistics,
            synced,
            x,
            residual,
            relu,
            out,
        } = *self;
        let mut dx = residual.map(|_| pass.buffer(x.data.len()));
        let (mut dgamma, mut dbeta) = (vec![0.0; x.c], vec![0.0; x.c]);
        let (rectified, gamma) = (relu.then_some(&out.data[..]), pass.parameter(&weight));
        let gradients = Gradients {
            gamma: &mut dgamma,
            beta: &mut dbeta,
            x: dx.as_deref_mut(),
        };
        match synced {
            None => {
                batch_norm::backward(&x.data, rectified, &mut dy, gamma, &statistics, gradients);
            }
            Some((peers, rows)) => batch_norm::backward_over(
                &x.data,
                rectified,
                &mut dy,
                gamma,
                &statistics,
                gradients,
                |own| Ok::<_, ModelError>((rows, peers::sum(peers.as_ref(), own)?)),
            )?,
        }
        pass.set_gradient(weight, &dgamma);
        pass.set_gradient(bias, &dbeta);
        drop(out);
        match (residual, dx) {
            (Some(residual), Some(dx)) => {
                pass.add(residual, dy);
                pass.add(x.id, dx);
            }
            _ => pass.add(x.id, dy),
        }
        Ok(())
    }
}
