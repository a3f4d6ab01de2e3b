//! What a packing did, and what it left out: on the screen, and as a file beside the pack.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::schema;
use crate::{DataError, Encoding};

/// Names shown of each reason.
const SHOWN: usize = 20;

/// An image, or an object in one, that was left out, or that was read with a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its name in the source.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What [`pack`](super::pack) wrote and what it left out.
#[derive(Clone, Debug)]
pub struct PackReport {
    /// Images packed.
    pub packed: usize,
    /// Images of the source that an interrupted packing had already packed or skipped.
    pub resumed: usize,
    /// What was left out: first what the source had skipped ([`Source::skipped`](crate::Source::skipped)),
    /// then images that do not decode and objects whose boxes do not fit their image, in its order.
    pub skipped: Vec<Skipped>,
    /// What was packed with a change, or may not be what was meant
    /// ([`Source::notes`](crate::Source::notes)): boxes that were cut at the edge of their image or
    /// turned with it.
    pub notes: Vec<Skipped>,
    /// What was counted while packing.
    pub tally: Tally,
    /// Files among the images that are none, by their endings.
    pub passed_over: BTreeMap<String, usize>,
    /// Class names by label; empty when nothing is labelled.
    pub class_names: Vec<String>,
    /// The files written, in order.
    pub shards: Vec<PathBuf>,
    /// Bytes of all files together.
    pub bytes: u64,
    /// How samples are encoded.
    pub encoding: Encoding,
    /// The content fingerprint, 32 hexadecimal digits.
    pub fingerprint: String,
}

/// Numbers of what was packed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Images by the format they came in.
    pub formats: BTreeMap<String, usize>,
    /// Images by the ending of their name.
    pub endings: BTreeMap<String, usize>,
    /// Images that were turned into another format or another number of channels.
    pub reencoded: usize,
    /// Images whose bytes are those of an earlier one; with `dedupe` they are left out.
    pub duplicates: usize,
    /// Those of the duplicates that have another label than the first of them.
    pub duplicates_labelled_otherwise: usize,
    /// Images of each class, by label.
    pub per_class: BTreeMap<u32, usize>,
    /// Objects of each class, by label.
    pub objects_per_class: BTreeMap<u32, usize>,
    /// The least and the greatest width and height in the pack: width, width, height, height.
    pub sizes: Option<[usize; 4]>,
}

impl Tally {
    pub(super) fn size(&mut self, (width, height): (usize, usize)) {
        let [w0, w1, h0, h1] = self.sizes.unwrap_or([width, width, height, height]);
        self.sizes = Some([w0.min(width), w1.max(width), h0.min(height), h1.max(height)]);
    }
}

impl PackReport {
    /// The report as JSON: numbers, and every name that was left out or noted, with its reason.
    pub fn to_json(&self, output: &Path) -> serde_json::Value {
        let name = |label: &u32| match self.class_names.get(*label as usize) {
            Some(name) => name.clone(),
            None => label.to_string(),
        };
        let by_name = |counts: &BTreeMap<u32, usize>| -> BTreeMap<String, usize> {
            counts
                .iter()
                .map(|(label, count)| (name(label), *count))
                .collect()
        };
        let sizes = self
            .tally
            .sizes
            .map(|[w0, w1, h0, h1]| serde_json::json!({ "width": [w0, w1], "height": [h0, h1] }));
        serde_json::json!({
            "output": output,
            "packed": self.packed,
            "resumed": self.resumed,
            "skipped": self.skipped,
            "skipped_by_reason": by_reason(&self.skipped),
            "notes": self.notes,
            "notes_by_reason": by_reason(&self.notes),
            "formats": self.tally.formats,
            "endings": self.tally.endings,
            "reencoded": self.tally.reencoded,
            "passed_over": self.passed_over,
            "duplicates": self.tally.duplicates,
            "duplicates_labelled_otherwise": self.tally.duplicates_labelled_otherwise,
            "classes": self.class_names,
            "images_per_class": by_name(&self.tally.per_class),
            "objects_per_class": by_name(&self.tally.objects_per_class),
            "sizes": sizes,
            "shards": self.shards,
            "bytes": self.bytes,
            "encoding": self.encoding.to_string(),
            "fingerprint": self.fingerprint,
        })
    }

    /// Writes [`to_json`](Self::to_json) to `PACK.report.json`, beside the pack, whole or not at all.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub fn save(&self, output: &Path) -> Result<(), DataError> {
        let mut path = schema::stem_of(output).into_os_string();
        path.push(".report.json");
        let report = format!("{:#}\n", self.to_json(output));
        pirl_core::file::write(path.as_ref(), report.as_bytes())
            .map_err(DataError::io("write", path))
    }

    /// The JSON of a packing that left out everything ([`DataError::Nothing`]).
    pub fn nothing_json(output: &Path, skipped: &[Skipped]) -> serde_json::Value {
        serde_json::json!({
            "output": output,
            "packed": 0,
            "skipped": skipped,
            "skipped_by_reason": by_reason(skipped),
        })
    }
}

impl fmt::Display for PackReport {
    /// A summary of a few lines: what was packed, in which formats and classes, what was left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tally = &self.tally;
        write!(f, "{} images packed", self.packed)?;
        if self.resumed > 0 {
            write!(
                f,
                ", {} of them dealt with before an interruption",
                self.resumed
            )?;
        }
        match self.class_names.len() {
            0 => write!(f, ", no labels")?,
            1 => write!(f, ", 1 class")?,
            count => write!(f, ", {count} classes")?,
        }
        let objects: usize = tally.objects_per_class.values().sum();
        if objects > 0 {
            write!(f, ", {objects} objects")?;
        }
        let mebibytes = self.bytes as f64 / f64::from(1 << 20);
        write!(f, ", {}, {mebibytes:.1} MiB", self.encoding)?;
        if let Some([w0, w1, h0, h1]) = tally.sizes {
            write!(f, "\nsizes: {w0} to {w1} wide, {h0} to {h1} high")?;
        }
        if tally.formats.len() > 1 || tally.reencoded > 0 {
            write!(f, "\nread: {}", counts(&tally.formats))?;
            if tally.reencoded > 0 {
                write!(f, "; {} of them encoded anew", tally.reencoded)?;
            }
        }
        if tally.duplicates > 0 {
            write!(
                f,
                "\nduplicates: {} images have the bytes of an earlier one",
                tally.duplicates
            )?;
            if tally.duplicates_labelled_otherwise > 0 {
                write!(
                    f,
                    ", {} of them another label",
                    tally.duplicates_labelled_otherwise
                )?;
            }
        }
        if !self.passed_over.is_empty() {
            write!(f, "\nno images: {}", counts(&self.passed_over))?;
        }
        if !self.notes.is_empty() {
            write!(f, "\nnoted: {}", listed(&self.notes))?;
        }
        if !self.skipped.is_empty() {
            write!(f, "\nleft out: {}", listed(&self.skipped))?;
        }
        self.shards
            .iter()
            .try_for_each(|path| write!(f, "\n  {}", path.display()))
    }
}

fn counts(counts: &BTreeMap<String, usize>) -> String {
    let parts: Vec<_> = counts
        .iter()
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    parts.join(", ")
}

/// How many there are, how many for each kind of reason, and the first of each.
pub(crate) fn listed(skipped: &[Skipped]) -> String {
    let mut kinds: Vec<(String, Vec<&Skipped>)> = Vec::new();
    for entry in skipped {
        let kind = kind(&entry.reason);
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, of_kind)) => of_kind.push(entry),
            None => kinds.push((kind, vec![entry])),
        }
    }
    let mut text = format!("{} in all", skipped.len());
    for (kind, of_kind) in &kinds {
        if kinds.len() > 1 || of_kind.len() > SHOWN {
            text += &format!("\n  {} times: {kind}", of_kind.len());
        }
        for entry in of_kind.iter().take(SHOWN) {
            text += &format!("\n    {}: {}", entry.name, entry.reason);
        }
        if of_kind.len() > SHOWN {
            text += &format!("\n    and {} more", of_kind.len() - SHOWN);
        }
    }
    text
}

/// How many there are for each kind of reason.
fn by_reason(skipped: &[Skipped]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for entry in skipped {
        *counts.entry(kind(&entry.reason)).or_default() += 1;
    }
    counts
}

/// A reason without what is of one file alone: numbers, and what stands between quotes.
fn kind(reason: &str) -> String {
    let mut kind = String::with_capacity(reason.len());
    let mut quoted = false;
    for letter in reason.chars() {
        match letter {
            '"' if quoted => {
                quoted = false;
                kind.push_str("...\"");
            }
            '"' => {
                quoted = true;
                kind.push('"');
            }
            _ if quoted => {}
            digit if digit.is_ascii_digit() => {
                if !kind.ends_with('N') {
                    kind.push('N');
                }
            }
            letter => kind.push(letter),
        }
    }
    kind
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_without_their_numbers() {
        let skipped = |name: &str, reason: &str| Skipped {
            name: name.to_owned(),
            reason: reason.to_owned(),
        };
        let list = [
            skipped("a", "its class \"dog\" is unknown"),
            skipped("b", "12 x 34 pixels"),
            skipped("c", "its class \"the 3rd\" is unknown"),
        ];
        let counts = by_reason(&list);
        assert_eq!(counts["its class \"...\" is unknown"], 2);
        assert_eq!(counts["N x N pixels"], 1);
        let text = listed(&list);
        assert!(
            text.contains("2 times: its class") && text.contains("a: its class \"dog\""),
            "{text}"
        );
    }
}
