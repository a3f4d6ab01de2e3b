//! `pirl eval detect`

use anyhow::{Context, Result};
use pirl_data::Pack;
use pirl_eval::detect::{
    DetectMetric, DetectReport, DetectTrainer, VocReport, check_detection_packs,
};
use pirl_eval::{EvalError, weights_fingerprint};
use pirl_report::write_detections;
use pirl_train::{Identity, Training};
use serde_json::{Value, json};

use super::{describe_pack, open_packs};
use crate::args::DetectArgs;
use crate::device;
use crate::output::{print, print_json, write_result};
use crate::progress::Progress;
use crate::ranks::Company;
use crate::run_dir::RunDir;
use crate::session::Session;
use crate::weights::{self, Loaded, Weights};

/// Nothing is written before everything that can be checked has been.
pub(super) fn detect(args: &DetectArgs, company: &Company) -> Result<()> {
    let (args, resumes) = (&args.eval, args.resume);
    let (train, test) = open_packs(args, company)?;
    check_detection_packs(&train, &test)?;
    let run = &args.run;
    let device = device::parse(&run.device)?;
    let recipe = args.recipe.as_deref();
    let file = Weights {
        name: &args.weights,
        prefix: run.weights_prefix.as_deref(),
    };
    let loaded = weights::load(file, recipe, &run.settings, run.seed, &device)?;
    weights::ensure_not_folded(loaded.folded, &loaded.origin, "fine-tuned")?;
    let Loaded {
        backbone,
        recipe,
        origin,
        ..
    } = loaded;
    let config = &recipe.eval.detect;
    let weights = weights_fingerprint(&backbone)?;
    let normal = (&*recipe.data.mean, &*recipe.data.std);
    let (seed, ranks) = (recipe.seed, &company.ranks);
    let mut trainer = DetectTrainer::new(&backbone, &train, normal, config, seed, ranks)
        .context("eval.detect")?;
    drop(backbone); // the trainer has a copy
    let out = company.writes_to(&args.out);
    let folder = out.map(|out| RunDir::check(out, &recipe, resumes, matters));
    let identity = Identity {
        images: trainer.images(),
        fingerprint: format!("{}-{weights}", train.fingerprint()),
        seed: recipe.seed,
    };
    let command = ", give the same command with --resume".to_owned();
    let folder = folder.transpose()?;
    let session = Session::open(&mut trainer, folder, &recipe, identity, resumes, command)?;
    let left_out = train.len() - trainer.images();
    if left_out > 0 {
        eprintln!("{left_out} training images without objects are left out");
    }
    let steps = trainer.steps();
    let mut last = None;
    session.run(&mut trainer, &mut |trainer, _, progress| {
        let done = trainer.done();
        if !done.is_multiple_of(config.evaluate_every as u64) && done < steps {
            return Ok(Vec::new());
        }
        let report = progress.suspend(|| evaluate(trainer, &test, config.test.metric))?;
        let numbers = report.metrics();
        last = Some(report);
        Ok(numbers)
    })?;
    let report = match last {
        Some(report) => report,
        None => evaluate(&trainer, &test, config.test.metric)?,
    };
    if let Some(out) = out {
        write_detections(out, &test, &report)?;
    }
    let facts = json!({
        "weights": { "path": origin, "fingerprint": weights },
        "train": describe_pack(&args.train, &train),
        "test": describe_pack(args.test.as_ref().unwrap_or(&args.train), &test),
        "seed": recipe.seed,
        "settings": config,
    });
    let mut result = serde_json::to_value(&report).context("writing the result as JSON")?;
    if let (Value::Object(result), Value::Object(facts)) = (&mut result, facts) {
        result.extend(facts);
    }
    if let Some(out) = out {
        write_result(out, &result)?;
    }
    if run.json {
        return print_json(&result);
    }
    print(&report.to_string())
}

/// Whether a key of the recipe touches what the detector's training computes.
fn matters(key: &str) -> bool {
    match key {
        "seed" | "data.mean" | "data.std" => true,
        "eval.detect.steps" | "eval.detect.evaluate_every" => false,
        _ => key.starts_with("model.") || key.starts_with("eval.detect."),
    }
}

/// Runs the detector over the test set.
fn evaluate(
    trainer: &DetectTrainer<'_>,
    test: &Pack,
    metric: DetectMetric,
) -> std::result::Result<DetectReport, EvalError> {
    let report = Progress::watch("testing", "images", test.len(), |progress| {
        trainer.evaluate(test, metric, progress)
    })?;
    let VocReport { ap, ap50, ap75, .. } = report.voc;
    let steps = report.steps;
    eprintln!("after {steps} steps: AP {ap:.2}, AP50 {ap50:.2}, AP75 {ap75:.2}");
    Ok(report)
}
