//! `pirl analyze neighbours`: images, and those whose features are nearest.

use anyhow::{Result, ensure};
use pirl_data::Pack;
use pirl_eval::{NeighbourReport, draw_images, nearest_neighbours};
use pirl_report::{neighbour_sheet, write_png};
use serde_json::json;

use super::{Network, finish, make_folder};
use crate::args::NeighboursArgs;
use crate::commands::eval::describe_pack;

const SHEET: &str = "neighbours.png";

pub(crate) fn neighbours(args: &NeighboursArgs) -> Result<()> {
    let pack = Pack::open(&args.analyze.data)?;
    let gallery = args.gallery.as_ref().map(Pack::open).transpose()?;
    let searched = gallery.as_ref().unwrap_or(&pack);
    let k = args.neighbours as usize;
    let others = searched.len() - usize::from(gallery.is_none());
    ensure!(
        k <= others,
        "--neighbours {k}: there are only {others} images to choose from; ask for fewer"
    );
    make_folder(&args.analyze.out)?;
    let (recipe, run) = (args.analyze.recipe.as_deref(), &args.analyze.run);
    let network = Network::load(&args.weights, recipe, run, searched)?;
    let queries = draw_images(pack.len(), args.queries as usize, network.recipe.seed);

    let found = {
        let bank = network.features(&args.layer, searched, "reading the gallery")?;
        let of_queries =
            network.features(&args.layer, &pack.select(&queries)?, "reading queries")?;
        let own = gallery.is_none().then_some(&queries[..]);
        let [bank, of_queries] = [&bank, &of_queries].map(|set| &set.layers()[0]);
        nearest_neighbours(of_queries, bank, k, own)?
    };
    let sheet = args.analyze.out.join(SHEET);
    write_png(&sheet, &neighbour_sheet(&pack, &queries, searched, &found)?)?;

    let report = NeighbourReport::new(&pack, &queries, searched, &found);
    let result = json!({
        "layer": args.layer,
        "neighbours": k,
        "same_class": report.same_class,
        "queries": report.queries,
        "sheet": SHEET,
        "weights": network.facts,
        "data": describe_pack(&args.analyze.data, &pack),
        "gallery": args.gallery.as_deref().map(|path| describe_pack(path, searched)),
        "seed": network.recipe.seed,
    });
    let agreement = report.same_class.map_or(String::new(), |share| {
        format!("; {share:.1}% of the neighbours are of the query's class")
    });
    let text = format!(
        "{}: {} images, {k} neighbours of each at {}{agreement}",
        sheet.display(),
        queries.len(),
        args.layer
    );
    finish(&args.analyze, &result, &text)
}
