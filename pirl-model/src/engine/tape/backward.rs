//! The tape, and the backward pass along it.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::value::INPUT;
use crate::engine::buffer::{Arena, Buffer};
use crate::error::Result;
use crate::ops::Element;
use crate::ops::conv2d::Winograd;
use crate::ops::element::add;
use crate::params::GradientWatch;

/// Numbers of a gradient that a task adds up.
const CHUNK: usize = 1 << 14;

/// A recorded operation: what its backward pass needs, and nothing else.
pub(super) trait Recorded<T: Element>: Send {
    /// The id of its output.
    fn output(&self) -> usize;

    /// Where the last of its parameters ends in the flat tensor; 0 without any.
    fn parameters_end(&self) -> usize {
        0
    }

    /// Turns `dy`, the gradient of its output, into those of its inputs and parameters.
    ///
    /// # Errors
    /// [`ModelError::Peers`](crate::ModelError::Peers), of a batch norm that is synced.
    fn backward(self: Box<Self>, dy: Buffer<T>, pass: &mut Backward<'_, T>) -> Result<()>;
}

/// What a forward pass recorded.
pub(crate) struct Tape<T: Element> {
    /// In the order of the forward pass.
    pub(super) operations: Vec<Box<dyn Recorded<T>>>,
    /// How many values the pass had.
    pub(super) values: usize,
    /// The id of the network's output.
    pub(super) output: usize,
    pub(super) winograd: Winograd,
    pub(super) arena: Arc<Arena>,
}

impl<T: Element> Tape<T> {
    /// The gradients of the input (NHWC; none unless asked for) and of the flat parameters `flat`,
    /// from `dy`, the gradient of the output. `watch` is told how far back the latter is done.
    ///
    /// # Errors
    /// As [`Recorded::backward`].
    pub(crate) fn backward(
        self,
        flat: &[f32],
        dy: &[f32],
        input_gradient: bool,
        watch: Option<&GradientWatch>,
    ) -> Result<(Option<Buffer<T>>, Vec<f32>)> {
        // Before each operation of the forward pass: where the parameters of those before it end.
        let ends = self.operations.iter().scan(0, |end, operation| {
            let before = *end;
            *end = before.max(operation.parameters_end());
            Some(before)
        });
        let ends: Vec<usize> = ends.collect();
        let mut pass = Backward {
            flat,
            // Cleared by all threads.
            dflat: rayon::iter::repeat_n(0.0, flat.len()).collect(),
            gradients: (0..self.values).map(|_| None).collect(),
            input_gradient,
            winograd: self.winograd,
            arena: self.arena,
        };
        let mut output = pass.buffer(dy.len());
        for (output, &dy) in output.iter_mut().zip(dy) {
            *output = T::from_f32(dy);
        }
        pass.add(self.output, output);
        for (operation, end) in self.operations.into_iter().zip(ends).rev() {
            // A value that reached nothing that was differentiated has no gradient.
            if let Some(dy) = pass.gradients[operation.output()].take() {
                operation.backward(dy, &mut pass)?;
            }
            if let Some(watch) = watch {
                watch(end, &pass.dflat);
            }
        }
        Ok((pass.gradients[INPUT].take(), pass.dflat))
    }
}

/// A backward pass in progress.
pub(super) struct Backward<'a, T: Element> {
    flat: &'a [f32],
    dflat: Vec<f32>,
    /// By the id of the value, of those still to be visited.
    gradients: Vec<Option<Buffer<T>>>,
    input_gradient: bool,
    pub(super) winograd: Winograd,
    arena: Arc<Arena>,
}

impl<'a, T: Element> Backward<'a, T> {
    /// The parameter that lies in `range`.
    pub(super) fn parameter(&self, range: &Range<usize>) -> &'a [f32] {
        &self.flat[range.clone()]
    }

    /// The parameter that lies in `range`, and its gradient, 0 so far.
    pub(super) fn parameter_and_gradient(
        &mut self,
        range: &Range<usize>,
    ) -> (&'a [f32], &mut [f32]) {
        (&self.flat[range.clone()], &mut self.dflat[range.clone()])
    }

    /// Sets the gradient of the parameter that lies in `range`.
    pub(super) fn set_gradient(&mut self, range: Range<usize>, gradient: &[f32]) {
        self.dflat[range].copy_from_slice(gradient);
    }

    /// Memory for `len` numbers, of unspecified contents.
    pub(super) fn buffer(&self, len: usize) -> Buffer<T> {
        self.arena.take(len)
    }

    /// Whether the gradient of the value `id` is of use.
    pub(super) fn wants(&self, id: usize) -> bool {
        id != INPUT || self.input_gradient
    }

    /// Adds to the gradient of the value `id`; the first contribution is kept as it is.
    pub(super) fn add(&mut self, id: usize, gradient: Buffer<T>) {
        match &mut self.gradients[id] {
            Some(sum) => sum
                .par_chunks_mut(CHUNK)
                .zip(gradient.par_chunks(CHUNK))
                .for_each(|(sum, gradient)| add(gradient, sum)),
            empty => *empty = Some(gradient),
        }
    }
}
