//! What a loader hands over.

use candle_core::Tensor;

use crate::transform::Normalize;

/// The images of one step, or of a part of one, on the CPU.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `(B, 3, S, S)` u8; [`Batch::normalize`] makes numbers of them.
    pub images: Tensor,
    /// `(B * P, 3, s, s)` u8: view `p` of image `b` in row `b * P + p`; `None` without a pretext
    /// task.
    pub transformed: Option<Tensor>,
    /// The sample of the pack at each of the `B` places; no two are the same.
    pub indices: Vec<u32>,
    /// Label of each image's transformation, for the covariant losses.
    pub targets: Vec<u32>,
    /// Corrupt samples that others replace here.
    pub skipped: usize,
    /// Images of the whole batch, of which this may be a part.
    pub batch_size: usize,
    /// What makes numbers of the views' bytes.
    pub normalize: Normalize,
}
