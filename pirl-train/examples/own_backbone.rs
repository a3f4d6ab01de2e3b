//! A backbone of one's own, made of `candle_nn`'s layers: a small vision transformer.
//!
//!     cargo run --release -p pirl-train --example own_backbone -- FOLDER
mod support;

use candle_core::{DType, Device, Tensor};
use candle_nn::{
    Conv2d, Conv2dConfig, Linear, Module, VarBuilder, VarMap, conv2d, linear, ops::softmax,
};
use pirl_model::{Backbone, Mode, ModelError, ParamSet, Trainable};
use pirl_train::{Learner, Pirl};

const WIDTH: usize = 48;

/// Patches of 4 x 4 pixels, and blocks in which each attends to all others.
struct Transformer {
    variables: VarMap,
    patches: Conv2d,
    blocks: Vec<[Linear; 4]>,
}

impl Transformer {
    fn new(device: &Device) -> Result<Self, ModelError> {
        let variables = VarMap::new();
        let vb = VarBuilder::from_varmap(&variables, DType::F32, device);
        let config = Conv2dConfig { stride: 4, ..Default::default() };
        let block = |number: usize| -> candle_core::Result<_> {
            let layer = |name: &str, inputs, outputs| {
                linear(inputs, outputs, vb.pp(format!("block{number}.{name}")))
            };
            Ok([
                layer("attend", WIDTH, 3 * WIDTH)?,
                layer("project", WIDTH, WIDTH)?,
                layer("expand", WIDTH, 2 * WIDTH)?,
                layer("contract", 2 * WIDTH, WIDTH)?,
            ])
        };
        let blocks = (0..2).map(block).collect::<candle_core::Result<_>>()?;
        Ok(Self { patches: conv2d(3, WIDTH, 4, config, vb.pp("patches"))?, blocks, variables })
    }
}

/// What checkpoints and optimisers need: the variables, by name.
impl Trainable for Transformer {
    fn parameter_sets(&self) -> Vec<ParamSet> {
        ParamSet::of_var_map(&self.variables)
    }
}

/// What training and probes need: features of images.
impl Backbone for Transformer {
    fn feature_dim(&self) -> usize {
        WIDTH
    }

    fn forward(&self, images: &Tensor, _: Mode) -> Result<Tensor, ModelError> {
        let mut x = self.patches.forward(images)?.flatten_from(2)?.t()?.contiguous()?;
        for [attend, project, expand, contract] in &self.blocks {
            let all = attend.forward(&normalise(&x)?)?;
            let part = |number| all.narrow(2, number * WIDTH, WIDTH)?.contiguous();
            let scores = (part(0)?.matmul(&part(1)?.t()?)? / (WIDTH as f64).sqrt())?;
            x = (&x + project.forward(&softmax(&scores, 2)?.matmul(&part(2)?)?)?)?;
            x = (&x + contract.forward(&expand.forward(&normalise(&x)?)?.gelu()?)?)?;
        }
        Ok(normalise(&x)?.mean(1)?)
    }
}

/// Layer norm without scale and shift; `candle_nn`'s fused one has no backward pass.
fn normalise(x: &Tensor) -> candle_core::Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(2)?)?;
    centred.broadcast_div(&(centred.sqr()?.mean_keepdim(2)? + 1e-6)?.sqrt()?)
}

fn main() -> support::Result<()> {
    let (images, jigsaw) = (support::images()?, support::jigsaw()?);
    let objective = Pirl::builder(images.len(), jigsaw.views()).negatives(images.len() - 1);
    let learner = Learner::builder(Transformer::new, objective.build()?).build()?;
    support::train(learner, support::loader(images, Some(jigsaw))?)
}
