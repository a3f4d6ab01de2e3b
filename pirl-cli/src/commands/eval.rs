//! `pirl eval linear` and `pirl eval knn`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use pirl_data::Pack;
use pirl_eval::{
    EvalError, Extraction, FeatureCache, FeatureSet, Knn, KnnReport, LayerReport, LinearProbe,
    LinearReport, Probe, check_packs, extract_features, recompute_batch_norm, weights_fingerprint,
};
use pirl_model::ResNet;
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::EvalArgs;
use crate::files::write_whole;
use crate::output::{print, print_json};
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::{device, weights};

/// Stream of the images that batch-norm statistics are recomputed on, apart from the probes' own.
const BATCH_NORM_SEED: u64 = 0x6270;

pub(crate) fn linear(args: &EvalArgs) -> Result<()> {
    let task = Task::open(args)?;
    let probe = LinearProbe::new(task.recipe.eval.linear.clone(), task.recipe.seed)?;
    let settings = serde_json::to_value(&task.recipe.eval.linear)?;
    let (report, facts) = task.run(args, &probe, "linear probes", "epochs", settings)?;
    finish(args, &report, facts, || linear_table(&report))
}

pub(crate) fn knn(args: &EvalArgs) -> Result<()> {
    let task = Task::open(args)?;
    let config = &task.recipe.eval.knn;
    let (k, samples) = (config.k, task.train.len());
    if k > samples {
        return Err(EvalError::Neighbours { k, samples }.into());
    }
    let probe = Knn::new(config.clone())?;
    let settings = serde_json::to_value(config)?;
    let (report, facts) = task.run(args, &probe, "nearest neighbours", "images", settings)?;
    finish(args, &report, facts, || knn_table(&report))
}

/// What a probe needs, checked before the work begins.
struct Task {
    backbone: ResNet,
    recipe: Recipe,
    origin: String,
    train: Pack,
    test: Pack,
}

impl Task {
    fn open(args: &EvalArgs) -> Result<Self> {
        let train = Pack::open(&args.train)?;
        let test = Pack::open(&args.test)?;
        check_packs(&train, &test)?;
        if let Some(out) = &args.out {
            fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
        }
        let device = device::parse(&args.device)?;
        let recipe = args.recipe.as_deref();
        let loaded = weights::load(&args.weights, recipe, &args.settings, args.seed, &device)?;
        Ok(Self {
            backbone: loaded.backbone,
            recipe: loaded.recipe,
            origin: loaded.origin,
            train,
            test,
        })
    }

    /// Reads the features and runs the probe. Returns its report, and the facts that it rests on.
    fn run<P: Probe>(
        self,
        args: &EvalArgs,
        probe: &P,
        what: &'static str,
        unit: &'static str,
        settings: Value,
    ) -> Result<(P::Report, Value)> {
        let eval = &self.recipe.eval;
        let extraction = Extraction {
            pool: eval.pool,
            batch_size: eval.batch_size,
            workers: self.recipe.loader.workers,
            ..Extraction::new(self.recipe.eval_view())
        };
        let weights = weights_fingerprint(&self.backbone)?;
        let seed = self.recipe.seed ^ BATCH_NORM_SEED;
        let recomputed = match eval.precise_batch_norm {
            0 => 0,
            images => {
                eprintln!("recomputing batch-norm statistics on plain training images");
                recompute_batch_norm(&self.backbone, &self.train, &extraction, images, seed)
                    .context("recomputing batch-norm statistics (eval.precise_batch_norm)")?
            }
        };
        let train = self.features(args, &self.train, &extraction, "reading training features")?;
        let test = self.features(args, &self.test, &extraction, "reading test features")?;
        let mut progress = None;
        let report = probe.evaluate(&train, &test, &mut |done, total| {
            progress
                .get_or_insert_with(|| Progress::new(what, unit, total as u64, 0))
                .at(done as u64, String::new);
        })?;
        if let Some(progress) = progress {
            progress.finish();
        }
        let pack = |path: &Path, pack: &Pack| json!({ "path": path, "images": pack.len(), "fingerprint": pack.fingerprint() });
        let facts = json!({
            "weights": { "path": self.origin, "fingerprint": weights },
            "train": pack(&args.train, &self.train),
            "test": pack(&args.test, &self.test),
            "seed": self.recipe.seed,
            "precise_batch_norm": { "used": recomputed > 0, "images": recomputed },
            "pool": eval.pool,
            "settings": settings,
        });
        Ok((report, facts))
    }

    fn features(
        &self,
        args: &EvalArgs,
        pack: &Pack,
        extraction: &Extraction,
        what: &'static str,
    ) -> Result<FeatureSet> {
        let extract = || {
            let mut progress = Progress::new(what, "images", pack.len() as u64, 0);
            let features = extract_features(&self.backbone, pack, extraction, &mut |done, _| {
                progress.at(done as u64, String::new);
            });
            progress.finish();
            features
        };
        let Some(folder) = &args.cache else {
            return Ok(extract()?);
        };
        // The statistics as they are now: recomputed ones make other features.
        let weights = weights_fingerprint(&self.backbone)?;
        let key = format!("{weights} {}", serde_json::to_string(&self.recipe.model)?);
        Ok(FeatureCache::new(folder)?.get_or_extract(&key, pack, extraction, extract)?)
    }
}

fn finish(
    args: &EvalArgs,
    report: &impl Serialize,
    facts: Value,
    table: impl FnOnce() -> String,
) -> Result<()> {
    let mut result = serde_json::to_value(report).context("writing the result as JSON")?;
    if let (Value::Object(result), Value::Object(facts)) = (&mut result, facts.clone()) {
        result.extend(facts);
    }
    if let Some(out) = &args.out {
        let text = serde_json::to_string_pretty(&result).context("writing the result as JSON")?;
        write_whole(&out.join("result.json"), format!("{text}\n").as_bytes())?;
    }
    if args.json {
        return print_json(&result);
    }
    print(&format!("{}\n{}", table(), origin(&facts)))
}

/// Where the features came from, in words.
fn origin(facts: &Value) -> String {
    let images = &facts["precise_batch_norm"]["images"];
    let statistics = match images.as_u64() {
        Some(0) | None => "batch-norm statistics as saved".to_owned(),
        Some(images) => format!("batch-norm statistics recomputed on {images} plain images"),
    };
    let path = facts["weights"]["path"].as_str().unwrap_or_default();
    format!("weights {path}; {statistics}; seed {}", facts["seed"])
}

fn linear_table(report: &LinearReport) -> String {
    let mut text = "layer  features   top-1   top-5  learning rate\n".to_owned();
    for (layer, row) in &report.layers {
        let LayerReport {
            dim,
            top1,
            top5,
            lr,
            ..
        } = row;
        text += &format!(
            "{:<5}  {dim:>8}  {top1:>6.2}  {top5:>6.2}  {lr:>13}\n",
            layer.to_string()
        );
    }
    text + &format!(
        "best: {} with {:.2}% top-1",
        report.best.layer, report.best.top1
    )
}

fn knn_table(report: &KnnReport) -> String {
    let mut text = "layer   top-1\n".to_owned();
    for (layer, row) in &report.layers {
        text += &format!("{:<5}  {:>6.2}\n", layer.to_string(), row.top1);
    }
    let KnnReport { k, best, .. } = report;
    text + &format!(
        "best: {} with {:.2}% top-1 ({k} neighbours)",
        best.layer, best.top1
    )
}
