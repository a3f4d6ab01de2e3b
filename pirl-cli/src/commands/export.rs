//! `pirl export`

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use pirl_eval::weights_fingerprint;
use pirl_model::{Export, ExportView, exporter};
use pirl_report::{CardResult, ModelCard};
use serde_json::{Value, json};

use crate::args::ExportArgs;
use crate::output::{print, print_json};
use crate::weights::{self, Weights};

pub(crate) fn run(args: &ExportArgs) -> Result<()> {
    let format = exporter(&args.format).context("--format")?;
    let file = Weights {
        name: &args.weights,
        prefix: args.weights_prefix.as_deref(),
    };
    let loaded = weights::load(
        file,
        args.recipe.as_deref(),
        &args.settings,
        None,
        &Device::Cpu,
    )?;
    weights::ensure_not_folded(loaded.folded, &loaded.origin, "exported")?;
    let (backbone, recipe) = (&loaded.backbone, &loaded.recipe);
    format.check(&recipe.model)?;
    let fingerprint = weights_fingerprint(backbone)?;
    let results = args
        .results
        .iter()
        .map(|path| result_of(path, &fingerprint));
    let results: Vec<CardResult> = results.collect::<Result<_>>()?;
    let view = recipe.eval_view();
    let mut export = Export {
        backbone,
        precise_batch_norm: loaded.precise_batch_norm,
        view: ExportView {
            resize: view.resize,
            crop: view.crop,
            mean: view.mean.clone(),
            std: view.std.clone(),
        },
        card: "",
    };
    let usage = format.usage(&export, &args.output);
    let settings = loaded.of_run.then(|| recipe.to_toml()).transpose()?;
    let card = ModelCard {
        title: &format!("{} of {}", recipe.model.arch, args.weights),
        format: format.name(),
        network: &recipe.model.network(),
        weights: &loaded.origin,
        precise_batch_norm: loaded.precise_batch_norm,
        usage: &usage,
        view,
        results: &results,
        recipe: settings.as_deref(),
    };
    let card = card.to_markdown()?;
    export.card = &card;
    let tensors = format
        .write(&export, &args.output)
        .with_context(|| format!("cannot export to {}", args.output.display()))?;
    if args.json {
        return print_json(&json!({
            "output": args.output,
            "format": args.format,
            "tensors": tensors,
            "model": { "arch": recipe.model.arch, "width": recipe.model.width, "stem": recipe.model.stem, "channels": recipe.data.channels },
            "weights": loaded.origin,
            "precise_batch_norm": loaded.precise_batch_norm,
            "read": loaded.tensors,
        }));
    }
    print(&format!(
        "{}: {tensors} tensors\n{usage}",
        args.output.display()
    ))
}

/// A row of a table of results, of an evaluation of the weights with this fingerprint.
pub(crate) fn result_of(path: &Path, weights: &str) -> Result<CardResult> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let result: Value =
        serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    let row = CardResult::of(path, &result)?;
    let found = &result["weights"];
    ensure!(
        found["fingerprint"] == weights,
        "{} is of other weights, {}: give --results of these weights",
        path.display(),
        found["path"]
    );
    Ok(row)
}
