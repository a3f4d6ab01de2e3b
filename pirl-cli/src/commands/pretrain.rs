//! `pirl pretrain`

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};
use candle_core::Device;
use pirl_data::Pack;
use pirl_model::{ResNet, Trainable, read_backbone, save_backbone};
use pirl_train::{
    BACKBONE, Checkpoints, Ended, InitialWeights, MODEL, Objective, Pretraining, Training,
};
use serde_json::json;

use super::eval::{extraction, recompute_batch_norm};
use crate::args::PretrainArgs;
use crate::assemble::{Inputs, backbone_seed};
use crate::interrupt::Interrupted;
use crate::output::{print, print_json};
use crate::progress::Progress;
use crate::recipe::{BankInit, LossKind, Recipe};
use crate::run_dir::{RunDir, matters_to_pretraining};
use crate::session::{Session, nothing};
use crate::{device, weights};

/// Nothing is written before everything that can be checked has been.
pub(crate) fn run(args: &PretrainArgs) -> Result<()> {
    let mut recipe = Recipe::load(&args.recipe, &args.run.settings)?;
    if let Some(seed) = args.run.seed {
        recipe.seed = seed;
    }
    let devices = device::parse_several(&args.run.device)?;
    let (backbone, initial) = initial_weights(args, &mut recipe)?;
    let mut folder = RunDir::check(&args.out, &recipe, args.resume, matters_to_pretraining)?;
    folder.initial = initial;
    let inputs = Inputs::new(recipe, Pack::open(&args.data)?, devices.len())?;
    let kind = inputs.recipe.loss.kind;
    let command = Command {
        args,
        folder,
        devices,
        backbone,
    };
    match kind {
        LossKind::Covariant => {
            let objective = inputs.covariant()?;
            command.train(inputs, objective, |_, _| Ok(()))
        }
        LossKind::Supervised => {
            let objective = inputs.supervised()?;
            command.train(inputs, objective, |_, _| Ok(()))
        }
        LossKind::Paper | LossKind::Nce | LossKind::InfoNce => {
            let objective = inputs.pirl(&command.devices[0])?;
            let (recipe, pack) = (inputs.recipe.clone(), inputs.pack.clone());
            command.train(inputs, objective, |training, session| {
                if training.done() > 0 || recipe.bank.init == BankInit::Random {
                    return Ok(());
                }
                let (view, size) = (recipe.eval_view(), recipe.train.batch_size);
                let workers = recipe.loader.workers;
                let total = pack.len() as u64;
                let mut progress = Progress::new("filling the bank", "images", total, 0);
                let mut show = |done: usize, _| {
                    progress.at(done as u64, String::new);
                    !session.interrupt().seen()
                };
                let learner = training.learner_mut();
                let filled = learner.fill_bank(&pack, &view, size, workers, &mut show)?;
                progress.finish();
                if !filled {
                    bail!(Interrupted(
                        "the first step was not reached; run the same command again with --resume"
                            .to_owned()
                    ));
                }
                Ok(())
            })
        }
    }
}

/// The backbone to begin with, and what is kept about it, unless the weights are random. A run that has
/// a checkpoint needs its initial weights no more: without --init-weights they are not read.
fn initial_weights(
    args: &PretrainArgs,
    recipe: &mut Recipe,
) -> Result<(Option<ResNet>, Option<InitialWeights>)> {
    let recorded = InitialWeights::read(&args.out)?; // none of a new run
    let typed = args.init_weights.as_deref();
    let path = recorded.as_ref().map(|run| run.path.to_string_lossy());
    let Some(weights) = typed.or(path.as_deref()) else {
        return Ok((None, None));
    };
    if !args.run.settings.iter().any(|set| set.sets("bank.init")) {
        recipe.bank.init = match args.resume {
            true => RunDir::open(&args.out)?.recipe()?.bank.init,
            false => BankInit::Features,
        };
    }
    if typed.is_none() && Checkpoints::newest_in(&args.out.join("checkpoints"))?.is_some() {
        return Ok((None, recorded));
    }
    let (backbone, initial) = weights::initial(weights, recipe)?;
    if args.resume {
        initial.ensure_of(&args.out)?;
    }
    Ok((Some(backbone), Some(initial)))
}

/// A run that has been checked.
struct Command<'a> {
    args: &'a PretrainArgs,
    folder: RunDir,
    devices: Vec<Device>,
    /// What it begins with, unless with random weights.
    backbone: Option<ResNet>,
}

impl Command<'_> {
    /// Trains, after what `prepare` does once the run's folder is there.
    fn train<O: Objective>(
        self,
        inputs: Inputs,
        objective: O,
        prepare: impl FnOnce(&mut Pretraining<O>, &Session<'_>) -> Result<()>,
    ) -> Result<()> {
        let started = Instant::now();
        let recipe = inputs.recipe.clone();
        let pack = inputs.pack.clone();
        let mut identity = inputs.identity();
        if let Some(initial) = &self.folder.initial {
            identity = initial.identity(identity);
        }
        let learner = inputs.learner(objective, &self.devices)?;
        if let Some(backbone) = &self.backbone {
            learner.backbone().load(&backbone.state()?)?;
        }
        let mut training = inputs.pretraining(learner)?;
        let session = Session::open(
            &mut training,
            Some(self.folder.clone()),
            &recipe,
            identity,
            self.args.resume,
            format!(":\n  {}", resume_command(self.args, &self.folder)),
        )?;
        prepare(&mut training, &session)?;
        let ended = session.run(&mut training, &mut nothing)?;
        let checkpoint = ended.checkpoint.clone().unwrap_or_default();
        let weights = self.save_backbone(&recipe, &pack, &checkpoint)?;
        let seconds = started.elapsed().as_secs_f64();
        self.finish(&training, ended, &weights, training.skipped(), seconds)
    }

    /// Saves the backbone of a finished run beside its last checkpoint's files with precise batch-norm
    /// statistics, for evaluations and exports, if the recipe asks for them. Returns the file that these
    /// take.
    fn save_backbone(&self, recipe: &Recipe, pack: &Pack, checkpoint: &Path) -> Result<PathBuf> {
        let (model, path) = (checkpoint.join(MODEL), checkpoint.join(BACKBONE));
        if path.is_file() {
            return Ok(path); // the run was finished before
        }
        if recipe.eval.precise_batch_norm == 0 {
            return Ok(model);
        }
        let backbone = ResNet::new(&recipe.model, backbone_seed(recipe), &self.devices[0])?;
        backbone
            .load(&read_backbone(&model)?.state)?
            .ensure_whole()?;
        let statistics = recompute_batch_norm(&backbone, recipe, pack, &extraction(recipe), None)?;
        let images = statistics["images"].as_u64().map(|images| images as usize);
        save_backbone(&path, &backbone.state()?, images)?;
        Ok(path)
    }

    fn finish<T: Training>(
        &self,
        training: &T,
        ended: Ended,
        weights: &Path,
        skipped: u64,
        seconds: f64,
    ) -> Result<()> {
        let out = &self.args.out;
        let (steps, epochs) = (
            training.done(),
            training.done() / training.steps_per_epoch().max(1),
        );
        let checkpoint = ended.checkpoint.unwrap_or_default();
        if self.args.run.json {
            return print_json(&json!({
                "run": out,
                "steps": steps,
                "epochs": epochs,
                "loss": ended.loss,
                "skipped": skipped,
                "seconds": seconds,
                "checkpoint": checkpoint,
                "weights": weights,
                "init_weights": self.folder.initial,
            }));
        }
        let loss = match ended.loss {
            Some(loss) => format!("last loss {loss:.4}"),
            None => "nothing was left to do".to_owned(),
        };
        print(&format!(
            "{}: {steps} steps, {epochs} epochs, {loss}, {seconds:.0} s\nweights  {}\nreport   {}",
            out.display(),
            weights.display(),
            self.folder.report().display()
        ))
    }
}

fn resume_command(args: &PretrainArgs, folder: &RunDir) -> String {
    let device = match args.run.device.as_str() {
        "cpu" => String::new(),
        other => format!(" --device {other}"),
    };
    format!(
        "pirl pretrain --recipe {} --data {} --out {} --resume{device}",
        quoted(&folder.config()),
        quoted(&args.data),
        quoted(&args.out)
    )
}

/// The path as a shell takes it.
fn quoted(path: &Path) -> String {
    let path = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%".contains(c);
    if !path.is_empty() && path.chars().all(plain) {
        path.into_owned()
    } else {
        format!("'{}'", path.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_for_a_shell() {
        assert_eq!(quoted(Path::new("runs/a-1")), "runs/a-1");
        assert_eq!(quoted(Path::new("my 'run'")), r"'my '\''run'\'''");
    }
}
