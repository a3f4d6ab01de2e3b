//! `pirl data fetch` and `pack`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use pirl_data::{
    Cifar, DataError, Idx, ImageFolder, List, PackOptions, PackReport, Source, Split, Voc,
    fetch_cifar10, fetch_fashion_mnist,
};
use serde_json::json;

use crate::args::{DataSet, FetchArgs, Format, PackArgs};
use crate::interrupt::{Interrupt, Interrupted};
use crate::output::{print, print_json};
use crate::progress::Progress;

pub(crate) fn fetch(args: &FetchArgs) -> Result<()> {
    let archive = args.archive.as_deref();
    let (name, from) = match args.name {
        DataSet::FashionMnist => {
            ensure!(
                archive.is_none(),
                "--archive: fashion-mnist is read from none"
            );
            ("Fashion-MNIST", fetch_fashion_mnist(&args.output)?)
        }
        DataSet::Cifar10 => {
            let mut progress = None;
            let from = fetch_cifar10(&args.output, archive, &mut |done, total| {
                progress
                    .get_or_insert_with(|| Progress::new("downloading", "bytes", total, 0))
                    .at(done, String::new);
            });
            progress.inspect(Progress::finish);
            ("CIFAR-10", from?)
        }
    };
    if args.json {
        return print_json(&json!({ "output": args.output, "from": from }));
    }
    print(&format!("{}: {name}, from {from}", args.output.display()))
}

pub(crate) fn pack(args: &PackArgs) -> Result<()> {
    let source = open_source(args)?;
    let interrupt = Interrupt::install()?;
    let options = PackOptions {
        shard_bytes: args.shard_mib << 20,
        resize_shorter: args.resize_shorter,
        quality: args.quality,
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
    for skipped in &report.skipped {
        eprintln!("skipped {}: {}", skipped.name, skipped.reason);
    }
    if args.json {
        return print_json(&json!({
            "output": args.output,
            "packed": report.packed,
            "resumed": report.resumed,
            "skipped": report.skipped.iter()
                .map(|skipped| json!({ "name": skipped.name, "reason": skipped.reason }))
                .collect::<Vec<_>>(),
            "shards": report.shards,
            "bytes": report.bytes,
            "encoding": report.encoding.to_string(),
            "fingerprint": report.fingerprint,
        }));
    }
    print(&summary(&report))
}

fn summary(report: &PackReport) -> String {
    let skipped = match report.skipped.len() {
        0 => String::new(),
        count => format!(", {count} broken ones skipped (named above)"),
    };
    let resumed = match report.resumed {
        0 => String::new(),
        count => format!(", {count} of them dealt with before an interruption"),
    };
    let shards: Vec<String> = report
        .shards
        .iter()
        .map(|path| format!("  {}", path.display()))
        .collect();
    format!(
        "{} images packed{resumed}{skipped}, {}, {}\n{}",
        report.packed,
        report.encoding,
        mebibytes(report.bytes),
        shards.join("\n")
    )
}

fn open_source(args: &PackArgs) -> Result<Box<dyn Source>> {
    let name = || match &args.split {
        Some(name) => Ok(name.as_str()),
        None => bail!(
            "--split is needed: {}",
            match args.format {
                Format::Voc => "the image set, such as trainval or test",
                _ => "train or test",
            }
        ),
    };
    let split = || -> Result<Split> { Ok(name()?.parse()?) };
    let input = match args.input.as_slice() {
        [input] => input,
        inputs if args.format == Format::Voc => return Ok(Box::new(Voc::open(inputs, name()?)?)),
        inputs => bail!(
            "{} inputs ({}): only folders in the layout of VOC can be put together",
            inputs.len(),
            shown(inputs)
        ),
    };
    Ok(match args.format {
        Format::ImageFolder => match &args.split {
            Some(name) => Box::new(ImageFolder::open(input.join(name))?),
            None => Box::new(ImageFolder::open(input)?),
        },
        Format::List => match &args.split {
            Some(name) => bail!("--split {name}: a list has no splits; leave it out"),
            None => Box::new(List::open(input)?),
        },
        Format::Mnist => Box::new(Idx::open(input, split()?)?),
        Format::Cifar10 => Box::new(Cifar::ten(input, split()?)?),
        Format::Cifar100 => Box::new(Cifar::hundred(input, split()?)?),
        Format::Voc => Box::new(Voc::open(&[input], name()?)?),
    })
}

fn shown(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
    paths.join(", ")
}

pub(super) fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
