//! A small ConvNeXt (Liu et al., arXiv:2201.03545) of `candle_nn`'s layers.

use candle_core::{DType, Device, Tensor};
use candle_nn::{
    Conv2d, Conv2dConfig, GroupNorm, Linear, Module, VarBuilder, VarMap, conv2d, group_norm, linear,
};
use pirl_model::{Backbone, Layer, Mode, ModelError, ParamSet, Trainable};

const WIDTH: usize = 12;

pub(crate) struct ConvNeXt {
    variables: VarMap,
    stem: Conv2d,
    blocks: Vec<Block>,
    norm: GroupNorm,
}

/// Depthwise convolution, norm, and a network of two layers on each pixel.
struct Block {
    depthwise: Conv2d,
    norm: GroupNorm,
    expand: Linear,
    project: Linear,
}

impl Block {
    fn new(vb: VarBuilder<'_>) -> candle_core::Result<Self> {
        let config = Conv2dConfig {
            padding: 1,
            groups: WIDTH,
            ..Default::default()
        };
        Ok(Self {
            depthwise: conv2d(WIDTH, WIDTH, 3, config, vb.pp("depthwise"))?,
            norm: group_norm(1, WIDTH, 1e-6, vb.pp("norm"))?,
            expand: linear(WIDTH, 4 * WIDTH, vb.pp("expand"))?,
            project: linear(4 * WIDTH, WIDTH, vb.pp("project"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let y = self.norm.forward(&self.depthwise.forward(x)?)?;
        let pixels = y.permute((0, 2, 3, 1))?.contiguous()?;
        let pixels = self.expand.forward(&pixels)?.gelu()?;
        let y = self.project.forward(&pixels)?.permute((0, 3, 1, 2))?;
        x + y
    }
}

impl ConvNeXt {
    pub(crate) fn new(device: &Device) -> Result<Self, ModelError> {
        let variables = VarMap::new();
        let vb = VarBuilder::from_varmap(&variables, DType::F32, device);
        let patches = Conv2dConfig {
            stride: 2,
            ..Default::default()
        };
        let network = Self {
            stem: conv2d(3, WIDTH, 2, patches, vb.pp("stem"))?,
            blocks: (0..2)
                .map(|block| Block::new(vb.pp(format!("block{block}"))))
                .collect::<candle_core::Result<_>>()?,
            norm: group_norm(1, WIDTH, 1e-6, vb.pp("norm"))?,
            variables,
        };
        // Candle draws from a generator of the whole process; these tests compare networks.
        for (seed, set) in (1..).zip(network.parameter_sets()) {
            let param = &set.params()[0];
            let bound = match param.shape.as_slice() {
                [_, inputs @ ..] if !inputs.is_empty() => {
                    (3.0 / inputs.iter().product::<usize>() as f32).sqrt()
                }
                _ if param.name.ends_with("bias") => 0.0,
                _ => continue,
            };
            let values = benches::fill(seed, param.elements());
            let values = values.into_iter().map(|x| x * bound).collect();
            let value = Tensor::from_vec(values, param.shape.as_slice(), device)?;
            set.set(&param.name, &value)?;
        }
        Ok(network)
    }

    fn maps(&self, images: &Tensor) -> candle_core::Result<Vec<(Layer, Tensor)>> {
        let mut x = self.stem.forward(images)?;
        let mut maps = vec![(Layer::new("stem"), x.clone())];
        for (number, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x)?;
            maps.push((Layer::new(format!("block{number}")), x.clone()));
        }
        Ok(maps)
    }
}

impl Trainable for ConvNeXt {
    fn parameter_sets(&self) -> Vec<ParamSet> {
        ParamSet::of_var_map(&self.variables)
    }
}

impl Backbone for ConvNeXt {
    fn feature_dim(&self) -> usize {
        WIDTH
    }

    fn forward(&self, images: &Tensor, _: Mode) -> Result<Tensor, ModelError> {
        let mut maps = self.maps(images)?;
        let (_, last) = maps.pop().expect("the stem's map at least");
        Ok(self.norm.forward(&last)?.mean((2, 3))?)
    }

    fn layers(&self) -> Vec<Layer> {
        ["stem", "block0", "block1"].map(Layer::new).to_vec()
    }

    fn feature_maps(
        &self,
        images: &Tensor,
        layers: &[Layer],
    ) -> Result<Vec<(Layer, Tensor)>, ModelError> {
        let mut maps = self.maps(&images.detach())?;
        maps.retain(|(layer, _)| layers.contains(layer));
        Ok(maps)
    }
}
