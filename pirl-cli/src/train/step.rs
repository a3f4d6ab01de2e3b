//! One step of training, in the order of the paper (arXiv:1912.01991, section 3).

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use pirl_bank::{Drawn, MemoryBank, NegativeSampler};
use pirl_data::Batch;
use pirl_loss::{ContrastiveLoss, Negatives, total_loss};
use pirl_model::{Backbone, LossScale, Mode};
use rand_chacha::ChaCha8Rng;

use super::crew::Worker;
use super::descent::Descent;
use super::random::Stream;
use super::replica::{Goal, Outcome, Part, Replica, Rows};
use crate::device::moved;

/// Everything that learns.
pub(crate) struct Learner {
    /// The networks that are trained.
    pub(crate) main: Replica,
    /// Copies of them on further devices, which take over parts of each batch.
    pub(crate) crew: Vec<Worker>,
    pub(crate) task: Task,
    pub(crate) descent: Descent,
}

/// What the backbone is trained for.
pub(crate) enum Task {
    /// To represent an image and its transformed copy alike.
    Invariant(Invariant),
    /// The covariant baseline: to tell which transformation was applied.
    Covariant,
    /// To tell the class of an image, by the labels of every image of the pack.
    Supervised(Vec<u32>),
}

/// PIRL, and NPID, which is PIRL without the transformed copy.
pub(crate) struct Invariant {
    pub(crate) loss: Arc<dyn ContrastiveLoss>,
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
    /// The loss is a mean over images. So each part of the batch is differentiated on its own, with
    /// several devices as many at a time, and memory holds the maps of one: the gradient is the same.
    /// Nothing is read back from a device before all parts are on their way.
    pub(crate) fn step(
        &mut self,
        parts: impl Iterator<Item = Result<Batch>>,
        size: usize,
        step: u64,
        lr: f64,
    ) -> Result<Losses> {
        let mut draw = self.draw(step);
        let mut parts = self.estimate(parts, &mut draw)?;
        self.share_weights()?;
        let mut outcomes = Vec::new();
        loop {
            let round: Vec<Batch> = parts
                .by_ref()
                .take(1 + self.crew.len())
                .collect::<Result<_>>()?;
            if round.is_empty() {
                break;
            }
            self.round(round, size, &mut draw, &mut outcomes)?;
        }
        drop(parts);
        for worker in &self.crew {
            self.descent.optimizer.merge(worker.gradients()?)?;
        }
        // Weights are shares of the whole batch, so all of it must have come.
        let seen: usize = outcomes.iter().map(|outcome| outcome.indices.len()).sum();
        ensure!(seen == size, "{seen} images of a batch of {size}");
        let losses = self.losses(&outcomes, size)?;
        losses.check(step, lr)?;
        self.descent.step(lr)?;
        if let Task::Invariant(task) = &mut self.task {
            task.remember(outcomes)?;
        }
        Ok(losses)
    }

    /// One part for each device, or fewer at the end of a batch.
    fn round(
        &mut self,
        batches: Vec<Batch>,
        size: usize,
        draw: &mut Draw,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<()> {
        let mut parts = Vec::with_capacity(batches.len());
        for (place, batch) in batches.into_iter().enumerate() {
            let weight = batch.indices.len() as f64 / size as f64;
            parts.push(Part {
                goal: self.goal(&batch, draw, place)?,
                batch,
                weight,
            });
        }
        let scale = self.descent.scale.as_ref().map_or(1.0, LossScale::value);
        let mut parts = parts.into_iter();
        let own = parts.next();
        let mut busy = Vec::new();
        for (part, worker) in parts.zip(&self.crew) {
            worker.differentiate(part, scale)?;
            busy.push(worker);
        }
        if let Some(part) = own {
            let descent = &mut self.descent;
            let mut descend = |loss: &Tensor| descent.accumulate(loss);
            outcomes.push(self.main.differentiate(part, &mut descend)?);
        }
        for worker in busy {
            outcomes.push(worker.outcome()?);
        }
        Ok(())
    }

    /// What is to be learnt from the part at `place` of a round.
    fn goal(&self, batch: &Batch, draw: &mut Draw, place: usize) -> Result<Goal> {
        Ok(match &self.task {
            Task::Invariant(task) => Goal::Rows {
                rows: task.rows(&batch.indices, draw, place)?,
                loss: Arc::clone(&task.loss),
                lambda: task.lambda,
            },
            Task::Covariant => Goal::Transformation,
            Task::Supervised(labels) => {
                let label = |&image: &u32| labels.get(image as usize).copied();
                let labels: Option<Vec<u32>> = batch.indices.iter().map(label).collect();
                Goal::Labels(labels.context("the batch has an image that the pack has not")?)
            }
        })
    }

    /// Brings the weights of all copies up to date.
    fn share_weights(&self) -> Result<()> {
        if self.crew.is_empty() {
            return Ok(());
        }
        let flat = self.main.parameters().into_iter().map(|set| {
            let flat = set.var().as_detached_tensor();
            Ok(flat.to_device(&Device::Cpu)?)
        });
        let flat = flat.collect::<Result<Vec<_>>>()?;
        for worker in &self.crew {
            worker.adopt(flat.clone())?;
        }
        Ok(())
    }

    /// The step's negatives depend on the seed and the step alone, so that a resumed run draws
    /// the same.
    fn draw(&self, step: u64) -> Draw {
        let seed = match &self.task {
            Task::Invariant(task) => task.seed,
            Task::Covariant | Task::Supervised(_) => 0, // draws nothing
        };
        let further = self.crew.iter().map(Worker::device);
        let devices = std::iter::once(self.main.device()).chain(further);
        Draw {
            generator: Stream::Negatives.generator(seed, step),
            devices: devices.cloned().collect(),
            shared: None,
        }
    }

    /// `nce` fixes its Z at the first loss it computes, which must be of the whole batch, and of the
    /// transformed copies where there are any. For this one step the parts are kept; nothing else
    /// changes.
    fn estimate<'a>(
        &mut self,
        parts: impl Iterator<Item = Result<Batch>> + 'a,
        draw: &mut Draw,
    ) -> Result<Box<dyn Iterator<Item = Result<Batch>> + 'a>> {
        let task = match &self.task {
            Task::Invariant(task) if task.loss.estimates() && task.loss.state().is_none() => task,
            _ => return Ok(Box::new(parts)),
        };
        let parts: Vec<Batch> = parts.collect::<Result<_>>()?;
        if parts.len() > 1 {
            let before = self.main.backbone.buffers().snapshot();
            let (mut indices, mut views) = (Vec::new(), Vec::new());
            for part in &parts {
                let view = match self.main.embed_transformed(part, Mode::Calibrate)? {
                    Some(view) => view,
                    None => self.main.embed_images(part, Mode::Calibrate)?,
                };
                views.push(view);
                indices.extend(&part.indices);
            }
            self.main.backbone.buffers().restore(before);
            let views = Tensor::cat(&views, 0)?.detach();
            let mut whole = draw.clone();
            let rows = task.rows(&indices, &mut whole, 0)?;
            draw.shared = whole.shared;
            task.loss.forward(&views, &rows.own, &rows.negatives)?;
        }
        Ok(Box::new(parts.into_iter().map(Ok)))
    }

    /// The means over the whole batch.
    fn losses(&self, outcomes: &[Outcome], size: usize) -> Result<Losses> {
        let mean = |of: fn(&Outcome) -> &Option<Tensor>| -> Result<Option<f64>> {
            let mut sum = None;
            for outcome in outcomes {
                if let Some(loss) = of(outcome) {
                    *sum.get_or_insert(0.0) += outcome.weight * scalar(loss)?;
                }
            }
            Ok(sum)
        };
        let (patch, image) = (mean(|one| &one.patch)?, mean(|one| &one.image)?);
        let term = |value: f64| Tensor::new(value, &Device::Cpu);
        let total = match (&self.task, patch, image) {
            // Equation (6).
            (Task::Invariant(task), Some(patch), Some(image)) => {
                total_loss(task.lambda, &term(patch)?, &term(image)?)?.to_scalar::<f64>()?
            }
            (_, _, Some(image)) => image,
            _ => mean(|one| &one.class)?.context("a step without a loss")?,
        };
        let hits: usize = outcomes.iter().map(|outcome| outcome.hits).sum();
        let supervised = matches!(self.task, Task::Supervised(_));
        Ok(Losses {
            total: total as f32,
            image: image.map(|loss| loss as f32),
            patch: patch.map(|loss| loss as f32),
            top1: supervised.then_some(100.0 * hits as f32 / size as f32),
        })
    }
}

/// The negatives of one step, handed out part by part: those that one draw for the whole batch gives.
#[derive(Clone)]
struct Draw {
    generator: ChaCha8Rng,
    /// Where the parts of a round are.
    devices: Vec<Device>,
    /// Once drawn, those that all images share, on each of the devices, and the column of each.
    shared: Option<(Vec<Tensor>, HashMap<u32, u32>)>,
}

impl Invariant {
    /// What the part at `place` of a round is compared with, on its device.
    fn rows(&self, images: &[u32], draw: &mut Draw, place: usize) -> Result<Rows> {
        let device = draw.devices.get(place).context("a part without a device")?;
        Ok(Rows {
            own: moved(&self.bank.gather(images)?, device)?,
            negatives: self.negatives(images, draw, place)?,
        })
    }

    fn negatives(&self, images: &[u32], draw: &mut Draw, place: usize) -> Result<Negatives> {
        if let Some((rows, columns)) = &draw.shared {
            return Ok(Negatives::Shared {
                rows: rows[place].clone(),
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
                let everywhere = draw.devices.iter().map(|device| moved(&rows, device));
                let everywhere = everywhere.collect::<Result<Vec<_>>>()?;
                let rows = everywhere[place].clone();
                draw.shared = Some((everywhere, indices.into_iter().zip(0..).collect()));
                Negatives::Shared { rows, own }
            }
            Drawn::PerImage { indices } => Negatives::PerImage {
                bank: self.bank.rows().clone(),
                indices,
            },
            other => anyhow::bail!("negatives of an unknown kind: {other:?}"),
        })
    }

    /// Moves the bank's rows towards the embeddings of the step.
    fn remember(&mut self, outcomes: Vec<Outcome>) -> Result<()> {
        let (mut indices, mut embeddings) = (Vec::new(), Vec::new());
        for outcome in outcomes {
            let of_part = outcome.embeddings.context("a part without embeddings")?;
            embeddings.push(moved(&of_part, self.bank.rows().device())?);
            indices.extend(outcome.indices);
        }
        Ok(self.bank.update(&indices, &Tensor::cat(&embeddings, 0)?)?)
    }
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

#[cfg(test)]
mod tests {
    use super::super::trajectory::{batch, learner};
    use super::*;
    use crate::train::replica::Heads;
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

    /// What two steps did.
    struct Steps {
        losses: [Losses; 2],
        /// By how much the first moved the backbone and the bank.
        backbone: Vec<f32>,
        bank: Vec<f32>,
    }

    /// Two steps with parts of so many images, on so many devices besides one.
    fn steps(change: impl Fn(&mut Learner), micro_batch: usize, further: usize) -> Steps {
        let made = || {
            let mut learner = learner(Ops::Fast).unwrap();
            change(&mut learner);
            learner
        };
        let mut learner = made();
        for _ in 0..further {
            let replica = made().main;
            for set in replica.parameters() {
                // What a copy has to begin with is of no account.
                let zeros = set.var().as_detached_tensor().zeros_like().unwrap();
                set.var().set(&zeros).unwrap();
            }
            learner.crew.push(Worker::start(replica).unwrap());
        }
        let state = |learner: &Learner| -> (Vec<f32>, Vec<f32>) {
            let bank = match &learner.task {
                Task::Invariant(task) => {
                    let rows = task.bank.rows().flatten_all().unwrap();
                    rows.to_vec1().unwrap()
                }
                Task::Covariant | Task::Supervised(_) => Vec::new(),
            };
            let backbone = learner.main.backbone.parameters().var();
            (backbone.to_vec1().unwrap(), bank)
        };
        let step = |learner: &mut Learner, number: u64| {
            let parts = cut(&doubled(), micro_batch).into_iter();
            learner.step(parts, 16, number, 0.1).unwrap()
        };
        let before = state(&learner);
        let first = step(&mut learner, 1);
        let after = state(&learner);
        let moved = |a: Vec<f32>, b: Vec<f32>| a.into_iter().zip(b).map(|(a, b)| a - b).collect();
        Steps {
            losses: [first, step(&mut learner, 2)],
            backbone: moved(after.0, before.0),
            bank: moved(after.1, before.1),
        }
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

    fn with_loss(make: impl Fn() -> Arc<dyn ContrastiveLoss>) -> impl Fn(&mut Learner) {
        move |learner| match &mut learner.task {
            Task::Invariant(task) => task.loss = make(),
            _ => unreachable!("the trajectory's learner is invariant"),
        }
    }

    /// Makes the learner tell three classes from `views` an image.
    fn classify(
        learner: &mut Learner,
        views: usize,
        heads: impl Fn(ClassifierHead) -> Heads,
        task: Task,
    ) {
        let config = ModelConfig::default();
        let features = learner.main.backbone.feature_dim();
        let head = ClassifierHead::new(&config, features, views, 3, 0, &Device::Cpu).unwrap();
        learner.main.heads = heads(head);
        let sets = learner.main.parameters();
        learner.descent.optimizer = Optimizer::new(&Default::default(), sets).unwrap();
        learner.task = task;
    }

    /// Also on devices that are fewer than the parts, as many, and more.
    #[test]
    fn parts_of_a_batch_take_the_same_step_as_the_whole() {
        let covariant =
            |learner: &mut Learner| classify(learner, 9, Heads::Covariant, Task::Covariant);
        let supervised = |learner: &mut Learner| {
            let mut labels = vec![0; 96];
            for (place, &image) in doubled().indices.iter().enumerate() {
                labels[image as usize] = place as u32 % 8 % 3;
            }
            classify(learner, 1, Heads::Supervised, Task::Supervised(labels));
        };
        type Change = Box<dyn Fn(&mut Learner)>;
        let paper = with_loss(|| Arc::new(Paper::new(0.1).unwrap()));
        let nce = with_loss(|| Arc::new(Nce::new(0.1, 96).unwrap()));
        let infonce = with_loss(|| Arc::new(InfoNce::new(0.1).unwrap()));
        let changes: [(&str, Change); 5] = [
            ("paper", Box::new(paper)),
            ("nce", Box::new(nce)),
            ("infonce", Box::new(infonce)),
            ("covariant", Box::new(covariant)),
            ("supervised", Box::new(supervised)),
        ];
        for (name, change) in changes {
            let whole = steps(&change, 16, 0);
            let parts = steps(&change, 8, 0);
            let near = |name: &str, found: &Steps, expected: &Steps, tolerances: [f32; 2]| {
                let losses = found.losses.iter().zip(&expected.losses).zip(tolerances);
                for ((found, expected), tolerance) in losses {
                    let error = (found.total / expected.total - 1.0).abs();
                    assert!(
                        error < tolerance,
                        "{name}: {found:?}, expected {expected:?}"
                    );
                    assert_eq!(found.top1, expected.top1, "{name}");
                }
                assert_same_direction(name, &expected.backbone, &found.backbone);
                assert_same_direction(name, &expected.bank, &found.bank);
            };
            near(name, &parts, &whole, [1e-5, 1e-2]);
            for further in [1, 2] {
                let name = format!("{name} on {further} further devices");
                near(&name, &steps(&change, 8, further), &parts, [1e-6, 1e-3]);
            }
            let (quarters, shared) = (steps(&change, 4, 0), steps(&change, 4, 2));
            near(
                &format!("{name} in quarters"),
                &shared,
                &quarters,
                [1e-6, 1e-3],
            );
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
                let mut draw = learner.draw(3);
                let (mut start, mut columns, mut rows) = (0, Vec::new(), None);
                for size in sizes {
                    let part = &images[start..start + size];
                    match task.negatives(part, &mut draw, 0).unwrap() {
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
