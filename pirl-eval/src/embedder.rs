//! A backbone with the head f on it, read like any other layer.

use candle_core::Tensor;
use pirl_model::{
    Backbone, Buffers, Head, Layer, Mode, ModelError, ParamSet, Precision, ProjectionHead, ResNet,
    Trainable,
};

/// A ResNet and the head f of its pre-training, whose embeddings are one more layer,
/// [`Embedder::EMBEDDING`]: what the loss compared, rows of unit length. Everything that reads features
/// can so read them.
pub struct Embedder {
    backbone: ResNet,
    head: ProjectionHead,
}

impl Embedder {
    /// f of the average-pooled last maps: a map of one pixel.
    pub const EMBEDDING: &'static str = "embedding";

    /// `head` on `backbone`.
    pub fn new(backbone: ResNet, head: ProjectionHead) -> Self {
        Self { backbone, head }
    }

    fn embed(&self, features: &Tensor, mode: Mode) -> Result<Tensor, ModelError> {
        self.head.forward(features, mode)
    }
}

impl Trainable for Embedder {
    fn parameter_sets(&self) -> Vec<ParamSet> {
        [self.backbone.parameter_sets(), self.head.parameter_sets()].concat()
    }

    fn buffer_sets(&self) -> Vec<Buffers> {
        [self.backbone.buffer_sets(), self.head.buffer_sets()].concat()
    }
}

impl Backbone for Embedder {
    fn feature_dim(&self) -> usize {
        self.head
            .parameters()
            .params()
            .last()
            .map_or(0, |bias| bias.elements())
    }

    fn forward(&self, images: &Tensor, mode: Mode) -> Result<Tensor, ModelError> {
        self.embed(&self.backbone.forward(images, mode)?, mode)
    }

    fn layers(&self) -> Vec<Layer> {
        let mut layers = self.backbone.layers();
        layers.push(Layer::new(Self::EMBEDDING));
        layers
    }

    fn feature_maps(
        &self,
        images: &Tensor,
        layers: &[Layer],
    ) -> Result<Vec<(Layer, Tensor)>, ModelError> {
        let embedding = Layer::new(Self::EMBEDDING);
        if !layers.contains(&embedding) {
            return self.backbone.feature_maps(images, layers);
        }
        let mut inner: Vec<Layer> = layers.to_vec();
        inner.retain(|layer| *layer != embedding && *layer != Layer::RES5_AVG);
        inner.push(Layer::RES5_AVG);
        let mut maps = self.backbone.feature_maps(images, &inner)?;
        let average = maps.iter().find(|(layer, _)| *layer == Layer::RES5_AVG);
        let average = average.map(|(_, map)| map.flatten_from(1)).transpose()?;
        let Some(average) = average else {
            return Err(ModelError::NoLayer {
                layer: Layer::RES5_AVG,
                known: self.backbone.layers(),
            });
        };
        let rows = self.embed(&average, Mode::Eval)?.detach();
        maps.retain(|(layer, _)| layers.contains(layer));
        maps.push((embedding, rows.unsqueeze(2)?.unsqueeze(3)?));
        Ok(maps)
    }

    fn set_precision(&mut self, precision: Precision) -> Result<(), ModelError> {
        self.backbone.set_precision(precision)
    }
}
