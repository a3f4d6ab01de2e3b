//! `pirl data fetch`, `pack` and `inspect`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use pirl_data::{
    Cifar, Idx, ImageFolder, List, Pack, PackOptions, PackReport, Source, Split,
    fetch_fashion_mnist,
};
use serde_json::json;

use crate::args::{DataSet, FetchArgs, Format, InspectArgs, PackArgs};
use crate::interrupt::{Interrupt, Interrupted};
use crate::output::{print, print_json};
use crate::progress::Progress;

pub(crate) fn fetch(args: &FetchArgs) -> Result<()> {
    let DataSet::FashionMnist = args.name;
    let from = fetch_fashion_mnist(&args.output)?;
    if args.json {
        return print_json(&json!({ "output": args.output, "from": from }));
    }
    print(&format!(
        "{}: Fashion-MNIST, from {from}",
        args.output.display()
    ))
}

pub(crate) fn pack(args: &PackArgs) -> Result<()> {
    let source = open_source(args)?;
    let interrupt = Interrupt::install()?;
    let options = PackOptions {
        shard_bytes: args.shard_mib << 20,
        resize_shorter: args.resize_shorter,
        strict: args.strict,
        stop: Some(interrupt.flag()),
    };
    let mut progress = Progress::new("packing", "images", source.len() as u64, 0);
    let packed = pirl_data::pack(&*source, &args.output, &options, &mut |done, _| {
        progress.at(done as u64, String::new);
    });
    progress.finish();
    let report = match packed {
        Err(_) if interrupt.seen() => {
            bail!(Interrupted(format!(
                "nothing was written to {}; run the same command again",
                args.output.display()
            )));
        }
        packed => packed.with_context(|| format!("packing {}", args.input.display()))?,
    };
    for skipped in &report.skipped {
        eprintln!("skipped {}: {}", skipped.name, skipped.reason);
    }
    if args.json {
        return print_json(&json!({
            "output": args.output,
            "packed": report.packed,
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
        count => format!(", {count} skipped because they do not decode (named above)"),
    };
    let shards: Vec<String> = report
        .shards
        .iter()
        .map(|path| format!("  {}", path.display()))
        .collect();
    format!(
        "{} images packed{skipped}, {}, {}\n{}",
        report.packed,
        report.encoding,
        mebibytes(report.bytes),
        shards.join("\n")
    )
}

fn open_source(args: &PackArgs) -> Result<Box<dyn Source>> {
    let split = || -> Result<Split> {
        match &args.split {
            Some(name) => Ok(name.parse()?),
            None => bail!("--split is needed: train or test"),
        }
    };
    let without_split = || match &args.split {
        Some(name) => bail!("--split {name}: a list has no splits; leave it out"),
        None => Ok(()),
    };
    Ok(match args.format {
        Format::ImageFolder => Box::new(ImageFolder::open(folder(args))?),
        Format::List => {
            without_split()?;
            Box::new(List::open(&args.input)?)
        }
        Format::Mnist => Box::new(Idx::open(&args.input, split()?)?),
        Format::Cifar10 => Box::new(Cifar::ten(&args.input, split()?)?),
        Format::Cifar100 => Box::new(Cifar::hundred(&args.input, split()?)?),
    })
}

fn folder(args: &PackArgs) -> PathBuf {
    match &args.split {
        Some(name) => args.input.join(name),
        None => args.input.clone(),
    }
}

pub(crate) fn inspect(args: &InspectArgs) -> Result<()> {
    let pack = Pack::open(&args.pack)?;
    let counts = pack.labels().map(|labels| {
        let mut counts = BTreeMap::<u32, usize>::new();
        for label in labels {
            *counts.entry(label).or_default() += 1;
        }
        counts
    });
    let bytes = bytes_of(pack.paths())?;
    if args.json {
        return print_json(&json!({
            "images": pack.len(),
            "labelled": counts.is_some(),
            "classes": pack.class_names(),
            "images_per_class": counts,
            "encoding": pack.encoding().to_string(),
            "source": pack.source(),
            "fingerprint": pack.fingerprint(),
            "shards": pack.paths(),
            "bytes": bytes,
        }));
    }
    let mut text = format!(
        "images       {}\nencoding     {}\nsource       {}\nfingerprint  {}\nshards       {} ({})\n",
        pack.len(),
        pack.encoding(),
        pack.source(),
        pack.fingerprint(),
        pack.paths().len(),
        mebibytes(bytes)
    );
    match counts {
        None => text.push_str("labels       none"),
        Some(counts) => {
            text.push_str(&format!("classes      {}", pack.class_names().len()));
            for (label, name) in pack.class_names().iter().enumerate() {
                let count = counts.get(&(label as u32)).unwrap_or(&0);
                text.push_str(&format!("\n  {label:>4}  {name}  {count}"));
            }
        }
    }
    print(&text)
}

fn bytes_of(paths: &[impl AsRef<Path>]) -> Result<u64> {
    paths
        .iter()
        .map(AsRef::as_ref)
        .map(|path| {
            let metadata = std::fs::metadata(path);
            Ok(metadata
                .with_context(|| format!("cannot read {}", path.display()))?
                .len())
        })
        .sum()
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
