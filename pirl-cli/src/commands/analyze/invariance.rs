//! `pirl analyze invariance`: how far changes of an image move its features.

use std::collections::BTreeMap;

use anyhow::Result;
use pirl_data::{Pack, PretextKind, build_pretext};
use pirl_eval::{Change, Distances};
use pirl_recipes::Recipe;
use pirl_report::invariance_chart;
use serde_json::{Value, json};

use super::{Network, finish, make_folder};
use crate::args::InvarianceArgs;
use crate::commands::eval::describe_pack;
use crate::output::write_png;
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
    let text = format!("{}{}: {images} images", table(&reports), chart.display());
    finish(&args.analyze, &result, &text)
}

/// How far the changes that `recipe` makes of `images` move the network's features.
pub(crate) fn measure(
    network: &Network,
    images: &Pack,
    recipe: &Recipe,
) -> Result<BTreeMap<String, Distances>> {
    let mut progress = Progress::new("measuring", "images", images.len() as u64, 0);
    let distances = pirl_eval::invariance(
        &network.backbone,
        images,
        &recipe.eval_view(),
        &changes(recipe)?,
        recipe.seed,
        &mut |done, _| progress.at(done as u64, String::new),
    )?;
    progress.finish();
    Ok(distances)
}

/// The pretext task's transformation, if the recipe has one; crops and colours of its views alone.
fn changes(recipe: &Recipe) -> Result<Vec<Change>> {
    let (data, view) = (&recipe.data, &recipe.transform.image);
    let mut changes = vec![
        Change::crop(data, view)?,
        Change::photometric(recipe.eval_view(), data, view)?,
    ];
    let name = match recipe.pretext.kind {
        PretextKind::None => return Ok(changes),
        PretextKind::Jigsaw => "jigsaw",
        PretextKind::Rotation => "rotation",
        PretextKind::JigsawRotation => "jigsaw-rotation",
    };
    let patch = &recipe.transform.patch;
    changes.push(Change {
        name: name.to_owned(),
        views: build_pretext(&recipe.pretext, data, patch, recipe.seed)?,
    });
    Ok(changes)
}

/// The end of a long name, which tells more than its beginning.
fn short(name: &str) -> String {
    const LETTERS: usize = 32;
    let skipped = name.chars().count().saturating_sub(LETTERS);
    name.chars().skip(skipped).collect()
}

fn table(reports: &[(String, BTreeMap<String, Distances>)]) -> String {
    let mut text = String::new();
    for (weights, changes) in reports {
        text += &format!("{weights}\n");
        for (name, found) in changes {
            let Distances { mean, std, .. } = found;
            text += &format!("  {name:<16} L2 distance {mean:.3} (standard deviation {std:.3})\n");
        }
    }
    text
}
