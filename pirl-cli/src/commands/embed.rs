//! `pirl embed`: the features of a pack's images as a file.

use std::path::Path;

use anyhow::{Context, Result};
use pirl_data::Pack;
use pirl_eval::{EmbedFormat, Embedder, Extraction, embed};
use pirl_model::{Backbone, Layer, Trainable};
use pirl_train::read_image_head;
use serde_json::{Value, json};

use super::analyze::Network;
use super::eval::describe_pack;
use crate::args::EmbedArgs;
use crate::output::{print, print_json};
use crate::progress::Progress;
use crate::ranks::{Company, share};

pub(crate) fn run(args: &EmbedArgs) -> Result<()> {
    share(args.rank_timeout, |company| write(args, company))
}

fn write(args: &EmbedArgs, company: &Company) -> Result<()> {
    EmbedFormat::of(&args.output)?; // before any work
    let pack = Pack::open(company.own_path(&args.data))?;
    let network = Network::load(&args.weights, args.recipe.as_deref(), &args.run, &pack)?;
    let extraction = Extraction {
        layers: args.layer.clone(),
        pool: network.recipe.eval.pool.plain().into(),
        ..network.recipe.extraction()
    };
    let mut facts = json!({
        "weights": network.facts,
        "data": describe_pack(&args.data, &pack),
        "pool": extraction.pool,
        "view": { "resize": extraction.view.resize, "crop": extraction.view.crop },
    });
    let notes: Vec<(&str, String)> = ["weights", "data", "pool", "view"]
        .map(|key| (key, facts[key].to_string()))
        .to_vec();
    let backbone = backbone(network, &args.layer)?;
    let Some(extraction) = extraction.over(&company.ranks, &*backbone, &[&pack])? else {
        return Ok(());
    };
    let found = Progress::watch("reading features", "images", pack.len(), |progress| {
        embed(
            &*backbone,
            &pack,
            &extraction,
            &notes,
            &args.output,
            progress,
        )
    });
    let found = found.with_context(|| format!("cannot embed {}", args.data.display()))?;
    if !args.run.json {
        return print(&found.to_string());
    }
    if let (Value::Object(facts), Value::Object(found)) = (&mut facts, serde_json::to_value(found)?)
    {
        facts.extend(found);
    }
    print_json(&facts)
}

/// The network, with the head f on it if its embeddings are asked for.
fn backbone(network: Network, layers: &[Layer]) -> Result<Box<dyn Backbone>> {
    if !layers
        .iter()
        .any(|layer| layer.as_str() == Embedder::EMBEDDING)
    {
        return Ok(Box::new(network.backbone));
    }
    let (config, device) = (network.backbone.config(), network.backbone.device());
    let head = read_image_head(Path::new(&network.origin), config, &device);
    let head =
        head.context("--layer embedding needs a run of PIRL, whose checkpoints have the head f")?;
    Ok(Box::new(Embedder::new(network.backbone, head)))
}
