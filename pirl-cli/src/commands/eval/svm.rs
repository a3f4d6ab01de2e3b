//! `pirl eval svm`: support vector machines on frozen features, VOC07's classification protocol.

use anyhow::Result;
use pirl_eval::{Presence, Protocol, Svm};
use serde_json::json;

use super::Task;
use crate::args::ProbeArgs;
use crate::progress::Progress;
use crate::ranks::Company;

pub(super) fn svm(args: &ProbeArgs, company: &Company) -> Result<()> {
    let task = Task::open(&args.eval, args.dataset, Protocol::Svm, company)?;
    let config = &task.recipe.eval.svm;
    let svm = Svm::new(config.clone(), task.recipe.seed)?;
    let (train_presence, test_presence) = Presence::of_packs(&task.train, &task.test)?;
    let Some(extraction) = task.shared_extraction()? else {
        return Ok(());
    };
    let statistics = task.recompute_batch_norm(&extraction)?;
    let train = task.features(args, &task.train, &extraction, "reading training features")?;
    let test = task.features(args, &task.test, &extraction, "reading test features")?;
    let machines = train.layers().len() * train.class_names().len();
    let report = Progress::watch("support vectors", "machines", machines, |progress| {
        let train = (&train, &train_presence);
        svm.evaluate(train, (&test, &test_presence), progress)
    })?;
    let mut facts = task.facts(&args.eval, serde_json::to_value(config)?);
    facts["pool"] = json!(extraction.pool);
    facts["precise_batch_norm"] = json!(statistics);
    task.finish(&args.eval, &report, facts, || report.to_string())
}
