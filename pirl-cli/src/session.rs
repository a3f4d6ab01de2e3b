//! A training on the command line: its folder, what is shown and logged of it, and how it ends early.
//!
//! Pre-training, fine-tuning, linear probes on random crops and detectors all run here, by
//! [`pirl_train::run`], so they behave alike.

use anyhow::{Error, Result, bail};
use pirl_core::FolderLock;
use pirl_recipes::Recipe;
use pirl_report::RunLog;
use pirl_train::{
    BoxError, Checkpoints, Ended, Health, Identity, Metric, Observer, Row, RunOptions, Step,
    TrainError, Training, resume, run, save,
};

use crate::commands::report;
use crate::interrupt::{Interrupt, Interrupted};
use crate::progress::Progress;
use crate::run_dir::RunDir;

/// A training about to run.
pub(crate) struct Session<'a> {
    recipe: &'a Recipe,
    /// `None`: nothing is kept.
    kept: Option<Kept>,
    interrupt: Interrupt,
    /// How to go on after an interruption.
    resume_command: String,
    /// What is handed each line that is logged.
    pub(crate) log_command: Option<&'a str>,
}

/// What a folder keeps of a training.
struct Kept {
    folder: RunDir,
    checkpoints: Checkpoints,
    _lock: FolderLock,
}

/// Evaluates a training after a step, and returns what to log with it.
pub(crate) type AfterStep<'a, T> =
    &'a mut dyn FnMut(
        &T,
        &Step,
        &Progress,
    ) -> Result<Vec<(&'static str, Metric)>, <T as Training>::Error>;

impl<'a> Session<'a> {
    /// Begins a training in `folder`, which has been checked, or goes on with the one there: restores
    /// `training` from its newest checkpoint. Nothing is written before that.
    pub(crate) fn open<T>(
        training: &mut T,
        folder: Option<RunDir>,
        recipe: &'a Recipe,
        identity: Identity,
        resumes: bool,
        resume_command: String,
    ) -> Result<Self>
    where
        T: Training<Error: Into<anyhow::Error> + Into<BoxError>>,
    {
        let begins = folder
            .as_ref()
            .is_some_and(|folder| folder.initial.is_some());
        let kept = match folder {
            None => None,
            Some(folder) => {
                let keep = recipe.checkpoint.keep;
                let checkpoints = Checkpoints::new(folder.checkpoints(), keep, identity);
                let lock = folder.lock(resumes)?;
                if resumes {
                    restore(training, &checkpoints, &folder)?;
                }
                folder.begin(recipe)?;
                Some(Kept {
                    folder,
                    checkpoints,
                    _lock: lock,
                })
            }
        };
        let begins = training.any(begins && training.done() == 0);
        if begins.map_err(Into::<anyhow::Error>::into)? {
            // What the run begins as, for evaluations, and to go on without the file of weights.
            let checkpoints = kept.as_ref().map(|kept| &kept.checkpoints);
            save(training, checkpoints).map_err(|error| way_out(error.into()))?;
        }
        Ok(Self {
            recipe,
            kept,
            interrupt: Interrupt::install()?,
            resume_command,
            log_command: None,
        })
    }

    /// What Ctrl-C sets.
    pub(crate) fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    fn open_log(&self, kept: &Kept, done: u64) -> Result<RunLog, BoxError> {
        let (folder, metrics) = (kept.folder.path(), kept.folder.metrics());
        RunLog::open(folder, &metrics, done, self.log_command)
    }

    /// Runs the training to its last step. An interrupted one is saved, and an error that says how to
    /// go on.
    pub(crate) fn run<T>(&self, training: &mut T, after_step: AfterStep<'_, T>) -> Result<Ended>
    where
        T: Training<Error: Into<anyhow::Error> + Into<BoxError>>,
    {
        let (done, steps) = (training.done(), training.steps());
        let mut display = Display {
            log: match &self.kept {
                Some(kept) => Some(self.open_log(kept, done).map_err(Error::from_boxed)?),
                None => None,
            },
            health: Health::new(steps / training.steps_per_epoch().max(1)),
            progress: Progress::new(training.name(), "steps", steps, done),
            interrupt: &self.interrupt,
            after_step,
        };
        let options = RunOptions {
            log_every: self.recipe.log.every,
            checkpoint_every: self.recipe.checkpoint.every,
        };
        let checkpoints = self.kept.as_ref().map(|kept| &kept.checkpoints);
        let ended = run(training, checkpoints, &options, &mut display);
        display.progress.finish();
        display.log.into_iter().for_each(RunLog::finish);
        let ended = ended.map_err(|error| way_out(error.into()))?;
        if let Some(kept) = &self.kept {
            report::write(&kept.folder)?;
        }
        if ended.interrupted {
            bail!(Interrupted(match &ended.checkpoint {
                Some(path) => format!(
                    "{} of {steps} steps are done and saved in {}; to go on{}",
                    training.done(),
                    path.display(),
                    self.resume_command
                ),
                None => "nothing is kept without --out; start again with it".to_owned(),
            }));
        }
        Ok(ended)
    }
}

fn restore<T>(training: &mut T, checkpoints: &Checkpoints, folder: &RunDir) -> Result<()>
where
    T: Training<Error: Into<anyhow::Error>>,
{
    let path = folder.path().display();
    let found = resume(training, checkpoints).map_err(|error| {
        let error: anyhow::Error = error.into();
        let other = matches!(error.downcast_ref(), Some(TrainError::OtherTraining { .. }));
        let error = error.context(format!("resuming {path}"));
        if other {
            return error.context(
                "the checkpoint is from other data or weights: give those it was made with, or \
                 start a new run",
            );
        }
        error
    })?;
    if found.is_none() {
        tracing::warn!("{path} has no checkpoint yet: starting from the first step");
    }
    Ok(())
}

/// What to do about an error, in terms of the command line.
fn way_out(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref() {
        Some(TrainError::LossNotFinite { .. }) => error.context(
            "training has diverged; earlier checkpoints are whole: go on from them in a new run with \
             a smaller learning rate (optim.lr) or a longer warm-up (schedule.warmup_epochs)",
        ),
        Some(TrainError::NotSaved { earlier, .. }) => {
            let advice = match earlier {
                Some(path) => format!(
                    "{} is whole: free some space and go on from there with --resume",
                    path.display()
                ),
                None => "there is no earlier checkpoint; free some space and start again".to_owned(),
            };
            error.context(advice)
        }
        _ => error,
    }
}

/// Shows and logs the steps of a training.
struct Display<'a, T: Training> {
    log: Option<RunLog>,
    health: Health,
    progress: Progress,
    interrupt: &'a Interrupt,
    after_step: AfterStep<'a, T>,
}

impl<T: Training> Observer<T> for Display<'_, T> {
    fn after_step(
        &mut self,
        training: &T,
        step: &Step,
    ) -> Result<Vec<(&'static str, Metric)>, T::Error> {
        let (done, epoch) = (training.done(), training.steps_per_epoch().max(1));
        self.progress.at(done, || {
            let (epoch, epochs) = ((done - 1) / epoch + 1, training.steps().div_ceil(epoch));
            format!("epoch {epoch}/{epochs} loss {:.4}", step.loss)
        });
        (self.after_step)(training, step, &self.progress)
    }

    fn log(&mut self, row: &Row) -> Result<(), BoxError> {
        if let Some(trouble) = self.health.observe(row) {
            tracing::warn!("epoch {}: {trouble}", row.epoch);
        }
        match &mut self.log {
            Some(log) => log.write(row),
            None => Ok(()),
        }
    }

    fn interrupted(&self) -> bool {
        self.interrupt.seen()
    }
}

/// Nothing to do after a step.
pub(crate) fn nothing<T: Training>(
    _: &T,
    _: &Step,
    _: &Progress,
) -> Result<Vec<(&'static str, Metric)>, T::Error> {
    Ok(Vec::new())
}
