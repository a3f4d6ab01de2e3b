//! A network with its parameters, called on tensors.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout, Shape, Tensor};
use half::{bf16, f16};
use pirl_core::storage::{cpu_slice, slice};

use super::buffer::Arena;
use super::composed::Composed;
use super::device::{self, Node};
use super::tape::{self, Forward, Tape};
use super::{DIFFERENTIATED, Engine, Network};
use crate::config::Precision;
use crate::error::{ModelError, Result};
use crate::layer::Layer;
use crate::mode::Mode;
use crate::ops::Element;
use crate::ops::conv2d::Winograd;
use crate::ops::weights::ConvWeights;
use crate::params::{Buffers, Builder, NormUpdate, ParamSet};
use crate::peers::Peers;
use pirl_core::Ops;

/// A network, its parameters and statistics, and the engine that runs it.
pub(crate) struct Traced<N> {
    network: Arc<N>,
    params: ParamSet,
    buffers: Buffers,
    runner: Runner,
    precision: Precision,
    /// The parts of a batch that batch norm is synced with in training.
    peers: Mutex<Option<Arc<dyn Peers>>>,
}

/// The engine that runs a network.
enum Runner {
    /// The fast one of CPUs.
    Tape {
        arena: Arc<Arena>,
        winograd: Winograd,
    },
    /// The fast one of GPUs.
    Device(Arc<ConvWeights>),
    /// Candle's own ops.
    Composed,
}

impl<N: Network> Traced<N> {
    /// `network` with the parameters that `builder` collected, on `device`.
    pub(crate) fn new(
        network: N,
        builder: Builder,
        ops: Ops,
        winograd: Winograd,
        device: &Device,
    ) -> Result<Self> {
        let (params, buffers) = builder.finish(device)?;
        let runner = match (ops, device) {
            (Ops::Fast, Device::Cpu) => Runner::Tape {
                arena: Arc::default(),
                winograd,
            },
            (Ops::Fast, Device::Cuda(_)) => Runner::Device(Arc::new(params.conv_weights()?)),
            (Ops::Fast, Device::Metal(_)) | (Ops::Reference, _) => Runner::Composed,
        };
        Ok(Self {
            network: Arc::new(network),
            params,
            buffers,
            runner,
            precision: Precision::F32,
            peers: Mutex::default(),
        })
    }

    /// The same network by the fast engine of GPUs, wherever its parameters are.
    #[cfg(test)]
    pub(super) fn on_a_device(self) -> Result<Self> {
        let runner = Runner::Device(Arc::new(self.params.conv_weights()?));
        Ok(Self { runner, ..self })
    }

    /// As [`Trainable::sync_batch_norm`](crate::Trainable::sync_batch_norm).
    pub(crate) fn sync_batch_norm(&self, peers: Arc<dyn Peers>) {
        *lock(&self.peers) = Some(peers);
    }

    /// The parts that a pass's batch norms are synced with.
    fn peers(&self, mode: Mode) -> Option<Arc<dyn Peers>> {
        let peers = lock(&self.peers).clone();
        peers.filter(|peers| mode == Mode::Train && peers.any())
    }

    /// What forward and backward passes store; [`Traced::maps`] are always made in `f32`.
    pub(crate) fn set_precision(&mut self, precision: Precision) -> Result<()> {
        let able = !matches!(self.runner, Runner::Composed);
        pirl_core::check(
            "precision",
            precision,
            precision == Precision::F32 || able,
            "must be f32, unless the device is a CPU or a CUDA device and ops is fast",
        )?;
        self.precision = precision;
        Ok(())
    }

    pub(crate) fn network(&self) -> &N {
        &self.network
    }

    pub(crate) fn params(&self) -> &ParamSet {
        &self.params
    }

    pub(crate) fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// `x`: `(n, c, h, w)` or `(n, c)`, already checked by the caller. Returns `(n, c')`, or maps
    /// `(n, c', h', w')`, by the fast engines views of NHWC memory, of a network that returns those.
    pub(crate) fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let x = x.to_dtype(DType::F32)?;
        match &self.runner {
            Runner::Tape { arena, winograd } => {
                let x = x.contiguous()?;
                let (out, updates) = match self.precision {
                    Precision::F32 | Precision::Tf32 => {
                        self.run::<f32>(arena, *winograd, &x, mode)?
                    }
                    Precision::Bf16 => self.run::<bf16>(arena, *winograd, &x, mode)?,
                    Precision::F16 => self.run::<f16>(arena, *winograd, &x, mode)?,
                };
                self.buffers.update(&updates, mode == Mode::Calibrate)?;
                Ok(out)
            }
            Runner::Device(weights) => self.run_on_device(weights, &x, mode),
            Runner::Composed => {
                let x = x.contiguous()?;
                let x = if mode.records() { x } else { x.detach() };
                let mut engine =
                    Composed::new(&self.params, &self.buffers, mode)?.synced_with(self.peers(mode));
                let out = self.network.forward(&mut engine, &x, &mut |_, _| {})?;
                engine.finish()?;
                Ok(out)
            }
        }
    }

    /// The pass of a GPU's fast engine.
    fn run_on_device(&self, weights: &Arc<ConvWeights>, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let (params, buffers) = (&self.params, &self.buffers);
        let mut engine = device::Forward::new(params, weights, buffers, mode, self.precision)?
            .synced_with(self.peers(mode));
        let input = engine.input(x)?;
        let out = self.network.forward(&mut engine, &input, &mut |_, _| {})?;
        let tape = engine.finish(&out)?;
        if !mode.records() {
            return device::Forward::output(&out);
        }
        let out = x.apply_op2(params.var().as_tensor(), Node::new(&out, tape, params)?)?;
        Ok(match out.rank() {
            4 => out.permute((0, 3, 1, 2))?,
            _ => out,
        })
    }

    /// The pass of a CPU's fast engine, with activations stored as `T`.
    fn run<T: Element>(
        &self,
        arena: &Arc<Arena>,
        winograd: Winograd,
        x: &Tensor,
        mode: Mode,
    ) -> Result<(Tensor, Vec<NormUpdate>)> {
        let outcome = Arc::default();
        let op = ModuleOp::<N, T> {
            network: Arc::clone(&self.network),
            params: self.params.clone(),
            buffers: self.buffers.clone(),
            arena: Arc::clone(arena),
            mode,
            winograd,
            peers: self.peers(mode),
            outcome: Arc::clone(&outcome),
            tape: Mutex::default(),
        };
        let flat = self.params.var().as_tensor();
        let out = if mode.records() {
            x.apply_op2(flat, op)
        } else {
            x.apply_op2_no_bwd(flat, &op)
        };
        let Outcome { updates, error } = take(&outcome);
        match error {
            Some(error) => Err(error),
            None if self.network.returns_maps() => Ok((out?.permute((0, 3, 1, 2))?, updates)),
            None => Ok((out?, updates)),
        }
    }

    /// The maps of `layers` inside the network, in evaluation mode, as NCHW tensors
    /// (by the fast engines, views of NHWC memory). `x`: `(n, c, h, w)`.
    pub(crate) fn maps(&self, x: &Tensor, layers: &[Layer]) -> Result<Vec<(Layer, Tensor)>> {
        let x = x.to_dtype(DType::F32)?.contiguous()?.detach();
        let (params, buffers) = (&self.params, &self.buffers);
        let mut maps = Vec::new();
        match &self.runner {
            Runner::Tape { arena, winograd } => {
                let flat = self.params.var().as_tensor();
                let ((numbers, layout), (flat, flat_layout)) =
                    (x.storage_and_layout(), flat.storage_and_layout());
                let (numbers, flat) =
                    (cpu_slice(&numbers, layout)?, cpu_slice(&flat, flat_layout)?);
                let mut engine =
                    Forward::<f32>::new(params, flat, buffers, Mode::Eval, *winograd, arena);
                let input = engine.input(numbers, x.dims4()?);
                let values = self.seen(&mut engine, &input, layers)?;
                for (layer, value) in values {
                    let shape = (value.n, value.h, value.w, value.c);
                    let map = Tensor::from_slice(&value.data, shape, &Device::Cpu)?;
                    maps.push((layer, map.permute((0, 3, 1, 2))?));
                }
            }
            Runner::Device(weights) => {
                let (mode, precision) = (Mode::Eval, Precision::F32);
                let mut engine = device::Forward::new(params, weights, buffers, mode, precision)?;
                let input = engine.input(&x)?;
                for (layer, value) in self.seen(&mut engine, &input, layers)? {
                    maps.push((layer, as_map(device::Forward::output(&value)?)?));
                }
            }
            Runner::Composed => {
                let mut engine = Composed::new(params, buffers, Mode::Eval)?;
                for (layer, value) in self.seen(&mut engine, &x, layers)? {
                    maps.push((layer, as_map(value)?));
                }
            }
        }
        Ok(maps)
    }

    /// The values that the network shows of `layers`.
    fn seen<E: Engine>(
        &self,
        engine: &mut E,
        input: &E::Value,
        layers: &[Layer],
    ) -> Result<Vec<(Layer, E::Value)>> {
        let mut values = Vec::new();
        let show = &mut |layer, value: &E::Value| {
            if layers.contains(&layer) {
                values.push((layer, value.clone()));
            }
        };
        self.network.forward(engine, input, show)?;
        Ok(values)
    }
}

/// To an engine of tensors, what an average leaves is a vector.
fn as_map(value: Tensor) -> Result<Tensor> {
    Ok(match value.rank() {
        2 => value.unsqueeze(2)?.unsqueeze(3)?,
        _ => value,
    })
}

fn take<T: Default>(slot: &Mutex<T>) -> T {
    std::mem::take(&mut *lock(slot))
}

/// What these locks hold is replaced whole, so a panic elsewhere does not spoil it.
fn lock<T>(slot: &Mutex<T>) -> MutexGuard<'_, T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a forward pass returns beside its output, for which Candle's trait has no place.
#[derive(Default)]
struct Outcome {
    updates: Vec<NormUpdate>,
    error: Option<ModelError>,
}

/// A whole network as one node of Candle's graph: `(x, flat parameters) -> (n, c)`, or NHWC maps.
struct ModuleOp<N, T: Element> {
    network: Arc<N>,
    params: ParamSet,
    buffers: Buffers,
    arena: Arc<Arena>,
    mode: Mode,
    winograd: Winograd,
    peers: Option<Arc<dyn Peers>>,
    outcome: Arc<Mutex<Outcome>>,
    tape: Mutex<Option<Tape<T>>>,
}

impl<N: Network, T: Element> CustomOp2 for ModuleOp<N, T> {
    fn name(&self) -> &'static str {
        "pirl-module"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        flat: &CpuStorage,
        flat_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, flat) = (slice(x, x_layout)?, slice(flat, flat_layout)?);
        let dims = match *x_layout.dims() {
            [n, c] => (n, c, 1, 1),
            _ => x_layout.shape().dims4()?,
        };
        let mut engine = Forward::<T>::new(
            &self.params,
            flat,
            &self.buffers,
            self.mode,
            self.winograd,
            &self.arena,
        )
        .synced_with(self.peers.clone());
        let input = engine.input(x, dims);
        let out = match self.network.forward(&mut engine, &input, &mut |_, _| {}) {
            Ok(out) => out,
            Err(error) => {
                let why = error.to_string();
                lock(&self.outcome).error = Some(error);
                return Err(candle_core::Error::msg(why));
            }
        };
        drop(input);
        let (updates, tape) = engine.finish(&out);
        lock(&self.outcome).updates = updates;
        if self.mode.records() {
            *lock(&self.tape) = Some(tape);
        }
        let shape = match self.network.returns_maps() {
            true => Shape::from((out.n, out.h, out.w, out.c)),
            false => Shape::from((out.n, out.c)),
        };
        let numbers = out.data.iter().map(|x| x.to_f32()).collect();
        Ok((CpuStorage::F32(numbers), shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        flat: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(tape) = take(&self.tape) else {
            return Err(candle_core::Error::msg(DIFFERENTIATED));
        };
        let dy = dy.flatten_all()?.to_vec1::<f32>()?;
        let (dx, dflat) = {
            let (storage, layout) = flat.storage_and_layout();
            let watch = self.params.gradient_watch();
            let flat = cpu_slice(&storage, layout)?;
            tape.backward(flat, &dy, x.track_op(), watch.as_ref())?
        };
        let dx = match (dx, x.dims()) {
            (None, _) => None,
            (Some(dx), &[_, c, h, w]) => {
                let mut nchw = vec![0.0; dx.len()];
                tape::nchw_from_nhwc(&dx, c, h * w, &mut nchw);
                Some(Tensor::from_vec(nchw, x.shape(), x.device())?)
            }
            (Some(dx), _) => {
                let dx = dx.iter().map(|x| x.to_f32()).collect();
                Some(Tensor::from_vec::<_, f32>(dx, x.shape(), x.device())?)
            }
        };
        let dflat = Tensor::from_vec(dflat, flat.shape(), flat.device())?;
        Ok((dx, self.params.give_gradient(dflat)?))
    }
}
