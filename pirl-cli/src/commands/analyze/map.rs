//! `pirl analyze map`: the images of a pack as points of a page, alike ones near each other.

use anyhow::{Result, ensure};
use pirl_data::Pack;
use pirl_eval::MapConfig;
use pirl_report::MapPages;
use serde_json::json;

use super::{Network, finish, make_folder};
use crate::args::MapArgs;
use crate::commands::eval::describe_pack;

pub(crate) fn map(args: &MapArgs) -> Result<()> {
    let pack = Pack::open(&args.analyze.data)?;
    let config = MapConfig {
        perplexity: args.perplexity,
        ..MapConfig::default()
    };
    config.check()?;
    let cosine = args.near_duplicates;
    ensure!(
        (-1.0..=1.0).contains(&cosine),
        "--near-duplicates {cosine}: a cosine lies between -1 and 1"
    );
    make_folder(&args.analyze.out)?;
    let network = {
        let analyze = &args.analyze;
        Network::load(
            &args.weights,
            analyze.recipe.as_deref(),
            &analyze.run,
            &pack,
        )?
    };
    let map = network.map(&args.layer, &pack, &config)?;
    let out = &args.analyze.out;
    let pages = MapPages {
        title: &format!("{} by {}", args.analyze.data.display(), args.weights),
        layer: args.layer.as_str(),
        pack: &pack,
        map: &map,
        near_duplicates: cosine,
    };
    let found = pages.write(out)?;
    let mut result = found.result;
    result["layer"] = json!(args.layer);
    result["settings"] = json!(config);
    result["weights"] = network.facts;
    result["data"] = describe_pack(&args.analyze.data, &pack);
    result["seed"] = json!(network.recipe.seed);
    let text = format!(
        "{}: {} images{}; {} pairs of near duplicates",
        out.join("map.html").display(),
        pack.len(),
        found.silhouette.map_or(String::new(), |apart| format!(
            ", silhouette of the classes {apart:.3}"
        )),
        found.near_duplicates
    );
    finish(&args.analyze, &result, &text)
}
