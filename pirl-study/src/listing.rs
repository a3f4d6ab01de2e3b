//! What a study would do, run by run.

use serde_json::{Value, json};

use crate::cost::Estimate;
use crate::folder::StudyFolder;
use crate::plan::Plan;

/// The runs of `plan` as JSON: what each is called, its folder and whether it is there, and what it takes unless
/// it is; with the time and the bytes of all that is missing, and what was left out.
pub fn list_runs(plan: &Plan, folder: &StudyFolder, estimate: Option<&Estimate>) -> Value {
    let runs = plan.runs.iter().enumerate().map(|(place, run)| {
        let cost = estimate.and_then(|estimate| estimate.runs[place]);
        json!({
            "name": run.name,
            "folder": folder.run(run),
            "done": folder.is_done(run),
            "epochs": run.trained.then_some(run.recipe.train.epochs),
            "seconds": cost.map(|cost| cost.seconds()),
            "bytes": cost.map(|cost| cost.bytes),
        })
    });
    json!({
        "runs": runs.collect::<Vec<_>>(),
        "seconds": estimate.map_or(0.0, |estimate| estimate.time().as_secs_f64()),
        "bytes": estimate.map_or(0, Estimate::bytes),
        "left_out": plan.left_out,
    })
}
