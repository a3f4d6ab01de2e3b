//! Sums of gradients over the parts of a step.

use candle_core::Tensor;
use candle_core::backprop::GradStore;

use crate::error::Result;
use crate::ops::sum::with_sum;
use crate::params::ParamSet;

/// The gradients of parameter sets, summed over backward passes.
///
/// An [`Optimizer`](crate::Optimizer) has one of its own. Where copies of a network share the work of
/// a step, each copy sums up its own gradients, and [`Optimizer::merge`](crate::Optimizer::merge) adds
/// them up.
pub struct GradientSum {
    sets: Vec<ParamSet>,
    /// Flat, of each set; `None`: no gradient has reached it.
    sums: Vec<Option<Tensor>>,
}

impl GradientSum {
    /// Sums over no backward pass yet.
    pub fn new(sets: Vec<ParamSet>) -> Self {
        let sums = sets.iter().map(|_| None).collect();
        Self { sets, sums }
    }

    /// Adds the gradients of one backward pass.
    ///
    /// # Errors
    /// Only if Candle cannot compute it.
    pub fn add(&mut self, gradients: &GradStore) -> Result<()> {
        for (set, sum) in self.sets.iter().zip(&mut self.sums) {
            if let Some(gradient) = gradients.get(set.var().as_tensor()) {
                add(sum, gradient)?;
            }
        }
        Ok(())
    }

    /// Differentiates `loss` and adds the gradients, as [`GradientSum::add`] of `loss.backward()` does, but for
    /// the zeros that Candle adds to each: those of this crate's modules come straight from their passes.
    /// Meanwhile nobody else may differentiate through the sets.
    ///
    /// # Errors
    /// Only if Candle, or a pass, cannot compute it.
    pub fn backward(&mut self, loss: &Tensor) -> Result<()> {
        self.sets.iter().for_each(ParamSet::collect);
        let gradients = loss.backward();
        let collected: Vec<_> = self.sets.iter().map(ParamSet::collected).collect();
        let gradients = gradients?;
        for (sum, gradient) in self.sums.iter_mut().zip(collected) {
            if let Some(gradient) = gradient {
                *sum = Some(with_sum(gradient, sum.take())?);
            }
        }
        self.add(&gradients)
    }

    /// Adds the sums of copies of the same sets, whatever device they are on.
    ///
    /// # Errors
    /// Only if Candle cannot compute it.
    pub fn merge(&mut self, sums: Vec<Option<Tensor>>) -> Result<()> {
        for ((set, sum), other) in self.sets.iter().zip(&mut self.sums).zip(sums) {
            if let Some(other) = other {
                add(sum, &other.to_device(set.var().device())?)?;
            }
        }
        Ok(())
    }

    pub(super) fn get(&self, set: usize) -> Option<&Tensor> {
        self.sums.get(set)?.as_ref()
    }

    /// The sums, flat, of each set, which start again from nothing. `None` for a set that no gradient
    /// has reached.
    pub fn take(&mut self) -> Vec<Option<Tensor>> {
        self.sums.iter_mut().map(Option::take).collect()
    }

    /// Divides the sums by `scale`. If one of them is not finite, clears them all and returns
    /// `false`.
    pub(super) fn unscale(&mut self, scale: f64) -> Result<bool> {
        let mut finite = true;
        for sum in self.sums.iter_mut().flatten() {
            *sum = (&*sum / scale)?;
            // 0 times what is not finite is not a number, and so is a sum with it.
            let zero = (&*sum * 0.0)?.sum_all()?.to_scalar::<f32>()?;
            finite &= zero == 0.0;
        }
        if !finite {
            self.take();
        }
        Ok(finite)
    }
}

/// Adds a gradient that its caller may keep, so in memory of its own.
fn add(sum: &mut Option<Tensor>, gradient: &Tensor) -> Result<()> {
    *sum = Some(match sum.take() {
        Some(sum) => (sum + gradient)?,
        None => gradient.contiguous()?,
    });
    Ok(())
}
