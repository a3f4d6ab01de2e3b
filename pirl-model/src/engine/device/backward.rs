//! The tape, and the backward pass along it.

use std::sync::Arc;

use candle_core::{DType, Shape, Tensor};

use super::INPUT;
use crate::config::Precision;
use crate::error::Result;
use crate::ops::weights::ConvWeights;

/// A recorded operation: what its backward pass needs, and nothing else.
pub(super) trait Recorded: Send + Sync {
    /// The id of its output.
    fn output(&self) -> usize;

    /// Turns `dy`, the gradient of its output, of the output's shape, into those of its inputs and parameters.
    ///
    /// # Errors
    /// [`ModelError::Peers`](crate::ModelError::Peers), of a batch norm that is synced.
    fn backward(self: Box<Self>, dy: Tensor, pass: &mut Backward) -> Result<()>;
}

/// What a forward pass recorded.
pub(crate) struct Tape {
    /// In the order of the forward pass.
    pub(super) operations: Vec<Box<dyn Recorded>>,
    /// Of each value of the pass.
    pub(super) shapes: Vec<Shape>,
    /// The id of the network's output.
    pub(super) output: usize,
    pub(super) convolutions: Arc<ConvWeights>,
    /// The parameters.
    pub(super) flat: Tensor,
    pub(super) precision: Precision,
}

impl Tape {
    /// The gradients of the input (as the pass has it; none unless asked for) and of the parameters, from `dy`, that
    /// of the output.
    ///
    /// # Errors
    /// As [`Recorded::backward`].
    pub(super) fn backward(
        self,
        dy: &Tensor,
        input_gradient: bool,
    ) -> Result<(Option<Tensor>, Tensor)> {
        let (len, device) = (self.flat.shape(), self.flat.device());
        let mut pass = Backward {
            gradient: Tensor::zeros(len, DType::F32, device)?,
            weight_gradients: Tensor::zeros(len, self.precision.dtype(), device)?,
            gradients: vec![None; self.shapes.len()],
            input_gradient,
            tf32: self.precision == Precision::Tf32,
        };
        let dy = dy.to_dtype(self.precision.dtype())?.contiguous()?;
        pass.add(self.output, dy)?;
        for operation in self.operations.into_iter().rev() {
            // A value that reached nothing that was differentiated has no gradient.
            if let Some(dy) = pass.gradients[operation.output()].take() {
                let dy = dy.reshape(&self.shapes[operation.output()])?;
                operation.backward(dy, &mut pass)?;
            }
        }
        self.convolutions
            .set_gradient(&pass.weight_gradients, &pass.gradient)?;
        let dx = pass.gradients[INPUT].take();
        let dx = dx.map(|dx| dx.reshape(&self.shapes[INPUT])).transpose()?;
        Ok((dx, pass.gradient))
    }
}

/// A backward pass in progress.
pub(super) struct Backward {
    /// Of the parameters, but for the weights of convolutions.
    pub(super) gradient: Tensor,
    /// Of those, laid out as the weights that products took.
    pub(super) weight_gradients: Tensor,
    /// By the id of the value, of those still to be visited.
    gradients: Vec<Option<Tensor>>,
    input_gradient: bool,
    pub(super) tf32: bool,
}

impl Backward {
    /// Whether the gradient of the value `id` is of use.
    pub(super) fn wants(&self, id: usize) -> bool {
        id != INPUT || self.input_gradient
    }

    /// Adds to the gradient of the value `id`; the first contribution is kept as it is.
    pub(super) fn add(&mut self, id: usize, gradient: Tensor) -> Result<()> {
        let sum = &mut self.gradients[id];
        *sum = Some(match sum.take() {
            Some(sum) => (gradient.reshape(sum.shape())? + sum)?,
            None => gradient,
        });
        Ok(())
    }

    /// Sets the gradient of the parameter that begins at number `start`.
    pub(super) fn set_gradient(&self, start: usize, gradient: &Tensor) -> Result<()> {
        let gradient = gradient.to_dtype(DType::F32)?.flatten_all()?;
        Ok(self.gradient.slice_set(&gradient, 0, start)?)
    }
}
