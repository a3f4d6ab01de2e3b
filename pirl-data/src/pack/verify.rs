use std::collections::BTreeMap;

use pirl_core::SettingError;
use rayon::prelude::*;

use super::schema::Fingerprint;
use super::{Pack, Skipped};
use crate::objects::{Cut, cut};
use crate::{DataError, Encoding};

/// Samples between two calls of the progress.
const CHUNK: usize = 256;

/// What [`Pack::verify`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verification {
    /// Samples that do not decode, objects that leave their image, and names that are not UTF-8, by their
    /// number and, where there is one, their name.
    pub broken: Vec<Skipped>,
    /// The fingerprint of what is in the files; that of the pack unless they are damaged.
    pub fingerprint: String,
    /// Samples by encoding: "jpeg", "png", "webp", "raw ...".
    pub encodings: BTreeMap<String, usize>,
    /// Images that decode by their shorter side: those from a power of two to the next are counted
    /// under it.
    pub shorter_sides: BTreeMap<usize, usize>,
    /// The least and the greatest shorter side; 0 when nothing decodes.
    pub side_range: (usize, usize),
}

impl Pack {
    /// Decodes every sample, checks that objects lie in their images, and computes the fingerprint
    /// again.
    ///
    /// `progress` is called with samples done and samples in all. `stop` ends it early when true.
    ///
    /// # Errors
    /// [`DataError::Stopped`]; [`DataError::Setting`] of a subset, whose fingerprint is not that of
    /// its samples.
    pub fn verify(
        &self,
        progress: &mut dyn FnMut(usize, usize),
        stop: &dyn Fn() -> bool,
    ) -> Result<Verification, DataError> {
        if self.is_subset() {
            let found = format!("{} samples of another", self.len());
            return Err(SettingError::new("pack", found, "must be whole to be verified").into());
        }
        let total = self.len();
        let mut found = Verification {
            broken: Vec::new(),
            fingerprint: String::new(),
            encodings: BTreeMap::new(),
            shorter_sides: BTreeMap::new(),
            side_range: (usize::MAX, 0),
        };
        let mut fingerprint = Fingerprint::new(self.class_names());
        for start in (0..total).step_by(CHUNK) {
            let end = total.min(start + CHUNK);
            for index in start..end {
                let bytes = self.bytes(index).unwrap_or_default();
                let encoding = self.encoding_of(index);
                let objects = self.objects(index);
                fingerprint.sample(encoding, self.label(index), objects.as_ref(), bytes);
                *found.encodings.entry(encoding.to_string()).or_default() += 1;
            }
            let sizes: Vec<_> = (start..end)
                .into_par_iter()
                .map(|index| self.check(index))
                .collect();
            for (index, size) in (start..end).zip(sizes) {
                match size {
                    Ok(shorter) => {
                        let bucket = shorter.checked_ilog2().map_or(0, |log| 1 << log);
                        *found.shorter_sides.entry(bucket).or_default() += 1;
                        let (least, greatest) = found.side_range;
                        found.side_range = (least.min(shorter), greatest.max(shorter));
                    }
                    Err(reason) => found.broken.push(Skipped {
                        name: self.called(index),
                        reason,
                    }),
                }
            }
            progress(end, total);
            if stop() {
                return Err(DataError::Stopped {
                    doing: "verifying",
                    done: end,
                    total,
                });
            }
        }
        if found.shorter_sides.is_empty() {
            found.side_range = (0, 0);
        }
        found.fingerprint = fingerprint.finish();
        Ok(found)
    }

    /// The shorter side of a sample that is whole, with its objects inside.
    fn check(&self, index: usize) -> Result<usize, String> {
        let bytes = self.bytes(index).unwrap_or_default();
        let image = crate::decode::decode(bytes, self.encoding())?;
        if self.has_names() && self.name(index).is_none() {
            return Err("its name is not UTF-8, or ends past those of all".to_owned());
        }
        let objects = self.objects(index).unwrap_or_default();
        for (number, (bounds, _, _)) in objects.iter().enumerate() {
            if cut(bounds, image.width, image.height) != Ok(Cut::Whole(bounds)) {
                return Err(format!(
                    "object {number} at {bounds:?} leaves the image of {} x {} pixels",
                    image.width, image.height
                ));
            }
        }
        Ok(image.width.min(image.height))
    }

    /// The encoding of one sample, never [`Encoding::Mixed`] unless it is damaged.
    fn encoding_of(&self, index: usize) -> Encoding {
        let bytes = self.bytes(index).unwrap_or_default();
        crate::decode::of_sample(bytes, self.encoding())
    }
}
