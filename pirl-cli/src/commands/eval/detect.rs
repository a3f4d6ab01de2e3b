//! `pirl eval detect`

use std::path::Path;

use anyhow::{Context, Result};
use pirl_data::{Objects, Pack};
use pirl_eval::detect::{
    CocoReport, CocoResult, DetectMetric, DetectTrainer, Detection, VocReport,
    check_detection_packs, coco_metrics, voc_metrics,
};
use pirl_eval::{EvalError, weights_fingerprint};
use pirl_report::{detection_sample, precision_recall_chart};
use pirl_train::{Identity, Metric, Training};
use serde_json::{Map, Value, json};

use super::{describe_pack, open_packs};
use crate::args::{DetectArgs, EvalArgs};
use crate::device;
use crate::output::{print, print_json, write_file, write_png, write_result};
use crate::progress::Progress;
use crate::run_dir::RunDir;
use crate::session::Session;
use crate::weights::{self, Loaded, Weights};

/// Nothing is written before everything that can be checked has been.
pub(crate) fn detect(args: &DetectArgs) -> Result<()> {
    let (args, resumes) = (&args.eval, args.resume);
    let (train, test) = open_packs(args)?;
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
    let mut trainer = DetectTrainer::new(&backbone, &train, normal, config, recipe.seed)
        .context("eval.detect")?;
    drop(backbone); // the trainer has a copy
    let out = args.out.as_ref();
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
        report.write_pictures(out, &test)?;
    }
    let facts = json!({
        "weights": { "path": origin, "fingerprint": weights },
        "train": describe_pack(&args.train, &train),
        "test": describe_pack(args.test.as_ref().unwrap_or(&args.train), &test),
        "seed": recipe.seed,
        "settings": config,
    });
    report.finish(args, facts)
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
) -> std::result::Result<Report, EvalError> {
    let recomputed = trainer.recompute_batch_norm()?;
    let mut progress = Progress::new("testing", "images", test.len() as u64, 0);
    let detections = trainer.detect(test, &mut |done, _| {
        progress.at(done as u64, String::new);
    });
    progress.finish();
    let detections = detections?;
    let objects: Vec<Objects> = (0..test.len())
        .map(|index| test.objects(index).unwrap_or_default())
        .collect();
    let names = test.class_names();
    let voc = voc_metrics(&detections, &objects, names, metric)?;
    eprintln!(
        "after {} steps: AP {:.2}, AP50 {:.2}, AP75 {:.2}",
        trainer.done(),
        voc.ap,
        voc.ap50,
        voc.ap75
    );
    Ok(Report {
        coco: coco_metrics(&detections, &objects, names)?,
        voc,
        detections,
        steps: trainer.done(),
        recomputed,
    })
}

/// What the detector was found to do.
struct Report {
    voc: VocReport,
    coco: CocoReport,
    detections: Vec<Vec<Detection>>,
    steps: u64,
    recomputed: usize,
}

impl Report {
    /// What is logged with the step it was made after.
    fn metrics(&self) -> Vec<(&'static str, Metric)> {
        let VocReport { ap, ap50, ap75, .. } = self.voc;
        [("ap", ap), ("ap50", ap50), ("ap75", ap75)]
            .map(|(key, value)| (key, Metric::Real(value as f32)))
            .to_vec()
    }

    /// What was found, for COCO's tools and to look at.
    fn write_pictures(&self, out: &Path, test: &Pack) -> Result<()> {
        let found = serde_json::to_string(&CocoResult::of(&self.detections))
            .context("writing the detections as JSON")?;
        write_file(&out.join("detections.json"), found.as_bytes())?;
        let curves = out.join("precision_recall.png");
        write_png(&curves, &precision_recall_chart(&self.voc)?)?;
        write_png(
            &out.join("detections.png"),
            &detection_sample(test, &self.detections)?,
        )
    }

    fn finish(&self, args: &EvalArgs, facts: Value) -> Result<()> {
        let mut result = Map::new();
        let voc = serde_json::to_value(&self.voc).context("writing the result as JSON")?;
        for object in [voc, facts] {
            if let Value::Object(object) = object {
                result.extend(object);
            }
        }
        result.insert("coco".to_owned(), json!(self.coco));
        result.insert("steps".to_owned(), self.steps.into());
        let recomputed = json!({ "used": self.recomputed > 0, "batches": self.recomputed });
        result.insert("precise_batch_norm".to_owned(), recomputed);
        if let Some(out) = &args.out {
            write_result(out, &result)?;
        }
        if args.run.json {
            return print_json(&result);
        }
        print(&format!("{}{}", self.voc, self.coco))
    }
}
