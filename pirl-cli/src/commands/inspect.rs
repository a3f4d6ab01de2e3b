//! `pirl data inspect`.

use std::path::Path;

use anyhow::{Result, bail};
use pirl_data::{Counts, DataError, Pack, PerClass, Verification};
use serde_json::json;

use super::data::mebibytes;
use crate::args::InspectArgs;
use crate::interrupt::{Interrupt, Interrupted};
use crate::output::{print, print_json};
use crate::progress::Progress;

/// Broken samples that a message names.
const NAMED: usize = 20;

pub(crate) fn run(args: &InspectArgs) -> Result<()> {
    let pack = Pack::open(&args.pack)?;
    let Counts {
        images_per_class: images,
        objects,
        bytes,
    } = pack.counts()?;
    let verified = args.verify.then(|| verify(&pack)).transpose()?;
    if args.json {
        let verified = verified.map(|verified| {
            json!({
                "fingerprint": verified.fingerprint,
                "encodings": verified.encodings,
                "shorter_sides": verified.shorter_sides,
                "shorter_side_min": verified.side_range.0,
                "shorter_side_max": verified.side_range.1,
            })
        });
        return print_json(&json!({
            "verified": verified,
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
    let count = |counts: &PerClass, label| counts.get(&label).copied().unwrap_or(0);
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
    if let Some(verified) = verified {
        text.push_str(&described(&verified));
    }
    print(&text)
}

/// Fails when any sample is broken or the checksum is another.
fn verify(pack: &Pack) -> Result<Verification> {
    let interrupt = Interrupt::install()?;
    let mut progress = Progress::new("verifying", "images", pack.len() as u64, 0);
    let verified = pack.verify(
        &mut |done, _| progress.at(done as u64, String::new),
        &|| interrupt.seen(),
    );
    progress.finish();
    let verified = match verified {
        Err(DataError::Stopped { done, total, .. }) => {
            bail!(Interrupted(format!("{done} of {total} images verified")))
        }
        verified => verified?,
    };
    let mut faults: Vec<String> = verified
        .broken
        .iter()
        .take(NAMED)
        .map(|broken| format!("{}: {}", broken.name, broken.reason))
        .collect();
    if verified.broken.len() > NAMED {
        faults.push(format!("and {} more", verified.broken.len() - NAMED));
    }
    if verified.fingerprint != pack.fingerprint() {
        faults.push(format!(
            "its content has the fingerprint {}, expected {}: bytes have changed since it was packed",
            verified.fingerprint,
            pack.fingerprint()
        ));
    }
    if !faults.is_empty() {
        bail!(
            "{} is damaged; pack its images again:\n  {}",
            pack.paths().first().map_or(Path::new(""), |p| p).display(),
            faults.join("\n  ")
        );
    }
    Ok(verified)
}

fn described(verified: &Verification) -> String {
    let (least, greatest) = verified.side_range;
    let mut text = "\nverified     every image decodes, the fingerprint matches".to_owned();
    for (encoding, count) in &verified.encodings {
        text.push_str(&format!("\n  {encoding}  {count}"));
    }
    text.push_str(&format!("\nshorter side {least} to {greatest} pixels"));
    for (from, count) in &verified.shorter_sides {
        text.push_str(&format!("\n  {from:>5} to {:<5} {count}", 2 * from - 1));
    }
    text
}
