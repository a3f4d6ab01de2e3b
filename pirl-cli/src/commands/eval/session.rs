//! A training that an evaluation consists of: its checkpoints in `--out`, and how it goes on.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use pirl_data::Pack;
use pirl_eval::Training;
use serde_json::Value;

use super::Task;
use crate::args::EvalArgs;
use crate::checkpoint::{Checkpoints, State};
use crate::interrupt::{Interrupt, Interrupted};
use crate::progress::Progress;

/// Where a training keeps its checkpoints, and what tells them from another's.
pub(super) struct Session {
    every: u64,
    state: State,
    checkpoints: Option<Checkpoints>,
}

impl Session {
    /// Of a training on `pack` with these settings.
    pub(super) fn new(args: &EvalArgs, task: &Task, pack: &Pack, settings: &Value) -> Result<Self> {
        // Everything that the steps depend on.
        let identity = format!(
            "images {}, weights {}, model {}, settings {settings}",
            pack.fingerprint(),
            task.weights,
            serde_json::to_string(&task.recipe.model)?,
        );
        let recipe = &task.recipe;
        let folder = args.out.as_ref().map(|out| out.join("checkpoints"));
        Ok(Self {
            every: recipe.checkpoint.every,
            state: State::new(0, 0, recipe.seed, pack.len(), &identity, None),
            checkpoints: folder.map(|folder| Checkpoints::new(folder, recipe.checkpoint.keep)),
        })
    }

    /// Trains to the end, from the newest checkpoint if there is one and `resume` asks for it.
    pub(super) fn run<T: Training>(&self, training: &mut T, resume: bool) -> Result<()> {
        ensure!(
            !resume || self.checkpoints.is_some(),
            "--resume needs the --out that the checkpoints are in"
        );
        if let Some((folder, done)) = self.newest::<T>(resume)? {
            training.restore(&folder, done)?;
        }
        self.train(training)
    }

    /// The newest checkpoint and its steps, if there is one to go on from.
    fn newest<T: Training>(&self, resume: bool) -> Result<Option<(PathBuf, usize)>> {
        let Some(checkpoints) = &self.checkpoints else {
            return Ok(None);
        };
        let Some(path) = checkpoints.newest()? else {
            return Ok(None);
        };
        ensure!(
            resume,
            "{} is of a {} that was begun here; go on with it by --resume, or choose another --out",
            path.display(),
            T::WHAT
        );
        let found = State::read(&path)?;
        ensure!(
            (&found.fingerprint, found.seed) == (&self.state.fingerprint, self.state.seed),
            "{} is of another {} (seed {}, {}), not of this one (seed {}, {})",
            path.display(),
            T::WHAT,
            found.seed,
            found.fingerprint,
            self.state.seed,
            self.state.fingerprint
        );
        Ok(Some((path, usize::try_from(found.step)?)))
    }

    fn train<T: Training>(&self, training: &mut T) -> Result<()> {
        let interrupt = Interrupt::install()?;
        let (total, epoch) = (training.steps(), training.steps_per_epoch());
        let first = training.done() as u64;
        let mut progress = Progress::new(T::WHAT, "steps", total as u64, first);
        while training.done() < total {
            training.train(&mut |done, loss| {
                progress.at(done as u64, || {
                    format!("epoch {} loss {loss:.4}", (done - 1) / epoch + 1)
                });
                let due = (done as u64).is_multiple_of(self.every); // 0: never
                due || interrupt.seen()
            })?;
            let saved = self.save(training)?;
            if interrupt.seen() && training.done() < total {
                progress.finish();
                match saved {
                    Some(path) => bail!(Interrupted(format!(
                        "{} of {total} steps are done and saved in {}; to go on, give the same \
                         command with --resume",
                        training.done(),
                        path.display()
                    ))),
                    None => bail!(Interrupted(
                        "nothing is kept without --out; start again with it".to_owned()
                    )),
                }
            }
        }
        progress.finish();
        Ok(())
    }

    fn save<T: Training>(&self, training: &mut T) -> Result<Option<PathBuf>> {
        let Some(checkpoints) = &self.checkpoints else {
            return Ok(None);
        };
        let done = training.done();
        let mut state = self.state.clone();
        state.step = done as u64;
        state.epoch = (done / training.steps_per_epoch()) as u64;
        let path = checkpoints.write(&state, |folder| Ok(training.save(folder)?))?;
        Ok(Some(path))
    }
}
