//! Optimisers over flat parameter sets, and schedules of the learning rate.

#[cfg(feature = "cuda")]
mod cuda;
mod gradients;
mod lars;
mod loss_scale;
mod schedule;
mod sgd;

use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor};
use pirl_core::storage::cpu_slice;
use pirl_core::{Ops, SettingError, check};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{ModelError, Result};
use crate::params::{Param, ParamSet};

use sgd::{Accumulate, Apply, Segment};

pub use gradients::GradientSum;
pub use loss_scale::LossScale;
pub use schedule::{Schedule, ScheduleConfig, ScheduleKind};

/// Which optimiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimKind {
    /// Stochastic gradient descent with momentum, as `torch.optim.SGD`.
    Sgd,
    /// Layer-wise adaptive rates (You et al., arXiv:1708.03888): SGD whose step for each parameter
    /// tensor is scaled by `trust_coefficient * |w| / (|g| + weight_decay * |w|)`.
    Lars,
}

/// Settings of an [`Optimizer`]. The default is the paper's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimConfig {
    /// The optimiser; `sgd` by default.
    pub kind: OptimKind,
    /// Base learning rate, which the schedule scales; 0.12 by default.
    pub lr: f64,
    /// Momentum in `0..1`; 0.9 by default.
    pub momentum: f64,
    /// Nesterov's momentum; off by default.
    pub nesterov: bool,
    /// L2 penalty added to the gradient; 1e-4 by default.
    pub weight_decay: f64,
    /// Leaves batch norm's parameters and biases out of weight decay, and out of LARS's scaling;
    /// on by default, as in VISSL.
    pub exempt_norm_and_bias: bool,
    /// LARS's trust coefficient; 0.001 by default.
    pub trust_coefficient: f64,
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self {
            kind: OptimKind::Sgd,
            lr: 0.12,
            momentum: 0.9,
            nesterov: false,
            weight_decay: 1e-4,
            exempt_norm_and_bias: true,
            trust_coefficient: 1e-3,
        }
    }
}

impl OptimConfig {
    /// # Errors
    /// Names the first field whose value cannot work.
    pub fn check(&self) -> Result<(), SettingError> {
        for (field, value) in [("lr", self.lr), ("weight_decay", self.weight_decay)] {
            let fits = value.is_finite() && value >= 0.0;
            check(field, value, fits, "must be finite and at least 0")?;
        }
        let momentum = self.momentum;
        let fits = (0.0..1.0).contains(&momentum);
        check("momentum", momentum, fits, "must lie in [0, 1)")?;
        let fits = !self.nesterov || momentum > 0.0;
        check("momentum", momentum, fits, "must be positive with nesterov")?;
        let trust = self.trust_coefficient;
        let fits = trust.is_finite() && trust > 0.0;
        check(
            "trust_coefficient",
            trust,
            fits,
            "must be finite and positive",
        )
    }
}

/// SGD or LARS over parameter sets.
///
/// The momentum of a set is one flat tensor. Parameters and momentum are updated in place: on a CPU in
/// parallel over the parameter tensors, on a CUDA device by one kernel.
pub struct Optimizer {
    config: OptimConfig,
    sets: Vec<Group>,
    /// Since the last step.
    gradients: GradientSum,
    ops: Ops,
}

struct Group {
    params: ParamSet,
    momentum: Tensor,
    /// Weight decay of each entry, made when it is first needed.
    decay: Option<Tensor>,
    /// Factor of each entry's step, unless it changes from step to step; made likewise.
    scale: Option<Tensor>,
}

impl Optimizer {
    /// The sets share their variables with the modules they came from.
    ///
    /// # Errors
    /// [`ModelError::Setting`] for a setting out of range.
    pub fn new(config: &OptimConfig, sets: Vec<ParamSet>) -> Result<Self> {
        config.check()?;
        let gradients = GradientSum::new(sets.clone());
        let group = |params: ParamSet| {
            let momentum = params.var().as_detached_tensor().zeros_like()?;
            Ok(Group {
                params,
                momentum,
                decay: None,
                scale: None,
            })
        };
        Ok(Self {
            config: config.clone(),
            sets: sets.into_iter().map(group).collect::<Result<_>>()?,
            gradients,
            ops: Ops::Fast,
        })
    }

    /// Chooses what computes a step.
    #[must_use]
    pub fn with_ops(self, ops: Ops) -> Self {
        Self { ops, ..self }
    }

    /// Adds the gradients of one backward pass to those of the next step. Gradients are sums, so the
    /// terms of a loss may be differentiated one after the other, each while it is in memory.
    ///
    /// # Errors
    /// Only if Candle cannot compute it.
    pub fn accumulate(&mut self, gradients: &GradStore) -> Result<()> {
        self.gradients.add(gradients)
    }

    /// Differentiates `loss` and adds the gradients to those of the next step: as
    /// [`Optimizer::accumulate`] of `loss.backward()`, in less time, see [`GradientSum::backward`].
    ///
    /// # Errors
    /// Only if Candle, or a pass, cannot compute it.
    pub fn backward(&mut self, loss: &Tensor) -> Result<()> {
        self.gradients.backward(loss)
    }

    /// The gradient that set number `set` has so far.
    pub fn gradient(&self, set: usize) -> Option<&Tensor> {
        self.gradients.get(set)
    }

    /// Hands over the accumulated gradients, of each set in its own shape, which are then cleared:
    /// [`Optimizer::merge`] gives back what became of them. `None` for a set that none has reached.
    pub fn take_gradients(&mut self) -> Vec<Option<Tensor>> {
        self.gradients.take()
    }

    /// Adds the gradient sums of copies of the sets, on other devices or threads:
    /// [`GradientSum::take`] of them, in the same order.
    ///
    /// # Errors
    /// Only if Candle cannot compute it.
    pub fn merge(&mut self, sums: Vec<Option<Tensor>>) -> Result<()> {
        self.gradients.merge(sums)
    }

    /// Clears the accumulated gradients without taking a step.
    pub fn discard(&mut self) {
        self.take_gradients();
    }

    /// Divides the accumulated gradients by `scale`, by which their losses were multiplied. If one of
    /// them is not finite, clears them all and returns `false`.
    ///
    /// # Errors
    /// Only if Candle cannot compute it.
    pub fn unscale(&mut self, scale: f64) -> Result<bool> {
        self.gradients.unscale(scale)
    }

    /// One step at the learning rate `lr` against the accumulated gradients, which are then cleared.
    /// A set without gradients does not change, nor does a parameter that is not [`Param::trained`].
    ///
    /// # Errors
    /// Only if Candle cannot compute it.
    pub fn step(&mut self, lr: f64) -> Result<()> {
        for (group, gradient) in self.sets.iter_mut().zip(self.gradients.take()) {
            let Some(gradient) = gradient else {
                continue;
            };
            let fast = self.ops == Ops::Fast;
            match group.params.var().device() {
                Device::Cpu if fast => group.step_in_place(&self.config, &gradient, lr)?,
                #[cfg(feature = "cuda")]
                Device::Cuda(_) if fast => group.step_by_kernel(&self.config, &gradient, lr)?,
                _ => group.step_by_tensors(&self.config, &gradient, lr)?,
            }
        }
        Ok(())
    }

    /// The optimiser's state: `momentum.I`, flat, for set `I`.
    ///
    /// # Errors
    /// Only if Candle cannot copy a tensor.
    pub fn state(&self) -> Result<HashMap<String, Tensor>> {
        let mut state = HashMap::new();
        for (i, group) in self.sets.iter().enumerate() {
            state.insert(format!("momentum.{i}"), group.momentum.copy()?);
        }
        Ok(state)
    }

    /// Restores a state from [`Optimizer::state`].
    ///
    /// # Errors
    /// [`ModelError::UnknownTensor`] if a set's momentum is not in it, [`ModelError::WrongShape`]
    /// if it belongs to another network; nothing is changed then.
    pub fn load_state(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        let mut loaded = Vec::with_capacity(self.sets.len());
        for (i, group) in self.sets.iter().enumerate() {
            let name = format!("momentum.{i}");
            let Some(tensor) = state.get(&name) else {
                let hint = "; the optimiser's state is of another set of modules".to_owned();
                return Err(ModelError::UnknownTensor { name, hint });
            };
            if tensor.dims() != group.momentum.dims() {
                return Err(ModelError::WrongShape {
                    name,
                    expected: group.momentum.dims().to_vec(),
                    found: tensor.dims().to_vec(),
                    hint: String::new(),
                });
            }
            let tensor = tensor.to_dtype(DType::F32)?;
            loaded.push(tensor.to_device(group.momentum.device())?.copy()?);
        }
        for (group, momentum) in self.sets.iter_mut().zip(loaded) {
            group.momentum = momentum;
        }
        Ok(())
    }
}

impl OptimConfig {
    fn decay(&self, weight: bool) -> f64 {
        if weight || !self.exempt_norm_and_bias {
            self.weight_decay
        } else {
            0.0
        }
    }

    fn adapts(&self, weight: bool) -> bool {
        self.kind == OptimKind::Lars && (weight || !self.exempt_norm_and_bias)
    }
}

impl Group {
    fn step_in_place(&mut self, config: &OptimConfig, gradient: &Tensor, lr: f64) -> Result<()> {
        let var = self.params.var();
        let segments = {
            let ((values, vl), (gradient, gl)) =
                (var.storage_and_layout(), gradient.storage_and_layout());
            let (values, gradient) = (cpu_slice(&values, vl)?, cpu_slice(&gradient, gl)?);
            let segment = |param: &Param| {
                let decay = config.decay(param.decay);
                let scale = if !param.trained {
                    0.0
                } else if config.adapts(param.decay) {
                    let (w, g) = (&values[param.range()], &gradient[param.range()]);
                    lars::trust(
                        config.trust_coefficient,
                        lars::norm(w),
                        lars::norm(g),
                        decay,
                    )
                } else {
                    1.0
                };
                Segment {
                    len: param.elements(),
                    decay: decay as f32,
                    scale: scale as f32,
                }
            };
            self.params
                .params()
                .par_iter()
                .map(segment)
                .collect::<Vec<_>>()
        };
        let momentum = config.momentum as f32;
        let accumulate = Accumulate {
            segments: &segments,
            momentum,
        };
        self.momentum.inplace_op3(gradient, var, &accumulate)?;
        let apply = Apply {
            segments: &segments,
            nesterov: config.nesterov.then_some(momentum),
            lr: lr as f32,
        };
        Ok(var.inplace_op3(gradient, &self.momentum, &apply)?)
    }

    #[cfg(feature = "cuda")]
    fn step_by_kernel(&mut self, config: &OptimConfig, gradient: &Tensor, lr: f64) -> Result<()> {
        let (decay, scale) = self.factors(config, gradient)?;
        let step = cuda::Step {
            gradient,
            decay: &decay,
            scale: &scale,
            momentum: config.momentum as f32,
            nesterov: config.nesterov,
            lr: lr as f32,
        };
        Ok(cuda::step(self.params.var(), &self.momentum, &step)?)
    }

    /// Weight decay of each entry, and factor of its step.
    fn factors(&mut self, config: &OptimConfig, gradient: &Tensor) -> Result<(Tensor, Tensor)> {
        let decay = match self.decay.take() {
            Some(decay) => decay,
            None => self.spread(|param| config.decay(param.decay))?,
        };
        self.decay = Some(decay.clone());
        let scale = match self.scale.take() {
            Some(scale) => scale,
            None if config.kind == OptimKind::Lars => self.lars_scale(config, gradient)?,
            None => self.spread(|param| f64::from(u8::from(param.trained)))?,
        };
        // LARS's is another at every step.
        self.scale = (config.kind != OptimKind::Lars).then(|| scale.clone());
        Ok((decay, scale))
    }

    /// The same step from Candle's ops, on the whole set at once and without a number read back, for
    /// devices whose memory this crate cannot touch.
    fn step_by_tensors(&mut self, config: &OptimConfig, gradient: &Tensor, lr: f64) -> Result<()> {
        let values = self.params.var().as_detached_tensor();
        let (decay, scale) = self.factors(config, gradient)?;
        let direction = ((gradient + (&values * &decay)?)? * &scale)?;
        self.momentum = ((&self.momentum * config.momentum)? + &direction)?;
        let step = if config.nesterov {
            (direction + (&self.momentum * config.momentum)?)?
        } else {
            self.momentum.clone()
        };
        Ok(self.params.var().set(&(values - (step * lr)?)?)?)
    }

    /// A number for each parameter, repeated for each of its entries.
    fn spread(&self, number: impl Fn(&Param) -> f64) -> Result<Tensor> {
        let entries = self.params.params().iter();
        let entries = entries
            .flat_map(|param| std::iter::repeat_n(number(param) as f32, param.elements()))
            .collect::<Vec<_>>();
        let var = self.params.var();
        Ok(Tensor::from_vec(entries, var.shape(), var.device())?)
    }

    /// [`lars::trust`] of each parameter, repeated for each of its entries.
    fn lars_scale(&self, config: &OptimConfig, gradient: &Tensor) -> Result<Tensor> {
        let shape = self.params.var().shape();
        let values = self.params.var().as_detached_tensor().flatten_all()?;
        let gradient = gradient.flatten_all()?;
        let norm = |t: &Tensor, param: &Param| {
            let part = t.narrow(0, param.offset, param.elements())?;
            part.to_dtype(DType::F64)?.sqr()?.sum_keepdim(0)?.sqrt()
        };
        // Of one entry, not scalars: for those Candle's choice on a CUDA device asks for no memory.
        let one = Tensor::ones(1, DType::F64, values.device())?;
        let scale = |param: &Param| -> Result<Tensor> {
            let trust = if !param.trained {
                one.zeros_like()?
            } else if config.adapts(param.decay) {
                let (w, g) = (norm(&values, param)?, norm(&gradient, param)?);
                let decay = config.decay(param.decay);
                let trust = ((&w * config.trust_coefficient)? / (&g + (&w * decay)?)?)?;
                let trust = w.gt(0.0)?.where_cond(&trust, &one)?;
                g.gt(0.0)?.where_cond(&trust, &one)?
            } else {
                one.clone()
            };
            let trust = trust.to_dtype(DType::F32)?;
            Ok(trust.broadcast_as(param.elements())?.contiguous()?)
        };
        let scales = self.params.params().iter().map(scale);
        Ok(Tensor::cat(&scales.collect::<Result<Vec<_>>>()?, 0)?.reshape(shape)?)
    }
}
