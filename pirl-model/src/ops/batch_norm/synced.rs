//! The statistics of parts of a batch, joined as a node of Candle's graph.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};

use super::statistics::Moments;
use crate::error;
use crate::peers::{self, Peers};

/// Mean, then biased variance, `(2 c)`, over the rows of all parts, and how many rows these are, from `own`, those
/// of `rows` rows of this part. Both are `f32` on the CPU.
///
/// Differentiable: the gradient is that of the sum of all parts' losses.
///
/// # Errors
/// [`ModelError::Peers`](crate::ModelError::Peers).
pub(crate) fn join(
    own: &Tensor,
    rows: usize,
    peers: &Arc<dyn Peers>,
) -> error::Result<(Tensor, usize)> {
    let numbers = own.to_vec1::<f32>()?;
    let (mean, var) = numbers.split_at(numbers.len() / 2);
    let all = Moments::of_statistics(rows, mean, var).over(peers.as_ref())?;
    let statistics = all.statistics(0.0);
    let joined = own.apply_op1(Join {
        joined: [statistics.mean, statistics.var].concat(),
        share: rows as f64 / all.rows(),
        peers: Arc::clone(peers),
    })?;
    Ok((joined, all.rows() as usize))
}

struct Join {
    joined: Vec<f32>,
    /// Of all rows, this part's.
    share: f64,
    peers: Arc<dyn Peers>,
}

impl CustomOp1 for Join {
    fn name(&self) -> &'static str {
        "batch_norm_join"
    }

    fn cpu_fwd(&self, _: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let joined = CpuStorage::F32(self.joined.clone());
        Ok((joined, layout.shape().clone()))
    }

    /// The mean of all is that of the parts' means, and the variance that of the parts' variances and of the
    /// squares of their means' distances from it, each by its share of the rows.
    fn bwd(&self, own: &Tensor, joined: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = gradient.to_vec1::<f32>()?.into_iter().map(f64::from);
        let gradient = peers::sum(self.peers.as_ref(), gradient.collect())?;
        let (own, joined) = (own.to_vec1::<f32>()?, joined.to_vec1::<f32>()?);
        let c = own.len() / 2;
        let (of_mean, of_var) = gradient.split_at(c);
        let mean = (0..c).map(|i| {
            let distance = f64::from(own[i]) - f64::from(joined[i]);
            self.share * (of_mean[i] + 2.0 * distance * of_var[i])
        });
        let var = of_var.iter().map(|of_var| self.share * of_var);
        let gradient: Vec<f32> = mean.chain(var).map(|x| x as f32).collect();
        Tensor::from_vec(gradient, 2 * c, &Device::Cpu).map(Some)
    }
}
