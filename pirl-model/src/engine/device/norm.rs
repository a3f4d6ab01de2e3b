//! Batch norm, with the residual and the ReLU after it.

use std::sync::Arc;

use candle_core::{D, Tensor};

use super::backward::{Backward, Recorded};
use super::{Forward, Value};
use crate::engine::Norm;
use crate::error::{ModelError, Result};
use crate::ops::batch_norm::tensors::{self, Applied, Scales};
use crate::ops::batch_norm::{Moments, Statistics};
use crate::params::Seen;
use crate::peers::{self, Peers};

struct BatchNorm {
    affine: Tensor,
    /// Where gamma, and after it beta, lie among the parameters.
    start: usize,
    by: Scales,
    /// Whose statistics those are.
    of: Rows,
    x: Value,
    residual: Option<usize>,
    relu: bool,
    out: Value,
}

/// What a batch norm's statistics are of.
enum Rows {
    /// Of earlier batches: constants.
    Running,
    Batch,
    /// Of so many rows, those of the batch's other parts among them.
    Synced(Arc<dyn Peers>, f64),
}

/// Batch norm by the batch's statistics or the running ones, as the mode says, then `residual` added, then ReLU if
/// asked.
pub(super) fn forward(
    pass: &mut Forward<'_>,
    layer: &Norm,
    x: &Value,
    residual: Option<&Value>,
    relu: bool,
) -> Result<Value> {
    let c = pass.params.param(layer.weight).elements();
    // They follow each other in the set.
    let affine = pass.parameter(layer.weight, 2 * c)?;
    let (by, of) = match pass.mode.uses_batch() {
        true => of_batch(pass, layer, &x.data)?,
        false => {
            let running = pass.buffers.with(layer.stats, |stats| {
                Statistics::running(stats.mean.clone(), stats.var.clone(), Norm::EPS)
            })?;
            let channels = running.channels();
            (
                scales(&channels.mean, &channels.inv_std, &x.data)?,
                Rows::Running,
            )
        }
    };
    let added = residual.map(|residual| &residual.data);
    let data = tensors::apply(&x.data, &affine, &by, added, relu)?;
    let out = pass.value(data);
    let start = pass.params.param(layer.weight).offset;
    pass.record(|| BatchNorm {
        affine,
        start,
        by,
        of,
        x: x.clone(),
        residual: residual.map(|residual| residual.id),
        relu,
        out: out.clone(),
    });
    Ok(out)
}

/// Numbers of channels, beside `x`.
fn scales(mean: &[f32], inv_std: &[f32], x: &Tensor) -> Result<Scales> {
    let c = mean.len();
    let both = Tensor::from_vec([mean, inv_std].concat(), 2 * c, x.device())?;
    Ok(Scales {
        mean: both.narrow(0, 0, c)?,
        inv_std: both.narrow(0, c, c)?,
    })
}

/// The statistics of the batch `x` and of the parts that it is synced with, which the pass notes for the running
/// ones.
fn of_batch(pass: &mut Forward<'_>, layer: &Norm, x: &Tensor) -> Result<(Scales, Rows)> {
    let c = x.dim(D::Minus1)?;
    let mut rows = x.elem_count() / c.max(1);
    if pass.peers.is_none() {
        ensure_several(pass, layer, rows)?;
    }
    let place = pass.next_statistics(c)?;
    let mut by = tensors::statistics(x, Norm::EPS, &place)?;
    let mut of = Rows::Batch;
    if let Some(peers) = &pass.peers {
        let numbers = place.to_vec1::<f32>()?;
        let (mean, var) = numbers.split_at(c);
        let all = Moments::of_statistics(rows, mean, var).over(peers.as_ref())?;
        rows = all.rows() as usize;
        ensure_several(pass, layer, rows)?;
        let channels = all.statistics(Norm::EPS);
        let joined = [channels.mean.as_slice(), &channels.var].concat();
        place.slice_set(&Tensor::from_vec(joined, 2 * c, x.device())?, 0, 0)?;
        by = scales(&channels.mean, &channels.inv_std, x)?;
        of = Rows::Synced(Arc::clone(peers), all.rows());
    }
    pass.seen.push(Seen {
        norm: layer.stats,
        channels: c,
        rows,
    });
    Ok((by, of))
}

/// An error if a channel has a single number.
fn ensure_several(pass: &Forward<'_>, layer: &Norm, rows: usize) -> Result<()> {
    if rows < 2 {
        let layer = pass.buffers.with(layer.stats, |stats| stats.name.clone())?;
        return Err(ModelError::SingleValue { layer });
    }
    Ok(())
}

impl Recorded for BatchNorm {
    fn output(&self) -> usize {
        self.out.id
    }

    fn backward(self: Box<Self>, dy: Tensor, pass: &mut Backward) -> Result<()> {
        let c = self.x.data.dim(D::Minus1)?;
        let own = pass.gradient.narrow(0, self.start, 2 * c)?;
        let applied = Applied {
            x: &self.x.data,
            affine: &self.affine,
            by: &self.by,
            rectified: self.relu.then_some(&self.out.data),
            dy: &dy,
        };
        applied.sums(&own)?;
        let sums = match &self.of {
            Rows::Running => None,
            Rows::Batch => Some(own),
            Rows::Synced(peers, rows) => {
                let share = (self.x.data.elem_count() / c) as f64 / rows;
                Some(over(peers.as_ref(), &own, share)?)
            }
        };
        let (dx, dresidual) = applied.input_gradient(sums.as_ref(), self.residual.is_some())?;
        if let (Some(id), Some(dresidual)) = (self.residual, dresidual) {
            pass.add(id, dresidual)?;
        }
        pass.add(self.x.id, dx)
    }
}

/// The sums over the rows of all `peers`, from those over these rows, for as many rows as these: times their
/// `share` of all.
fn over(peers: &dyn Peers, own: &Tensor, share: f64) -> Result<Tensor> {
    let numbers = own.to_vec1::<f32>()?;
    let (dgamma, dbeta) = numbers.split_at(numbers.len() / 2);
    // Beta's come first, as on the tape: another part may be on a CPU.
    let sums = dbeta.iter().chain(dgamma).map(|&sum| f64::from(sum));
    let all = peers::sum(peers, sums.collect())?;
    let (dbeta, dgamma) = all.split_at(dbeta.len());
    let all = dgamma.iter().chain(dbeta);
    let all: Vec<f32> = all.map(|sum| (sum * share) as f32).collect();
    Ok(Tensor::from_vec(all, own.shape(), own.device())?)
}
