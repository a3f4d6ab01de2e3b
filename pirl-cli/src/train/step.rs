//! One step of training, in the order of the paper (arXiv:1912.01991, section 3).

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use pirl_bank::{Drawn, MemoryBank, NegativeSampler};
use pirl_data::Batch;
use pirl_loss::{ContrastiveLoss, Negatives, covariant_cross_entropy, total_loss};
use pirl_model::{Backbone, ClassifierHead, Head, Mode, Optimizer, ProjectionHead, ResNet};

use super::random::Stream;

/// Everything that learns.
pub(crate) struct Learner {
    pub(crate) backbone: ResNet,
    pub(crate) task: Task,
    pub(crate) optimizer: Optimizer,
    pub(crate) device: Device,
}

/// What the backbone is trained for.
pub(crate) enum Task {
    /// To represent an image and its transformed copy alike.
    Invariant(Invariant),
    /// The covariant baseline: to tell which transformation was applied.
    Covariant(ClassifierHead),
}

/// PIRL, and NPID, which is PIRL without the transformed copy.
pub(crate) struct Invariant {
    /// f, for the image.
    pub(crate) f: ProjectionHead,
    /// g, for its transformed copy; `None` for NPID.
    pub(crate) g: Option<Box<dyn Head>>,
    pub(crate) loss: Box<dyn ContrastiveLoss>,
    /// Weight of the transformed copy's term.
    pub(crate) lambda: f64,
    pub(crate) bank: MemoryBank,
    pub(crate) sampler: Box<dyn NegativeSampler>,
    /// N.
    pub(crate) negatives: usize,
    pub(crate) seed: u64,
}

/// The losses of one step, nats.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Losses {
    pub(crate) total: f32,
    pub(crate) image: Option<f32>,
    pub(crate) patch: Option<f32>,
}

impl Learner {
    /// Does step number `step`, counted from 1, with learning rate `lr`.
    pub(crate) fn step(&mut self, batch: &Batch, step: u64, lr: f64) -> Result<Losses> {
        match &mut self.task {
            Task::Invariant(task) => {
                let views = task.embed(&self.backbone, batch, &self.device)?;
                let (loss, losses) = task.loss(&views, batch, step)?;
                descend(&mut self.optimizer, &loss, losses, step, lr)?;
                task.remember(batch, &views.image)?;
                Ok(losses)
            }
            Task::Covariant(head) => {
                let transformed = transformed(batch, &self.device)?;
                let features = self.backbone.forward(&transformed, Mode::Train)?;
                let logits = head.forward(&features, Mode::Train)?;
                let loss = covariant_cross_entropy(&logits, &batch.targets)?;
                let losses = Losses {
                    total: scalar(&loss)?,
                    image: None,
                    patch: None,
                };
                descend(&mut self.optimizer, &loss, losses, step, lr)?;
                Ok(losses)
            }
        }
    }
}

/// The embeddings of a batch, unit rows.
struct Views {
    /// v_I = f(phi(I))
    image: Tensor,
    /// v_It = g(phi(I^t))
    transformed: Option<Tensor>,
}

impl Invariant {
    /// The transformed copies go through the backbone before the images, as in VISSL: both passes
    /// move batch norm's running statistics, and the images' is to be the last.
    fn embed(&self, backbone: &ResNet, batch: &Batch, device: &Device) -> Result<Views> {
        let transformed = match &self.g {
            Some(g) => {
                let features = backbone.forward(&transformed(batch, device)?, Mode::Train)?;
                Some(g.forward(&features, Mode::Train)?)
            }
            None => None,
        };
        let features = backbone.forward(&batch.images.to_device(device)?, Mode::Train)?;
        let image = self.f.forward(&features, Mode::Train)?;
        Ok(Views { image, transformed })
    }

    /// Equation (6), with one draw of negatives for both terms.
    fn loss(&self, views: &Views, batch: &Batch, step: u64) -> Result<(Tensor, Losses)> {
        let own = self.bank.gather(&batch.indices)?; // m_I
        let negatives = self.draw(&batch.indices, step)?;
        let patch = match &views.transformed {
            Some(view) => Some(self.loss.forward(view, &own, &negatives)?),
            None => None,
        };
        let image = self.loss.forward(&views.image, &own, &negatives)?;
        let total = match &patch {
            Some(patch) => total_loss(self.lambda, patch, &image)?,
            None => image.clone(),
        };
        let losses = Losses {
            total: scalar(&total)?,
            image: Some(scalar(&image)?),
            patch: patch.as_ref().map(scalar).transpose()?,
        };
        Ok((total, losses))
    }

    /// The step's negatives depend on the seed and the step alone, so that a resumed run draws
    /// the same.
    fn draw(&self, batch: &[u32], step: u64) -> Result<Negatives> {
        let mut generator = Stream::Negatives.generator(self.seed, step);
        let drawn = self
            .sampler
            .draw(self.bank.len(), batch, self.negatives, &mut generator)?;
        Ok(match drawn {
            Drawn::Shared { indices, own } => Negatives::Shared {
                rows: self.bank.gather(&indices)?,
                own,
            },
            Drawn::PerImage { indices } => Negatives::PerImage {
                bank: self.bank.rows().clone(),
                indices,
            },
            other => anyhow::bail!("negatives of an unknown kind: {other:?}"),
        })
    }

    /// m_I <- normalise(momentum m_I + (1 - momentum) v_I), once an image.
    fn remember(&mut self, batch: &Batch, image: &Tensor) -> Result<()> {
        Ok(self.bank.update(&batch.indices, &image.detach())?)
    }
}

/// One step of the optimiser down the gradient of `loss`, unless it is no number.
fn descend(
    optimizer: &mut Optimizer,
    loss: &Tensor,
    losses: Losses,
    step: u64,
    lr: f64,
) -> Result<()> {
    ensure!(
        losses.total.is_finite(),
        "the loss of step {step} is {} (learning rate {lr}); nothing of this step was kept, and \
         earlier checkpoints are whole: go on from them with a smaller optim.lr in a new run, or \
         lengthen schedule.warmup_epochs",
        losses.total
    );
    let gradients = loss.backward()?;
    optimizer.step(&gradients, lr)?;
    Ok(())
}

fn transformed(batch: &Batch, device: &Device) -> Result<Tensor> {
    let views = batch
        .transformed
        .as_ref()
        .context("the loader made no transformed views")?;
    Ok(views.to_device(device)?)
}

fn scalar(loss: &Tensor) -> Result<f32> {
    Ok(loss.to_dtype(DType::F32)?.to_scalar::<f32>()?)
}
