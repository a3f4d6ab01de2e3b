//! `pirl data fetch` and `pack`.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail, ensure};
use pirl_data::{
    DataError, Labels, PackOptions, PackReport, Reencode, Source, SourceFormat, SourceOptions,
    fetch_cifar10, fetch_fashion_mnist,
};
use serde_json::json;

use crate::args::{DataSet, FetchArgs, LabelsArg, PackArgs, ReencodeArg};
use crate::interrupt::{Interrupt, Interrupted};
use crate::output::{print, print_json};
use crate::progress::Progress;

pub(crate) fn fetch(args: &FetchArgs) -> Result<()> {
    let archive = args.archive.as_deref();
    let mut bar = None;
    let mut progress = |done, total| {
        bar.get_or_insert_with(|| Progress::new("downloading", "bytes", total, 0))
            .at(done, String::new);
    };
    let (name, from) = match args.name {
        DataSet::FashionMnist => {
            ensure!(
                archive.is_none(),
                "--archive: fashion-mnist is read from none"
            );
            (
                "Fashion-MNIST",
                fetch_fashion_mnist(&args.output, &mut progress),
            )
        }
        DataSet::Cifar10 => {
            let from = fetch_cifar10(&args.output, archive, &mut progress);
            ("CIFAR-10", from)
        }
    };
    bar.inspect(Progress::finish);
    let from = from?;
    if args.json {
        return print_json(&json!({ "output": args.output, "from": from }));
    }
    print(&format!("{}: {name}, from {from}", args.output.display()))
}

pub(crate) fn pack(args: &PackArgs) -> Result<()> {
    let done = pack_whole(args);
    if let Err(error) = &done
        && let Some(DataError::Nothing { skipped, .. }) = error.downcast_ref()
        && args.json
    {
        print_json(&PackReport::nothing_json(&args.output, skipped))?;
    }
    done
}

fn pack_whole(args: &PackArgs) -> Result<()> {
    let source = open_source(args)?;
    let interrupt = Interrupt::install()?;
    let options = PackOptions {
        shard_bytes: args.shard_mib << 20,
        resize_shorter: args.resize_shorter,
        quality: args.quality,
        reencode: args.reencode.map(|format| match format {
            ReencodeArg::Png => Reencode::Png,
            ReencodeArg::Jpeg => Reencode::Jpeg,
        }),
        dedupe: args.dedupe,
        max_pixels: usize::try_from(args.max_pixels).unwrap_or(usize::MAX),
        channels: args.channels,
        depth: args.range,
        strict: args.strict,
        stop: Some(interrupt.flag()),
    };
    // Made when it is known how much an interrupted run has done.
    let mut progress = None;
    let packed = pirl_data::pack(&*source, &args.output, &options, &mut |done, total| {
        progress
            .get_or_insert_with(|| Progress::new("packing", "images", total as u64, done as u64))
            .at(done as u64, String::new);
    });
    if let Some(progress) = progress {
        progress.finish();
    }
    let report = match packed {
        Err(DataError::Stopped { done, total, .. }) if interrupt.seen() => {
            bail!(Interrupted(format!(
                "after {done} of {total} images; run the same command again to go on after the \
                 last complete shard of {}",
                args.output.display()
            )));
        }
        packed => packed.with_context(|| format!("packing {}", shown(&args.input)))?,
    };
    report.save(&args.output)?;
    if args.json {
        return print_json(&report.to_json(&args.output));
    }
    print(&report.to_string())
}

fn open_source(args: &PackArgs) -> Result<Box<dyn Source>> {
    let format = match args.format {
        Some(format) => Ok(format),
        None => SourceFormat::guess(&args.input).inspect(|format| {
            eprintln!(
                "format: {}, as names tell; --format says another",
                format.name()
            );
        }),
    };
    let options = SourceOptions {
        split: args.split.clone(),
        seed: args.seed,
        labels: match args.labels {
            LabelsArg::Auto => Labels::Auto,
            LabelsArg::Folders => Labels::Folders,
            LabelsArg::None => Labels::None,
        },
        columns: args.columns.clone(),
        images: args.images.clone(),
    };
    let source = format.and_then(|format| pirl_data::open_source(format, &args.input, &options));
    source.map_err(|error| match error {
        DataError::Setting(setting) => anyhow!("--{setting}"),
        error => error.into(),
    })
}

fn shown(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
    paths.join(", ")
}
