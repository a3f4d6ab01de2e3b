//! The covariant baseline: to predict which transformation was applied.

use candle_core::Device;
use pirl_core::Ops;
use pirl_data::Batch;
use pirl_loss::cross_entropy;
use pirl_model::{ClassifierHead, Head, Mode, ModelConfig, ModelError};

use super::{HeadFactory, Module, Objective, PartOutcome, Terms};
use crate::error::Result;
use crate::networks::Networks;
use crate::streams::Stream;
use crate::training::Metric;

/// Cross-entropy on the label of the transformation (equation 2 of arXiv:1912.01991): the permutation
/// of a jigsaw out of a fixed set, the rotation.
pub struct Covariant {
    head: HeadFactory,
}

impl Covariant {
    /// Of a pretext task with `views` of an image and `classes` transformations
    /// ([`Pretext::views`](pirl_data::Pretext::views) and
    /// [`Pretext::labels`](pirl_data::Pretext::labels)); its head is a [`ClassifierHead`] that starts
    /// from `seed`.
    pub fn new(views: usize, classes: usize, seed: u64, ops: Ops) -> Self {
        Self::with_head(move |features, device| {
            let config = ModelConfig {
                ops,
                ..ModelConfig::default()
            };
            let seed = Stream::Head.seed(seed);
            ClassifierHead::new(&config, features, views, classes, seed, device)
        })
    }

    /// With a head of one's own, from features `(b * views, features)` to logits `(b, classes)`; called
    /// once for each device, it must make the same each time.
    pub fn with_head<H: Head + 'static>(
        head: impl Fn(usize, &Device) -> std::result::Result<H, ModelError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            head: super::boxed(head),
        }
    }
}

impl Objective for Covariant {
    type Heads = Box<dyn Head>;
    type Target = ();
    type Outcome = ();

    fn heads(&self, features: usize, device: &Device) -> Result<Box<dyn Head>> {
        Ok((self.head)(features, device)?)
    }

    fn modules(head: &Box<dyn Head>) -> Vec<Module<'_>> {
        vec![("head.covariant.", head.as_ref())]
    }

    /// The batch has the labels of its transformations.
    fn target(&mut self, _: &Batch, _: &Device) -> Result<()> {
        Ok(())
    }

    fn forward(
        networks: &mut Networks<Box<dyn Head>>,
        part: &Batch,
        (): (),
        terms: &mut Terms<'_>,
    ) -> Result<()> {
        let features = networks.transformed_features(part, Mode::Train)?;
        let logits = networks.heads().forward(&features, Mode::Train)?;
        let loss = cross_entropy(&logits, &part.targets)?;
        terms.add("loss_class", 1.0, &loss)
    }

    fn end_step(&mut self, _: Vec<PartOutcome<()>>) -> Result<Vec<(&'static str, Metric)>> {
        Ok(Vec::new())
    }
}
