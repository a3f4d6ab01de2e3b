//! Pre-training: batches in, steps, and what is written on the way.

mod bank;
mod crew;
mod descent;
mod learner;
mod plan;
mod random;
mod replica;
mod step;
#[cfg(test)]
mod trajectory;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pirl_model::LossScale;

pub(crate) use plan::{Plan, loader, pretext};
pub(crate) use step::{Learner, Losses};

use crate::checkpoint::{Checkpoints, State};
use crate::files;
use crate::interrupt::{Interrupt, Interrupted};
use crate::metrics::{self, Metrics, Row};
use crate::progress::Progress;
use crate::recipe::{BankInit, Recipe};
use crate::report;
use crate::run_dir::RunDir;
use crate::tensorboard::TensorBoard;

/// A run that is ready to go on after `done` steps.
pub(crate) struct Run<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) learner: Learner,
    pub(crate) folder: &'a RunDir,
    /// How to go on after an interruption, a command.
    pub(crate) resume_command: String,
    pub(crate) done: u64,
}

/// How a run ended.
pub(crate) struct Summary {
    pub(crate) steps: u64,
    pub(crate) epochs: u64,
    /// Loss of the last step, if this process did one.
    pub(crate) loss: Option<f32>,
    pub(crate) skipped: u64,
    pub(crate) seconds: f64,
    pub(crate) checkpoint: std::path::PathBuf,
}

/// Brings back the learner of the run's newest checkpoint and says how many steps it has done;
/// 0 when there is no checkpoint yet.
pub(crate) fn restore(learner: &mut Learner, plan: &Plan, folder: &RunDir) -> Result<u64> {
    let Some(path) = checkpoints(plan, folder).newest()? else {
        tracing::warn!(
            "{} has no checkpoint yet: starting from the first step",
            folder.path().display()
        );
        return Ok(0);
    };
    let state = State::read(&path)?;
    ensure!(
        state.fingerprint == plan.pack.fingerprint(),
        "{} is a checkpoint from other data: its {} images have fingerprint {}, these {} have {}; \
         give the pack it was made with, or start a new run",
        path.display(),
        state.images,
        state.fingerprint,
        plan.pack.len(),
        plan.pack.fingerprint()
    );
    learner
        .restore(&path, state.loss, state.loss_scale)
        .with_context(|| format!("resuming from {}", path.display()))?;
    Ok(state.step)
}

/// The seed an untrained backbone is drawn with: evaluations compare with the very network a run
/// began as.
pub(crate) fn backbone_seed(recipe: &Recipe) -> u64 {
    random::Stream::Backbone.seed(recipe.seed)
}

fn checkpoints(plan: &Plan, folder: &RunDir) -> Checkpoints {
    Checkpoints::new(folder.checkpoints(), plan.recipe.checkpoint.keep)
}

impl Run<'_> {
    /// Trains to the last step, or until `interrupt`.
    pub(crate) fn train(mut self, interrupt: &Interrupt) -> Result<Summary> {
        let started = Instant::now();
        let plan = self.plan;
        let recipe = &plan.recipe;
        let checkpoints = checkpoints(plan, self.folder);
        let mut metrics = Metrics::open::<Row>(&self.folder.metrics(), self.done)?;
        let mut board = TensorBoard::create(self.folder.path(), self.done)?;
        if self.done == 0 && recipe.bank.init == BankInit::Features {
            self.learner.fill_bank(plan, interrupt)?;
        }
        let mut progress = Progress::new("training", "steps", plan.steps, self.done);
        let mut meter = Meter::new();
        let batch_size = recipe.train.batch_size;
        let mut batches = plan.batches(self.done);
        let (mut last, mut skipped) = (None, 0);
        while self.done < plan.steps {
            let parts = (0..plan.loader.parts()).map(|_| {
                let waiting = Instant::now();
                let part = batches.next().context("the loader ended early")??;
                meter.waited(waiting.elapsed());
                skipped += part.skipped as u64;
                Ok(part)
            });
            let lr = plan.schedule.lr(self.done as usize);
            let losses = self.learner.step(parts, batch_size, self.done + 1, lr)?;
            self.done += 1;
            meter.step(batch_size);
            last = Some(losses.total);

            if self.done.is_multiple_of(recipe.log.every) || self.done == plan.steps {
                let row = self.row(losses, lr, skipped, meter.take());
                metrics.write(&row)?;
                draw(&mut board, &row)?;
            }
            progress.at(self.done, || {
                let epoch = (self.done - 1) / plan.steps_per_epoch + 1;
                format!(
                    "epoch {epoch}/{} loss {:.4}",
                    recipe.train.epochs, losses.total
                )
            });
            let every = recipe.checkpoint.every; // 0: no step is a multiple of it
            if self.done.is_multiple_of(every) {
                self.save(&checkpoints)?;
            }
            if interrupt.seen() && self.done < plan.steps {
                progress.finish();
                let path = self.save(&checkpoints)?;
                bail!(Interrupted(format!(
                    "{} of {} steps are done and saved in {}; to go on:\n  {}",
                    self.done,
                    plan.steps,
                    path.display(),
                    self.resume_command
                )));
            }
        }
        progress.finish();
        let checkpoint = self.save(&checkpoints)?;
        write_report(self.folder)?;
        Ok(Summary {
            steps: self.done,
            epochs: self.done / plan.steps_per_epoch,
            loss: last,
            skipped,
            seconds: started.elapsed().as_secs_f64(),
            checkpoint,
        })
    }

    fn save(&self, checkpoints: &Checkpoints) -> Result<std::path::PathBuf> {
        let mut state = State::new(
            self.done,
            self.done / self.plan.steps_per_epoch,
            self.plan.recipe.seed,
            self.plan.pack.len(),
            self.plan.pack.fingerprint(),
            self.learner.loss_state(),
        );
        state.loss_scale = self.learner.descent.scale;
        checkpoints.write(&state, |folder: &Path| self.learner.save(folder))
    }

    fn row(&self, losses: Losses, lr: f64, skipped: u64, pace: Pace) -> Row {
        let scale = self.learner.descent.scale.as_ref();
        Row {
            step: self.done,
            epoch: (self.done - 1) / self.plan.steps_per_epoch + 1,
            loss: losses.total,
            loss_image: losses.image,
            loss_patch: losses.patch,
            top1: losses.top1,
            lr,
            images_per_second: pace.images_per_second,
            data_wait: pace.data_wait,
            skipped,
            loss_scale: scale.map(LossScale::value),
            skipped_steps: scale.map(LossScale::skipped),
        }
    }
}

fn draw(board: &mut TensorBoard, row: &Row) -> Result<()> {
    let mut points = vec![
        ("loss/total", row.loss),
        ("lr", row.lr as f32),
        ("speed/images_per_second", row.images_per_second as f32),
        ("speed/data_wait", row.data_wait as f32),
    ];
    points.extend(row.loss_image.map(|loss| ("loss/image", loss)));
    points.extend(row.loss_patch.map(|loss| ("loss/patch", loss)));
    points.extend(row.top1.map(|top1| ("top1", top1)));
    points.extend(row.loss_scale.map(|scale| ("loss/scale", scale as f32)));
    board.scalars(row.step, &points)
}

fn write_report(folder: &RunDir) -> Result<()> {
    let rows = metrics::read::<Row>(&folder.metrics())?;
    let config = std::fs::read_to_string(folder.config())
        .with_context(|| format!("cannot read {}", folder.config().display()))?;
    let title = folder.path().display().to_string();
    files::write_whole(
        &folder.report(),
        report::html(&title, &rows, &config).as_bytes(),
    )
}

/// Speed since the last logged step.
struct Meter {
    since: Instant,
    images: usize,
    waited: Duration,
}

struct Pace {
    images_per_second: f64,
    data_wait: f64,
}

impl Meter {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            images: 0,
            waited: Duration::ZERO,
        }
    }

    fn waited(&mut self, time: Duration) {
        self.waited += time;
    }

    fn step(&mut self, images: usize) {
        self.images += images;
    }

    fn take(&mut self) -> Pace {
        let meter = std::mem::replace(self, Self::new());
        let elapsed = meter.since.elapsed().as_secs_f64();
        Pace {
            images_per_second: meter.images as f64 / elapsed.max(1e-9),
            data_wait: meter.waited.as_secs_f64(),
        }
    }
}
