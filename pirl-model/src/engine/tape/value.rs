//! What a network's layers pass on.

use std::sync::Arc;

use crate::engine::buffer::Buffer;
use crate::ops::Element;

/// A batch of maps, NHWC; vectors are maps of one pixel.
#[derive(Clone)]
pub(crate) struct Value<T: Element> {
    /// Its number among the values of its pass.
    pub(super) id: usize,
    pub(crate) n: usize,
    pub(crate) h: usize,
    pub(crate) w: usize,
    pub(crate) c: usize,
    pub(crate) data: Arc<Buffer<T>>,
}

/// The id of a network's input.
pub(super) const INPUT: usize = 0;
