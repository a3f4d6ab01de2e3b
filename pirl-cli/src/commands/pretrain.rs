//! `pirl pretrain`

use std::path::Path;

use anyhow::{Context, Result, ensure};
use pirl_data::Pack;
use serde_json::json;

use crate::args::PretrainArgs;
use crate::device;
use crate::interrupt::Interrupt;
use crate::output::{print, print_json};
use crate::recipe::Recipe;
use crate::run_dir::{RunDir, conflicts};
use crate::train::{Learner, Plan, Run, restore};

/// Nothing is written before everything that can be checked has been.
pub(crate) fn run(args: &PretrainArgs) -> Result<()> {
    let mut recipe = Recipe::load(&args.recipe, &args.run.settings)?;
    if let Some(seed) = args.run.seed {
        recipe.seed = seed;
    }
    let devices = device::parse_several(&args.run.device)?;
    let started = if args.resume {
        let folder = RunDir::open(&args.out)?;
        check_same_run(&folder, &recipe)?;
        Some(folder)
    } else {
        RunDir::check_free(&args.out)?;
        None
    };
    let plan = Plan::new(recipe, Pack::open(&args.data)?, devices.len())?;
    let mut learner = Learner::new(&plan, &devices)?;
    let (folder, done) = match started {
        Some(folder) => {
            let done = restore(&mut learner, &plan, &folder)?;
            ensure!(
                done <= plan.steps,
                "{} has done {done} steps already, more than the {} of train.epochs and train.steps",
                folder.path().display(),
                plan.steps
            );
            folder.write_config(&plan.recipe)?;
            (folder, done)
        }
        None => (RunDir::create(&args.out, &plan.recipe)?, 0),
    };
    let interrupt = Interrupt::install()?;
    let summary = Run {
        plan: &plan,
        learner,
        folder: &folder,
        resume_command: resume_command(args, &folder),
        done,
    }
    .train(&interrupt)?;
    if args.run.json {
        return print_json(&json!({
            "run": args.out,
            "steps": summary.steps,
            "epochs": summary.epochs,
            "loss": summary.loss,
            "skipped": summary.skipped,
            "seconds": summary.seconds,
            "checkpoint": summary.checkpoint,
        }));
    }
    let loss = match summary.loss {
        Some(loss) => format!("last loss {loss:.4}"),
        None => "nothing was left to do".to_owned(),
    };
    print(&format!(
        "{}: {} steps, {} epochs, {loss}, {:.0} s\nweights  {}\nreport   {}",
        args.out.display(),
        summary.steps,
        summary.epochs,
        summary.seconds,
        summary.checkpoint.join(crate::checkpoint::MODEL).display(),
        folder.report().display()
    ))
}

fn check_same_run(folder: &RunDir, recipe: &Recipe) -> Result<()> {
    let started = folder
        .recipe()
        .with_context(|| format!("{} cannot be resumed", folder.path().display()))?;
    let conflicts = conflicts(&started, recipe)?;
    ensure!(
        conflicts.is_empty(),
        "{} was started with other settings: {}; resume with --recipe {}",
        folder.path().display(),
        conflicts.join("; "),
        folder.config().display()
    );
    Ok(())
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
