//! `pirl data bench`: how fast the loader alone makes a recipe's batches, and what holds it back.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use pirl_data::{Pack, Share, Throughput};

use crate::args::DataBenchArgs;
use crate::output::{print, print_json};

pub(crate) fn run(args: &DataBenchArgs) -> Result<()> {
    let mut recipe = args.recipe.load()?;
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
    let found = Throughput::measure(&loader, &pack, Duration::from_secs(args.seconds.into()))?;
    let batch = recipe.train.batch_size;
    if args.json {
        let mut result = found.to_json();
        (result["workers"], result["batch_size"]) = (workers.into(), batch.into());
        return print_json(&result);
    }
    print(&found.describe(workers, batch))
}
