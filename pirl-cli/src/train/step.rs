//! One step of training, in the order of the paper (arXiv:1912.01991, section 3).

use std::ops::Range;

use anyhow::{Context, Result, ensure};
use candle_core::{D, DType, Device, Tensor};
use pirl_bank::{Drawn, MemoryBank, NegativeSampler};
use pirl_data::Batch;
use pirl_loss::{ContrastiveLoss, Negatives, cross_entropy, total_loss};
use pirl_model::{Backbone, ClassifierHead, Head, Mode, Optimizer, ProjectionHead, ResNet};

use super::random::Stream;

/// Everything that learns.
pub(crate) struct Learner {
    pub(crate) backbone: ResNet,
    pub(crate) task: Task,
    pub(crate) optimizer: Optimizer,
    /// Images that go through the networks at once; 0: the whole batch.
    pub(crate) micro_batch: usize,
    pub(crate) device: Device,
}

/// What the backbone is trained for.
pub(crate) enum Task {
    /// To represent an image and its transformed copy alike.
    Invariant(Invariant),
    /// The covariant baseline: to tell which transformation was applied.
    Covariant(ClassifierHead),
    /// To tell the class of an image.
    Supervised(Supervised),
}

/// Training with labels.
pub(crate) struct Supervised {
    pub(crate) classifier: ClassifierHead,
    /// Of every image of the pack.
    pub(crate) labels: Vec<u32>,
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
    /// Images of the batch whose class was told, percent; of supervised training.
    pub(crate) top1: Option<f32>,
}

impl Learner {
    /// Does step number `step`, counted from 1, with learning rate `lr`.
    ///
    /// The loss is a mean over images, and a sum over the two views, none of which needs another's
    /// embedding. So each part of the batch, and each view of it, is differentiated before the next
    /// goes through the networks: the gradient is the same, and memory holds the maps of one.
    pub(crate) fn step(&mut self, batch: &Batch, step: u64, lr: f64) -> Result<Losses> {
        let parts = Part::cut(batch, self.micro_batch)?;
        let losses = match &mut self.task {
            Task::Invariant(task) => {
                let rows = task.rows(batch, step)?;
                if parts.len() > 1 {
                    task.estimate(&self.backbone, &parts, &rows, &self.device)?;
                }
                let (mut patch, mut image) = (0.0, 0.0);
                let mut embeddings = Vec::with_capacity(parts.len());
                for part in &parts {
                    // The transformed copies go first, as in VISSL: both passes move batch norm's
                    // running statistics, and the images' is to be the last.
                    if let Some(g) = &task.g {
                        let view = part.transformed(&self.device)?; // I^t
                        let view = embed(&self.backbone, g.as_ref(), &view, Mode::Train)?;
                        let loss = task.loss(&view, &rows, part)?;
                        patch += part.weight * scalar(&loss)?;
                        let share = (loss * (task.lambda * part.weight))?;
                        self.optimizer.accumulate(&share.backward()?)?;
                    }
                    let view = part.images(&self.device)?; // I
                    let view = embed(&self.backbone, &task.f, &view, Mode::Train)?;
                    let loss = task.loss(&view, &rows, part)?;
                    image += part.weight * scalar(&loss)?;
                    let lambda = if task.g.is_some() { task.lambda } else { 0.0 };
                    let share = (loss * ((1.0 - lambda) * part.weight))?;
                    self.optimizer.accumulate(&share.backward()?)?;
                    embeddings.push(view.detach());
                }
                let losses = task.losses(patch, image)?;
                losses.check(step, lr)?;
                self.optimizer.step(lr)?;
                task.remember(batch, &Tensor::cat(&embeddings, 0)?)?;
                losses
            }
            Task::Covariant(head) => {
                let mut total = 0.0;
                for part in &parts {
                    let view = part.transformed(&self.device)?;
                    let logits = embed(&self.backbone, head, &view, Mode::Train)?;
                    total += classify(&mut self.optimizer, &logits, part.targets, part.weight)?;
                }
                let losses = Losses {
                    total: total as f32,
                    image: None,
                    patch: None,
                    top1: None,
                };
                losses.check(step, lr)?;
                self.optimizer.step(lr)?;
                losses
            }
            Task::Supervised(task) => {
                let labels = task.labels(batch)?;
                let (mut total, mut right) = (0.0, 0);
                for part in &parts {
                    let view = part.images(&self.device)?;
                    let logits = embed(&self.backbone, &task.classifier, &view, Mode::Train)?;
                    let labels = &labels[part.places.clone()];
                    right += hits(&logits, labels)?;
                    total += classify(&mut self.optimizer, &logits, labels, part.weight)?;
                }
                let losses = Losses {
                    total: total as f32,
                    image: None,
                    patch: None,
                    top1: Some(100.0 * right as f32 / labels.len() as f32),
                };
                losses.check(step, lr)?;
                self.optimizer.step(lr)?;
                losses
            }
        };
        Ok(losses)
    }
}

/// What of a batch goes through the networks at once.
struct Part<'a> {
    /// Its images' places in the batch.
    places: Range<usize>,
    images: Tensor,
    transformed: Option<Tensor>,
    targets: &'a [u32],
    /// Its share of the batch.
    weight: f64,
}

impl<'a> Part<'a> {
    /// The batch in as few parts as have at most `micro_batch` images, all of about the same size;
    /// 0: in one.
    fn cut(batch: &'a Batch, micro_batch: usize) -> Result<Vec<Self>> {
        let size = batch.indices.len();
        let count = match micro_batch {
            0 => 1,
            most => size.div_ceil(most),
        };
        let part = |index: usize| {
            let start = index * size / count;
            let len = (index + 1) * size / count - start;
            let views = |views: &Tensor| {
                let each = views.dim(0)? / size;
                views.narrow(0, start * each, len * each)
            };
            Ok(Self {
                places: start..start + len,
                images: views(&batch.images)?,
                transformed: batch.transformed.as_ref().map(views).transpose()?,
                targets: &batch.targets[start..start + len],
                weight: len as f64 / size as f64,
            })
        };
        (0..count).map(part).collect()
    }

    fn transformed(&self, device: &Device) -> Result<Tensor> {
        let views = self.transformed.as_ref();
        let views = views.context("the loader made no transformed views")?;
        to_device(views, device)
    }

    fn images(&self, device: &Device) -> Result<Tensor> {
        to_device(&self.images, device)
    }
}

/// Candle copies the whole storage of a view to another device, so the view gets its own first.
fn to_device(views: &Tensor, device: &Device) -> Result<Tensor> {
    if views.device().same_device(device) {
        return Ok(views.clone());
    }
    Ok(views.force_contiguous()?.to_device(device)?)
}

/// phi, then f, g or a classifier.
fn embed(backbone: &ResNet, head: &dyn Head, views: &Tensor, mode: Mode) -> Result<Tensor> {
    Ok(head.forward(&backbone.forward(views, mode)?, mode)?)
}

/// The rows of the bank that a step compares its embeddings with.
struct Rows {
    /// m_I of each image.
    own: Tensor,
    /// One draw for the batch, and for both terms.
    negatives: Negatives,
}

impl Invariant {
    fn rows(&self, batch: &Batch, step: u64) -> Result<Rows> {
        Ok(Rows {
            own: self.bank.gather(&batch.indices)?,
            negatives: self.draw(&batch.indices, step)?,
        })
    }

    /// The loss of one view of one part.
    fn loss(&self, view: &Tensor, rows: &Rows, part: &Part) -> Result<Tensor> {
        let (start, len) = (part.places.start, part.places.len());
        let own = rows.own.narrow(0, start, len)?;
        let negatives = match &rows.negatives {
            Negatives::Shared { rows, own } => Negatives::Shared {
                rows: rows.clone(),
                own: own[part.places.clone()].to_vec(),
            },
            Negatives::PerImage { bank, indices } => Negatives::PerImage {
                bank: bank.clone(),
                indices: indices[start * self.negatives..][..len * self.negatives].to_vec(),
            },
        };
        Ok(self.loss.forward(view, &own, &negatives)?)
    }

    /// `nce` fixes its Z at the first loss it computes, which must be of the whole batch, and of the
    /// transformed copies where there are any. Nothing else changes.
    fn estimate(
        &self,
        backbone: &ResNet,
        parts: &[Part],
        rows: &Rows,
        device: &Device,
    ) -> Result<()> {
        if !self.loss.estimates() || self.loss.state().is_some() {
            return Ok(());
        }
        let before = backbone.buffers().snapshot();
        let mut views = Vec::with_capacity(parts.len());
        for part in parts {
            views.push(match &self.g {
                Some(g) => {
                    let view = part.transformed(device)?;
                    embed(backbone, g.as_ref(), &view, Mode::Calibrate)?
                }
                None => {
                    let view = part.images(device)?;
                    embed(backbone, &self.f, &view, Mode::Calibrate)?
                }
            });
        }
        backbone.buffers().restore(before);
        let views = Tensor::cat(&views, 0)?.detach();
        self.loss.forward(&views, &rows.own, &rows.negatives)?;
        Ok(())
    }

    /// Equation (6).
    fn losses(&self, patch: f64, image: f64) -> Result<Losses> {
        let term = |value: f64| Tensor::new(value, &Device::Cpu);
        let total = match self.g {
            Some(_) => total_loss(self.lambda, &term(patch)?, &term(image)?)?.to_scalar::<f64>()?,
            None => image,
        };
        Ok(Losses {
            total: total as f32,
            image: Some(image as f32),
            patch: self.g.is_some().then_some(patch as f32),
            top1: None,
        })
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

impl Supervised {
    fn labels(&self, batch: &Batch) -> Result<Vec<u32>> {
        let label = |&image: &u32| self.labels.get(image as usize).copied();
        let labels: Option<Vec<u32>> = batch.indices.iter().map(label).collect();
        labels.context("the batch has an image that the pack has not")
    }
}

/// How many rows of `logits` are greatest at their label.
fn hits(logits: &Tensor, labels: &[u32]) -> Result<usize> {
    let told: Vec<u32> = logits.argmax(D::Minus1)?.to_vec1()?;
    Ok(told.iter().zip(labels).filter(|(a, b)| a == b).count())
}

impl Losses {
    /// An error unless the total is a number. Called before weights and bank are changed.
    fn check(&self, step: u64, lr: f64) -> Result<()> {
        ensure!(
            self.total.is_finite(),
            "the loss of step {step} is {} (learning rate {lr}); nothing of this step was kept, and \
             earlier checkpoints are whole: go on from them with a smaller optim.lr in a new run, or \
             lengthen schedule.warmup_epochs",
            self.total
        );
        Ok(())
    }
}

fn scalar(loss: &Tensor) -> Result<f64> {
    Ok(loss.to_dtype(DType::F64)?.to_scalar::<f64>()?)
}

/// Accumulates the gradient of a part's cross-entropy; its share of the batch's loss.
fn classify(
    optimizer: &mut Optimizer,
    logits: &Tensor,
    classes: &[u32],
    weight: f64,
) -> Result<f64> {
    let loss = (cross_entropy(logits, classes)? * weight)?;
    optimizer.accumulate(&loss.backward()?)?;
    scalar(&loss)
}

#[cfg(test)]
mod tests {
    use super::super::trajectory::{batch, learner};
    use super::*;
    use pirl_loss::{InfoNce, Nce, Paper};
    use pirl_model::{ClassifierHead, ModelConfig, Ops};

    /// A batch whose halves show the same views, so that batch norm sees the same in each half as in
    /// the whole, and parts can be compared with it.
    fn doubled() -> Batch {
        let whole = batch(0).unwrap();
        let twice = |views: &Tensor| {
            let half = views.narrow(0, 0, views.dim(0).unwrap() / 2).unwrap();
            Tensor::cat(&[&half, &half], 0).unwrap()
        };
        Batch {
            images: twice(&whole.images),
            transformed: whole.transformed.as_ref().map(twice),
            targets: (0..16).map(|image| image % 8 % 3).collect(),
            ..whole
        }
    }

    /// The losses of a step, and by how much it moved the backbone and the bank.
    fn step(change: impl Fn(&mut Learner), micro_batch: usize) -> (Losses, Vec<f32>, Vec<f32>) {
        let mut learner = learner(Ops::Fast).unwrap();
        change(&mut learner);
        learner.micro_batch = micro_batch;
        let state = |learner: &Learner| -> (Vec<f32>, Vec<f32>) {
            let bank = match &learner.task {
                Task::Invariant(task) => {
                    let rows = task.bank.rows().flatten_all().unwrap();
                    rows.to_vec1().unwrap()
                }
                Task::Covariant(_) | Task::Supervised(_) => Vec::new(),
            };
            let backbone = learner.backbone.parameters().var();
            (backbone.to_vec1().unwrap(), bank)
        };
        let before = state(&learner);
        let losses = learner.step(&doubled(), 1, 0.1).unwrap();
        let after = state(&learner);
        let moved = |a: Vec<f32>, b: Vec<f32>| a.into_iter().zip(b).map(|(a, b)| a - b).collect();
        (losses, moved(after.0, before.0), moved(after.1, before.1))
    }

    /// f32 rounding reaches a gradient through some twenty layers of batch norm, and takes up to 0.4 %
    /// of its norm here; a wrong weight of one part or term is at least a tenth.
    fn assert_same_direction(name: &str, whole: &[f32], parts: &[f32]) {
        assert_eq!(whole.len(), parts.len(), "{name}");
        let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
        let size = norm(&mut whole.iter().copied());
        let error = norm(&mut whole.iter().zip(parts).map(|(a, b)| a - b));
        assert!(whole.is_empty() || size > 0.0, "{name}");
        assert!(error <= 1e-2 * size, "{name}: {error} of {size}");
    }

    fn with_loss(make: impl Fn() -> Box<dyn ContrastiveLoss>) -> impl Fn(&mut Learner) {
        move |learner| match &mut learner.task {
            Task::Invariant(task) => task.loss = make(),
            _ => unreachable!("the trajectory's learner is invariant"),
        }
    }

    /// Makes the learner tell three classes from `views` an image.
    fn classify(learner: &mut Learner, views: usize, task: impl Fn(ClassifierHead) -> Task) {
        let config = ModelConfig::default();
        let features = learner.backbone.feature_dim();
        let head = ClassifierHead::new(&config, features, views, 3, 0, &Device::Cpu).unwrap();
        let sets = [learner.backbone.parameters(), head.parameters()];
        let sets = sets.map(Clone::clone).to_vec();
        learner.optimizer = Optimizer::new(&Default::default(), sets).unwrap();
        learner.task = task(head);
    }

    #[test]
    fn hits_are_rows_greatest_at_their_label() {
        let logits = Tensor::new(&[[0f32, 2.0, 1.0], [3.0, -1.0, 0.0]], &Device::Cpu).unwrap();
        assert_eq!(hits(&logits, &[1, 2]).unwrap(), 1);
        assert_eq!(hits(&logits, &[1, 0]).unwrap(), 2);
    }

    #[test]
    fn parts_of_a_batch_take_the_same_step_as_the_whole() {
        let covariant = |learner: &mut Learner| classify(learner, 9, Task::Covariant);
        let supervised = |learner: &mut Learner| {
            classify(learner, 1, |classifier| {
                let mut labels = vec![0; 96];
                for (place, &image) in doubled().indices.iter().enumerate() {
                    labels[image as usize] = place as u32 % 8 % 3;
                }
                Task::Supervised(Supervised { classifier, labels })
            });
        };
        type Change = Box<dyn Fn(&mut Learner)>;
        let paper = with_loss(|| Box::new(Paper::new(0.1).unwrap()));
        let nce = with_loss(|| Box::new(Nce::new(0.1, 96).unwrap()));
        let infonce = with_loss(|| Box::new(InfoNce::new(0.1).unwrap()));
        let changes: [(&str, Change); 5] = [
            ("paper", Box::new(paper)),
            ("nce", Box::new(nce)),
            ("infonce", Box::new(infonce)),
            ("covariant", Box::new(covariant)),
            ("supervised", Box::new(supervised)),
        ];
        for (name, change) in changes {
            let (whole, backbone, bank) = step(&change, 0);
            let (parts, moved_backbone, moved_bank) = step(&change, 8);
            let error = (parts.total / whole.total - 1.0).abs();
            assert!(error < 1e-5, "{name}: {parts:?}, whole {whole:?}");
            assert_same_direction(name, &backbone, &moved_backbone);
            assert_same_direction(name, &bank, &moved_bank);
        }
    }

    #[test]
    fn a_batch_is_cut_evenly() {
        let batch = batch(0).unwrap();
        let sizes = |most| -> Vec<usize> {
            let parts = Part::cut(&batch, most).unwrap();
            assert!((parts.iter().map(|part| part.weight).sum::<f64>() - 1.0).abs() < 1e-12);
            parts.iter().map(|part| part.places.len()).collect()
        };
        assert_eq!(sizes(0), [16]);
        assert_eq!(sizes(100), [16]);
        assert_eq!(sizes(5), [4, 4, 4, 4]);
        assert_eq!(sizes(7), [5, 5, 6]);
        let part = &Part::cut(&batch, 7).unwrap()[1];
        assert_eq!(part.images.dims()[0], 5);
        assert_eq!(part.transformed.as_ref().unwrap().dims()[0], 45);
    }
}
