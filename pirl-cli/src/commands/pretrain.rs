//! `pirl pretrain`

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};
use candle_core::Device;
use pirl_data::Pack;
use pirl_train::{Ended, Objective, Pretraining, Training};
use serde_json::json;

use crate::args::PretrainArgs;
use crate::assemble::Inputs;
use crate::device;
use crate::interrupt::Interrupted;
use crate::output::{print, print_json};
use crate::progress::Progress;
use crate::recipe::{BankInit, LossKind, Recipe};
use crate::run_dir::{RunDir, matters_to_pretraining};
use crate::session::{Session, nothing};

/// Nothing is written before everything that can be checked has been.
pub(crate) fn run(args: &PretrainArgs) -> Result<()> {
    let mut recipe = Recipe::load(&args.recipe, &args.run.settings)?;
    if let Some(seed) = args.run.seed {
        recipe.seed = seed;
    }
    let devices = device::parse_several(&args.run.device)?;
    let folder = RunDir::check(&args.out, &recipe, args.resume, matters_to_pretraining)?;
    let inputs = Inputs::new(recipe, Pack::open(&args.data)?, devices.len())?;
    let kind = inputs.recipe.loss.kind;
    let command = Command {
        args,
        folder,
        devices,
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

/// A run that has been checked.
struct Command<'a> {
    args: &'a PretrainArgs,
    folder: RunDir,
    devices: Vec<Device>,
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
        let identity = inputs.identity();
        let learner = inputs.learner(objective, &self.devices)?;
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
        let seconds = started.elapsed().as_secs_f64();
        self.finish(&training, ended, training.skipped(), seconds)
    }

    fn finish<T: Training>(
        &self,
        training: &T,
        ended: Ended,
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
            }));
        }
        let loss = match ended.loss {
            Some(loss) => format!("last loss {loss:.4}"),
            None => "nothing was left to do".to_owned(),
        };
        print(&format!(
            "{}: {steps} steps, {epochs} epochs, {loss}, {seconds:.0} s\nweights  {}\nreport   {}",
            out.display(),
            checkpoint.join(pirl_train::MODEL).display(),
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
