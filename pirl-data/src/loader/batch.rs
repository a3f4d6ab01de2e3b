//! What a loader hands over.

use candle_core::Tensor;

use crate::transform::Normalize;

/// The images of one step, or of a part of one, on the CPU.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `(B, channels, S, S)` u8, to be normalised by [`Batch::normalize`].
    pub images: Tensor,
    /// `(B * P, channels, s, s)` u8, likewise to be normalised: view `p` of image `b` in row `b * P + p`; `None`
    /// without a pretext task.
    pub transformed: Option<Tensor>,
    /// The number in the pack of each of the `B` images; no two are the same.
    pub indices: Vec<u32>,
    /// Label of each image's transformation, for the covariant losses.
    pub targets: Vec<u32>,
    /// How many corrupt samples were replaced by others.
    pub skipped: usize,
    /// Images of the whole batch, of which this may be a part.
    pub batch_size: usize,
    /// Normalises the views' bytes to f32.
    pub normalize: Normalize,
}
