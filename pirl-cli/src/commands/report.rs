//! `report.html`: what a run did, what was found about it, and how to repeat it.

use std::fs;

use anyhow::{Context, Result};
use candle_core::Device;
use pirl_data::Pack;
use pirl_eval::{MapConfig, draw_images, weights_fingerprint};
use pirl_report::{CardResult, Look, RunReport};
use pirl_train::MetricsFile;
use serde_json::json;

use super::analyze::{Network, measure};
use crate::args::ReportArgs;
use crate::output::{print, print_json, write_file};
use crate::run_dir::RunDir;
use crate::weights::{self, Weights};

/// Images that are changed, to see how far features move.
const CHANGED: usize = 500;

/// Writes the report of a run: its curves and settings.
pub(crate) fn write(folder: &RunDir) -> Result<()> {
    write_with(folder, |_, _| Ok(()))
}

pub(crate) fn run(args: &ReportArgs) -> Result<()> {
    let folder = RunDir::open(&args.run)?;
    // A training that works here writes the same files.
    let _lock = folder.lock(true)?;
    let pack = args.data.as_ref().map(Pack::open).transpose()?;
    write_with(&folder, |report, done| {
        if !args.results.is_empty() {
            let name = &args.run.to_string_lossy();
            let file = Weights { name, prefix: None };
            let loaded = weights::load(file, None, &[], None, &Device::Cpu)?;
            let fingerprint = weights_fingerprint(&loaded.backbone)?;
            let results = args
                .results
                .iter()
                .map(|path| CardResult::read(path, &fingerprint));
            report.results = results.collect::<Result<_, _>>()?;
        }
        match &pack {
            Some(pack) => look(args, &folder, done, pack, report),
            None => Ok(()),
        }
    })?;
    if args.options.json {
        return print_json(&json!({ "run": args.run, "report": folder.report() }));
    }
    print(&folder.report().display().to_string())
}

/// Adds what the run's features make of the images of `pack`, to the page and to TensorBoard's events: how far
/// changes move them, what is near to what, and all of them on a map.
fn look(
    args: &ReportArgs,
    folder: &RunDir,
    done: u64,
    pack: &Pack,
    report: &mut RunReport<'_>,
) -> Result<()> {
    let name = args.run.to_string_lossy();
    let network = Network::load(&name, None, &args.options, pack)?;
    let seed = network.recipe.seed;
    let shown = draw_images(pack.len(), args.images as usize, seed);

    let config = folder.config();
    let untrained = Network::load("random", config.to_str(), &args.options, pack)?;
    let changed = pack.subset(CHANGED.min(pack.len()), seed)?;
    let mut distances = Vec::new();
    for (name, network) in [("this run", &network), ("untrained", &untrained)] {
        distances.push((
            name.to_owned(),
            measure(network, &changed, &network.recipe)?,
        ));
    }
    let map = network.map(&args.layer, &pack.select(&shown)?, &MapConfig::default())?;
    let look = Look {
        layer: args.layer.as_str(),
        pack,
        shown: &shown,
        map: &map,
        distances: &distances,
        seed,
    };
    look.add_to(report, folder.path(), done)?;
    let data = args
        .data
        .as_ref()
        .map_or(String::new(), |path| path.display().to_string());
    report.facts.push(("images looked at".to_owned(), data));
    Ok(())
}

/// Writes it with what `add` adds; that is told the number of steps done.
fn write_with(
    folder: &RunDir,
    add: impl FnOnce(&mut RunReport<'_>, u64) -> Result<()>,
) -> Result<()> {
    let rows = MetricsFile::read(&folder.metrics())?;
    let config = fs::read_to_string(folder.config())
        .with_context(|| format!("cannot read {}", folder.config().display()))?;
    let title = folder.path().display().to_string();
    let mut report = RunReport::from_metrics(&title, &rows, &config);
    let done = rows.last().and_then(|row| row.get("step")?.as_u64());
    add(&mut report, done.unwrap_or(0))?;
    write_file(&folder.report(), report.to_html()?.as_bytes())
}
