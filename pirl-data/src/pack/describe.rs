//! What a pack holds, in words and as JSON.

use std::path::Path;

use serde_json::{Value, json};

use super::{Counts, Pack, PerClass, Verification};
use crate::DataError;

/// Faults that a message names.
const NAMED: usize = 20;

impl Counts {
    /// These numbers in words, with what else is known of `pack`, which they are of, and of its verification.
    pub fn describe(&self, pack: &Pack, verified: Option<&Verification>) -> String {
        let mut text = format!(
            "images       {}\nencoding     {}\nsource       {}\nfingerprint  {}\nshards       {} ({:.1} MiB)\n",
            pack.len(),
            pack.encoding(),
            pack.source(),
            pack.fingerprint(),
            pack.paths().len(),
            self.bytes as f64 / f64::from(1 << 20)
        );
        let per_class = |of: &dyn Fn(u32) -> String| -> String {
            let names = pack.class_names().iter().enumerate();
            names
                .map(|(label, name)| format!("\n  {label:>4}  {name}  {}", of(label as u32)))
                .collect()
        };
        let count = |counts: &PerClass, label| counts.get(&label).copied().unwrap_or(0);
        let classes = pack.class_names().len();
        text += &match (&self.images_per_class, &self.objects) {
            (Some(images), _) => format!(
                "classes      {classes}{}",
                per_class(&|label| count(images, label).to_string())
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
        };
        if let Some(verified) = verified {
            text += "\nverified     every image decodes, the fingerprint matches";
            for (encoding, count) in &verified.encodings {
                text += &format!("\n  {encoding}  {count}");
            }
            let (least, greatest) = verified.side_range;
            text += &format!("\nshorter side {least} to {greatest} pixels");
            for (from, count) in &verified.shorter_sides {
                text += &format!("\n  {from:>5} to {:<5} {count}", 2 * from - 1);
            }
        }
        text
    }

    /// The same as JSON.
    pub fn to_json(&self, pack: &Pack, verified: Option<&Verification>) -> Value {
        let verified = verified.map(|verified| {
            json!({
                "fingerprint": verified.fingerprint,
                "encodings": verified.encodings,
                "shorter_sides": verified.shorter_sides,
                "shorter_side_min": verified.side_range.0,
                "shorter_side_max": verified.side_range.1,
            })
        });
        let (images, objects) = (&self.images_per_class, self.objects.as_ref());
        json!({
            "verified": verified,
            "images": pack.len(),
            "labelled": images.is_some(),
            "classes": pack.class_names(),
            "images_per_class": images,
            "objects": objects.map(|objects| objects.total),
            "objects_per_class": objects.map(|objects| &objects.per_class),
            "difficult_per_class": objects.map(|objects| &objects.difficult),
            "encoding": pack.encoding().to_string(),
            "source": pack.source(),
            "fingerprint": pack.fingerprint(),
            "shards": pack.paths(),
            "bytes": self.bytes,
        })
    }
}

impl Verification {
    /// An error if a sample is broken, or the fingerprint is not that of `pack`, which was verified.
    ///
    /// # Errors
    /// [`DataError::Damaged`].
    pub fn ensure_whole(&self, pack: &Pack) -> Result<(), DataError> {
        let mut faults: Vec<String> = self
            .broken
            .iter()
            .take(NAMED)
            .map(|broken| format!("{}: {}", broken.name, broken.reason))
            .collect();
        if self.broken.len() > NAMED {
            faults.push(format!("and {} more", self.broken.len() - NAMED));
        }
        if self.fingerprint != pack.fingerprint() {
            faults.push(format!(
                "its content has the fingerprint {}, expected {}: bytes have changed since it was packed",
                self.fingerprint,
                pack.fingerprint()
            ));
        }
        if faults.is_empty() {
            return Ok(());
        }
        Err(DataError::Damaged {
            path: pack
                .paths()
                .first()
                .map_or(Path::new(""), |path| path)
                .to_owned(),
            faults,
        })
    }
}
