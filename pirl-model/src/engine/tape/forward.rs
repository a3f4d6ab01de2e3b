//! The state of a forward pass.

use std::ops::Range;
use std::sync::Arc;

use super::backward::{Recorded, Tape};
use super::layout::nhwc_from_nchw;
use super::value::Value;
use crate::engine::buffer::{Arena, Buffer};
use crate::mode::Mode;
use crate::ops::Element;
use crate::ops::conv2d::Winograd;
use crate::params::{Buffers, NormUpdate, ParamId, ParamSet};
use crate::peers::Peers;

/// A forward pass in progress.
pub(crate) struct Forward<'a, T: Element> {
    params: &'a ParamSet,
    flat: &'a [f32],
    pub(super) buffers: &'a Buffers,
    pub(super) mode: Mode,
    pub(super) winograd: Winograd,
    /// The parts of a batch that batch norm is synced with.
    pub(super) peers: Option<Arc<dyn Peers>>,
    arena: Arc<Arena>,
    operations: Vec<Box<dyn Recorded<T>>>,
    /// How many values there are so far.
    values: usize,
    /// What the batch norms saw.
    pub(super) updates: Vec<NormUpdate>,
}

impl<'a, T: Element> Forward<'a, T> {
    /// `flat` holds the values of `params`.
    pub(crate) fn new(
        params: &'a ParamSet,
        flat: &'a [f32],
        buffers: &'a Buffers,
        mode: Mode,
        winograd: Winograd,
        arena: &Arc<Arena>,
    ) -> Self {
        Self {
            params,
            flat,
            buffers,
            mode,
            winograd,
            peers: None,
            arena: Arc::clone(arena),
            operations: Vec::new(),
            values: 0,
            updates: Vec::new(),
        }
    }

    /// The same pass, with batch norm over the parts of `peers` too.
    pub(crate) fn synced_with(self, peers: Option<Arc<dyn Peers>>) -> Self {
        Self { peers, ..self }
    }

    /// The input of the network: `x` in NCHW order, `(n, c)` for vectors as `(n, c, 1, 1)`.
    pub(crate) fn input(
        &mut self,
        x: &[f32],
        (n, c, h, w): (usize, usize, usize, usize),
    ) -> Value<T> {
        let mut data = self.buffer(x.len());
        nhwc_from_nchw(x, c, h * w, &mut data);
        self.value((n, h, w, c), data)
    }

    /// Ends the pass: the statistics its batch norms saw, and the tape.
    pub(crate) fn finish(self, output: &Value<T>) -> (Vec<NormUpdate>, Tape<T>) {
        let tape = Tape {
            operations: self.operations,
            values: self.values,
            output: output.id,
            winograd: self.winograd,
            arena: self.arena,
        };
        (self.updates, tape)
    }

    /// A new value, of the size `(n, h, w, c)`.
    pub(super) fn value(
        &mut self,
        (n, h, w, c): (usize, usize, usize, usize),
        data: Buffer<T>,
    ) -> Value<T> {
        let id = self.values;
        self.values += 1;
        let data = Arc::new(data);
        Value {
            id,
            n,
            h,
            w,
            c,
            data,
        }
    }

    /// Where the parameter `id` lies in the flat tensor.
    pub(super) fn range(&self, id: ParamId) -> Range<usize> {
        self.params.param(id).range()
    }

    /// The parameter that lies in `range`.
    pub(super) fn parameter(&self, range: &Range<usize>) -> &'a [f32] {
        &self.flat[range.clone()]
    }

    /// Memory for `len` numbers, of unspecified contents.
    pub(super) fn buffer(&self, len: usize) -> Buffer<T> {
        self.arena.take(len)
    }

    /// The same for indices.
    pub(super) fn indices(&self, len: usize) -> Buffer<u32> {
        self.arena.take(len)
    }

    /// Puts an operation on the tape, if this pass records.
    pub(super) fn record<R: Recorded<T> + 'static>(&mut self, operation: impl FnOnce() -> R) {
        if self.mode.records() {
            self.operations.push(Box::new(operation()));
        }
    }
}
