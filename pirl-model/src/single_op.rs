//! A single op, run by the engines that run networks.

use candle_core::{DType, Device, Tensor, Var};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::engine::{Conv, Engine, Linear, Network, Norm, Traced};
use crate::error::Result;
use crate::layer::Layer;
use crate::mode::Mode;
use crate::ops::conv2d::Winograd;
use crate::params::{Builder, Init, ParamSet};
use pirl_core::Ops;

/// One op of a network, to be compared with what another device or implementation makes of it.
///
/// ```
/// use candle_core::Device;
/// use pirl_model::{Mode, Ops, SingleOp};
///
/// let run = |ops| SingleOp::AveragePool.run(&[2, 5, 3, 4], Mode::Train, ops, &Device::Cpu);
/// let (fast, reference) = (run(Ops::Fast)?, run(Ops::Reference)?);
/// for ((name, fast), (_, reference)) in fast.iter().zip(&reference) {
///     let near = fast.iter().zip(reference).all(|(a, b)| (a - b).abs() < 1e-5);
///     assert!(near, "{name}");
/// }
/// # Ok::<(), pirl_model::ModelError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SingleOp {
    /// A square convolution, padded by half its kernel, and the batch norm that follows it in every
    /// network here.
    ConvNorm {
        /// Channels of the output.
        channels: usize,
        /// Height and width of the kernel.
        kernel: usize,
        /// Its stride, pixels.
        stride: usize,
        /// Whether the output is rectified.
        relu: bool,
    },
    /// Batch norm of maps or of vectors.
    BatchNorm {
        /// Whether the input itself is added afterwards, as a shortcut.
        residual: bool,
        /// Whether the output is rectified.
        relu: bool,
    },
    /// 3x3 windows, stride 2, padding 1.
    MaxPool,
    /// Over whole maps.
    AveragePool,
    /// With a bias.
    Linear {
        /// Length of the output vectors.
        outputs: usize,
    },
    /// The positive part.
    Relu,
}

impl SingleOp {
    /// Runs it on random numbers, the same ones for the same `shape` everywhere, and differentiates a
    /// random weighting of its output. Returns numbers by name: the output, the gradients of the
    /// input and of the parameters unless `mode` records none, and the running statistics.
    ///
    /// # Shapes
    /// `shape`: `(n, c, h, w)`, or `(n, c)` for ops on vectors.
    ///
    /// # Errors
    /// Only if Candle cannot run it.
    pub fn run(
        self,
        shape: &[usize],
        mode: Mode,
        ops: Ops,
        device: &Device,
    ) -> Result<Vec<(&'static str, Vec<f32>)>> {
        let mut builder = Builder::new(ChaCha8Rng::seed_from_u64(1));
        let network = Alone::new(self, shape, &mut builder);
        let traced = Traced::new(network, builder, ops, Winograd::Auto, device)?;
        if self.has_norm() {
            // Scales, shifts and statistics start as numbers that would hide a mistake.
            let set = traced.params().var();
            set.set(&(set.as_detached_tensor() + random(2, &[set.elem_count()], device)?)?)?;
            for (seed, (name, running)) in (3..).zip(traced.buffers().entries()?) {
                let noise = match name.rsplit_once('.') {
                    Some((_, "running_mean")) => random(seed, running.dims(), &Device::Cpu)?,
                    Some((_, "running_var")) => {
                        random(seed, running.dims(), &Device::Cpu)?.sqr()?
                    }
                    _ => continue,
                };
                traced.buffers().set(&name, &(running + noise)?)?;
            }
        }
        let x = Var::from_tensor(&random(7, shape, device)?)?;
        let out = traced.forward(&x, mode)?;
        let mut numbers = vec![("output", host(&out)?)];
        if mode.records() {
            let weighted = (&out * random(8, out.dims(), device)?)?.sum_all()?;
            let gradients = weighted.backward()?;
            let of = |tensor: &Tensor| gradients.get(tensor).map(host).transpose();
            numbers.extend(of(&x)?.map(|dx| ("input gradient", dx)));
            if self.has_norm() || matches!(self, Self::Linear { .. }) {
                let of_parameters = of(traced.params().var().as_tensor())?;
                numbers.extend(of_parameters.map(|d| ("parameter gradient", d)));
            }
        }
        let mut statistics = Vec::new();
        for (_, running) in traced.buffers().entries()? {
            statistics.extend(host(&running)?);
        }
        numbers.push(("running statistics", statistics));
        Ok(numbers)
    }

    fn has_norm(self) -> bool {
        matches!(self, Self::ConvNorm { .. } | Self::BatchNorm { .. })
    }
}

/// Normal numbers with standard deviation 0.5, made on the CPU.
fn random(seed: u64, shape: &[usize], device: &Device) -> Result<Tensor> {
    let count: usize = shape.iter().product();
    let set = ParamSet::normal(seed, &[("random", &[count, 1], 0.5)], &Device::Cpu)?;
    Ok(set.get("random")?.reshape(shape)?.to_device(device)?)
}

fn host(x: &Tensor) -> Result<Vec<f32>> {
    Ok(x.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?)
}

/// A network of one op.
struct Alone {
    op: SingleOp,
    /// Whether the output is maps.
    maps: bool,
    conv: Option<Conv>,
    norm: Option<Norm>,
    linear: Option<Linear>,
}

impl Alone {
    fn new(op: SingleOp, shape: &[usize], builder: &mut Builder) -> Self {
        let c = shape.get(1).copied().unwrap_or(1);
        let pools = matches!(op, SingleOp::AveragePool);
        let (mut conv, mut norm, mut linear) = (None, None, None);
        match op {
            SingleOp::ConvNorm {
                channels,
                kernel,
                stride,
                ..
            } => {
                conv = Some(Conv::new(builder, "conv", (c, channels), kernel, stride));
                norm = Some(Norm::new(builder, "norm", channels));
            }
            SingleOp::BatchNorm { .. } => norm = Some(Norm::new(builder, "norm", c)),
            SingleOp::Linear { outputs } => linear = Some(Linear::new(builder, "fc", c, outputs)),
            // An engine's parameters are one tensor, which cannot be empty.
            SingleOp::MaxPool | SingleOp::AveragePool | SingleOp::Relu => {
                builder.param("unused".to_owned(), &[1], false, Init::Constant(0.0));
            }
        }
        Self {
            op,
            maps: shape.len() == 4 && !pools,
            conv,
            norm,
            linear,
        }
    }
}

impl Network for Alone {
    fn returns_maps(&self) -> bool {
        self.maps
    }

    fn forward<E: Engine>(
        &self,
        engine: &mut E,
        x: &E::Value,
        _: &mut dyn FnMut(Layer, &E::Value),
    ) -> Result<E::Value> {
        match (self.op, &self.conv, &self.norm, &self.linear) {
            (SingleOp::ConvNorm { relu, .. }, Some(conv), Some(norm), _) => {
                engine.conv_norm(conv, norm, x, None, relu)
            }
            (SingleOp::BatchNorm { residual, relu }, _, Some(norm), _) => {
                engine.batch_norm(norm, x, residual.then_some(x), relu)
            }
            (SingleOp::Linear { .. }, _, _, Some(linear)) => engine.linear(linear, x),
            (SingleOp::MaxPool, ..) => engine.max_pool(x),
            (SingleOp::AveragePool, ..) => engine.average_pool(x),
            _ => engine.relu(x),
        }
    }
}
