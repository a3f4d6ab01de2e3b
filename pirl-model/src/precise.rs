//! Batch-norm statistics recomputed for evaluation.

use candle_core::Tensor;

use crate::error::ModelError;
use crate::mode::Mode;
use crate::resnet::Backbone;

/// Replaces the running statistics by the plain average, over `batches`, of each batch's mean and
/// unbiased variance, and returns the number of batches.
///
/// During pre-training the running statistics follow patches and images alike; recomputing them on
/// whole images alone makes them those of the images that an evaluation sees. The parameters stay
/// as they are. On an error the statistics are as before.
///
/// # Errors
/// [`ModelError::NoBatches`], an error of `batches`, or one of the forward pass.
pub fn precise_batch_norm<E: From<ModelError>>(
    backbone: &dyn Backbone,
    batches: impl IntoIterator<Item = std::result::Result<Tensor, E>>,
) -> std::result::Result<usize, E> {
    let before = backbone.buffers().snapshot();
    backbone.buffers().reset();
    let run = || {
        let mut count = 0;
        for images in batches {
            backbone.forward(&images?, Mode::Calibrate)?;
            count += 1;
        }
        if count == 0 {
            return Err(ModelError::NoBatches.into());
        }
        Ok(count)
    };
    let result = run();
    if result.is_err() {
        backbone.buffers().restore(before);
    }
    result
}
