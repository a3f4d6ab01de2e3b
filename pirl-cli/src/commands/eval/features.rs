//! `pirl eval linear` and `pirl eval knn`: classifiers on frozen features.

use anyhow::{Context, Result, ensure};
use pirl_data::Pack;
use pirl_eval::{
    BaselineInputs, Baselines, Crops, Extraction, FeatureSet, Knn, LinearProbe, Probe, Protocol,
    RandomCropProbe, ReportTable, WithBaselines,
};
use pirl_model::{ResNet, Trainable};
use pirl_recipes::{BatchNormStatistics, Recipe};
use serde_json::{Value, json};

use super::Task;
use crate::args::{LinearArgs, ProbeArgs};
use crate::progress::Progress;
use crate::ranks::Company;

pub(super) fn linear(args: &LinearArgs, company: &Company) -> Result<()> {
    let (args, resume) = (&args.probe, args.resume);
    let task = Task::open(&args.eval, args.dataset, Protocol::Linear, company)?;
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
fn on_random_crops(args: &ProbeArgs, task: &Task<'_>, resume: bool) -> Result<()> {
    ensure!(
        args.cache.is_none(),
        "--cache keeps features, but those of random crops are never the same twice; leave it out, \
         or learn from plain views (--set eval.linear.crops=centre)"
    );
    let extraction = task.recipe.extraction();
    let statistics = task.recompute_batch_norm(&extraction)?;
    let (config, backbone) = (&task.recipe.eval.linear, &task.backbone);
    let (pack, view) = (task.train.clone(), task.train_view()?);
    let (seed, ranks) = (task.recipe.seed, &task.company.ranks);
    let made = extraction.clone();
    let mut probe = RandomCropProbe::new(config, backbone, pack, view, made, seed, ranks)
        .context("eval.linear")?;
    eprintln!("{}", probe.estimate(&task.test)?);
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

pub(super) fn knn(args: &ProbeArgs, company: &Company) -> Result<()> {
    let task = Task::open(&args.eval, args.dataset, Protocol::Knn, company)?;
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

impl Task<'_> {
    /// Reads the features, runs the probe on them and on its baselines, and reports.
    pub(super) fn run<P: Probe<Report: ReportTable>>(
        &self,
        args: &ProbeArgs,
        probe: &P,
        what: &'static str,
        settings: Value,
    ) -> Result<()> {
        let Some(extraction) = self.shared_extraction()? else {
            return Ok(());
        };
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
        let untrained = || self.recipe.untrained(&self.backbone.device());
        let untrained = (self.origin != "random").then(untrained);
        let inputs = BaselineInputs {
            train: &self.train,
            test: &self.test,
            extraction,
            untrained: untrained.transpose()?,
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
        let network = serde_json::to_string(&self.recipe.model)?;
        let found = Progress::watch(what, "images", pack.len(), |progress| {
            let kept = (args.cache.as_deref(), network.as_str());
            pirl_eval::features(&self.backbone, pack, extraction, kept, progress)
        });
        found.with_context(|| format!("{what} of eval.layers, by eval.pool"))
    }
}
