//! `pirl eval detect`

use std::path::Path;

use anyhow::{Context, Result};
use pirl_data::{Image, Objects, Pack};
use pirl_eval::detect::{
    CocoReport, DetectMetric, DetectTrainer, Detection, VocReport, check_detection_packs,
    coco_metrics, voc_metrics,
};
use pirl_eval::{EvalError, weights_fingerprint};
use pirl_report::{DetectionPanel, detection_sheet, precision_recall_chart};
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
        let found = serde_json::to_string(&self.coco_results())
            .context("writing the detections as JSON")?;
        write_file(&out.join("detections.json"), found.as_bytes())?;
        let curves = out.join("precision_recall.png");
        write_png(&curves, &precision_recall_chart(&self.voc)?)?;
        write_png(&out.join("detections.png"), &self.sheet(test)?)
    }

    /// Test images, evenly over the set, with their objects and what was found with some confidence.
    fn sheet(&self, test: &Pack) -> Result<Image> {
        const SHOWN: usize = 24;
        const LEAST_SCORE: f32 = 0.5;
        let count = test.len().min(SHOWN);
        let shown: Vec<(Image, Objects, &[Detection])> = (0..count)
            .map(|place| {
                let index = place * test.len() / count;
                let objects = test.objects(index).unwrap_or_default();
                let found = self.detections.get(index).map_or(&[][..], Vec::as_slice);
                Ok((test.decode(index)?, objects, found))
            })
            .collect::<Result<_>>()?;
        let panels: Vec<DetectionPanel> = shown
            .iter()
            .map(|(image, objects, detections)| DetectionPanel {
                image,
                objects,
                detections,
            })
            .collect();
        Ok(detection_sheet(&panels, test.class_names(), LEAST_SCORE)?)
    }

    /// The detections as COCO's tools take them: corner, width and height; numbers of images and
    /// classes are their places in the pack.
    fn coco_results(&self) -> Vec<Value> {
        let images = self.detections.iter().enumerate();
        images
            .flat_map(|(image, found)| found.iter().map(move |found| (image, found)))
            .map(|(image, found)| {
                let [x0, y0, x1, y1] = found.bbox;
                json!({
                    "image_id": image,
                    "category_id": found.label,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "score": found.score,
                })
            })
            .collect()
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
        print(&self.table())
    }

    fn table(&self) -> String {
        let longest = self.voc.per_class.keys().map(String::len).max();
        let width = longest.unwrap_or(0).max("class".len());
        let mut text = format!("{:width$}  objects      AP    AP50    AP75\n", "class");
        for (name, class) in &self.voc.per_class {
            text += &format!(
                "{name:width$}  {:>7}  {:>6.2}  {:>6.2}  {:>6.2}\n",
                class.objects, class.ap, class.ap50, class.ap75
            );
        }
        let VocReport { ap, ap50, ap75, .. } = &self.voc;
        text += &format!(
            "{:width$}  {:>7}  {ap:>6.2}  {ap50:>6.2}  {ap75:>6.2}\n",
            "all", ""
        );
        text + &self.coco.to_string()
    }
}
