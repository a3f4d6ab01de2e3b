//! `pirl analyze invariance`: how far changes of an image move its features.

use std::collections::BTreeMap;

use anyhow::Result;
use pirl_data::Pack;
use pirl_eval::Distances;
use pirl_recipes::Recipe;
use pirl_report::{invariance_chart, invariance_table, write_png};
use serde_json::{Value, json};

use super::{Network, finish, make_folder};
use crate::args::InvarianceArgs;
use crate::commands::eval::describe_pack;
use crate::progress::Progress;

const CHART: &str = "invariance.png";

pub(crate) fn invariance(args: &InvarianceArgs) -> Result<()> {
    let pack = Pack::open(&args.analyze.data)?;
    make_folder(&args.analyze.out)?;
    let mut reports: Vec<(String, BTreeMap<String, Distances>)> = Vec::new();
    let mut rows: Vec<Value> = Vec::new();
    // All networks are asked about the same changes of the same images: those of the first.
    let mut shared: Option<Recipe> = None;
    let (recipe, run) = (args.analyze.recipe.as_deref(), &args.analyze.run);
    for name in &args.weights {
        let network = Network::load(name, recipe, run, &pack)?;
        let recipe = shared.get_or_insert_with(|| network.recipe.clone());
        let images = pack.subset((args.images as usize).min(pack.len()), recipe.seed)?;
        let report = measure(&network, &images, recipe)?;
        let mut row = network.facts;
        row["distances"] = json!(report);
        rows.push(row);
        reports.push((short(name), report));
    }
    let chart = args.analyze.out.join(CHART);
    write_png(&chart, &invariance_chart(&reports)?)?;
    let images = (args.images as usize).min(pack.len());
    let result = json!({
        "weights": rows,
        "images": images,
        "pretext": shared.as_ref().map(|recipe| &recipe.pretext),
        "transform": shared.as_ref().map(|recipe| &recipe.transform),
        "chart": CHART,
        "data": describe_pack(&args.analyze.data, &pack),
        "seed": shared.as_ref().map(|recipe| recipe.seed),
    });
    let text = format!(
        "{}{}: {images} images",
        invariance_table(&reports),
        chart.display()
    );
    finish(&args.analyze, &result, &text)
}

/// How far the changes that `recipe` makes of `images` move the network's features.
pub(crate) fn measure(
    network: &Network,
    images: &Pack,
    recipe: &Recipe,
) -> Result<BTreeMap<String, Distances>> {
    let (view, changes) = (recipe.eval_view(), recipe.changes()?);
    let distances = Progress::watch("measuring", "images", images.len(), |progress| {
        let backbone = &network.backbone;
        let own_statistics = recipe.eval.precise_batch_norm > 0;
        pirl_eval::invariance(
            backbone,
            images,
            &view,
            &changes,
            own_statistics,
            recipe.seed,
            progress,
        )
    });
    Ok(distances?)
}

/// The end of a long name, which tells more than its beginning.
fn short(name: &str) -> String {
    const LETTERS: usize = 32;
    let skipped = name.chars().count().saturating_sub(LETTERS);
    name.chars().skip(skipped).collect()
}
