//! `pirl eval detect`

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use pirl_data::{Image, Objects, Pack};
use pirl_eval::detect::{
    DetectStep, DetectTrainer, Detection, DetectionPanel, VocReport, check_detection_packs,
    coco_metrics, detection_sheet, precision_recall_chart, voc_metrics,
};
use pirl_eval::weights_fingerprint;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::args::{DetectArgs, EvalArgs};
use crate::checkpoint::{Checkpoints, MODEL, OPTIMIZER, State};
use crate::device;
use crate::files::{write_png, write_whole};
use crate::interrupt::{Interrupt, Interrupted};
use crate::metrics::{Logged, Metrics};
use crate::output::{print, print_json};
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::run_dir::{RunDir, differences};
use crate::weights::{self, Loaded};

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Row {
    /// Steps done, this one included.
    step: u64,
    /// The pass over the images that this step belongs to, counted from 1.
    epoch: u64,
    /// The sum of the four losses.
    loss: f64,
    loss_rpn_objectness: f64,
    loss_rpn_box: f64,
    loss_class: f64,
    loss_box: f64,
    lr: f64,
    /// Over the steps since the last line.
    images_per_second: f64,
    /// On the test set, in percent, where this step was followed by an evaluation.
    #[serde(flatten)]
    precision: Option<Precision>,
}

/// Average precisions in percent.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Precision {
    ap: f64,
    ap50: f64,
    ap75: f64,
}

impl Logged for Row {
    fn step(&self) -> u64 {
        self.step
    }
}

/// Nothing is written before everything that can be checked has been.
pub(crate) fn detect(args: &DetectArgs) -> Result<()> {
    let (args, resume) = (&args.eval, args.resume);
    let (train, test) = (Pack::open(&args.train)?, Pack::open(&args.test)?);
    check_detection_packs(&train, &test)?;
    let run = &args.run;
    let device = device::parse(&run.device)?;
    let recipe = args.recipe.as_deref();
    let loaded = weights::load(&args.weights, recipe, &run.settings, run.seed, &device)?;
    let Loaded {
        backbone,
        recipe,
        origin,
        ..
    } = loaded;
    let config = &recipe.eval.detect;
    let weights = weights_fingerprint(&backbone)?;
    let normal = (recipe.data.mean, recipe.data.std);
    let mut trainer = DetectTrainer::new(&backbone, &train, normal, config, recipe.seed)?;
    drop(backbone); // the trainer has a copy
    let identity = format!("{}-{weights}", train.fingerprint());
    let folder = folder((args, resume), &recipe, &mut trainer, &identity)?;
    let interrupt = Interrupt::install()?;
    let report = Run {
        args,
        recipe: &recipe,
        trainer,
        folder,
        identity,
        train: &train,
        test: &test,
    }
    .train(&interrupt)?;
    let pack = |path: &PathBuf, pack: &Pack| {
        let (images, fingerprint) = (pack.len(), pack.fingerprint());
        json!({ "path": path, "images": images, "fingerprint": fingerprint })
    };
    let facts = json!({
        "weights": { "path": origin, "fingerprint": weights },
        "train": pack(&args.train, &train),
        "test": pack(&args.test, &test),
        "seed": recipe.seed,
        "settings": config,
    });
    report.finish(args, facts)
}

/// The folder of the run, if there is to be one, and the trainer as its newest checkpoint left it.
fn folder(
    (args, resume): (&EvalArgs, bool),
    recipe: &Recipe,
    trainer: &mut DetectTrainer,
    identity: &str,
) -> Result<Option<RunDir>> {
    let Some(out) = &args.out else {
        return Ok(None);
    };
    if !resume {
        return RunDir::create(out, recipe).map(Some);
    }
    let folder = RunDir::open(out)?;
    let matters = |key: &str| match key {
        "seed" | "data.mean" | "data.std" => true,
        "eval.detect.steps" | "eval.detect.evaluate_every" => false,
        _ => key.starts_with("model.") || key.starts_with("eval.detect."),
    };
    let conflicts = differences(&folder.recipe()?, recipe, matters)?;
    ensure!(
        conflicts.is_empty(),
        "{} was started with other settings: {}; give those again, or choose another --out",
        out.display(),
        conflicts.join("; ")
    );
    let newest = Checkpoints::new(folder.checkpoints(), 1).newest()?;
    if let Some(path) = newest {
        let state = State::read(&path)?;
        ensure!(
            state.fingerprint == identity,
            "{} began with other weights or training images; give those again, or choose another \
             --out",
            path.display()
        );
        let (model, optimizer) = (path.join(MODEL), path.join(OPTIMIZER));
        trainer
            .restore(&model, &optimizer, state.step as usize)
            .with_context(|| format!("resuming from {}", path.display()))?;
    }
    folder.write_config(recipe)?;
    Ok(Some(folder))
}

/// A detector about to be trained.
struct Run<'a> {
    args: &'a EvalArgs,
    recipe: &'a Recipe,
    trainer: DetectTrainer<'a>,
    folder: Option<RunDir>,
    identity: String,
    train: &'a Pack,
    test: &'a Pack,
}

impl Run<'_> {
    /// Trains to the last step, evaluating on the way, or until `interrupt`.
    fn train(mut self, interrupt: &Interrupt) -> Result<Report> {
        let config = &self.recipe.eval.detect;
        let steps = config.steps;
        let left_out = self.train.len() - self.trainer.images();
        if left_out > 0 {
            eprintln!("{left_out} training images without objects are left out");
        }
        let done = self.trainer.done();
        ensure!(
            done <= steps,
            "{done} steps are done already, more than eval.detect.steps = {steps}"
        );
        let metrics = self.folder.as_ref().map(RunDir::metrics);
        let metrics = metrics.map(|path| Metrics::open::<Row>(&path, done as u64));
        let mut metrics = metrics.transpose()?;
        let mut progress = Progress::new("training", "steps", steps as u64, done as u64);
        let (mut since, mut timed) = (Instant::now(), 0);
        let mut last = None;
        while self.trainer.done() < steps {
            let step = self.trainer.step()?;
            timed += config.batch_size;
            progress.at(step.step as u64, || {
                format!("loss {:.4}", step.losses.total())
            });
            if (step.step as u64).is_multiple_of(self.recipe.checkpoint.every) {
                self.save()?;
            }
            let evaluates = step.step.is_multiple_of(config.evaluate_every) || step.step == steps;
            let logs = (step.step as u64).is_multiple_of(self.recipe.log.every) || evaluates;
            let speed = timed as f64 / since.elapsed().as_secs_f64().max(1e-9);
            if evaluates {
                progress.finish();
                last = Some(self.evaluate()?);
            }
            if logs {
                let row = self.row(step, speed, last.as_ref().filter(|_| evaluates));
                if let Some(metrics) = &mut metrics {
                    metrics.write(&row)?;
                }
                (since, timed) = (Instant::now(), 0);
            }
            if evaluates && step.step < steps {
                let (now, total) = (step.step as u64, steps as u64);
                progress = Progress::new("training", "steps", total, now);
            }
            if interrupt.seen() && step.step < steps {
                progress.finish();
                bail!(Interrupted(self.stopped()?));
            }
        }
        progress.finish();
        let report = match last {
            Some(report) => report,
            None => self.evaluate()?,
        };
        self.save()?;
        if let Some(folder) = &self.folder {
            let found = serde_json::to_string(&self.coco_results(&report.detections))
                .context("writing the detections as JSON")?;
            write_whole(&folder.path().join("detections.json"), found.as_bytes())?;
            let curves = folder.path().join("precision_recall.png");
            write_png(&curves, precision_recall_chart(&report.voc))?;
            let sheet = self.sheet(&report.detections)?;
            write_png(&folder.path().join("detections.png"), sheet)?;
        }
        Ok(report)
    }

    /// Test images, evenly over the set, with their objects and what was found with some confidence.
    fn sheet(&self, detections: &[Vec<Detection>]) -> Result<Image> {
        const SHOWN: usize = 24;
        const LEAST_SCORE: f32 = 0.5;
        let count = self.test.len().min(SHOWN);
        let shown: Vec<(Image, Objects, &[Detection])> = (0..count)
            .map(|place| {
                let index = place * self.test.len() / count;
                let objects = self.test.objects(index).unwrap_or_default();
                let found = detections.get(index).map_or(&[][..], Vec::as_slice);
                Ok((self.test.decode(index)?, objects, found))
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
        let names = self.test.class_names();
        Ok(detection_sheet(&panels, names, LEAST_SCORE)?)
    }

    /// Runs the detector over the test set.
    fn evaluate(&self) -> Result<Report> {
        let recomputed = self.trainer.recompute_batch_norm()?;
        let mut progress = Progress::new("testing", "images", self.test.len() as u64, 0);
        let detections = self.trainer.detect(self.test, &mut |done, _| {
            progress.at(done as u64, String::new);
        });
        progress.finish();
        let detections = detections?;
        let objects: Vec<Objects> = (0..self.test.len())
            .map(|index| self.test.objects(index).unwrap_or_default())
            .collect();
        let names = self.test.class_names();
        let metric = self.recipe.eval.detect.test.metric;
        let voc = voc_metrics(&detections, &objects, names, metric)?;
        eprintln!(
            "after {} steps: AP {:.2}, AP50 {:.2}, AP75 {:.2}",
            self.trainer.done(),
            voc.ap,
            voc.ap50,
            voc.ap75
        );
        Ok(Report {
            coco: serde_json::to_value(coco_metrics(&detections, &objects, names)?)
                .context("writing the result as JSON")?,
            voc,
            detections,
            steps: self.trainer.done(),
            recomputed,
        })
    }

    fn row(&self, step: DetectStep, images_per_second: f64, report: Option<&Report>) -> Row {
        let seen = (step.step - 1) * self.recipe.eval.detect.batch_size;
        Row {
            step: step.step as u64,
            epoch: (seen / self.trainer.images().max(1)) as u64 + 1,
            loss: step.losses.total(),
            loss_rpn_objectness: step.losses.rpn_objectness,
            loss_rpn_box: step.losses.rpn_box,
            loss_class: step.losses.class,
            loss_box: step.losses.r#box,
            lr: step.lr,
            images_per_second,
            precision: report.map(|report| Precision {
                ap: report.voc.ap,
                ap50: report.voc.ap50,
                ap75: report.voc.ap75,
            }),
        }
    }

    fn save(&self) -> Result<()> {
        let Some(folder) = &self.folder else {
            return Ok(());
        };
        let checkpoints = Checkpoints::new(folder.checkpoints(), self.recipe.checkpoint.keep);
        let done = self.trainer.done();
        let seen = done * self.recipe.eval.detect.batch_size;
        let state = State::new(
            done as u64,
            (seen / self.trainer.images().max(1)) as u64,
            self.recipe.seed,
            self.trainer.images(),
            &self.identity,
            None,
        );
        checkpoints.write(&state, |folder| {
            let (model, optimizer) = (folder.join(MODEL), folder.join(OPTIMIZER));
            Ok(self.trainer.save(&model, &optimizer)?)
        })?;
        Ok(())
    }

    /// Saves, and says how to go on.
    fn stopped(&self) -> Result<String> {
        self.save()?;
        let (done, steps) = (self.trainer.done(), self.recipe.eval.detect.steps);
        Ok(match &self.args.out {
            Some(out) => format!(
                "{done} of {steps} steps are done and saved in {}; to go on, give the same command \
                 with --resume",
                out.display()
            ),
            None => format!("{done} of {steps} steps were done; with --out they would be saved"),
        })
    }

    /// The detections as COCO's tools take them: corner, width and height; numbers of images and
    /// classes are their places in the pack.
    fn coco_results(&self, detections: &[Vec<Detection>]) -> Vec<Value> {
        let images = detections.iter().enumerate();
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
}

/// What the detector was found to do.
struct Report {
    voc: VocReport,
    coco: Value,
    detections: Vec<Vec<Detection>>,
    steps: usize,
    recomputed: usize,
}

impl Report {
    fn finish(&self, args: &EvalArgs, facts: Value) -> Result<()> {
        let mut result = Map::new();
        let voc = serde_json::to_value(&self.voc).context("writing the result as JSON")?;
        for object in [voc, facts] {
            if let Value::Object(object) = object {
                result.extend(object);
            }
        }
        result.insert("coco".to_owned(), self.coco.clone());
        result.insert("steps".to_owned(), self.steps.into());
        let recomputed = json!({ "used": self.recomputed > 0, "batches": self.recomputed });
        result.insert("precise_batch_norm".to_owned(), recomputed);
        if let Some(out) = &args.out {
            let text = serde_json::to_string_pretty(&result);
            let text = text.context("writing the result as JSON")?;
            write_whole(&out.join("result.json"), format!("{text}\n").as_bytes())?;
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
        text + &format!(
            "{:width$}  {:>7}  {ap:>6.2}  {ap50:>6.2}  {ap75:>6.2}",
            "all", ""
        )
    }
}
