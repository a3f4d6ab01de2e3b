//! The parts that ResNets are made of: the stem, and stages of residual blocks.

use crate::config::{ModelConfig, Stem};
use crate::engine::{Conv, Engine, Norm};
use crate::error::Result;
use crate::params::Builder;

/// The convolution that sees the image.
pub(crate) struct StemConv {
    unit: Unit,
    /// Whether a max-pool follows.
    pub(crate) pool: bool,
}

/// Residual blocks of one resolution: torchvision's `layer1` to `layer4`.
pub(crate) struct Stage(Vec<Block>);

/// Channels of the maps of stage `stage`, counted from 0.
pub(crate) fn stage_channels(config: &ModelConfig, stage: usize) -> Result<usize> {
    let expansion = if config.arch.bottleneck() { 4 } else { 1 };
    Ok((config.stem_channels()? << stage) * expansion)
}

impl StemConv {
    pub(crate) fn new(config: &ModelConfig, builder: &mut Builder) -> Result<Self> {
        let width = config.stem_channels()?;
        let (kernel, stride) = match config.stem {
            Stem::Imagenet => (7, 2),
            Stem::Medium => (5, 2),
            Stem::Small => (3, 1),
        };
        Ok(Self {
            unit: Unit {
                conv: Conv::new(builder, "conv1", (config.channels, width), kernel, stride),
                norm: Norm::new(builder, "bn1", width),
            },
            pool: config.stem == Stem::Imagenet,
        })
    }

    /// The maps before any pooling.
    pub(crate) fn forward<E: Engine>(&self, engine: &mut E, images: &E::Value) -> Result<E::Value> {
        self.unit.forward(engine, images, None, true)
    }
}

impl Stage {
    /// Stage `stage`, counted from 0.
    pub(crate) fn new(config: &ModelConfig, stage: usize, builder: &mut Builder) -> Result<Self> {
        let planes = config.stem_channels()? << stage;
        let c_out = stage_channels(config, stage)?;
        let mut c_in = match stage {
            0 => config.stem_channels()?,
            _ => stage_channels(config, stage - 1)?,
        };
        let mut build = |block: usize| {
            let stride = if block == 0 && stage > 0 { 2 } else { 1 };
            let name = format!("layer{}.{block}", stage + 1);
            let build = if config.arch.bottleneck() {
                bottleneck
            } else {
                basic
            };
            let block = build(builder, &name, c_in, planes, stride);
            c_in = c_out;
            block
        };
        Ok(Self(
            (0..config.arch.blocks()[stage]).map(&mut build).collect(),
        ))
    }

    pub(crate) fn forward<E: Engine>(&self, engine: &mut E, mut x: E::Value) -> Result<E::Value> {
        for block in &self.0 {
            x = block.forward(engine, x)?;
        }
        Ok(x)
    }
}

/// A convolution and its batch norm.
struct Unit {
    conv: Conv,
    norm: Norm,
}

/// A residual block: the units of its branch, and the projection of its shortcut, if it has one.
struct Block {
    branch: Vec<Unit>,
    shortcut: Option<Unit>,
}

/// Unit `index` of a block, counted from 1 as torchvision does.
fn unit(
    builder: &mut Builder,
    block: &str,
    index: usize,
    channels: (usize, usize),
    kernel: usize,
    stride: usize,
) -> Unit {
    Unit {
        conv: Conv::new(
            builder,
            &format!("{block}.conv{index}"),
            channels,
            kernel,
            stride,
        ),
        norm: Norm::new(builder, &format!("{block}.bn{index}"), channels.1),
    }
}

/// The shortcut's projection, needed where the shape changes.
fn projection(
    builder: &mut Builder,
    block: &str,
    channels: (usize, usize),
    stride: usize,
) -> Option<Unit> {
    (stride != 1 || channels.0 != channels.1).then(|| Unit {
        conv: Conv::new(
            builder,
            &format!("{block}.downsample.0"),
            channels,
            1,
            stride,
        ),
        norm: Norm::new(builder, &format!("{block}.downsample.1"), channels.1),
    })
}

fn basic(builder: &mut Builder, name: &str, c_in: usize, planes: usize, stride: usize) -> Block {
    Block {
        branch: vec![
            unit(builder, name, 1, (c_in, planes), 3, stride),
            unit(builder, name, 2, (planes, planes), 3, 1),
        ],
        shortcut: projection(builder, name, (c_in, planes), stride),
    }
}

/// The stride is in the 3x3 convolution, as in torchvision.
fn bottleneck(
    builder: &mut Builder,
    name: &str,
    c_in: usize,
    planes: usize,
    stride: usize,
) -> Block {
    let c_out = planes * 4;
    Block {
        branch: vec![
            unit(builder, name, 1, (c_in, planes), 1, 1),
            unit(builder, name, 2, (planes, planes), 3, stride),
            unit(builder, name, 3, (planes, c_out), 1, 1),
        ],
        shortcut: projection(builder, name, (c_in, c_out), stride),
    }
}

impl Unit {
    fn forward<E: Engine>(
        &self,
        engine: &mut E,
        x: &E::Value,
        residual: Option<&E::Value>,
        relu: bool,
    ) -> Result<E::Value> {
        engine.conv_norm(&self.conv, &self.norm, x, residual, relu)
    }
}

impl Block {
    fn forward<E: Engine>(&self, engine: &mut E, x: E::Value) -> Result<E::Value> {
        let shortcut = match &self.shortcut {
            Some(unit) => unit.forward(engine, &x, None, false)?,
            None => x.clone(),
        };
        let mut x = x;
        for (i, unit) in self.branch.iter().enumerate() {
            let residual = (i + 1 == self.branch.len()).then_some(&shortcut);
            x = unit.forward(engine, &x, residual, true)?;
        }
        Ok(x)
    }
}
