//! `pirl eval finetune`: the whole network, trained on all or a few labels.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use pirl_data::{ImageView, Pack, ViewConfig};
use pirl_eval::{Finetune, FinetuneReport, LabelSubset};
use serde_json::{Value, json};

use super::published::Protocol;
use super::{Task, finish};
use crate::args::FinetuneArgs;
use crate::checkpoint::{Checkpoints, State};
use crate::files::write_whole;
use crate::interrupt::{Interrupt, Interrupted};
use crate::progress::Progress;

pub(crate) fn finetune(args: &FinetuneArgs) -> Result<()> {
    let full = args.label_fraction.is_none_or(|fraction| fraction == 1.0);
    let protocol = Protocol::Finetune {
        full: full && args.labels.is_none(),
    };
    let mut task = Task::open(&args.eval, protocol)?;
    if let Some(fraction) = args.label_fraction {
        task.recipe.eval.finetune.label_fraction = fraction;
    }
    let subset = choose(args, &mut task)?;
    let pack = subset.of(&task.train)?;
    let config = &task.recipe.eval.finetune;
    let mut tuner = Finetune::new(
        config,
        &task.backbone,
        &task.recipe.model,
        pack.clone(),
        train_view(&task)?,
        task.recipe.loader.workers,
        task.recipe.seed,
    )?;
    let mut settings = serde_json::to_value(config)?;
    settings["crop_scale"] = json!(task.recipe.eval.crop_scale);
    settings["flip"] = json!(task.recipe.eval.flip);

    let session = Session::open(args, &task, &pack, &settings)?;
    if let Some((folder, done)) = session.newest(args.resume)? {
        tuner.restore(&folder, done)?;
    }
    let labels = session.write_labels(&subset)?;
    session.train(&mut tuner)?;

    let report = {
        let (eval, total) = (&task.recipe.eval, task.test.len() as u64);
        let mut progress = Progress::new("testing", "images", total, 0);
        let report = tuner.evaluate(
            &task.test,
            &task.recipe.eval_view(),
            eval.batch_size,
            task.recipe.loader.workers,
            &mut |done, _| progress.at(done as u64, String::new),
        )?;
        progress.finish();
        report
    };
    let mut facts = task.facts(&args.eval, settings);
    facts["labels"] = json!(labels);
    finish(&args.eval, &report, facts, protocol, || table(&report))
}

/// The labelled images: those of `--labels`, or a balanced draw.
fn choose(args: &FinetuneArgs, task: &mut Task) -> Result<LabelSubset> {
    let Some(path) = &args.labels else {
        let fraction = task.recipe.eval.finetune.label_fraction;
        return Ok(LabelSubset::balanced(
            &task.train,
            fraction,
            task.recipe.seed,
        )?);
    };
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let subset = LabelSubset::parse(&text, &task.train)
        .with_context(|| format!("the list {}", path.display()))?;
    task.recipe.eval.finetune.label_fraction = subset.fraction();
    Ok(subset)
}

/// Random crops and flips, no colours.
fn train_view(task: &Task) -> Result<ImageView> {
    let eval = &task.recipe.eval;
    let config = ViewConfig {
        scale: eval.crop_scale,
        flip: eval.flip,
        ..ViewConfig::default()
    };
    let view = ImageView::new(&task.recipe.data, &config.without_colors())?;
    Ok(view)
}

/// What is kept in `--out` on the way.
struct Session<'a> {
    out: Option<&'a Path>,
    every: u64,
    state: State,
    checkpoints: Option<Checkpoints>,
}

impl<'a> Session<'a> {
    fn open(args: &'a FinetuneArgs, task: &Task, pack: &Pack, settings: &Value) -> Result<Self> {
        let out = args.eval.out.as_deref();
        ensure!(
            !args.resume || out.is_some(),
            "--resume needs the --out that the checkpoints are in"
        );
        // Everything that the steps depend on.
        let identity = format!(
            "images {}, weights {}, model {}, settings {settings}",
            pack.fingerprint(),
            task.weights,
            serde_json::to_string(&task.recipe.model)?,
        );
        let recipe = &task.recipe;
        Ok(Self {
            out,
            every: recipe.checkpoint.every,
            state: State::new(0, 0, recipe.seed, pack.len(), &identity, None),
            checkpoints: out
                .map(|out| Checkpoints::new(out.join("checkpoints"), recipe.checkpoint.keep)),
        })
    }

    /// The newest checkpoint and its steps, if there is one to go on from.
    fn newest(&self, resume: bool) -> Result<Option<(PathBuf, usize)>> {
        let Some(checkpoints) = &self.checkpoints else {
            return Ok(None);
        };
        let Some(path) = checkpoints.newest()? else {
            return Ok(None);
        };
        ensure!(
            resume,
            "{} is of a fine-tuning that was begun here; go on with it by --resume, or choose \
             another --out",
            path.display()
        );
        let found = State::read(&path)?;
        ensure!(
            (&found.fingerprint, found.seed) == (&self.state.fingerprint, self.state.seed),
            "{} is of another fine-tuning (seed {}, {}), not of this one (seed {}, {})",
            path.display(),
            found.seed,
            found.fingerprint,
            self.state.seed,
            self.state.fingerprint
        );
        Ok(Some((path, usize::try_from(found.step)?)))
    }

    /// The list of the labelled images, for others to use.
    fn write_labels(&self, subset: &LabelSubset) -> Result<Option<PathBuf>> {
        let Some(out) = self.out else {
            return Ok(None);
        };
        let path = out.join("labels.txt");
        write_whole(&path, subset.to_text().as_bytes())?;
        Ok(Some(path))
    }

    fn train(&self, tuner: &mut Finetune<'_>) -> Result<()> {
        let interrupt = Interrupt::install()?;
        let (total, epoch) = (tuner.steps(), tuner.steps_per_epoch());
        let first = tuner.done() as u64;
        let mut progress = Progress::new("fine-tuning", "steps", total as u64, first);
        while tuner.done() < total {
            tuner.train(&mut |done, loss| {
                progress.at(done as u64, || {
                    format!("epoch {} loss {loss:.4}", (done - 1) / epoch + 1)
                });
                let due = (done as u64).is_multiple_of(self.every); // 0: never
                due || interrupt.seen()
            })?;
            let saved = self.save(tuner)?;
            if interrupt.seen() && tuner.done() < total {
                progress.finish();
                match saved {
                    Some(path) => bail!(Interrupted(format!(
                        "{} of {total} steps are done and saved in {}; to go on, give the same \
                         command with --resume",
                        tuner.done(),
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

    fn save(&self, tuner: &Finetune<'_>) -> Result<Option<PathBuf>> {
        let Some(checkpoints) = &self.checkpoints else {
            return Ok(None);
        };
        let done = tuner.done();
        let mut state = self.state.clone();
        state.step = done as u64;
        state.epoch = (done / tuner.steps_per_epoch()) as u64;
        let path = checkpoints.write(&state, |folder| Ok(tuner.save(folder)?))?;
        Ok(Some(path))
    }
}

fn table(report: &FinetuneReport) -> String {
    format!(
        "fine-tuned on {} labelled images ({:.3}% of them), {} steps: top-1 {:.2}%, top-5 {:.2}%",
        report.labelled_images,
        100.0 * report.label_fraction,
        report.steps,
        report.top1,
        report.top5
    )
}
