//! Which images of a pack keep their labels in a semi-supervised evaluation.
//!
//! Results with few labels depend on which they are, so the choice can be written to a list that other
//! networks are then evaluated with.

use std::fmt::Write;

use pirl_core::{SettingError, check};
use pirl_data::Pack;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::error::{EvalError, Result};

/// The first word of a list, before the pack's fingerprint.
const HEADER: &str = "# labelled images of pack";

/// An error unless a part of the labels can be this large.
pub(crate) fn check_label_fraction(fraction: f64) -> Result<(), SettingError> {
    let fits = fraction > 0.0 && fraction <= 1.0;
    check("label_fraction", fraction, fits, "must lie in (0, 1]")
}

/// Numbers of a pack's images, rising.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelSubset {
    pack: String,
    of: usize,
    indices: Vec<u32>,
}

impl LabelSubset {
    /// The same number of images of every class, drawn by `seed`: about `fraction` of the pack in all,
    /// and at least one of each class. Of a class with fewer images all are taken.
    ///
    /// # Errors
    /// [`EvalError::Setting`] for a fraction outside `(0, 1]`, [`EvalError::Unlabelled`].
    pub fn balanced(pack: &Pack, fraction: f64, seed: u64) -> Result<Self> {
        check_label_fraction(fraction)?;
        let mut classes = vec![Vec::new(); pack.class_names().len()];
        for index in 0..pack.len() {
            let label = pack.label(index);
            let members = label.and_then(|label| classes.get_mut(label as usize));
            let set = "training";
            members
                .ok_or(EvalError::Unlabelled { set, index })?
                .push(index as u32);
        }
        let mut indices: Vec<u32> = if fraction == 1.0 {
            (0..pack.len() as u32).collect()
        } else {
            let each = pack.len() as f64 * fraction / classes.len() as f64;
            let each = (each.round() as usize).max(1);
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let draw = |members: &mut Vec<u32>| {
                let count = each.min(members.len());
                members.partial_shuffle(&mut rng, count).0.to_vec()
            };
            classes.iter_mut().flat_map(draw).collect()
        };
        indices.sort_unstable();
        Ok(Self {
            pack: pack.fingerprint().to_owned(),
            of: pack.len(),
            indices,
        })
    }

    /// The images' numbers, rising.
    pub fn indices(&self) -> &[u32] {
        &self.indices
    }

    /// Its part of the pack, in `(0, 1]`.
    pub fn fraction(&self) -> f64 {
        self.indices.len() as f64 / self.of.max(1) as f64
    }

    /// The images themselves. `pack` must be the one the subset was made for.
    ///
    /// # Errors
    /// [`EvalError::Data`] if it has fewer images.
    pub fn of(&self, pack: &Pack) -> Result<Pack> {
        if self.indices.len() == pack.len() {
            return Ok(pack.clone());
        }
        Ok(pack.select(&self.indices)?)
    }

    /// The list as text: the pack's fingerprint, then a number a line.
    pub fn to_text(&self) -> String {
        let mut text = format!("{HEADER} {}\n", self.pack);
        for index in &self.indices {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{index}");
        }
        text
    }

    /// Reads a list for `pack`; empty lines and lines that begin with `#` are ignored.
    ///
    /// # Errors
    /// [`EvalError::LabelList`] for a line that is not the number of an image of the pack, a number that
    /// occurs twice, a list of another pack, or one without numbers.
    pub fn parse(text: &str, pack: &Pack) -> Result<Self> {
        let bad = |line: usize, reason: String| EvalError::LabelList { line, reason };
        let mut indices = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            if let Some(fingerprint) = line.strip_prefix(HEADER).map(str::trim)
                && fingerprint != pack.fingerprint()
            {
                return Err(bad(
                    number,
                    format!(
                        "the list is of the pack with fingerprint {fingerprint}, this one's is {}",
                        pack.fingerprint()
                    ),
                ));
            }
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            match line.parse::<u32>() {
                Ok(index) if (index as usize) < pack.len() => indices.push((index, number)),
                _ => {
                    return Err(bad(
                        number,
                        format!(
                            "{line:?} is not the number of an image, 0 to {}",
                            pack.len() - 1
                        ),
                    ));
                }
            }
        }
        indices.sort_unstable();
        if let Some(pair) = indices.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(bad(pair[1].1, format!("image {} comes twice", pair[1].0)));
        }
        if indices.is_empty() {
            return Err(bad(1, "there is no image in the list".to_owned()));
        }
        Ok(Self {
            pack: pack.fingerprint().to_owned(),
            of: pack.len(),
            indices: indices.into_iter().map(|(index, _)| index).collect(),
        })
    }
}
