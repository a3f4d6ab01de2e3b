//! The fast engine of CPUs: a forward pass over plain NHWC buffers that records what its own
//! backward pass needs.
//!
//! Of every convolution, batch norm and ReLU only the convolution's output and the activation are
//! kept; the backward pass walks the tape from its end and drops each buffer after its last use.
//!
//! Activations and their gradients are stored as `T`; parameters, their gradients and statistics are
//! `f32`.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::buffer::{Arena, Buffer};
use super::{Conv, Engine, Linear, Norm};
use crate::error::{ModelError, Result};
use crate::mode::Mode;
use crate::ops::batch_norm::{self, Affine, BatchStats};
use crate::ops::conv2d::{self, ConvShape};
use crate::ops::element::{self, Element};
use crate::ops::pool::{self, PoolShape};
use crate::ops::{linear, relu};
use crate::params::{Buffers, NormUpdate, ParamId, ParamSet};

/// A batch of maps, NHWC; vectors are maps of one pixel.
#[derive(Clone)]
pub(crate) struct Value<T: Element> {
    id: usize,
    pub(crate) n: usize,
    pub(crate) h: usize,
    pub(crate) w: usize,
    pub(crate) c: usize,
    pub(crate) data: Arc<Buffer<T>>,
}

/// The input of a network has this id.
const INPUT: usize = 0;

enum Statistics {
    Batch(BatchStats),
    Running { mean: Vec<f32>, var: Vec<f32> },
}

/// One recorded operation: what its backward pass needs, and nothing else.
enum Node<T: Element> {
    Conv {
        shape: ConvShape,
        weight: Range<usize>,
        x: Value<T>,
        out: usize,
    },
    Norm {
        weight: Range<usize>,
        bias: Range<usize>,
        statistics: Statistics,
        x: Value<T>,
        residual: Option<usize>,
        relu: bool,
        out: Value<T>,
    },
    MaxPool {
        shape: PoolShape,
        argmax: Buffer<u32>,
        x: usize,
        out: usize,
    },
    AveragePool {
        n: usize,
        hw: usize,
        c: usize,
        x: usize,
        out: usize,
    },
    Linear {
        weight: Range<usize>,
        bias: Range<usize>,
        outputs: usize,
        x: Value<T>,
        out: usize,
    },
    Relu {
        x: usize,
        out: Value<T>,
    },
}

/// A forward pass in progress.
pub(crate) struct Forward<'a, T: Element> {
    params: &'a ParamSet,
    flat: &'a [f32],
    buffers: &'a Buffers,
    mode: Mode,
    arena: Arc<Arena>,
    nodes: Vec<Node<T>>,
    values: usize,
    updates: Vec<NormUpdate>,
}

impl<'a, T: Element> Forward<'a, T> {
    /// `flat` holds the values of `params`.
    pub(crate) fn new(
        params: &'a ParamSet,
        flat: &'a [f32],
        buffers: &'a Buffers,
        mode: Mode,
        arena: &Arc<Arena>,
    ) -> Self {
        Self {
            params,
            flat,
            buffers,
            mode,
            arena: Arc::clone(arena),
            nodes: Vec::new(),
            values: 0,
            updates: Vec::new(),
        }
    }

    /// The input of the network: `x` in NCHW order, `(n, c)` for vectors as `(n, c, 1, 1)`.
    pub(crate) fn input(
        &mut self,
        x: &[f32],
        (n, c, h, w): (usize, usize, usize, usize),
    ) -> Value<T> {
        let mut data = self.arena.take(x.len());
        nhwc_from_nchw(x, c, h * w, &mut data);
        self.value(n, h, w, c, data)
    }

    /// Ends the pass: the statistics its batch norms saw, and the tape.
    pub(crate) fn finish(self, output: &Value<T>) -> (Vec<NormUpdate>, Tape<T>) {
        let tape = Tape {
            nodes: self.nodes,
            values: self.values,
            output: output.id,
            arena: self.arena,
        };
        (self.updates, tape)
    }

    fn value(&mut self, n: usize, h: usize, w: usize, c: usize, data: Buffer<T>) -> Value<T> {
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

    fn range(&self, id: ParamId) -> Range<usize> {
        self.params.param(id).range()
    }

    fn record(&mut self, node: impl FnOnce() -> Node<T>) {
        if self.mode.records() {
            self.nodes.push(node());
        }
    }
}

impl<T: Element> Engine for Forward<'_, T> {
    type Value = Value<T>;

    fn conv_norm(
        &mut self,
        conv: &Conv,
        norm: &Norm,
        x: &Value<T>,
        residual: Option<&Value<T>>,
        relu: bool,
    ) -> Result<Value<T>> {
        let shape = ConvShape {
            n: x.n,
            h: x.h,
            w: x.w,
            c_in: conv.c_in,
            c_out: conv.c_out,
            kernel: conv.kernel,
            stride: conv.stride,
            padding: conv.padding,
        };
        let weight = self.range(conv.weight);
        let mut data = self.arena.take(shape.out_len());
        let (h, w) = shape.out_hw();
        if self.mode == Mode::Eval {
            let (gamma, beta) = (self.range(norm.weight), self.range(norm.bias));
            let affine = self.buffers.with(norm.stats, |stats| {
                let (gamma, beta) = (&self.flat[gamma], &self.flat[beta]);
                Affine::of_batch_norm(gamma, beta, &stats.mean, &stats.var, Norm::EPS)
            });
            conv2d::forward_affine(
                &shape,
                &x.data,
                &self.flat[weight],
                &affine,
                residual.map(|residual| &residual.data[..]),
                relu,
                &mut data,
            );
            return Ok(self.value(x.n, h, w, conv.c_out, data));
        }
        conv2d::forward(&shape, &x.data, &self.flat[weight.clone()], &mut data);
        let out = self.value(x.n, h, w, conv.c_out, data);
        self.record(|| Node::Conv {
            shape,
            weight,
            x: x.clone(),
            out: out.id,
        });
        self.batch_norm(norm, &out, residual, relu)
    }

    fn batch_norm(
        &mut self,
        layer: &Norm,
        x: &Value<T>,
        residual: Option<&Value<T>>,
        relu: bool,
    ) -> Result<Value<T>> {
        let (weight, bias) = (self.range(layer.weight), self.range(layer.bias));
        let (gamma, beta) = (&self.flat[weight.clone()], &self.flat[bias.clone()]);
        let added = residual.map(|r| &r.data[..]);
        let mut data = self.arena.take(x.data.len());
        let statistics = if self.mode.uses_batch() {
            let rows = x.n * x.h * x.w;
            if rows < 2 {
                let layer = self.buffers.with(layer.stats, |norm| norm.name.clone());
                return Err(ModelError::SingleValue { layer });
            }
            let batch = batch_norm::forward_train(
                &x.data,
                x.c,
                gamma,
                beta,
                Norm::EPS,
                added,
                relu,
                &mut data,
            );
            let unbiased = rows as f32 / (rows - 1) as f32;
            self.updates.push(NormUpdate {
                norm: layer.stats,
                mean: batch.mean.clone(),
                var: batch.var.iter().map(|v| v * unbiased).collect(),
            });
            Statistics::Batch(batch)
        } else {
            let (mean, var) = self
                .buffers
                .with(layer.stats, |norm| (norm.mean.clone(), norm.var.clone()));
            batch_norm::forward_eval(
                &x.data,
                x.c,
                gamma,
                beta,
                &mean,
                &var,
                Norm::EPS,
                added,
                relu,
                &mut data,
            );
            Statistics::Running { mean, var }
        };
        let out = self.value(x.n, x.h, x.w, x.c, data);
        self.record(|| Node::Norm {
            weight,
            bias,
            statistics,
            x: x.clone(),
            residual: residual.map(|r| r.id),
            relu,
            out: out.clone(),
        });
        Ok(out)
    }

    fn max_pool(&mut self, x: &Value<T>) -> Result<Value<T>> {
        let shape = PoolShape {
            n: x.n,
            h: x.h,
            w: x.w,
            c: x.c,
            kernel: 3,
            stride: 2,
            padding: 1,
        };
        let mut data = self.arena.take(shape.out_len());
        let mut argmax = match self.mode.records() {
            true => Some(self.arena.take::<u32>(shape.out_len())),
            false => None,
        };
        pool::max_forward(&shape, &x.data, &mut data, argmax.as_deref_mut());
        let (h, w) = shape.out_hw();
        let out = self.value(x.n, h, w, x.c, data);
        if let Some(argmax) = argmax {
            self.record(|| Node::MaxPool {
                shape,
                argmax,
                x: x.id,
                out: out.id,
            });
        }
        Ok(out)
    }

    fn average_pool(&mut self, x: &Value<T>) -> Result<Value<T>> {
        let (n, hw, c) = (x.n, x.h * x.w, x.c);
        let mut data = self.arena.take(n * c);
        pool::average_forward(n, hw, c, &x.data, &mut data);
        let out = self.value(n, 1, 1, c, data);
        self.record(|| Node::AveragePool {
            n,
            hw,
            c,
            x: x.id,
            out: out.id,
        });
        Ok(out)
    }

    fn linear(&mut self, layer: &Linear, x: &Value<T>) -> Result<Value<T>> {
        let (weight, bias) = (self.range(layer.weight), self.range(layer.bias));
        let (inputs, outputs) = (layer.inputs, layer.outputs);
        let mut data = self.arena.take(x.n * outputs);
        let (w, b) = (&self.flat[weight.clone()], &self.flat[bias.clone()]);
        linear::forward(x.n, inputs, outputs, &x.data, w, Some(b), &mut data);
        let out = self.value(x.n, 1, 1, outputs, data);
        self.record(|| Node::Linear {
            weight,
            bias,
            outputs,
            x: x.clone(),
            out: out.id,
        });
        Ok(out)
    }

    fn relu(&mut self, x: &Value<T>) -> Result<Value<T>> {
        let mut data = self.arena.take(x.data.len());
        relu::forward(&x.data, &mut data);
        let out = self.value(x.n, x.h, x.w, x.c, data);
        self.record(|| Node::Relu {
            x: x.id,
            out: out.clone(),
        });
        Ok(out)
    }

    fn join(&mut self, x: &Value<T>, group: usize) -> Result<Value<T>> {
        // The rows of a group are neighbours, so the same buffer, and the same gradient, serves.
        Ok(Value {
            n: x.n / group,
            c: x.c * group,
            ..x.clone()
        })
    }
}

/// What a forward pass recorded.
pub(crate) struct Tape<T: Element> {
    nodes: Vec<Node<T>>,
    values: usize,
    output: usize,
    arena: Arc<Arena>,
}

impl<T: Element> Tape<T> {
    /// The gradients of the input (NHWC; none unless asked for) and of the flat parameters `flat`,
    /// from `dy`, the gradient of the output.
    pub(crate) fn backward(
        self,
        flat: &[f32],
        dy: &[f32],
        input_gradient: bool,
    ) -> (Option<Buffer<T>>, Vec<f32>) {
        let arena = self.arena;
        let mut grads = Grads {
            values: (0..self.values).map(|_| None).collect(),
            input: input_gradient,
        };
        let mut output = arena.take(dy.len());
        for (output, &dy) in output.iter_mut().zip(dy) {
            *output = T::from_f32(dy);
        }
        grads.add(self.output, output);
        let mut dflat = vec![0.0; flat.len()];
        for node in self.nodes.into_iter().rev() {
            node.backward(flat, &mut dflat, &mut grads, &arena);
        }
        (grads.take(INPUT), dflat)
    }
}

/// Gradients by value id, of the values still to be visited.
struct Grads<T: Element> {
    values: Vec<Option<Buffer<T>>>,
    input: bool,
}

impl<T: Element> Grads<T> {
    fn wanted(&self, id: usize) -> bool {
        id != INPUT || self.input
    }

    fn take(&mut self, id: usize) -> Option<Buffer<T>> {
        self.values[id].take()
    }

    /// The first contribution is kept as it is, later ones are added to it.
    fn add(&mut self, id: usize, gradient: Buffer<T>) {
        match &mut self.values[id] {
            Some(sum) => sum
                .par_chunks_mut(CHUNK)
                .zip(gradient.par_chunks(CHUNK))
                .for_each(|(sum, g)| element::add(g, sum)),
            empty => *empty = Some(gradient),
        }
    }
}

/// Entries a thread handles at a time.
const CHUNK: usize = 1 << 14;

impl<T: Element> Node<T> {
    /// Consumes the node and the gradient of its output; a node whose output reached nothing that
    /// was differentiated has none, and does nothing.
    fn backward(self, flat: &[f32], dflat: &mut [f32], grads: &mut Grads<T>, arena: &Arc<Arena>) {
        match self {
            Self::Conv {
                shape,
                weight,
                x,
                out,
            } => {
                let Some(dy) = grads.take(out) else { return };
                conv2d::backward_weight(&shape, &x.data, &dy, &mut dflat[weight.clone()]);
                if grads.wanted(x.id) {
                    let mut dx = arena.take(shape.in_len());
                    conv2d::backward_input(&shape, &flat[weight], &dy, &mut dx);
                    drop(dy);
                    grads.add(x.id, dx);
                }
            }
            Self::Norm {
                weight,
                bias,
                statistics,
                x,
                residual,
                relu,
                out,
            } => {
                let Some(dy) = grads.take(out.id) else { return };
                let mut dx = arena.take(x.data.len());
                let mut added = residual.map(|_| arena.take(x.data.len()));
                let dadded = added.as_deref_mut();
                let gamma = &flat[weight.clone()];
                let (mut dgamma, mut dbeta) = (vec![0.0; x.c], vec![0.0; x.c]);
                match &statistics {
                    Statistics::Batch(stats) => batch_norm::backward_train(
                        &x.data,
                        &out.data,
                        &dy,
                        x.c,
                        gamma,
                        stats,
                        relu,
                        &mut dgamma,
                        &mut dbeta,
                        &mut dx,
                        dadded,
                    ),
                    Statistics::Running { mean, var } => batch_norm::backward_eval(
                        &x.data,
                        &out.data,
                        &dy,
                        x.c,
                        gamma,
                        mean,
                        var,
                        Norm::EPS,
                        relu,
                        &mut dgamma,
                        &mut dbeta,
                        &mut dx,
                        dadded,
                    ),
                }
                dflat[weight].copy_from_slice(&dgamma);
                dflat[bias].copy_from_slice(&dbeta);
                drop((dy, out));
                if let (Some(id), Some(added)) = (residual, added) {
                    grads.add(id, added);
                }
                grads.add(x.id, dx);
            }
            Self::MaxPool {
                shape,
                argmax,
                x,
                out,
            } => {
                let Some(dy) = grads.take(out) else { return };
                let mut dx = arena.take(shape.in_len());
                pool::max_backward(&shape, &argmax, &dy, &mut dx);
                grads.add(x, dx);
            }
            Self::AveragePool { n, hw, c, x, out } => {
                let Some(dy) = grads.take(out) else { return };
                let mut dx = arena.take(n * hw * c);
                pool::average_backward(n, hw, c, &dy, &mut dx);
                grads.add(x, dx);
            }
            Self::Linear {
                weight,
                bias,
                outputs,
                x,
                out,
            } => {
                let Some(dy) = grads.take(out) else { return };
                let mut dx = grads.wanted(x.id).then(|| arena.take(x.data.len()));
                let (mut dw, mut db) = (vec![0.0; weight.len()], vec![0.0; outputs]);
                linear::backward(
                    x.n,
                    x.c,
                    outputs,
                    &x.data,
                    &flat[weight.clone()],
                    &dy,
                    dx.as_deref_mut(),
                    &mut dw,
                    Some(&mut db),
                );
                dflat[weight].copy_from_slice(&dw);
                dflat[bias].copy_from_slice(&db);
                if let Some(dx) = dx {
                    grads.add(x.id, dx);
                }
            }
            Self::Relu { x, out } => {
                let Some(dy) = grads.take(out.id) else { return };
                let mut dx = arena.take(out.data.len());
                relu::backward(&out.data, &dy, &mut dx);
                grads.add(x, dx);
            }
        }
    }
}

/// `(n, c, pixels)` to `(n, pixels, c)`.
fn nhwc_from_nchw<T: Element>(x: &[f32], c: usize, pixels: usize, out: &mut [T]) {
    transpose(x, c, pixels, out);
}

/// `(n, pixels, c)` to `(n, c, pixels)`.
pub(crate) fn nchw_from_nhwc<T: Element>(x: &[T], c: usize, pixels: usize, out: &mut [f32]) {
    transpose(x, pixels, c, out);
}

/// Each `(rows, columns)` matrix of the batch `x` transposed into `out`.
fn transpose<A: Element, B: Element>(x: &[A], rows: usize, columns: usize, out: &mut [B]) {
    let size = (rows * columns).max(1);
    out.par_chunks_mut(size)
        .zip(x.par_chunks(size))
        .for_each(|(out, x)| {
            for (r, row) in x.chunks_exact(columns).enumerate() {
                for (out, x) in out[r..].iter_mut().step_by(rows).zip(row) {
                    *out = B::from_f32(x.to_f32());
                }
            }
        });
}
