//! Making what learns, saving it and bringing it back.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor};
use pirl_bank::{MemoryBank, NegativeSampler, PerImageSampler, SharedSampler};
use pirl_data::Pack;
use pirl_loss::{ContrastiveLoss, InfoNce, Nce, Paper};
use pirl_model::{
    Backbone, Buffers, ClassifierHead, Head, JigsawHead, LossScale, Ops, Optimizer, ParamSet,
    ProjectionHead, ResNet, load_state_dict, save_state_dict, save_tensors, strip_prefix,
};

use super::descent::Descent;
use super::plan::Plan;
use super::random::Stream;
use super::step::{Invariant, Learner, Supervised, Task};
use crate::checkpoint::{BANK, MODEL, OPTIMIZER};
use crate::recipe::{LossConfig, LossKind, Sampling};
use crate::weights::load_backbone;

const HEAD_F: &str = "head.f.";
const HEAD_G: &str = "head.g.";
const HEAD_COVARIANT: &str = "head.covariant.";
const HEAD_SUPERVISED: &str = "head.supervised.";

impl Learner {
    /// An untrained learner; its bank holds random unit vectors.
    pub(crate) fn new(plan: &Plan, device: &Device) -> Result<Self> {
        let recipe = &plan.recipe;
        let backbone = ResNet::new(&recipe.model, super::backbone_seed(recipe), device)?
            .with_precision(recipe.train.precision)
            .context("train.precision")?;
        let features = backbone.feature_dim();
        let head_seed = Stream::Head.seed(recipe.seed);
        let task = match (recipe.loss.kind, &plan.pretext) {
            (LossKind::Covariant, Some(pretext)) => Task::Covariant(ClassifierHead::new(
                &recipe.model,
                features,
                pretext.views(),
                pretext.labels(),
                head_seed,
                device,
            )?),
            (LossKind::Covariant, None) => bail!("there is no transformation to predict"),
            (LossKind::Supervised, _) => {
                let labels = labels(&plan.pack)?;
                let most = labels.iter().max().map_or(0, |&label| label as usize + 1);
                let classes = most.max(plan.pack.class_names().len());
                let classifier =
                    ClassifierHead::new(&recipe.model, features, 1, classes, head_seed, device)?;
                Task::Supervised(Supervised { classifier, labels })
            }
            (_, pretext) => Task::Invariant(Invariant {
                f: ProjectionHead::new(
                    &recipe.model,
                    features,
                    recipe.bank.dim,
                    Stream::ImageHead.seed(recipe.seed),
                    device,
                )?,
                g: match pretext {
                    None => None,
                    Some(pretext) if pretext.views() == 1 => Some(Box::new(ProjectionHead::new(
                        &recipe.model,
                        features,
                        recipe.bank.dim,
                        head_seed,
                        device,
                    )?)),
                    Some(pretext) => Some(Box::new(JigsawHead::new(
                        &recipe.model,
                        features,
                        pretext.views(),
                        recipe.bank.dim,
                        head_seed,
                        device,
                    )?)),
                },
                loss: contrastive(&recipe.loss, plan.pack.len(), recipe.model.ops)?,
                lambda: recipe.loss.lambda,
                bank: MemoryBank::random(
                    plan.pack.len(),
                    recipe.bank.dim,
                    recipe.bank.momentum,
                    Stream::Bank.seed(recipe.seed),
                    device,
                )?
                .fast(recipe.model.ops == Ops::Fast),
                sampler: match recipe.loss.sampling {
                    Sampling::Shared => Box::new(SharedSampler) as Box<dyn NegativeSampler>,
                    Sampling::PerImage => Box::new(PerImageSampler),
                },
                negatives: recipe.loss.negatives,
                seed: recipe.seed,
            }),
        };
        let trained = modules(&backbone, &task)
            .into_iter()
            .map(|module| module.parameters.clone())
            .collect();
        Ok(Self {
            descent: Descent::new(
                Optimizer::new(&recipe.optim, trained)?.with_ops(recipe.model.ops),
                recipe.train.precision,
            ),
            backbone,
            task,
            device: device.clone(),
            normalize: plan.loader.normalize().clone(),
        })
    }

    /// Writes the tensors of a checkpoint into `folder`.
    pub(crate) fn save(&self, folder: &Path) -> Result<()> {
        let modules = modules(&self.backbone, &self.task);
        let sets: Vec<_> = modules
            .iter()
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
            let rows = bank.rows().to_device(&self.device)?;
            let fast = self.backbone.config().ops == Ops::Fast;
            task.bank = MemoryBank::from_rows(rows, momentum)?.fast(fast);
            if let Some(state) = loss {
                task.loss.set_state(state)?;
            }
        }
        Ok(())
    }

    fn load_modules(&self, saved: &HashMap<String, Tensor>) -> Result<()> {
        load_backbone(&self.backbone, saved)?;
        match &self.task {
            Task::Invariant(task) => {
                load_head(&task.f, HEAD_F, saved)?;
                match &task.g {
                    Some(g) => load_head(g.as_ref(), HEAD_G, saved),
                    None => Ok(()),
                }
            }
            Task::Covariant(head) => load_head(head, HEAD_COVARIANT, saved),
            Task::Supervised(task) => load_head(&task.classifier, HEAD_SUPERVISED, saved),
        }
    }

    /// What the loss has learnt.
    pub(crate) fn loss_state(&self) -> Option<f64> {
        match &self.task {
            Task::Invariant(task) => task.loss.state(),
            Task::Covariant(_) | Task::Supervised(_) => None,
        }
    }
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

fn contrastive(config: &LossConfig, images: usize, ops: Ops) -> Result<Box<dyn ContrastiveLoss>> {
    let (temperature, fast) = (config.temperature, ops == Ops::Fast);
    Ok(match config.kind {
        LossKind::Paper => Box::new(Paper::new(temperature)?.fused(fast)),
        LossKind::Nce => Box::new(Nce::new(temperature, images)?.fused(fast)),
        LossKind::InfoNce => Box::new(InfoNce::new(temperature)?.fused(fast)),
        LossKind::Covariant | LossKind::Supervised => bail!("this loss compares no embeddings"),
    })
}

/// A module as checkpoints name it.
struct Module<'a> {
    /// Empty for the backbone, so that its names are torchvision's.
    prefix: &'static str,
    parameters: &'a ParamSet,
    buffers: &'a Buffers,
}

fn modules<'a>(backbone: &'a ResNet, task: &'a Task) -> Vec<Module<'a>> {
    fn module<'a>(prefix: &'static str, head: &'a dyn Head) -> Module<'a> {
        Module {
            prefix,
            parameters: head.parameters(),
            buffers: head.buffers(),
        }
    }
    let mut modules = vec![Module {
        prefix: "",
        parameters: backbone.parameters(),
        buffers: backbone.buffers(),
    }];
    match task {
        Task::Invariant(task) => {
            modules.push(module(HEAD_F, &task.f));
            modules.extend(task.g.as_deref().map(|g| module(HEAD_G, g)));
        }
        Task::Covariant(head) => modules.push(module(HEAD_COVARIANT, head)),
        Task::Supervised(task) => modules.push(module(HEAD_SUPERVISED, &task.classifier)),
    }
    modules
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
