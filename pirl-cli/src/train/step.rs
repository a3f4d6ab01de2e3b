//! One step of training, in the order of the paper (arXiv:1912.01991, section 3).

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use candle_core::{D, DType, Device, Tensor};
use pirl_bank::{Drawn, MemoryBank, NegativeSampler};
use pirl_data::{Batch, Normalize};
use pirl_loss::{ContrastiveLoss, Negatives, cross_entropy, total_loss};
use pirl_model::{Backbone, ClassifierHead, Head, Mode, ProjectionHead, ResNet};
use rand_chacha::ChaCha8Rng;

use super::descent::Descent;
use super::random::Stream;

/// Everything that learns.
pub(crate) struct Learner {
    pub(crate) backbone: ResNet,
    pub(crate) task: Task,
    pub(crate) descent: Descent,
    pub(crate) device: Device,
    /// Makes numbers of the views.
    pub(crate) normalize: Normalize,
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
    /// Does step number `step`, counted from 1, with learning rate `lr`, on a batch of `size` images
    /// that comes in `parts`, none of which is kept.
    ///
    /// The loss is a mean over images, and a sum over the two views, none of which needs another's
    /// embedding. So each part of the batch, and each view of it, is differentiated before the next
    /// goes through the networks: the gradient is the same, and memory holds the maps of one.
    pub(crate) fn step(
        &mut self,
        parts: impl Iterator<Item = Result<Batch>>,
        size: usize,
        step: u64,
        lr: f64,
    ) -> Result<Losses> {
        let share = |part: &Batch| part.indices.len() as f64 / size as f64;
        let mut seen = 0;
        let losses = match &mut self.task {
            Task::Invariant(task) => {
                let mut draw = task.draw(step);
                let parts = task.estimate(
                    &self.backbone,
                    parts,
                    &mut draw,
                    (&self.normalize, &self.device),
                )?;
                let (mut patch, mut image) = (0.0, 0.0);
                let (mut indices, mut embeddings) = (Vec::with_capacity(size), Vec::new());
                for part in parts {
                    let part = part?;
                    let weight = share(&part);
                    let rows = task.rows(&part.indices, &mut draw)?;
                    // The transformed copies go first, as in VISSL: both passes move batch norm's
                    // running statistics, and the images' is to be the last.
                    if let Some(g) = &task.g {
                        let view = transformed(&part, &self.normalize, &self.device)?; // I^t
                        let view = embed(&self.backbone, g.as_ref(), &view, Mode::Train)?;
                        let loss = task.loss(&view, &rows)?;
                        patch += weight * scalar(&loss)?;
                        let share = (loss * (task.lambda * weight))?;
                        self.descent.accumulate(&share)?;
                    }
                    let view = self.normalize.apply(&part.images, &self.device)?; // I
                    let view = embed(&self.backbone, &task.f, &view, Mode::Train)?;
                    let loss = task.loss(&view, &rows)?;
                    image += weight * scalar(&loss)?;
                    let lambda = if task.g.is_some() { task.lambda } else { 0.0 };
                    let share = (loss * ((1.0 - lambda) * weight))?;
                    self.descent.accumulate(&share)?;
                    embeddings.push(view.detach());
                    indices.extend(part.indices);
                }
                seen += indices.len();
                ensure_whole(seen, size)?;
                let losses = task.losses(patch, image)?;
                losses.check(step, lr)?;
                self.descent.step(lr)?;
                task.remember(&indices, &Tensor::cat(&embeddings, 0)?)?;
                losses
            }
            Task::Covariant(head) => {
                let mut total = 0.0;
                for part in parts {
                    let part = part?;
                    let view = transformed(&part, &self.normalize, &self.device)?;
                    let logits = embed(&self.backbone, head, &view, Mode::Train)?;
                    let weight = share(&part);
                    total += classify(&mut self.descent, &logits, &part.targets, weight)?;
                    seen += part.indices.len();
                }
                ensure_whole(seen, size)?;
                let losses = Losses {
                    total: total as f32,
                    image: None,
                    patch: None,
                    top1: None,
                };
                losses.check(step, lr)?;
                self.descent.step(lr)?;
                losses
            }
            Task::Supervised(task) => {
                let (mut total, mut right) = (0.0, 0);
                for part in parts {
                    let part = part?;
                    let labels = task.labels(&part)?;
                    let view = self.normalize.apply(&part.images, &self.device)?;
                    let logits = embed(&self.backbone, &task.classifier, &view, Mode::Train)?;
                    right += hits(&logits, &labels)?;
                    total += classify(&mut self.descent, &logits, &labels, share(&part))?;
                    seen += labels.len();
                }
                ensure_whole(seen, size)?;
                let losses = Losses {
                    total: total as f32,
                    image: None,
                    patch: None,
                    top1: Some(100.0 * right as f32 / size as f32),
                };
                losses.check(step, lr)?;
                self.descent.step(lr)?;
                losses
            }
        };
        Ok(losses)
    }
}

/// Weights are shares of the whole batch, so all of it must have come.
fn ensure_whole(seen: usize, size: usize) -> Result<()> {
    ensure!(seen == size, "{seen} images of a batch of {size}");
    Ok(())
}

/// I^t of each image.
fn transformed(part: &Batch, normalize: &Normalize, device: &Device) -> Result<Tensor> {
    let views = part.transformed.as_ref();
    let views = views.context("the loader made no transformed views")?;
    Ok(normalize.apply(views, device)?)
}

/// phi, then f, g or a classifier.
fn embed(backbone: &ResNet, head: &dyn Head, views: &Tensor, mode: Mode) -> Result<Tensor> {
    Ok(head.forward(&backbone.forward(views, mode)?, mode)?)
}

/// The rows of the bank that the embeddings of a part of a batch are compared with.
struct Rows {
    /// m_I of each image.
    own: Tensor,
    /// One draw for the batch, and for both terms.
    negatives: Negatives,
}

/// The negatives of one step, handed out part by part: those that one draw for the whole batch gives.
#[derive(Clone)]
struct Draw {
    generator: ChaCha8Rng,
    /// Once drawn, those that all images share, and the column of each.
    shared: Option<(Tensor, HashMap<u32, u32>)>,
}

impl Invariant {
    fn rows(&self, images: &[u32], draw: &mut Draw) -> Result<Rows> {
        Ok(Rows {
            own: self.bank.gather(images)?,
            negatives: self.negatives(images, draw)?,
        })
    }

    /// The loss of one view of one part.
    fn loss(&self, view: &Tensor, rows: &Rows) -> Result<Tensor> {
        Ok(self.loss.forward(view, &rows.own, &rows.negatives)?)
    }

    /// `nce` fixes its Z at the first loss it computes, which must be of the whole batch, and of the
    /// transformed copies where there are any. For this one step the parts are kept; nothing else
    /// changes.
    fn estimate<'a>(
        &self,
        backbone: &ResNet,
        parts: impl Iterator<Item = Result<Batch>> + 'a,
        draw: &mut Draw,
        (normalize, device): (&Normalize, &Device),
    ) -> Result<Box<dyn Iterator<Item = Result<Batch>> + 'a>> {
        if !self.loss.estimates() || self.loss.state().is_some() {
            return Ok(Box::new(parts));
        }
        let parts: Vec<Batch> = parts.collect::<Result<_>>()?;
        if parts.len() > 1 {
            let before = backbone.buffers().snapshot();
            let (mut indices, mut views) = (Vec::new(), Vec::new());
            for part in &parts {
                views.push(match &self.g {
                    Some(g) => {
                        let view = transformed(part, normalize, device)?;
                        embed(backbone, g.as_ref(), &view, Mode::Calibrate)?
                    }
                    None => {
                        let view = normalize.apply(&part.images, device)?;
                        embed(backbone, &self.f, &view, Mode::Calibrate)?
                    }
                });
                indices.extend(&part.indices);
            }
            backbone.buffers().restore(before);
            let views = Tensor::cat(&views, 0)?.detach();
            let mut whole = draw.clone();
            let rows = self.rows(&indices, &mut whole)?;
            draw.shared = whole.shared;
            self.loss(&views, &rows)?;
        }
        Ok(Box::new(parts.into_iter().map(Ok)))
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
    fn draw(&self, step: u64) -> Draw {
        Draw {
            generator: Stream::Negatives.generator(self.seed, step),
            shared: None,
        }
    }

    fn negatives(&self, images: &[u32], draw: &mut Draw) -> Result<Negatives> {
        if let Some((rows, columns)) = &draw.shared {
            return Ok(Negatives::Shared {
                rows: rows.clone(),
                own: images
                    .iter()
                    .map(|image| columns.get(image).copied())
                    .collect(),
            });
        }
        let drawn =
            self.sampler
                .draw(self.bank.len(), images, self.negatives, &mut draw.generator)?;
        Ok(match drawn {
            Drawn::Shared { indices, own } => {
                let rows = self.bank.gather(&indices)?;
                draw.shared = Some((rows.clone(), indices.into_iter().zip(0..).collect()));
                Negatives::Shared { rows, own }
            }
            Drawn::PerImage { indices } => Negatives::PerImage {
                bank: self.bank.rows().clone(),
                indices,
            },
            other => anyhow::bail!("negatives of an unknown kind: {other:?}"),
        })
    }

    fn remember(&mut self, images: &[u32], embeddings: &Tensor) -> Result<()> {
        Ok(self.bank.update(images, &embeddings.detach())?)
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
fn classify(descent: &mut Descent, logits: &Tensor, classes: &[u32], weight: f64) -> Result<f64> {
    let loss = (cross_entropy(logits, classes)? * weight)?;
    descent.accumulate(&loss)?;
    scalar(&loss)
}

#[cfg(test)]
mod tests {
    use super::super::trajectory::{batch, learner};
    use super::*;
    use pirl_bank::{PerImageSampler, SharedSampler};
    use pirl_loss::{InfoNce, Nce, Paper};
    use pirl_model::{ClassifierHead, ModelConfig, Ops, Optimizer};

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

    /// A batch in parts of so many images.
    fn cut(batch: &Batch, micro_batch: usize) -> Vec<Result<Batch>> {
        let size = batch.indices.len();
        let part = |start: usize| {
            let len = micro_batch.min(size - start);
            let views = |views: &Tensor| {
                let each = views.dim(0).unwrap() / size;
                views.narrow(0, start * each, len * each).unwrap()
            };
            Ok(Batch {
                images: views(&batch.images),
                transformed: batch.transformed.as_ref().map(views),
                indices: batch.indices[start..start + len].to_vec(),
                targets: batch.targets[start..start + len].to_vec(),
                skipped: 0,
            })
        };
        (0..size).step_by(micro_batch).map(part).collect()
    }

    /// The losses of a step, and by how much it moved the backbone and the bank.
    fn step(change: impl Fn(&mut Learner), micro_batch: usize) -> (Losses, Vec<f32>, Vec<f32>) {
        let mut learner = learner(Ops::Fast).unwrap();
        change(&mut learner);
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
        let parts = cut(&doubled(), micro_batch).into_iter();
        let losses = learner.step(parts, 16, 1, 0.1).unwrap();
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
        learner.descent.optimizer = Optimizer::new(&Default::default(), sets).unwrap();
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
            let (whole, backbone, bank) = step(&change, 16);
            let (parts, moved_backbone, moved_bank) = step(&change, 8);
            let error = (parts.total / whole.total - 1.0).abs();
            assert!(error < 1e-5, "{name}: {parts:?}, whole {whole:?}");
            assert_same_direction(name, &backbone, &moved_backbone);
            assert_same_direction(name, &bank, &moved_bank);
        }
    }

    /// Whatever the parts, the negatives are those of one draw for the whole batch.
    #[test]
    fn parts_of_a_batch_have_the_negatives_of_the_whole() {
        let per_image = |learner: &mut Learner| match &mut learner.task {
            Task::Invariant(task) => task.sampler = Box::new(PerImageSampler),
            _ => unreachable!("the trajectory's learner is invariant"),
        };
        let shared = |learner: &mut Learner| match &mut learner.task {
            Task::Invariant(task) => task.sampler = Box::new(SharedSampler),
            _ => unreachable!("the trajectory's learner is invariant"),
        };
        let images: Vec<u32> = (0..16).map(|place| place * 5 % 96).collect();
        for change in [&per_image as &dyn Fn(&mut Learner), &shared] {
            let mut learner = learner(Ops::Fast).unwrap();
            change(&mut learner);
            let Task::Invariant(task) = &learner.task else {
                unreachable!("the trajectory's learner is invariant");
            };
            let draw = |sizes: &[usize]| {
                let mut draw = task.draw(3);
                let (mut start, mut columns, mut rows) = (0, Vec::new(), None);
                for size in sizes {
                    let part = &images[start..start + size];
                    match task.negatives(part, &mut draw).unwrap() {
                        Negatives::Shared { rows: shared, own } => {
                            let shared = shared.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                            assert!(
                                rows.replace(shared.clone())
                                    .is_none_or(|rows| rows == shared)
                            );
                            columns.extend(own);
                        }
                        Negatives::PerImage { indices, .. } => {
                            columns.extend(indices.into_iter().map(Some));
                        }
                    }
                    start += size;
                }
                (columns, rows)
            };
            let whole = draw(&[16]);
            assert!(whole.0.iter().any(Option::is_some));
            assert!(draw(&[5, 5, 6]) == whole && draw(&[1; 16]) == whole);
        }
    }

    #[test]
    fn a_batch_that_lacks_images_takes_no_step() {
        let mut learner = learner(Ops::Fast).unwrap();
        let mut parts = cut(&batch(0).unwrap(), 8);
        parts.pop();
        let error = learner.step(parts.into_iter(), 16, 1, 0.1).unwrap_err();
        assert_eq!(error.to_string(), "8 images of a batch of 16");
    }
}
