//! `pirl analyze map`: the images of a pack as points of a page, alike ones near each other.

use anyhow::{Result, ensure};
use pirl_data::Pack;
use pirl_eval::{ImageName, MapConfig, Neighbour, silhouette};
use pirl_report::{Layout, MapReport, neighbour_sheet};
use serde_json::{Value, json};

use super::{Network, finish, make_folder};
use crate::args::MapArgs;
use crate::commands::eval::describe_pack;
use crate::output::{write_file, write_png};

const PAGE: &str = "map.html";
const PICTURE: &str = "map.png";
/// Images on a sheet of outliers or near duplicates.
const SHOWN: usize = 24;

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
    let labels: Vec<_> = (0..pack.len()).map(|image| pack.label(image)).collect();
    let apart = silhouette(&map.tsne, &labels);
    let explained: f64 = map.explained.iter().sum();
    let mut facts = vec![
        ("images".to_owned(), pack.len().to_string()),
        ("layer".to_owned(), args.layer.to_string()),
        (
            "variance of two components".to_owned(),
            format!("{:.0} %", 100.0 * explained),
        ),
    ];
    facts.extend(apart.map(|apart| {
        (
            "silhouette of the classes".to_owned(),
            format!("{apart:.3}"),
        )
    }));
    let layouts = [("t-SNE", &map.tsne), ("principal components", &map.pca)];
    let layouts = layouts.map(|(name, points)| Layout { name, points });
    let report = MapReport {
        title: &format!("{} by {}", args.analyze.data.display(), args.weights),
        facts,
        pack: &pack,
        layouts: &layouts,
    };
    let out = &args.analyze.out;
    write_file(&out.join(PAGE), report.to_html()?.as_bytes())?;
    write_png(&out.join(PICTURE), &report.picture()?)?;

    let outliers = map.outliers(SHOWN);
    let beside: Vec<_> = outliers
        .iter()
        .map(|image| map.neighbours[*image as usize].clone())
        .collect();
    let duplicates = map.near_duplicates(cosine);
    sheet(args, &pack, "outliers.png", &outliers, &beside)?;
    let (first, second): (Vec<u32>, Vec<Vec<Neighbour>>) = duplicates
        .iter()
        .take(SHOWN)
        .map(|(first, second)| (*first, vec![*second]))
        .unzip();
    sheet(args, &pack, "near_duplicates.png", &first, &second)?;
    let text = format!(
        "{}: {} images{}; {} pairs of near duplicates",
        out.join(PAGE).display(),
        pack.len(),
        apart.map_or(String::new(), |apart| format!(
            ", silhouette of the classes {apart:.3}"
        )),
        duplicates.len()
    );
    let pair = |(first, second): &(u32, Neighbour)| {
        let names = [*first as usize, second.index].map(|image| pack.name(image));
        json!({ "images": [first, second.index], "names": names, "cosine": second.cosine })
    };
    let pairs: Vec<Value> = duplicates.iter().map(pair).collect();
    let result = json!({
        "layer": args.layer,
        "settings": config,
        "silhouette": apart,
        "explained": map.explained,
        "outliers": outliers.iter().map(|image| ImageName::of(&pack, *image as usize)).collect::<Vec<_>>(),
        "near_duplicates": pairs,
        "page": PAGE,
        "picture": PICTURE,
        "weights": network.facts,
        "data": describe_pack(&args.analyze.data, &pack),
        "seed": network.recipe.seed,
    });
    finish(&args.analyze, &result, &text)
}

/// Draws images beside those that are like them, if there are any.
fn sheet(
    args: &MapArgs,
    pack: &Pack,
    name: &str,
    images: &[u32],
    beside: &[Vec<Neighbour>],
) -> Result<()> {
    if images.is_empty() {
        return Ok(());
    }
    let sheet = neighbour_sheet(pack, images, pack, beside)?;
    write_png(&args.analyze.out.join(name), &sheet)
}
