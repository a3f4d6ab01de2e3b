//! `pirl data fetch`, `pack` and `inspect`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use pirl_data::{
    Cifar, DataError, Idx, ImageFolder, List, Pack, PackOptions, PackReport, Source, Split, Voc,
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

pub(crate) fn inspect(args: &InspectArgs) -> Result<()> {
    let pack = Pack::open(&args.pack)?;
    let images = pack.labels().map(|labels| counts(labels.into_iter()));
    let objects = pack.has_objects().then(|| ObjectCounts::of(&pack));
    let bytes = bytes_of(pack.paths())?;
    if args.json {
        return print_json(&json!({
            "images": pack.len(),
            "labelled": images.is_some(),
            "classes": pack.class_names(),
            "images_per_class": images,
            "objects": objects.as_ref().map(|objects| objects.total),
            "objects_per_class": objects.as_ref().map(|objects| &objects.per_class),
            "difficult_per_class": objects.as_ref().map(|objects| &objects.difficult),
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
    let per_class = |of: &dyn Fn(u32) -> String| -> String {
        let names = pack.class_names().iter().enumerate();
        names
            .map(|(label, name)| format!("\n  {label:>4}  {name}  {}", of(label as u32)))
            .collect()
    };
    let count = |counts: &BTreeMap<u32, usize>, label| counts.get(&label).copied().unwrap_or(0);
    let classes = pack.class_names().len();
    text.push_str(&match (images, objects) {
        (Some(images), _) => format!(
            "classes      {classes}{}",
            per_class(&|label| count(&images, label).to_string())
        ),
        (None, Some(objects)) => format!(
            "objects      {}\nclasses      {classes} (objects, difficult ones among them){}",
            objects.total,
            per_class(&|label| format!(
                "{} {}",
                count(&objects.per_class, label),
                count(&objects.difficult, label)
            ))
        ),
        (None, None) => "labels       none".to_owned(),
    });
    print(&text)
}

/// What is annotated in a pack.
struct ObjectCounts {
    total: usize,
    per_class: BTreeMap<u32, usize>,
    /// Those hard to recognise, which `per_class` counts too.
    difficult: BTreeMap<u32, usize>,
}

impl ObjectCounts {
    fn of(pack: &Pack) -> Self {
        let objects = || (0..pack.len()).filter_map(|index| pack.objects(index));
        let labels = |only_difficult: bool| {
            objects().flat_map(move |objects| {
                let wanted = objects.iter().filter(|object| object.2 || !only_difficult);
                wanted.map(|object| object.1).collect::<Vec<_>>()
            })
        };
        Self {
            total: objects().map(|objects| objects.len()).sum(),
            per_class: counts(labels(false)),
            difficult: counts(labels(true)),
        }
    }
}

fn counts(labels: impl Iterator<Item = u32>) -> BTreeMap<u32, usize> {
    let mut counts = BTreeMap::new();
    for label in labels {
        *counts.entry(label).or_default() += 1;
    }
    counts
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
