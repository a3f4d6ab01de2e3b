//! Batch-norm statistics recomputed for evaluation.

use candle_core::Tensor;

use crate::backbone::Backbone;
use crate::error::ModelError;
use crate::mode::Mode;
use crate::params::Buffers;

/// Replaces the running statistics by the plain average, over `batches`, of each batch's mean and
/// unbiased variance, and returns the number of batches: 0, for a backbone without
/// [`Buffers`].
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
    let statistics = backbone.buffer_sets();
    if statistics.is_empty() {
        return Ok(0);
    }
    let before = statistics.iter().map(Buffers::snapshot);
    let before = before.collect::<Result<Vec<_>, _>>()?;
    statistics.iter().for_each(Buffers::reset);
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
        for (buffers, before) in statistics.iter().zip(before) {
            buffers.restore(before);
        }
    }
    result
}
