//! The numbers of a module: its trainable parameters, all in one flat tensor, and the running
//! statistics of its batch norms.
//!
//! One flat tensor means one gradient a backward pass and one loop an optimiser step, however many
//! layers there are; the names, shapes and offsets beside it make it torchvision's state dict.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarMap;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::error::{ModelError, Result};
use crate::ops::sum::with_sum;
use crate::ops::weights::ConvWeights;

/// One tensor of a [`ParamSet`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Param {
    /// Its name in the state dict, such as `layer1.0.conv1.weight`.
    pub name: String,
    /// Its shape, PyTorch's.
    pub shape: Vec<usize>,
    /// Where it starts in the flat tensor.
    pub offset: usize,
    /// Whether it is a weight of a convolution or a linear layer. Batch-norm parameters and biases
    /// are not, and may be exempt from weight decay.
    pub decay: bool,
    /// Whether an optimiser may change it. The scale and shift of a batch norm that is frozen in a
    /// network being fine-tuned may not be.
    pub trained: bool,
}

impl Param {
    /// How many numbers it has.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Where it lies in the flat tensor.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.elements()
    }
}

/// The position of a parameter in its set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ParamId(usize);

impl ParamId {
    pub(crate) fn index(self) -> usize {
        self.0
    }
}

/// Trainable parameters in one `f32` [`Var`], with the name, shape and offset of each.
///
/// The modules of this crate have all of theirs in one flat variable. A network whose variables lie in
/// a [`VarMap`](candle_nn::VarMap) has a set for each ([`ParamSet::of_var_map`]). A clone shares the
/// numbers.
#[derive(Debug, Clone)]
pub struct ParamSet {
    var: Var,
    params: Arc<[Param]>,
    watch: Watch,
    collected: Collected,
}

/// Is told while a backward pass goes on that the gradient is what it will be from a place on: the
/// place, and the whole flat gradient, which before it is not done yet.
pub type GradientWatch = Arc<dyn Fn(usize, &[f32]) + Send + Sync>;

/// Whoever watches the gradient of a set; clones share it.
#[derive(Clone, Default)]
struct Watch(Arc<RwLock<Option<GradientWatch>>>);

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}

/// The sum of the gradients that backward passes have given a set, while somebody collects them; clones
/// share it.
#[derive(Debug, Clone, Default)]
struct Collected(Arc<Mutex<Option<Option<Tensor>>>>);

impl Collected {
    fn lock(&self) -> MutexGuard<'_, Option<Option<Tensor>>> {
        // Only replaced whole, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ParamSet {
    /// The parameters of a module written outside this crate: `(name, shape, standard deviation)`
    /// each. Weights start normal around 0, the same for the same `seed`; vectors are taken for
    /// biases, which start 0. All are subject to weight decay.
    ///
    /// # Errors
    /// Only if Candle cannot make a tensor.
    pub fn normal(seed: u64, params: &[(&str, &[usize], f64)], device: &Device) -> Result<Self> {
        let mut builder = Builder::new(ChaCha8Rng::seed_from_u64(seed));
        for &(name, shape, std) in params {
            let init = match shape {
                [_] => Init::Constant(0.0),
                _ => Init::Normal(std),
            };
            builder.param(name.to_owned(), shape, true, init);
        }
        Ok(builder.finish(device)?.0)
    }

    /// A set for each variable of `variables`, in the order of their names.
    ///
    /// Matrices and kernels are subject to weight decay, vectors and scalars may be exempt;
    /// `running_mean` and `running_var`, the statistics of `candle_nn`'s batch norms, are saved and
    /// loaded like the others, but no optimiser changes them.
    pub fn of_var_map(variables: &VarMap) -> Vec<Self> {
        // Whole whatever panicked elsewhere: nothing here writes to it.
        let data = variables
            .data()
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut sets: Vec<Self> = data
            .iter()
            .map(|(name, var)| Self::of_var(name, var.clone()))
            .collect();
        sets.sort_by(|a, b| a.params[0].name.cmp(&b.params[0].name));
        sets
    }

    /// A set of one variable, of any shape.
    fn of_var(name: &str, var: Var) -> Self {
        let statistic = [".running_mean", ".running_var"].iter();
        let param = Param {
            name: name.to_owned(),
            shape: var.dims().to_vec(),
            offset: 0,
            decay: var.rank() > 1,
            trained: !statistic.into_iter().any(|end| name.ends_with(end)),
        };
        Self {
            var,
            params: Arc::new([param]),
            watch: Watch::default(),
            collected: Collected::default(),
        }
    }

    /// Has `watch` told of the backward passes from now on, of which more and more is done, from the
    /// last parameter to the first; `None` for nobody. Passes of this crate's engine on a CPU tell:
    /// what they give is what the pass will return.
    pub fn watch_gradient(&self, watch: Option<GradientWatch>) {
        *self.watch.0.write().unwrap_or_else(PoisonError::into_inner) = watch;
    }

    pub(crate) fn gradient_watch(&self) -> Option<GradientWatch> {
        let watch = self.watch.0.read();
        watch.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has passes of this crate's engines give the gradient to [`ParamSet::collected`] instead of Candle,
    /// which adds each to zeros that it makes first.
    pub(crate) fn collect(&self) {
        *self.collected.lock() = Some(None);
    }

    /// What they gave since [`ParamSet::collect`], which ends here.
    pub(crate) fn collected(&self) -> Option<Tensor> {
        self.collected.lock().take().flatten()
    }

    /// Gives `gradient`, flat, to whoever collects; to be given to Candle if nobody does.
    pub(crate) fn give_gradient(&self, gradient: Tensor) -> candle_core::Result<Option<Tensor>> {
        match &mut *self.collected.lock() {
            None => Ok(Some(gradient)),
            Some(sum) => {
                *sum = Some(with_sum(gradient, sum.take())?);
                Ok(None)
            }
        }
    }

    /// One parameter in its shape, as part of Candle's graph: gradients reach the set.
    ///
    /// # Errors
    /// [`ModelError::UnknownTensor`].
    pub fn tracked(&self, name: &str) -> Result<Tensor> {
        let param = self.find(name)?;
        let flat = self.var.flatten_all()?;
        let part = flat.narrow(0, param.offset, param.elements())?;
        Ok(part.reshape(param.shape.as_slice())?)
    }

    /// The variable that holds all its parameters: flat, or in its own shape in a set of
    /// [`ParamSet::of_var_map`]. Candle's backward pass gives its gradient.
    pub fn var(&self) -> &Var {
        &self.var
    }

    /// Name, shape and offset of each parameter, in the module's order.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    pub(crate) fn param(&self, id: ParamId) -> &Param {
        &self.params[id.0]
    }

    /// A shaped copy of one parameter, without gradient history.
    ///
    /// # Errors
    /// [`ModelError::UnknownTensor`].
    pub fn get(&self, name: &str) -> Result<Tensor> {
        let param = self.find(name)?;
        let flat = self.var.as_detached_tensor().flatten_all()?;
        let part = flat.narrow(0, param.offset, param.elements())?;
        // Not `copy`, which takes the whole storage along.
        Ok(part.force_contiguous()?.reshape(param.shape.as_slice())?)
    }

    /// Overwrites one parameter.
    ///
    /// # Errors
    /// [`ModelError::UnknownTensor`], [`ModelError::WrongShape`].
    pub fn set(&self, name: &str, value: &Tensor) -> Result<()> {
        let param = self.find(name)?;
        check_shape(name, &param.shape, value)?;
        let value = value.to_device(self.var.device())?.to_dtype(DType::F32)?;
        if self.params.len() == 1 {
            return Ok(self.var.set(&value.reshape(self.var.shape())?)?);
        }
        let value = value.flatten_all()?.contiguous()?;
        Ok(self.var.slice_set(&value, 0, param.offset)?)
    }

    /// Where the weights of convolutions lie.
    pub(crate) fn conv_weights(&self) -> Result<ConvWeights> {
        let weights = self.params.iter().filter_map(|param| {
            let shape = param.shape.as_slice().try_into().ok()?;
            Some((param.offset, shape))
        });
        Ok(ConvWeights::new(weights, self.var.device())?)
    }

    fn find(&self, name: &str) -> Result<&Param> {
        let found = self.params.iter().find(|param| param.name == name);
        found.ok_or_else(|| unknown(name))
    }
}

/// The position of a batch norm in its [`Buffers`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct NormId(usize);

/// The running statistics of one batch norm, on the host.
#[derive(Debug, Clone)]
pub(crate) struct RunningNorm {
    pub(crate) name: String,
    pub(crate) mean: Vec<f32>,
    pub(crate) var: Vec<f32>,
    batches: i64,
}

/// What one forward pass adds to the running statistics of a batch norm.
#[derive(Debug)]
pub(crate) struct NormUpdate {
    pub(crate) norm: NormId,
    pub(crate) mean: Vec<f32>,
    /// Unbiased.
    pub(crate) var: Vec<f32>,
}

/// A batch norm that has seen the batch of a forward pass.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) norm: NormId,
    pub(crate) channels: usize,
    /// Numbers of a channel.
    pub(crate) rows: usize,
}

impl Seen {
    /// How many numbers the statistics of these are: a mean and a variance for each channel.
    pub(crate) fn numbers(seen: &[Self]) -> usize {
        seen.iter().map(|seen| 2 * seen.channels).sum()
    }

    /// What makes the variance unbiased.
    fn unbiased(&self) -> f32 {
        self.rows as f32 / (self.rows as f32 - 1.0)
    }
}

/// The running statistics of a module's batch norms: `running_mean`, `running_var` and
/// `num_batches_tracked` of each, as PyTorch keeps them.
///
/// A clone shares the numbers. The default has no batch norm. What training adds on a GPU stays there
/// until the numbers are asked for, so that no step waits for it.
#[derive(Debug, Clone, Default)]
pub struct Buffers(Arc<RwLock<Running>>);

#[derive(Debug, Default)]
struct Running {
    norms: Vec<RunningNorm>,
    /// What is to be added to them.
    ahead: Option<Ahead>,
    /// What makes the statistics of a pass unbiased, on its device, by channels and rows of each norm: few,
    /// as batches have few sizes.
    unbiased: HashMap<Vec<(usize, usize)>, Tensor>,
}

/// The sum of what passes on a device have added: a statistic is `kept` times what it was, and `added`.
#[derive(Debug)]
struct Ahead {
    kept: f32,
    /// Mean and variance of each of `norms`, one after the other.
    added: Tensor,
    norms: Vec<usize>,
    batches: i64,
}

/// The statistics of a module at one time.
#[derive(Debug, Clone)]
pub struct Snapshot(Vec<RunningNorm>);

/// The weight of a new batch in the running statistics: `torch.nn.BatchNorm2d`'s default.
const MOMENTUM: f32 = 0.1;

const FIELDS: [&str; 3] = ["running_mean", "running_var", "num_batches_tracked"];

impl Buffers {
    /// A copy of all statistics, for [`Buffers::restore`].
    ///
    /// # Errors
    /// If a device does not answer.
    pub fn snapshot(&self) -> Result<Snapshot> {
        self.settle()?;
        Ok(Snapshot(self.read().norms.clone()))
    }

    /// Puts the statistics back as they were. The snapshot must be of the same module.
    pub fn restore(&self, snapshot: Snapshot) {
        let mut running = self.write();
        running.norms = snapshot.0;
        running.ahead = None;
    }

    /// Back to mean 0, variance 1, no batch seen.
    pub fn reset(&self) {
        let mut running = self.write();
        running.ahead = None;
        for norm in &mut running.norms {
            norm.mean.fill(0.0);
            norm.var.fill(1.0);
            norm.batches = 0;
        }
    }

    /// # Errors
    /// If a device does not answer.
    pub(crate) fn with<T>(&self, id: NormId, read: impl FnOnce(&RunningNorm) -> T) -> Result<T> {
        self.settle()?;
        Ok(read(&self.read().norms[id.0]))
    }

    /// Moves the statistics by PyTorch's momentum, or, with `average`, to the plain mean over all
    /// batches since [`Buffers::reset`].
    ///
    /// # Errors
    /// If a device does not answer.
    pub(crate) fn update(&self, updates: &[NormUpdate], average: bool) -> Result<()> {
        self.settle()?;
        let norms = &mut self.write().norms;
        for update in updates {
            let norm = &mut norms[update.norm.0];
            norm.batches += 1;
            let weight = if average {
                1.0 / norm.batches as f32
            } else {
                MOMENTUM
            };
            let pairs = norm.mean.iter_mut().zip(&update.mean);
            for (running, new) in pairs.chain(norm.var.iter_mut().zip(&update.var)) {
                *running += weight * (new - *running);
            }
        }
        Ok(())
    }

    /// [`Buffers::update`] by what the norms `seen` saw in a pass: `numbers`, mean and biased variance of each,
    /// one after the other. In the host's memory at once; on a device the numbers of passes in training are
    /// added up there.
    ///
    /// # Errors
    /// If a device does not answer.
    pub(crate) fn see(&self, seen: &[Seen], numbers: &Tensor, average: bool) -> Result<()> {
        if numbers.device().is_cpu() || average {
            let numbers = numbers.to_vec1::<f32>()?;
            let mut rest = numbers.as_slice();
            let updates = seen.iter().map(|seen| {
                let mut next = || {
                    let (head, tail) = rest.split_at(seen.channels);
                    rest = tail;
                    head.to_vec()
                };
                NormUpdate {
                    norm: seen.norm,
                    mean: next(),
                    var: next()
                        .into_iter()
                        .map(|var| var * seen.unbiased())
                        .collect(),
                }
            });
            return self.update(&updates.collect::<Vec<_>>(), average);
        }
        self.add_ahead(seen, numbers)
    }

    /// Moves the statistics later by `numbers`, mean and variance of each of `seen`.
    fn add_ahead(&self, seen: &[Seen], numbers: &Tensor) -> Result<()> {
        let norms: Vec<usize> = seen.iter().map(|seen| seen.norm.0).collect();
        let others = |ahead: &Ahead| ahead.norms != norms;
        if self.read().ahead.as_ref().is_some_and(others) {
            self.settle()?;
        }
        let mut running = self.write();
        let sizes = seen.iter().map(|seen| (seen.channels, seen.rows)).collect();
        let unbiased = match running.unbiased.entry(sizes) {
            Entry::Occupied(factors) => factors.into_mut(),
            Entry::Vacant(place) => {
                let of = |seen: &Seen| {
                    let ones = std::iter::repeat_n(1.0, seen.channels);
                    ones.chain(std::iter::repeat_n(seen.unbiased(), seen.channels))
                };
                let factors: Vec<f32> = seen.iter().flat_map(of).collect();
                let len = factors.len();
                place.insert(Tensor::from_vec(factors, len, numbers.device())?)
            }
        };
        let (kept, weight) = (f64::from(1.0 - MOMENTUM), f64::from(MOMENTUM));
        let added = ((numbers * &*unbiased)? * weight)?;
        running.ahead = Some(match running.ahead.take() {
            None => Ahead {
                kept: kept as f32,
                added,
                norms,
                batches: 1,
            },
            Some(before) => Ahead {
                kept: before.kept * kept as f32,
                added: ((before.added * kept)? + added)?,
                norms,
                batches: before.batches + 1,
            },
        });
        Ok(())
    }

    /// Adds what a device has added up.
    fn settle(&self) -> Result<()> {
        if self.read().ahead.is_none() {
            return Ok(());
        }
        let mut running = self.write();
        let Some(ahead) = running.ahead.take() else {
            return Ok(());
        };
        let added = ahead.added.to_vec1::<f32>()?;
        let mut added = added.into_iter();
        for norm in ahead.norms {
            let norm = &mut running.norms[norm];
            norm.batches += ahead.batches;
            for (number, added) in norm.mean.iter_mut().chain(&mut norm.var).zip(&mut added) {
                *number = *number * ahead.kept + added;
            }
        }
        Ok(())
    }

    /// How many means and variances there are.
    pub(crate) fn numbers(&self) -> usize {
        let norms = &self.read().norms;
        norms.iter().map(|norm| 2 * norm.mean.len()).sum()
    }

    /// Names and shapes of all tensors.
    pub(crate) fn names(&self) -> Vec<(String, Vec<usize>)> {
        let norms = &self.read().norms;
        let of = |norm: &RunningNorm| {
            let shapes = [vec![norm.mean.len()], vec![norm.var.len()], Vec::new()];
            let name = norm.name.clone();
            FIELDS
                .into_iter()
                .zip(shapes)
                .map(move |(field, shape)| (format!("{name}.{field}"), shape))
        };
        norms.iter().flat_map(of).collect()
    }

    /// All tensors by name, as PyTorch names them; the counts are scalars of `i64`.
    ///
    /// # Errors
    /// Only if Candle cannot make a tensor.
    pub fn entries(&self) -> Result<Vec<(String, Tensor)>> {
        self.settle()?;
        let mut entries = Vec::new();
        for norm in &self.read().norms {
            let tensors = [
                Tensor::new(norm.mean.as_slice(), &Device::Cpu)?,
                Tensor::new(norm.var.as_slice(), &Device::Cpu)?,
                Tensor::new(norm.batches, &Device::Cpu)?,
            ];
            for (field, tensor) in FIELDS.into_iter().zip(tensors) {
                entries.push((format!("{}.{field}", norm.name), tensor));
            }
        }
        Ok(entries)
    }

    /// Overwrites one tensor.
    ///
    /// # Errors
    /// [`ModelError::UnknownTensor`], [`ModelError::WrongShape`].
    pub fn set(&self, name: &str, value: &Tensor) -> Result<()> {
        let (layer, field) = name.rsplit_once('.').ok_or_else(|| unknown(name))?;
        self.settle()?;
        let norms = &mut self.write().norms;
        let norm = norms.iter_mut().find(|norm| norm.name == layer);
        let norm = norm.ok_or_else(|| unknown(name))?;
        let target = match field {
            "running_mean" => &mut norm.mean,
            "running_var" => &mut norm.var,
            "num_batches_tracked" => {
                check_shape(name, &[], value)?;
                norm.batches = value.to_dtype(DType::I64)?.to_scalar()?;
                return Ok(());
            }
            _ => return Err(unknown(name)),
        };
        check_shape(name, &[target.len()], value)?;
        *target = value.to_dtype(DType::F32)?.to_vec1()?;
        Ok(())
    }

    // The lock is held for plain copies alone; were one to panic, the numbers are still numbers.
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Running> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Running> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unknown(name: &str) -> ModelError {
    ModelError::UnknownTensor {
        name: name.to_owned(),
        hint: " in this module".to_owned(),
    }
}

fn check_shape(name: &str, expected: &[usize], value: &Tensor) -> Result<()> {
    if value.dims() == expected {
        return Ok(());
    }
    Err(ModelError::WrongShape {
        name: name.to_owned(),
        expected: expected.to_vec(),
        found: value.dims().to_vec(),
        hint: String::new(),
    })
}

/// How a parameter starts.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Init {
    Constant(f32),
    /// Normal with this standard deviation.
    Normal(f64),
    /// Uniform within plus and minus this bound.
    Uniform(f64),
}

impl Init {
    fn sample(self, rng: &mut ChaCha8Rng) -> f32 {
        match self {
            Self::Constant(value) => value,
            // Box and Muller's transform; the second number of the pair is not used.
            Self::Normal(std) => {
                let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
                let angle = std::f64::consts::TAU * rng.random::<f64>();
                (std * radius * angle.cos()) as f32
            }
            Self::Uniform(bound) => (bound * (2.0 * rng.random::<f64>() - 1.0)) as f32,
        }
    }
}

/// Collects the parameters and batch norms of a module while it is described.
#[derive(Debug)]
pub(crate) struct Builder {
    /// `None`: parameters are counted, and have no values.
    rng: Option<ChaCha8Rng>,
    params: Vec<Param>,
    values: Vec<f32>,
    norms: Vec<RunningNorm>,
    frozen_norms: bool,
}

impl Builder {
    /// All initial values are drawn from `rng`, in the order of the parameters.
    pub(crate) fn new(rng: ChaCha8Rng) -> Self {
        Self::with(Some(rng))
    }

    /// How many numbers the parameters have that `describe` describes, none of which is drawn.
    pub(crate) fn count(describe: impl FnOnce(&mut Self) -> Result<()>) -> Result<usize> {
        let mut builder = Self::with(None);
        describe(&mut builder)?;
        Ok(builder.params.iter().map(Param::elements).sum())
    }

    fn with(rng: Option<ChaCha8Rng>) -> Self {
        Self {
            rng,
            params: Vec::new(),
            values: Vec::new(),
            norms: Vec::new(),
            frozen_norms: false,
        }
    }

    /// The scales and shifts of batch norms described from now on are not trained.
    pub(crate) fn freeze_norms(&mut self) {
        self.frozen_norms = true;
    }

    /// The scale or shift of a batch norm.
    pub(crate) fn affine(&mut self, name: String, shape: &[usize], value: f32) -> ParamId {
        let id = self.param(name, shape, false, Init::Constant(value));
        self.params[id.0].trained = !self.frozen_norms;
        id
    }

    pub(crate) fn param(
        &mut self,
        name: String,
        shape: &[usize],
        decay: bool,
        init: Init,
    ) -> ParamId {
        let param = Param {
            name,
            shape: shape.to_vec(),
            offset: self.values.len(),
            decay,
            trained: true,
        };
        if let Some(rng) = &mut self.rng {
            let drawn = (0..param.elements()).map(|_| init.sample(rng));
            self.values.extend(drawn);
        }
        self.params.push(param);
        ParamId(self.params.len() - 1)
    }

    pub(crate) fn norm(&mut self, name: &str, channels: usize) -> NormId {
        self.norms.push(RunningNorm {
            name: name.to_owned(),
            mean: vec![0.0; channels],
            var: vec![1.0; channels],
            batches: 0,
        });
        NormId(self.norms.len() - 1)
    }

    pub(crate) fn finish(self, device: &Device) -> Result<(ParamSet, Buffers)> {
        let len = self.values.len();
        let var = Var::from_tensor(&Tensor::from_vec(self.values, len, device)?)?;
        let params = self.params.into();
        Ok((
            ParamSet {
                var,
                params,
                watch: Watch::default(),
                collected: Collected::default(),
            },
            Buffers(Arc::new(RwLock::new(Running {
                norms: self.norms,
                ..Running::default()
            }))),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Statistics that a device adds up for later are those that are added at once.
    #[test]
    fn statistics_that_wait_are_those_that_do_not() {
        let buffers = || {
            let mut builder = Builder::with(None);
            builder.norm("a", 3);
            builder.norm("b", 2);
            builder.finish(&Device::Cpu).unwrap().1
        };
        let (now, later) = (buffers(), buffers());
        let numbers = |seed, len| Tensor::from_vec(benches::fill(seed, len), len, &Device::Cpu);
        for pass in 0..7 {
            // The last passes leave one out.
            let norms = [(0, 3), (1, 2)]
                .into_iter()
                .take(if pass < 5 { 2 } else { 1 });
            let seen = norms.map(|(norm, channels)| Seen {
                norm: NormId(norm),
                channels,
                rows: 5 + norm + pass as usize % 2,
            });
            let seen: Vec<Seen> = seen.collect();
            let both = numbers(10 * pass, Seen::numbers(&seen)).unwrap();
            now.see(&seen, &both, false).unwrap();
            later.add_ahead(&seen, &both).unwrap();
        }
        assert!(later.read().ahead.is_some());
        let (now, later) = (now.entries().unwrap(), later.entries().unwrap());
        for ((name, now), (_, later)) in now.iter().zip(&later) {
            let flat = |t: &Tensor| t.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
            for (now, later) in flat(now).unwrap().iter().zip(flat(later).unwrap()) {
                assert!((now - later).abs() < 1e-6, "{name}: {now}, later {later}");
            }
        }
    }
}
