//! Networks are written once, over [`Engine`]; what runs them is chosen at run time.
//!
//! [`Tape`](tape::Forward) is the fast path of CPUs: plain buffers, the kernels of [`crate::ops`],
//! and a backward pass of its own, so that a whole network is a single node of Candle's graph. In
//! evaluations, which record nothing, it folds each batch norm into the convolution before it.
//! [`device`] is the fast path of GPUs: the same on tensors. [`Composed`](composed::Composed) builds the
//! same network from Candle's own differentiable ops, on any device: the reference.

mod buffer;
mod composed;
mod cut;
mod device;
mod tape;
mod traced;

use crate::error::Result;
use crate::layer::Layer;
use crate::params::{Builder, Init, NormId, ParamId};

pub(crate) use traced::Traced;

/// Why a pass has no gradient.
const DIFFERENTIATED: &str =
    "this forward pass was already differentiated: its buffers are gone, run it again";

/// What a network is made of. Values are batches of maps or of vectors. A layer with parameters is used once in a
/// pass.
pub(crate) trait Engine {
    /// A batch of maps `(n, c, h, w)` or of vectors `(n, c)`, in the engine's own layout.
    type Value: Clone;

    /// A convolution, then [`Engine::batch_norm`] of it.
    fn conv_norm(
        &mut self,
        conv: &Conv,
        norm: &Norm,
        x: &Self::Value,
        residual: Option<&Self::Value>,
        relu: bool,
    ) -> Result<Self::Value>;
    /// Batch norm, then `residual` added, then ReLU if asked.
    fn batch_norm(
        &mut self,
        layer: &Norm,
        x: &Self::Value,
        residual: Option<&Self::Value>,
        relu: bool,
    ) -> Result<Self::Value>;
    /// The maximum of each 3x3 window, stride 2, padding 1.
    fn max_pool(&mut self, x: &Self::Value) -> Result<Self::Value>;
    /// The mean over a map: `(n, c, h, w)` to `(n, c)`.
    fn average_pool(&mut self, x: &Self::Value) -> Result<Self::Value>;
    /// `x * weight^T + bias` on vectors.
    fn linear(&mut self, layer: &Linear, x: &Self::Value) -> Result<Self::Value>;
    /// The positive part.
    fn relu(&mut self, x: &Self::Value) -> Result<Self::Value>;
    /// Joins `group` consecutive vectors into one: `(n * group, c)` to `(n, group * c)`.
    fn join(&mut self, x: &Self::Value, group: usize) -> Result<Self::Value>;
}

/// A network over any engine.
pub(crate) trait Network: Send + Sync + 'static {
    /// Whether the output is a batch of maps, which a fast engine cannot tell from vectors.
    fn returns_maps(&self) -> bool {
        false
    }

    /// `(n, c, h, w)` or `(n, c)` to `(n, c')`, or to `(n, c', h', w')` if it returns maps; `show`
    /// sees the maps other code may want to read.
    fn forward<E: Engine>(
        &self,
        engine: &mut E,
        x: &E::Value,
        show: &mut dyn FnMut(Layer, &E::Value),
    ) -> Result<E::Value>;
}

/// A square convolution without bias.
#[derive(Clone, Debug)]
pub(crate) struct Conv {
    pub(crate) weight: ParamId,
    pub(crate) c_in: usize,
    pub(crate) c_out: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) padding: usize,
}

impl Conv {
    /// Padded by half the kernel; starts as torchvision's ResNets do, Kaiming-normal by fan-out.
    pub(crate) fn new(
        builder: &mut Builder,
        name: &str,
        (c_in, c_out): (usize, usize),
        kernel: usize,
        stride: usize,
    ) -> Self {
        let std = (2.0 / (c_out * kernel * kernel) as f64).sqrt();
        let shape = [c_out, c_in, kernel, kernel];
        let weight = builder.param(format!("{name}.weight"), &shape, true, Init::Normal(std));
        Self {
            weight,
            c_in,
            c_out,
            kernel,
            stride,
            padding: kernel / 2,
        }
    }
}

/// Batch norm with scale and shift.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    pub(crate) weight: ParamId,
    pub(crate) bias: ParamId,
    pub(crate) stats: NormId,
}

impl Norm {
    pub(crate) const EPS: f32 = 1e-5; // torch.nn.BatchNorm2d's default

    pub(crate) fn new(builder: &mut Builder, name: &str, channels: usize) -> Self {
        let mut param = |field: &str, value: f32| {
            let name = format!("{name}.{field}");
            builder.affine(name, &[channels], value)
        };
        let (weight, bias) = (param("weight", 1.0), param("bias", 0.0));
        Self {
            weight,
            bias,
            stats: builder.norm(name, channels),
        }
    }
}

/// A linear layer with bias.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    pub(crate) weight: ParamId,
    pub(crate) bias: ParamId,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
}

impl Linear {
    /// Starts as `torch.nn.Linear` does: weight and bias uniform within `1 / sqrt(inputs)`.
    pub(crate) fn new(builder: &mut Builder, name: &str, inputs: usize, outputs: usize) -> Self {
        let init = Init::Uniform(1.0 / (inputs as f64).sqrt());
        Self {
            weight: builder.param(format!("{name}.weight"), &[outputs, inputs], true, init),
            bias: builder.param(format!("{name}.bias"), &[outputs], false, init),
            inputs,
            outputs,
        }
    }
}
