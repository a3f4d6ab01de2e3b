//! `pirl data bench`: how fast the loader alone makes a recipe's batches, and what holds it back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use candle_core::Device;
use pirl_data::{Pack, Stages};
use pirl_train::Batches;
use serde_json::{Map, Value, json};

use crate::args::DataBenchArgs;
use crate::assemble;
use crate::output::{print, print_json};
use crate::recipe::Recipe;

/// The loader waited on less than this share of the time leaves its user the bottleneck.
const IDLE: f64 = 0.05;

/// Reading that takes at least this share of the threads' time makes the disk the bottleneck.
const DISK: f64 = 0.5;

pub(crate) fn run(args: &DataBenchArgs) -> Result<()> {
    let mut recipe = Recipe::load(&args.recipe, &args.settings)?;
    if let Some(workers) = args.workers {
        recipe.loader.workers = workers as usize;
    }
    let workers = match recipe.loader.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        workers => workers,
    };
    let pack = Arc::new(Pack::open(&args.pack)?);
    recipe.train.batch_size = recipe.train.batch_size.min(pack.len());
    let found = measure(&recipe, &pack, Duration::from_secs(args.seconds.into()))?;
    let rate = found.images as f64 / found.seconds;
    let megabytes = found.bytes as f64 / found.seconds / 1e6;
    let limit = found.limit();
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

/// Images that the loader makes in a second, once it is under way.
pub(crate) fn images_per_second(recipe: &Recipe, pack: &Arc<Pack>, time: Duration) -> Result<f64> {
    let found = measure(recipe, pack, time)?;
    Ok(found.images as f64 / found.seconds)
}

/// What some seconds of loading came to.
struct Found {
    images: usize,
    bytes: usize,
    skipped: usize,
    seconds: f64,
    /// Seconds that batches were waited for.
    waiting: f64,
    stages: Stages,
    /// The most this process held, of pages that are no file's.
    anonymous_kib: Option<f64>,
}

/// Takes batches until `time` is over, after the first, which the threads start with, and normalises
/// them, as a step on a CPU does.
fn measure(recipe: &Recipe, pack: &Arc<Pack>, time: Duration) -> Result<Found> {
    let loader = assemble::loader(recipe, pack, assemble::pretext(recipe)?, 1)?;
    let mut batches = Batches::after(loader, 0);
    batches.timed_next().context("making a batch")?;
    batches.loader().measure();
    let mut found = Found {
        images: 0,
        bytes: 0,
        skipped: 0,
        seconds: 0.0,
        waiting: 0.0,
        stages: Stages::default(),
        anonymous_kib: None,
    };
    let start = Instant::now();
    while found.images == 0 || start.elapsed() < time {
        let (batch, waited) = batches.timed_next().context("making a batch")?;
        found.waiting += waited.as_secs_f64();
        for views in [Some(&batch.images), batch.transformed.as_ref()] {
            let numbers = views.map(|views| batch.normalize.apply(views, &Device::Cpu));
            std::hint::black_box(numbers.transpose()?);
        }
        found.images += batch.indices.len();
        found.skipped += batch.skipped;
        let sizes = batch
            .indices
            .iter()
            .map(|index| pack.bytes(*index as usize));
        found.bytes += sizes.flatten().map(<[u8]>::len).sum::<usize>();
        found.anonymous_kib = found
            .anonymous_kib
            .into_iter()
            .chain(anonymous_kib())
            .reduce(f64::max);
    }
    found.seconds = start.elapsed().as_secs_f64();
    found.stages = batches.loader().stages();
    Ok(found)
}

/// `RssAnon` of this process, on Linux.
fn anonymous_kib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

impl Found {
    /// Each stage's share of the threads' time.
    fn shares(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let stages = self.stages.each();
        let all: Duration = stages.iter().map(|(_, time)| *time).sum();
        let all = all.as_secs_f64().max(f64::MIN_POSITIVE);
        stages
            .into_iter()
            .map(move |(name, time)| (name, time.as_secs_f64() / all))
    }

    /// workers, disk or consumer.
    fn limit(&self) -> &'static str {
        let read = self.shares().find(|(name, _)| *name == "read");
        if self.waiting < IDLE * self.seconds {
            "consumer"
        } else if read.is_some_and(|(_, share)| share >= DISK) {
            "disk"
        } else {
            "workers"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_what_others_wait_for() {
        let found = |waiting, read, decode| Found {
            images: 1,
            bytes: 1,
            skipped: 0,
            seconds: 10.0,
            waiting,
            stages: Stages {
                read: Duration::from_secs(read),
                decode: Duration::from_secs(decode),
                ..Stages::default()
            },
            anonymous_kib: None,
        };
        assert_eq!(found(0.1, 9, 1).limit(), "consumer");
        assert_eq!(found(9.0, 9, 1).limit(), "disk");
        assert_eq!(found(9.0, 1, 9).limit(), "workers");
        assert_eq!(found(9.0, 0, 0).limit(), "workers");
        let shares: Vec<_> = found(9.0, 1, 3).shares().collect();
        assert_eq!(shares[..2], [("read", 0.25), ("decode", 0.75)]);
    }
}
