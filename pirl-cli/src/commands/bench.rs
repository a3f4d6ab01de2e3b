//! `pirl data bench`: how fast the loader alone makes a recipe's batches, and what holds it back.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use pirl_data::{Pack, Share, Throughput};
use pirl_recipes::Recipe;
use serde_json::{Map, Value, json};

use crate::args::DataBenchArgs;
use crate::output::{print, print_json};

pub(crate) fn run(args: &DataBenchArgs) -> Result<()> {
    let mut recipe = Recipe::load(&args.recipe, &args.settings)?;
    if let Some(workers) = args.workers {
        recipe.loader.workers = workers as usize;
    }
    let workers = pirl_recipes::workers(&recipe);
    let pack = Arc::new(Pack::open(&args.pack)?);
    recipe.train.batch_size = recipe.train.batch_size.min(pack.len());
    let loader = pirl_recipes::loader(
        &recipe,
        &pack,
        pirl_recipes::pretext(&recipe)?,
        1,
        Share::default(),
    )?;
    let time = Duration::from_secs(args.seconds.into());
    let found = Throughput::measure(&loader, &pack, time)?;
    let rate = found.images_per_second();
    let megabytes = found.bytes as f64 / found.seconds / 1e6;
    let limit = found.bottleneck().to_string();
    if args.json {
        let shares: Map<String, Value> = found
            .shares()
            .map(|(name, share)| (name.to_owned(), json!(share)))
            .collect();
        return print_json(&json!({
            "images_per_second": rate,
            "megabytes_per_second": megabytes,
            "stages": shares,
            "limit": limit,
            "waiting": found.waiting / found.seconds,
            "workers": workers,
            "batch_size": recipe.train.batch_size,
            "images": found.images,
            "seconds": found.seconds,
            "skipped": found.skipped,
            "anonymous_mib": found.anonymous_kib.map(|kib| kib / 1024.0),
        }));
    }
    let mut text = format!(
        "{rate:.1} images/s, {megabytes:.1} MB/s ({workers} workers, batches of {})\n",
        recipe.train.batch_size
    );
    for (name, share) in found.shares() {
        text.push_str(&format!("  {name:<12} {:>5.1} %\n", share * 100.0));
    }
    text.push_str(&format!("limited by the {limit}"));
    if let Some(kib) = found.anonymous_kib {
        text.push_str(&format!("\nanonymous memory: {:.0} MiB", kib / 1024.0));
    }
    if found.skipped > 0 {
        text.push_str(&format!("\n{} broken images skipped", found.skipped));
    }
    print(&text)
}
