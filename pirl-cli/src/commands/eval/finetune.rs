//! `pirl eval finetune`: the whole network, trained on all or a few labels.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use pirl_eval::{Finetune, LabelSubset, Protocol};
use pirl_recipes::Recipe;
use serde_json::json;

use super::Task;
use crate::args::FinetuneArgs;
use crate::output::write_file;
use crate::progress::Progress;
use crate::ranks::Company;

pub(super) fn finetune(args: &FinetuneArgs, company: &Company) -> Result<()> {
    let full = args.label_fraction.is_none_or(|fraction| fraction == 1.0);
    let protocol = Protocol::Finetune {
        full: full && args.labels.is_none(),
    };
    let mut task = Task::open(&args.eval, args.dataset, protocol, company)?;
    if let Some(fraction) = args.label_fraction {
        task.recipe.eval.finetune.label_fraction = fraction;
    }
    let subset = choose(args, &mut task)?;
    let pack = subset.of(&task.train)?;
    let config = &task.recipe.eval.finetune;
    let mut tuner = Finetune::new(
        config,
        &task.backbone,
        task.recipe.model.ops,
        (pack.clone(), task.train_view()?),
        task.recipe.loader.workers,
        task.recipe.seed,
        &company.ranks,
    )
    .context("eval.finetune")?;
    let mut settings = serde_json::to_value(config)?;
    settings["crop_scale"] = json!(task.recipe.eval.crop_scale);
    settings["flip"] = json!(task.recipe.eval.flip);

    let matters = |key: &str| {
        let keys = ["eval.finetune.", "eval.crop_scale", "eval.flip"];
        keys.iter().any(|start| key.starts_with(start))
    };
    task.train(&args.eval, args.resume, &mut tuner, &pack, matters)?;
    let labels = write_labels(company.writes_to(&args.eval.out), &subset)?;

    let report = Progress::watch("testing", "images", task.test.len(), |progress| {
        let Recipe { eval, loader, .. } = &task.recipe;
        let view = task.recipe.eval_view();
        tuner.evaluate(&task.test, &view, eval.batch_size, loader.workers, progress)
    })?;
    task.write_classes(&args.eval, &report.classification)?;
    let mut facts = task.facts(&args.eval, settings);
    facts["labels"] = json!(labels);
    task.finish(&args.eval, &report, facts, || report.to_string())
}

/// The labelled images: those of `--labels`, or a balanced draw.
fn choose(args: &FinetuneArgs, task: &mut Task<'_>) -> Result<LabelSubset> {
    let Some(path) = &args.labels else {
        let fraction = task.recipe.eval.finetune.label_fraction;
        return Ok(LabelSubset::balanced(
            &task.train,
            fraction,
            task.recipe.seed,
        )?);
    };
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let subset = LabelSubset::parse(&text, &task.train)
        .with_context(|| format!("the list {}", path.display()))?;
    task.recipe.eval.finetune.label_fraction = subset.fraction();
    Ok(subset)
}

/// The list of the labelled images, for others to use.
fn write_labels(out: Option<&PathBuf>, subset: &LabelSubset) -> Result<Option<PathBuf>> {
    let Some(out) = out else {
        return Ok(None);
    };
    let path = out.join("labels.txt");
    write_file(&path, subset.to_text().as_bytes())?;
    Ok(Some(path))
}
