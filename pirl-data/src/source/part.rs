use std::collections::BTreeMap;

use pirl_core::SettingError;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::{RawSample, Source, Split};
use crate::{DataError, Skipped};

/// A part of a source: its samples are drawn by a seed and stay in their order.
///
/// With the same seed and shares [`Split::Train`] and [`Split::Test`] have no sample in common, and all
/// of them together.
pub struct Part {
    inner: Box<dyn Source>,
    chosen: Vec<usize>,
    name: String,
}

/// Shares such as `80/20`, of which `80/20:test` is the second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Shares {
    pub(super) train: f64,
    pub(super) which: Split,
}

impl Shares {
    /// `None` of what is no such text.
    ///
    /// # Errors
    /// [`SettingError`] for shares that cannot work.
    pub(super) fn parse(text: &str) -> Result<Option<Self>, SettingError> {
        let (shares, which) = match text.split_once(':') {
            Some((shares, which)) => (shares, Some(which)),
            None => (text, None),
        };
        let Some((train, test)) = shares.split_once('/') else {
            return Ok(None);
        };
        let number = |text: &str| text.parse::<f64>().ok();
        let Some((train, test)) = number(train).zip(number(test)) else {
            return Ok(None);
        };
        let which = match which {
            None | Some("train") => Split::Train,
            Some("test") => Split::Test,
            Some(_) => {
                let expected = "must be two shares such as 80/20, then :train or :test";
                return Err(SettingError::new("split", text, expected));
            }
        };
        if !(train > 0.0 && test > 0.0 && (train + test).is_finite()) {
            return Err(SettingError::new(
                "split",
                text,
                "must be two shares above 0",
            ));
        }
        let train = train / (train + test);
        Ok(Some(Self { train, which }))
    }
}

impl Part {
    /// The share `train` of the samples, in (0, 1), or the rest of them, drawn by `seed`.
    ///
    /// # Errors
    /// [`DataError::Setting`] unless `train` lies in (0, 1).
    pub fn new(
        inner: Box<dyn Source>,
        train: f64,
        which: Split,
        seed: u64,
    ) -> Result<Self, DataError> {
        let fits = train > 0.0 && train < 1.0;
        pirl_core::check("train", train, fits, "must lie between 0 and 1")?;
        let mut order: Vec<usize> = (0..inner.len()).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        let first = (order.len() as f64 * train).round() as usize;
        let mut chosen = match which {
            Split::Train => order[..first].to_vec(),
            Split::Test => order[first..].to_vec(),
        };
        chosen.sort_unstable();
        Ok(Self {
            inner,
            chosen,
            name: format!("{which} part of {:.1} %, seed {seed}", 100.0 * train),
        })
    }

    fn place(&self, index: usize) -> Result<usize, DataError> {
        let len = self.chosen.len();
        let place = self.chosen.get(index).copied();
        place.ok_or(DataError::Index { index, len })
    }
}

impl Source for Part {
    fn len(&self) -> usize {
        self.chosen.len()
    }

    fn class_names(&self) -> &[String] {
        self.inner.class_names()
    }

    fn read(&self, index: usize) -> Result<RawSample<'_>, DataError> {
        self.inner.read(self.place(index)?)
    }

    fn describe(&self) -> String {
        format!("{}, {}", self.inner.describe(), self.name)
    }

    fn skipped(&self) -> &[Skipped] {
        self.inner.skipped()
    }

    fn notes(&self) -> &[Skipped] {
        self.inner.notes()
    }

    fn passed_over(&self) -> BTreeMap<String, usize> {
        self.inner.passed_over()
    }

    fn annotated_size(&self, index: usize) -> Option<(usize, usize)> {
        self.inner.annotated_size(self.place(index).ok()?)
    }

    fn stamp(&self, index: usize) -> u128 {
        self.place(index).map_or(0, |place| self.inner.stamp(place))
    }
}
