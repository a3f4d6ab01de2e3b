//! Making what learns, saving it and bringing it back.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor};
use pirl_bank::{MemoryBank, NegativeSampler, PerImageSampler, SharedSampler};
use pirl_data::Pack;
use pirl_loss::{ContrastiveLoss, InfoNce, Nce, Paper};
use pirl_model::{
    Backbone, ClassifierHead, Head, JigsawHead, LossScale, Ops, Optimizer, ProjectionHead, ResNet,
    Upload, load_state_dict, save_state_dict, save_tensors, strip_prefix,
};

use super::crew::Worker;
use super::descent::Descent;
use super::plan::Plan;
use super::random::Stream;
use super::replica::{Heads, Replica};
use super::step::{Invariant, Learner, Task};
use crate::checkpoint::{BANK, MODEL, OPTIMIZER};
use crate::recipe::{LossConfig, LossKind, Sampling};
use crate::weights::load_backbone;

impl Learner {
    /// An untrained learner on the first of `devices`, which has the bank unless that stays in the
    /// host's memory, with a copy of the networks on each of the others. The bank holds random unit
    /// vectors.
    pub(crate) fn new(plan: &Plan, devices: &[Device]) -> Result<Self> {
        let recipe = &plan.recipe;
        let (device, further) = devices.split_first().context("no device to train on")?;
        let task = match recipe.loss.kind {
            LossKind::Covariant => Task::Covariant,
            LossKind::Supervised => Task::Supervised(labels(&plan.pack)?),
            _ => Task::Invariant(invariant(plan, device, further)?),
        };
        let main = Replica::new(plan, &task, device)?;
        let crew = further.iter().map(|device| {
            let replica = Replica::new(plan, &task, device)?;
            Worker::start(replica)
        });
        Ok(Self {
            crew: crew.collect::<Result<_>>()?,
            descent: Descent::new(
                Optimizer::new(&recipe.optim, main.parameters())?.with_ops(recipe.model.ops),
                recipe.train.precision,
            ),
            main,
            task,
        })
    }

    /// Writes the tensors of a checkpoint into `folder`.
    pub(crate) fn save(&self, folder: &Path) -> Result<()> {
        let sets: Vec<_> = self
            .main
            .modules()
            .into_iter()
            .map(|module| (module.prefix, module.parameters, module.buffers))
            .collect();
        let path = folder.join(MODEL);
        save_state_dict(&path, &sets).with_context(|| writing(&path))?;
        let path = folder.join(OPTIMIZER);
        save_tensors(&path, &self.descent.optimizer.state()?).with_context(|| writing(&path))?;
        if let Task::Invariant(task) = &self.task {
            let path = folder.join(BANK);
            task.bank.save(&path).with_context(|| writing(&path))?;
        }
        Ok(())
    }

    /// Brings back what [`Learner::save`] wrote, `loss`, its state, and how it is scaled.
    pub(crate) fn restore(
        &mut self,
        folder: &Path,
        loss: Option<f64>,
        scale: Option<LossScale>,
    ) -> Result<()> {
        let path = folder.join(MODEL);
        let saved = load_state_dict(&path)?;
        self.load_modules(&saved)
            .with_context(|| format!("{} does not fit the recipe", path.display()))?;
        let path = folder.join(OPTIMIZER);
        let saved = load_state_dict(&path)?;
        self.descent
            .optimizer
            .load_state(&saved)
            .with_context(|| format!("{} does not fit the recipe", path.display()))?;
        if let (Some(own), Some(saved)) = (&mut self.descent.scale, scale) {
            *own = saved;
        }
        if let Task::Invariant(task) = &mut self.task {
            let (rows, dim, momentum) = (task.bank.len(), task.bank.dim(), task.bank.momentum());
            let bank = MemoryBank::load(folder.join(BANK), rows, dim, momentum)?;
            let rows = bank.rows().to_device(task.bank.rows().device())?;
            let fast = self.main.backbone.config().ops == Ops::Fast;
            task.bank = MemoryBank::from_rows(rows, momentum)?.fast(fast);
            if let Some(state) = loss {
                task.loss.set_state(state)?;
            }
        }
        Ok(())
    }

    fn load_modules(&self, saved: &HashMap<String, Tensor>) -> Result<()> {
        load_backbone(&self.main.backbone, saved)?;
        for (prefix, head) in self.main.heads.named() {
            load_head(head, prefix, saved)?;
        }
        Ok(())
    }

    /// What the loss has learnt.
    pub(crate) fn loss_state(&self) -> Option<f64> {
        match &self.task {
            Task::Invariant(task) => task.loss.state(),
            Task::Covariant | Task::Supervised(_) => None,
        }
    }
}

impl Replica {
    /// The untrained networks of `plan` on `device`, the same on every one.
    fn new(plan: &Plan, task: &Task, device: &Device) -> Result<Self> {
        let recipe = &plan.recipe;
        let model = &recipe.model;
        let backbone = ResNet::new(model, super::backbone_seed(recipe), device)?
            .with_precision(recipe.train.precision)
            .context("train.precision")?;
        let (features, dim) = (backbone.feature_dim(), recipe.bank.dim);
        let seed = Stream::Head.seed(recipe.seed);
        let heads = match (task, &plan.pretext) {
            (Task::Covariant, Some(pretext)) => {
                let (views, classes) = (pretext.views(), pretext.labels());
                let head = ClassifierHead::new(model, features, views, classes, seed, device)?;
                Heads::Covariant(head)
            }
            (Task::Covariant, None) => bail!("there is no transformation to predict"),
            (Task::Supervised(labels), _) => {
                let most = labels.iter().max().map_or(0, |&label| label as usize + 1);
                let classes = most.max(plan.pack.class_names().len());
                let head = ClassifierHead::new(model, features, 1, classes, seed, device)?;
                Heads::Supervised(head)
            }
            (Task::Invariant(_), pretext) => Heads::Invariant {
                f: {
                    let seed = Stream::ImageHead.seed(recipe.seed);
                    ProjectionHead::new(model, features, dim, seed, device)?
                },
                g: match pretext.as_ref().map(|pretext| pretext.views()) {
                    None => None,
                    Some(1) => {
                        let head = ProjectionHead::new(model, features, dim, seed, device)?;
                        Some(Box::new(head) as Box<dyn Head>)
                    }
                    Some(views) => {
                        let head = JigsawHead::new(model, features, views, dim, seed, device)?;
                        Some(Box::new(head))
                    }
                },
            },
        };
        Ok(Self {
            backbone,
            heads,
            normalize: plan.loader.normalize().clone(),
            upload: Upload::new(device)?,
        })
    }
}

fn invariant(plan: &Plan, device: &Device, further: &[Device]) -> Result<Invariant> {
    let recipe = &plan.recipe;
    let per_image = recipe.loss.sampling == Sampling::PerImage;
    ensure!(
        !per_image || further.is_empty() && (device.is_cpu() || !recipe.bank.on_host),
        "loss.sampling = \"per-image\" compares with rows all over the bank, which must be in the \
         memory of the one device: set loss.sampling = \"shared\", or give one --device and \
         bank.on_host = false"
    );
    let bank = MemoryBank::random(
        plan.pack.len(),
        recipe.bank.dim,
        recipe.bank.momentum,
        Stream::Bank.seed(recipe.seed),
        if recipe.bank.on_host {
            &Device::Cpu
        } else {
            device
        },
    )?;
    Ok(Invariant {
        loss: contrastive(&recipe.loss, plan.pack.len(), recipe.model.ops)?,
        lambda: recipe.loss.lambda,
        bank: bank.fast(recipe.model.ops == Ops::Fast),
        sampler: match recipe.loss.sampling {
            Sampling::Shared => Box::new(SharedSampler) as Box<dyn NegativeSampler>,
            Sampling::PerImage => Box::new(PerImageSampler),
        },
        negatives: recipe.loss.negatives,
        seed: recipe.seed,
    })
}

fn labels(pack: &Pack) -> Result<Vec<u32>> {
    let labels = pack.labels().context(
        "loss.kind = \"supervised\" learns from labels, but the images of --data have none; pack \
         them with labels, an image folder with a sub-folder for each class for instance",
    )?;
    let (least, most) = (labels.iter().min(), labels.iter().max());
    ensure!(
        least != most,
        "loss.kind = \"supervised\" learns to tell classes apart, but all images of --data are of one"
    );
    Ok(labels)
}

fn writing(path: &Path) -> String {
    format!("cannot write {}", path.display())
}

fn contrastive(config: &LossConfig, images: usize, ops: Ops) -> Result<Arc<dyn ContrastiveLoss>> {
    let (temperature, fast) = (config.temperature, ops == Ops::Fast);
    Ok(match config.kind {
        LossKind::Paper => Arc::new(Paper::new(temperature)?.fused(fast)),
        LossKind::Nce => Arc::new(Nce::new(temperature, images)?.fused(fast)),
        LossKind::InfoNce => Arc::new(InfoNce::new(temperature)?.fused(fast)),
        LossKind::Covariant | LossKind::Supervised => bail!("this loss compares no embeddings"),
    })
}

/// Loads a head, which must find all its tensors under `prefix` and no other.
fn load_head(head: &dyn Head, prefix: &str, saved: &HashMap<String, Tensor>) -> Result<()> {
    let report = head.load(&strip_prefix(saved, prefix))?;
    if let Some(name) = report.missing.first() {
        bail!("it has no tensor {prefix}{name}");
    }
    if let Some(name) = report.unexpected.first() {
        bail!("its tensor {prefix}{name} has no place");
    }
    Ok(())
}
