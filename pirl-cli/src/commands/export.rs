//! `pirl export`

use anyhow::{Context, Result};
use candle_core::Device;
use pirl_eval::weights_fingerprint;
use pirl_model::{Export, ExportView, exporter};
use pirl_report::{CardResult, ModelCard};
use serde_json::json;

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
        .map(|path| CardResult::read(path, &fingerprint));
    let results: Vec<CardResult> = results.collect::<Result<_, _>>()?;
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
