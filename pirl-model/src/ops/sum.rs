//! Sums of flat gradients.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor};
use pirl_core::storage::{slice, slice_mut};
use rayon::prelude::*;

use super::element::add;

/// `gradient`, which nobody else holds, and the sum so far, in its memory.
pub(crate) fn with_sum(gradient: Tensor, sum: Option<Tensor>) -> Result<Tensor> {
    match sum {
        None => Ok(gradient),
        Some(sum) if sum.device().is_cpu() => {
            gradient.inplace_op2(&sum, &Add)?;
            Ok(gradient)
        }
        Some(sum) => sum + gradient,
    }
}

/// Adds numbers in place, on the threads that the passes run on: those of Candle's own pool would be
/// in their way.
struct Add;

impl InplaceOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(
        &self,
        sum: &mut CpuStorage,
        sum_layout: &Layout,
        x: &CpuStorage,
        layout: &Layout,
    ) -> Result<()> {
        /// Numbers of a task.
        const PART: usize = 1 << 14;
        let x: &[f32] = slice(x, layout)?;
        slice_mut(sum, sum_layout)?
            .par_chunks_mut(PART)
            .zip(x.par_chunks(PART))
            .for_each(|(sum, x)| add(x, sum));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_sum_is_in_the_memory_of_the_newer() {
        // More than a task's, and no multiple of it.
        let len = (1 << 14) + 3;
        let numbers = |step: f32| {
            Tensor::from_vec(
                (0..len).map(|i| i as f32 * step).collect(),
                len,
                &Device::Cpu,
            )
        };
        let (old, new) = (numbers(0.25).unwrap(), numbers(-1.5).unwrap());
        let expected = (&old + &new).unwrap().to_vec1::<f32>().unwrap();
        let sum = with_sum(new.clone(), Some(old)).unwrap();
        assert_eq!(sum.to_vec1::<f32>().unwrap(), expected);
        assert_eq!(new.to_vec1::<f32>().unwrap(), expected);
        let alone = with_sum(sum, None).unwrap();
        assert_eq!(alone.to_vec1::<f32>().unwrap(), expected);
    }
}
