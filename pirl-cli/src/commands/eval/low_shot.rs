//! `pirl eval low-shot`: classifiers of frozen features that learn from a few labels of each class.

use anyhow::{Context, Result};
use pirl_eval::{LowShot, Presence, Protocol};

use super::Task;
use crate::args::LowShotArgs;
use crate::ranks::Company;

pub(super) fn low_shot(args: &LowShotArgs, company: &Company) -> Result<()> {
    let (eval, dataset) = (&args.probe.eval, args.probe.dataset);
    let mut task = Task::open(eval, dataset, Protocol::LowShot, company)?;
    let config = &mut task.recipe.eval.low_shot;
    config.method = args.method.unwrap_or(config.method);
    config.draws = args.draws.unwrap_or(config.draws);
    if !args.shots.is_empty() {
        config.shots.clone_from(&args.shots);
    }
    let method = config.method.name();
    let said = "eval.low_shot";
    let mut probe = LowShot::new(&task.recipe.eval, task.recipe.seed).context(said)?;
    if task.train.has_objects() {
        let (train, test) = Presence::of_packs(&task.train, &task.test)?;
        probe = probe.with_presence(train, test).context(said)?;
    }
    let all = serde_json::to_value(&task.recipe.eval)?;
    let mut settings = all["low_shot"].clone();
    settings[method] = all[method].clone();
    task.run(&args.probe, &probe, "few labels", settings)
}
