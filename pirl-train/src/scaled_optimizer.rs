//! The optimiser, whatever precision the gradients come in.

use candle_core::Tensor;
use pirl_model::{LossScale, Optimizer, Precision};

use crate::error::Result;

/// An optimiser, and the scale of the losses that are differentiated for it: half precision has a
/// narrow range, so there losses are scaled as `torch.amp.GradScaler` scales them.
pub struct ScaledOptimizer {
    pub(crate) optimizer: Optimizer,
    /// `None` where gradients have the range of `f32`, which that of `bf16` is.
    pub(crate) scale: Option<LossScale>,
}

impl ScaledOptimizer {
    /// For activations in `precision`.
    pub fn new(optimizer: Optimizer, precision: Precision) -> Self {
        Self {
            optimizer,
            scale: (precision == Precision::F16).then(LossScale::default),
        }
    }

    /// Differentiates a part of the step's loss.
    ///
    /// # Errors
    /// Only if Candle cannot compute it.
    pub fn accumulate(&mut self, loss: &Tensor) -> Result<()> {
        match &self.scale {
            Some(scale) => self.optimizer.backward(&(loss * scale.value())?)?,
            None => self.optimizer.backward(loss)?,
        }
        Ok(())
    }

    /// The step, at the learning rate `lr`. One whose scaled gradients are not finite is left out and
    /// counted, and the next losses are scaled by half as much.
    ///
    /// # Errors
    /// Only if Candle cannot compute it.
    pub fn step(&mut self, lr: f64) -> Result<()> {
        if let Some(scale) = &mut self.scale {
            let finite = self.optimizer.unscale(scale.value())?;
            scale.update(finite);
            if !finite {
                let scale = scale.value();
                tracing::debug!(
                    "a gradient was not finite; losses are scaled by {scale} from here"
                );
                return Ok(());
            }
        }
        Ok(self.optimizer.step(lr)?)
    }

    /// What losses are multiplied by before they are differentiated.
    pub(crate) fn factor(&self) -> f64 {
        self.scale.as_ref().map_or(1.0, LossScale::value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use pirl_model::{OptimConfig, ParamSet};

    /// A step down `slope` in every one of three parameters, and what they then are.
    fn step(optimizer: &mut ScaledOptimizer, set: &ParamSet, slope: f32) -> Vec<f32> {
        let slope = Tensor::new(&[slope; 3], &Device::Cpu).unwrap();
        let loss = (set.var().as_tensor() * slope).unwrap();
        optimizer.accumulate(&loss.sum_all().unwrap()).unwrap();
        optimizer.step(0.1).unwrap();
        set.var().to_vec1().unwrap()
    }

    #[test]
    fn a_step_that_is_not_finite_is_left_out_and_the_next_is_as_ever() {
        let [(mut plain, plain_set), (mut half, half_set)] =
            [Precision::Bf16, Precision::F16].map(|precision| {
                let params: [(&str, &[usize], f64); 1] = [("w", &[1, 3], 1.0)];
                let set = ParamSet::normal(1, &params, &Device::Cpu).unwrap();
                let optimizer = Optimizer::new(&OptimConfig::default(), vec![set.clone()]);
                (ScaledOptimizer::new(optimizer.unwrap(), precision), set)
            });
        let before: Vec<f32> = half_set.var().to_vec1().unwrap();
        // Finite before it is scaled.
        assert_eq!(step(&mut half, &half_set, 1e35), before);
        let scale = half.scale.unwrap();
        assert_eq!((scale.value(), scale.skipped()), (32_768.0, 1));
        let expected = step(&mut plain, &plain_set, 0.5);
        assert_ne!(expected, before);
        assert_eq!(step(&mut half, &half_set, 0.5), expected);
        assert_eq!(half.scale.unwrap().skipped(), 1);
    }
}
