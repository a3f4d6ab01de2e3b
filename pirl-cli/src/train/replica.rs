//! The networks on one device, and what they do with a part of a batch.

use std::sync::Arc;

use anyhow::{Context, Result};
use candle_core::{D, Device, Tensor};
use pirl_data::{Batch, Normalize};
use pirl_loss::{ContrastiveLoss, Negatives, cross_entropy};
use pirl_model::{
    Backbone, Buffers, ClassifierHead, Head, Mode, ParamSet, ProjectionHead, ResNet, Upload,
};

const HEAD_F: &str = "head.f.";
const HEAD_G: &str = "head.g.";
const HEAD_COVARIANT: &str = "head.covariant.";
const HEAD_SUPERVISED: &str = "head.supervised.";

/// The networks on one device.
pub(crate) struct Replica {
    pub(crate) backbone: ResNet,
    pub(crate) heads: Heads,
    /// Makes numbers of the views.
    pub(crate) normalize: Normalize,
    pub(crate) upload: Upload,
}

/// What stands on the backbone.
pub(crate) enum Heads {
    Invariant {
        /// f, for the image.
        f: ProjectionHead,
        /// g, for its transformed copy; `None` for NPID.
        g: Option<Box<dyn Head>>,
    },
    Covariant(ClassifierHead),
    Supervised(ClassifierHead),
}

/// A module as checkpoints name it.
pub(crate) struct Module<'a> {
    /// Empty for the backbone, so that its names are torchvision's.
    pub(crate) prefix: &'static str,
    pub(crate) parameters: &'a ParamSet,
    pub(crate) buffers: &'a Buffers,
}

/// A part of a batch, and what is to be learnt from it.
pub(crate) struct Part {
    pub(crate) batch: Batch,
    /// Its share of the batch's images.
    pub(crate) weight: f64,
    pub(crate) goal: Goal,
}

/// What a part is to be brought nearer to.
pub(crate) enum Goal {
    /// Rows of the bank.
    Rows {
        rows: Rows,
        loss: Arc<dyn ContrastiveLoss>,
        /// Weight of the transformed copy's term.
        lambda: f64,
    },
    /// The number of the transformation, which the batch says.
    Transformation,
    /// The label of each image.
    Labels(Vec<u32>),
}

/// The rows of the bank that the embeddings of a part of a batch are compared with.
pub(crate) struct Rows {
    /// m_I of each image.
    pub(crate) own: Tensor,
    /// One draw for the batch, and for both terms.
    pub(crate) negatives: Negatives,
}

/// What came of a part. The losses are means over it, and still on the device.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) weight: f64,
    /// The images, by their places in the pack.
    pub(crate) indices: Vec<u32>,
    /// Of the transformed copies.
    pub(crate) patch: Option<Tensor>,
    pub(crate) image: Option<Tensor>,
    /// Of telling transformations or labels.
    pub(crate) class: Option<Tensor>,
    /// f of each image, without history.
    pub(crate) embeddings: Option<Tensor>,
    /// Images whose label was told.
    pub(crate) hits: usize,
}

impl Replica {
    pub(crate) fn device(&self) -> &Device {
        self.upload.device()
    }

    /// The networks' modules, in the order of the optimiser.
    pub(crate) fn modules(&self) -> Vec<Module<'_>> {
        fn module<'a>(prefix: &'static str, head: &'a dyn Head) -> Module<'a> {
            Module {
                prefix,
                parameters: head.parameters(),
                buffers: head.buffers(),
            }
        }
        let mut modules = vec![Module {
            prefix: "",
            parameters: self.backbone.parameters(),
            buffers: self.backbone.buffers(),
        }];
        modules.extend(
            self.heads
                .named()
                .into_iter()
                .map(|(prefix, head)| module(prefix, head)),
        );
        modules
    }

    /// The parameters of all modules.
    pub(crate) fn parameters(&self) -> Vec<ParamSet> {
        let modules = self.modules().into_iter();
        modules.map(|module| module.parameters.clone()).collect()
    }

    /// Differentiates the part's share of the batch's loss. The loss is a sum over the two views, none
    /// of which needs the other's embedding, so `descend` is given one after the other, and memory
    /// holds the maps of one.
    pub(crate) fn differentiate(
        &mut self,
        part: Part,
        descend: &mut dyn FnMut(&Tensor) -> Result<()>,
    ) -> Result<Outcome> {
        let weight = part.weight;
        let mut outcome = Outcome {
            weight,
            ..Outcome::default()
        };
        let batch = &part.batch;
        let mut share = |loss: &Tensor, of: f64| descend(&(loss * (of * weight))?);
        match part.goal {
            Goal::Rows { rows, loss, lambda } => {
                let compare = |view: &Tensor| loss.forward(view, &rows.own, &rows.negatives);
                // The transformed copies go first, as in VISSL: both passes move batch norm's running
                // statistics, and the images' is to be the last.
                if let Some(view) = self.embed_transformed(batch, Mode::Train)? {
                    let loss = compare(&view)?;
                    share(&loss, lambda)?;
                    outcome.patch = Some(loss.detach());
                }
                let view = self.embed_images(batch, Mode::Train)?;
                let loss = compare(&view)?;
                let others = outcome.patch.as_ref().map_or(0.0, |_| lambda);
                share(&loss, 1.0 - others)?;
                outcome.image = Some(loss.detach());
                outcome.embeddings = Some(view.detach());
            }
            Goal::Transformation => {
                let logits = self.embed_transformed(batch, Mode::Train)?;
                let logits = logits.context("there is no transformation to predict")?;
                let loss = cross_entropy(&logits, &batch.targets)?;
                share(&loss, 1.0)?;
                outcome.class = Some(loss.detach());
            }
            Goal::Labels(labels) => {
                let logits = self.embed_images(batch, Mode::Train)?;
                let loss = cross_entropy(&logits, &labels)?;
                share(&loss, 1.0)?;
                outcome.hits = hits(&logits, &labels)?;
                outcome.class = Some(loss.detach());
            }
        }
        outcome.indices = part.batch.indices;
        Ok(outcome)
    }

    /// I through phi and the head of images.
    pub(crate) fn embed_images(&mut self, batch: &Batch, mode: Mode) -> Result<Tensor> {
        let view = self.upload.send(&batch.images)?;
        let view = self.normalize.apply(&view, self.upload.device())?;
        let features = self.backbone.forward(&view, mode)?;
        Ok(match &self.heads {
            Heads::Invariant { f, .. } => f.forward(&features, mode)?,
            Heads::Covariant(head) | Heads::Supervised(head) => head.forward(&features, mode)?,
        })
    }

    /// I^t through phi and the head of transformed copies; `None` if nothing is learnt from them.
    pub(crate) fn embed_transformed(
        &mut self,
        batch: &Batch,
        mode: Mode,
    ) -> Result<Option<Tensor>> {
        let head: &dyn Head = match &self.heads {
            Heads::Invariant { g: Some(g), .. } => g.as_ref(),
            Heads::Covariant(head) => head,
            Heads::Invariant { g: None, .. } | Heads::Supervised(_) => return Ok(None),
        };
        let views = batch.transformed.as_ref();
        let views = views.context("the loader made no transformed views")?;
        let view = self.upload.send(views)?;
        let view = self.normalize.apply(&view, self.upload.device())?;
        let features = self.backbone.forward(&view, mode)?;
        Ok(Some(head.forward(&features, mode)?))
    }
}

impl Heads {
    /// The heads as checkpoints name them.
    pub(crate) fn named(&self) -> Vec<(&'static str, &dyn Head)> {
        match self {
            Self::Invariant { f, g } => {
                let mut heads: Vec<(_, &dyn Head)> = vec![(HEAD_F, f)];
                heads.extend(g.as_deref().map(|g| (HEAD_G, g)));
                heads
            }
            Self::Covariant(head) => vec![(HEAD_COVARIANT, head)],
            Self::Supervised(head) => vec![(HEAD_SUPERVISED, head)],
        }
    }
}

/// How many rows of `logits` are greatest at their label.
fn hits(logits: &Tensor, labels: &[u32]) -> Result<usize> {
    let told: Vec<u32> = logits.argmax(D::Minus1)?.to_vec1()?;
    Ok(told.iter().zip(labels).filter(|(a, b)| a == b).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_are_rows_greatest_at_their_label() {
        let logits = Tensor::new(&[[0f32, 2.0, 1.0], [3.0, -1.0, 0.0]], &Device::Cpu).unwrap();
        assert_eq!(hits(&logits, &[1, 2]).unwrap(), 1);
        assert_eq!(hits(&logits, &[1, 0]).unwrap(), 2);
    }
}
