//! Training with labels: the row that every table compares with.

use candle_core::{D, Device, Tensor};
use pirl_core::Ops;
use pirl_data::Batch;
use pirl_loss::cross_entropy;
use pirl_model::{ClassifierHead, Head, Mode, ModelConfig, ModelError};

use super::{HeadFactory, Module, Objective, PartOutcome, Terms};
use crate::error::{Result, TrainError};
use crate::networks::Networks;
use crate::streams::Stream;
use crate::training::Metric;

/// Cross-entropy on the labels of the images.
pub struct Supervised {
    /// Of every image of the pack.
    labels: Vec<u32>,
    head: HeadFactory,
}

impl Supervised {
    /// `labels`: one below `classes` for each image of the pack; the head is a linear
    /// [`ClassifierHead`] that starts from `seed`.
    pub fn new(labels: Vec<u32>, classes: usize, seed: u64, ops: Ops) -> Self {
        Self::with_head(labels, move |features, device| {
            let config = ModelConfig {
                ops,
                ..ModelConfig::default()
            };
            let seed = Stream::Head.seed(seed);
            ClassifierHead::new(&config, features, 1, classes, seed, device)
        })
    }

    /// With a head of one's own, from features `(b, features)` to logits `(b, classes)`; called once
    /// for each device, it must make the same each time.
    pub fn with_head<H: Head + 'static>(
        labels: Vec<u32>,
        head: impl Fn(usize, &Device) -> std::result::Result<H, ModelError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            labels,
            head: super::boxed(head),
        }
    }
}

impl Objective for Supervised {
    type Heads = Box<dyn Head>;
    /// The labels of the part's images.
    type Target = Vec<u32>;
    /// Images whose class was predicted correctly.
    type Outcome = usize;

    fn heads(&self, features: usize, device: &Device) -> Result<Box<dyn Head>> {
        Ok((self.head)(features, device)?)
    }

    fn modules(head: &Box<dyn Head>) -> Vec<Module<'_>> {
        vec![("head.supervised.", head.as_ref())]
    }

    fn target(&mut self, part: &Batch, _: &Device) -> Result<Vec<u32>> {
        let label = |&index: &u32| {
            let label = self.labels.get(index as usize).copied();
            label.ok_or(TrainError::NoLabel {
                index,
                labels: self.labels.len(),
            })
        };
        part.indices.iter().map(label).collect()
    }

    fn forward(
        networks: &mut Networks<Box<dyn Head>>,
        part: &Batch,
        labels: Vec<u32>,
        terms: &mut Terms<'_>,
    ) -> Result<usize> {
        let features = networks.image_features(part, Mode::Train)?;
        let logits = networks.heads().forward(&features, Mode::Train)?;
        terms.add("loss_class", 1.0, &cross_entropy(&logits, &labels)?)?;
        correct(&logits, &labels)
    }

    fn end_step(
        &mut self,
        outcomes: Vec<PartOutcome<usize>>,
    ) -> Result<Vec<(&'static str, Metric)>> {
        let correct: usize = outcomes.iter().map(|part| part.outcome).sum();
        let images: usize = outcomes.iter().map(|part| part.indices.len()).sum();
        let top1 = 100.0 * correct as f32 / images.max(1) as f32;
        Ok(vec![("top1", Metric::Real(top1))])
    }
}

/// How many rows of `logits` are greatest at their label.
fn correct(logits: &Tensor, labels: &[u32]) -> Result<usize> {
    let predicted: Vec<u32> = logits.argmax(D::Minus1)?.to_vec1()?;
    Ok(predicted.iter().zip(labels).filter(|(a, b)| a == b).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_correct_if_it_is_greatest_at_its_label() {
        let logits = Tensor::new(&[[0f32, 2.0, 1.0], [3.0, -1.0, 0.0]], &Device::Cpu).unwrap();
        assert_eq!(correct(&logits, &[1, 2]).unwrap(), 1);
        assert_eq!(correct(&logits, &[1, 0]).unwrap(), 2);
    }
}
