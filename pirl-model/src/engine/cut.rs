//! The parameters of a set, cut out of its flat tensor for a pass that is differentiated.
//!
//! To Candle the gradient of a part is as long as the whole, so that each of a hundred parameters would
//! cost several passes over all of them. Here it is written to its place in one tensor, which is the
//! gradient of the whole when every part has brought its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use pirl_core::storage::slice;

#[cfg(feature = "cuda")]
use crate::cuda;

/// The flat tensor of one pass.
pub(super) struct Cut {
    /// Outside Candle's graph.
    flat: Tensor,
    /// What ties the parts to the whole in the graph: one number, and its gradient says no more than that
    /// there is some.
    tie: Tensor,
    gradient: Gradient,
}

/// That of the whole, from when the first part has brought its own.
type Gradient = Arc<Mutex<Option<Tensor>>>;

impl Cut {
    /// `flat`: `(len)`, `f32`.
    pub(super) fn new(flat: &Tensor) -> Result<Self> {
        let gradient = Gradient::default();
        Ok(Self {
            tie: flat.apply_op1(Whole(Arc::clone(&gradient)))?,
            flat: flat.detach(),
            gradient,
        })
    }

    /// The parameter of `shape` whose first number is number `start`. No two parts of a pass may overlap.
    pub(super) fn part(&self, start: usize, shape: &[usize]) -> Result<Tensor> {
        let numbers = cut_out(&self.flat, start, shape)?;
        let part = Part {
            start,
            flat: self.flat.clone(),
            gradient: Arc::clone(&self.gradient),
        };
        numbers.apply_op2(&self.tie, part)
    }
}

/// [`Cut::part`] outside Candle's graph, if `flat` is.
pub(super) fn cut_out(flat: &Tensor, start: usize, shape: &[usize]) -> Result<Tensor> {
    flat.narrow(0, start, shape.iter().product())?
        .reshape(shape)
}

fn lock(gradient: &Gradient) -> MutexGuard<'_, Option<Tensor>> {
    gradient.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Whole(Gradient);

impl CustomOp1 for Whole {
    fn name(&self) -> &'static str {
        "parameters"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(1)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, flat: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let device = &flat.device;
        let zero = device.alloc_zeros::<f32>(1)?;
        let zero = CudaStorage::wrap_cuda_slice(zero, device.clone());
        Ok((zero, Shape::from(1)))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(lock(&self.0).take())
    }
}

struct Part {
    start: usize,
    flat: Tensor,
    gradient: Gradient,
}

impl CustomOp2 for Part {
    fn name(&self) -> &'static str {
        "parameter"
    }

    fn cpu_fwd(
        &self,
        part: &CpuStorage,
        layout: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let copy = slice::<f32>(part, layout)?.to_vec();
        Ok((CpuStorage::F32(copy), layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        part: &CudaStorage,
        layout: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let device = &part.device;
        let numbers = cuda::numbers::<f32>(part, layout)?;
        let mut copy = cuda::alloc::<f32>(device, numbers.len())?;
        device.memcpy_dtod(&numbers, &mut copy)?;
        let copy = CudaStorage::wrap_cuda_slice(copy, device.clone());
        Ok((copy, layout.shape().clone()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        tie: &Tensor,
        _: &Tensor,
        own: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut gradient = lock(&self.gradient);
        let mut first = None;
        if gradient.is_none() {
            *gradient = Some(self.flat.zeros_like()?);
            first = Some(tie.zeros_like()?);
        }
        let own = own.contiguous()?;
        if let Some(gradient) = &*gradient {
            gradient.slice_set(&own.flatten_all()?, 0, self.start)?;
        }
        Ok((None, first))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn parts_have_the_gradients_that_candles_own_would_have() {
        let numbers: Vec<f32> = (0..12).map(|i| i as f32 - 4.0).collect();
        let flat = Var::from_vec(numbers, 12, &Device::Cpu).unwrap();
        // The part in the middle is used twice, and the last not at all.
        let loss = |a: Tensor, b: Tensor| {
            let a = (a.sqr().unwrap() * 3.0).unwrap().sum_all().unwrap();
            let b = (b.sqr().unwrap() + &b).unwrap().sum_all().unwrap();
            (a * b).unwrap()
        };
        let gradient = |loss: Tensor| {
            let gradients = loss.backward().unwrap();
            gradients.get(&flat).unwrap().to_vec1::<f32>().unwrap()
        };
        let narrow = |start, len| flat.as_tensor().narrow(0, start, len).unwrap();
        let expected = gradient(loss(narrow(0, 5), narrow(5, 4)));
        let cut = Cut::new(flat.as_tensor()).unwrap();
        let part = |start, len| cut.part(start, &[len]).unwrap();
        let again = loss(part(0, 5), part(5, 4));
        assert_eq!(gradient(again.clone()), expected);
        assert_eq!(expected[9..], [0.0; 3]);
        // A graph may be differentiated once more.
        assert_eq!(gradient(again), expected);
    }
}
