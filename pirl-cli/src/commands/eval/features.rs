//! `pirl eval linear` and `pirl eval knn`: classifiers on frozen features.

use anyhow::{Context, Result, ensure};
use pirl_data::Pack;
use pirl_eval::{
    BaselineInputs, Baselines, Crops, Extraction, FeatureCache, FeatureSet, Knn, LinearProbe,
    Probe, Protocol, RandomCropProbe, ReportTable, Untrained, WithBaselines, check_memory,
    extract_features, feature_bytes, images_per_second, weights_fingerprint,
};
use pirl_model::{ResNet, Trainable};
use pirl_recipes::{BatchNormStatistics, Recipe, backbone_seed};
use pirl_train::Training;
use serde_json::{Value, json};

use super::Task;
use crate::args::{LinearArgs, ProbeArgs};
use crate::progress::Progress;

pub(crate) fn linear(args: &LinearArgs) -> Result<()> {
    let (args, resume) = (&args.probe, args.resume);
    let task = Task::open(&args.eval, args.dataset, Protocol::Linear)?;
    if task.recipe.eval.linear.crops == Crops::Random {
        return on_random_crops(args, &task, resume);
    }
    ensure!(
        !resume,
        "--resume goes on with probes on random crops (eval.linear.crops); those on plain views are \
         quick once their features are read, which --cache keeps"
    );
    let probe = LinearProbe::new(task.recipe.eval.linear.clone(), task.recipe.seed)?;
    let settings = serde_json::to_value(&task.recipe.eval.linear)?;
    task.run(args, &probe, "linear probes", settings)
}

/// The published protocol: features are read for each batch anew, and not kept.
fn on_random_crops(args: &ProbeArgs, task: &Task, resume: bool) -> Result<()> {
    ensure!(
        args.cache.is_none(),
        "--cache keeps features, but those of random crops are never the same twice; leave it out, \
         or learn from plain views (--set eval.linear.crops=centre)"
    );
    let extraction = task.recipe.extraction();
    let statistics = task.recompute_batch_norm(&extraction)?;
    let (config, backbone) = (&task.recipe.eval.linear, &task.backbone);
    let (pack, view) = (task.train.clone(), task.train_view()?);
    let seed = task.recipe.seed;
    let mut probe = RandomCropProbe::new(config, backbone, pack, view, extraction.clone(), seed)
        .context("eval.linear")?;
    estimate(&probe, task, &extraction)?;
    let mut settings = serde_json::to_value(config)?;
    settings["crop_scale"] = json!(task.recipe.eval.crop_scale);
    settings["flip"] = json!(task.recipe.eval.flip);
    settings["layers"] = json!(extraction.layers);
    settings["pool"] = json!(extraction.pool);
    settings["precise_batch_norm"] = json!(statistics.images);
    let matters = |key: &str| {
        let keys = [
            "eval.linear.",
            "eval.layers",
            "eval.pool",
            "eval.crop_scale",
            "eval.flip",
        ];
        keys.iter().any(|start| key.starts_with(start))
    };
    task.train(&args.eval, resume, &mut probe, &task.train, matters)?;

    let report = Progress::watch("testing", "images", task.test.len(), |progress| {
        probe.evaluate(&task.test, progress)
    })?;
    let mut facts = task.facts(&args.eval, settings);
    facts["pool"] = json!(extraction.pool);
    facts["precise_batch_norm"] = json!(statistics);
    task.write_classes(&args.eval, &report.classification)?;
    let baselines = None;
    let report = WithBaselines { report, baselines };
    task.finish(&args.eval, &report, facts, || report.to_string())
}

/// What is about to begin, in images, time and memory.
fn estimate(probe: &RandomCropProbe<'_>, task: &Task, extraction: &Extraction) -> Result<()> {
    let config = &task.recipe.eval.linear;
    let passes = probe.steps() as usize * config.batch_size + task.test.len();
    let rate = images_per_second(&task.backbone, extraction)?;
    eprintln!(
        "linear probes on random crops: {} epochs of {} images and a test on {}, {:.1} hours at {rate:.0} \
         images a second; {} MiB of classifiers and their momentum",
        config.epochs,
        task.train.len(),
        task.test.len(),
        passes as f64 / rate / 3600.0,
        probe.bytes() >> 20
    );
    Ok(check_memory(probe.bytes(), None)?)
}

pub(crate) fn knn(args: &ProbeArgs) -> Result<()> {
    let task = Task::open(&args.eval, args.dataset, Protocol::Knn)?;
    let config = &task.recipe.eval.knn;
    let usable = config.usable(task.train.len());
    let usable = usable.map_err(|error| error.within("eval.knn"))?;
    if let Some(k) = config.k.iter().find(|k| !usable.contains(k)) {
        tracing::warn!("eval.knn.k = {k} is left out: there are too few training images");
    }
    let probe = Knn::new(config.clone(), task.recipe.seed)?;
    let settings = serde_json::to_value(config)?;
    task.run(args, &probe, "nearest neighbours", settings)
}

/// Recomputes batch-norm statistics on images of `pack` where the recipe asks for it, and says so.
pub(crate) fn recompute_batch_norm(
    backbone: &ResNet,
    recipe: &Recipe,
    pack: &Pack,
    extraction: &Extraction,
    saved: Option<usize>,
) -> Result<BatchNormStatistics> {
    let begun = || eprintln!("recomputing batch-norm statistics on plain training images");
    BatchNormStatistics::of(backbone, recipe, pack, extraction, saved, begun)
        .context("recomputing batch-norm statistics (eval.precise_batch_norm)")
}

/// Shows how far a stage of the work has come, in place of an earlier one.
fn show(progress: &mut Option<Progress>, what: &'static str, done: usize, total: usize) {
    let ended = progress.take_if(|progress| progress.what() != what);
    ended.iter().for_each(Progress::finish);
    progress
        .get_or_insert_with(|| Progress::new(what, "units", total as u64, 0))
        .at(done as u64, String::new);
    if done == total {
        progress.iter().for_each(Progress::finish);
    }
}

impl Task {
    /// Reads the features, runs the probe on them and on its baselines, and reports.
    pub(super) fn run<P: Probe<Report: ReportTable>>(
        &self,
        args: &ProbeArgs,
        probe: &P,
        what: &'static str,
        settings: Value,
    ) -> Result<()> {
        let extraction = self.extraction();
        let statistics = self.recompute_batch_norm(&extraction)?;
        let train = self.features(args, &self.train, &extraction, "reading training features")?;
        let test = self.features(args, &self.test, &extraction, "reading test features")?;
        let mut progress = None;
        let report = probe.evaluate(&train, &test, &mut |done, total| {
            show(&mut progress, what, done, total);
        })?;
        drop((train, test)); // the baselines need the memory
        if let Some(classification) = report.classification() {
            self.write_classes(&args.eval, classification)?;
        }
        let mut facts = self.facts(&args.eval, settings);
        facts["pool"] = json!(extraction.pool);
        facts["precise_batch_norm"] = json!(statistics);
        let baselines = self.recipe.eval.baselines;
        let baselines = baselines
            .then(|| self.baselines(args, probe, &extraction))
            .transpose()?;
        let report = WithBaselines { report, baselines };
        self.finish(&args.eval, &report, facts, || report.to_string())
    }

    fn baselines<P: Probe>(
        &self,
        args: &ProbeArgs,
        probe: &P,
        extraction: &Extraction,
    ) -> Result<Baselines<P::Report>> {
        let recipe = &self.recipe;
        let (seed, device) = (backbone_seed(recipe), self.backbone.device());
        let network = || ResNet::new(&recipe.model, seed, &device);
        let untrained = (self.origin != "random").then(network).transpose()?;
        let settings = serde_json::to_string(&recipe.model)?;
        let inputs = BaselineInputs {
            train: &self.train,
            test: &self.test,
            extraction,
            untrained: untrained.as_ref().map(|backbone| Untrained {
                backbone,
                settings,
                batch_norm_images: recipe.eval.precise_batch_norm,
                seed: recipe.batch_norm_seed(),
            }),
            cache: args.cache.as_deref(),
        };
        let mut progress = None;
        let baselines = inputs.evaluate(probe, &mut |what, done, total| {
            show(&mut progress, what, done, total);
        });
        let baselines =
            baselines.context("the baselines (leave them out by eval.baselines=false)")?;
        for (name, reason) in &baselines.left_out {
            tracing::warn!("the baseline {name} is left out: {reason}");
        }
        Ok(baselines)
    }

    pub(super) fn features(
        &self,
        args: &ProbeArgs,
        pack: &Pack,
        extraction: &Extraction,
        what: &'static str,
    ) -> Result<FeatureSet> {
        let from = || format!("{what} of eval.layers, by eval.pool");
        let extract = || {
            let bytes = feature_bytes(&self.backbone, extraction, pack.len())?;
            eprintln!("{what}: {} images, {} MiB", pack.len(), bytes >> 20);
            check_memory(bytes, args.cache.as_deref())?;
            Progress::watch(what, "images", pack.len(), |progress| {
                extract_features(&self.backbone, pack, extraction, progress)
            })
        };
        let Some(folder) = &args.cache else {
            return extract().with_context(from);
        };
        // The statistics as they are now: recomputed ones make other features.
        let weights = weights_fingerprint(&self.backbone)?;
        let key = format!("{weights} {}", serde_json::to_string(&self.recipe.model)?);
        let features = FeatureCache::new(folder)?.get_or_extract(&key, pack, extraction, extract);
        features.with_context(from)
    }
}
